"""The parts of a simulated fleet: stations that serve one call after another, workers, calls and the turns of pulls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from downpour.ps.policy.pace import ROUND, Async, Mode, Pace, Sync


class Station:
    """A queue with one or more servers.

    Attributes:
        free: Heap of the times at which each server becomes idle.
        rate: Work of one server in a second: core-seconds, or bytes.
    """

    def __init__(self, capacity: float, num_servers: int) -> None:
        self.free, self.rate = [0.0] * num_servers, capacity / num_servers

    @classmethod
    def of_cores(cls, cores: float) -> Station:
        """Returns a station of cores; a part of a core is one slow server."""
        return cls(cores, max(1, int(cores)))


class Worker:
    """One worker: the versions it works with, and its calls in flight.

    Attributes:
        bases: Versions that the gradient being computed is based on.
        pushed: Versions that the gradient being pushed is based on.
        pulled: Versions of the latest pulls.
        order: Shards, in the order of its calls.
        calls: (is a push, shard) of the exchange, in the order in which they begin.
        num_batches: Gradients computed.
        num_pushes: Pushes begun.
        next: Index of the next of `calls`.
        open: Calls in flight.
        waiting: Pulls by shard whose push is not over; None: not yet begun.
        began: When the exchange began.
        computed: Whether a gradient waits for the exchange before to end.
    """

    def __init__(self, index: int, num_shards: int) -> None:
        self.index = index
        self.bases, self.pushed, self.pulled = ([0] * num_shards for _ in range(3))
        self.order = [(index + i) % num_shards for i in range(num_shards)]
        self.calls = list[tuple[bool, int]]()
        self.num_batches = self.num_pushes = 0
        self.next = self.open = 0
        self.waiting: dict[int, Open | None] = {}
        self.began = 0.0
        self.computed = False


@dataclass(slots=True, eq=False)
class Open:
    """A call in flight: `stages` are the stations and the work of each, `at` is the next of them."""

    worker: Worker
    is_push: bool
    shard: int
    stages: list[tuple[Station, float]]
    at: int = 0
    end: float = 0.0


class Turns:
    """Which pulls one shard's pace permits, and its version: a push is applied, or under `Sync` summed, as a whole.

    Args:
        mode: Synchronisation model.
        num_workers: Workers; each has pulled version 0.
        ahead: Whether a worker pulls before it computes the gradient that it pushes next.

    Attributes:
        version: The shard's version.
        blocked: Pulls that are not permitted yet, in the order in which they came.
    """

    def __init__(self, mode: Mode, num_workers: int, *, ahead: bool) -> None:
        self.version = 0
        self.blocked: list[Open] = []
        self._pace, self._ahead = Pace(mode, num_workers, np.zeros(1, ROUND)), int(ahead)
        self._is_async, self._is_sync = isinstance(mode, Async), isinstance(mode, Sync)
        for worker in range(num_workers):
            self._pace.may_pull(worker, 1, self._ahead, self.version)

    def permit(self, worker: Worker) -> bool:
        """Whether the worker's pull need not wait."""
        return self._is_async or self._pace.may_pull(worker.index, 1, worker.num_pushes + self._ahead, self.version)

    def pushed(self, worker: Worker, base: int) -> list[Open]:
        """Counts a push of a gradient of version `base`; returns the blocked pulls that it permits."""
        if not self._is_sync:
            self.version += 1
        elif not self._pace.arrived(0, base).late:
            for chunk in self._pace.due():
                self._pace.complete(chunk)
                self.version += 1
        if self._is_async:
            return []
        self._pace.pushed(worker.index, 1, worker.num_pushes, base)
        permitted = [pull for pull in self.blocked if self.permit(pull.worker)]
        self.blocked = [pull for pull in self.blocked if pull not in permitted]
        return permitted
