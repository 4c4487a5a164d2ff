"""Checkpoints of a running job: periodic ones, those for shards that are about to stop, and the last one.

Threads: the chief's main thread.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from absl import logging

from downpour.proto import chief_pb2 as pb
from downpour.proto import parameter_server_pb2 as ps_pb
from downpour.proto.errors import CheckpointFailed, NotSaved, Unreachable
from downpour.ps.checkpoint.manifest import Checkpoint
from downpour.worker.chief.run_folder import RunFolder, insist
from downpour.worker.chief.scores import Scores
from downpour.worker.chief.settings import JobSettings
from downpour.worker.chief.shards import Shards
from downpour.worker.chief.state import JobState

MOST_UNSCORED = 8  # checkpoints kept for the evaluator, where training has waited for it in vain


class Checkpoints:
    """Writes the checkpoints of one job.

    Args:
        settings: The job's settings.
        state: The job's state.
        folder: The run's folder.
        shards: The job's shards.
        scores: Hears of every checkpoint.
    """

    def __init__(
        self, settings: JobSettings, state: JobState, folder: RunFolder, shards: Shards, scores: Scores
    ) -> None:
        self._settings, self._state, self._folder, self._shards = settings, state, folder, shards
        self._scores = scores
        self._newest: Checkpoint | None = None  # the last one that this object has written

    def write(self, *, last: bool = False) -> None:
        """Has every shard write its file, then writes the manifest. A failure is logged; with `last` it is raised.

        Raises:
            CheckpointFailed: The last checkpoint cannot be written.
            Unreachable: A shard does not answer, and it is the last checkpoint.
        """
        state = self._state
        with state.changed:
            step = state.coordinator.step
            state.coordinator.checkpointed(step)
            state.departures.begin(time.monotonic())
            # Captured before the shards write, so that whatever counts as done here is in their files.
            progress = state.journal_state.progress(time.monotonic()) | {"job": dict(self._settings.description)}
        try:
            saved = self._shards.write_checkpoint(self._folder.checkpoint_dir(step), step, progress)
        except (CheckpointFailed, Unreachable) as error:
            if last:
                raise
            logging.warning("the checkpoint at step %d cannot be written: %s", step, error)
            with state.changed:
                state.happened.append(("checkpoint_failed", f"the one at step {step:,} cannot be written: {error}"))
            return
        self._newest = saved
        with state.changed:
            unscored = (one.step for one in state.unscored)
            kept = state.journal_state.kept.union(self._scores.waiting, unscored, state.turns.steps)
        try:
            self._folder.keep(self._settings.keep_checkpoints, self._settings.keep_every_steps, kept)
        except OSError as error:
            logging.warning("older checkpoints cannot be removed: %s", error)
        with state.journaled():
            reply = pb.NextCheckpointReply(directory=saved.directory, step=step, last=last)
            state.journal_state.checkpoint = reply
            state.checkpoint_s = time.monotonic()
            if self._settings.checkpoint_every_epoch and self._settings.expects_evaluator:
                others = [one for one in state.unscored if one.step != step]
                state.unscored = [*others, reply][-MOST_UNSCORED:]
            state.changed.notify_all()
            state.departures.end()
        self._scores.written(saved)

    def write_last(self, within_s: float) -> None:
        """Writes the job's last checkpoint; retries for up to `within_s` seconds.

        Raises:
            NotSaved: It cannot be written. A restarted chief tries again.
        """
        with self._state.journaled():  # the workers' last reports; a later chief does not need what follows
            step = self._state.coordinator.step
        error = insist(lambda: self.write(last=True), "the last checkpoint", within_s)
        if error is not None:
            raise NotSaved(
                f"the last checkpoint, of step {step}, cannot be written: {error}; the shards still hold the "
                "parameters: make room and start the chief again, which writes it"
            )

    def write_for_departures(self) -> None:
        """Writes a checkpoint of the shards' present state if one is due because shards are about to stop."""
        state = self._state
        with state.changed:
            if not state.departures.due(time.monotonic()):
                return
        statuses = self._shards.look()
        with state.changed:
            # Workers report only once a second.
            state.coordinator.saw(max((status.version for status in statuses if status is not None), default=0))
            step = state.coordinator.step
            if self._newest is not None and _holds(self._newest, statuses):
                state.departures.begin(time.monotonic())
                state.departures.end()
                return
        logging.info("a shard is about to stop; a checkpoint is written at step %d", step)
        self.write()


def _holds(saved: Checkpoint, statuses: Sequence[ps_pb.StatusReply | None]) -> bool:
    """Whether a checkpoint holds every push that each shard has counted, except shards that do not answer.

    The job's step says nothing of that: it is the version of the shard that is ahead.
    """
    pairs = [(file, status) for file, status in zip(saved.shards, statuses, strict=True) if status is not None]
    return all((file.version, file.pushes) == (status.version, status.pushes) for file, status in pairs)
