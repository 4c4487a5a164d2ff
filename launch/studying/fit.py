"""A straight line through scores over the logarithm of a size, by least squares. In numpy; scipy has the quantile.

    score = intercept + slope * log10(size) + error

The band is of the line, at 95 % confidence: at x it reaches t s sqrt(1/n + (x - mean)^2 / S) to either side, where s^2
is the sum of squared residuals over n - 2, S the sum of (x_i - mean)^2, and t Student's 0.975 quantile at n - 2 degrees
of freedom (Draper and Smith, Applied Regression Analysis, 1998, chapter 1). Errors are taken as independent: true of
trainings with seeds of their own, not of checkpoints of one training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Fit:
    """A fitted line.

    Attributes:
        slope: Gain of the score for ten times the size.
        intercept: Score at size 1.
        r2: Share of the scores' variance that the line explains; NaN where all scores are equal.
        num_points: Scores that it is fitted to, n.
        slope_margin: Half of the width of the slope's confidence interval; infinite for two points.
    """

    slope: float
    intercept: float
    r2: float
    num_points: int
    slope_margin: float
    _mean_x: float
    _spread: float  # S
    _error: float  # s; 0 for two points

    def at(self, sizes: ArrayLike) -> NDArray[np.float64]:
        """The line at sizes, of any shape."""
        return self.intercept + self.slope * np.log10(np.asarray(sizes, np.float64))

    def margin(self, sizes: ArrayLike) -> NDArray[np.float64]:
        """Half of the width of the confidence band at sizes; infinite for two points."""
        if self.num_points == 2:
            return np.full(np.shape(sizes), np.inf)
        x = np.log10(np.asarray(sizes, np.float64)) - self._mean_x
        return _quantile(self.num_points - 2) * self._error * np.sqrt(1 / self.num_points + x**2 / self._spread)


def fit(sizes: Sequence[float], scores: Sequence[float]) -> Fit:
    """Fits a line to scores over log10 of their sizes.

    Args:
        sizes: [n], above 0.
        scores: [n].

    Raises:
        ValueError: There are fewer than two different sizes, or one is not above 0.
    """
    if len(set(sizes)) < 2 or min(sizes) <= 0:
        raise ValueError(f"sizes are {sorted(set(sizes))}; a line needs at least two different ones, above 0")
    x, y = np.log10(np.array(sizes, np.float64)), np.array(scores, np.float64)
    from_mean = x - x.mean()
    spread = float(from_mean @ from_mean)
    slope = float(from_mean @ y) / spread
    intercept = float(y.mean() - slope * x.mean())
    residuals = y - intercept - slope * x
    unexplained, total = float(residuals @ residuals), float(((y - y.mean()) ** 2).sum())
    num = len(x)
    error = math.sqrt(unexplained / (num - 2)) if num > 2 else 0.0
    margin = _quantile(num - 2) * error / math.sqrt(spread) if num > 2 else math.inf
    r2 = 1 - unexplained / total if total else math.nan
    return Fit(slope, intercept, r2, num, margin, float(x.mean()), spread, error)


def _quantile(degrees: int) -> float:
    """The t with P(|T| <= t) = `CONFIDENCE`, of Student's T with so many degrees of freedom."""
    from scipy import stats

    return float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees))
