"""Decodes records to pictures on a few threads, in order, and counts every failure.

TensorFlow decodes, and is imported when a `Decoder` is made. Its decoders release Python's interpreter lock, so plain
threads keep all cores busy; the records keep their order, and a record that fails is reported by file and number.
tf.data's `ignore_errors` would drop it unreported.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from downpour.model.vision.records import IMAGE_KEY, LABELS_KEY, NAME_KEY, Record, RecordCounts

_THREADS = min(16, os.cpu_count() or 1)
_AHEAD = 8 * _THREADS


class Picture(NamedTuple):
    """A decoded image, [R, R, 3] uint8, read-only in the memory of its tensor, and its labels as stored."""

    image: NDArray[np.uint8]
    labels: tuple[int, ...]


class Decoder:
    """Turns a serialised `tf.train.Example` into a `Picture` of `resize` x `resize` pixels.

    Colours stay bytes until a batch is made: rounding after the resize costs at most 1/510 of the range.
    Any thread may call it.
    """

    def __init__(self, resize: int, num_labels: int) -> None:
        import tensorflow as tf

        self._errors = (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError)
        self._num_labels = num_labels
        self._decode = _compiled(resize)

    def __call__(self, data: bytes) -> Picture:
        """Decodes one record.

        Raises:
            ValueError: The record is no Example, its image does not decode, or a label is not in the tree.
        """
        try:
            image, labels = self._decode(data)
        except self._errors as error:
            raise ValueError(_gist(error.message)) from error
        return Picture(np.asarray(image), self._in_range(labels.numpy().tolist()))

    def _in_range(self, labels: list[int]) -> tuple[int, ...]:
        for label in labels:
            if not 0 <= label < self._num_labels:
                raise ValueError(f"label {label} is not in the tree, whose labels are 0 to {self._num_labels - 1}")
        return tuple(labels)

    def name(self, data: bytes) -> str:
        """The picture's name as stored in the record; "" if there is none."""
        import tensorflow as tf

        features = {NAME_KEY: tf.io.FixedLenFeature([], tf.string, default_value="")}
        try:
            stored: bytes = tf.io.parse_single_example(data, features)[NAME_KEY].numpy()
        except self._errors:
            return ""
        return stored.decode(errors="replace")

    def decode_all(self, records: Iterator[Record], counts: RecordCounts) -> Iterator[Picture | None]:
        """Yields the picture of every record, in order, None for a bad one; updates `counts` before each.

        Records are prefetched, a few for each thread.

        Raises:
            TooManyBadRecords: See `RecordCounts.bad`.
        """
        pending: deque[tuple[Record, Future[Picture] | None]] = deque()
        pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="decode")
        try:
            for record in records:
                pending.append((record, pool.submit(self, record.data) if record.data is not None else None))
                if len(pending) > _AHEAD:
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


def _gist(message: str) -> str:
    """The relevant line of a TensorFlow error: the last one before the names of graph nodes."""
    return message.partition("\n\t [[")[0].splitlines()[-1][:160]


def _compiled(resize: int):  # type: ignore[no-untyped-def]  # a tf.function has no type of its own
    import tensorflow as tf

    features = {
        IMAGE_KEY: tf.io.FixedLenFeature([], tf.string),
        LABELS_KEY: tf.io.RaggedFeature(tf.int64),
    }

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
    def decode(data):  # type: ignore[no-untyped-def]
        with tf.device("/CPU:0"):
            example = tf.io.parse_single_example(data, features)
            image = tf.io.decode_image(example[IMAGE_KEY], channels=3, expand_animations=False)
            resized = tf.image.resize(image, [resize, resize], antialias=True)
            return tf.cast(tf.clip_by_value(tf.round(resized), 0.0, 255.0), tf.uint8), example[LABELS_KEY]

    return decode
