"""A whole fleet as hosts of its own: 17 shards and 50 workers in 67 network namespaces, against its prediction.

    python -m tests.benchmarks.fleet [--rates_mbit=1000,100] [--workers=50] [--compute_s=5]

Every shard and every worker has an address and a line of its own (`tests.benchmarks.hosts`). Shards are started as
production starts them; workers are emulated: they sleep in place of computing, and exchange for real. A few workers
measure first what a step costs; `downpour.launch.planning.queueing` predicts from that, from the lines and from the
layout's bytes what the whole fleet will do. Then it runs, once for each line rate.

All 67 hosts share this machine's cores, and the prediction knows that: where the cores are the limit, it says so, and a
slower line makes the network the limit. A second prediction takes the costs that the whole fleet turned out to have: it
says whether the queues are right where the costs are not.

Needs root, `ip` and `tc`; without them it says so and ends with exit code 0. The last line is `RESULT {json}`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from absl import flags

from downpour.launch.job import recipe
from downpour.launch.local.memory import PeakMemory
from downpour.launch.planning import demand, queueing
from downpour.launch.planning.fleet import CallCosts, Fleet
from downpour.launch.planning.queueing import Prediction
from downpour.launch.roles import entry
from downpour.ps.layout import Layout
from downpour.worker.exchange.clients import ShardClient
from tests.benchmarks import cluster, shape
from tests.benchmarks.hosts import network, obstacle
from tests.benchmarks.measure import Measurement, as_json
from tests.benchmarks.modes import MODES, Mode
from tests.benchmarks.processes import Child

_MODE = flags.DEFINE_enum("mode", "exact", list(MODES), "How to exchange.")
_RATES = flags.DEFINE_list("rates_mbit", ["1000", "100"], "Line rates of a host, each way, in 10^6 bits a second.")
_VARIABLES = flags.DEFINE_string("variables", str(shape.PAPER), "File that lists the model's variables.")
_SHARDS = flags.DEFINE_integer("shards", 17, "Shards.", lower_bound=1, upper_bound=100)
_WORKERS = flags.DEFINE_integer("workers", 50, "Workers.", lower_bound=1, upper_bound=100)
_COMPUTE = flags.DEFINE_float("compute_s", 5.0, "Seconds that a worker sleeps in place of computing.", lower_bound=0)
_FEW = flags.DEFINE_integer("few", 4, "Workers that measure what a step costs.", lower_bound=1)
_WARMUP = flags.DEFINE_float("warmup_cycles", 3.0, "Predicted steps of every worker before the window.", lower_bound=0)
_CYCLES = flags.DEFINE_float("cycles", 4.0, "Predicted steps of every worker in the window.", lower_bound=0.1)
_FEW_SECONDS = flags.DEFINE_float("few_seconds", 15.0, "Length of the few's window.", lower_bound=0.1)

_FAST_MBIT = 10_000.0  # the line of the few
# Emulated workers sleep for 0.9 to 1.1 times what they should, evenly: this deviation from the mean.
_SPREAD = 0.1 / 3**0.5
_FEW_WARMUP_S, _TIMEOUT_S = 3.0, 60.0
_PROCESS_BYTES = 140 << 20  # of interpreter, gRPC and messages in flight
_GIB, _MIB = float(1 << 30), float(1 << 20)


class Seen:
    """What the shards counted, and the memory in use, between begin and end of a window."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.staleness = np.zeros(queueing.BUCKETS, np.int64)
        self.memory_gib = self.worker_mib = 0.0

    @contextmanager
    def watching(self, shards: Sequence[Child], workers: Sequence[Child], addresses: Sequence[str]) -> Iterator[None]:
        """For `cluster.run`."""
        clients = [ShardClient(i, address, self._layout, _TIMEOUT_S) for i, address in enumerate(addresses)]
        before = self._histogram(clients)
        yield
        self.staleness = self._histogram(clients) - before
        self.memory_gib = (psutil.virtual_memory().total - psutil.virtual_memory().available) / _GIB
        memory = PeakMemory()
        memory.sample({worker.name: worker.pid for worker in workers})
        self.worker_mib = sum(memory.pss.values()) / len(workers) / _MIB
        for client in clients:
            client.close()

    def _histogram(self, clients: Sequence[ShardClient]) -> np.ndarray:
        return np.sum([client.status().staleness_histogram for client in clients], axis=0)


