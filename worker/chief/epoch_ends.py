"""Ends of epochs: their losses and scores go into the history, and a short epoch's end is seen in time.

Threads: the chief's main thread.
"""

from __future__ import annotations

import math
import time

from downpour.worker.chief.run_folder import RunFolder
from downpour.worker.chief.scores import Scores
from downpour.worker.chief.shards import Shards
from downpour.worker.chief.state import JobState

_LOOK_EVERY_S = 0.03  # at the shards, at most


class EpochEnds:
    """Watches the epochs of one job.

    Args:
        state: The job's state, which has begun.
        folder: The run's folder.
        shards: The job's shards.
        scores: Hears of every epoch that is complete.
    """

    def __init__(self, state: JobState, folder: RunFolder, shards: Shards, scores: Scores) -> None:
        self._state, self._shards, self._scores = state, shards, scores
        self._looked_s = 0.0
        with state.changed:
            state.coordinator.epochs.begin(folder.num_epochs(), state.coordinator.step)

    def look(self) -> bool:
        """Notes epochs that are complete; returns whether a checkpoint is due that a lease waits for.

        Workers report only once a second, so the shards' versions are read where a lease waits.
        """
        state, version = self._state, 0
        with state.changed:
            waits, state.lease_waits = state.lease_waits, False
        if waits:
            time.sleep(max(0.0, self._looked_s + _LOOK_EVERY_S - time.monotonic()))
            self._looked_s = time.monotonic()
            version = max((status.version for status in self._shards.look() if status is not None), default=0)
        with state.changed:
            coordinator, now = state.coordinator, time.monotonic()
            coordinator.saw(version)
            coordinator.epochs.saw(min(coordinator.step, coordinator.num_steps), now, coordinator.time.train_s(now))
            complete = list(coordinator.epochs.take(now))
            due = waits and coordinator.checkpoint_due()
        if complete:
            self._scores.ended(complete)
        return due

    def end(self) -> None:
        """Notes the rest once training is over and scored; after the last step, an epoch that is cut off, too."""
        state = self._state
        with state.changed:
            coordinator = state.coordinator
            train_s = coordinator.time.train_s(time.monotonic())
            coordinator.epochs.saw(min(coordinator.step, coordinator.num_steps), time.monotonic(), train_s)
            rest = list(coordinator.epochs.take(math.inf))
            if coordinator.ended_by() == "steps":
                rest += coordinator.epochs.take_rest(coordinator.num_steps, train_s)
        if rest:
            self._scores.ended(rest)
