"""Data sets: endless shuffled training batches and one ordered pass over held-out images.

Batches are numpy arrays, made by the thread that iterates; `decode` has threads of its own, which end with the
iterator. TensorFlow is imported only when records are decoded, so that a recipe can name its data without it.

Shapes: `B` images in a batch, `S` side of an image in pixels, `C` classes, `R` side after the resize.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from downpour.model.decode import Decoder, Picture
from downpour.model.labels import LABELS_FILE, LabelTree
from downpour.model.records import Record, RecordCounts, read_records

Batch = tuple[NDArray[np.float32], NDArray[np.float32]]

_OPEN_FILES = 8
_SHUFFLE_RECORDS = 4096


class Batches:
    """Iterator of batches: images [B, S, S, 3] float32 in [-1, 1], labels [B, C] float32 multi-hot with ancestors.

    Close it, or use it as a context manager, to end its threads and files.

    Attributes:
        counts: Records read and skipped so far.
    """

    def __init__(self, batches: Generator[Batch, None, None], counts: RecordCounts) -> None:
        self.counts = counts
        self._batches = batches

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the iteration; may be called twice, but not while another thread is inside `next`."""
        self._batches.close()


class Dataset(Protocol):
    """Images with labels. Implementations are frozen dataclasses, so that a job holds nothing that is open."""

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

    def check(self) -> None:
        """Raises ValueError, saying how to mend it, when there is no data to read."""
        ...

    def training(self, *, batch_size: int, seed: int) -> Batches:
        """Endless batches of exactly `batch_size`, shuffled anew each epoch by `seed`; they run across epochs.

        Raises (while iterating):
            TooManyBadRecords: More than 1 % of the records read are damaged.
        """
        ...

    def heldout(self, *, batch_size: int) -> Batches:
        """One pass over the held-out images in a fixed order, unaugmented; the last batch may be short.

        Raises (while iterating):
            TooManyBadRecords: More than 1 % of the records read are damaged.
        """
        ...