def run_workers(
    mode: Mode, rate_mbit: float, num_workers: int, compute_s: float, warmup_s: float, seconds: float
) -> tuple[Measurement, Seen]:
    """Runs some workers, each on its own host."""
    seen = Seen(_layout(mode))
    with network(_SHARDS.value, num_workers, rate_mbit) as hosts:
        load = cluster.Load(
            codec=mode.codec,
            push=mode.push,
            pull=mode.pull,
            factored=mode.factored,
            compute_s=compute_s,
            variables=Path(_VARIABLES.value),
            num_shards=_SHARDS.value,
            num_workers=num_workers,
            num_processes=num_workers,
            warmup_s=warmup_s,
            seconds=seconds,
            shard_hosts=hosts.shards,
            worker_hosts=hosts.workers,
        )
        return cluster.run(load, seen.watching), seen


def _layout(mode: Mode) -> Layout:
    return shape.layout_of(Path(_VARIABLES.value), _SHARDS.value, factored=mode.factored)


def fleet_of(mode: Mode, costs: Measurement, rate_mbit: float) -> Fleet:
    """The whole fleet, for the simulation: bytes of the layout, costs as measured, all on this machine's cores."""
    layout, job = _layout(mode), recipe.load("paper_shape")
    exchange = dataclasses.replace(job.exchange, codec=mode.codec, push=mode.push, pull=mode.pull)
    members = dataclasses.replace(job.cluster, num_workers=_WORKERS.value)
    job = dataclasses.replace(job, exchange=exchange, cluster=members, batch_size=shape.BATCH_SIZE)
    shards = range(layout.num_shards)
    both = [(demand.push_bytes(layout, i, job), demand.pull_bytes(layout, i, job)) for i in shards]
    # A step's cost is shared out by bytes: what is measured is the whole of it.
    per_byte = [core_ms / 1000 / sum(map(sum, both)) for core_ms in (costs.shard_core_ms, costs.worker_core_ms)]
    pushes, pulls = ([CallCosts(one[i], *(one[i] * cost for cost in per_byte)) for one in both] for i in (0, 1))
    line = rate_mbit * 1e6 / 8
    return Fleet(
        num_workers=_WORKERS.value,
        compute_s=_COMPUTE.value,
        spread=_SPREAD,
        pushes=pushes,
        pulls=pulls,
        shared_cores=float(os.cpu_count() or 1),
        shard_bytes_per_s=line,
        worker_bytes_per_s=line,
    )


def compare(
    rate_mbit: float, fleet: Fleet, predicted: Prediction, own: Prediction, measured: Measurement, seen: Seen
) -> dict[str, Any]:
    """Prints predictions and measurement side by side; the same for the RESULT."""
    rows = {"steps/s": (predicted.steps_per_second, own.steps_per_second, measured.steps_per_second)}
    staleness = (predicted.staleness, own.staleness, seen.staleness)
    rows["staleness mean"] = tuple(map(queueing.mean_of, staleness))  # type: ignore[assignment]
    for share in (0.1, 0.5, 0.9, 0.99):
        rows[f"staleness p{100 * share:g}"] = tuple(  # type: ignore[assignment]
            float(queueing.percentile_of(histogram, share)) for histogram in staleness
        )
    limits = sorted(fleet.limits().items(), key=lambda item: item[1])
    print(f"\n{rate_mbit:g} Mbit/s a host; bottleneck: {fleet.bottleneck()}, of limits in steps/s "
          + ", ".join(f"{name} {steps:.2f}" for name, steps in limits)
          + f"\n{'':<16} {'predicted':>9} {'own costs':>9} {'measured':>9}")  # fmt: skip
    for name, values in rows.items():
        print(f"{name:<16} " + " ".join(f"{value:9.2f}" for value in values))
    print(
        f"a step cost {measured.shard_core_ms:.0f} core-ms of the shards and {measured.worker_core_ms:.0f} of a worker"
    )
    apart = queueing.distance(predicted.staleness, seen.staleness)
    share = measured.steps_per_second / fleet.limits()["shards' network"]
    print(
        f"histograms at most {apart:.0%} apart; {share:.0%} of the heaviest shard's line; "
        f"{seen.memory_gib:.1f} GiB in use, {seen.worker_mib:.0f} MiB by a worker"
    )
    _print_histograms(predicted.staleness, seen.staleness)
    return as_json(
        measured,
        rate_mbit=rate_mbit,
        bottleneck=fleet.bottleneck(),
        predicted_steps_per_second=round(predicted.steps_per_second, 3),
        share_of_line=round(share, 3),
        own_costs_steps_per_second=round(own.steps_per_second, 3),
        staleness={
            name.partition(" ")[2]: [round(value, 2) for value in values]
            for name, values in rows.items()
            if name != "steps/s"
        },
        histograms_apart=round(apart, 3),
        memory_gib=round(seen.memory_gib, 2),
        worker_mib=round(seen.worker_mib, 1),
    )


