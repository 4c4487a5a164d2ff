"""The chief: gives the shards their values, checkpoints, watches, ends the job. Never computes.

`Coordinator` decides; this module does the I/O around it: a gRPC service, the shards (`worker.shards`), files
(`worker.run_folder`). A chief that is started again finds the shards as they are and its own knowledge in the journal,
which is written before an answer that depends on it goes out; training goes on meanwhile.

Threads: gRPC's threads enter the servicer, the main thread runs `Chief.run`, one looks after the shards; one condition
guards the coordinator and is notified whenever an event came in. No TensorFlow: the initial values are passed in.
"""

from __future__ import annotations

import functools
import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from absl import logging

from downpour.proto import chief_pb2 as pb
from downpour.proto import chief_pb2_grpc
from downpour.proto.errors import (
    CheckpointFailed,
    JobFailed,
    NotReady,
    NotSaved,
    Unreachable,
)
from downpour.proto.rpc.server import Server, handler_of
from downpour.proto.security.config import PLAIN, Security
from downpour.ps.checkpoint.manifest import Checkpoint
from downpour.ps.layout import Layout
from downpour.ps.policy.pace import Async
from downpour.worker.chief.coordinator import Coordinator
from downpour.worker.chief.departures import Departures
from downpour.worker.chief.healer import Healer
from downpour.worker.chief.known import Known
from downpour.worker.chief.leases import LeaseTable
from downpour.worker.chief.plan import Plan
from downpour.worker.chief.recall import recall
from downpour.worker.chief.run_folder import RunFolder, insist
from downpour.worker.chief.shards import Shards, known_layout
from downpour.worker.chief.summary import summary

_LOOK_EVERY_S = 1.0
_SAY_EVERY_S = 10.0  # the progress, in the log
_WORKERS_END_S = 120.0
_SCORE_WITHIN_S = 600.0
_GATHER_S = 1.0  # until shards that leave at the same time have said so
_INSIST_S = 20.0  # on the last checkpoint and the summary, until there is room
_COMES_WITHIN_S = 120.0  # an evaluator that nobody has heard of when training is over
# Room for every worker of the reference fleet (50) and the evaluator to be in a call at once.
_NUM_THREADS = 64


