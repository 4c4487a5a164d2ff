"""The spans that a traced process keeps until the chief has them, in bounded memory. Both workers and shards use it.

Threads: any.
"""

from __future__ import annotations

import itertools
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable

from downpour.proto import trace_pb2 as pb

MOST_STEPS = 1000  # that a worker traces
MOST_IN_MESSAGE = 512
_MOST_KEPT = 8192


def check_steps(given: int) -> int:
    """Returns a number of traced steps.

    Raises:
        ValueError: It is below 0 or above `MOST_STEPS`.
    """
    if not 0 <= given <= MOST_STEPS:
        raise ValueError(f"--trace={given}: a worker traces 1 to {MOST_STEPS} steps; give one of these, or 0 for none")
    return given


class SpanBuffer:
    """The newest spans of this process, numbered from 0. Where there are too many, the oldest are lost.

    Args:
        clock: Seconds of this process's clock, in which spans are given.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._process = secrets.randbits(63)
        self._lock = threading.Lock()
        # Guarded by `_lock`.
        self._kept = deque[pb.Span](maxlen=_MOST_KEPT)
        self._count = 0  # of all that were added

    def add(self, *spans: pb.Span) -> None:
        """Adds spans that have ended."""
        with self._lock:
            self._kept.extend(spans)
            self._count += len(spans)

    def num_after(self, received: pb.SpansReceived) -> int:
        """Number of spans that a receiver of these lacks, those included that are lost."""
        with self._lock:
            return self._count - self._first(received)

    def after(self, received: pb.SpansReceived) -> pb.Spans:
        """Returns the oldest spans that a receiver of these lacks, up to `MOST_IN_MESSAGE`."""
        with self._lock:
            oldest = self._count - len(self._kept)
            first = max(oldest, self._first(received))
            found = itertools.islice(self._kept, first - oldest, first - oldest + MOST_IN_MESSAGE)
            return pb.Spans(process=self._process, first=first, spans=found, clock_seconds=self.clock())

    def _first(self, received: pb.SpansReceived) -> int:
        """Number of the first span that a receiver lacks; what it has of another process does not count."""
        return min(received.count, self._count) if received.process == self._process else 0
