"""Reads the items of a source by place, in order: in the calling thread, in several threads, or in worker processes.

A function of the job's may change every item, with random numbers that depend on seed, epoch and position alone.

Grain's own worker processes iterate over a data set that is fixed when they start. Leases come one at a time, so the
processes here are a pool of the standard library, to which groups of places are sent; a group in flight is one of the
reader's, so the order, and what every position holds, are the same for any number of them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import io
import itertools
import multiprocessing
import os
import pickle
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.connection import wait
from types import FunctionType
from typing import Any

from downpour.model.data.indexed import Source
from downpour.model.data.order import Place, augmentation

Map = Callable[..., Any]


@dataclass(frozen=True)
class Reader:
    """Reads and maps items; can be sent to another process, which opens the source again.

    Attributes:
        source: Where the items are.
        map: Applied to every item; None for none.
        seed: Seed of the random numbers that `map` gets; None where there is no augmentation.
        num_items: Length that the source must keep; None where it is not known yet.
    """

    source: Source
    map: Map | None = None
    seed: int | None = None
    num_items: int | None = None

    def read(self, places: Sequence[Place]) -> list[Any]:
        """The mapped items of some places; None for one that the source or `map` leaves out.

        Raises:
            ValueError: The length of the source has changed.
        """
        self.check_length()
        items: list[Any] = []
        try:
            for item in self.source.opened.read(places):
                items.append(item)
        except Exception as error:
            self.check_length()
            error.add_note(f"while reading {self.source.name}, {self._culprit(places, len(items))}")
            raise
        if len(items) != len(places):
            raise ValueError(
                f"{self.source.name} gives {len(items)} items for {len(places)} indices; give one for each"
            )
        return [self._mapped(item, place) for item, place in zip(items, places, strict=True)]

    def check_length(self) -> None:
        """Raises `ValueError` when the length of the source has changed."""
        num_items = len(self.source.opened)
        if self.num_items not in (None, num_items):
            raise ValueError(
                f"{self.source.name} has {num_items} items now and had {self.num_items}; leases name its items by "
                "number, so a source must not change while it is trained on"
            )

    def _culprit(self, places: Sequence[Place], num_read: int) -> str:
        """Names the item that cannot be read: what follows those that were, or the first that fails by itself."""
        value = self.source.value
        if not hasattr(value, "__getitems__"):
            return f"item {places[num_read].record}"
        for place in places:
            try:
                value.__getitems__([place.record])
            except Exception:
                return f"item {place.record}"
        return f"one of items {', '.join(str(place.record) for place in places)}"

    def _mapped(self, item: Any, place: Place) -> Any:
        if self.map is None or item is None:
            return item
        try:
            return self._call(item, place)
        except Exception as error:
            error.add_note(f"while mapping {self.source.name}, item {place.record}")
            raise

    @cached_property
    def _call(self) -> Callable[[Any, Place], Any]:
        assert self.map is not None
        return with_random_numbers(self.map, self.seed)


def with_random_numbers(function: Map, seed: int | None) -> Callable[[Any, Place], Any]:
    """Makes a function of item and place out of a `map` function.

    Args:
        function: Called with the item; and if it has a parameter `rng`, with a `np.random.Generator` for that, which
            depends on seed, epoch and position alone, or None without a seed.
        seed: Seed of the job; None for held-out examples.
    """
    if not _takes_rng(function):
        return lambda item, place: function(item)
    if seed is None:
        return lambda item, place: function(item, rng=None)
    return lambda item, place: function(item, rng=augmentation(seed, place.epoch, place.position))


def items_read(
    reader: Reader, places: Iterable[Place], size: int, num_threads: int, num_processes: int
) -> Iterator[tuple[int, Any]]:
    """Yields the number of every place's item, and the item, in order.

    Args:
        reader: Reads them.
        places: Taken as they are needed: so many groups ahead as there are threads or processes, and one.
        size: Places that are read by one call.
        num_threads: Threads that read at once; below 2 for the calling thread alone.
        num_processes: Worker processes that read at once, in place of threads; 0 for none.

    Raises:
        ValueError: The reader cannot be sent to a process, or see `Reader.read`.
    """
    if num_processes:
        read = _ahead(_process_pool(reader, num_processes), _read_there, cut(places, size), num_processes + 1)
    elif num_threads > 1:
        read = _ahead(ThreadPoolExecutor(num_threads, "reading"), reader.read, cut(places, size), num_threads + 1)
    else:
        read = ((group, reader.read(group)) for group in cut(places, size))
    with contextlib.closing(read):
        for group, items in read:
            yield from zip([place.record for place in group], items, strict=True)


def cut(places: Iterable[Place], size: int) -> Iterator[list[Place]]:
    """Yields the places in groups of `size`; the last one may be short."""
    iterator = iter(places)
    while group := list(itertools.islice(iterator, size)):
        yield group


def check_picklable(**values: Any) -> None:
    """Raises `ValueError` for the first value that cannot be sent to another process, with its name."""
    for name, value in values.items():
        try:
            _pickled(value)
        except Exception as error:  # pickle raises AttributeError, TypeError, PicklingError and what objects raise
            raise ValueError(
                f"{name} cannot be sent to a worker process ({error}); give a function or class that is defined in a "
                "file, for a source with open files a function that opens it, or num_processes=0"
            ) from error


def _ahead(
    pool: Executor, read: Callable[[list[Place]], list[Any]], groups: Iterable[list[Place]], ahead: int
) -> Generator[tuple[list[Place], list[Any]], None, None]:
    """Yields groups and what is read of them, in order, with `ahead` groups under way."""
    under_way: deque[tuple[list[Place], Future[list[Any]]]] = deque()
    try:
        for group in groups:
            under_way.append((group, pool.submit(read, group)))
            if len(under_way) == ahead:
                done, future = under_way.popleft()
                yield done, future.result()
        while under_way:
            done, future = under_way.popleft()
            yield done, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _takes_rng(function: Map) -> bool:
    try:
        return "rng" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # of C
        return False


class _Pickler(pickle.Pickler):
    """Notes the files of the modules whose functions and classes a pickle names."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.files: dict[str, str] = {}

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, type | FunctionType):
            file = getattr(sys.modules.get(value.__module__), "__file__", None)
            if file:
                self.files[value.__module__] = file
        return NotImplemented


def _pickled(value: Any) -> tuple[dict[str, str], bytes]:
    pickler = _Pickler(buffer := io.BytesIO())
    pickler.dump(value)
    return pickler.files, buffer.getvalue()


_reader: Reader  # of a worker process


def _process_pool(reader: Reader, num_processes: int) -> ProcessPoolExecutor:
    check_picklable(**{"map": reader.map, reader.source.name: reader.source.given})
    sent = _pickled(reader)
    context = multiprocessing.get_context("spawn")  # this process has threads
    return ProcessPoolExecutor(num_processes, context, initializer=_begin, initargs=sent)


def _begin(files: dict[str, str], pickled: bytes) -> None:
    global _reader
    end_with_parent()
    for name, file in files.items():
        _import(name, file)
    _reader = pickle.loads(pickled)


def _import(name: str, file: str) -> None:
    """Imports a module, by its file where its name alone does not lead to it: a recipe's does not."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


def end_with_parent() -> None:
    """Has this process end when the one that started it is gone, however it ended; a thread waits for that."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _read_there(places: list[Place]) -> list[Any]:
    return _reader.read(places)