class Chief(chief_pb2_grpc.ChiefServicer):
    """Serves from construction; `run` carries a job through. Until then workers that register are told to wait.

    Args:
        plan: The job.
        run_dir: Folder of checkpoints, history and summary.
        host: Address to listen on.
        port: Port to listen on; 0 lets the kernel choose.
        security: Of this process.

    Attributes:
        port: The port it listens on.

    Raises:
        ValueError: The folder of the run or of its checkpoints cannot be written, or the port is taken.
    """

    def __init__(self, plan: Plan, run_dir: Path, *, host: str, port: int, security: Security = PLAIN) -> None:
        self._plan = plan
        self._security = security
        self._folder = RunFolder(run_dir, plan.checkpoint_dir)
        self._shards: Shards | None = None
        self._ending = threading.Event()
        self._changed = threading.Condition()
        # Everything below is guarded by `_changed`.
        self._layout: Layout | None = None
        self._job_id = ""
        self._coordinator = Coordinator(
            plan.num_steps,
            plan.checkpoint_every_steps,
            LeaseTable(plan.num_records, plan.lease_records),
            plan.max_train_s,
            plan.num_workers,
            plan.lease_s,
        )
        self._known = Known(self._coordinator)
        self._state = pb.ProgressReply.STATE_PREPARING
        self._departures = Departures()
        self._evaluator_heard_s: float | None = None
        handler = handler_of(functools.partial(chief_pb2_grpc.add_ChiefServicer_to_server, self))
        self._server = Server(handler, host, port, _NUM_THREADS, security)
        self.port = self._server.port

    # What workers, the evaluator and the launcher ask.

    def Register(self, request: pb.RegisterRequest, context: grpc.ServicerContext) -> pb.RegisterReply:
        """See `downpour/proto/chief.proto`."""
        with self._changed:
            self._plan.check_worker(request, self._ready().fingerprint)
            now = time.monotonic()
            incarnation = self._coordinator.give_incarnation(request, now)
            self._write_journal()
            stop = self._coordinator.should_stop(now)
        logging.info("worker %d is %s, incarnation %d", request.worker, request.host, incarnation)
        return pb.RegisterReply(stop=stop, incarnation=incarnation, job_id=self._job_id)

    def Report(self, request: pb.WorkerReport, context: grpc.ServicerContext) -> pb.ReportReply:
        """See `downpour/proto/chief.proto`."""
        with self._changed:
            self._ready()
            stop = self._coordinator.report(request, time.monotonic())
            self._changed.notify_all()
        return pb.ReportReply(stop=stop)

    def Lease(self, request: pb.LeaseRequest, context: grpc.ServicerContext) -> pb.LeaseReply:
        """See `downpour/proto/chief.proto`."""
        with self._changed:
            self._ready()
            now = time.monotonic()
            lease = self._coordinator.lease(request.worker, request.incarnation, request.number, now)
            self._write_journal()
        return pb.LeaseReply(epoch=lease.epoch, start=lease.start, stop=lease.stop)

    def NextCheckpoint(
        self, request: pb.NextCheckpointRequest, context: grpc.ServicerContext
    ) -> pb.NextCheckpointReply:
        """See `downpour/proto/chief.proto`."""
        self._plan.check_job("the evaluator", request.job or self._plan.job)
        with self._changed:
            self._evaluator_heard_s = time.monotonic()
            if self._known.checkpoint is not None and self._known.checkpoint.step > request.after_step:
                return self._known.checkpoint
            return pb.NextCheckpointReply(
                stop=self._state in (pb.ProgressReply.STATE_DONE, pb.ProgressReply.STATE_FAILED)
            )

    def ReportScore(self, request: pb.Score, context: grpc.ServicerContext) -> pb.ReportScoreReply:
        """See `downpour/proto/chief.proto`."""
        metrics = dict(request.metrics)
        with self._changed:
            self._ready()
            self._known.score = request
            seconds = self._coordinator.train_s(time.monotonic())
            self._write_journal()
            self._changed.notify_all()
        self._folder.note({"kind": "score", "step": request.step, "seconds": round(seconds, 2), **metrics})
        return pb.ReportScoreReply()

    def Progress(self, request: pb.ProgressRequest, context: grpc.ServicerContext) -> pb.ProgressReply:
        """See `downpour/proto/chief.proto`."""
        with self._changed:
            reply = self._coordinator.progress(time.monotonic())
            waits = self._state == pb.ProgressReply.STATE_TRAINING and self._coordinator.started_s is None
            reply.state = pb.ProgressReply.STATE_PREPARING if waits else self._state
            if self._known.score is not None:
                reply.metrics.update(self._known.score.metrics)
        return reply

    def Leaving(self, request: pb.LeavingRequest, context: grpc.ServicerContext) -> pb.LeavingReply:
        """See `downpour/proto/chief.proto`."""
        with self._changed:
            self._ready()
            may_go = self._departures.ask(request.shard, request.incarnation, time.monotonic())
            self._changed.notify_all()
            return pb.LeavingReply(
                may_go=may_go or (self._known.checkpoint is not None and self._known.checkpoint.last)
            )

    # What the chief does.

    def known_layout(self, shards: Sequence[str]) -> Layout | None:
        """The layout of shards that hold this very job, as the journal says; then no model need be built to know it."""
        journal = self._folder.journal()
        same = journal is not None and journal.get("job") == self._plan.description.get("job")
        return known_layout(shards, self._security) if same else None

    def run(
        self,
        layout: Layout,
        shards: Sequence[str],
        initial_values: Callable[[], list[np.ndarray]],
        give_up_after_s: float,
        *,
        stop_shards: bool = False,
    ) -> dict[str, Any]:
        """Carries the job from empty shards to the summary, which is also written to `summary.json`.

        Args:
            layout: Of the model's variables.
            shards: Addresses of the shards, in order.
            initial_values: Gives one array a variable, in the layout's order; called if any shard is empty.
            give_up_after_s: See `ShardClient`.
            stop_shards: Whether to end the shards when the job is over, failed or not.

        Raises:
            JobFailed: A worker ended the job, the last good state has been checkpointed; or a shard has lost its memory
                and every checkpoint is damaged; or the summary cannot be written.
            NotSaved: Training is over and the last checkpoint cannot be written. The shards are not stopped.
            Unreachable: A shard does not answer.
        """
        self._shards = Shards(shards, layout, self._plan.told(), give_up_after_s, self._security)
        healer = Healer(self._shards, self._folder, self._known, self._changed, self._write_journal, initial_values)
        self._begin(self._shards, healer, initial_values)
        with self._changed:
            self._layout = layout
            self._state = pb.ProgressReply.STATE_TRAINING
            self._coordinator.opened_s = time.monotonic()
        threading.Thread(target=healer.run, args=(self._ending,), name="healer", daemon=True).start()
        self._watch(self._shards)
        self._enter(pb.ProgressReply.STATE_SCORING)
        if healer.gave_up:  # there is nothing left to write
            self._end(self._shards, failed=True, stop_shards=stop_shards)
            raise JobFailed(self._coordinator.failure)
        self._wait_for_workers(self._shards)
        self._write_last_checkpoint(self._shards)
        failure = self._coordinator.failure
        if not failure:
            self._wait_for_last_score()
        found = self._summary(self._shards)
        unwritten = insist(lambda: self._folder.write_summary(found), "the summary", _INSIST_S)
        self._end(self._shards, failed=bool(failure), stop_shards=stop_shards)
        where = self._folder.checkpoints.url
        if failure:
            raise JobFailed(f"{failure}; the parameters before it are in {where}")
        if unwritten:
            raise JobFailed(f"training is over, but no summary: {unwritten}; the parameters are in {where}")
        return found

    def _end(self, shards: Shards, *, failed: bool, stop_shards: bool) -> None:
        self._enter(pb.ProgressReply.STATE_FAILED if failed else pb.ProgressReply.STATE_DONE)
        self._ending.set()
        if stop_shards:
            shards.stop()

    @property
    def ready(self) -> bool:
        """Whether it knows the layout, and answers."""
        return self._layout is not None  # unlocked: a moment early or late is no matter

    def close(self) -> None:
        """Stops serving, after a moment in which others can learn that the job is over."""
        self._ending.set()
        self._server.stop(2.0).wait()
        if self._shards is not None:
            self._shards.close()
        self._folder.close()

    def see_off(self, within_s: float) -> None:
        """Returns once shards that leave at the same time have their checkpoint, or nobody knows of any."""
        begin = time.monotonic()
        with self._changed:
            while (now := time.monotonic()) < begin + within_s:
                if now > begin + _GATHER_S and not self._departures.waiting(now):
                    return
                self._changed.wait(_GATHER_S / 4)

    def hold(self) -> None:
        """Brings the journal up to date and answers nothing any more: this process is about to end."""
        self._changed.acquire()  # for good: what others are told after this, the next chief would not know
        if self._layout is not None:
            self._write_journal()

    def _ready(self) -> Layout:
        """The layout, once this chief knows what the last one knew; called with the lock held.

        Raises:
            NotReady: It does not yet.
        """
        if self._layout is None:
            raise NotReady("the chief still builds its model, or looks where the job stands")
        return self._layout

    def _begin(self, shards: Shards, healer: Healer, initial_values: Callable[[], list[np.ndarray]]) -> None:
        """A job that goes on, one that is resumed, or a new one.

        Raises:
            ValueError: All checkpoints are damaged where one is needed, or there is none where one is demanded.
        """
        statuses = shards.statuses()
        held = [(i, status.job_id) for i, status in enumerate(statuses) if status.ready]
        shards.job_id, saved = self._folder.settle(held, self._plan)
        if held:
            self._go_on(shards, healer)
        elif saved:
            self._resume(shards, saved)
        else:
            values = initial_values()  # first: a mistake in where they come from must not cost the run before
            self._folder.begin(shards.job_id, overwrites=self._plan.overwrite)
            shards.initialize(lambda: values)
            logging.info("%d shards initialised for job %s", len(shards), shards.job_id)
        shards.check_job()
        try:
            shards.check_may_write(self._folder.checkpoints.url)
        except CheckpointFailed as error:
            if not held:
                raise
            logging.warning("no checkpoint can be written at present: %s", error)
        highest = max(status.incarnation for status in shards.statuses())
        with self._changed:
            self._job_id = shards.job_id
            self._coordinator.saw_incarnation(highest, goes_on=bool(held or saved))

    def _resume(self, shards: Shards, saved: Checkpoint) -> None:
        with self._changed:
            self._known.resume(saved, time.monotonic())
            self._write_journal()  # first: a chief that is started again meanwhile must not find the older one
        shards.restore(saved)
        logging.info("resumed job %s from %s", shards.job_id, saved.directory)

    def _go_on(self, shards: Shards, healer: Healer) -> None:
        """The shards, or some of them, hold parameters: this chief has been started again."""
        with self._changed:
            recall(self._known, self._folder, shards)
        logging.info("the shards hold parameters of job %s already; training continues", shards.job_id)
        healer.look_after()  # those that hold none

    def _write_journal(self) -> None:
        """Called with the lock held."""
        assert self._shards is not None
        about = {"fingerprint": self._shards.layout.fingerprint.hex(), "job": self._plan.description.get("job")}
        self._folder.write_journal({"job_id": self._shards.job_id, **about, **self._known.state(time.monotonic())})

    def _watch(self, shards: Shards) -> None:
        """Until training is over: notes the loss about once a second, and writes checkpoints when they are due."""
        noted, said_s = -1, time.monotonic()
        while True:
            with self._changed:
                self._changed.wait(_LOOK_EVERY_S)
                now = time.monotonic()
                rate = self._coordinator.progress(now).images_per_second
                over = self._coordinator.should_stop(now)
                step, loss = self._coordinator.step, self._coordinator.recent_loss()
                seconds = self._coordinator.train_s(now)
                due = self._coordinator.checkpoint_due()
                self._write_journal()
            self._name_absent(shards, now)
            self._see_off(shards)
            if step > noted and math.isfinite(loss):
                self._folder.note({"kind": "loss", "step": step, "seconds": round(seconds, 2), "loss": loss})
                noted = step
            if step and now >= said_s + _SAY_EVERY_S:
                said_s = now
                logging.info("step %d of %d, loss %.4g, %.1f images/s", step, self._plan.num_steps, loss, rate)
            if over:
                return
            if due:
                self._write_checkpoint(shards, last=False)

    def _write_checkpoint(self, shards: Shards, *, last: bool) -> None:
        """Asks every shard for its file, then writes the manifest. A failure only ends the job if it is the last."""
        with self._changed:
            step = self._coordinator.step
            self._coordinator.checkpointed(step)
            self._departures.begin(time.monotonic())
            # Before the shards are asked: whatever counts as done here is in their files.
            coordinator = self._coordinator.state(time.monotonic(), with_workers=False)
        progress = {"coordinator": coordinator, "job": dict(self._plan.description)}
        try:
            saved = shards.write_checkpoint(self._folder.checkpoint_dir(step), step, progress)
        except (CheckpointFailed, Unreachable) as error:
            if last:
                raise
            logging.warning("no checkpoint at step %d: %s", step, error)
            return
        try:
            self._folder.keep(self._plan.keep_checkpoints, self._plan.keep_every_steps)
        except OSError as error:
            logging.warning("older checkpoints stay: %s", error)
        with self._changed:
            self._known.checkpoint = pb.NextCheckpointReply(directory=saved.directory, step=step, last=last)
            self._departures.end()
            self._write_journal()

    def _write_last_checkpoint(self, shards: Shards) -> None:
        """Writes the checkpoint that the job ends with, again and again for a while.

        Raises:
            NotSaved: It cannot be written. A chief that is started again tries it again.
        """
        with self._changed:
            self._write_journal()  # the workers' last reports; of what follows a next chief need not know
            step = self._coordinator.step
        error = insist(lambda: self._write_checkpoint(shards, last=True), "the last checkpoint", _INSIST_S)
        if error is not None:
            raise NotSaved(
                f"the last checkpoint, of step {step}, cannot be written: {error}; the shards still hold the "
                "parameters: make room and start the chief again, which writes it"
            )

    def _name_absent(self, shards: Shards, now_s: float) -> None:
        """Tells the shards, again and again since they may restart, for whom nobody must wait."""
        with self._changed:
            absent = [] if isinstance(self._plan.pace, Async) else self._coordinator.absent(now_s)
        if absent:
            shards.absent(absent)

    def _wait_for_workers(self, shards: Shards) -> None:
        """Until all have ended; one that has ended may be what others still wait for."""
        deadline = time.monotonic() + _WORKERS_END_S
        while time.monotonic() < deadline:
            with self._changed:
                if self._coordinator.workers_ended(time.monotonic()):
                    return
                self._changed.wait(_LOOK_EVERY_S)
            self._name_absent(shards, time.monotonic())
            self._see_off(shards)

    def _see_off(self, shards: Shards) -> None:
        """Writes a checkpoint for the shards that leave, if there are any, of what they hold at this moment."""
        with self._changed:
            if not self._departures.due(time.monotonic()):
                return
        versions = [status.version for status in shards.look() if status is not None]
        with self._changed:
            self._coordinator.saw(max(versions, default=0))  # workers report only once a second
            step = self._coordinator.step
            if self._known.checkpoint is not None and self._known.checkpoint.step == step:  # nothing has happened since
                self._departures.begin(time.monotonic())
                self._departures.end()
                return
        logging.info("a shard leaves; a checkpoint at step %d", step)
        self._write_checkpoint(shards, last=False)

    def _wait_for_last_score(self) -> None:
        """Waits for the score of the last checkpoint, if an evaluator has ever asked for one, or is to come."""

        def heard() -> bool:
            return self._evaluator_heard_s is not None

        def scored() -> bool:
            saved, score = self._known.checkpoint, self._known.score
            return saved is None or (score is not None and score.step == saved.step)

        if not self._wait(heard, _COMES_WITHIN_S if self._plan.expects_evaluator else 0.0):
            if self._plan.expects_evaluator:
                logging.warning("no evaluator came within %.0f s; start without one by --noevaluator", _COMES_WITHIN_S)
        elif not self._wait(scored, _SCORE_WITHIN_S):
            logging.warning("the evaluator did not score the last checkpoint within %.0f s", _SCORE_WITHIN_S)

    def _summary(self, shards: Shards) -> dict[str, Any]:
        statuses = shards.statuses()
        with self._changed:
            score = self._known.score or pb.Score()
            now = time.monotonic()
            found = summary(self._plan, shards.layout, self._coordinator, statuses, score, self._known.losses, now)
            return found | {"resumed_from": self._known.resumed_from, "failure": self._coordinator.failure}

    def _enter(self, state: pb.ProgressReply.State) -> None:
        with self._changed:
            self._state = state

    def _wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Waits for a condition over guarded state, which time alone may also make true."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not condition() and time.monotonic() < deadline:
                self._changed.wait(_LOOK_EVERY_S)
            return condition()
