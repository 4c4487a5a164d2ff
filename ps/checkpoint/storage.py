"""Folders of checkpoints, on a disk or in an object store (through fsspec): a file exists whole or not at all.

On a disk a file is written under a temporary name, flushed to the disk and renamed; an object store shows only
complete uploads. Threads: any; the only state of a `Folder` is its place.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from typing import Any

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from downpour import files, how_to_install
from downpour.ps.testing.points import reach

_UPLOAD_BYTES = 16 << 20  # of one part of an upload to an object store
_DOWNLOAD_BYTES, _READ_BYTES = 64 << 20, 4 << 20  # more for object stores, whose latency is high


class StorageError(OSError):
    """An operation on an object store or a disk failed; the message names the place. `errno` is the disk's, if any."""


class NoRoom(ValueError):
    """There is no room for even a small file."""


class Folder:
    """A folder on a disk or in an object store.

    Args:
        url: A path, or a URL that fsspec supports: `s3://bucket/folder`, `gs://...`. A text without `://` is a path.

    Attributes:
        url: As given; of a local folder its absolute path.
        read_bytes: Bytes to read at a time, a multiple of 4 MB.

    Raises:
        ValueError: The kind of URL is unknown, its library is not installed, or the path is not UTF-8 and so cannot be
            sent to shards and evaluators.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        text = os.fspath(url)
        if any("\udc80" <= character <= "\udcff" for character in text):  # as which Python decodes other bytes
            raise ValueError(f"cannot use {text!a}: it is not UTF-8; rename the folder, or give another")
        try:
            self._fs, self._root = _place(text)
        except (ImportError, ValueError) as error:
            raise ValueError(
                f"cannot use {text}: {error}; give a path or a URL whose library is installed "
                f"(s3://: {how_to_install('s3')})"
            ) from None
        self._is_local = isinstance(self._fs, LocalFileSystem)
        self.url = self._root if self._is_local else text.rstrip("/")
        self.read_bytes = _READ_BYTES if self._is_local else _DOWNLOAD_BYTES

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.url}/{name}")

    def names(self) -> list[str]:
        """Returns the names of its files and folders, sorted; none if it does not exist.

        Raises:
            StorageError: The folder cannot be read.
        """
        with self._explained("list"):
            self._fs.invalidate_cache(self._root)
            if not self._fs.isdir(self._root):
                return []
            return sorted(str(entry).rstrip("/").rpartition("/")[2] for entry in self._fs.ls(self._root, detail=False))

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Reads a file, or bytes [start, stop) of it.

        Raises:
            FileNotFoundError: There is no such file.
            StorageError: The file cannot be read.
        """
        with self._explained(f"read {name} in"):
            content: bytes = self._fs.cat_file(f"{self._root}/{name}", start=start, end=stop)
            return content

    def read_into(self, name: str, start: int, out: np.ndarray) -> int:
        """Reads a file from byte `start` on into the [n] uint8 array `out`; returns the number of bytes read.

        Raises:
            FileNotFoundError: There is no such file.
            StorageError: The file cannot be read.
        """
        if self._is_local:
            with self._explained(f"read {name} in"), open(f"{self._root}/{name}", "rb") as file:
                file.seek(start)
                return file.readinto(out.data)
        try:
            content = np.frombuffer(self.read(name, start, start + out.size), np.uint8)
        except StorageError:
            if self._size(name) > start:
                raise
            return 0  # stores refuse to read from the end of a file on
        out[: content.size] = content
        return content.size

    def write(self, name: str, pieces: Iterable[Any]) -> None:
        """Writes a file from pieces (bytes, arrays); replaces an existing one.

        Raises:
            StorageError: The file cannot be written; nothing has changed.
        """
        with self._explained(f"write {name} in"):
            self._fs.makedirs(self._root, exist_ok=True)
            if self._is_local:
                self._write_and_rename(name, pieces)
            else:
                self._upload(name, pieces)

    def remove(self, name: str) -> None:
        """Removes a file, or a folder with its content.

        Raises:
            FileNotFoundError: There is no such file or folder.
            StorageError: It cannot be removed.
        """
        with self._explained(f"remove {name} in"):
            self._fs.rm(f"{self._root}/{name}", recursive=True)

    def rename(self, name: str, other: str) -> None:
        """Renames a file.

        Raises:
            FileNotFoundError: There is no such file.
            StorageError: The file cannot be renamed.
        """
        with self._explained(f"rename {name} in"):
            self._fs.mv(f"{self._root}/{name}", f"{self._root}/{other}")

    def check(self) -> None:
        """Checks that the folder can be written: writes a small file and removes it.

        For a local folder that does not exist, the nearest existing parent is checked, so that no folder is created.
        Concurrent checks do not collide.

        Raises:
            NoRoom: The disk is full.
            ValueError: The file cannot be written or removed.
        """
        folder = Folder(_nearest(self._root)) if self._is_local else self
        name = f".writable-{secrets.token_hex(4)}"
        try:
            folder.write(name, [b"Downpour looks whether it may write here.\n"])
            folder.remove(name)
        except OSError as error:
            place = "" if folder.url == self.url else f"cannot make {self.url}: "
            kind = NoRoom if error.errno == errno.ENOSPC else ValueError
            raise kind(f"{place}{error}; give another folder, or permission to write there") from None

    def _size(self, name: str) -> int:
        with self._explained(f"read {name} in"):
            self._fs.invalidate_cache(self._root)
            return int(self._fs.info(f"{self._root}/{name}")["size"])

    def _write_and_rename(self, name: str, pieces: Iterable[Any]) -> None:
        with files.replacing(f"{self._root}/{name}", durable=True) as temporary:
            with open(temporary, "wb") as file:
                reach("storage.opened")
                for piece in pieces:
                    file.write(piece)
                    reach("storage.piece")
            reach("storage.written")
        reach("storage.renamed")

    def _upload(self, name: str, pieces: Iterable[Any]) -> None:
        file = self._fs.open(f"{self._root}/{name}", "wb", autocommit=False, block_size=_UPLOAD_BYTES)
        try:
            for piece in pieces:
                file.write(piece)
            file.close()
            file.commit()
        except BaseException:
            file.discard()
            raise

    @contextlib.contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        """Converts errors, except FileNotFoundError, to `StorageError`, which names the place."""
        try:
            yield
        except FileNotFoundError:
            raise
        except _errors() as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            failed = StorageError(f"cannot {action} {self.url}: {reason}")
            failed.errno = getattr(error, "errno", None)
            raise failed from None


def _place(text: str) -> tuple[Any, str]:
    """Returns file system and path in it. fsspec alone would parse a path with `::` as a chain of file systems."""
    if "://" in text:
        fs, root = fsspec.core.url_to_fs(text)
        return fs, root
    return LocalFileSystem(), os.path.abspath(os.path.expanduser(text))


def _nearest(path: str) -> str:
    """Returns the deepest part of a path that exists."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


def _errors() -> tuple[type[Exception], ...]:
    try:
        from botocore.exceptions import BotoCoreError
    except ImportError:
        return (OSError,)
    return (OSError, BotoCoreError)
