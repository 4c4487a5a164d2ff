"""Synchronisation models: asynchronous, stale-synchronous (bounded) and synchronous with backup workers.

Pure: no locks, no time, no sockets. Let c(w), the clock of worker w, be the number of pushes it has made, min c the
smallest clock of the live workers, and v a shard's version. A worker makes k pushes before its step k.

| mode | a pull for step k blocks until | a push |
|---|---|---|
| `Async(ramp)` | (never blocks) | is applied, v + 1 |
| `Bounded(lead)` | k - min c <= lead | is applied, v + 1 |
| `Sync(num_gradients, backups)` | v is above the version of the worker's last push | is summed; see below |

`Async` lets workers in one after another: 4 at once, and one more for every `ramp` pushes of all; the chief has leases
for no others. So the first updates, which move the parameters most, are fresh, as where one replica trains before the
others are let loose (Dean et al. 2012), and a fleet that is too large for so few steps stays small. Which workers these
are does not matter: where one ends or is lost, another is let in. Fleets of W workers so lose the time of about
ramp * (ln(W / 4) - 1 + 4 / W) steps, once.

`Bounded` is stale synchronous parallel (Ho et al. 2013). `Sync` with backups is Chen et al. 2016 (arXiv 1604.00981):
of N + b workers' gradients of version v the first N are averaged and applied as one update, the later ones are
dropped and counted. The first N are determined chunk by chunk, so a worker that stops in the middle of a push delays
no chunk that others can complete; when fewer than N workers are live, a gradient from each live one is enough.

No pull blocks for longer than a lease: the chief reports the workers that have finished or are lost, and they no
longer count. A new worker starts at min c, so it neither delays others nor leads. A worker that was reported and is
still live starts there with its next push, not its next pull: a pull may be left over from a lost worker, on which no
other pull may block. Clocks are not persisted: a restarted shard starts them again at its workers' next calls, so on
that shard a lead may once grow by `lead`; the other shards still enforce the bound.

No deadlock: pushes never block, so every computed gradient is counted, and the worker with the smallest clock may
always pull. A pull for step k that must return before push k - 1 is sent (overlap) would deadlock with lead 0 or
with `Sync`; jobs refuse these.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

# Progress of one chunk of a shard's vector whose gradients are summed: updates, and gradients towards the next.
ROUND = np.dtype([("round", "<u8"), ("count", "<u8")])

FIRST_WORKERS = 4  # that `Async` lets in at once
WORKERS_A_GRADIENT = 8  # for each gradient of a mean; docs/asynchrony.md


@dataclass(frozen=True)
class Async:
    """No pull blocks.

    Attributes:
        ramp: Pushes of all workers after which one more is let in; 0 lets all in at once.
    """

    ramp: int = 50

    def __post_init__(self) -> None:
        if self.ramp < 0:
            raise ValueError(f"pace: ramp is {self.ramp}; give the pushes for each further worker, or 0 to let all in")


@dataclass(frozen=True)
class Bounded:
    """A worker may lead the slowest by at most `lead` pushes."""

    lead: int

    def __post_init__(self) -> None:
        if self.lead < 0:
            raise ValueError(f"pace: lead is {self.lead}; give 0 or more pushes")


@dataclass(frozen=True)
class Sync:
    """Each version is the mean of the first `num_gradients` of `num_gradients + backups` workers' gradients."""

    num_gradients: int
    backups: int = 0

    def __post_init__(self) -> None:
        if self.num_gradients < 1:
            raise ValueError(f"pace: num_gradients is {self.num_gradients}; give at least 1")
        if self.backups < 0:
            raise ValueError(f"pace: backups is {self.backups}; give 0 or more")


Mode = Async | Bounded | Sync
BY_NAME: dict[str, type] = {mode.__name__: mode for mode in (Async, Bounded, Sync)}


def most_workers(mode: Mode, num_pushes: int) -> float:
    """How many workers may train after so many pushes; infinite if all may."""
    ramp = mode.ramp if isinstance(mode, Async) else 0
    return FIRST_WORKERS + num_pushes // ramp if ramp else math.inf


