"""Data sets of image files: training batches of the leased records, and one ordered pass over held-out images.

Batches are made by the thread that iterates; `decode` has threads of its own, which stop with the iterator. TensorFlow
is imported only when records are decoded, so that a recipe can name its data without it.

Pixels stay bytes: the resize reads them where TensorFlow has decoded them and computes nothing but the window, mirrored
where it is to be, of which a batch is made. They become floats in the step (`pixels`).

Shapes: `B` images in a batch, `S` side of an image in pixels, `C` classes, `R` side after the resize.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from downpour.model.data.batches import Batches, PlacedBatch, check_batch_size, multi_hot, one_hot
from downpour.model.data.order import Lease, Order, Place, augmentation
from downpour.model.data.pixels import Pixels
from downpour.model.data.restriction import Restriction
from downpour.model.vision import scored_classes
from downpour.model.vision.decode import Decoder, Picture
from downpour.model.vision.labels import LABELS_FILE, LabelTree
from downpour.model.vision.records import RecordCounts, RecordIndex, read_records
from downpour.model.vision.scored_classes import ANNOTATED_FILE, ScoredClasses
from downpour.model.vision.window import Window

_STREAMED_BLOCK = 64  # consecutive records, read from one place of the disk


@dataclass(frozen=True)
class ImageRecords(Restriction):
    """Images out of the TFRecord files of a folder: `train-*.tfrecord`, `heldout-*.tfrecord` and `labels.json`.

    A folder of `validation_sets` needs no training files. If it has an `annotated.json`, only the classes listed there
    are scored (`downpour.model.vision.scored_classes`).

    Training images are treated as in Sun et al. 2017, section 4.1: resized to `resize` x `resize`, a random
    `crop` x `crop` window taken, values scaled to [-1, 1], mirrored left to right half of the time. Held-out ones
    get the central window and are not mirrored.

    Training images whose resized bytes fit `memory_bytes` are decoded once and kept, so each is counted once.
    Larger sets are read from disk by an index of their records' offsets, 64 consecutive records at about the same
    time (see `Order`); a record counts each time it is read.

    Attributes:
        folder: Where the files are.
        num_labels: Number of labels, C. Stated here, so that network and layout can be built without the data; a
            `labels.json` with another number is refused when it is read.
        resize: Side, in pixels, that images are resized to.
        crop: Side, in pixels, of the window that the network sees; at most `resize`.
        mirror: Whether to mirror half of the training images.
        memory_bytes: Limit of the memory that decoded training images take in one process.
        exclusive: Whether each image has exactly one label, which excludes the others: rows are then one-hot, ancestors
            are not filled in, and a job's own loss is scored by top-1 and top-5 accuracy.
        class_weights: File of class weights for mAP, JSON or CSV; "" for popularity in the held-out images.
    """

    folder: Path | str
    num_labels: int
    resize: int = 340
    crop: int = 299
    mirror: bool = True
    memory_bytes: int = 1 << 28
    exclusive: bool = False
    class_weights: Path | str = ""

    def __post_init__(self) -> None:
        self.check_restriction()
        if self.num_labels < 1:
            raise ValueError(f"num_labels is {self.num_labels}; give a whole number of at least 1")
        if not 1 <= self.crop <= self.resize:
            raise ValueError(f"crop is {self.crop} and resize {self.resize}; give 1 <= crop <= resize, in pixels")

    @property
    def image_size(self) -> int:
        """See `Dataset.image_size`."""
        return self.crop

    @cached_property
    def labels(self) -> LabelTree:
        """See `Dataset.labels`; read from the folder once.

        Raises:
            ValueError: There is no valid `labels.json`, or it does not have `num_labels` labels.
        """
        path = Path(self.folder) / LABELS_FILE
        if not path.is_file():
            raise ValueError(f"{path} is missing; {_HOW_TO_PREPARE.format(folder=self.folder)}")
        tree = LabelTree.load(path)
        if len(tree) != self.num_labels:
            raise ValueError(
                f"{path} has {len(tree)} labels, but the recipe's data.num_labels is {self.num_labels}; give the data "
                f"that the recipe is for, or --set=data.num_labels={len(tree)} to every process of the job"
            )
        return tree

    @cached_property
    def scored_classes(self) -> ScoredClasses:
        """Which classes count in mAP, and their weights; read once.

        Raises:
            ValueError: `annotated.json` or the file of class weights cannot be used.
        """
        annotated = Path(self.folder) / ANNOTATED_FILE
        return scored_classes.read(self.labels, annotated if annotated.is_file() else None, self.class_weights or None)

    @property
    def num_records(self) -> int:
        """See `Dataset.num_records`."""
        return self.num_used(len(self._index))

    def check(self) -> None:
        """See `Dataset.check`."""
        if not Path(self.folder).is_dir():
            raise ValueError(f"data folder {self.folder} is missing; {_HOW_TO_PREPARE.format(folder=self.folder)}")
        self._files("heldout")
        self.scored_classes  # noqa: B018  # raises, as `labels` does

    def training(self, *, batch_size: int, seed: int, leases: Iterator[Lease]) -> Batches:
        """See `Dataset.training`."""
        check_batch_size(batch_size)
        self.check()
        keep = self._fits_memory()
        counts = RecordCounts(judge_after=None) if keep else RecordCounts()
        chosen = self.chosen(len(self._index), seed)
        places = Order(self.num_records, seed, 1 if keep else _STREAMED_BLOCK, chosen=chosen).places(leases)
        pictures = self._kept(places, chosen, seed, counts) if keep else self._streamed(places, seed, counts)
        whole = (group for group in _groups(pictures, batch_size) if len(group.pictures) == batch_size)
        return Batches(self.with_labels(self._assemble(whole), is_training=True), counts)

    def heldout(self, *, batch_size: int) -> Batches:
        """See `Dataset.heldout`."""
        check_batch_size(batch_size)
        self.check()
        counts = RecordCounts(judge_after=None)
        pictures = self._in_order("heldout", counts, self._window(None, seed=0))
        made = self._assemble(_groups(pictures, batch_size))
        return Batches(self.with_labels(made, is_training=False), counts)

    def _files(self, split: str) -> list[Path]:
        files = sorted(Path(self.folder).glob(f"{split}-*.tfrecord"))
        if not any(path.stat().st_size for path in files):
            raise ValueError(
                f"no records in {Path(self.folder) / split}-*.tfrecord; {_HOW_TO_PREPARE.format(folder=self.folder)}"
            )
        return files

    @cached_property
    def _index(self) -> RecordIndex:
        return RecordIndex(self._files("train"))

    def _kept(
        self, places: Iterator[Place], chosen: NDArray[np.int64] | None, seed: int, counts: RecordCounts
    ) -> Iterator[Picture | None]:
        if chosen is None:
            pictures = dict(enumerate(self._in_order("train", counts, window=None)))
        else:
            numbers = chosen.tolist()
            records = ((record, None) for record in self._index.read(numbers))
            decoded = Decoder(self.resize, self.num_labels).decode_all(records, counts)
            pictures = dict(zip(numbers, decoded, strict=True))
            counts.judge()
        for place in places:
            picture = pictures[place.record]
            yield picture and Picture(self._window(place, seed).of(picture.image), picture.labels)

    def _streamed(self, places: Iterator[Place], seed: int, counts: RecordCounts) -> Iterator[Picture | None]:
        ahead, wanted = itertools.tee(places)
        records = self._index.read(place.record for place in ahead)
        windows = (self._window(place, seed) for place in wanted)
        decoder = Decoder(self.resize, self.num_labels)
        for picture in decoder.decode_all(zip(records, windows, strict=True), counts):
            if counts.read % self.num_records == 0:
                counts.judge()
            yield picture

    def _fits_memory(self) -> bool:
        if sum(path.stat().st_size for path in self._files("train")) > self.memory_bytes:
            return False
        return self.num_records * self.resize**2 * 3 <= self.memory_bytes

    def _in_order(self, split: str, counts: RecordCounts, window: Window | None) -> Iterator[Picture | None]:
        records = ((record, window) for path in self._files(split) for record in read_records(path))
        yield from Decoder(self.resize, self.num_labels).decode_all(records, counts)
        counts.judge()

    def _assemble(self, groups: Iterator[_Group]) -> Generator[PlacedBatch, None, None]:
        """Yields the batch of every group."""
        for pictures, position in groups:
            images = np.empty((len(pictures), self.crop, self.crop, 3), np.uint8)
            for image, picture in zip(images, pictures, strict=True):
                image[:] = picture.image
            yield (Pixels(images), self._rows([picture.labels for picture in pictures])), position

    def _rows(self, labels: list[tuple[int, ...]]) -> NDArray[np.float32]:
        """[B, C] targets."""
        return (one_hot if self.exclusive else multi_hot)(self.labels, labels)

    def _window(self, place: Place | None, seed: int) -> Window:
        """The window of an image at a place; without one, that in the centre."""
        room = self.resize - self.crop
        if place is None:
            return Window(room // 2, room // 2, self.crop)
        top, left, mirrored = augmentation(seed, place.epoch, place.position).integers(
            0, [room, room, 1], endpoint=True
        )
        return Window(int(top), int(left), self.crop, bool(mirrored) and self.mirror)


_HOW_TO_PREPARE = (
    "it should hold train-*.tfrecord, heldout-*.tfrecord and labels.json; "
    "for OpenMoji run: downpour prepare openmoji --out={folder}"
)


class _Group(NamedTuple):
    """The pictures of a batch, all good, and the number of records read up to the last of them, bad ones included."""

    pictures: list[Picture]
    position: int


def _groups(pictures: Iterator[Picture | None], size: int) -> Iterator[_Group]:
    """Yields groups of `size` good pictures, None being bad ones; the last group may be short."""
    group: list[Picture] = []
    position = 0
    for position, picture in enumerate(pictures, start=1):
        if picture is not None:
            group.append(picture)
        if len(group) == size:
            yield _Group(group, position)
            group = []
    if group:
        yield _Group(group, position)
