"""Phases of the calls that a shard serves, kept as spans where the worker says that its step is traced.

Threads: each call is measured by the thread that serves it.
"""

from __future__ import annotations

from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.spans import SpanBuffer
from downpour.proto.trace_pb2 import Span

_MOST_PHASES = 256  # of one call; those after it are only part of the call's own span


class CallPhases:
    """The phases of one push or pull: each begins where the one before has ended.

    Nothing is measured of a call whose step is not traced, once that is known.

    Args:
        spans: Takes the spans, if the call is of a traced step.
        call: The call; None while a push has not named itself.
    """

    def __init__(self, spans: SpanBuffer, call: pb.PushHeader | pb.PullRequest | None = None) -> None:
        self._spans = spans
        self._begun_s = spans.clock()
        self._ends: list[tuple[str, float]] = []
        self._room = _MOST_PHASES
        if call is not None:
            self.of(call)

    def of(self, call: pb.PushHeader | pb.PullRequest) -> None:
        """Says which call it is."""
        self._call = call
        if not call.traced_step:
            self._room = 0

    def end(self, phase: str) -> None:
        """Ends a phase: `queue`, `receive`, `apply`, `pace` or `send`."""
        if self._room:
            self._room -= 1
            self._ends.append((phase, self._spans.clock()))

    def keep(self) -> None:
        """Called at the end of the call: keeps its spans if its step is traced."""
        call = self._call
        if not call.traced_step:
            return
        name = "push" if isinstance(call, pb.PushHeader) else "pull"
        begun_s, ended_s = self._begun_s, self._spans.clock()
        spans = [self._span(call, name, name, begun_s, ended_s)]
        for phase, end_s in self._ends:
            spans.append(self._span(call, name, phase, begun_s, end_s))
            begun_s = end_s
        self._spans.add(*spans)

    def _span(self, call: pb.PushHeader | pb.PullRequest, track: str, name: str, begin_s: float, end_s: float) -> Span:
        return Span(
            name=name,
            track=f"{track} of worker {call.worker}",
            begin_seconds=begin_s,
            end_seconds=end_s,
            worker=call.worker,
            step=call.traced_step,
        )
