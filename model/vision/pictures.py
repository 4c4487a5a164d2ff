"""The pictures of a folder, one after the other, with names, labels and splits: for features, not for training.

The folder holds prepared records (`train-*.tfrecord`, `heldout-*.tfrecord`, `labels.json`), or plain files, whose
labels are the folders that they lie in. Threads: one, and those of `decode`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from downpour.model.vision.decode import Decoder, Picture
from downpour.model.vision.labels import LABELS_FILE, LabelTree
from downpour.model.vision.preparing.items import HELDOUT, TRAIN
from downpour.model.vision.records import LabelledImage, Record, RecordCounts, read_records, to_example

ENDINGS = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".png"))  # what TensorFlow decodes
# Folders at the top that are splits and not labels, if the top has no others.
_SPLITS = {"train": TRAIN, "heldout": HELDOUT, "validation": HELDOUT, "val": HELDOUT, "test": HELDOUT}


@dataclass(frozen=True)
class Named:
    """A decoded picture.

    Attributes:
        name: As stored in its record; of a file, its path in the folder.
        split: `train` or `heldout`; empty in a folder that is not divided.
        picture: Pixels [R, R, 3] uint8, and labels as stored, without their ancestors.
    """

    name: str
    split: str
    picture: Picture


class PictureFolder:
    """A folder of pictures.

    Args:
        folder: Prepared records, or a tree of image files.

    Attributes:
        tree: Names of the labels; nested folders are a tree.

    Raises:
        ValueError: There is no such folder, or no picture in it.
    """

    def __init__(self, folder: Path | str) -> None:
        self._folder = Path(folder)
        if not self._folder.is_dir():
            raise ValueError(f"data folder {folder} is missing; give a prepared folder, or one of pictures")
        self._records = {split: sorted(self._folder.glob(f"{split}-*.tfrecord")) for split in (TRAIN, HELDOUT)}
        self._is_prepared = any(self._records.values())
        self._files: list[Path] = []
        if self._is_prepared:
            self.tree = LabelTree.load(self._folder / LABELS_FILE)
            return
        self._files = sorted(path for path in self._folder.rglob("*") if path.suffix.lower() in ENDINGS)
        if not self._files:
            raise ValueError(
                f"{folder} holds neither train-*.tfrecord and heldout-*.tfrecord nor pictures, "
                f"{', '.join(sorted(ENDINGS))}; give another folder"
            )
        tops = {path.relative_to(self._folder).parts[0] for path in self._files}
        self._has_splits = tops <= _SPLITS.keys()
        self.tree = _tree_of({self._label(path) for path in self._files})

    def __iter__(self) -> Iterator[tuple[str, Record]]:
        """Yields every record and its split; of a file, one that is made of it."""
        for split, paths in self._records.items():
            yield from ((split, record) for path in paths for record in read_records(path))
        index = {name: number for number, name in enumerate(self.tree.names)}
        for path in self._files:
            place, label = path.relative_to(self._folder), "/".join(self._label(path))
            labels = (index[label],) if label else ()
            image = LabelledImage(path.read_bytes(), labels, place.as_posix())
            yield _SPLITS[place.parts[0]] if self._has_splits else "", Record(path, 0, to_example(image))

    def decoded(self, resize: int, counts: RecordCounts) -> Iterator[Named]:
        """Yields the pictures that can be read, each resized to `resize` x `resize`; `counts` has the others."""
        decoder = Decoder(resize, len(self.tree))
        ahead, beside = itertools.tee(self)
        pictures = decoder.decode_all((record for _, record in ahead), counts)
        for (split, record), picture in zip(beside, pictures, strict=True):
            if picture is not None and record.data is not None:
                yield Named(decoder.name(record.data), split, picture)

    def _label(self, path: Path) -> tuple[str, ...]:
        """The folders that a file lies in, from the outermost; none for one without a label."""
        return path.relative_to(self._folder).parts[1 if self._has_splits else 0 : -1]


def _tree_of(labels: set[tuple[str, ...]]) -> LabelTree:
    """Folders and those that contain them, each named by its path."""
    every = sorted({label[:depth] for label in labels for depth in range(1, len(label) + 1)})
    index = {label: number for number, label in enumerate(every)}
    return LabelTree(tuple("/".join(label) for label in every), tuple(index.get(label[:-1], -1) for label in every))
