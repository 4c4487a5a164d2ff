"""The chief: gives the shards their values, checkpoints, watches, ends the job. Never computes.

`Coordinator` decides; this module does the I/O around it: a gRPC service, the shards, files in the run's folder.
Threads: gRPC's threads enter the servicer, the main thread runs `Chief.run`; one condition guards the coordinator
and is notified whenever an event came in. No TensorFlow: the initial values are passed in.
"""

from __future__ import annotations

import json
import math
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from absl import logging

from downpour.proto import chief_pb2 as pb
from downpour.proto import chief_pb2_grpc
from downpour.proto import parameter_server_pb2 as ps_pb
from downpour.proto.errors import CheckpointFailed, JobFailed, LayoutMismatch, NotReady
from downpour.proto.transport import start_server
from downpour.ps import checkpoint
from downpour.ps.layout import Layout
from downpour.ps.named import to_message
from downpour.ps.pace import Async
from downpour.worker.clients import ShardClient
from downpour.worker.coordinator import Coordinator
from downpour.worker.leases import LeaseTable

_KEEP_CHECKPOINTS = 3
_LOOK_EVERY_S = 1.0
_WORKERS_END_S = 120.0
_SCORE_WITHIN_S = 600.0
# Room for every worker of the reference fleet (50) and the evaluator to be in a call at once.
_NUM_THREADS = 64


@dataclass(frozen=True)
class Plan:
    """What the chief must know of a job.

    Attributes:
        recipe: Name, for the summary.
        rule: Update rule of the shards.
        schedule: Learning-rate schedule of the shards.
        pace: How far apart workers may be, a mode of `downpour.ps.pace`.
        staleness: What shards do about it, a treatment of `downpour.ps.staleness`.
        num_workers: Workers that are expected.
        lease_s: A worker that says nothing for so many seconds is lost.
        num_steps: Global steps until the end.
        checkpoint_every_steps: Global steps between checkpoints.
        max_train_s: Seconds of training after which the job ends all the same.
        num_records: Training records, good or bad.
        lease_records: Records that a worker is given at a time.
        facts: More entries for the summary.
        average: Of the parameters, an average of `downpour.ps.averages`, or None.
    """

    recipe: str
    rule: Any
    schedule: Any
    pace: Any
    staleness: Any
    num_workers: int
    lease_s: float
    num_steps: int
    checkpoint_every_steps: int
    max_train_s: float
    num_records: int
    lease_records: int
    facts: dict[str, Any]
    average: Any = None


