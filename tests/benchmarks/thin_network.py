"""The exchange between hosts that a thin line connects: where its bytes count, not its CPU time.

    python -m tests.benchmarks.thin_network [--modes=float32,smallest] [--rate_mbit=1000] [--shard_hosts=1]

A host is a network namespace, tied by a veth pair to one bridge; what it sends and what it is sent are both shaped to
the line's rate (`tc tbf`). Shards live in some hosts, worker processes in others; one full-duplex line per host, as in
a rack of old machines. For every mode: steps a second over all workers, the share of the busiest line's rate that the
exchange used, and the limit: line rate over bytes a step, in the direction and on the side where it binds.

Needs root and `ip` and `tc` (Debian: iproute2); without them it says so and ends with exit code 0. Namespaces, bridge
and queues are removed however it ends. The last line is `RESULT {json}`.
"""

from __future__ import annotations

import json
from pathlib import Path

from absl import flags

from downpour.launch.roles import entry
from tests.benchmarks import cluster, shape
from tests.benchmarks.hosts import limit, network, obstacle
from tests.benchmarks.measure import HEADING, Measurement, as_json
from tests.benchmarks.modes import MODES

_MODES = flags.DEFINE_list("modes", list(MODES), "Ways to exchange to measure; see tests.benchmarks.modes.")
_RATE = flags.DEFINE_float("rate_mbit", 1000.0, "Line rate of a host, each way, in 10^6 bits a second.", lower_bound=1)
_SHARD_HOSTS = flags.DEFINE_integer("shard_hosts", 1, "Hosts that share the shards.", lower_bound=1, upper_bound=100)
_WORKER_HOSTS = flags.DEFINE_integer(
    "worker_hosts", 2, "Hosts, one worker process each.", lower_bound=1, upper_bound=100
)
_VARIABLES = flags.DEFINE_string("variables", str(shape.PAPER), "File that lists the model's variables.")
_SHARDS = flags.DEFINE_integer("shards", 17, "Shard processes.", lower_bound=1)
_WORKERS = flags.DEFINE_integer("workers", 4, "Emulated workers.", lower_bound=1)
_WARMUP = flags.DEFINE_float("warmup", 5.0, "Seconds of work before the window.", lower_bound=0)
_SECONDS = flags.DEFINE_float("seconds", 20.0, "Length of the window.", lower_bound=0.1)


def measure(name: str) -> tuple[Measurement, float]:
    """A mode's measurement and its limit, in steps a second."""
    mode = MODES[name]
    num_worker_hosts = min(_WORKER_HOSTS.value, _WORKERS.value)
    with network(_SHARD_HOSTS.value, num_worker_hosts, _RATE.value) as hosts:
        load = cluster.Load(
            codec=mode.codec,
            push=mode.push,
            pull=mode.pull,
            factored=mode.factored,
            variables=Path(_VARIABLES.value),
            num_shards=_SHARDS.value,
            num_workers=_WORKERS.value,
            num_processes=num_worker_hosts,
            warmup_s=_WARMUP.value,
            seconds=_SECONDS.value,
            shard_hosts=hosts.shards,
            worker_hosts=hosts.workers,
        )
        measurement = cluster.run(load)
    fewer = min(_SHARD_HOSTS.value, num_worker_hosts)
    one_way = max(measurement.mb_sent_per_step, measurement.mb_per_step - measurement.mb_sent_per_step)
    return measurement, limit(one_way, fewer, _RATE.value)


def _main() -> None:
    unknown = sorted(set(_MODES.value) - set(MODES))
    if unknown:
        raise ValueError(f"--modes: {', '.join(unknown)} is not known; known are {', '.join(MODES)}")
    reason = obstacle()
    if reason:
        print(f"skipped: {reason}")
        return
    print(
        f"{_SHARDS.value} shards on {_SHARD_HOSTS.value} hosts, {_WORKERS.value} workers on {_WORKER_HOSTS.value}, "
        f"{_RATE.value:g} Mbit/s a host and direction\n{'':<10} {HEADING} {'limit':>7} {'of line':>8}"
    )
    result = {}
    for name in _MODES.value:
        measurement, steps = measure(name)
        share = measurement.steps_per_second / steps
        print(f"{name:<10} {measurement.row()} {steps:7.2f} {share:8.1%}", flush=True)
        result[name] = as_json(measurement, limit=round(steps, 3), share_of_line=round(share, 3))
    print(f"RESULT {json.dumps(result)}", flush=True)


def main() -> None:
    """See the module."""
    entry.run(_main, role="thin network")


if __name__ == "__main__":
    main()
