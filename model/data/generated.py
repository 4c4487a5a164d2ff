"""A data set of synthetic images, which needs no files, for tests and for measuring speed."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from downpour.model.data.batches import Batch, Batches, PlacedBatch, check_batch_size, multi_hot, new_images
from downpour.model.data.order import Lease, Order, Place
from downpour.model.vision.labels import LabelTree
from downpour.model.vision.records import RecordCounts

_PATTERN_SIDE = 8


@dataclass(frozen=True)
class GeneratedImages:
    """Images made from random numbers, to measure models of a shape for which there is no data.

    A training image is a function of the seed and its record's number; no image is stored. Every label has a coarse
    colour pattern; an image is the mean of its labels' patterns plus noise, so there is something to learn. Labels
    form a tree in which each has up to 16 children, early ones being more frequent.

    Attributes:
        image_size: Side of an image in pixels.
        num_labels: Number of labels, C.
        labels_per_image: Labels drawn for each image, before their ancestors are added.
        num_heldout: Images in the held-out pass.
        num_records: Training images of an epoch.
    """

    image_size: int = 299
    num_labels: int = 18291
    labels_per_image: int = 2
    num_heldout: int = 256
    num_records: int = 1 << 20

    def __post_init__(self) -> None:
        for name in ("image_size", "num_labels", "labels_per_image", "num_heldout", "num_records"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give a whole number of at least 1")

    @cached_property
    def labels(self) -> LabelTree:
        """See `Dataset.labels`."""
        return LabelTree(
            names=tuple(f"generated {label}" for label in range(self.num_labels)),
            parents=tuple(label // 16 - 1 for label in range(self.num_labels)),
        )

    def check(self) -> None:
        """See `Dataset.check`; no data can be missing."""

    def training(self, *, batch_size: int, seed: int, leases: Iterator[Lease]) -> Batches:
        """See `Dataset.training`."""
        check_batch_size(batch_size)
        counts = RecordCounts()
        places = Order(self.num_records, seed).places(leases)
        return Batches(self._drawn(places, batch_size, seed, counts), counts)

    def heldout(self, *, batch_size: int) -> Batches:
        """See `Dataset.heldout`."""
        check_batch_size(batch_size)
        counts = RecordCounts()
        whole, rest = divmod(self.num_heldout, batch_size)
        sizes = [batch_size] * whole + [rest] * bool(rest)
        return Batches(self._held_out(sizes, counts), counts)

    def _drawn(
        self, places: Iterator[Place], batch_size: int, seed: int, counts: RecordCounts
    ) -> Generator[PlacedBatch, None, None]:
        while len(records := [place.record for place in itertools.islice(places, batch_size)]) == batch_size:
            images, targets = self._blank(batch_size)
            for image, target, record in zip(images, targets, records, strict=True):
                rng = np.random.default_rng([0, seed, record])
                self._draw(rng, image[None], target[None])
            counts.read += batch_size
            yield (images, targets), counts.read

    def _held_out(self, sizes: Iterable[int], counts: RecordCounts) -> Generator[PlacedBatch, None, None]:
        rng = np.random.default_rng([1, 0])
        for size in sizes:
            images, targets = self._blank(size)
            self._draw(rng, images, targets)
            counts.read += size
            yield (images, targets), counts.read

    def _blank(self, size: int) -> Batch:
        """Allocates a batch, uninitialised."""
        images = new_images(size, self.image_size, self.image_size, 3)
        return images, np.empty((size, self.num_labels), np.float32)

    def _draw(self, rng: np.random.Generator, images: NDArray[np.float32], targets: NDArray[np.float32]) -> None:
        """Fills [B, S, S, 3] images and [B, C] targets."""
        cells = np.arange(self.image_size) * _PATTERN_SIDE // self.image_size
        drawn = (rng.random((len(images), self.labels_per_image)) ** 2 * self.num_labels).astype(int)
        targets[:] = multi_hot(self.labels, drawn.tolist())
        rng.standard_normal(dtype=np.float32, out=images)
        images *= 0.1
        for image, target in zip(images, targets, strict=True):
            image += _pattern(np.nonzero(target)[0].tolist())[cells[:, None], cells]
        np.clip(images, -1, 1, out=images)


def _pattern(labels: list[int]) -> NDArray[np.float32]:
    """[8, 8, 3] float32, the mean of the patterns of some labels."""
    shape = (len(labels), _PATTERN_SIDE, _PATTERN_SIDE, 3)
    each = np.empty(shape, np.float32)
    for pattern, label in zip(each, labels, strict=True):
        pattern[:] = np.random.default_rng(label).uniform(-1, 1, shape[1:])
    return each.sum(axis=0) / np.float32(len(labels))
