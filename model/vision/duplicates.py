"""Pictures of one prepared set that recur in another: found by their hashes, listed, and left out of a copy of the set.

Record files are hashed in processes of their own, one a core. Near-duplicates of a test set in a training set are what
Sun et al. 2017, section 4.3 and appendix A, look for.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from downpour import files
from downpour.model.data.reading import end_with_parent
from downpour.model.vision import hashing
from downpour.model.vision.labels import LABELS_FILE
from downpour.model.vision.records import frame, from_example, read_records

SPLITS = ("train", "heldout")
REPORT_FILE = "duplicates.json"


@dataclass(frozen=True)
class Split:
    """The training or held-out pictures of a prepared folder.

    Attributes:
        folder: Holds `train-*.tfrecord`, `heldout-*.tfrecord` and `labels.json`.
        name: `train` or `heldout`.
    """

    folder: Path
    name: str

    @classmethod
    def parse(cls, text: str, default: str) -> Split:
        """Reads `FOLDER:train`, `FOLDER:heldout`, or `FOLDER` for the split `default`."""
        folder, mark, name = text.rpartition(":")
        return cls(Path(folder), name) if mark and name in SPLITS else cls(Path(text), default)

    def __str__(self) -> str:
        return f"{self.folder}:{self.name}"

    def files(self) -> list[Path]:
        """Its files of records, in order.

        Raises:
            ValueError: There are none.
        """
        found = sorted(self.folder.glob(f"{self.name}-*.tfrecord"))
        if not found:
            raise ValueError(
                f"no {self.folder / self.name}-*.tfrecord; give a folder that `downpour prepare` wrote, and its "
                f"training or held-out pictures: FOLDER:{' or FOLDER:'.join(SPLITS)}"
            )
        return found


class Place(NamedTuple):
    """Where a picture is: the name of the file, the number of the record in it, and the picture's own name."""

    file: str
    number: int
    name: str


class Hashed(NamedTuple):
    """The hashes of a split: [N, V], the place of each picture, and what could not be decoded."""

    hashes: NDArray[np.uint64]
    places: list[Place]
    unreadable: list[str]


class Pair(NamedTuple):
    """A picture of the first set and the nearest of the second, and how many of 64 bits differ."""

    first: Place
    second: Place
    distance: int


@dataclass(frozen=True)
class Found:
    """What was compared, and what was found: of every picture of `first` that recurs in `second`, its nearest."""

    first: Split
    second: Split
    distance: int
    num_first: int
    num_second: int
    unreadable: list[str]
    pairs: list[Pair]

    def report(self) -> dict[str, Any]:
        """For a JSON file: what is above, the pairs as names of pictures, nearest first."""
        return {
            "first": str(self.first),
            "second": str(self.second),
            "distance": self.distance,
            "num_first": self.num_first,
            "num_second": self.num_second,
            "num_duplicates": len(self.pairs),
            "unreadable": self.unreadable,
            "duplicates": [
                {"first": pair.first.name, "second": pair.second.name, "distance": pair.distance} for pair in self.pairs
            ],
        }


def find(first: Split, second: Split, distance: int, say: Callable[[str], None] = print) -> Found:
    """Looks for pictures of `first` that recur in `second`, among them mirrored, resized and cropped ones.

    Args:
        first: Usually of the training set.
        second: Usually of the test set.
        distance: Bits of 64 in which two hashes of the same picture may differ; see `hashing.nearest`.
        say: Hears of progress, a line at a time.

    Raises:
        ValueError: The two are the same, hold no records, or a package is missing.
    """
    if (first.folder.resolve(), first.name) == (second.folder.resolve(), second.name):
        raise ValueError(f"{first} and {second} are the same pictures; give two folders, or two splits of one")
    hashing.check_installed()
    of_first, of_second = _hash(first, False, say), _hash(second, True, say)
    distances, numbers = hashing.nearest(of_first.hashes, of_second.hashes, distance)
    pairs = [
        Pair(of_first.places[row], of_second.places[numbers[row]], int(distances[row]))
        for row in np.flatnonzero(distances < hashing.FAR)
    ]
    pairs.sort(key=lambda pair: pair.distance)
    unreadable = [*of_first.unreadable, *of_second.unreadable]
    return Found(first, second, distance, len(of_first.places), len(of_second.places), unreadable, pairs)


