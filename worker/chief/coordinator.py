"""The chief's state and decisions: which workers run, progress of training, when to checkpoint, when to end.

Pure: events are method calls with the time, decisions are return values. No I/O, no clock, no
threads; `downpour.worker.chief.chief` holds a lock around every call. All times are seconds of one monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import json_format

from downpour.model.data.order import Lease
from downpour.proto import chief_pb2 as pb
from downpour.proto.errors import WorkerSuperseded
from downpour.worker.chief.leases import LeaseTable
from downpour.worker.chief.reports import Reports

_UNSEEN_INCARNATIONS = 1 << 20


class OtherRecords(ValueError):
    """A state belongs to other training records than the job's."""


@dataclass
class _Worker:
    """The newest incarnation of one index."""

    incarnation: int
    host: str
    last_heard_s: float
    finished: bool = False
    process: str = ""  # token of the registered process; "" after a restart of the chief


@dataclass
class Coordinator:
    """The state of one job.

    Attributes:
        num_steps: Global steps until the job ends.
        checkpoint_every_steps: Global steps between checkpoints.
        leases: Assigns records to workers.
        max_train_s: Seconds of training after which the job ends at any step; counted anew when it is resumed.
        num_workers: Number of expected workers.
        lease_s: Seconds without a message after which a worker counts as lost. It reports every second from a thread
            of its own, however long its steps take.
        opened_s: Time from which workers can register.
        started_s: When the first step began, computed from its worker's first report.
        step: Highest version of a shard that a worker or the chief has observed.
        failure: Why the job failed; empty while it has not.
        seconds_before: Seconds of training before this object was made, under an earlier chief.
        resumed_s: Seconds of training before the job was resumed, which do not count towards `max_train_s`.
        versions: Highest version of each shard that a worker has reported.
        incarnation: Highest incarnation assigned or observed, of any worker.
        reports: The workers' reports and their totals.
    """

    num_steps: int
    checkpoint_every_steps: int
    leases: LeaseTable
    max_train_s: float = math.inf
    num_workers: int = 1
    lease_s: float = 30.0
    opened_s: float | None = None
    step: int = 0
    started_s: float | None = None
    ended_s: float | None = None
    failure: str = ""
    seconds_before: float = 0.0
    resumed_s: float = 0.0
    versions: list[int] = field(default_factory=list)
    incarnation: int = 0
    reports: Reports = field(default_factory=Reports)
    _workers: dict[int, _Worker] = field(default_factory=dict)
    _checkpoint_step: int = 0

    def give_incarnation(self, request: pb.RegisterRequest, now_s: float) -> int:
        """Registers a process of a worker and returns its incarnation; the newest of an index wins.

        The same process gets the same one again: it registers twice when a reply was lost.
        """
        known = self._workers.get(request.worker)
        if known is None or not request.process or known.process != request.process:
            self.register(request.worker, self.incarnation + 1, request.host, now_s)
            self._workers[request.worker].process = request.process
        return self._workers[request.worker].incarnation

    def saw_incarnation(self, incarnation: int, *, goes_on: bool = False) -> None:
        """Records an incarnation that a shard or an earlier chief has recorded; later assigned ones are higher.

        With `goes_on`, they are also higher than incarnations that an earlier chief assigned and that neither its
        journal nor a shard has recorded.
        """
        self.incarnation = max(self.incarnation, incarnation) + goes_on * _UNSEEN_INCARNATIONS

    def register(self, worker: int, incarnation: int, host: str, now_s: float) -> None:
        """Records an incarnation of a worker that sent a message; the newest of an index wins.

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
        if known is None or incarnation > known.incarnation:
            if known is not None:
                self.leases.release(worker, known.incarnation)
            self._workers[worker] = _Worker(incarnation, host, now_s)

    def report(self, report: pb.WorkerReport, now_s: float) -> bool:
        """Records a worker's totals; returns whether it should stop.

        Raises:
            WorkerSuperseded: A newer incarnation of its index is known.
        """
        self.register(report.worker, report.incarnation, "", now_s)
        worker = self._workers[report.worker]
        if worker.finished and not report.finished:  # sent before its last report, and overtaken by it
            return self.should_stop(now_s)
        worker.last_heard_s, worker.finished = now_s, report.finished
        given = self.leases.given(report.worker, report.incarnation)
        before = self.reports.records_done(report.worker, report.incarnation)
        self.leases.records_repeated += max(report.records_done - max(before, given), 0)
        self.reports.add(report)
        self.leases.done(report.worker, report.incarnation, report.records_done)
        if report.finished:
            self.leases.release(report.worker, report.incarnation)
        self.saw(report.version)
        if report.versions:
            known = self.versions or [0] * len(report.versions)
            self.versions = [max(pair) for pair in zip(known, report.versions, strict=True)]
        if report.steps and self.started_s is None:
            self.started_s = now_s - report.compute_seconds
        if report.failure and not self.failure:
            self.failure = f"worker {report.worker}: {report.failure}"
        self.reports.mark(now_s)
        return self.should_stop(now_s)

    def saw(self, version: int) -> None:
        """Records a version that a shard has reached."""
        self.step = max(self.step, version)

    def lease(self, worker: int, incarnation: int, number: int, now_s: float) -> Lease:
        """Grants a worker positions to train on, those that lost workers held first; see `LeaseTable.grant`.

        Raises:
            WorkerSuperseded: A newer incarnation of its index is known, or this chief has no record of its leases.
        """
        self.register(worker, incarnation, "", now_s)
        self._workers[worker].last_heard_s = now_s
        for index, known in self._workers.items():
            if self._is_gone(known, now_s):
                self.leases.release(index, known.incarnation)
        return self.leases.grant(worker, incarnation, number)

    def should_stop(self, now_s: float) -> bool:
        """Whether training is over: enough steps, enough time, or a failure."""
        out_of_time = self.started_s is not None and self.train_s(now_s) - self.resumed_s > self.max_train_s
        stop = self.step >= self.num_steps or out_of_time or bool(self.failure)
        if stop and self.ended_s is None:
            self.ended_s = now_s
        return stop

    def ended_by(self) -> str:
        """Why training is over: `failure`, `steps` or `max_train_s`."""
        if self.failure:
            return "failure"
        return "steps" if self.step >= self.num_steps else "max_train_s"

    def workers_ended(self, now_s: float) -> bool:
        """Whether every worker has finished or is lost."""
        return all(self._is_gone(worker, now_s) for worker in self._workers.values())

    def absent(self, now_s: float) -> list[tuple[int, int]]:
        """Workers (index, incarnation) that have finished, are lost, or did not register within `lease_s` (0)."""
        gone = [(index, w.incarnation) for index, w in self._workers.items() if self._is_gone(w, now_s)]
        if self.opened_s is not None and now_s - self.opened_s > self.lease_s:
            gone += [(index, 0) for index in range(self.num_workers) if index not in self._workers]
        return gone

    def checkpoint_due(self) -> bool:
        """Whether a multiple of `checkpoint_every_steps` has passed since the last checkpoint."""
        return self.step // self.checkpoint_every_steps > self._checkpoint_step // self.checkpoint_every_steps

    def checkpointed(self, step: int) -> None:
        """Records that a checkpoint of this step was begun."""
        self._checkpoint_step = step

    def train_s(self, now_s: float) -> float:
        """Seconds of training so far."""
        here = 0.0 if self.started_s is None else (self.ended_s or now_s) - self.started_s
        return self.seconds_before + here

    def state(self, now_s: float, *, with_workers: bool) -> dict[str, Any]:
        """Returns everything that a later chief needs, as JSON values.

        Args:
            now_s: The time.
            with_workers: Whether workers continue. If not, their leases are given back, and new workers are expected.
        """
        state = {
            "step": self.step,
            "train_s": self.train_s(now_s),
            "resumed_s": self.resumed_s,
            "started": self.started_s is not None or bool(self.seconds_before),
            "ended": self.ended_s is not None,
            "failure": self.failure,
            "checkpoint_step": self._checkpoint_step,
            "versions": self.versions,
            "incarnation": self.incarnation,
            "reports": self.reports.state(),
            "leases": self.leases.state(with_holders=with_workers),
        }
        if with_workers:
            state["workers"] = {
                str(index): [worker.incarnation, worker.host, worker.finished]
                for index, worker in self._workers.items()
            }
        return state

    def load(self, state: Mapping[str, Any], now_s: float, *, gap_s: float = 0.0) -> None:
        """Continues from a state; `gap_s` are the seconds of training during which no chief ran.

        Raises:
            OtherRecords: The state belongs to other records than the job's.
            KeyError: It is not a state of a job; nothing has changed.
        """
        try:
            num_records = int(state["leases"]["num_records"])
            leases = LeaseTable.from_state(state["leases"], self.leases.lease_records)
            reports = [json_format.ParseDict(entry, pb.WorkerReport()) for entry in state["reports"]]
            workers = {
                int(index): _Worker(int(incarnation), str(host), now_s, bool(finished))
                for index, (incarnation, host, finished) in state.get("workers", {}).items()
            }
            # Restored shards begin at the checkpoint's versions, and their number may differ.
            versions = [int(version) for version in state["versions"]] if "workers" in state else []
            step, checkpoint_step, train_s = int(state["step"]), int(state["checkpoint_step"]), float(state["train_s"])
            failure, started, ended = str(state["failure"]), bool(state["started"]), bool(state["ended"])
            resumed_s = float(state.get("resumed_s", 0.0)) if "workers" in state else train_s
            incarnation = int(state.get("incarnation", 0))
        except (KeyError, TypeError, ValueError, AttributeError, json_format.ParseError) as error:
            raise KeyError(f"not the state of a job: {error!r}") from None
        if num_records != self.leases.num_records:
            raise OtherRecords(
                f"the job began with {num_records} training records, and its data now has "
                f"{self.leases.num_records}; give the data that it began with"
            )
        self.step, self.failure, self._checkpoint_step = step, failure, checkpoint_step
        self.versions, self.leases, self.seconds_before = versions, leases, train_s
        self.resumed_s = resumed_s
        for report in reports:
            self.reports.add(report)
        self._workers.update(workers)
        for seen in (incarnation, *(r.incarnation for r in reports), *(w.incarnation for w in workers.values())):
            self.saw_incarnation(seen)
        if workers and started:
            self.started_s = now_s - gap_s
            self.ended_s = self.started_s if ended else None

    def progress(self, now_s: float) -> pb.ProgressReply:
        """Returns the step, rates over the last seconds, and the time left at this rate (-1 if unknown)."""
        first, last = self.reports.window()
        elapsed = last.at_s - first.at_s
        steps = last.steps - first.steps
        pushes_per_second = (last.pushes - first.pushes) / elapsed if elapsed else 0.0
        left = (self.num_steps - self.step) / pushes_per_second if pushes_per_second else math.inf
        if self.started_s is not None:
            left = min(left, self.max_train_s - self.train_s(now_s) + self.resumed_s)
        return pb.ProgressReply(
            step=self.step,
            num_steps=self.num_steps,
            loss=self.reports.recent_loss(),
            images_per_second=(last.images - first.images) / elapsed if elapsed else 0.0,
            pushes_per_second=pushes_per_second,
            staleness_mean=(last.staleness_sum - first.staleness_sum) / steps if steps else 0.0,
            seconds_left=max(left, 0.0) if math.isfinite(left) else -1.0,
            failure=self.failure,
        )

    def _is_gone(self, worker: _Worker, now_s: float) -> bool:
        return worker.finished or now_s - worker.last_heard_s > self.lease_s
