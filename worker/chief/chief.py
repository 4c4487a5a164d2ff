"""The chief: initialises the shards, writes checkpoints, watches progress and ends the job. Never computes.

`Coordinator` decides; around it are the service that others call, the healer and the checkpoints, which share one
`JobState`. A restarted chief finds the shards as they are and its own state in the journal, which is written before an
answer that depends on it is sent; training continues meanwhile.

Threads: gRPC's threads enter the service, the main thread runs `Chief.run`, one thread runs the healer, one calls own
callbacks. No TensorFlow: the initial values are passed in.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from downpour.proto import chief_pb2 as pb
from downpour.proto import chief_pb2_grpc
from downpour.proto.errors import JobFailed
from downpour.proto.rpc.server import Server, handler_of
from downpour.proto.security.config import PLAIN, Security
from downpour.ps.layout import Layout
from downpour.ps.policy.specification import specification_of
from downpour.worker.chief import owner
from downpour.worker.chief.beginning import begin
from downpour.worker.chief.checkpoints import Checkpoints
from downpour.worker.chief.environment import environment_entry
from downpour.worker.chief.epoch_ends import EpochEnds
from downpour.worker.chief.events import Events
from downpour.worker.chief.healer import Healer
from downpour.worker.chief.observer import Observer
from downpour.worker.chief.progress import progress
from downpour.worker.chief.run_folder import RunFolder, insist
from downpour.worker.chief.scores import Scores
from downpour.worker.chief.service import Service
from downpour.worker.chief.settings import JobSettings
from downpour.worker.chief.shards import Shards, known_layout
from downpour.worker.chief.sinks import Sinks
from downpour.worker.chief.state import JobState
from downpour.worker.chief.summary import summary
from downpour.worker.chief.tracing import Tracing
from downpour.worker.chief.watch import Watch

_GATHER_S = 1.0  # for shards that stop at the same time to report it
_INSIST_S = 20.0  # of retries of the last checkpoint and the summary, until there is room
# Room for every worker of the reference fleet (50) and the evaluator to be in a call at once.
_NUM_THREADS = 64


class Chief:
    """Serves from construction on; `run` runs a job. Until its state is ready, registration is refused with `NotReady`.

    Args:
        settings: The job's settings.
        run_dir: Folder of checkpoints, history and summary.
        host: Address to listen on.
        port: Port to listen on; 0 lets the kernel choose.
        security: Security configuration of this process.

    Attributes:
        server: Its server.
        port: The port it listens on.
        summary: The summary, once the job is over.

    Raises:
        ValueError: The folder of the run or of its checkpoints cannot be written, the port is taken, or a sink refuses.
    """

    def __init__(
        self, settings: JobSettings, run_dir: Path, *, host: str, port: int, security: Security = PLAIN
    ) -> None:
        self._settings = settings
        self._security = security
        self._folder = RunFolder(run_dir, settings.checkpoint_dir)
        with contextlib.ExitStack() as on_error:
            on_error.callback(self._folder.close)
            for sink in settings.sinks:
                sink.check(run_dir)
            on_error.pop_all()
        self._state = JobState(settings, self._folder.journal)
        self._shards: Shards | None = None
        self._ends: EpochEnds | None = None  # set when the state is ready
        self._ending = threading.Event()
        self.summary: dict[str, Any] | None = None
        self._events = Events(settings.callbacks, self._state)
        self._sinks = Sinks(settings.sinks)
        self._scores = Scores(settings, self._state, self._folder, self._events)
        self._tracing = Tracing(settings, self._folder)
        service = Service(settings, self._state, self._scores, self._tracing.traces)
        handler = handler_of(functools.partial(chief_pb2_grpc.add_ChiefServicer_to_server, service))
        self.server = Server(handler, host, port, _NUM_THREADS, security)
        self.port = self.server.port
        owner.write_address(run_dir, host, self.port)

    def known_layout(self, shards: Sequence[str]) -> Layout | None:
        """Reads the layout from the shards if the journal is of this job, so that no model need be built; else None."""
        journal = self._folder.journal.read()
        same = journal is not None and journal.get("job") == self._settings.description.get("job")
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
        """Runs the job to its end and returns the summary, which is also written to `summary.json`.

        Args:
            layout: Layout of the model's variables.
            shards: Addresses of the shards, in order.
            initial_values: Gives one array a variable, in the layout's order; called if any shard is empty.
            give_up_after_s: See `ShardClient`.
            stop_shards: Whether to stop the shards when the job is over, failed or not.

        Raises:
            JobFailed: A worker reported a failure, and the last good state has been checkpointed; or a shard has lost
                its memory and every checkpoint is damaged; or the summary cannot be written.
            NotSaved: Training is over and the last checkpoint cannot be written. The shards are not stopped.
            Unreachable: A shard does not answer.
        """
        state = self._state
        state.fingerprint = layout.fingerprint
        specification = specification_of(self._settings, layout, self._settings.num_workers)
        self._shards = Shards(shards, layout, specification, give_up_after_s, self._security)
        healer = Healer(self._shards, self._folder, state, initial_values)
        checkpoints = Checkpoints(self._settings, state, self._folder, self._shards, self._scores)
        begin(self._settings, state, self._folder, self._shards, healer, initial_values)
        ends = self._ends = EpochEnds(state, self._folder, self._shards, self._scores)
        with state.changed:
            state.layout = layout
            state.phase = pb.ProgressReply.STATE_TRAINING
            state.coordinator.members.opened_s = now = time.monotonic()
            step, seconds = state.coordinator.step, state.coordinator.time.train_s(now)
        self._begin_sinks(layout, len(shards))
        self._folder.note(environment_entry(layout, self._settings.description, step, seconds))
        observer = Observer(self._settings, state, self._folder)
        watch = Watch(self._settings, state, self._folder, self._shards, checkpoints, observer)
        threading.Thread(target=healer.run, args=(self._ending,), name="healer", daemon=True).start()
        self._tracing.start(self._shards)
        watch.until_trained(ends)
        self._state.enter(pb.ProgressReply.STATE_SCORING)
        if healer.gave_up:  # there is nothing left to write
            self._sinks.end({"failure": state.coordinator.failure})
            self._end(self._shards, failed=True, stop_shards=stop_shards)
            raise JobFailed(state.coordinator.failure)
        watch.until_workers_have_ended()
        self._tracing.finish()
        checkpoints.write_last(_INSIST_S)
        if not state.coordinator.failure:
            self._scores.wait_for_last()
        ends.end()
        if not state.coordinator.failure:
            self._scores.finish()
        failure = state.coordinator.failure  # of a worker or a callback
        observer.look()
        found = self.summary = self._summary(self._shards)
        unwritten = insist(lambda: self._folder.write_summary(found), "the summary", _INSIST_S)
        self._sinks.end(found)
        self._end(self._shards, failed=bool(failure), stop_shards=stop_shards)
        where = self._folder.checkpoints.url
        if failure:
            raise JobFailed(f"{failure}; the parameters before it are in {where}")
        if unwritten:
            raise JobFailed(
                f"training is over, but the summary cannot be written: {unwritten}; the parameters are in {where}"
            )
        return found

    def _end(self, shards: Shards, *, failed: bool, stop_shards: bool) -> None:
        self._state.enter(pb.ProgressReply.STATE_FAILED if failed else pb.ProgressReply.STATE_DONE)
        self._ending.set()
        if stop_shards:
            shards.stop()

    @property
    def ready(self) -> bool:
        """Whether the layout is known and workers can register."""
        return self._state.layout is not None  # unlocked: a slightly stale answer is harmless

    def progress(self) -> pb.ProgressReply:
        """Returns the job's progress with its details, as the method `Progress` does; called by any thread."""
        with self._state.changed:
            return progress(self._settings, self._state, detailed=True)

    def close(self) -> None:
        """Stops serving, after a grace period in which callers can still read that the job is over."""
        self._ending.set()
        self._events.close()
        self._tracing.finish()
        self._sinks.close()
        self.server.stop(2.0).wait()
        if self._shards is not None:
            self._shards.close()
        self._folder.close()

    def hold(self) -> None:
        """Notes complete epochs, commits the journal and answers no further calls: this process is about to stop."""
        if self._ends is not None:
            self._ends.hold()
        self._tracing.write()
        self._state.hold()

    def see_off(self, within_s: float) -> None:
        """Waits up to `within_s` seconds until every shard that is about to stop has its checkpoint."""
        state, begin = self._state, time.monotonic()
        with state.changed:
            while (now := time.monotonic()) < begin + within_s:
                if now > begin + _GATHER_S and not state.departures.waiting(now):
                    return
                state.changed.wait(_GATHER_S / 4)

    def _begin_sinks(self, layout: Layout, num_shards: int) -> None:
        """Has the sinks hear of the job and of all that is added to the history from now on."""
        job = {
            "recipe": self._settings.recipe,
            "job_id": self._state.job_id,
            "run_dir": str(self._folder.path),
            "step": self._state.coordinator.step,
            "num_steps": self._settings.num_steps,
            "num_shards": num_shards,
            "fields": dict(self._settings.job),
            "layout": [{"name": one.name, "shape": list(one.shape), "kind": one.kind} for one in layout.variables],
        }
        self._sinks.begin(job)
        self._folder.heard = self._sinks.entry
        self._scores.evaluated = self._sinks.evaluation

    def _summary(self, shards: Shards) -> dict[str, Any]:
        state, known, statuses = self._state, self._state.journal_state, shards.statuses()
        with state.changed:
            score, now = known.score or pb.Score(), time.monotonic()
            found = summary(self._settings, shards.layout, state.coordinator, statuses, score, known.losses, now)
            found |= known.reactions.summary()
            return found | {"resumed_from": known.resumed_from, "failure": state.coordinator.failure}