def remove(found: Found, out: Path) -> None:
    """Writes a copy of the first folder without the pictures of its split that were found, and the report.

    The copy has `duplicates.json` instead of what described the original. Files that do not change are hard links,
    where the file system has them. Records that cannot be read are left out, too; those that cannot be decoded stay.

    Raises:
        OSError: The copy cannot be written; nothing of it is left.
        ValueError: `out` exists, or nothing would remain.
    """
    if out.exists():
        raise ValueError(f"{out} exists; give a folder that does not, for the pictures that remain")
    if len(found.pairs) == found.num_first:
        raise ValueError(f"each of the {found.num_first} pictures of {found.first} recurs; nothing would remain")
    doomed = {(pair.first.file, pair.first.number) for pair in found.pairs}
    changed = {path.name for path in found.first.files()}
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(out) as folder:
        folder.mkdir()
        for path in found.first.folder.iterdir():
            if path.name in changed:
                _write_remaining(path, folder / path.name, doomed)
            elif path.name == LABELS_FILE or path.suffix == ".tfrecord":
                _link(path, folder / path.name)
        text = json.dumps(found.report(), ensure_ascii=False, indent=1)
        (folder / REPORT_FILE).write_text(text + "\n", encoding="utf-8")


def _write_remaining(path: Path, to: Path, doomed: set[tuple[str, int]]) -> None:
    with open(to, "wb") as file:
        for record in read_records(path):
            if record.data is not None and (path.name, record.number) not in doomed:
                file.write(frame(record.data))


def _link(path: Path, to: Path) -> None:
    try:
        os.link(path, to)
    except OSError:
        shutil.copyfile(path, to)


def _hash(split: Split, mirrored: bool, say: Callable[[str], None]) -> Hashed:
    """The hashes of all pictures of a split, in the order of files and records."""
    paths = split.files()
    parts = []
    for number, part in enumerate(_hash_each(paths, mirrored), 1):
        parts.append(part)
        say(f"{split}: {number} of {len(paths)} files hashed")
    return Hashed(
        np.concatenate([part.hashes for part in parts]),
        [place for part in parts for place in part.places],
        [text for part in parts for text in part.unreadable],
    )


def _hash_each(paths: Sequence[Path], mirrored: bool) -> Iterator[Hashed]:
    num_processes = min(len(paths), os.cpu_count() or 1)
    if num_processes == 1:
        yield from (hash_file(path, mirrored) for path in paths)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, context, initializer=end_with_parent) as pool:
        yield from pool.map(hash_file, paths, [mirrored] * len(paths))


def hash_file(path: Path, mirrored: bool) -> Hashed:
    """The hashes of the pictures of a file of records; see `hashing.hashes`.

    Raises:
        OSError: The file cannot be read.
    """
    rows, places, unreadable = list[NDArray[np.uint64]](), list[Place](), list[str]()
    for record in read_records(path):
        at, name = f"{path}, record {record.number}", ""
        try:
            if record.data is None:
                raise ValueError(record.reason)
            image = from_example(record.data)
            name = image.name
            rows.append(hashing.hashes(image.encoded, mirrored=mirrored))
        except ValueError as error:
            unreadable.append(f"{at}{f' ({name})' if name else ''}: {error}")
        else:
            places.append(Place(path.name, record.number, name or at))
    num_hashes = len(hashing.WINDOWS) * (2 if mirrored else 1)
    return Hashed(np.array(rows, np.uint64).reshape(-1, num_hashes), places, unreadable)
