"""Decodes records to pictures on a few threads, in order, and counts every failure.

TensorFlow decodes, with its own settings: JPEG by libjpeg-turbo's fast integer transform and smooth chroma upsampling.
It and numba are imported when a `Decoder` is made. Decoding and resizing release Python's interpreter lock, so plain
threads keep all cores busy; the records keep their order, and a record that fails is reported by file and number.
tf.data's `ignore_errors` would drop it unreported.

A record is parsed and decoded by two calls, not by a `tf.function`, whose call alone takes 0.3 ms, as an eighth of a
JPEG of ImageNet's size.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from downpour.model.vision.records import IMAGE_KEY, LABELS_KEY, NAME_KEY, Record, RecordCounts
from downpour.model.vision.window import Window

_MOST_THREADS = 16
_AHEAD = 8  # records of each thread


class Picture(NamedTuple):
    """A decoded image, [S, S, 3] uint8, all of the resized one or a window of it, and its labels as stored."""

    image: NDArray[np.uint8]
    labels: tuple[int, ...]


class Decoder:
    """Turns a serialised `tf.train.Example` into a `Picture`, of a size of `resize` x `resize` pixels before windows.

    Colours are bytes: rounding after the resize costs at most 1/510 of the range. Any thread may call it.
    """

    def __init__(self, resize: int, num_labels: int) -> None:
        import tensorflow as tf

        from downpour.model.vision.resampling import resized

        self._tf: Any = tf
        self._resized = resized
        self._errors = (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError)
        self._resize = resize
        self._num_labels = num_labels
        self._num_threads = min(_MOST_THREADS, num_cores())

    def __call__(self, data: bytes, window: Window | None = None) -> Picture:
        """Decodes one record.

        Args:
            data: The record's content.
            window: The part of the resized image that is wanted; None for all of it.

        Raises:
            ValueError: The record is no Example, its image does not decode, or a label is not in the tree.
        """
        encoded, labels = self._parsed(data)
        try:
            image = self._tf.io.decode_image(encoded, channels=3, expand_animations=False)
        except self._errors as error:
            raise ValueError(_gist(error.message)) from error
        return Picture(self._resized(np.asarray(image), self._resize, window), self._in_range(labels))

    def _parsed(self, data: bytes) -> tuple[bytes, list[int]]:
        features = self._features(data)
        images, labels = features[IMAGE_KEY], features[LABELS_KEY]  # empty ones where a key is missing
        if len(images.bytes_list.value) != 1:
            raise ValueError(f"the Example has {len(images.bytes_list.value)} values of {IMAGE_KEY}; one is wanted")
        if labels.WhichOneof("kind") not in (None, "int64_list"):
            raise ValueError(f"the Example's {LABELS_KEY} are a {labels.WhichOneof('kind')}, not an int64_list")
        return images.bytes_list.value[0], list(labels.int64_list.value)

    def _features(self, data: bytes) -> Any:
        """The features of an Example by key; raises `ValueError` for other bytes."""
        try:
            return self._tf.train.Example.FromString(data).features.feature
        except DecodeError as error:
            raise ValueError(f"the record is no tf.train.Example: {error}") from error

    def _in_range(self, labels: list[int]) -> tuple[int, ...]:
        for label in labels:
            if not 0 <= label < self._num_labels:
                raise ValueError(f"label {label} is not in the tree, whose labels are 0 to {self._num_labels - 1}")
        return tuple(labels)

    def name(self, data: bytes) -> str:
        """The picture's name as stored in the record; "" if there is none."""
        try:
            stored = self._features(data)[NAME_KEY].bytes_list.value
        except ValueError:
            return ""
        return stored[0].decode(errors="replace") if stored else ""

    def decode_all(
        self, records: Iterable[tuple[Record, Window | None]], counts: RecordCounts
    ) -> Iterator[Picture | None]:
        """Yields the picture of every record, in order, None for a bad one; updates `counts` before each.

        Records are prefetched, a few for each thread.

        Args:
            records: Each with its window, as `__call__` takes it.
            counts: Counts the records.

        Raises:
            TooManyBadRecords: See `RecordCounts.bad`.
        """
        pending: deque[tuple[Record, Future[Picture] | None]] = deque()
        pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="decode")
        try:
            for record, window in records:
                future = pool.submit(self, record.data, window) if record.data is not None else None
                pending.append((record, future))
                if len(pending) > _AHEAD * self._num_threads:
                    yield self._settle(*pending.popleft(), counts)
            while pending:
                yield self._settle(*pending.popleft(), counts)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _settle(self, record: Record, future: Future[Picture] | None, counts: RecordCounts) -> Picture | None:
        try:
            if future is None:
                raise ValueError(record.reason)
            picture = future.result()
        except ValueError as error:
            name = self.name(record.data) if record.data is not None else ""
            counts.bad(record.path, record.number, str(error), name)
            return None
        counts.good()
        return picture


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gist(message: str) -> str:
    """The relevant part of a TensorFlow error: its last line, without the names of nodes and of the operation."""
    line = message.partition("\n\t [[")[0].splitlines()[-1]
    return line.rpartition("}} ")[2].partition(" [Op:")[0][:160]
