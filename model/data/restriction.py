"""Parts of a data set: fewer training examples, fewer labels; for studies of how a score grows with either.

Pure numpy. Shapes: `B` examples of a batch, `C` classes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from downpour.model.data.batches import PlacedBatch

_SUBSET = 0x5B5E7  # keeps the draw apart from the orders of epochs, which have the same seed


@dataclass(frozen=True, eq=False, kw_only=True)
class Restriction:
    """Fields of indexed data sets that restrict them. By default nothing is left out.

    Attributes:
        num_examples: Training examples (positions of an epoch) that are used; 0 for all. The job's seed draws them,
            and those of a smaller number are among those of a larger one.
        only_labels: Numbers of the labels that the targets, [B, C] of 0 and 1, keep; all others are 0, as if no
            example carried them. Empty for all labels.
        scored_labels: The same of held-out targets; empty for `only_labels`.
    """

    num_examples: int = 0
    only_labels: tuple[int, ...] = ()
    scored_labels: tuple[int, ...] = ()

    def check_restriction(self) -> None:
        """Raises `ValueError` for a number below 0."""
        if self.num_examples < 0:
            raise ValueError(f"num_examples is {self.num_examples}; give a whole number of at least 0, which is all")
        for name in ("only_labels", "scored_labels"):
            wrong = [label for label in getattr(self, name) if label < 0]
            if wrong:
                raise ValueError(f"{name} has {wrong[0]}; labels are numbered from 0")

    def num_used(self, num_records: int) -> int:
        """Examples of an epoch, out of those that there are.

        Raises:
            ValueError: There are fewer than `num_examples`.
        """
        if self.num_examples > num_records:
            raise ValueError(
                f"num_examples is {self.num_examples}, but there are only {num_records} training examples; give at "
                "most as many, or 0 for all"
            )
        return self.num_examples or num_records

    def chosen(self, num_records: int, seed: int) -> NDArray[np.int64] | None:
        """[num_examples] numbers of the examples that are used, ascending; None for all. Raises as `num_used`."""
        if self.num_used(num_records) == num_records:
            return None
        drawn = np.random.default_rng([seed, _SUBSET]).permutation(num_records)
        return np.sort(drawn[: self.num_examples])

    def with_labels(
        self, batches: Generator[PlacedBatch, None, None], *, is_training: bool
    ) -> Generator[PlacedBatch, None, None]:
        """Batches whose targets keep the labels that this data set keeps; the same generator where it keeps all."""
        labels = self.only_labels if is_training else self.scored_labels or self.only_labels
        return _masked(batches, labels) if labels else batches


def _masked(batches: Iterator[PlacedBatch], labels: Sequence[int]) -> Generator[PlacedBatch, None, None]:
    mask: NDArray[Any] | None = None
    for (x, y, *rest), position in batches:
        if mask is None:
            mask = _mask(y, labels)
        yield (x, y * mask, *rest), position


def _mask(targets: Any, labels: Sequence[int]) -> NDArray[Any]:
    """[C] of 1 for labels that are kept, else 0, in the targets' dtype."""
    if not isinstance(targets, np.ndarray) or targets.ndim != 2:
        given = f"{list(targets.shape)}" if isinstance(targets, np.ndarray) else f"a {type(targets).__name__}"
        raise ValueError(f"only_labels needs targets of 0 and 1, [examples, labels], and these are {given}")
    num_labels = targets.shape[1]
    if max(labels) >= num_labels:
        raise ValueError(f"only_labels has {max(labels)}; the data have labels 0 to {num_labels - 1}")
    mask = np.zeros(num_labels, targets.dtype)
    mask[list(labels)] = 1
    return mask
