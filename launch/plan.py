"""Predicts a cluster's performance before it exists: steps a second, what limits them, staleness, how many shards.

    downpour plan jft300m --workers=50 --gbit=10 --seconds_per_step=7.2

Bytes come from the layout, costs from measuring one shard process on this machine for some seconds (or from
--core_ms_per_step), and steps and staleness from simulating workers, lines and shards as queues
(`downpour.launch.planning.queueing`). Every shard and every worker is modelled as a host with its own network line and
with cores as fast as this machine's. The last line is `RESULT {json}`.

Supports asynchronous jobs whose workers push and pull every step (pace Async, cadence EveryStep), once all workers are
let in. Costs are measured over mutual TLS, as on a cluster (--nomutual_tls: in plain text). Restarts and checkpoints
are not modelled.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

from absl import flags

from downpour.launch.job import Job, recipe, recipe_flags
from downpour.launch.kubernetes import sizes
from downpour.launch.planning import queueing
from downpour.launch.planning.assumptions import Assumptions, fleet_of, known_costs
from downpour.launch.planning.demand import Costs
from downpour.launch.planning.fleet import Fleet
from downpour.launch.planning.queueing import Prediction
from downpour.launch.roles import entry
from downpour.launch.roles.command_line import Syntax
from downpour.proto.security import tls
from downpour.ps.layout import Layout, lay_out

SYNTAX = Syntax(
    shown="recipe set seconds_per_step workers gbit spread cores_per_shard core_ms_per_step measure_s mutual_tls",
    positional="recipe",
)
# Shards are not a bottleneck up to this utilisation; above it, queues grow fast.
_BUSY = 0.8
_MAX_SHARDS = 100
_MB = 1e6


def check(job: Job) -> None:
    """Raises `ValueError` unless a job is asynchronous and its workers push and pull every step."""
    for key, value, known in (("pace", job.pace, "Async"), ("cadence", job.cadence, "EveryStep")):
        if type(value).__name__ != known:
            raise ValueError(f"{key} is {type(value).__name__}; plan predicts {known} only, add --set={key}={known}")


def enough_shards(job: Job, layout: Layout, costs: Costs, cluster: Assumptions) -> Layout | None:
    """Returns the layout with the fewest shards that are no bottleneck; None if `_MAX_SHARDS` are too few."""
    wanted = fleet_of(job, layout, costs, cluster).workers_limit()
    for num_shards in range(1, _MAX_SHARDS + 1):
        one = lay_out(layout.variables, num_shards, job.slicing)
        if wanted <= _BUSY * fleet_of(job, one, costs, cluster).shards_limit():
            return one
    return None


def report(job: Job, layout: Layout, costs: Costs, cluster: Assumptions) -> tuple[str, dict[str, Any]]:
    """Returns the prediction as a table for people and as the RESULT."""
    fleet = fleet_of(job, layout, costs, cluster)
    found, best = queueing.simulate(fleet), enough_shards(job, layout, costs, cluster)
    result = _result(job, layout, fleet, found)
    lines = [
        f"{job.name}: {sum(r.size for r in layout.ranges):,} parameters on {layout.num_shards} shards with "
        f"{cluster.cores_per_shard:g} cores each, {cluster.num_workers} workers that compute for "
        f"{cluster.seconds_per_step:g} s a step, {cluster.gbit:g} Gbit/s a host",
        f"a step pushes {result['mb_pushed_per_step']:.1f} MB and pulls {result['mb_pulled_per_step']:.1f} MB; "
        f"it takes {result['shard_core_ms_per_step']:.0f} core-ms of the shards and "
        f"{result['worker_core_ms_per_step']:.0f} of the worker",
        "",
        f"{'what would limit':<20} {'steps/s':>9} {'used':>6}",
    ]
    limits = fleet.limits() | {"workers, undelayed": fleet.workers_limit()}
    for name, limit in sorted(limits.items(), key=lambda item: item[1]):
        if limit < math.inf:  # else the resource is unused
            lines.append(f"{name:<20} {limit:9.2f} {found.steps_per_second / limit:6.0%}")
    lines += [
        f"{'predicted':<20} {found.steps_per_second:9.2f}        bottleneck: {fleet.bottleneck()}",
        "",
        f"an exchange takes {found.exchange_s:.2f} s{', while a worker computes' if fleet.overlap else ''}",
        f"staleness: mean {found.staleness_mean:.1f}, half at most {result['staleness_p50']}, "
        f"99 % at most {result['staleness_p99']} pushes",
        *queueing.rows_of(found.staleness),
        "",
        f"{layout.num_shards} shards, the recipe's: {_shards_words(job, layout, fleet)}",
    ]
    if best is None:
        lines.append(f"no number of shards up to {_MAX_SHARDS} is enough: cut large variables into more slices, give "
                     "shards more --cores_per_shard or --gbit, or choose a codec with fewer bytes")  # fmt: skip
    else:
        result |= {"shards_to_choose": best.num_shards, "shard_memory_mb": _memory_mb(job, best)}
        words = _shards_words(job, best, fleet_of(job, best, costs, cluster))
        lines.append(f"{best.num_shards} to choose, the fewest that are busy at most {_BUSY:.0%}: {words}")
    return "\n".join(lines), result


def _result(job: Job, layout: Layout, fleet: Fleet, found: Prediction) -> dict[str, Any]:
    calls = [*fleet.pushes, *fleet.pulls]
    last = int(found.staleness.nonzero()[0].max(initial=0))
    return {
        "recipe": job.name,
        "num_ps": layout.num_shards,
        "num_workers": fleet.num_workers,
        "steps_per_second": round(found.steps_per_second, 4),
        "bottleneck": fleet.bottleneck(),
        "limits": {name: round(limit, 3) for name, limit in fleet.limits().items() if limit < math.inf},
        "staleness_mean": round(found.staleness_mean, 3),
        "staleness_p50": queueing.percentile_of(found.staleness, 0.5),
        "staleness_p99": queueing.percentile_of(found.staleness, 0.99),
        "staleness_histogram": found.staleness[: last + 1].tolist(),
        "exchange_s": round(found.exchange_s, 4),
        "mb_pushed_per_step": round(sum(call.num_bytes for call in fleet.pushes) / _MB, 3),
        "mb_pulled_per_step": round(found.bytes_pulled / _MB, 3),
        "shard_core_ms_per_step": round(1000 * sum(call.shard_s for call in calls), 2),
        "worker_core_ms_per_step": round(1000 * sum(call.worker_s for call in calls), 2),
        "recipe_shard_memory_mb": _memory_mb(job, layout),
        "shards_to_choose": None,
        "shard_memory_mb": None,
    }


def _memory_mb(job: Job, layout: Layout) -> int:
    """Memory of the largest shard, in 2^20 bytes, as the Kubernetes manifests request it."""
    return sum(sizes.of_layout(job, layout, activations=0, picture=0).requests()["ps"].values())


def _shards_words(job: Job, layout: Layout, fleet: Fleet) -> str:
    return f"they allow {fleet.shards_limit():.2f} steps/s and need up to {_memory_mb(job, layout):,} MB of memory each"


@dataclass(frozen=True)
class PlanConfig:
    """What to predict, and how costs are found.

    Attributes:
        job: The job.
        cluster: The cluster.
        core_ms_per_step: Core-milliseconds of all shards together for one step; None to measure them here.
        measure_s: Seconds of each of the four measurements.
        mutual_tls: Whether they are made over mutual TLS.
    """

    job: Job
    cluster: Assumptions
    core_ms_per_step: float | None = None
    measure_s: float = 1.0
    mutual_tls: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.measure_s <= 60:
            raise ValueError(f"--measure_s={self.measure_s:g}; give a number of seconds above 0, 60 at most")
        if self.core_ms_per_step is None and self.mutual_tls:
            try:
                tls.check_installed()
            except ValueError as error:
                raise ValueError(f"{error}, or give --nomutual_tls to plan for plain text") from None


def from_flags() -> PlanConfig:
    """Returns the configuration of the command line.

    Raises:
        ValueError: The job's pace or cadence is not supported, or a number is missing or out of its range.
    """
    job, values = recipe.load(*recipe_flags.read()), flags.FLAGS.flag_values_dict()
    workers = values["workers"]
    if workers is not None and workers >= 1:
        job = replace(job, cluster=replace(job.cluster, num_workers=workers))
    check(job)
    if values["seconds_per_step"] is None:
        raise ValueError("no --seconds_per_step; give what a worker takes to compute one gradient, in seconds")
    cluster = Assumptions(
        job.cluster.num_workers if workers is None else workers,
        values["gbit"],
        values["seconds_per_step"],
        values["spread"],
        values["cores_per_shard"],
    )
    return PlanConfig(job, cluster, values["core_ms_per_step"], values["measure_s"], bool(values["mutual_tls"]))


def run(config: PlanConfig) -> None:
    """Prints the prediction; the last line is `RESULT {json}`."""
    from downpour.launch.job.build import build

    job = config.job
    layout = build(job)[1]
    if config.core_ms_per_step is None:
        from downpour.launch.planning import shard_costs

        costs = shard_costs.measure(job, layout, config.measure_s, mutual_tls=config.mutual_tls)
    else:
        costs = known_costs(job, layout, config.core_ms_per_step)
    text, result = report(job, layout, costs, config.cluster)
    print(f"{text}\nRESULT {json.dumps(result)}", flush=True)


def main() -> None:
    """Prints the prediction."""
    define()
    entry.run(lambda: run(from_flags()), role="plan", syntax=SYNTAX)


def define() -> None:
    """Defines the flags."""
    recipe_flags.define()
    flags.DEFINE_integer("workers", None, "Number of workers; the recipe's by default.")
    flags.DEFINE_float("gbit", 10.0, "Line rate of a host, each way, in 10^9 bits a second.")
    flags.DEFINE_float("seconds_per_step", None, "Seconds that a worker takes to compute one gradient.")
    flags.DEFINE_float("spread", 0.1, "Standard deviation of those seconds, relative to their mean (lognormal).")
    flags.DEFINE_float("cores_per_shard", 1.0, "Cores of one shard's host or container.")
    text = "Core-milliseconds of all shards together for one step; measured here by default."
    flags.DEFINE_float("core_ms_per_step", None, text)
    flags.DEFINE_float("measure_s", 1.0, "Seconds of each of the four measurements.")
    flags.DEFINE_boolean("mutual_tls", True, "Whether the measurements use mutual TLS, as on a cluster.")


if __name__ == "__main__":
    main()