class Chief(chief_pb2_grpc.ChiefServicer):
    """Serves from construction; `run` carries a job through. Until then workers that register are told to wait.

    Args:
        plan: The job.
        run_dir: Folder of checkpoints, history and summary.
        host: Address to listen on.
        port: Port to listen on; 0 lets the kernel choose.

    Attributes:
        port: The port it listens on.
    """

    def __init__(self, plan: Plan, run_dir: Path, *, host: str, port: int) -> None:
        self._plan = plan
        self._run_dir = run_dir
        self._shards: list[ShardClient] = []
        self._pool = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="shards")
        self._changed = threading.Condition()
        # Everything below is guarded by `_changed`.
        self._layout: Layout | None = None
        self._coordinator = Coordinator(
            plan.num_steps,
            plan.checkpoint_every_steps,
            LeaseTable(plan.num_records, plan.lease_records),
            plan.max_train_s,
            plan.num_workers,
            plan.lease_s,
        )
        self._state = pb.ProgressReply.STATE_PREPARING
        self._checkpoint: pb.NextCheckpointReply | None = None
        self._scores: dict[int, pb.Score] = {}
        self._evaluator_heard_s: float | None = None
        run_dir.mkdir(parents=True, exist_ok=True)
        self._server, self.port = start_server(
            lambda server: chief_pb2_grpc.add_ChiefServicer_to_server(self, server), host, port, _NUM_THREADS
        )

    # What workers, the evaluator and the launcher ask.

    def Register(self, request: pb.RegisterRequest, context: grpc.ServicerContext) -> pb.RegisterReply:
        """See `downpour/proto/chief.proto`."""
        with self._changed:
            if self._layout is None:
                raise NotReady("the chief still builds its model")
            mine = self._layout.fingerprint
            if request.fingerprint != mine:
                raise LayoutMismatch(
                    f"worker {request.worker} computed layout {request.fingerprint.hex()[:16]}, the chief "
                    f"{mine.hex()[:16]}; start every role with the same recipe and overrides"
                )
            self._coordinator.register(request.worker, request.incarnation, request.host, time.monotonic())
        logging.info("worker %d is %s", request.worker, request.host)
        return pb.RegisterReply()

    def Report(self, request: pb.WorkerReport, context: grpc.ServicerContext) -> pb.ReportReply:
        """See `downpour/proto/chief.proto`."""
        with self._changed:
            stop = self._coordinator.report(request, time.monotonic())
            self._changed.notify_all()
        return pb.ReportReply(stop=stop)

    def Lease(self, request: pb.LeaseRequest, context: grpc.ServicerContext) -> pb.LeaseReply:
        """See `downpour/proto/chief.proto`."""
        with self._changed:
            if self._layout is None:
                raise NotReady("the chief still builds its model")
            now = time.monotonic()
            lease = self._coordinator.lease(request.worker, request.incarnation, request.number, now)
        return pb.LeaseReply(epoch=lease.epoch, start=lease.start, stop=lease.stop)

    def NextCheckpoint(
        self, request: pb.NextCheckpointRequest, context: grpc.ServicerContext
    ) -> pb.NextCheckpointReply:
        """See `downpour/proto/chief.proto`."""
        with self._changed:
            self._evaluator_heard_s = time.monotonic()
            if self._checkpoint is not None and self._checkpoint.step > request.after_step:
                return self._checkpoint
            return pb.NextCheckpointReply(
                stop=self._state in (pb.ProgressReply.STATE_DONE, pb.ProgressReply.STATE_FAILED)
            )

    def ReportScore(self, request: pb.Score, context: grpc.ServicerContext) -> pb.ReportScoreReply:
        """See `downpour/proto/chief.proto`."""
        metrics = dict(request.metrics)
        with self._changed:
            self._scores[request.step] = request
            seconds = self._coordinator.train_s(time.monotonic())
            self._changed.notify_all()
        self._note({"kind": "score", "step": request.step, "seconds": round(seconds, 2), **metrics})
        return pb.ReportScoreReply()

    def Progress(self, request: pb.ProgressRequest, context: grpc.ServicerContext) -> pb.ProgressReply:
        """See `downpour/proto/chief.proto`."""
        with self._changed:
            reply = self._coordinator.progress(time.monotonic())
            waits = self._state == pb.ProgressReply.STATE_TRAINING and self._coordinator.started_s is None
            reply.state = pb.ProgressReply.STATE_PREPARING if waits else self._state
            if self._scores:
                reply.metrics.update(self._scores[max(self._scores)].metrics)
        return reply

    # What the chief does.

    def run(
        self,
        layout: Layout,
        shards: Sequence[str],
        initial_values: Callable[[], list[np.ndarray]],
        give_up_after_s: float,
    ) -> dict[str, Any]:
        """Carries the job from empty shards to the summary, which is also written to `summary.json`.

        Args:
            layout: Of the model's variables.
            shards: Addresses of the shards, in order.
            initial_values: Gives one array a variable, in the layout's order; called if any shard is empty.
            give_up_after_s: See `ShardClient`.

        Raises:
            JobFailed: A worker ended the job. The last good state has been checkpointed.
            Unreachable: A shard does not answer.
        """
        self._shards = [ShardClient(i, address, layout, give_up_after_s) for i, address in enumerate(shards)]
        with self._changed:
            self._layout = layout
        self._initialize(layout, initial_values)
        with self._changed:
            self._state = pb.ProgressReply.STATE_TRAINING
            self._coordinator.opened_s = time.monotonic()
        self._watch(layout)
        self._enter(pb.ProgressReply.STATE_SCORING)
        self._wait_for_workers()
        self._write_checkpoint(layout, last=True)
        failure = self._coordinator.failure
        if not failure:
            self._wait_for_last_score()
        summary = self._summary(layout)
        _write_json(self._run_dir / "summary.json", summary)
        self._enter(pb.ProgressReply.STATE_FAILED if failure else pb.ProgressReply.STATE_DONE)
        if failure:
            raise JobFailed(f"{failure}; the parameters before it are in {self._run_dir / 'checkpoints'}")
        return summary

    def close(self) -> None:
        """Stops serving, after a moment in which others can learn that the job is over."""
        self._server.stop(grace=2.0).wait()
        self._pool.shutdown()
        for shard in self._shards:
            shard.close()

    def _initialize(self, layout: Layout, initial_values: Callable[[], list[np.ndarray]]) -> None:
        statuses = self._on_all(ShardClient.status)
        if all(status.ready for status in statuses):
            self._on_all(ShardClient.wait_ready)  # compares layouts
            logging.info("the shards hold parameters already; training continues")
            return
        self._forget_earlier_run()
        specification = ps_pb.ShardSpecification(
            fingerprint=layout.fingerprint,
            layout=layout.canonical,
            rule=to_message(self._plan.rule),
            schedule=to_message(self._plan.schedule),
            pace=to_message(self._plan.pace),
            num_workers=self._plan.num_workers,
            staleness=to_message(self._plan.staleness),
            average=None if self._plan.average is None else to_message(self._plan.average),
        )
        vectors = layout.scatter(initial_values())

        def initialize(shard: ShardClient, number: int) -> None:
            mine = ps_pb.ShardSpecification(shard=number)
            mine.MergeFrom(specification)
            shard.initialize(mine, vectors[number])

        for future in [self._pool.submit(initialize, shard, i) for i, shard in enumerate(self._shards)]:
            future.result()
        logging.info("%d shards initialised", len(self._shards))

    def _forget_earlier_run(self) -> None:
        """Empty shards begin a new run: what another one left in the folder would be taken for this one's."""
        for name in ("history.jsonl", "summary.json"):
            (self._run_dir / name).unlink(missing_ok=True)
        if (self._run_dir / "checkpoints").is_dir():
            shutil.rmtree(self._run_dir / "checkpoints")

    def _watch(self, layout: Layout) -> None:
        """Until training is over: notes the loss about once a second, and writes checkpoints when they are due."""
        noted = -1
        while True:
            with self._changed:
                self._changed.wait(_LOOK_EVERY_S)
                now = time.monotonic()
                over = self._coordinator.should_stop(now)
                step, loss, seconds = (
                    self._coordinator.step,
                    self._coordinator.recent_loss(),
                    self._coordinator.train_s(now),
                )
                due = self._coordinator.checkpoint_due()
            self._name_absent(now)
            if step > noted and math.isfinite(loss):
                self._note({"kind": "loss", "step": step, "seconds": round(seconds, 2), "loss": loss})
                noted = step
            if over:
                return
            if due:
                self._write_checkpoint(layout, last=False)

    def _write_checkpoint(self, layout: Layout, *, last: bool) -> None:
        """Asks every shard for its file, then writes the manifest. A failure only ends the job if it is the last."""
        with self._changed:
            step = self._coordinator.step
            self._coordinator.checkpointed(step)
        directory = self._run_dir / "checkpoints" / f"step-{step:010d}"
        try:
            replies = self._on_all(lambda shard: shard.write_checkpoint(str(directory.absolute())))
            checkpoint.write_manifest(
                checkpoint.Checkpoint(
                    directory,
                    step,
                    layout,
                    tuple(reply.file for reply in replies),
                    tuple(reply.version for reply in replies),
                )
            )
        except CheckpointFailed as error:
            if last:
                raise
            logging.error("no checkpoint at step %d: %s", step, error)
            return
        with self._changed:
            self._checkpoint = pb.NextCheckpointReply(directory=str(directory.absolute()), step=step, last=last)
        for old in sorted(directory.parent.glob("step-*"))[:-_KEEP_CHECKPOINTS]:
            shutil.rmtree(old)

    def _name_absent(self, now_s: float) -> None:
        """Tells the shards, again and again since they may restart, for whom nobody must wait."""
        with self._changed:
            absent = [] if isinstance(self._plan.pace, Async) else self._coordinator.absent(now_s)
        if absent:
            self._on_all(lambda shard: shard.absent(absent))

    def _wait_for_workers(self) -> None:
        """Until all have ended; one that has ended may be what others still wait for."""
        deadline = time.monotonic() + _WORKERS_END_S
        while time.monotonic() < deadline:
            with self._changed:
                if self._coordinator.workers_ended(time.monotonic()):
                    return
                self._changed.wait(_LOOK_EVERY_S)
            self._name_absent(time.monotonic())

    def _wait_for_last_score(self) -> None:
        """Waits for the score of the last checkpoint, if an evaluator has ever asked for one."""

        def scored() -> bool:
            return self._checkpoint is None or self._evaluator_heard_s is None or self._checkpoint.step in self._scores

        if not self._wait(scored, _SCORE_WITHIN_S):
            logging.error("the evaluator did not score the last checkpoint within %.0f s", _SCORE_WITHIN_S)

    def _summary(self, layout: Layout) -> dict[str, Any]:
        statuses = self._on_all(ShardClient.status)
        with self._changed:
            coordinator = self._coordinator
            seconds = coordinator.train_s(time.monotonic())
            images = coordinator.total(lambda r: r.images)
            score = self._scores[max(self._scores)] if self._scores else pb.Score()
            return {
                "recipe": self._plan.recipe,
                "num_ps": len(self._shards),
                "num_workers": self._plan.num_workers,
                **self._plan.facts,
                "parameters": sum(v.size for v in layout.variables),
                "imbalance": round(layout.imbalance, 5),
                "global_steps": min(status.version for status in statuses),
                "seconds": round(seconds, 2),
                "images_per_second": round(images / seconds, 1) if seconds else 0.0,
                "loss": coordinator.recent_loss(),
                **score.metrics,
                "staleness_mean": round(coordinator.mean(lambda r: r.staleness_sum), 3),
                "staleness_histogram": _histogram(statuses),
                "pushes_acknowledged": int(coordinator.total(lambda r: r.pushes_acknowledged)),
                "pushes_applied_min": min(status.pushes for status in statuses),
                "pushes_applied_max": max(status.pushes for status in statuses),
                "pushes_dropped": int(coordinator.total(lambda r: r.pushes_dropped)),
                "pushes_refused": sum(status.pushes_refused for status in statuses),
                "seconds_per_step": {
                    "pull": round(coordinator.mean(lambda r: r.pull_seconds), 4),
                    "compute": round(coordinator.mean(lambda r: r.compute_seconds), 4),
                    "push": round(coordinator.mean(lambda r: r.push_seconds), 4),
                },
                "bytes_per_step": int(coordinator.mean(lambda r: r.bytes_pulled + r.bytes_pushed)),
                "epochs": round(coordinator.leases.epochs, 4),
                "records_repeated": coordinator.leases.records_repeated,
                "records_skipped": int(coordinator.total(lambda r: r.records_skipped)) + score.records_skipped,
                "skipped_examples": coordinator.skipped_examples() + list(score.skipped_examples),
                "failure": coordinator.failure,
            }

    def _on_all(self, action: Callable[[ShardClient], Any]) -> list[Any]:
        """Runs an action on every shard, in parallel; raises the first error after all have ended."""
        futures = [self._pool.submit(action, shard) for shard in self._shards]
        errors = [error for future in futures if (error := future.exception())]
        if errors:
            raise errors[0]
        return [future.result() for future in futures]

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

    def _note(self, entry: dict[str, Any]) -> None:
        with (self._run_dir / "history.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")


def _histogram(statuses: Sequence[ps_pb.StatusReply]) -> dict[str, int]:
    """Pushes by staleness, over all shards; what no push had is left out."""
    counts = np.sum([status.staleness_histogram for status in statuses], axis=0)
    return {str(staleness): int(count) for staleness, count in enumerate(counts) if count}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    temporary.replace(path)
