"""Simulates the speed and staleness of a fleet of workers and shards, as a closed queueing network.

Each of W workers computes for a while, then pushes to every shard, then pulls from every shard, a few calls at a time,
as `downpour.worker.exchange.exchange` does (with overlap it computes meanwhile). A call passes these stations in turn,
each of which serves one call after another:

    push   the worker's cores, the worker's line, the shard's line, the shard's cores
    pull   the shard's cores, the shard's line, the worker's line, the worker's cores

Messages are streams: a station begins as soon as the one before has begun, and the call ends when all stations have
ended. A push increments the shard's version when it ends; a pull reads the version when the shard begins to send. The
difference is the staleness, counted as in `downpour.ps.shard.shard`.

A pull that the fleet's pace does not permit waits until a push permits it (`downpour.ps.policy.pace`). `events` has
workers let in one after another, as the pace says; `simulate`, which is of a fleet that runs, has all of them.

Not modelled: latency of an idle line, lost packets, restarts, checkpoints, and that a shard receives three pushes at a
time. Pure and seeded: the same fleet and seed give the same prediction, and the same events.
"""

from __future__ import annotations

import enum
import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from downpour.launch.planning.fleet import Fleet, over
from downpour.launch.planning.stations import Open, Station, Turns, Worker
from downpour.ps.policy.pace import most_workers

BUCKETS = 256  # of the staleness histogram, as shards count it; the last holds all above
_CALLS_AT_A_TIME = 5  # threads of a worker's exchange
_MAX_CALLS = 60_000  # simulated by default, about half a second's work
_WARM_UP = 0.25  # share of them that does not count


class Kind(enum.Enum):
    """What happens at an event.

    Attributes:
        COMPUTED: A worker has computed a gradient, at the parameters with which it began.
        PUSHED: A shard has applied a worker's push.
        PULLED: A shard begins to send its parameters to a worker.
        BEGUN: A worker begins to compute, at the parameters that it pulled last.
    """

    COMPUTED = enum.auto()
    PUSHED = enum.auto()
    PULLED = enum.auto()
    BEGUN = enum.auto()


class Event(NamedTuple):
    """One event of a simulated fleet: its time in seconds, and the shard of PUSHED and PULLED."""

    now: float
    kind: Kind
    worker: int
    shard: int = -1


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


