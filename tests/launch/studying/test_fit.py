"""Lines over the logarithm of a size, against scipy and numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from downpour.launch.studying.fit import fit


def test_line_and_band_are_those_of_scipy() -> None:
    rng = np.random.default_rng(5)
    sizes = np.repeat([600.0, 2000, 6000, 20000, 60000], 3)
    x = np.log10(sizes)
    scores = 0.4 + 0.1 * x + rng.normal(0, 0.02, len(x))
    found, expected = fit(sizes.tolist(), scores.tolist()), stats.linregress(x, scores)
    quantile = stats.t.ppf(0.975, len(x) - 2)
    assert found.slope == pytest.approx(expected.slope)
    assert found.intercept == pytest.approx(expected.intercept)
    assert found.r2 == pytest.approx(expected.rvalue**2)
    assert found.slope_margin == pytest.approx(quantile * expected.stderr)
    # The band from the covariance of the coefficients, an independent formula.
    design = np.stack([np.ones_like(x), x], axis=1)
    coefficients, squares, *_ = np.linalg.lstsq(design, scores, rcond=None)
    covariance = squares[0] / (len(x) - 2) * np.linalg.inv(design.T @ design)
    at = np.stack([np.ones(4), np.log10([100.0, 600, 9000, 1e6])], axis=1)
    assert found.at([100, 600, 9000, 1e6]) == pytest.approx(at @ coefficients)
    margin = quantile * np.sqrt(np.einsum("ij,jk,ik->i", at, covariance, at))
    assert found.margin([100, 600, 9000, 1e6]) == pytest.approx(margin)


def test_a_line_through_points_on_it_is_exact() -> None:
    found = fit([10, 100, 1000], [1.0, 3.0, 5.0])
    assert (found.slope, found.intercept, found.r2) == pytest.approx((2, -1, 1))
    assert found.margin([10, 500]) == pytest.approx([0, 0], abs=1e-12)


def test_two_points_have_no_band_and_equal_scores_no_r2() -> None:
    two = fit([10, 100], [1.0, 3.0])
    assert two.slope == pytest.approx(2) and math.isinf(two.slope_margin) and np.isinf(two.margin([10, 20])).all()
    assert math.isnan(fit([1, 2, 3], [0.5, 0.5, 0.5]).r2)


@pytest.mark.parametrize("sizes", [[], [5.0], [5.0, 5.0], [0.0, 5.0], [-1.0, 5.0]])
def test_fewer_than_two_sizes_are_refused(sizes: list[float]) -> None:
    with pytest.raises(ValueError, match=r"sizes are|min\(\)"):
        fit(sizes, [0.1] * len(sizes))
