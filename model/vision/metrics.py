"""Scores on held-out images, in numpy alone: mAP@100 and its chance level.

Shapes: `N` images, `C` classes, `K` predictions kept per image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class MeanAveragePrecision:
    """A mean of per-class average precision.

    Attributes:
        weighted: Classes weighted by popularity: the number of images that carry each.
        unweighted: Plain mean over the classes that at least one image carries.
        num_classes: Number of those classes.
    """

    weighted: float
    unweighted: float
    num_classes: int


def mean_average_precision_at(scores: NDArray, labels: NDArray, cut: int = 100) -> MeanAveragePrecision:
    """mAP@cut: average precision per class over each image's `cut` best predictions.

    Of every image only the `cut` highest scores are kept (ties: the lower class index first). For each class
    the kept predictions are ranked over all images, and AP = sum_n (R_n - R_{n-1}) P_n over the distinct scores,
    as in scikit-learn's `average_precision_score`. An image that carries the class but whose prediction of it was not
    kept is never found, so recall stays below 1. Sun et al. 2017, section 4.2; classes weighted by popularity there.

    Args:
        scores: [N, C] float, higher is more likely; any monotone scale common to all images (logits will do).
        labels: [N, C], above 0.5 where the label holds.
        cut: Predictions kept per image; at least 1.

    Raises:
        ValueError: Shapes differ, a score is not finite, no image carries any label, or `cut` is below 1.
    """
    scores, truth = np.asarray(scores), np.asarray(labels) > 0.5
    _check(scores, truth, cut)
    popularity = truth.sum(axis=0)
    kept = _kept_by_class(scores, truth, min(cut, scores.shape[1]))
    precisions = np.zeros(scores.shape[1])
    for label, (ranked, hits) in kept.items():
        precisions[label] = _average_precision(ranked, hits, int(popularity[label]))
    return _mean(precisions, popularity)


def check_labels(labels: NDArray) -> None:
    """Raises `ValueError` unless every label is 0 or 1, which is what mAP@100 is defined for."""
    wrong = labels[(labels != 0) & (labels != 1)]
    if wrong.size:
        raise ValueError(
            f"labels hold {wrong.flat[0]:.4g}, but scores (mAP@100) are of labels that are 0 or 1, [images, labels]; "
            "for a regression or soft labels start with --noevaluator, which trains without scores"
        )


def chance(labels: NDArray) -> MeanAveragePrecision:
    """Expected mAP of random scores if no prediction is cut.

    For a class on m of N images, all orders equally likely, E[AP] = (H_N + (N - H_N) (m - 1) / (N - 1)) / N, where
    H_N = 1 + 1/2 + ... + 1/N (Bestgen 2015): close to m / N for large N. With fewer predictions kept than there are
    classes chance is lower still, so a comparison with this value is conservative.

    Args:
        labels: [N, C], above 0.5 where the label holds.

    Raises:
        ValueError: No image carries any label.
    """
    truth = np.asarray(labels) > 0.5
    popularity = truth.sum(axis=0)
    return _mean(_expected_precision(popularity, truth.shape[0]), popularity)


def _check(scores: NDArray, truth: NDArray, cut: int) -> None:
    if scores.ndim != 2 or scores.shape != truth.shape:
        raise ValueError(f"scores are {scores.shape} and labels {truth.shape}; give both as [images, classes]")
    if cut < 1:
        raise ValueError(f"cut is {cut}; keep at least 1 prediction per image")
    if not np.isfinite(scores).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(scores))} scores are not finite; score a sound checkpoint")


def _kept_by_class(scores: NDArray, truth: NDArray, keep: int) -> dict[int, tuple[NDArray, NDArray]]:
    """For each class that was kept at all: its kept scores, best first, and whether each is a hit."""
    columns = _best_columns(scores, keep).ravel()
    rows = np.repeat(np.arange(len(scores)), keep)
    values, hits = scores[rows, columns], truth[rows, columns]
    order = np.lexsort((-values, columns))
    columns, values, hits = columns[order], values[order], hits[order]
    labels, starts = np.unique(columns, return_index=True)
    ends = np.append(starts[1:], len(columns))
    return {int(c): (values[i:j], hits[i:j]) for c, i, j in zip(labels, starts, ends, strict=True)}


def _best_columns(scores: NDArray, keep: int) -> NDArray:
    """[N, keep] columns of each row's highest scores; at equal scores the lower column is kept."""
    threshold = np.partition(scores, -keep, axis=1)[:, -keep]
    chosen = scores >= threshold[:, None]
    surplus = chosen.sum(axis=1) - keep
    for row in np.nonzero(surplus)[0]:
        tied = np.nonzero(scores[row] == threshold[row])[0]
        chosen[row, tied[-surplus[row] :]] = False
    return np.nonzero(chosen)[1].reshape(len(scores), keep)


def _average_precision(values: NDArray, hits: NDArray, popularity: int) -> float:
    """AP of one class from its kept scores, best first; equal scores count as one rank, as in scikit-learn."""
    if popularity == 0:
        return 0.0
    last_of_tie = np.append(np.nonzero(np.diff(values))[0], len(values) - 1)
    found = np.cumsum(hits)[last_of_tie]
    precision = found / (last_of_tie + 1)
    return float(np.sum(np.diff(found, prepend=0) * precision) / popularity)


def _expected_precision(popularity: NDArray, num_images: int) -> NDArray:
    """[C]: rank k is a hit with chance m/N, then of precision (1 + (k - 1)(m - 1)/(N - 1)) / k; summed, over m."""
    n, m = num_images, popularity.astype(float)
    harmonic = float(np.sum(1.0 / np.arange(1, n + 1)))
    others = (m - 1) / max(n - 1, 1)
    return np.where(m > 0, (harmonic + others * (n - harmonic)) / n, 0.0)


def _mean(precisions: NDArray, popularity: NDArray) -> MeanAveragePrecision:
    present = popularity > 0
    if not present.any():
        raise ValueError("no image carries any label; give at least one labelled image to score")
    return MeanAveragePrecision(
        weighted=float(np.average(precisions[present], weights=popularity[present])),
        unweighted=float(np.mean(precisions[present])),
        num_classes=int(present.sum()),
    )
