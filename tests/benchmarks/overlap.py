"""What `exchange.overlap` brings where a line is thin, and whether `auto` finds it.

    python -m tests.benchmarks.overlap [--cases=2M@0.5s,8M@0.3s] [--rate_mbit=1000] [--seconds=30]

Two shards in one host, two workers in another (network namespaces, `tests.benchmarks.hosts`), a real chief beside the
workers. A worker computes by sleeping; its exchange and its loop are the real ones. For each setting (parameters and
seconds of computing), steps a second of both workers and mean staleness with overlap off, on, and decided by the chief,
of which the first 120 seconds, in which it decides, do not count. The last line is `RESULT {json}`.

Needs root and `ip` and `tc` (Debian: iproute2); without them it says so and ends with exit code 0.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from downpour.launch.local.scratch import scratch_folder
from downpour.launch.roles import entry
from downpour.model.data.order import Lease
from downpour.model.vision.records import RecordCounts
from downpour.proto import codec
from downpour.ps.layout import Layout, Variable, lay_out
from downpour.ps.policy.pace import Async
from downpour.ps.policy.rules import SGD
from downpour.ps.policy.schedules import Constant
from downpour.ps.policy.staleness import Keep
from downpour.worker.chief.chief import Chief
from downpour.worker.chief.settings import JobSettings
from downpour.worker.exchange.clients import ChiefClient
from downpour.worker.exchange.exchange import Exchanger, Gradients, Parameters
from downpour.worker.loop import train
from downpour.worker.reporter import Reporter
from tests.benchmarks import cluster
from tests.benchmarks.hosts import network, obstacle
from tests.benchmarks.processes import Processes

_CASES = flags.DEFINE_list(
    "cases", ["2M@0.5s", "2M@0.1s", "8M@0.3s", "8M@2s", "0.2M@0.5s"], "Parameters and seconds of computing, of each."
)
_RATE = flags.DEFINE_float("rate_mbit", 1000.0, "Line rate of a host, each way, in 10^6 bits a second.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 30.0, "Seconds measured.", lower_bound=1)
_CHILD = flags.DEFINE_string("child", "", "Not for people: what a process of workers runs, as JSON.")

_NUM_SHARDS, _NUM_WORKERS = 2, 2
_WARM_UP_S = {"off": 8.0, "on": 8.0, "auto": 120.0}
_GIVE_UP_S = 60.0


@dataclass(frozen=True)
class _Result:
    """As `StepResult`, without TensorFlow."""

    loss: float
    gradients: Gradients
    gradient_norm: float = 1.0
    is_finite: bool = True
    loss_scale: float | None = None


class _Batches:
    counts = RecordCounts()

    def __init__(self, leases: Iterator[Lease]) -> None:
        self.position = 0
        self._positions = (position for lease in leases for position in range(lease.start, lease.stop))

    def __next__(self) -> tuple[list[int], None]:
        self.position += 1
        return [next(self._positions)], None


def _layout(size: int) -> Layout:
    return lay_out([Variable(f"w{i}", (size // _NUM_SHARDS,)) for i in range(_NUM_SHARDS)], _NUM_SHARDS)


def _settings(folder: Path, mode: str) -> JobSettings:
    return JobSettings(
        recipe="overlap", rule=SGD(), schedule=Constant(1e-6), pace=Async(), treatment=Keep(), num_workers=_NUM_WORKERS,
        lease_s=30, num_steps=1 << 40, checkpoint_every_steps=1 << 40, max_train_s=math.inf, num_records=1 << 20,
        lease_records=64, facts={}, checkpoint_dir=str(folder / "checkpoints"), chooses_overlap=mode == "auto",
    )  # fmt: skip


def _child(size: int, compute_s: float, mode: str, addresses: list[str], folder: str, seconds: float) -> None:
    """Chief and workers of one measurement; prints its result as one line of JSON."""
    layout, run_dir = _layout(size), Path(folder)
    run_dir.mkdir()
    chief = Chief(_settings(run_dir, mode), run_dir, host="127.0.0.1", port=0)
    pool = ThreadPoolExecutor(1 + _NUM_WORKERS)
    values = [np.zeros(v.shape, np.float32) for v in layout.variables]
    pool.submit(chief.run, layout, addresses, lambda: values, _GIVE_UP_S)
    gradient = [np.full(layout.num_trained(i), 0x3C00, np.uint16) for i in range(_NUM_SHARDS)]  # small, in bfloat16
    none = [np.zeros(0, np.float32)] * _NUM_SHARDS

    def step(parameters: Parameters, *batch: Any) -> _Result:
        time.sleep(compute_s)
        return _Result(1.0, Gradients(gradient, none, list(parameters.versions)))

    def work(index: int) -> None:
        client = ChiefClient(f"127.0.0.1:{chief.port}", _GIVE_UP_S)
        reporter = Reporter(client, index, layout.fingerprint)
        exchange = Exchanger(
            addresses, layout, wire=codec.BFLOAT16, worker=index, incarnation=reporter.incarnation,
            give_up_after_s=_GIVE_UP_S, job_id=reporter.job_id, joined=True,
        )  # fmt: skip
        exchange.connect()
        batches, overlap = _Batches(reporter.leases()), None if mode == "auto" else mode == "on"
        train(step, exchange, batches, reporter, num_steps=1 << 40, overlap=overlap)  # type: ignore[arg-type]

    for index in range(_NUM_WORKERS):
        pool.submit(work, index).add_done_callback(lambda done: print(done.exception(), file=sys.stderr))
    reports = chief._state.coordinator.reports
    time.sleep(_WARM_UP_S[mode])
    begin, before, stale = time.monotonic(), reports.total(lambda r: r.steps), reports.total(lambda r: r.staleness_sum)
    time.sleep(seconds)
    steps, now = reports.total(lambda r: r.steps) - before, time.monotonic()
    found = {
        "steps_per_second": round(steps / (now - begin), 3),
        "staleness": round((reports.total(lambda r: r.staleness_sum) - stale) / max(steps, 1), 2),
        "overlaps": chief._state.overlap.chosen if mode == "auto" else mode == "on",
    }
    print(json.dumps(found), flush=True)
    os._exit(0)  # its threads train without end


def _measure(size: int, compute_s: float, mode: str) -> dict[str, Any]:
    with network(1, 1, _RATE.value) as hosts, scratch_folder() as scratch, Processes(scratch) as processes:
        load = cluster.Load(num_shards=_NUM_SHARDS, shard_hosts=hosts.shards, worker_hosts=hosts.workers)
        _, addresses = cluster.start_shards(processes, scratch, load)
        what = {
            "size": size,
            "compute_s": compute_s,
            "mode": mode,
            "addresses": addresses,
            "folder": str(scratch / "r"),
        }
        command = [sys.executable, "-m", "tests.benchmarks.overlap", f"--die_with_parent={os.getpid()}"]
        flag = f"--child={json.dumps(what | {'seconds': _SECONDS.value})}"
        child = processes.start("workers", [*hosts.workers[0].prefix, *command, flag])
        return dict(json.loads(child.read(_WARM_UP_S[mode] + _SECONDS.value + 60.0)))


def _parsed(setting: str) -> tuple[int, float]:
    size, _, seconds = setting.partition("@")
    try:
        return int(float(size.removesuffix("M")) * 1e6), float(seconds.removesuffix("s"))
    except ValueError:
        raise ValueError(f"--cases: {setting!r}; give parameters and seconds, such as 2M@0.5s") from None


def _main() -> None:
    if _CHILD.value:
        _child(**json.loads(_CHILD.value))
    settings = {setting: _parsed(setting) for setting in _CASES.value}
    reason = obstacle()
    if reason:
        print(f"skipped: {reason}")
        return
    print(f"{'setting':<12} {'off':>16} {'on':>16} {'auto':>16} {'auto overlaps':>14} {'of the better':>14}")
    result = {}
    for name, (size, compute_s) in settings.items():
        found = {mode: _measure(size, compute_s, mode) for mode in ("off", "on", "auto")}
        cells = (f"{one['steps_per_second']:.2f} ({one['staleness']:.2f})" for one in found.values())
        better = max(found[mode]["steps_per_second"] for mode in ("off", "on"))
        share = found["auto"]["steps_per_second"] / better
        print(f"{name:<12} {' '.join(f'{cell:>16}' for cell in cells)} {found['auto']['overlaps']!s:>14} {share:14.3f}")
        result[name] = found | {"of_the_better": round(share, 3)}
    print(f"RESULT {json.dumps(result)}", flush=True)


def main() -> None:
    """See the module."""
    entry.run(_main, role="overlap")


if __name__ == "__main__":
    main()
