"""Simulates the speed and staleness of a fleet of workers and shards, as a closed queueing network.

Each of W workers computes for a while, then pushes to every shard, then pulls from every shard, a few calls at a time,
as `downpour.worker.exchange.exchange` does (with overlap it computes meanwhile). A call passes these stations in turn,
each of which serves one call after another:

    push   the worker's cores, the worker's line, the shard's line, the shard's cores
    pull   the shard's cores, the shard's line, the worker's line, the worker's cores

Messages are streams: a station begins as soon as the one before has begun, and the call ends when all stations have
ended. A push increments the shard's version when it ends; a pull reads the version when the shard begins to send. The
difference is the staleness, counted as in `downpour.ps.shard.shard`.

Not modelled: latency of an idle line, lost packets, restarts, checkpoints, and that a shard receives three pushes at a
time. Pure and seeded: the same fleet and seed give the same prediction.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BUCKETS = 256  # of the staleness histogram, as shards count it; the last holds all above
_CALLS_AT_A_TIME = 5  # threads of a worker's exchange
_MAX_CALLS = 60_000  # simulated by default, about half a second's work
_WARM_UP = 0.25  # share of them that does not count
COMPUTE_TIMES = ("constant", "lognormal", "exponential")


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
        exponential_calls: Whether the stations' times are exponential too (to compare with textbooks).
        overlap: Whether a worker computes while it exchanges.
        shard_cores: Cores of each shard.
        worker_cores: Cores of each worker, for the exchange.
        shared_cores: If not 0, cores that all shards and workers share instead.
        shard_bytes_per_s: Line rate of each shard, each way.
        worker_bytes_per_s: Line rate of each worker, each way.
    """

    num_workers: int
    compute_s: float
    pushes: Sequence[CallCosts]
    pulls: Sequence[CallCosts]
    compute: str = "lognormal"
    spread: float = 0.1
    exponential_calls: bool = False
    overlap: bool = False
    shard_cores: float = 1.0
    worker_cores: float = 1.0
    shared_cores: float = 0.0
    shard_bytes_per_s: float = math.inf
    worker_bytes_per_s: float = math.inf

    def __post_init__(self) -> None:
        if self.num_workers < 1 or not self.pushes or len(self.pushes) != len(self.pulls):
            raise ValueError(
                f"{self.num_workers} workers, {len(self.pushes)} shards to push to and {len(self.pulls)} to pull from; "
                "give at least one worker, and as many pushes as pulls"
            )
        if self.compute not in COMPUTE_TIMES:
            raise ValueError(f"compute times are {self.compute!r}; accepted are {', '.join(COMPUTE_TIMES)}")

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
            "workers' compute": _over(self.num_workers, self.compute_s),
            "workers' network": _over(self.num_workers * self.worker_bytes_per_s, num_bytes),
            "shards' network": _over(self.shard_bytes_per_s, heaviest),
        }
        if self.shared_cores:
            return limits | {"cores of the machine": _over(self.shared_cores, worker_s + shard_s)}
        return limits | {
            "workers' cores": _over(self.num_workers * self.worker_cores, worker_s),
            "shards' cores": _over(self.shard_cores, busiest_s),
        }

    def workers_limit(self) -> float:
        """Steps a second of workers that no shard delays: one worker's rate times their number."""
        calls = [*self.pushes, *self.pulls]
        exchange_s = max(
            sum(call.num_bytes for call in calls) / self.worker_bytes_per_s,
            0.0 if self.shared_cores else sum(call.worker_s for call in calls) / self.worker_cores,
        )
        both = max(self.compute_s, exchange_s) if self.overlap else self.compute_s + exchange_s
        return _over(self.num_workers, both)

    def shards_limit(self) -> float:
        """Steps a second that the shards allow, or the cores of the machine that they share."""
        return min(limit for name, limit in self.limits().items() if not name.startswith("workers'"))

    def bottleneck(self) -> str:
        """The limiting resource: the shards' if they allow less than the workers could do, else the workers'."""
        of_workers = self.workers_limit() <= self.shards_limit()
        limits = {name: limit for name, limit in self.limits().items() if name.startswith("workers'") == of_workers}
        return min(limits, key=limits.__getitem__)


@dataclass(frozen=True)
class Prediction:
    """Result of a simulation.

    Attributes:
        steps_per_second: Steps of all workers together; each pushes to and pulls from every shard once.
        staleness: [BUCKETS] pushes by staleness, over all shards.
        exchange_s: Mean seconds from the first byte of a push to the last of the pulls that follow it.
        bytes_pulled: Mean bytes of a step.
    """

    steps_per_second: float
    staleness: np.ndarray
    exchange_s: float
    bytes_pulled: float

    @property
    def staleness_mean(self) -> float:
        """Mean, in pushes."""
        return mean_of(self.staleness)


