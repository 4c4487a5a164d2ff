"""A trace in the format of Chrome's trace viewer, which Perfetto reads, too. Pure.

Format: "Trace Event Format", the JSON object form: complete events (X), metadata events (M), and flow events (s, f)
from a worker's push to its receipt by the shard. Times are microseconds from the first span on, by the chief's clock.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from downpour.proto.trace_pb2 import Span
from downpour.worker.chief.traces import Offset, ProcessTrace

Event = dict[str, Any]

_NAMES = {"ps": "shard"}
_CLOCK = (
    "Every process measured by its own clock; all are shown by the chief's. The offset of a process's clock is that of "
    "the round trip with the smallest delay, and may be wrong by error_s either way."
)


def chrome_trace(processes: Sequence[ProcessTrace], about: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the trace, to be written as JSON.

    Args:
        processes: Those whose clock was never compared are left out, and named in the metadata.
        about: What else the metadata say.
    """
    timed = [(process, process.clock) for process in processes if process.clock is not None and process.spans]
    begin_s = min((_begin_s(span, clock) for process, clock in timed for span in process.spans), default=0.0)
    first_tid = len(timed) + 1  # a thread with its process's number is the main one to Perfetto, and comes first
    drawn = [_Drawn(pid, first_tid, process, clock, begin_s) for pid, (process, clock) in enumerate(timed, 1)]
    events = list(itertools.chain.from_iterable(one.events() for one in drawn))
    more = {"clock": _CLOCK, "first_span_s": begin_s, "processes": {one.name: one.about() for one in drawn}}
    if left_out := [_name(process) for process in processes if process.clock is None]:
        more["without_a_clock"] = left_out
    return {"displayTimeUnit": "ms", "otherData": {**about, **more}, "traceEvents": [*events, *_flows(drawn)]}


class _Drawn:
    """One process of the trace."""

    def __init__(self, pid: int, first_tid: int, process: ProcessTrace, clock: Offset, begin_s: float) -> None:
        self.pid, self.process, self.clock = pid, process, clock
        self.name = _name(process)
        self._shift_s = clock.seconds - begin_s
        tracks = sorted({span.track for span in process.spans}, key=_order)
        self._tids = {track: tid for tid, track in enumerate(tracks, first_tid)}

    def at(self, span: Span) -> tuple[float, float]:
        """When a span began and ended, in microseconds."""
        return self._us(span.begin_seconds), self._us(span.end_seconds)

    def on(self, span: Span) -> Event:
        """Where a span is drawn."""
        return {"pid": self.pid, "tid": self._tids[span.track]}

    def events(self) -> Iterator[Event]:
        """Names, then spans."""
        yield self._named("process_name", {"name": self.name})
        yield self._named("process_sort_index", {"sort_index": self.pid})
        yield self._named("process_labels", {"labels": f"clock within {1e3 * self.clock.error_s:.3f} ms"})
        for track, tid in self._tids.items():
            yield self._named("thread_name", {"name": track}, tid)
            yield self._named("thread_sort_index", {"sort_index": tid}, tid)
        for span in self.process.spans:
            begin, end = self.at(span)
            told: Event = {"worker": span.worker, "step": span.step}
            if span.HasField("shard"):
                told["shard"] = span.shard
            yield {
                "ph": "X",
                "name": span.name,
                "cat": self.process.role,
                "ts": begin,
                "dur": round(end - begin, 3),
                **self.on(span),
                "args": told,
            }

    def about(self) -> dict[str, Any]:
        """Its part of the metadata."""
        spans, missing = len(self.process.spans), self.process.missing
        return {
            "offset_s": self.clock.seconds,
            "error_s": self.clock.error_s,
            "num_spans": spans,
            "num_missing": missing,
        }

    def _named(self, what: str, value: Event, tid: int = 0) -> Event:
        return {"ph": "M", "name": what, "pid": self.pid, "tid": tid, "args": value}

    def _us(self, moment_s: float) -> float:
        return round(1e6 * (moment_s + self._shift_s), 3)


def _flows(drawn: Sequence[_Drawn]) -> Iterator[Event]:
    """Arrows from every push of a worker to the first receipt of it by the shard."""
    receipts: dict[tuple[int, int, int], list[tuple[_Drawn, Span]]] = {}  # by shard, worker and step
    for one in drawn:
        for span in one.process.spans if one.process.role == "ps" else ():
            if span.name == "receive":
                receipts.setdefault((one.process.index, span.worker, span.step), []).append((one, span))
    numbers = itertools.count(1)
    for one in drawn:
        for span in one.process.spans if one.process.role == "worker" else ():
            if span.name != "push":
                continue
            begin, end = one.at(span)
            found = receipts.get((span.shard, span.worker, span.step), [])
            # A worker that was started again numbers its steps from 1 again: those of another time are left out.
            within = []
            for there, receipt in found:
                error = 1e6 * (one.clock.error_s + there.clock.error_s)
                if begin - error <= there.at(receipt)[1] <= end + error:
                    within.append((there, receipt))
            if within:
                there, receipt = min(within, key=lambda pair: pair[1].begin_seconds)
                flow = {"name": "push", "cat": "push", "id": next(numbers)}
                yield {"ph": "s", **flow, "ts": begin, **one.on(span)}
                yield {"ph": "f", "bp": "e", **flow, "ts": there.at(receipt)[0], **there.on(receipt)}


def _name(process: ProcessTrace) -> str:
    return f"{_NAMES.get(process.role, process.role)} {process.index}"


def _begin_s(span: Span, clock: Offset) -> float:
    return span.begin_seconds + clock.seconds


def _order(track: str) -> tuple[bool, str, int]:
    """The training loop first; then by words, and by number."""
    words, _, number = track.rpartition(" ")
    return track != "loop", words, int(number) if number.isdecimal() else 0
