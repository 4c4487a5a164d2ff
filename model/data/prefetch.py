"""Assembles batches on a thread of its own, ahead of the thread that trains on them.

Threads: one thread iterates over the source, another takes the batches. No TensorFlow here.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from absl import logging

from downpour.model.data.batches import Batch, Batches
from downpour.model.vision.records import RecordCounts

_END_S = 5.0  # for a batch that is being assembled at the end


@dataclass(frozen=True)
class _Loaded:
    """A batch, and the source's position and counts when it was assembled."""

    batch: Batch
    position: int
    counts: RecordCounts


class Prefetch:
    """Iterator over the batches of a source, in their order, of which some are assembled ahead.

    Only batches that were taken count: `position` and `counts` are those of the last one. The `next` that would have
    returned a batch raises what the source has raised in its place.

    Close it, or use it as a context manager: its thread then closes the source, which so begins and ends on one thread.

    Args:
        source: Iterated by the thread alone, from the first `next` or `wait` until `close`.
        check: Called by the thread with the source's position after every batch; `next` raises what it raises.
        ahead: Most batches that are assembled, or being assembled, beyond the one that is asked for.

    Attributes:
        position: See `Batches`; of the last batch taken.
        counts: See `Batches`; of the last batch taken.
    """

    def __init__(
        self, source: Batches, check: Callable[[int], None] = lambda position: None, *, ahead: int = 1
    ) -> None:
        self.position = 0
        self.counts = RecordCounts()
        self._source, self._check, self._ahead = source, check, ahead
        self._num_asked = 0  # batches asked for and not taken
        self._held: _Loaded | BaseException | None = None  # assembled, and waited for by `wait`
        self._asked = queue.SimpleQueue[bool]()  # False: the end
        self._assembled = queue.SimpleQueue[_Loaded | BaseException]()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        self._ask()
        given, self._held = self._held or self._assembled.get(), None
        self._num_asked -= 1
        if isinstance(given, BaseException):
            raise given
        self.position, self.counts = given.position, given.counts
        return given.batch

    def wait(self, timeout_s: float) -> bool:
        """Whether the next `next` need not wait; blocks for up to `timeout_s` until that is so."""
        self._ask()
        if self._held is None:
            with contextlib.suppress(queue.Empty):
                self._held = self._assembled.get(timeout=timeout_s)
        return self._held is not None

    @property
    def held(self) -> Batch | None:
        """The next batch, without taking it, after `wait`; None if it has not come, or an error has."""
        return self._held.batch if isinstance(self._held, _Loaded) else None

    def _ask(self) -> None:
        if not self._thread.ident:
            self._thread.start()
        while self._num_asked <= self._ahead:
            self._asked.put(True)
            self._num_asked += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Discards the batches not taken and ends the thread, after the batch that it is assembling.

        A thread that a source still blocks after 5 s is left behind: nobody needs what it waits for.
        """
        self._is_closing = True
        if not self._thread.ident:
            return
        self._asked.put(False)
        self._thread.join(_END_S)
        if self._thread.is_alive():
            logging.warning("the data source gives no batch and does not end; it is left behind")

    def _run(self) -> None:
        while self._asked.get() and not self._is_closing:
            try:
                self._assembled.put(self._load())
            except BaseException as error:  # `next` raises it
                self._assembled.put(error)
        try:
            self._source.close()
        except Exception as error:  # what was read from it is not affected
            logging.warning("the data source cannot be closed: %r", error)

    def _load(self) -> _Loaded:
        batch = next(self._source)
        position, counts = self._source.position, self._source.counts
        self._check(position)
        return _Loaded(batch, position, replace(counts, examples=list(counts.examples)))