@dataclass(frozen=True)
class ImageRecords:
    """Images out of the TFRecord files of a folder: `train-*.tfrecord`, `heldout-*.tfrecord` and `labels.json`.

    Training images are treated as in Sun et al. 2017, section 4.1: resized to `resize` x `resize`, a random
    `crop` x `crop` window taken, values scaled to [-1, 1], mirrored left to right half of the time. Held-out ones
    get the central window and are not mirrored.

    Training images whose resized bytes fit `memory_bytes` are decoded once and kept, so each is counted once.
    Larger sets are streamed from disk: files in a new order each epoch, 8 of them open at a time, records drawn
    from a buffer of 4,096; a record counts each time it is read.

    Attributes:
        folder: Where the files are.
        resize: Side, in pixels, that images are resized to.
        crop: Side, in pixels, of the window that the network sees; at most `resize`.
        mirror: Whether to mirror half of the training images.
        memory_bytes: How much memory decoded training images may take in one process.
    """

    folder: Path | str
    resize: int = 340
    crop: int = 299
    mirror: bool = True
    memory_bytes: int = 1 << 28

    def __post_init__(self) -> None:
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
            ValueError: There is no valid `labels.json`.
        """
        path = Path(self.folder) / LABELS_FILE
        if not path.is_file():
            raise ValueError(f"{path} is missing; {_HOW_TO_PREPARE.format(folder=self.folder)}")
        return LabelTree.load(path)

    @property
    def num_labels(self) -> int:
        """See `Dataset.num_labels`."""
        return len(self.labels)

    def check(self) -> None:
        """See `Dataset.check`."""
        if not Path(self.folder).is_dir():
            raise ValueError(f"data folder {self.folder} is missing; {_HOW_TO_PREPARE.format(folder=self.folder)}")
        for split in ("train", "heldout"):
            self._files(split)
        if not self.num_labels:
            raise ValueError(f"{Path(self.folder) / LABELS_FILE} has no labels; prepare the data again")

    def training(self, *, batch_size: int, seed: int) -> Batches:
        """See `Dataset.training`."""
        _check_batch_size(batch_size)
        self.check()
        rng = np.random.default_rng(seed)
        keep = self._fits_memory()
        counts = RecordCounts(judge_after=None) if keep else RecordCounts()
        pictures = self._kept(rng, counts) if keep else self._streamed(rng, counts)
        return Batches(self._assemble(pictures, batch_size, rng), counts)

    def heldout(self, *, batch_size: int) -> Batches:
        """See `Dataset.heldout`."""
        _check_batch_size(batch_size)
        self.check()
        counts = RecordCounts(judge_after=None)
        return Batches(self._assemble(self._in_order("heldout", counts), batch_size, rng=None), counts)

    def _files(self, split: str) -> list[Path]:
        files = sorted(Path(self.folder).glob(f"{split}-*.tfrecord"))
        if not any(path.stat().st_size for path in files):
            raise ValueError(
                f"no records in {Path(self.folder) / split}-*.tfrecord; {_HOW_TO_PREPARE.format(folder=self.folder)}"
            )
        return files

    def _kept(self, rng: np.random.Generator, counts: RecordCounts) -> Iterator[Picture]:
        pictures = list(self._in_order("train", counts))
        while True:
            yield from (pictures[i] for i in rng.permutation(len(pictures)))

    def _streamed(self, rng: np.random.Generator, counts: RecordCounts) -> Iterator[Picture]:
        decoder = Decoder(self.resize, self.num_labels)
        while True:
            yield from decoder.decode_all(shuffled_records(self._files("train"), rng), counts)
            counts.judge()

    def _fits_memory(self) -> bool:
        files = self._files("train")
        if sum(path.stat().st_size for path in files) > self.memory_bytes:
            return False
        num_records = sum(1 for path in files for _ in read_records(path))
        return num_records * self.resize**2 * 3 <= self.memory_bytes

    def _in_order(self, split: str, counts: RecordCounts) -> Iterator[Picture]:
        records = (record for path in self._files(split) for record in read_records(path))
        yield from Decoder(self.resize, self.num_labels).decode_all(records, counts)
        counts.judge()

    def _assemble(
        self, pictures: Iterator[Picture], batch_size: int, rng: np.random.Generator | None
    ) -> Generator[Batch, None, None]:
        """Batches out of pictures; augmented when there is a `rng`."""
        for group in _groups(pictures, batch_size):
            images = np.empty((len(group), self.crop, self.crop, 3), np.float32)
            windows = self._windows(len(group), rng)
            # Image by image, so that scaling works in the cache.
            for image, picture, (top, left, step) in zip(images, group, windows, strict=True):
                image[:] = picture.image[top : top + self.crop, left : left + self.crop][:, ::step]
                image *= np.float32(1 / 127.5)
                image -= 1
            yield images, multi_hot(self.labels, [picture.labels for picture in group])

    def _windows(self, count: int, rng: np.random.Generator | None) -> NDArray[np.int64]:
        """[count, 3]: top, left, and -1 for mirrored or 1 for not."""
        room = self.resize - self.crop
        if rng is None:
            return np.tile([room // 2, room // 2, 1], (count, 1))
        corners = rng.integers(0, room, (count, 2), endpoint=True)
        steps = 1 - 2 * rng.integers(0, 2, (count, 1)) * self.mirror
        return np.hstack([corners, steps])


@dataclass(frozen=True)
class GeneratedImages:
    """Endless images made from random numbers, to measure a shape for which there is no data.

    Every label has a coarse colour pattern; an image is the mean of its labels' patterns plus noise, so there is
    something to learn. Labels form a tree in which each has up to 16 children, early ones being more frequent.

    Attributes:
        image_size: Side of an image in pixels.
        num_labels: Number of labels, C.
        labels_per_image: Labels drawn for each image, before their ancestors are added.
        num_heldout: Images in the held-out pass.
    """

    image_size: int = 299
    num_labels: int = 18291
    labels_per_image: int = 2
    num_heldout: int = 256

    def __post_init__(self) -> None:
        for name in ("image_size", "num_labels", "labels_per_image", "num_heldout"):
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
        """See `Dataset.check`; there is nothing that could be missing."""

    def training(self, *, batch_size: int, seed: int) -> Batches:
        """See `Dataset.training`; images never repeat."""
        _check_batch_size(batch_size)
        counts = RecordCounts()
        return Batches(self._generate(_forever(batch_size), np.random.default_rng([0, seed]), counts), counts)

    def heldout(self, *, batch_size: int) -> Batches:
        """See `Dataset.heldout`."""
        _check_batch_size(batch_size)
        counts = RecordCounts()
        whole, rest = divmod(self.num_heldout, batch_size)
        sizes = [batch_size] * whole + [rest] * bool(rest)
        return Batches(self._generate(sizes, np.random.default_rng([1, 0]), counts), counts)

    def _generate(
        self, sizes: Iterable[int], rng: np.random.Generator, counts: RecordCounts
    ) -> Generator[Batch, None, None]:
        cells = np.arange(self.image_size) * _PATTERN_SIDE // self.image_size
        for size in sizes:
            drawn = (rng.random((size, self.labels_per_image)) ** 2 * self.num_labels).astype(int)
            targets = multi_hot(self.labels, drawn.tolist())
            images = rng.standard_normal((size, self.image_size, self.image_size, 3), np.float32)
            images *= 0.1
            for image, target in zip(images, targets, strict=True):
                image += _pattern(np.nonzero(target)[0].tolist())[cells[:, None], cells]
            counts.read += size
            yield np.clip(images, -1, 1, out=images), targets


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


def shuffled_records(files: list[Path], rng: np.random.Generator) -> Iterator[Record]:
    """One epoch: every record of every file once, in an order that `rng` decides."""
    order = [files[i] for i in rng.permutation(len(files))]
    held: list[Record] = []
    for record in _interleaved(order):
        if len(held) < _SHUFFLE_RECORDS:
            held.append(record)
            continue
        i = int(rng.integers(_SHUFFLE_RECORDS))
        yield held[i]
        held[i] = record
    yield from (held[i] for i in rng.permutation(len(held)))


_PATTERN_SIDE = 8
_HOW_TO_PREPARE = (
    "it should hold train-*.tfrecord, heldout-*.tfrecord and labels.json; "
    "for OpenMoji run: downpour prepare openmoji --out={folder}"
)


def _interleaved(files: list[Path]) -> Iterator[Record]:
    """Records of a few files in turn; when one ends, the next file takes its place."""
    waiting = deque(files)
    active: deque[Iterator[Record]] = deque()
    while waiting or active:
        while waiting and len(active) < _OPEN_FILES:
            active.append(read_records(waiting.popleft()))
        source = active.popleft()
        for record in source:
            yield record
            active.append(source)
            break


def _groups(pictures: Iterator[Picture], size: int) -> Iterator[list[Picture]]:
    group: list[Picture] = []
    for picture in pictures:
        group.append(picture)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _pattern(labels: list[int]) -> NDArray[np.float32]:
    """[8, 8, 3], the mean of the patterns of some labels."""
    shape = (len(labels), _PATTERN_SIDE, _PATTERN_SIDE, 3)
    each = np.empty(shape, np.float32)
    for pattern, label in zip(each, labels, strict=True):
        pattern[:] = np.random.default_rng(label).uniform(-1, 1, shape[1:])
    return each.sum(axis=0) / np.float32(len(labels))


def _forever(size: int) -> Iterator[int]:
    while True:
        yield size


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; give a whole number of at least 1")
