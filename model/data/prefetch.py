"""Batches made ahead of the training thread by a loading thread, in bounded memory.

The loading thread runs the generator that reads, maps and collates, and takes the leases; it ends with `close`. The
training thread takes finished batches from a queue.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator
from types import TracebackType
from typing import Self

from downpour.model.data.collation import ExampleBatch
from downpour.model.vision.records import RecordCounts

PlacedExamples = tuple[ExampleBatch, int]

_JOIN_S = 5.0  # a lease may be under way at `close`; its call has a deadline of its own
_LOOK_EVERY_S = 0.1


class ExampleBatches:
    """Iterator of batches `(x, y, sample_weight)`, with the interface of `Batches`.

    Close it, or use it as a context manager, to stop its thread and release the source.

    Args:
        batches: Yields batches, and the position after each; runs in the loading thread.
        counts: Counts of the examples, updated by `batches`.
        ahead: Most finished batches that wait; one more is in the making.

    Attributes:
        counts: Examples read so far, those of waiting batches included.
        position: Positions consumed up to and including the last batch, over all leases in order.
        waited_s: Seconds that `next` has waited for batches: the `input` part of the steps.
    """

    def __init__(self, batches: Generator[PlacedExamples, None, None], counts: RecordCounts, ahead: int) -> None:
        self.counts = counts
        self.position = 0
        self.waited_s = 0.0
        self._closing = threading.Event()
        self._ready: queue.Queue[PlacedExamples | BaseException] = queue.Queue(ahead)
        self._thread = threading.Thread(target=self._load, args=(batches,), name="loading", daemon=True)
        self._thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ExampleBatch:
        begin = time.monotonic()
        given: PlacedExamples | BaseException = StopIteration()
        while not self._closing.is_set():
            try:
                given = self._ready.get(timeout=_LOOK_EVERY_S)
                break
            except queue.Empty:
                continue
        self.waited_s += time.monotonic() - begin
        if isinstance(given, BaseException):
            self._closing.set()  # nothing comes behind it
            raise given
        batch, self.position = given
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the iteration and the loading thread; may be called twice, and while another thread is in `next`."""
        self._closing.set()
        self._thread.join(_JOIN_S)

    def _load(self, batches: Generator[PlacedExamples, None, None]) -> None:
        try:
            for placed in batches:
                self._put(placed)
                if self._closing.is_set():
                    return
            self._put(StopIteration())
        except BaseException as error:  # raised again by `next`
            self._put(error)
        finally:
            batches.close()

    def _put(self, given: PlacedExamples | BaseException) -> None:
        while not self._closing.is_set():
            try:
                self._ready.put(given, timeout=_LOOK_EVERY_S)
                return
            except queue.Full:
                continue