def mean_of(histogram: np.ndarray) -> float:
    """Mean of a histogram whose bucket i counts the value i."""
    return float(histogram @ np.arange(histogram.size) / max(1, histogram.sum()))


def percentile_of(histogram: np.ndarray, share: float) -> int:
    """The smallest value that at least `share` of all do not exceed."""
    return int(np.searchsorted(np.cumsum(histogram), share * histogram.sum() - 1e-9))


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Distance of two histograms: the largest difference of their cumulative shares, 0 to 1 (Kolmogorov's)."""
    shares = [np.cumsum(histogram) / max(1, histogram.sum()) for histogram in (one, other)]
    return float(np.abs(shares[0] - shares[1]).max())


def simulate(fleet: Fleet, seed: int = 0, num_steps: int = 0) -> Prediction:
    """Simulates a fleet.

    Args:
        fleet: The fleet.
        seed: Seed of all random times.
        num_steps: Steps of all workers together; 0 for as many as take about half a second.
    """
    num_steps = num_steps or max(4 * fleet.num_workers, _MAX_CALLS // (2 * len(fleet.pushes)))
    return _Simulation(fleet, random.Random(seed)).run(num_steps)


def _over(capacity: float, demand: float) -> float:
    return capacity / demand if demand else math.inf


class _Station:
    """A queue with one or more servers.

    Attributes:
        free: Heap of the times at which each server becomes idle.
        rate: Work of one server in a second: core-seconds, or bytes.
    """

    def __init__(self, capacity: float, num_servers: int) -> None:
        self.free, self.rate = [0.0] * num_servers, capacity / num_servers

    @classmethod
    def of_cores(cls, cores: float) -> _Station:
        """Returns a station of cores; a part of a core is one slow server."""
        return cls(cores, max(1, int(cores)))


class _Worker:
    """One worker: the versions it works with, and its calls in flight.

    Attributes:
        bases: Versions that the gradient being computed is based on.
        pushed: Versions that the gradient being pushed is based on.
        pulled: Versions of the latest pulls.
        calls: (is a push, shard), in the order in which they begin.
    """

    def __init__(self, index: int, num_shards: int) -> None:
        self.index = index
        self.bases, self.pushed, self.pulled = ([0] * num_shards for _ in range(3))
        order = [(index + i) % num_shards for i in range(num_shards)]
        self.calls = [(True, shard) for shard in order] + [(False, shard) for shard in order]
        self.next = self.open = 0
        self.waiting: dict[int, _Open | None] = {}  # pulls by shard whose push is not over; None: not yet begun
        self.began = 0.0
        self.computed = False


@dataclass(slots=True)
class _Open:
    """A call in flight: `stages` are the stations and the work of each, `at` is the next of them."""

    worker: _Worker
    is_push: bool
    shard: int
    stages: list[tuple[_Station, float]]
    at: int = 0
    end: float = 0.0


class _Simulation:
    """Processes events in the order of their times; see the module."""

    def __init__(self, fleet: Fleet, rng: random.Random) -> None:
        self._fleet, self._random = fleet, rng
        num_shards = len(fleet.pushes)
        self._workers = [_Worker(i, num_shards) for i in range(fleet.num_workers)]
        self._versions = [0] * num_shards
        self._events: list[tuple[float, int, Callable[[float, Any], None], Any]] = []
        self._count = self._steps = 0
        self._counted = 0  # steps that count, with their pulled bytes and their seconds
        self._bytes = self._exchange_s = 0.0
        self._staleness = [0] * BUCKETS
        self._make_stations(num_shards)

    def _make_stations(self, num_shards: int) -> None:
        fleet, workers, shards = self._fleet, range(self._fleet.num_workers), range(num_shards)
        shared = _Station.of_cores(fleet.shared_cores) if fleet.shared_cores else None
        self._worker_cores = [shared or _Station.of_cores(fleet.worker_cores) for _ in workers]
        self._shard_cores = [shared or _Station.of_cores(fleet.shard_cores) for _ in shards]
        self._worker_out = [_Station(fleet.worker_bytes_per_s, 1) for _ in workers]
        self._worker_in = [_Station(fleet.worker_bytes_per_s, 1) for _ in workers]
        self._shard_out = [_Station(fleet.shard_bytes_per_s, 1) for _ in shards]
        self._shard_in = [_Station(fleet.shard_bytes_per_s, 1) for _ in shards]

    def run(self, num_steps: int) -> Prediction:
        """Simulates until `num_steps` steps are done."""
        warm_up, began, now = int(num_steps * _WARM_UP), 0.0, 0.0
        for worker in self._workers:  # in the middle of computing, so that they do not begin together
            self._at(self._random.random() * self._compute_s(), self._on_computed, worker)
        while self._steps < num_steps:
            now, _, action, argument = heapq.heappop(self._events)
            before = self._steps
            action(now, argument)
            if before < warm_up <= self._steps:
                began, self._counted, self._bytes, self._exchange_s = now, 0, 0.0, 0.0
                self._staleness = [0] * BUCKETS
        return Prediction(
            steps_per_second=_over(self._counted, now - began),
            staleness=np.array(self._staleness),
            exchange_s=self._exchange_s / self._counted,
            bytes_pulled=self._bytes / self._counted,
        )

    def _at(self, time: float, action: Callable[[float, Any], None], argument: object) -> None:
        self._count += 1  # keeps simultaneous events in order
        heapq.heappush(self._events, (time, self._count, action, argument))

    def _compute_s(self) -> float:
        fleet = self._fleet
        if fleet.compute == "constant" or not fleet.compute_s:
            return fleet.compute_s
        if fleet.compute == "exponential":
            return self._random.expovariate(1 / fleet.compute_s)
        variance = math.log1p(fleet.spread**2)
        return self._random.lognormvariate(math.log(fleet.compute_s) - variance / 2, math.sqrt(variance))

    def _on_computed(self, now: float, worker: _Worker) -> None:
        worker.computed = True
        if not worker.open:
            self._begin_exchange(now, worker)

    def _begin_exchange(self, now: float, worker: _Worker) -> None:
        """Begins an exchange and, with overlap, the next computation, from the previous exchange's parameters."""
        worker.computed, worker.next, worker.began = False, 0, now
        worker.pushed, worker.waiting = worker.bases, dict.fromkeys(range(len(worker.bases)))
        if self._fleet.overlap:
            self._begin_computing(now, worker)
        for _ in range(min(_CALLS_AT_A_TIME, len(worker.calls))):
            self._next_call(now, worker)

    def _begin_computing(self, now: float, worker: _Worker) -> None:
        worker.bases = list(worker.pulled)
        self._at(now + self._compute_s(), self._on_computed, worker)

    def _next_call(self, now: float, worker: _Worker) -> None:
        is_push, shard = worker.calls[worker.next]
        worker.next += 1
        worker.open += 1
        i = worker.index
        if is_push:
            call = self._fleet.pushes[shard]
            stages = [
                (self._worker_cores[i], call.worker_s),
                (self._worker_out[i], call.num_bytes),
                (self._shard_in[shard], call.num_bytes),
                (self._shard_cores[shard], call.shard_s),
            ]
        else:
            stages = [(self._shard_cores[shard], self._fleet.pulls[shard].shard_s)]
        opened = _Open(worker, is_push, shard, stages)
        if not is_push and shard in worker.waiting:  # waits for its push, and occupies one of the threads
            worker.waiting[shard] = opened
        else:
            self._serve(now, opened)

    def _serve(self, now: float, call: _Open) -> None:
        """Moves a call from station to station until it must wait at one."""
        while call.at < len(call.stages):
            station, work = call.stages[call.at]
            call.at += 1
            service_s = work / station.rate
            if service_s:
                if self._fleet.exponential_calls:
                    service_s = self._random.expovariate(1 / service_s)
                start = max(now, station.free[0])
                heapq.heapreplace(station.free, start + service_s)
                call.end = max(call.end, start + service_s)
                if start > now:
                    self._at(start, self._serve, call)
                    return
        if not call.is_push and call.at == 1:
            self._send(call)
            self._serve(now, call)
            return
        self._at(max(now, call.end), self._on_done, call)

    def _send(self, call: _Open) -> None:
        """Records a pull's version as the shard begins to send, and adds the stages of the reply."""
        shard, worker, pull = call.shard, call.worker, self._fleet.pulls[call.shard]
        worker.pulled[shard] = self._versions[shard]
        self._bytes += pull.num_bytes
        call.stages += [
            (self._shard_out[shard], pull.num_bytes),
            (self._worker_in[worker.index], pull.num_bytes),
            (self._worker_cores[worker.index], pull.worker_s),
        ]

    def _on_done(self, now: float, call: _Open) -> None:
        worker, shard = call.worker, call.shard
        if call.is_push:
            stale = self._versions[shard] - worker.pushed[shard]
            self._staleness[min(stale, BUCKETS - 1)] += 1
            self._versions[shard] += 1
            if pull := worker.waiting.pop(shard):
                self._serve(now, pull)
        worker.open -= 1
        if worker.next < len(worker.calls):
            self._next_call(now, worker)
        elif not worker.open:
            self._steps += 1
            self._counted += 1
            self._exchange_s += now - worker.began
            if not self._fleet.overlap:
                self._begin_computing(now, worker)
            elif worker.computed:
                self._begin_exchange(now, worker)
