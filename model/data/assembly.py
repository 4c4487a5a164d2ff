"""Generators of batches and the positions that they reach, which a loading thread runs.

Shapes: `B` examples of a batch.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from downpour.model.data.batches import PlacedBatch
from downpour.model.data.collation import Batcher
from downpour.model.data.indexed import Columns
from downpour.model.data.nests import num_examples
from downpour.model.data.order import Lease
from downpour.model.data.reading import Reader
from downpour.model.vision.records import RecordCounts

Placed = Generator[PlacedBatch, None, None]


def rows(
    columns: Columns, reader: Reader, groups: Iterable[NDArray[np.int64]], batcher: Batcher, counts: RecordCounts
) -> Placed:
    """Yields batches of rows of arrays, one for each group of their numbers."""
    position = 0
    for group in groups:
        reader.check_length()
        batch = batcher.checked(columns.take(group), group)
        position += len(group)
        counts.read += len(group)
        yield batch, position


def gathered(
    items: Iterable[tuple[int, Any]], num_items: int, batcher: Batcher, batch_size: int, counts: RecordCounts
) -> Placed:
    """Yields batches of items that are examples; the last one may be short.

    Args:
        items: Number of an item, and the item; None for one that is left out, which has a position all the same.
        num_items: Items of an epoch.
        batcher: Makes the batches.
        batch_size: Examples in a batch, B.
        counts: Counts the examples.

    Raises:
        ValueError: A whole epoch of items in sequence is left out, or an example is refused.
    """
    position = left_out = 0
    records: list[int] = []
    members: list[Any] = []
    for record, item in items:
        position += 1
        left_out = left_out + 1 if item is None else 0
        if left_out == num_items:
            raise ValueError(f"{batcher.name}: all of {num_items} examples are left out; let a filter keep some")
        if item is None:
            continue
        counts.read += 1
        records.append(record)
        members.append(item)
        if len(members) == batch_size:
            yield batcher.stacked(members, records), position
            records, members = [], []
    if members:
        yield batcher.stacked(members, records), position


def whole(
    items: Iterable[tuple[int, Any]],
    batcher: Batcher,
    batch_size: int | None,
    counts: RecordCounts,
    *,
    by_examples: bool,
) -> Placed:
    """Yields items that are batches, as they are.

    Args:
        items: Number of an item, and the item; None for one that is left out.
        batcher: Checks the batches.
        batch_size: Examples of item 0, and the most of any; None for any number.
        counts: Counts the examples.
        by_examples: Whether the position counts examples, and not items.

    Raises:
        ValueError: An item has another number of examples, or is refused.
    """
    position = 0
    for record, item in items:
        if item is None:
            position += not by_examples
            continue
        batch = batcher.checked(item, [record])
        size = num_examples(batch[0])
        if batch_size is not None and (size > batch_size or (record == 0 and size < batch_size)):
            raise ValueError(
                f"{batcher.name}: batch {record} has {size} examples and batch_size is {batch_size}; its items are "
                f"batches, so give batch_size={size}"
            )
        position += size if by_examples else 1
        counts.read += size
        yield batch, position


def within(batches: Placed, leases: Iterator[Lease]) -> Placed:
    """Yields batches while leases of as many positions as they reach can be had: leases that only count."""
    granted = 0
    for batch, position in batches:
        while granted < position:
            lease = next(leases, None)
            if lease is None:
                return
            granted += lease.num_records
        yield batch, position


def of_size(batches: Placed, batch_size: int) -> Placed:
    """Yields batches until one is short."""
    for batch, position in batches:
        if num_examples(batch[0]) < batch_size:
            return
        yield batch, position
