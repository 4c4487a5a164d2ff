"""Watches a job until its last worker has ended: losses, checkpoints that are due, workers that are absent.

Threads: for the chief's main thread.
"""

from __future__ import annotations

import math
import time

from absl import logging

from downpour.ps.policy.pace import Async
from downpour.worker.chief.checkpoints import Checkpoints
from downpour.worker.chief.epoch_ends import EpochEnds
from downpour.worker.chief.observer import Observer
from downpour.worker.chief.run_folder import RunFolder
from downpour.worker.chief.settings import JobSettings
from downpour.worker.chief.shards import Shards
from downpour.worker.chief.state import LOOK_EVERY_S, JobState

_SAY_EVERY_S = 10.0  # between two progress lines in the log
_WORKERS_END_S = 120.0


class Watch:
    """Watches one job.

    Args:
        settings: The job's settings.
        state: The job's state.
        folder: The run's folder; losses are added to its history.
        shards: The job's shards; they are told of absent workers.
        checkpoints: Writes those that are due.
        observer: Looks once a second.
    """

    def __init__(
        self,
        settings: JobSettings,
        state: JobState,
        folder: RunFolder,
        shards: Shards,
        checkpoints: Checkpoints,
        observer: Observer,
    ) -> None:
        self._settings, self._state, self._folder = settings, state, folder
        self._shards, self._checkpoints, self._observer = shards, checkpoints, observer

    def until_trained(self, ends: EpochEnds) -> None:
        """Until training is over, records the loss about once a second and writes checkpoints when they are due."""
        state, coordinator = self._state, self._state.coordinator
        noted, said_s = -1, time.monotonic()
        while True:
            hurry = ends.look()
            with state.journaled():
                state.changed.wait(0 if hurry else LOOK_EVERY_S)
                now = time.monotonic()
                rate = coordinator.progress(now).examples_per_second
                over = coordinator.should_stop(now)
                if self._settings.chooses_overlap:
                    state.overlap.look(coordinator, now)
                step, loss = coordinator.step, coordinator.reports.recent_loss()
                seconds = coordinator.time.train_s(now)
                due = coordinator.checkpoint_due()
            self._name_absent(now)
            self._checkpoints.write_for_departures()
            if step > noted and math.isfinite(loss):
                self._folder.note({"kind": "loss", "step": step, "seconds": round(seconds, 2), "loss": loss})
                noted = step
            self._observer.look()
            if step and now >= said_s + _SAY_EVERY_S:
                said_s = now
                logging.info("step %d of %d, loss %.4g, %.1f examples/s", step, self._settings.num_steps, loss, rate)
            if over:
                return
            if due:
                self._checkpoints.write()

    def _name_absent(self, now_s: float) -> None:
        """Reports absent workers to the shards, so that no pull blocks on them; repeated, since shards may restart."""
        with self._state.changed:
            absent = [] if isinstance(self._settings.pace, Async) else self._state.coordinator.members.absent(now_s)
        if absent:
            self._shards.absent(absent)

    def until_workers_have_ended(self) -> None:
        """Waits until all workers have ended; reports those that have to the shards, since pulls may block on them."""
        deadline = time.monotonic() + _WORKERS_END_S
        while time.monotonic() < deadline:
            with self._state.changed:
                if self._state.coordinator.members.all_gone(time.monotonic()):
                    return
                self._state.changed.wait(LOOK_EVERY_S)
            self._name_absent(time.monotonic())
            self._observer.look()
            self._checkpoints.write_for_departures()
