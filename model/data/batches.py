"""Batches of training data, the interface of data sets, and multi-hot targets.

Shapes: `B` examples in a batch, `S` side of an image in pixels, `C` classes.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, TypeGuard

import numpy as np
from numpy.typing import NDArray

from downpour.model.data.order import Lease
from downpour.model.vision.labels import LabelTree
from downpour.model.vision.records import RecordCounts
from downpour.model.vision.scored_classes import ALL, ScoredClasses

Batch = tuple[Any, ...]  # as Keras' `fit` takes it: (x, y) or (x, y, sample_weight), nests of arrays; y may be None
PlacedBatch = tuple[Batch, int]  # and the position after it

ALIGNMENT = 64  # bytes; TensorFlow computes with memory that begins at a multiple of it


class Batches:
    """Iterator of batches `(x, y)` or `(x, y, sample_weight)`, each a nest of arrays whose first axis is B.

    Those of image data sets are `(images, labels)`: images [B, S, S, 3] float32 in [-1, 1], held as bytes where they
    come from records (`pixels.Pixels`), labels [B, C] float32 multi-hot with ancestors.

    Close it, or use it as a context manager, to stop its threads and close its files. A worker iterates and
    closes on one thread, which is not its main thread (see `prefetch`).

    Args:
        batches: Yields each batch and the position after it. It must not change an array that it has yielded: a
            tensor may share its memory, and batches are assembled ahead.
        counts: Counts of the records, updated by `batches`.

    Attributes:
        counts: Records read and skipped so far.
        position: Records, good or bad, consumed up to and including the last batch, over all leases in order.
    """

    def __init__(self, batches: Generator[PlacedBatch, None, None], counts: RecordCounts) -> None:
        self.counts = counts
        self.position = 0
        self._batches = batches

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        batch, self.position = next(self._batches)
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the iteration; may be called twice. Does nothing while another thread is inside `next`."""
        if inspect.getgeneratorstate(self._batches) != inspect.GEN_RUNNING:
            self._batches.close()


class Dataset(Protocol):
    """Training and held-out examples. A job holds no open files or threads, so implementations open them on demand."""

    @property
    def num_records(self) -> int:
        """Positions of an epoch: training records, good or bad."""
        ...

    def check(self) -> None:
        """Raises `ValueError`, whose message has the remedy, when there is no data to read."""
        ...

    def training(self, *, batch_size: int, seed: int, leases: Iterator[Lease]) -> Batches:
        """Batches of exactly `batch_size` that run across leases and epochs; they end with `leases`.

        Records at the end that do not fill a batch are dropped.

        Args:
            batch_size: Examples in a batch, B.
            seed: Seed of order and augmentation; the same for all workers, so that leases name the same records.
            leases: Positions to train on; consumed ahead of the batches by the prefetch.

        Raises (while iterating):
            TooManyBadRecords: More than 1 % of the records read are damaged.
            ValueError: A lease is not within an epoch.
        """
        ...

    def heldout(self, *, batch_size: int) -> Batches:
        """One pass over the held-out examples in a fixed order, unaugmented; the last batch may be short.

        Raises (while iterating):
            TooManyBadRecords: More than 1 % of the records read are damaged.
        """
        ...


class LabelledImages(Dataset, Protocol):
    """Images with multi-hot labels out of a tree, for which the evaluator computes mAP@100."""

    @property
    def image_size(self) -> int:
        """Side, in pixels, of the images that the network sees."""
        ...

    @property
    def labels(self) -> LabelTree:
        """The label tree; class `c` of a batch is label `c`."""
        ...

    @property
    def num_labels(self) -> int:
        """Number of labels, C."""
        ...


def has_labelled_images(data: Any) -> TypeGuard[LabelledImages]:
    """Whether a data set has the size of images and the number of labels; neither is read."""
    return all(inspect.getattr_static(data, name, None) is not None for name in ("image_size", "num_labels"))


def are_exclusive(data: Any) -> bool:
    """Whether every example of a data set has one label that excludes the others."""
    return bool(getattr(data, "exclusive", False))


def scored_classes_of(data: Any) -> ScoredClasses:
    """Which classes of a data set count in mAP; all, by popularity, if it does not say.

    Raises:
        ValueError: What the data set says cannot be read.
    """
    found: ScoredClasses = getattr(data, "scored_classes", ALL)
    return found


def check_same_labels(name: str, scored: Any, data: Any) -> None:
    """Raises `ValueError` if a further set of labelled images has other labels than the data that are trained on."""
    if not (has_labelled_images(scored) and has_labelled_images(data)):
        return
    ours, theirs = data.labels.names, scored.labels.names
    if ours != theirs:
        pairs = itertools.zip_longest(ours, theirs)
        number, (mine, other) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        raise ValueError(
            f"validation_sets[{name!r}] has other labels than data: label {number} is {other!r} there and {mine!r} "
            "here; prepare it with the labels.json of data"
        )


def blank_batch(data: Any, batch_size: int) -> Batch:
    """Returns zeros with the structure, shapes and dtypes of a training batch; they take no memory.

    A data set that is not of labelled images has a method `blank(batch_size)` for it, which may read its first example.
    """
    if not has_labelled_images(data):
        blank: Batch = data.blank(batch_size)
        return blank
    side = data.image_size
    shapes = (batch_size, side, side, 3), (batch_size, data.num_labels)
    return tuple(np.broadcast_to(np.float32(0), shape) for shape in shapes)


def positions_in_batch(data: Any, batch_size: int) -> int:
    """Positions of the leases that a batch takes: its examples, unless the data set has a method for it."""
    return int(data.positions_in_batch(batch_size)) if hasattr(data, "positions_in_batch") else batch_size


def part_of(data: Any, worker: int, num_workers: int) -> Any:
    """The part of a data set that one worker iterates over: all of it, unless the data set has `for_worker`."""
    return data.for_worker(worker, num_workers) if hasattr(data, "for_worker") else data


def multi_hot(tree: LabelTree, labels: Iterable[Iterable[int]]) -> NDArray[np.float32]:
    """[B, C] float32: 1 for each row's labels and all their ancestors, 0 elsewhere.

    Raises:
        IndexError: A label is not in the tree.
    """
    rows = list(labels)
    hot = np.zeros((len(rows), len(tree)), np.float32)
    for row, names in zip(hot, rows, strict=True):
        for label in names:
            row[list(tree.lineages[label])] = 1
    return hot


def one_hot(tree: LabelTree, labels: Iterable[Sequence[int]]) -> NDArray[np.float32]:
    """[B, C] float32: 1 for each row's only label, 0 elsewhere, for ancestors, too.

    Raises:
        ValueError: An image has no label or several.
    """
    rows = list(labels)
    hot = np.zeros((len(rows), len(tree)), np.float32)
    for row, given in zip(hot, rows, strict=True):
        if len(given) != 1:
            raise ValueError(
                f"an image has {len(given)} labels ({', '.join(tree.names[label] for label in given) or 'none'}), and "
                "the classes of these data are exclusive; give every image one label, or data.exclusive=False"
            )
        row[given[0]] = 1
    return hot


def new_images(*shape: int) -> NDArray[np.float32]:
    """Allocates an array, uninitialised, that TensorFlow can compute with in place."""
    num_bytes = 4 * math.prod(shape)
    memory = np.empty(num_bytes + ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT
    return memory[first : first + num_bytes].view(np.float32).reshape(shape)


def check_batch_size(batch_size: int) -> None:
    """Raises `ValueError` for a batch size below 1."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; give a whole number of at least 1")
