"""Which workers run: the newest incarnation of each, when it last sent a message, and which are lost. Pure: no clock.

Guarded by the chief's lock, like the coordinator that holds it. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from downpour.proto.errors import WorkerSuperseded
from downpour.ps.policy.pace import Async, Mode

_UNSEEN_INCARNATIONS = 1 << 20


@dataclass
class Worker:
    """The newest incarnation of one index.

    Attributes:
        incarnation: Number of the incarnation.
        host: Host that it runs on; empty if it did not register.
        last_heard_s: When it last sent a message.
        finished: Whether it has sent its last report.
        process: Token of the registered process; empty after a restart of the chief.
    """

    incarnation: int
    host: str
    last_heard_s: float
    finished: bool = False
    process: str = ""


@dataclass
class Membership:
    """The workers of one job.

    Attributes:
        num_workers: Number of expected workers.
        lease_s: Seconds without a message after which a worker counts as lost. It reports every second from a thread
            of its own, however long its steps take.
        opened_s: Time from which workers can register; None before.
        incarnation: Highest incarnation assigned or observed, of any worker.
        pace: Synchronisation model of the workers.
    """

    num_workers: int = 1
    lease_s: float = 30.0
    opened_s: float | None = None
    incarnation: int = 0
    pace: Mode = field(default_factory=Async)
    _workers: dict[int, Worker] = field(default_factory=dict)

    def incarnation_for(self, worker: int, process: str) -> int:
        """Returns the incarnation for a process that registers: a new one, or again its own if a reply was lost."""
        known = self._workers.get(worker)
        if known is not None and process and known.process == process:
            return known.incarnation
        return self.incarnation + 1

    def saw_incarnation(self, incarnation: int, *, goes_on: bool = False) -> None:
        """Records an incarnation that a shard or an earlier chief has recorded; later assigned ones are higher.

        With `goes_on`, they are also higher than incarnations that an earlier chief assigned and that neither its
        journal nor a shard has recorded.
        """
        self.incarnation = max(self.incarnation, incarnation) + goes_on * _UNSEEN_INCARNATIONS

    def register(self, worker: int, incarnation: int, host: str, now_s: float, process: str = "") -> int | None:
        """Records an incarnation of a worker; returns the older one that it replaces, None if there is none.

        Raises:
            WorkerSuperseded: A newer incarnation is known.
        """
        known = self._workers.get(worker)
        if known is not None and incarnation < known.incarnation:
            raise WorkerSuperseded(
                f"worker {worker} was taken over by {known.host or 'another process'}: two workers run with "
                f"--index={worker}; give every worker its own index"
            )
        self.saw_incarnation(incarnation)
        if known is not None and incarnation == known.incarnation:
            return None
        self._workers[worker] = Worker(incarnation, host, now_s, process=process)
        return known.incarnation if known is not None else None

    def heard(self, worker: int, now_s: float, *, finished: bool | None = None) -> None:
        """Records that a registered worker has sent a message, or a report with whether it was the last one."""
        known = self._workers[worker]
        known.last_heard_s = now_s
        if finished is not None:
            known.finished = finished

    def has_finished(self, worker: int) -> bool:
        """Whether a registered worker has sent its last report."""
        return self._workers[worker].finished

    def gone(self, now_s: float) -> list[tuple[int, int]]:
        """Workers (index, incarnation) that have finished or are lost."""
        return [(index, worker.incarnation) for index, worker in self._workers.items() if self._is_gone(worker, now_s)]

    def running(self, now_s: float) -> list[tuple[int, int]]:
        """Workers (index, incarnation) that have registered and are not gone."""
        return [(i, worker.incarnation) for i, worker in self._workers.items() if not self._is_gone(worker, now_s)]

    def absent(self, now_s: float) -> list[tuple[int, int]]:
        """Workers (index, incarnation) that have finished, are lost, or did not register within `lease_s` (0)."""
        gone = self.gone(now_s)
        if self.opened_s is not None and now_s - self.opened_s > self.lease_s:
            gone += [(index, 0) for index in range(self.num_workers) if index not in self._workers]
        return gone

    def all_gone(self, now_s: float) -> bool:
        """Whether every registered worker has finished or is lost."""
        return all(self._is_gone(worker, now_s) for worker in self._workers.values())

    def lost(self, worker: int, now_s: float) -> bool:
        """Whether a registered worker has not been heard of within `lease_s`, and has not finished."""
        return self._is_gone(self._workers[worker], now_s) and not self._workers[worker].finished

    @property
    def registered(self) -> Mapping[int, Worker]:
        """The newest incarnation of every index that has registered."""
        return self._workers

    def state(self) -> dict[str, Any]:
        """Returns the workers as JSON values."""
        return {
            str(index): [worker.incarnation, worker.host, worker.finished] for index, worker in self._workers.items()
        }

    def load(self, workers: Mapping[int, Worker]) -> None:
        """Adds the workers of an earlier chief."""
        self._workers.update(workers)
        for worker in workers.values():
            self.saw_incarnation(worker.incarnation)

    def _is_gone(self, worker: Worker, now_s: float) -> bool:
        return worker.finished or now_s - worker.last_heard_s > self.lease_s


def workers_from(state: Mapping[str, Any], now_s: float) -> dict[int, Worker]:
    """Reads workers from what `Membership.state` returned, as heard of now.

    Raises:
        TypeError, ValueError, AttributeError: It is not a state of workers.
    """
    return {
        int(index): Worker(int(incarnation), str(host), now_s, bool(finished))
        for index, (incarnation, host, finished) in state.items()
    }