def rows_of(histogram: np.ndarray) -> list[str]:
    """Formats a histogram in at most ten rows."""
    used = histogram.nonzero()[0]
    if not used.size:
        return []
    first, last = int(used.min()), int(used.max())
    width = max(1, -(-(last - first + 1) // 10))
    counts = [(at, int(histogram[at : at + width].sum())) for at in range(first, last + 1, width)]
    most, total = max(count for _, count in counts), int(histogram.sum())
    label = f"{last}-{last}"
    rows = []
    for at, count in counts:
        span = f"{at}" if width == 1 else f"{at}-{at + width - 1}"
        rows.append(f"  {span:>{len(label)}} {count / total:6.1%} {'#' * round(40 * count / most)}")
    return rows


def simulate(fleet: Fleet, seed: int = 0, num_steps: int = 0) -> Prediction:
    """Simulates a fleet.

    Args:
        fleet: The fleet.
        seed: Seed of all random times.
        num_steps: Steps of all workers together; 0 for as many as take about half a second.
    """
    num_steps = num_steps or max(4 * fleet.num_workers, _MAX_CALLS // (2 * len(fleet.pushes)))
    return _Simulation(fleet, random.Random(seed)).run(num_steps)


def events(fleet: Fleet, seed: int = 0) -> Iterator[Event]:
    """Yields the events of a fleet in the order of their times, without end.

    The first workers have pulled version 0; those that the pace lets in later begin with a pull.
    """
    return _Simulation(fleet, random.Random(seed)).events()


class _Simulation:
    """Processes events in the order of their times; see the module."""

    def __init__(self, fleet: Fleet, rng: random.Random) -> None:
        self._fleet, self._random = fleet, rng
        num_shards = len(fleet.pushes)
        self._workers = [Worker(i, num_shards) for i in range(fleet.num_workers)]
        self._turns = [Turns(fleet.pace, fleet.num_workers, ahead=fleet.overlap) for _ in range(num_shards)]
        self._waiting = deque[Worker]()  # to be let in
        self._told: list[Event] = []  # since the last action
        self._events: list[tuple[float, int, Callable[[float, Any], None], Any]] = []
        self._count = self._steps = 0
        self._counted = 0  # steps that count, with their pulled bytes and their seconds
        self._bytes = self._exchange_s = 0.0
        self._staleness = [0] * BUCKETS
        self._make_stations(num_shards)

    def _make_stations(self, num_shards: int) -> None:
        fleet, workers, shards = self._fleet, range(self._fleet.num_workers), range(num_shards)
        shared = Station.of_cores(fleet.shared_cores) if fleet.shared_cores else None
        self._worker_cores = [shared or Station.of_cores(fleet.worker_cores) for _ in workers]
        self._shard_cores = [shared or Station.of_cores(fleet.shard_cores) for _ in shards]
        self._worker_out = [Station(fleet.worker_bytes_per_s, 1) for _ in workers]
        self._worker_in = [Station(fleet.worker_bytes_per_s, 1) for _ in workers]
        self._shard_out = [Station(fleet.shard_bytes_per_s, 1) for _ in shards]
        self._shard_in = [Station(fleet.shard_bytes_per_s, 1) for _ in shards]

    def run(self, num_steps: int) -> Prediction:
        """Simulates until `num_steps` steps are done."""
        warm_up, began, now = int(num_steps * _WARM_UP), 0.0, 0.0
        self._begin()
        while self._steps < num_steps:
            before = self._steps
            now = self._next()
            if before < warm_up <= self._steps:
                began, self._counted, self._bytes, self._exchange_s = now, 0, 0.0, 0.0
                self._staleness = [0] * BUCKETS
        return Prediction(
            steps_per_second=over(self._counted, now - began),
            staleness=np.array(self._staleness),
            exchange_s=self._exchange_s / self._counted,
            bytes_pulled=self._bytes / self._counted,
        )

    def events(self) -> Iterator[Event]:
        """See the function."""
        self._begin(most_workers(self._fleet.pace, 0))
        while True:
            self._next()
            yield from self._told

    def _begin(self, most: float = math.inf) -> None:
        """Begins with all workers, or with as many as are let in at first."""
        first = int(min(most, len(self._workers)))
        self._waiting.extend(self._workers[first:])
        for worker in self._workers[:first]:  # in the middle of computing, so that they do not begin together
            self._at(self._random.random() * _compute_s(self._fleet, worker, self._random), self._on_computed, worker)

    def _let_in(self, now: float) -> None:
        """Has waiting workers pull, as many more as the pace lets in."""
        fleet = self._fleet
        while self._waiting and fleet.num_workers - len(self._waiting) < most_workers(fleet.pace, self._steps):
            worker = self._waiting.popleft()
            worker.calls = [(False, shard) for shard in worker.order]
            worker.began = now
            for _ in range(min(_CALLS_AT_A_TIME, len(worker.calls))):
                self._next_call(now, worker)

    def _next(self) -> float:
        """Takes the next action; returns its time."""
        self._told.clear()
        now, _, action, argument = heapq.heappop(self._events)
        action(now, argument)
        return now

    def _at(self, time: float, action: Callable[[float, Any], None], argument: object) -> None:
        self._count += 1  # keeps simultaneous events in order
        heapq.heappush(self._events, (time, self._count, action, argument))

    def _on_computed(self, now: float, worker: Worker) -> None:
        worker.num_batches += 1
        if worker.num_batches % self._fleet.push_every and worker.num_batches % self._fleet.fetch_every:
            self._told.append(Event(now, Kind.COMPUTED, worker.index))
            self._at(now + _compute_s(self._fleet, worker, self._random), self._on_computed, worker)
            return
        worker.computed = True
        if not worker.open:
            self._begin_exchange(now, worker)

    def _begin_exchange(self, now: float, worker: Worker) -> None:
        """Begins an exchange and, with overlap, the next computation, from the previous exchange's parameters."""
        fleet, number = self._fleet, worker.num_batches
        self._told.append(Event(now, Kind.COMPUTED, worker.index))
        pushes, pulls = number % fleet.push_every == 0, fleet.overlap or number % fleet.fetch_every == 0
        worker.calls = [(True, shard) for shard in worker.order if pushes]
        worker.calls += [(False, shard) for shard in worker.order if pulls]
        worker.num_pushes += pushes
        worker.computed, worker.next, worker.began = False, 0, now
        worker.pushed, worker.waiting = worker.bases, dict.fromkeys(worker.order) if pushes else {}
        if fleet.overlap:
            self._begin_computing(now, worker)
        for _ in range(min(_CALLS_AT_A_TIME, len(worker.calls))):
            self._next_call(now, worker)

    def _begin_computing(self, now: float, worker: Worker) -> None:
        self._told.append(Event(now, Kind.BEGUN, worker.index))
        worker.bases = list(worker.pulled)
        self._at(now + _compute_s(self._fleet, worker, self._random), self._on_computed, worker)

    def _next_call(self, now: float, worker: Worker) -> None:
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
        opened = Open(worker, is_push, shard, stages)
        if is_push:
            self._serve(now, opened)
        elif shard in worker.waiting:  # waits for its push, and occupies one of the threads
            worker.waiting[shard] = opened
        else:
            self._take_turn(now, opened)

    def _take_turn(self, now: float, pull: Open) -> None:
        """Serves a pull, or keeps it until the pace permits it."""
        turns = self._turns[pull.shard]
        if turns.permit(pull.worker):
            self._serve(now, pull)
        else:
            turns.blocked.append(pull)

    def _serve(self, now: float, call: Open) -> None:
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
            self._send(now, call)
            self._serve(now, call)
            return
        self._at(max(now, call.end), self._on_done, call)

    def _send(self, now: float, call: Open) -> None:
        """Records a pull's version as the shard begins to send, and adds the stages of the reply."""
        shard, worker, pull = call.shard, call.worker, self._fleet.pulls[call.shard]
        worker.pulled[shard] = self._turns[shard].version
        self._told.append(Event(now, Kind.PULLED, worker.index, shard))
        self._bytes += pull.num_bytes
        call.stages += [
            (self._shard_out[shard], pull.num_bytes),
            (self._worker_in[worker.index], pull.num_bytes),
            (self._worker_cores[worker.index], pull.worker_s),
        ]

    def _on_done(self, now: float, call: Open) -> None:
        worker, shard = call.worker, call.shard
        if call.is_push:
            turns, base = self._turns[shard], worker.pushed[shard]
            self._staleness[min(turns.version - base, BUCKETS - 1)] += 1
            self._told.append(Event(now, Kind.PUSHED, worker.index, shard))
            for permitted in turns.pushed(worker, base):
                self._serve(now, permitted)
            if pull := worker.waiting.pop(shard):
                self._take_turn(now, pull)
        worker.open -= 1
        if worker.next < len(worker.calls):
            self._next_call(now, worker)
        elif not worker.open:
            pushed = worker.calls[0][0]
            self._steps += pushed
            self._counted += pushed
            self._exchange_s += now - worker.began
            if not self._fleet.overlap or not worker.num_batches:
                self._begin_computing(now, worker)
            elif worker.computed:
                self._begin_exchange(now, worker)
            self._let_in(now)


def _compute_s(fleet: Fleet, worker: Worker, rng: random.Random) -> float:
    """Seconds in which a worker computes its next gradient."""
    mean = fleet.compute_s * fleet.slowness(worker.index)
    if fleet.compute == "constant" or not mean:
        return mean
    if fleet.compute == "exponential":
        return rng.expovariate(1 / mean)
    variance = math.log1p(fleet.spread**2)
    return rng.lognormvariate(math.log(mean) - variance / 2, math.sqrt(variance))
