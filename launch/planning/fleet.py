"""A fleet of workers and shards in numbers: times of computing, costs of calls, and the limits that follow. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from downpour.ps.policy.pace import Async, Mode

COMPUTE_TIMES = ("constant", "lognormal", "exponential")
_ASYNC = Async()


@dataclass(frozen=True)
class CallCosts:
    """Costs of one push to or pull from one shard.

    Attributes:
        num_bytes: Bytes on the wire.
        shard_s: Core-seconds of the shard.
        worker_s: Core-seconds of the worker.
    """

    num_bytes: float = 0.0
    shard_s: float = 0.0
    worker_s: float = 0.0


@dataclass(frozen=True)
class Fleet:
    """The fleet to simulate.

    Attributes:
        num_workers: Number of workers, W.
        compute_s: Mean seconds of computing one gradient.
        pushes: One call per shard.
        pulls: One call per shard.
        compute: Distribution of the computing times, one of `COMPUTE_TIMES`.
        spread: Standard deviation of lognormal times, relative to the mean.
        stragglers: Share of the workers, rounded, that take `slowdown` times as long to compute: the first ones.
        slowdown: See `stragglers`.
        relative_s: Mean computing times of the workers, relative to `compute_s`; worker i has entry i, counted round.
        exponential_calls: Whether the stations' times are exponential too (to compare with textbooks).
        overlap: Whether a worker computes while it exchanges.
        shard_cores: Cores of each shard.
        worker_cores: Cores of each worker, for the exchange.
        shared_cores: If not 0, cores that all shards and workers share instead.
        shard_bytes_per_s: Line rate of each shard, each way.
        worker_bytes_per_s: Line rate of each worker, each way.
        pace: Synchronisation model.
        push_every: Gradients that a worker computes from one push to the next.
        fetch_every: Gradients that it computes from one pull to the next; with `overlap` it pulls after every push.
    """

    num_workers: int
    compute_s: float
    pushes: Sequence[CallCosts]
    pulls: Sequence[CallCosts]
    compute: str = "lognormal"
    spread: float = 0.1
    stragglers: float = 0.0
    slowdown: float = 1.0
    relative_s: tuple[float, ...] = (1.0,)
    exponential_calls: bool = False
    overlap: bool = False
    shard_cores: float = 1.0
    worker_cores: float = 1.0
    shared_cores: float = 0.0
    shard_bytes_per_s: float = math.inf
    worker_bytes_per_s: float = math.inf
    pace: Mode = _ASYNC
    push_every: int = 1
    fetch_every: int = 1

    def __post_init__(self) -> None:
        if self.num_workers < 1 or not self.pushes or len(self.pushes) != len(self.pulls):
            raise ValueError(
                f"{self.num_workers} workers, {len(self.pushes)} shards to push to and {len(self.pulls)} to pull from; "
                "give at least one worker, and as many pushes as pulls"
            )
        if self.compute not in COMPUTE_TIMES:
            raise ValueError(f"compute times are {self.compute!r}; accepted are {', '.join(COMPUTE_TIMES)}")

    def slowness(self, worker: int) -> float:
        """How many times as long as others a worker takes to compute."""
        is_straggler = worker < round(self.stragglers * self.num_workers)
        return (self.slowdown if is_straggler else 1.0) * self.relative_s[worker % len(self.relative_s)]

    def limits(self) -> dict[str, float]:
        """Steps a second that each resource allows if nothing else limits.

        A worker pushes before it pulls, so its line works one way after the other; a shard's works both ways at once.
        """
        calls, both = [*self.pushes, *self.pulls], list(zip(self.pushes, self.pulls, strict=True))
        num_bytes = sum(call.num_bytes for call in calls)
        worker_s, shard_s = sum(call.worker_s for call in calls), sum(call.shard_s for call in calls)
        busiest_s = max(push.shard_s + pull.shard_s for push, pull in both)
        heaviest = max(max(push.num_bytes, pull.num_bytes) for push, pull in both)
        limits = {
            "workers' compute": over(sum(1 / self.slowness(i) for i in range(self.num_workers)), self.compute_s),
            "workers' network": over(self.num_workers * self.worker_bytes_per_s, num_bytes),
            "shards' network": over(self.shard_bytes_per_s, heaviest),
        }
        if self.shared_cores:
            return limits | {"cores of the machine": over(self.shared_cores, worker_s + shard_s)}
        return limits | {
            "workers' cores": over(self.num_workers * self.worker_cores, worker_s),
            "shards' cores": over(self.shard_cores, busiest_s),
        }

    def workers_limit(self) -> float:
        """Steps a second of workers that no shard delays: one worker's rate times their number."""
        calls = [*self.pushes, *self.pulls]
        exchange_s = max(
            sum(call.num_bytes for call in calls) / self.worker_bytes_per_s,
            0.0 if self.shared_cores else sum(call.worker_s for call in calls) / self.worker_cores,
        )
        rates = 0.0
        for worker in range(self.num_workers):
            compute_s = self.slowness(worker) * self.compute_s
            rates += over(1, max(compute_s, exchange_s) if self.overlap else compute_s + exchange_s)
        return rates

    def shards_limit(self) -> float:
        """Steps a second that the shards allow, or the cores of the machine that they share."""
        return min(limit for name, limit in self.limits().items() if not name.startswith("workers'"))

    def bottleneck(self) -> str:
        """The limiting resource: the shards' if they allow less than the workers could do, else the workers'."""
        of_workers = self.workers_limit() <= self.shards_limit()
        limits = {name: limit for name, limit in self.limits().items() if name.startswith("workers'") == of_workers}
        return min(limits, key=limits.__getitem__)


def over(capacity: float, demand: float) -> float:
    """Capacity by demand; infinite without demand."""
    return capacity / demand if demand else math.inf
