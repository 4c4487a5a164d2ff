"""Reads a trace as Perfetto does, and checks what every trace of Downpour must hold."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Event = dict[str, Any]

LOOP = ["input", "compute", "wait"]
WORKER_CALLS = {"push", "pull"}
PUSH, PULL = {"push", "queue", "receive", "apply"}, {"pull", "pace", "queue", "send"}


@dataclass
class Trace:
    """A trace, by the names that a viewer shows.

    Attributes:
        about: Its metadata.
        spans: Complete events by process and thread, by time; each has "end".
        flows: Pairs of the two ends of arrows, each (process, thread, event).
    """

    about: Event
    spans: dict[str, dict[str, list[Event]]]
    flows: list[tuple[tuple[str, str, Event], tuple[str, str, Event]]]

    def error_us(self, *processes: str) -> float:
        """By how much moments of processes may be wrong against each other, and a nanosecond of rounding."""
        return 1e6 * sum(self.about["processes"][name]["error_s"] for name in processes) + 0.002

    def named(self, process: str, name: str) -> list[Event]:
        """Spans of a process by their name."""
        return [span for spans in self.spans[process].values() for span in spans if span["name"] == name]


def read(path: Path) -> Trace:
    """Reads a file; fails for what is not in the format's JSON object form."""
    found = json.loads(path.read_text(), parse_constant=_refuse)
    assert isinstance(found["traceEvents"], list) and found["displayTimeUnit"] in ("ms", "ns")
    names: dict[tuple[int, int | None], str] = {}
    by_phase = defaultdict[str, list[Event]](list)
    for event in found["traceEvents"]:
        by_phase[event["ph"]].append(event)
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int) and isinstance(event["name"], str)
        if event["name"] == "process_name":
            names[event["pid"], None] = event["args"]["name"]
        if event["name"] == "thread_name":
            names[event["pid"], event["tid"]] = event["args"]["name"]
    assert set(by_phase) <= {"M", "X", "s", "f"}
    spans: dict[str, dict[str, list[Event]]] = defaultdict(lambda: defaultdict(list))

    def place(event: Event) -> tuple[str, str]:
        return names[event["pid"], None], names[event["pid"], event["tid"]]

    for event in sorted(by_phase["X"], key=lambda event: (event["ts"], -event["dur"])):
        assert event["ts"] >= 0 and event["dur"] >= 0
        process, thread = place(event)
        spans[process][thread].append(event | {"end": event["ts"] + event["dur"]})
    ends = {event["id"]: event for event in by_phase["f"]}
    assert len(ends) == len(by_phase["f"]) == len(by_phase["s"])
    flows = [((*place(begin), begin), (*place(ends[begin["id"]]), ends[begin["id"]])) for begin in by_phase["s"]]
    return Trace(found["otherData"], spans, flows)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def check(trace: Trace, *, num_workers: int, num_shards: int, num_steps: int, overlap: bool = False) -> None:
    """Checks that every process has every phase of every step, in order, nested, and on one clock."""
    workers, shards = (
        [f"{name} {i}" for i in range(n)] for name, n in (("worker", num_workers), ("shard", num_shards))
    )
    assert list(trace.spans) and set(trace.spans) == {*workers, *shards}
    assert not any(process["num_missing"] for process in trace.about["processes"].values())
    for process in trace.spans.values():
        for spans in process.values():
            check_nested(spans)
    for worker in workers:
        _check_worker(trace, worker, num_shards, num_steps, overlap=overlap)
    for shard in shards:
        for i in range(num_workers):
            tracks = trace.spans[shard]
            for kind, phases in (("push", PUSH), ("pull", PULL)):
                found = tracks[f"{kind} of worker {i}"]
                assert {span["name"] for span in found} == phases
                assert sorted(span["args"]["step"] for span in found if span["name"] == kind)[-1] == num_steps
                assert {span["args"]["worker"] for span in found} == {i}
    _check_pushes(trace, workers, shards, num_steps)


def check_nested(spans: list[Event]) -> None:
    """Checks that spans of a thread, by time, are nested or apart: else no viewer can draw them in one row."""
    open_until: list[float] = []
    for span in spans:
        while open_until and open_until[-1] <= span["ts"] + 0.002:
            open_until.pop()
        assert not open_until or span["end"] <= open_until[-1] + 0.002, span
        open_until.append(span["end"])


def _check_worker(trace: Trace, worker: str, num_shards: int, num_steps: int, *, overlap: bool) -> None:
    loop = trace.spans[worker]["loop"]
    steps = [span for span in loop if span["name"] == "step"]
    assert [span["args"]["step"] for span in steps] == list(range(1, num_steps + 1))
    for step in steps:
        phases = [span for span in loop if span["args"] == step["args"] and span is not step]
        assert [span["name"] for span in phases] == LOOP
        assert step["ts"] <= phases[0]["ts"] and phases[-1]["end"] <= step["end"] + 0.002
        wait = phases[-1]
        for shard in range(num_shards):
            calls = [
                span
                for span in trace.spans[worker][f"shard {shard}"]
                if span["args"]["step"] == step["args"]["step"] and span["args"]["shard"] == shard
            ]
            assert {span["name"] for span in calls} == WORKER_CALLS
            if not overlap:
                assert [span["name"] for span in calls] == ["push", "pull"]
                assert all(wait["ts"] - 0.002 <= span["ts"] and span["end"] <= wait["end"] + 0.002 for span in calls)


def _check_pushes(trace: Trace, workers: list[str], shards: list[str], num_steps: int) -> None:
    """Checks that a shard has served every push while the worker made it, and that an arrow leads from one to other."""
    for worker in workers:
        for push in trace.named(worker, "push"):
            args, shard = push["args"], shards[push["args"]["shard"]]
            served = [
                span
                for span in trace.spans[shard][f"push of worker {args['worker']}"]
                if span["args"]["step"] == args["step"]
            ]
            error_us = trace.error_us(worker, shard)
            assert served and served[0]["name"] == "push" and served[1]["name"] == "queue"
            for span in served:
                assert push["ts"] - error_us <= span["ts"] and span["end"] <= push["end"] + error_us
    assert len(trace.flows) == len(workers) * len(shards) * num_steps
    for (worker, track, begin), (shard, there, end) in trace.flows:
        assert track == shard and there == f"push of {worker}"
        assert any(begin["ts"] == span["ts"] for span in trace.named(worker, "push"))
        assert any(end["ts"] == span["ts"] for span in trace.named(shard, "receive")) and end["bp"] == "e"