def permits_overlap(mode: Mode) -> bool:
    """Whether a pull may be required to end before the push before it begins."""
    return not isinstance(mode, Sync) and not (isinstance(mode, Bounded) and mode.lead < 1)


def check(mode: Mode, num_workers: int, most_workers: int, *, overlap: bool) -> None:
    """Raises `ValueError` for a mode that `num_workers` workers, growing to at most `most_workers`, cannot run."""
    if isinstance(mode, Bounded) and overlap and mode.lead < 1:
        raise ValueError("pace: lead is 0 with exchange.overlap; give a lead of at least 1, or exchange.overlap=False")
    if not isinstance(mode, Sync):
        return
    if overlap:
        raise ValueError("pace: Sync needs exchange.overlap=False; a gradient must be of the version it is applied to")
    if most_workers > num_workers:
        raise ValueError(
            f"pace: Sync is for exactly cluster.num_workers = {num_workers} workers, and cluster.max_workers is "
            f"{most_workers}; leave cluster.max_workers out, or give pace Async or Bounded"
        )
    if mode.backups >= num_workers:
        raise ValueError(
            f"pace: backups is {mode.backups} of {num_workers} workers; give fewer backups than cluster.num_workers"
        )
    if mode.num_gradients + mode.backups != num_workers:
        raise ValueError(
            f"pace: num_gradients + backups is {mode.num_gradients + mode.backups}; "
            f"cluster.num_workers is {num_workers}, and must be the same"
        )


