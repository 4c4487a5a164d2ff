"""Scores on held-out images, in numpy alone: mAP@100 and its chance level.

Shapes: `N` images, `C` classes, `K` predictions kept per image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from downpour.model.vision.scored_classes import ALL, ScoredClasses


class NotFinite(ValueError):
    """Predictions are not finite: the model has diverged."""


@dataclass(frozen=True)
class MeanPrecision:
    """A mean of per-class average precision.

    Attributes:
        weighted: Classes weighted as given, or by popularity: the number of images that carry each.
        unweighted: Plain mean over the classes that are scored and at least one image carries.
        num_classes: Number of those classes.
    """

    weighted: float
    unweighted: float
    num_classes: int


class BestPredictions:
    """The best predictions of every image, batch by batch, from which mAP@cut follows: K = min(cut, C) of an image.

    Of every image only the `cut` highest scores are kept (ties: the lower class index first). For each class
    the kept predictions are ranked over all images, and AP = sum_n (R_n - R_{n-1}) P_n over the distinct scores,
    as in scikit-learn's `average_precision_score`. An image that carries the class but whose prediction of it was not
    kept is never found, so recall stays below 1. Sun et al. 2017, section 4.2; classes weighted by popularity there.

    Where only some classes are annotated, the predictions of the others are left out before the best are kept: nobody
    knows whether they are right.

    Kept predictions take 9 bytes each in float32, so 900 bytes an image at K = 100, whatever C is.

    Args:
        cut: Predictions kept per image.
        classes: The classes that count, and their weights.

    Attributes:
        num_images: Images added so far.

    Raises:
        ValueError: `cut` is below 1.
    """

    def __init__(self, cut: int = 100, classes: ScoredClasses = ALL) -> None:
        if cut < 1:
            raise ValueError(f"cut is {cut}; keep at least 1 prediction per image")
        self.num_images = 0
        self._cut = cut
        self._classes = classes
        self._popularity = np.zeros(0, int)  # [C] from the first batch on: images that carry each class
        self._kept: list[tuple[NDArray, NDArray, NDArray]] = []  # of each batch: classes, scores, hits, [B * K] each

    def add(self, scores: NDArray, labels: NDArray) -> None:
        """Adds a batch.

        Args:
            scores: [B, C] float, higher is more likely; any monotone scale common to all images (logits will do).
            labels: [B, C], above 0.5 where the label holds.

        Raises:
            ValueError: Shapes differ, from each other or from earlier batches', or from the number of classes that have
                weights; or a score is not finite.
        """
        scores, truth = np.asarray(scores), np.asarray(labels) > 0.5
        _check(scores, truth, self._classes)
        if self._classes.annotated is not None:
            scores, truth = scores[:, self._classes.annotated], truth[:, self._classes.annotated]
        popularity = truth.sum(axis=0)
        if self._kept and popularity.shape != self._popularity.shape:
            raise ValueError(f"a batch has {len(popularity)} classes, those before it {len(self._popularity)}")
        self._popularity = self._popularity + popularity if self._kept else popularity
        self.num_images += len(scores)
        keep = min(self._cut, scores.shape[1])
        columns = _best_columns(scores, keep).ravel()
        rows = np.repeat(np.arange(len(scores)), keep)
        self._kept.append((columns.astype(np.int32), scores[rows, columns], truth[rows, columns]))

    def mean(self) -> MeanPrecision:
        """mAP@cut of all images so far.

        Raises:
            ValueError: None carries any label that is scored, or all classes that they carry have weight 0.
        """
        precisions = np.zeros(len(self._popularity))
        for label, ranked, hits in self._by_class():
            precisions[label] = _average_precision(ranked, hits, int(self._popularity[label]))
        return self._mean(precisions)

    def chance(self) -> MeanPrecision:
        """Expected mAP of random scores on all images so far, if no prediction is cut.

        For a class on m of N images, all orders equally likely, E[AP] = (H_N + (N - H_N) (m - 1) / (N - 1)) / N, where
        H_N = 1 + 1/2 + ... + 1/N (Bestgen 2015): close to m / N for large N. With fewer predictions kept than there are
        classes chance is lower still, so a comparison with this value is conservative.

        Raises:
            ValueError: As `mean` does.
        """
        return self._mean(_expected_precision(self._popularity, self.num_images))

    def has_labels(self) -> bool:
        """Whether any image so far carries a label of a class that is scored and has a weight."""
        return bool(self._kept) and bool(self._weights[self._popularity > 0].any())

    @property
    def _weights(self) -> NDArray:
        """The weight of each class that is scored, present or not."""
        weights = self._popularity if self._classes.weights is None else self._classes.weights
        if self._classes.weights is None or self._classes.annotated is None:
            return weights
        return weights[self._classes.annotated]

    def _mean(self, precisions: NDArray) -> MeanPrecision:
        present = self._popularity > 0
        if not present.any():
            raise ValueError("no image carries any label that is scored; give at least one labelled image to score")
        weights = self._weights[present]
        if not weights.any():
            raise ValueError("all classes that images carry have weight 0; give one of them a class weight above 0")
        return MeanPrecision(
            weighted=float(np.average(precisions[present], weights=weights)),
            unweighted=float(np.mean(precisions[present])),
            num_classes=int(present.sum()),
        )

    def _by_class(self) -> Iterator[tuple[int, NDArray, NDArray]]:
        """Each class that was kept at all, its kept scores, best first, and whether each is a hit."""
        if not self._kept:
            return
        columns, values, hits = (np.concatenate(parts) for parts in zip(*self._kept, strict=True))
        order = np.lexsort((-values, columns))
        columns, values, hits = columns[order], values[order], hits[order]
        labels, starts = np.unique(columns, return_index=True)
        ends = np.append(starts[1:], len(columns))
        for c, i, j in zip(labels, starts, ends, strict=True):
            yield int(c), values[i:j], hits[i:j]


def check_labels(labels: NDArray) -> None:
    """Raises `ValueError` unless every label is 0 or 1, which is what mAP@100 is defined for."""
    wrong = labels[(labels != 0) & (labels != 1)]
    if wrong.size:
        raise ValueError(
            f"labels hold {wrong.flat[0]:.4g}, but scores (mAP@100) are of labels that are 0 or 1, [images, labels]; "
            "for a regression or soft labels start with --noevaluator, which trains without scores"
        )


def check_finite(scores: NDArray) -> None:
    """Raises `NotFinite` for predictions that are not."""
    if not np.isfinite(scores).all():
        raise NotFinite(f"{np.count_nonzero(~np.isfinite(scores))} scores are not finite; score a sound checkpoint")


def _check(scores: NDArray, truth: NDArray, classes: ScoredClasses) -> None:
    if scores.ndim != 2 or scores.shape != truth.shape:
        raise ValueError(f"scores are {scores.shape} and labels {truth.shape}; give both as [images, classes]")
    if classes.weights is not None and len(classes.weights) != scores.shape[1]:
        raise ValueError(f"there are weights of {len(classes.weights)} classes, but scores of {scores.shape[1]}")
    check_finite(scores)


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