def _print_histograms(predicted: np.ndarray, measured: np.ndarray) -> None:
    used = (predicted + measured).nonzero()[0]
    if not used.size:
        return
    first, last = int(used.min()), int(used.max())
    width = max(1, -(-(last - first + 1) // 12))
    for at in range(first, last + 1, width):
        shares = [one[at : at + width].sum() / max(1, one.sum()) for one in (predicted, measured)]
        print(f"  {at:>3}-{at + width - 1:<3} {shares[0]:6.1%} {shares[1]:6.1%} {'#' * round(60 * shares[1])}")


def check_memory() -> None:
    """Raises `ValueError` when so many processes would drive others out of memory."""
    num_bytes = 2 * sum(variable.size for variable in shape.read_variables(Path(_VARIABLES.value)))
    # A worker holds what it has pulled in bfloat16, perhaps a publication, too; a shard its part of parameters and two
    # slots in float32.
    pulled = num_bytes * (1 if MODES[_MODE.value].pull == "live" else 2)
    needed = _WORKERS.value * (pulled + _PROCESS_BYTES) + _SHARDS.value * _PROCESS_BYTES + 6 * num_bytes
    available = psutil.virtual_memory().available
    if available < needed:
        raise ValueError(
            f"{_SHARDS.value} shards and {_WORKERS.value} workers take about {needed / _GIB:.1f} GiB of memory, but "
            f"{available / _GIB:.1f} are available; give fewer --workers"
        )


def _main() -> None:
    try:
        rates = [float(rate) for rate in _RATES.value]
    except ValueError:
        raise ValueError(f"--rates_mbit={','.join(_RATES.value)}; give numbers with commas, such as 1000,50") from None
    if not rates or not all(1 <= rate <= 1e6 for rate in rates):
        raise ValueError(f"--rates_mbit={','.join(_RATES.value)}; give rates of 1 to 1000000")
    reason = obstacle()
    if reason:
        print(f"skipped: {reason}")
        return
    check_memory()
    mode = MODES[_MODE.value]
    few = min(_FEW.value, _WORKERS.value)
    costs, _ = run_workers(mode, _FAST_MBIT, few, 0.0, _FEW_WARMUP_S, _FEW_SECONDS.value)
    print(
        f"{_SHARDS.value} shards and {_WORKERS.value} workers that compute for {_COMPUTE.value:g} s, a host each, "
        f"{mode.title}; a step costs {costs.shard_core_ms:.0f} core-ms of the shards and {costs.worker_core_ms:.0f} of "
        f"a worker, measured with {few} workers at {costs.steps_per_second:.2f} steps/s",
        flush=True,
    )
    results = []
    for rate in rates:
        fleet = fleet_of(mode, costs, rate)
        predicted = queueing.simulate(fleet)
        cycle_s = _WORKERS.value / predicted.steps_per_second
        measured, seen = run_workers(
            mode, rate, _WORKERS.value, _COMPUTE.value, _WARMUP.value * cycle_s, _CYCLES.value * cycle_s
        )
        own = queueing.simulate(fleet_of(mode, measured, rate))
        results.append(compare(rate, fleet, predicted, own, measured, seen))
    core_ms = {"shards": round(costs.shard_core_ms, 1), "worker": round(costs.worker_core_ms, 1)}
    print(f"RESULT {json.dumps({'core_ms_per_step': core_ms, 'runs': results})}", flush=True)


def main() -> None:
    """See the module."""
    entry.run(_main, role="fleet")


if __name__ == "__main__":
    main()
