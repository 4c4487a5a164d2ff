"""A cluster that does not exist yet, as the fleet that `queueing` simulates. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from downpour.launch.job import Job
from downpour.launch.planning import demand
from downpour.launch.planning.demand import Cost, Costs
from downpour.launch.planning.fleet import COMPUTE_TIMES, Fleet
from downpour.ps.layout import Layout
from downpour.worker.chief.overlap import LEAST_GAIN

_MAX_WORKERS = 1024  # capacity of a shard's ledger
# Core-seconds of a shard for an empty push and pull: half of what exchange benchmarks measured for both sides.
_CALLS_S = 1.7e-3


@dataclass(frozen=True)
class Assumptions:
    """The cluster to predict.

    Attributes:
        num_workers: Workers.
        gbit: Line rate of a host, each way, in 10^9 bits a second.
        seconds_per_step: Seconds a worker takes to compute one gradient.
        spread: Standard deviation of those seconds, relative to their mean.
        compute: Their distribution, one of `COMPUTE_TIMES`.
        stragglers: Share of the workers that take `slowdown` times as long.
        slowdown: See `stragglers`.
        cores_per_shard: Cores of each shard.
        relative_s: Mean seconds of the workers, relative to `seconds_per_step`; worker i has entry i, counted round.
    """

    num_workers: int
    gbit: float
    seconds_per_step: float
    spread: float = 0.1
    cores_per_shard: float = 1.0
    compute: str = "lognormal"
    stragglers: float = 0.0
    slowdown: float = 1.0
    relative_s: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not 1 <= self.num_workers <= _MAX_WORKERS:
            raise ValueError(
                f"--workers={self.num_workers}; give 1 to {_MAX_WORKERS}, the number that a shard has room for"
            )
        if self.compute not in COMPUTE_TIMES:
            raise ValueError(f"--compute={self.compute}; give one of {', '.join(COMPUTE_TIMES)}")
        if not 0 <= self.stragglers <= 1:
            raise ValueError(f"--stragglers={self.stragglers:g}; give a share of the workers, 0 to 1")
        if not self.gbit > 0:
            raise ValueError(f"--gbit={self.gbit:g}; give a number above 0")
        for name, value in (("cores_per_shard", self.cores_per_shard), ("slowdown", self.slowdown)):
            if not 0 < value < math.inf:
                raise ValueError(f"--{name}={value:g}; give a number above 0")
        for name, value in (("seconds_per_step", self.seconds_per_step), ("spread", self.spread)):
            if not 0 <= value < math.inf:
                raise ValueError(f"--{name}={value:g}; give a number of at least 0")


def fleet_of(job: Job, layout: Layout, costs: Costs, cluster: Assumptions) -> Fleet:
    """Returns a job on a cluster as the `Fleet` that `queueing` simulates."""
    pushes, pulls = demand.calls(layout, job, costs)
    bytes_per_s = cluster.gbit * 1e9 / 8
    fleet = Fleet(
        num_workers=cluster.num_workers,
        compute_s=cluster.seconds_per_step,
        spread=cluster.spread,
        compute=cluster.compute,
        stragglers=cluster.stragglers,
        slowdown=cluster.slowdown,
        relative_s=cluster.relative_s,
        pushes=pushes,
        pulls=pulls,
        overlap=bool(job.overlap),
        shard_cores=cluster.cores_per_shard,
        shard_bytes_per_s=bytes_per_s,
        worker_bytes_per_s=bytes_per_s,
        pace=job.pace,
        push_every=job.cadence.push_every,
        fetch_every=job.cadence.fetch_every,
    )
    overlapped = replace(fleet, overlap=True)
    return overlapped if job.overlap is None and _limit(overlapped) > LEAST_GAIN * _limit(fleet) else fleet


def _limit(fleet: Fleet) -> float:
    """Steps a second that workers and shards allow."""
    return min(fleet.workers_limit(), fleet.shards_limit())


def known_costs(job: Job, layout: Layout, core_ms: float) -> Costs:
    """Splits the given core-ms a step of all shards: empty calls first, the rest half to pushes, half to pulls.

    Raises:
        ValueError: `core_ms` is not more than empty calls cost.
    """
    total, calls_s = core_ms / 1000, _CALLS_S * layout.num_shards
    if not calls_s < total < math.inf:
        raise ValueError(
            f"--core_ms_per_step={core_ms:g}; {layout.num_shards} pushes and pulls take {1000 * calls_s:.1f} core-ms "
            "without carrying anything: give more, or leave the flag out to have it measured"
        )
    half = Cost(_CALLS_S / 2, (total - calls_s) / 2 / sum(r.size for r in layout.ranges))
    return Costs(shard_push=half, shard_pull=half)
