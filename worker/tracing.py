"""Spans of a worker's traced steps, and how they come to the chief: with the worker's reports.

A worker traces as many steps as the chief says when it registers, from its second step on: the first one may compile.

Threads: the training loop begins steps and phases, the exchange's threads add calls to shards, the reporter's thread
writes reports.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

from downpour.proto.chief_pb2 import ReportReply, WorkerReport
from downpour.proto.spans import SpanBuffer
from downpour.proto.trace_pb2 import RoundTrip, Span, SpansReceived

LOOP = "loop"  # track of the training loop
_UNTRACED = contextlib.nullcontext()


class Tracer:
    """The spans of one worker.

    Args:
        worker: Index of the worker.
        num_steps: How many steps are traced; 0 for none.

    Attributes:
        step: Number of the step under way, counted from 1 over traced steps; 0 if it is not traced.
    """

    def __init__(self, worker: int = 0, num_steps: int = 0) -> None:
        self.step = 0
        self._worker, self._num_steps = worker, num_steps
        self._num_begun = -1  # the first step does not count
        self._spans = SpanBuffer()
        self._received = SpansReceived()
        self._round_trip: RoundTrip | None = None
        self._all_received = False

    @property
    def active(self) -> bool:
        """Whether any step is to be traced."""
        return self._num_steps > 0

    def steps(self) -> AbstractContextManager[None]:
        """Measures one step of the training loop."""
        return self._next_step() if self.active and self._num_begun <= self._num_steps + 1 else _UNTRACED

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Measures a phase of the step under way: `input`, `compute` or `wait`."""
        return self._measured(name, self.step) if self.step else _UNTRACED

    def call(self, name: str, step: int, shard: int) -> AbstractContextManager[None]:
        """Measures a `push` to a shard or a `pull` from it; `step`: of this tracer when the exchange was begun."""
        return self._measured(name, step, shard) if step else _UNTRACED

    def joined(self, step: int, shard: int, begin_s: float, pushed_s: float) -> None:
        """Adds a push and the pull in the same call, which has just ended; moments of `time.monotonic()`."""
        if step:
            self._add("push", step, begin_s, pushed_s, shard)
            self._add("pull", step, pushed_s, time.monotonic(), shard)

    def end(self) -> None:
        """No step follows."""
        self._num_begun = self._num_steps + 2

    @property
    def num_waiting(self) -> int:
        """Number of spans that the chief lacks."""
        return self._spans.num_after(self._received)

    def write(self, report: WorkerReport) -> None:
        """Puts spans that the chief lacks into a report."""
        if not self.active or self._all_received:
            return
        # An exchange may last until the end of the step after its own, and no longer.
        ended = self._num_begun >= self._num_steps + 2
        report.trace.CopyFrom(self._spans.after(self._received))
        report.trace.complete = ended and self.num_waiting <= len(report.trace.spans)
        if self._round_trip is not None:
            report.trace.round_trip.CopyFrom(self._round_trip)

    def answered(self, report: WorkerReport, reply: ReportReply, asked_s: float) -> None:
        """Notes which spans the chief has, and the times of a report that was sent at `asked_s`."""
        if report.HasField("trace") and reply.HasField("trace_received"):
            self._received, self._all_received = reply.trace_received, report.trace.complete
            self._round_trip = RoundTrip(
                asked_seconds=asked_s,
                received_seconds=reply.received_seconds,
                replied_seconds=reply.replied_seconds,
                answered_seconds=time.monotonic(),
            )

    @contextlib.contextmanager
    def _next_step(self) -> Iterator[None]:
        self._num_begun += 1
        if not 0 < self._num_begun <= self._num_steps:
            yield
            return
        self.step = self._num_begun
        try:
            with self._measured("step", self.step):
                yield
        finally:
            self.step = 0

    @contextlib.contextmanager
    def _measured(self, name: str, step: int, shard: int | None = None) -> Iterator[None]:
        begin_s = time.monotonic()
        try:
            yield
        finally:
            self._add(name, step, begin_s, time.monotonic(), shard)

    def _add(self, name: str, step: int, begin_s: float, end_s: float, shard: int | None) -> None:
        track = LOOP if shard is None else f"shard {shard}"
        span = Span(name=name, track=track, begin_seconds=begin_s, end_seconds=end_s, worker=self._worker, step=step)
        if shard is not None:
            span.shard = shard
        self._spans.add(span)
