"""What every system is measured by: steps, CPU, memory and bytes, in one window common to all its workers.

A worker is `ready` when it could take its next step at once. All then start at one moment (`CLOCK_MONOTONIC` is the
same in every process), warm up, and go on until their first step that ends after the window, so that the window sees
nothing but steady work. A step that crosses an edge of the window counts for the part of its time that lies inside.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field

import numpy as np
import psutil

from downpour.launch.local.memory import PeakMemory
from tests.benchmarks.processes import Child

READY = "ready"
READY_TIMEOUT_S = 300.0
_START_DELAY_S = 0.5
_MB, _MIB = 1e6, float(1 << 20)


@dataclass(frozen=True)
class Window:
    """Moments of `time.monotonic()`: when workers start, when counting begins and ends."""

    start: float
    begin: float
    end: float


@dataclass
class Steps:
    """What one worker did: `ends[0]` is when it started, `ends[i]` when its step i ended.

    Attributes:
        ends: [steps + 1], moments of `time.monotonic()`.
        push_s: [steps], seconds of each step's push.
        pull_s: [steps], seconds of each step's pull.
        pushes: Pushes acknowledged in the whole life of the worker.
    """

    ends: list[float]
    push_s: list[float] = field(default_factory=list)
    pull_s: list[float] = field(default_factory=list)
    pushes: int = 0

    def between(self, begin: float, end: float) -> float:
        """Steps in a span of time, parts of steps included."""
        at = np.interp([begin, end], self.ends, np.arange(len(self.ends)))
        return float(at[1] - at[0])

    def ended_between(self, begin: float, end: float, values: Sequence[float]) -> list[float]:
        """Of one value a step, those of the steps that ended in a span of time."""
        return [value for moment, value in zip(self.ends[1:], values, strict=True) if begin <= moment < end]


@dataclass(frozen=True)
class Measurement:
    """What one system did in one window. MB are 10^6 bytes of traffic and 2^20 bytes of memory.

    Attributes:
        steps_per_second: Global: a worker's pull, push and update of everything is one step.
        mb_per_step: Bytes through the shards' sockets, both ways.
        mb_sent_per_step: Of these, what shards sent.
        shard_core_ms: CPU milliseconds a step, all shards together.
        worker_core_ms: CPU milliseconds a step, all worker processes together.
        shard_pss_mb: Sum over the shards of memory, where what several share counts once.
        shard_rss_mb: Sum over the shards of their peak resident memory.
        push_ms: Median and 99th percentile of a worker's push to all shards.
        pull_ms: The same of its pull.
        pushes: Acknowledged in the whole run, warm-up included.
    """

    steps_per_second: float
    mb_per_step: float
    mb_sent_per_step: float
    shard_core_ms: float
    worker_core_ms: float
    shard_pss_mb: float
    shard_rss_mb: float
    push_ms: tuple[float, float]
    pull_ms: tuple[float, float]
    pushes: int

    def row(self) -> str:
        """One line under `HEADING`."""
        return (
            f"{self.steps_per_second:7.2f} {self.mb_per_step:7.0f} {self.shard_core_ms:8.0f} "
            f"{self.worker_core_ms:8.0f} {self.shard_pss_mb:8.0f} {self.shard_rss_mb:8.0f} "
            f"{self.push_ms[0]:6.0f}/{self.push_ms[1]:6.0f} {self.pull_ms[0]:6.0f}/{self.pull_ms[1]:6.0f}"
        )


HEADING = (
    f"{'steps/s':>7} {'MB/step':>7} {'ps ms/st':>8} {'wk ms/st':>8} {'ps PSS':>8} {'ps RSS':>8} "
    f"{'push p50/p99':>13} {'pull p50/p99':>13}"
)


def take_steps(step: Callable[[], tuple[float, float]], window: Window) -> Steps:
    """A worker's side: takes steps from the start until one ends after the window.

    Args:
        step: Takes one step; returns the seconds of its push and of its pull.
        window: The common times.
    """
    time.sleep(max(0.0, window.start - time.monotonic()))
    steps = Steps([time.monotonic()])
    while steps.ends[-1] < window.end:
        push_s, pull_s = step()
        steps.ends.append(time.monotonic())
        steps.push_s.append(push_s)
        steps.pull_s.append(pull_s)
    return steps


def wait_for_window() -> Window:
    """Says that this process is ready, and waits for the times."""
    print(READY, flush=True)
    return Window(**json.loads(sys.stdin.readline()))


def write_result(steps: Sequence[Steps]) -> None:
    """Writes the steps of every worker of this process, then waits until its sockets may be closed.

    What went through them is counted until then.
    """
    print(json.dumps([asdict(one) for one in steps]), flush=True)
    sys.stdin.readline()


def measure(
    shards: Sequence[Child],
    workers: Sequence[Child],
    *,
    warmup_s: float,
    seconds: float,
    namespaces: Sequence[Sequence[str]] = ((),),
    watch: AbstractContextManager[object] | None = None,
) -> tuple[Measurement, list[Steps]]:
    """Lets all workers go and measures.

    Args:
        shards: The parameter servers.
        workers: Processes that will say `ready`.
        warmup_s: Seconds of work before the window.
        seconds: Length of the window.
        namespaces: Commands to put before another to run it in each network namespace with shards.
        watch: Entered as the window begins, left as it ends.

    Raises:
        ValueError: A process failed.
    """
    for worker in workers:
        if (line := worker.read(READY_TIMEOUT_S)) != READY:
            raise ValueError(f"{worker.name} said {line[:80]!r} instead of {READY!r}")
    bytes_before = wire_bytes(shards, namespaces)
    start = time.monotonic() + _START_DELAY_S
    window = Window(start, start + warmup_s, start + warmup_s + seconds)
    for worker in workers:
        worker.write(json.dumps(asdict(window)))
    _sleep_until(window.begin)
    with watch or nullcontext():
        before, workers_before, begin = _cpu_s(shards), _cpu_s(workers), time.monotonic()
        _sleep_until(window.end)
        after, workers_after, end = _cpu_s(shards), _cpu_s(workers), time.monotonic()
    memory = PeakMemory()
    memory.sample({shard.name: shard.pid for shard in shards})
    steps = [Steps(**one) for worker in workers for one in json.loads(worker.read(READY_TIMEOUT_S + seconds))]
    bytes_after = wire_bytes(shards, namespaces)  # of whole steps, the warm-up's and the last ones included
    for worker in workers:
        worker.write("end")
    mb_sent, mb_received = (
        (now - then) / sum(len(one.push_s) for one in steps) / _MB
        for then, now in zip(bytes_before, bytes_after, strict=True)
    )
    # The snapshots take a moment each; so count the steps between them, not between the edges that were planned.
    num_steps = sum(one.between(begin, end) for one in steps)
    measurement = Measurement(
        steps_per_second=num_steps / (end - begin),
        mb_per_step=mb_sent + mb_received,
        mb_sent_per_step=mb_sent,
        shard_core_ms=1000 * (after - before) / num_steps,
        worker_core_ms=1000 * (workers_after - workers_before) / num_steps,
        shard_pss_mb=sum(memory.pss.values()) / _MIB,
        shard_rss_mb=sum(memory.rss.values()) / _MIB,
        push_ms=_percentiles_ms([s for one in steps for s in one.ended_between(begin, end, one.push_s)]),
        pull_ms=_percentiles_ms([s for one in steps for s in one.ended_between(begin, end, one.pull_s)]),
        pushes=sum(one.pushes for one in steps),
    )
    return measurement, steps


def wire_bytes(processes: Sequence[Child], namespaces: Sequence[Sequence[str]] = ((),)) -> tuple[int, int]:
    """Bytes that the TCP sockets of some processes have sent, and received, by the kernel's count; 0 without `ss`."""
    pids = {child.pid for child in processes}
    sent, received = 0, 0
    for prefix in namespaces if shutil.which("ss") else ():
        command = [*prefix, "ss", "-tinpOH", "state", "established"]
        for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
            if pids & {int(pid) for pid in re.findall(r"pid=(\d+)", line)}:
                sent += sum(int(number) for number in re.findall(r"bytes_sent:(\d+)", line))
                received += sum(int(number) for number in re.findall(r"bytes_received:(\d+)", line))
    return sent, received


def median(measurements: Sequence[Measurement], name: str) -> float:
    """The median of one field."""
    return float(np.median([getattr(one, name) for one in measurements]))


def as_json(measurement: Measurement, **more: object) -> dict[str, object]:
    """A measurement with its numbers rounded, for a RESULT line."""

    def short(value: object) -> object:
        return round(value, 3) if isinstance(value, float) else value

    values: Mapping[str, object] = asdict(measurement)
    return dict(more) | {
        name: [short(v) for v in value] if isinstance(value, tuple) else short(value) for name, value in values.items()
    }


def _percentiles_ms(seconds: Sequence[float]) -> tuple[float, float]:
    if not seconds:
        return float("nan"), float("nan")
    low, high = np.percentile(seconds, [50, 99])
    return 1000 * float(low), 1000 * float(high)


def _cpu_s(processes: Sequence[Child]) -> float:
    times = [psutil.Process(child.pid).cpu_times() for child in processes]
    return float(sum(t.user + t.system for t in times))


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
