"""The pictures of a folder, one after the other, with names, labels and splits: for features, not for training.

The folder holds prepared records (`train-*.tfrecord`, `heldout-*.tfrecord`, `labels.json`), or plain files, which are
listed and checked as `downpour prepare folder` does it. Threads: one, and those of `decode`.

Shapes: `R` side after the resize, `S` side of the window.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from downpour.model.vision.decode import Decoder, Picture
from downpour.model.vision.labels import LABELS_FILE, LabelTree
from downpour.model.vision.preparing import pictures
from downpour.model.vision.preparing.folder import Folder
from downpour.model.vision.preparing.items import HELDOUT, TRAIN, Item, read_bytes
from downpour.model.vision.records import LabelledImage, Record, RecordCounts, read_records, to_example
from downpour.model.vision.window import Window


@dataclass(frozen=True)
class Named:
    """A decoded picture.

    Attributes:
        name: As stored in its record; of a file, its path in the folder.
        split: `train` or `heldout`; empty in a folder that is not divided.
        picture: Pixels [S, S, 3] uint8, and labels as stored, without their ancestors.
    """

    name: str
    split: str
    picture: Picture


class PictureFolder:
    """A folder of pictures.

    Args:
        folder: Prepared records, or a tree of folders of pictures, as `preparing.folder.Folder` takes it.

    Attributes:
        tree: Names of the labels.

    Raises:
        ValueError: There is no such folder, it has no label or picture, or Pillow, which plain files need, is missing.
    """

    def __init__(self, folder: Path | str) -> None:
        place = Path(folder)
        if not place.is_dir():
            raise ValueError(f"data folder {folder} is missing; give a prepared folder, or one of pictures")
        self._records = {split: sorted(place.glob(f"{split}-*.tfrecord")) for split in (TRAIN, HELDOUT)}
        self._files: Folder | None = None
        if any(self._records.values()):
            if not (place / LABELS_FILE).is_file():
                raise ValueError(f"{place / LABELS_FILE} is missing; prepare the folder again")
            self.tree = LabelTree.load(place / LABELS_FILE)
        else:
            pictures.check_installed()
            self._files = Folder(place)
            self.tree = self._files.tree

    def decoded(self, resize: int, crop: int, counts: RecordCounts) -> Iterator[Named]:
        """Yields the central windows of the pictures that can be read; `counts` has the others.

        Args:
            resize: R.
            crop: S, at most R.
            counts: Counts the pictures.
        """
        decoder = Decoder(resize, len(self.tree))
        window = Window((resize - crop) // 2, (resize - crop) // 2, crop)
        ahead, beside = itertools.tee(self._each())
        decoded = decoder.decode_all(((record, window) for _, record in ahead), counts)
        for (split, record), picture in zip(beside, decoded, strict=True):
            if picture is not None and record.data is not None:
                yield Named(decoder.name(record.data), split, picture)

    def _each(self) -> Iterator[tuple[str, Record]]:
        """Yields the split of every picture, and its record; that of a file is made of it."""
        for split, paths in self._records.items():
            yield from ((split, record) for path in paths for record in read_records(path))
        for item in self._files.items() if self._files else ():
            yield item.split, _record(item)


def _record(item: Item) -> Record:
    path = Path(item.path)
    try:
        found = pictures.examine(read_bytes(item.path), item.name)
    except (pictures.Unusable, OSError) as error:
        return Record(path, 0, None, str(error))
    return Record(path, 0, to_example(LabelledImage(found.encoded, item.labels, item.name)))
