"""Pickles a data source into a file, from which every process of a job that reads the data makes it again.

What it names must be importable: a class or function goes by module and name, or by the file of a script and name, and
so must be at the top level of a file. Arrays of a megabyte and more are files of their own, which the processes of a
machine map. Only a process that reads the data unpickles it, so that no other imports what it needs: a shard does not,
nor does a chief that only counts its items.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import io
import pickle
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Reduce = Callable[[Any], tuple[Any, ...] | None]

_MAPPED_BYTES = 1 << 20  # of an array with a file of its own


@dataclass(frozen=True)
class Pickled:
    """A source in a file: called without arguments, as a function that opens a source, it returns the source.

    Attributes:
        path: The file.
        digest: First digits of the SHA-256 of its bytes.
        num_items: Length of the source.
        batched: Whether its items are batches.
    """

    path: Path
    digest: str
    num_items: int
    batched: bool

    def __call__(self) -> Any:
        """Unpickles the source.

        Raises:
            ValueError: The file is another one than was written.
        """
        content = self.path.read_bytes()
        if digest(content) != self.digest:
            raise ValueError(f"{self.path} has changed since the recipe beside it was written; write both again")
        return _Unpickler(content, self.path.parent).load()


def digest(content: bytes) -> str:
    """The first digits of the SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()[:16]


def dumps(value: Any, reduce: Reduce, add_array: Callable[[np.ndarray], int]) -> bytes:
    """Pickles a source.

    Args:
        value: The source.
        reduce: Returns how a function or class of a script is found, as `__reduce__` does, and None for one of an
            importable module; raises `ValueError` for one that other processes cannot import.
        add_array: Adds an array to the job's files; returns its number, under which `Pickled` finds it.

    Raises:
        ValueError: See `reduce`.
        Exception: Something cannot be pickled; pickle and objects raise errors of many kinds.
    """
    pickler = _Pickler(buffer := io.BytesIO(), reduce, add_array)
    pickler.dump(value)
    return buffer.getvalue()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, reduce: Reduce, add_array: Callable[[np.ndarray], int]) -> None:
        super().__init__(file, protocol=5)
        self._reduce, self._add_array = reduce, add_array
        self._numbers: dict[int, int] = {}  # by id: an array that is there twice has one file

    def persistent_id(self, value: Any) -> int | None:
        if type(value) not in (np.ndarray, np.memmap) or value.nbytes < _MAPPED_BYTES or value.dtype.hasobject:
            return None
        if id(value) not in self._numbers:
            self._numbers[id(value)] = self._add_array(value)
        return self._numbers[id(value)]

    def reducer_override(self, value: Any) -> Any:
        found = self._reduce(value) if isinstance(value, type | types.FunctionType) else _without_cached(value)
        return NotImplemented if found is None else found


def _without_cached(value: Any) -> tuple[Any, ...] | None:
    """How an object is made again without its cached properties, which it computes anew; None if it has none.

    A source that has been read may hold there what cannot be pickled, as Grain's data sets do.
    """
    names = [
        name
        for name in getattr(value, "__dict__", ())
        if isinstance(inspect.getattr_static(type(value), name, None), functools.cached_property)
    ]
    reduced: Any = value.__reduce_ex__(5) if names else ()
    if len(reduced) < 3 or not isinstance(reduced[2], dict):
        return None
    state = {key: part for key, part in reduced[2].items() if key not in names}
    return (*reduced[:2], state, *reduced[3:])


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes, folder: Path) -> None:
        super().__init__(io.BytesIO(content))
        self._folder = folder

    def persistent_load(self, number: Any) -> np.ndarray:
        # Copied on write: a source may write into its arrays, and each process then has its own.
        return np.asarray(np.load(self._folder / f"{number}.npy", mmap_mode="c"))
