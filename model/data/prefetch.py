"""Assembles batches on a thread of its own, ahead of the thread that trains on them.

Threads: one thread iterates over the source, another takes the batches. No TensorFlow here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from downpour.model.data.batches import Batch, Batches
from downpour.model.vision.records import RecordCounts


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

    Close it, or use it as a context manager, to stop its thread; afterwards the source may be closed.

    Args:
        source: Iterated by the thread alone, from the first `next` until `close`.
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
        self._loading: deque[Future[_Loaded]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")  # starts its thread with the first batch

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        while len(self._loading) <= self._ahead:
            self._loading.append(self._pool.submit(self._load))
        loaded = self._loading.popleft().result()
        self.position, self.counts = loaded.position, loaded.counts
        return loaded.batch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Discards the batches not taken and ends the thread, after the batch that it is assembling."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _load(self) -> _Loaded:
        batch = next(self._source)
        position, counts = self._source.position, self._source.counts
        self._check(position)
        return _Loaded(batch, position, replace(counts, examples=list(counts.examples)))
