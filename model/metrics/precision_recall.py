"""Counts from which precision and recall at any threshold follow, batch by batch, in the buckets that TensorBoard uses.

Pure numpy. Shapes: `B` examples of a batch, `C` classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_BUCKETS = 127  # TensorBoard's default; bucket i has the scores in [i / 126, (i + 1) / 126)
MOST_CLASSES = 4096  # whose counts are kept to choose the most frequent of them: 1 KB a class


@dataclass(frozen=True)
class Counts:
    """Counts of one class, or of all together.

    Attributes:
        positives: [NUM_BUCKETS], examples of the class by bucket of their score.
        negatives: [NUM_BUCKETS], the other examples.
    """

    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]


class PrecisionRecall:
    """Counts the scores of examples, by class. Memory does not grow with examples.

    Args:
        classes: The classes to count; empty for the most frequent ones, where there are at most `MOST_CLASSES`.
        known: The classes that examples are annotated with; None for all. Others count neither as these nor in all.
    """

    def __init__(self, classes: tuple[int, ...] = (), known: NDArray[np.intp] | None = None) -> None:
        self._classes, self._known = classes, known
        self._columns = np.zeros(0, int)  # known from the first batch on
        self._of_classes = np.zeros((2, 0, NUM_BUCKETS), np.int64)  # negatives and positives
        self._of_all = np.zeros((2, NUM_BUCKETS), np.int64)

    def add(self, scores: NDArray, truth: NDArray[np.bool_]) -> None:
        """Adds a batch.

        Args:
            scores: [B, C] in [0, 1].
            truth: [B, C], whether each example is of each class.
        """
        if not len(self._columns):
            known = np.arange(scores.shape[1]) if self._known is None else self._known
            self._columns = np.array(self._classes or (known if len(known) <= MOST_CLASSES else ()), int)
            self._of_classes = np.zeros((2, len(self._columns), NUM_BUCKETS), np.int64)
        buckets = np.clip((scores * (NUM_BUCKETS - 1)).astype(np.int64), 0, NUM_BUCKETS - 1)
        of_known = slice(None) if self._known is None else self._known
        self._of_all += _counts(buckets[:, of_known], truth[:, of_known], 1)[:, 0]
        places = buckets[:, self._columns] + NUM_BUCKETS * np.arange(len(self._columns))
        self._of_classes += _counts(places, truth[:, self._columns], len(self._columns))

    def all(self) -> Counts:
        """The counts of all classes together: of every pair of example and class."""
        negatives, positives = self._of_all
        return Counts(positives, negatives)

    def by_class(self, most: int) -> dict[int, Counts]:
        """The counts of the classes that were given; else of up to `most` of the most frequent ones that there are."""
        order = list(range(len(self._columns)))
        if not self._classes:
            totals = self._of_classes[1].sum(axis=1)
            order = [int(i) for i in np.argsort(-totals, kind="stable")[:most] if totals[i]]
        return {int(self._columns[i]): Counts(self._of_classes[1, i], self._of_classes[0, i]) for i in order}


def _counts(places: NDArray[np.int64], truth: NDArray[np.bool_], num_classes: int) -> NDArray[np.int64]:
    """[2, num_classes, NUM_BUCKETS]: how many negatives and positives there are in each place."""
    size = num_classes * NUM_BUCKETS
    of_all, positives = (np.bincount(each.ravel(), minlength=size) for each in (places, places[truth]))
    return np.stack([of_all - positives, positives]).reshape(2, num_classes, NUM_BUCKETS)
