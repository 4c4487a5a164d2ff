"""The chief's state and decisions: progress of training, when to checkpoint, when to end.

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
from downpour.worker.chief.epoch_log import EpochLog
from downpour.worker.chief.lease_sizes import LeaseSizes
from downpour.worker.chief.leases import LeaseTable
from downpour.worker.chief.membership import Membership, workers_from
from downpour.worker.chief.reports import Reports
from downpour.worker.chief.training_time import TrainingTime


class OtherRecords(ValueError):
    """A state belongs to other training records than the job's."""


@dataclass
class Coordinator:
    """The state of one job.

    Attributes:
        num_steps: Global steps until the job ends.
        checkpoint_every_steps: Global steps between checkpoints.
        leases: Assigns records to workers.
        members: The workers that run.
        time: Seconds of training, and their limit.
        step: Highest version of a shard that a worker or the chief has observed.
        failure: Why the job failed; empty while it has not.
        stopped: What ended training early, `early stopping` or `callback`, and why; None while nothing has.
        versions: Highest version of each shard that a worker has reported.
        reports: The workers' reports and their totals.
        epochs: Losses and scores by epoch.
    """

    num_steps: int
    checkpoint_every_steps: int
    leases: LeaseTable
    members: Membership = field(default_factory=Membership)
    time: TrainingTime = field(default_factory=TrainingTime)
    step: int = 0
    failure: str = ""
    stopped: tuple[str, str] | None = None
    versions: list[int] = field(default_factory=list)
    reports: Reports = field(default_factory=Reports)
    epochs: EpochLog = field(default_factory=EpochLog)
    _checkpoint_step: int = 0
    _sizes: LeaseSizes = field(default_factory=LeaseSizes)

    def give_incarnation(self, request: pb.RegisterRequest, now_s: float) -> int:
        """Registers a process of a worker and returns its incarnation; the newest of an index wins.

        The same process gets the same one again: it registers twice when a reply was lost.
        """
        incarnation = self.members.incarnation_for(request.worker, request.process)
        self.register(request.worker, incarnation, request.host, now_s, request.process)
        return incarnation

    def register(self, worker: int, incarnation: int, host: str, now_s: float, process: str = "") -> None:
        """Records an incarnation of a worker that sent a message; the newest of an index wins.

        Raises:
            WorkerSuperseded: A newer incarnation is known.
        """
        replaced = self.members.register(worker, incarnation, host, now_s, process)
        if replaced is not None:
            self.leases.release(worker, replaced)

    def report(self, report: pb.WorkerReport, now_s: float) -> bool:
        """Records a worker's totals; returns whether it should stop.

        Raises:
            WorkerSuperseded: A newer incarnation of its index is known.
        """
        self.register(report.worker, report.incarnation, "", now_s)
        if self.members.has_finished(report.worker) and not report.finished:  # overtaken by its last report
            return self.should_stop(now_s)
        self.members.heard(report.worker, now_s, finished=report.finished)
        given = self.leases.given(report.worker, report.incarnation)
        before = self.reports.records_done(report.worker, report.incarnation)
        self.leases.records_repeated += max(report.records_done - max(before, given), 0)
        self.reports.add(report)
        self.epochs.report(report, now_s)
        self.leases.done(report.worker, report.incarnation, report.records_done)
        if report.finished:
            self.leases.release(report.worker, report.incarnation)
        self.saw(report.version)
        if report.versions:
            known = self.versions or [0] * len(report.versions)
            self.versions = [max(pair) for pair in zip(known, report.versions, strict=True)]
        if report.steps:
            self.time.start(now_s - report.compute_seconds)
        if report.failure and not self.failure:
            self.failure = f"worker {report.worker}: {report.failure}"
        self.reports.mark(now_s, report)
        return self.should_stop(now_s)

    def saw(self, version: int) -> None:
        """Records a version that a shard has reached."""
        self.step = max(self.step, version)

    def lease(self, worker: int, incarnation: int, number: int, now_s: float) -> Lease | None:
        """Grants a worker positions to train on, those that lost workers held first; see `LeaseTable.grant`.

        None while training waits, see `EpochLog`; and after an early end until the worker has reported and so is told.

        Raises:
            WorkerSuperseded: A newer incarnation of its index is known, or this chief has no record of its leases.
        """
        self.register(worker, incarnation, "", now_s)
        self.members.heard(worker, now_s)
        for lost in self.members.gone(now_s):
            self.leases.release(*lost)
        if self.stopped and self.epochs.must_tell(worker, self.time.ended_s or now_s, now_s):
            return None
        waits = self.epochs.must_wait(self.leases.num_granted, self._checkpoint_step, now_s)
        if waits and not self.leases.has_returned and not self.should_stop(now_s):
            return None
        fair = min(self.leases.left_in_epoch, self.epochs.most_leased) // (2 * self.members.num_workers)
        return self._sizes.grant(self.leases, worker, incarnation, number, fair, now_s)

    def should_stop(self, now_s: float) -> bool:
        """Whether training is over: enough steps, enough time, a callback, or a failure."""
        stop = self.step >= self.num_steps or self.time.left_s(now_s) < 0 or bool(self.failure or self.stopped)
        if stop:
            self.time.end(now_s)
        return stop

    def stop(self, by: str, why: str) -> None:
        """Ends training early, unless it is over already."""
        if self.stopped is None and self.time.ended_s is None:
            self.stopped = by, why

    def ended_by(self) -> str:
        """Why training is over: `failure`, `early stopping`, `callback`, `steps` or `max_train_s`."""
        if self.failure or self.stopped:
            return "failure" if self.failure or self.stopped is None else self.stopped[0]
        return "steps" if self.step >= self.num_steps else "max_train_s"

    def checkpoint_due(self) -> bool:
        """Whether a multiple of `checkpoint_every_steps`, or an epoch's end, has passed since the last checkpoint."""
        before, every = self._checkpoint_step, self.checkpoint_every_steps
        return self.step // every > before // every or self.epochs.has_passed(before, self.step)

    def checkpointed(self, step: int) -> None:
        """Records that a checkpoint of this step was begun."""
        self._checkpoint_step = step

    def state(self, now_s: float, *, with_workers: bool) -> dict[str, Any]:
        """Returns everything that a later chief needs, as JSON values.

        Args:
            now_s: The time.
            with_workers: Whether workers continue. If not, their leases are given back, and new workers are expected.
        """
        state = {
            "step": self.step,
            "train_s": self.time.train_s(now_s),
            "resumed_s": self.time.resumed_s,
            "started": self.time.started_s is not None or bool(self.time.seconds_before),
            "ended": self.time.ended_s is not None,
            "failure": self.failure,
            "stopped": self.stopped,
            "checkpoint_step": self._checkpoint_step,
            "versions": self.versions,
            "incarnation": self.members.incarnation,
            "reports": self.reports.state(),
            "epochs": self.epochs.state(),
            "leases": self.leases.state(with_holders=with_workers),
        }
        if with_workers:
            state["workers"] = self.members.state()
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
            workers = workers_from(state.get("workers", {}), now_s)
            # Restored shards begin at the checkpoint's versions, and their number may differ.
            versions = [int(version) for version in state["versions"]] if "workers" in state else []
            step, checkpoint_step, train_s = int(state["step"]), int(state["checkpoint_step"]), float(state["train_s"])
            started, ended = bool(state["started"]), bool(state["ended"])
            # A resumed run goes on: what ended the earlier one does not end it.
            failure = str(state["failure"]) if "workers" in state else ""
            by, why = (state.get("stopped") if "workers" in state else None) or ("", "")
            resumed_s = float(state.get("resumed_s", 0.0)) if "workers" in state else train_s
            incarnation = int(state.get("incarnation", 0))
            self.epochs.load(state.get("epochs", []))
        except (KeyError, TypeError, ValueError, AttributeError, json_format.ParseError) as error:
            raise KeyError(f"not the state of a job: {error!r}") from None
        if num_records != self.leases.num_records:
            raise OtherRecords(
                f"the job began with {num_records} training records, and its data now has "
                f"{self.leases.num_records}; give the data that it began with"
            )
        self.step, self.failure, self._checkpoint_step = step, failure, checkpoint_step
        self.stopped = (str(by), str(why)) if by else None
        self.versions, self.leases = versions, leases
        self.time.seconds_before, self.time.resumed_s = train_s, resumed_s
        for report in reports:
            self.reports.add(report)
        self.members.load(workers)
        for seen in (incarnation, *(report.incarnation for report in reports)):
            self.members.saw_incarnation(seen)
        if workers and started:
            self.time.go_on(now_s - gap_s, has_ended=ended)

    def progress(self, now_s: float) -> pb.ProgressReply:
        """Returns the step, rates over the last seconds, and the time left at this rate (-1 if unknown)."""
        return _progress(self, now_s)


def _progress(job: Coordinator, now_s: float) -> pb.ProgressReply:
    first, last = job.reports.window()
    elapsed = last.at_s - first.at_s
    steps = last.steps - first.steps
    pushes_per_second = (last.pushes - first.pushes) / elapsed if elapsed else 0.0
    left = (job.num_steps - job.step) / pushes_per_second if pushes_per_second else math.inf
    left = min(left, job.time.left_s(now_s))
    return pb.ProgressReply(
        step=job.step,
        num_steps=job.num_steps,
        loss=job.reports.recent_loss(),
        examples_per_second=(last.examples - first.examples) / elapsed if elapsed else 0.0,
        pushes_per_second=pushes_per_second,
        staleness_mean=(last.staleness_sum - first.staleness_sum) / steps if steps else 0.0,
        seconds_left=max(left, 0.0) if math.isfinite(left) else -1.0,
        failure=job.failure,
        epoch_loss=job.epochs.newest_loss(),
    )
