"""How the items of a source become batches: the fields that every source of nested examples has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from downpour.model.data.batches import Batch
from downpour.model.data.collation import Batcher, Collate, ExampleBatch, Parts, check_class_weight
from downpour.model.data.nests import describe, flatten, map_leaves
from downpour.model.data.reading import Map


@dataclass(frozen=True, eq=False, kw_only=True)
class Preparation:
    """How items become batches `(x, y, sample_weight)`.

    Attributes:
        inputs: Columns that become `x`; see `Parts`.
        targets: Columns that become `y`.
        weights: Column that becomes `sample_weight`.
        map: Applied to every item, a function `map(item)` or `map(item, rng)`. `rng` is a generator of random numbers
            that depends on seed, epoch and position alone, and None for held-out examples. It may return None, which
            leaves the item out.
        collate: Makes a batch out of a list of mapped items; None to stack items of one shape.
        class_weight: Weight by class number of the training examples; see `class_weighted`.
        batched: Whether items are batches; these are never cut or joined. None for True of a PyDataset and False of
            everything else.
        finite: Whether NaN and infinity are refused.
    """

    inputs: Any = None
    targets: Any = None
    weights: str | None = None
    map: Map | None = None
    collate: Collate | None = None
    class_weight: Mapping[int, float] | None = None
    batched: bool | None = None
    finite: bool = True

    def __post_init__(self) -> None:
        Parts(self.inputs, self.targets, self.weights)  # raises
        if self.batched and self.collate is not None:
            raise ValueError("batched=True and a collate function are given; items that are batches are not collated")
        check_class_weight(self.class_weight or {})

    def __getstate__(self) -> dict[str, Any]:
        """The fields, without open sources."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def batcher(self, name: str, *, is_training: bool) -> Batcher:
        """Makes the batches of a source.

        Args:
            name: What messages call the source.
            is_training: Whether classes have weights.
        """
        parts = Parts(self.inputs, self.targets, self.weights)
        return Batcher(name, parts, self.collate, self.finite, self.class_weight if is_training else None)


def check_alike(batches: Sequence[ExampleBatch | None]) -> None:
    """Raises `ValueError` when held-out batches have another structure of inputs and targets than training ones."""
    train, *others = batches
    for other in others:
        if train and other and _structure(other) != _structure(train):
            raise ValueError(
                f"train has {describe_pair(train)}, and validation {describe_pair(other)}; give both the same structure"
            )


def _structure(batch: ExampleBatch) -> dict[str, bool]:
    """Whether there is an array, by path, of inputs and targets."""
    return {path: leaf is not None for path, leaf in flatten(batch[:2]).items()}


def blank_like(batch: ExampleBatch | None, batch_size: int, name: str) -> Batch:
    """Returns zeros like a batch, with another number of examples; they take no memory."""
    if batch is None:
        raise ValueError(f"{name}: `map` leaves out the first and the last item; let one of them show what a batch is")

    def zeros(path: str, leaf: Any) -> Any:
        if leaf is None:
            return None
        zero = np.array("", object) if leaf.dtype == object else np.zeros((), leaf.dtype)
        return np.broadcast_to(zero, (batch_size, *leaf.shape[1:]))

    return tuple(map_leaves(zeros, part) for part in batch)


def describe_pair(batch: ExampleBatch) -> str:
    """One line with path, shape and dtype of all inputs and targets."""
    return f"{describe(batch[0], 'x')}, {describe(batch[1], 'y')}"