class Means:
    """How many pushes make each update of a chunk, where a treatment of staleness takes the mean of several.

    While workers are let in one after another, it is an eighth of those that are. So the first updates are of single
    pushes, as those of few workers are.

    Args:
        gradients: Pushes of an update once all workers are let in.
        pace: The job's.

    Attributes:
        gradients: As given.
    """

    def __init__(self, gradients: int, pace: Mode) -> None:
        self.gradients = gradients
        # Each time that updates take more pushes: number and first version of an update, and its pushes.
        self._numbers, self._versions, self._pushes = [0], [0], [self._fitting(pace, 0)]
        while (pushes := self._pushes[-1]) < gradients:
            assert isinstance(pace, Async)
            more = (WORKERS_A_GRADIENT * (pushes + 1) - FIRST_WORKERS) * pace.ramp  # the first version that allows it
            count = -(-(more - self._versions[-1]) // pushes)
            self._numbers.append(self._numbers[-1] + count)
            self._versions.append(self._versions[-1] + count * pushes)
            self._pushes.append(self._fitting(pace, self._versions[-1]))
        self._table = np.array(self._numbers, "<u8"), np.array(self._pushes)

    def _fitting(self, pace: Mode, version: int) -> int:
        return max(1, int(min(self.gradients, most_workers(pace, version) / WORKERS_A_GRADIENT)))

    @property
    def are_single(self) -> bool:
        """Whether every push is an update."""
        return self.gradients == 1

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """Pushes of updates by their numbers, from 0."""
        first, pushes = self._table
        found: np.ndarray = pushes[np.searchsorted(first, numbers, "right") - 1]
        return found

    def pushes(self, number: int) -> int:
        """Pushes of one update."""
        return self._pushes[bisect.bisect_right(self._numbers, number) - 1]

    def number(self, version: int) -> int:
        """The update that a push to a shard of this version is part of: as many are complete."""
        at = bisect.bisect_right(self._versions, version) - 1
        return self._numbers[at] + (version - self._versions[at]) // self._pushes[at]

    def at(self, version: int) -> int:
        """Pushes of that update."""
        return self._pushes[bisect.bisect_right(self._versions, version) - 1]


@dataclass(frozen=True)
class Verdict:
    """What to do with a chunk's gradient under `Sync`.

    Attributes:
        late: Its round is over; drop it.
        first: It begins the sum.
    """

    late: bool = False
    first: bool = False


@dataclass
class _Member:
    """A live worker. Its clock is `offset` + its own count of pushes."""

    incarnation: int
    clock: int
    offset: int = 0
    pushed_version: int = -1  # of its last push


class Pace:
    """Applies a synchronisation model to one shard. The caller holds a lock during every call.

    Args:
        mode: The synchronisation model.
        num_workers: Expected workers; pulls block on them until they are reported absent.
        rounds: One ROUND a chunk, owned by the caller.
        means: How many pushes make an update, under other modes than `Sync`; None for one.
    """

    def __init__(self, mode: Mode, num_workers: int, rounds: np.ndarray, means: Means | None = None) -> None:
        self.mode = mode
        self._rounds, self._means = rounds, means or Means(1, mode)
        self._members = {worker: _Member(0, 0) for worker in range(num_workers)}
        self._gone: dict[int, int] = {}  # worker -> incarnation that was reported absent

    def may_pull(self, worker: int, incarnation: int, num_pushes: int, version: int) -> bool:
        """Whether a worker may pull the parameters of the step before which it makes `num_pushes` pushes.

        Incarnation 0 is an observer: its pulls never block, and no pull blocks on it.
        """
        if isinstance(self.mode, Async) or not incarnation:
            return True
        if incarnation <= self._gone.get(worker, 0):
            return isinstance(self.mode, Bounded) or not self._between_rounds()
        member = self._member(worker, incarnation, num_pushes)
        if isinstance(self.mode, Bounded):
            return member.offset + num_pushes - self._least() <= self.mode.lead
        return version > member.pushed_version and not self._between_rounds()

    def pushed(self, worker: int, incarnation: int, num_pushes: int, base_version: int) -> None:
        """Records a worker's complete push, its `num_pushes`-th, computed from `base_version`."""
        if not isinstance(self.mode, Async):
            self._gone.pop(worker, None)
            member = self._member(worker, incarnation, num_pushes - 1)
            member.clock = member.offset + num_pushes
            member.pushed_version = base_version

    def absent(self, gone: Iterable[tuple[int, int]]) -> None:
        """Removes workers (index, incarnation) that have finished or are lost; newer incarnations are kept."""
        for worker, incarnation in gone:
            member = self._members.get(worker)
            if member is None or member.incarnation <= incarnation:
                self._members.pop(worker, None)
                self._gone[worker] = max(incarnation, self._gone.get(worker, 0))

    def due(self) -> list[int]:
        """Returns the chunks whose sum has all gradients that it needs; none where no gradients are summed."""
        if isinstance(self.mode, Sync):
            needed: int | np.ndarray = max(1, min(self.mode.num_gradients, len(self._members)))
        elif self._means.are_single:
            return []
        else:
            needed = self._means.of(self._rounds["round"])
        chunks: list[int] = np.flatnonzero(self._rounds["count"] >= needed).tolist()
        return chunks

    def complete(self, chunk: int) -> int:
        """Begins the next round of a due chunk; returns the number of gradients in the last round's sum."""
        state = self._rounds[chunk]
        count = int(state["count"])
        state["round"] += 1
        state["count"] = 0
        return count

    def arrived(self, chunk: int, base_version: int) -> Verdict:
        """Records the arrival of a gradient of `base_version` that is summed, for one chunk."""
        state = self._rounds[chunk]
        if isinstance(self.mode, Sync) and base_version < state["round"]:
            return Verdict(late=True)
        first = state["count"] == 0
        state["count"] += 1
        return Verdict(first=bool(first))

    def rounds(self) -> int:
        """Returns the number of rounds that every chunk has completed: under `Sync`, the shard's version."""
        return int(self._rounds["round"].min())

    def _between_rounds(self) -> bool:
        """Whether some chunks already have the next update and others do not: a pull would mix two versions."""
        rounds = self._rounds["round"]
        return bool((rounds != rounds[0]).any())

    def _least(self) -> int:
        return min(member.clock for member in self._members.values())

    def _member(self, worker: int, incarnation: int, num_pushes: int) -> _Member:
        """Returns the worker's entry; a new worker or incarnation starts at the smallest clock."""
        member = self._members.get(worker)
        if member is None or member.incarnation < incarnation:
            others = [m.clock for w, m in self._members.items() if w != worker]
            clock = member.clock if member is not None and not member.incarnation else min(others, default=0)
            member = _Member(incarnation, clock, clock - num_pushes)
            self._members[worker] = member
        return member
