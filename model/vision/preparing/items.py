"""What an importer says about a set of pictures before any of them is opened, and how the bytes of one are read."""

from __future__ import annotations

import errno
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

from downpour.model.vision.labels import LabelTree

TRAIN, HELDOUT = "train", "heldout"
_TAR = ".tar#"
_INDEXES = 2048  # kept in memory: a shuffled set reads from all its archives in turn, ImageNet's from 1,001


@dataclass(frozen=True)
class Item:
    """A picture as its importer found it.

    Attributes:
        name: Its identity in the set and in reports; unique.
        path: File that holds it; `archive.tar#member` for a member of a tar file (see `read_bytes`).
        labels: Indices of its labels in the tree, ancestors not filled in.
        split: `train` or `heldout`; empty where the pipeline is to divide.
        confidences: Of each label, from 0 to 1; empty where all are certain.
    """

    name: str
    path: str
    labels: tuple[int, ...]
    split: str = ""
    confidences: tuple[float, ...] = field(default=())


class Importer(Protocol):
    """A format of pictures and labels on disk: `folder`, `csv`, `open-images`, `imagenet`."""

    @property
    def tree(self) -> LabelTree:
        """Names of the labels, and which contains which."""
        ...

    @property
    def skipped(self) -> dict[str, str]:
        """What `items` left out by now, by name, and why."""
        ...

    def items(self) -> Iterator[Item]:
        """Yields the pictures in a fixed order; opens tables and directories, never a picture.

        Raises:
            ValueError: A table or folder is not of the format: which, where (line number), what is accepted.
        """
        ...


def read_bytes(path: str) -> bytes:
    """The bytes of a picture, by `Item.path`.

    Args:
        path: A file, or `archive.tar#member` for a member of an uncompressed tar file, which may be a tar file itself:
            `train.tar#n01440764.tar#n01440764_10026.JPEG`. An archive is read through once, then by position.

    Raises:
        OSError: The file or member is missing or cannot be read, or the archive is not an uncompressed tar file.
    """
    file, position, size = place(path)
    with open(file, "rb", buffering=0) as opened:
        opened.seek(position)
        return opened.read(size)


def members(archive: str) -> list[str]:
    """Paths, as `read_bytes` takes them, of all files in a tar file, in its order.

    Raises:
        OSError: See `read_bytes`.
    """
    return [f"{archive}#{name}" for name in _index(*place(archive)[:2])]


def place(path: str) -> tuple[str, int, int]:
    """The file on disk that holds a picture or archive, where in it, and how many bytes; -1 for all.

    Raises:
        OSError: See `read_bytes`; a file that is in no archive is not looked for.
    """
    before, mark, member = path.rpartition(_TAR)
    if not mark:
        return path, 0, -1
    archive = before + _TAR[:-1]
    file, position, _ = place(archive)
    try:
        return file, *_index(file, position)[member]
    except KeyError:
        raise FileNotFoundError(errno.ENOENT, f"{archive} has no member {member}") from None


def _index(file: str, position: int) -> dict[str, tuple[int, int]]:
    """Position in `file` and size of each member of the tar file that begins at `position`."""
    state = os.stat(file)
    return _read_index(file, position, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=_INDEXES)
def _read_index(file: str, position: int, *_: int) -> dict[str, tuple[int, int]]:
    with open(file, "rb") as opened:
        opened.seek(position)
        try:
            with tarfile.open(fileobj=opened, mode="r:") as tar:
                return {each.name: (each.offset_data, each.size) for each in tar if each.isreg()}
        except tarfile.TarError as error:
            raise OSError(f"{file} is not an uncompressed tar file: {error}") from error
