"""The spans of all processes of a traced run, and how far the clocks of these are from the chief's.

The offset of a clock is that of the round trip with the smallest delay: there and back it is taken to have travelled
for equal times, so the offset is wrong by at most half of the delay (as in NTP, RFC 5905 section 8).

Threads: any.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from downpour.proto.trace_pb2 import RoundTrip, Span, Spans, SpansReceived

_MOST_SPANS = 200_000  # of all processes together; about 40 MB
_MOST_LETTERS = 64  # of names


@dataclass(frozen=True)
class Offset:
    """What is added to moments of a process to have them by the chief's clock.

    Attributes:
        seconds: The offset.
        error_s: By how much it may be wrong, either way.
    """

    seconds: float
    error_s: float


def offset_of(trip: RoundTrip) -> Offset | None:
    """How far the clock of the one that was called is ahead of the caller's; None if no clocks can show these times."""
    there, back = trip.received_seconds - trip.asked_seconds, trip.answered_seconds - trip.replied_seconds
    delay_s = there + back
    return Offset((there - back) / 2, delay_s / 2) if 0 <= delay_s < math.inf else None


@dataclass
class ProcessTrace:
    """The spans of one process.

    Attributes:
        role: `worker` or `ps`.
        index: Index in its role.
        process: Random number of the process.
        spans: Those received, by its own clock, in the order of their ends within a thread.
        count: How many it has made, the lost ones among them, up to the last that was received.
        missing: How many of these are lost: they did not fit the memory of the process or of the chief.
        complete: Whether it has said that no span follows.
        clock: Offset of its clock; None before any round trip.
    """

    role: str
    index: int
    process: int
    spans: list[Span] = field(default_factory=list)
    count: int = 0
    missing: int = 0
    complete: bool = False
    clock: Offset | None = None


class Traces:
    """Collects the spans of a run.

    Args:
        num_steps: How many steps every worker traces; 0 for none.
        num_workers: Number of expected workers.
        clock: The chief's clock, in seconds.

    Attributes:
        num_steps: As given.
        clock: As given.
    """

    def __init__(self, num_steps: int, num_workers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.num_steps, self.clock = num_steps, clock
        self._num_workers = num_workers
        self._lock = threading.Lock()
        # Guarded by `_lock`.
        self._processes: dict[tuple[str, int], list[ProcessTrace]] = {}  # by role and index, in the order of starts
        self._num_spans = 0

    def steps_of(self, worker: int) -> int:
        """How many steps a worker that registers is to trace: those that earlier incarnations of it have not."""
        with self._lock:
            earlier = self._processes.get(("worker", worker), [])
            if any(process.complete for process in earlier):
                return 0
            done = sum(span.name == "step" for process in earlier for span in process.spans)
        return max(0, self.num_steps - done)

    def take(self, role: str, index: int, spans: Spans) -> SpansReceived:
        """Takes spans of a process, those that were received before left out; returns what is received now.

        Args:
            role: `worker` or `ps`.
            index: Index in its role.
            spans: With the times of a call from worker to chief, or from chief to shard.
        """
        with self._lock:
            starts = self._processes.setdefault((role, index), [])
            if not starts or starts[-1].process != spans.process:
                starts.append(ProcessTrace(role, index, spans.process))
            process = starts[-1]
            if spans.HasField("round_trip"):
                _compare_clocks(process, spans.round_trip)
            process.missing += max(0, spans.first - process.count)
            new = spans.spans[max(0, process.count - spans.first) :]
            kept = [span for span in new if _is_good(span)][: _MOST_SPANS - self._num_spans]
            process.spans += kept
            process.missing += len(new) - len(kept)
            self._num_spans += len(kept)
            process.count = max(process.count, spans.first + len(spans.spans))
            process.complete |= spans.complete
            return SpansReceived(process=spans.process, count=process.count)

    def received(self, role: str, index: int) -> SpansReceived:
        """What is received of a process."""
        with self._lock:
            starts = self._processes.get((role, index))
            return SpansReceived(process=starts[-1].process, count=starts[-1].count) if starts else SpansReceived()

    @property
    def complete(self) -> bool:
        """Whether every expected worker has traced its steps and sent their spans."""
        with self._lock:
            workers = (self._processes.get(("worker", index), []) for index in range(self._num_workers))
            return all(any(process.complete for process in starts) for starts in workers)

    def processes(self) -> list[ProcessTrace]:
        """Copies of what is known of every process, workers first; none without a span of a worker."""
        with self._lock:
            order = sorted(self._processes, key=lambda key: (key[0] != "worker", key[1]))
            found = [
                ProcessTrace(**vars(process) | {"spans": list(process.spans)})
                for key in order
                for process in self._processes[key]
            ]
        return found if any(process.spans for process in found if process.role == "worker") else []


def _compare_clocks(process: ProcessTrace, trip: RoundTrip) -> None:
    """Keeps the offset of a round trip if it is more exact than the one known."""
    offset = offset_of(trip)
    if offset is not None and (process.clock is None or offset.error_s < process.clock.error_s):
        calls_chief = process.role == "worker"
        process.clock = Offset(offset.seconds if calls_chief else -offset.seconds, offset.error_s)


def _is_good(span: Span) -> bool:
    """Whether a span can be drawn; the chief takes spans from workers, of which one may be broken."""
    ordered = -math.inf < span.begin_seconds <= span.end_seconds < math.inf
    return ordered and max(len(span.name), len(span.track)) <= _MOST_LETTERS
