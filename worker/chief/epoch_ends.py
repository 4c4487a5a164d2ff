"""Ends of epochs: their losses and scores go into the history, and a short epoch's end is seen in time.

Threads: the chief's main thread; the one that ends the chief calls `hold`.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from typing import Any

from downpour.proto import chief_pb2 as pb
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.worker.chief.checkpoints import MOST_UNSCORED
from downpour.worker.chief.run_folder import RunFolder
from downpour.worker.chief.scores import Scores
from downpour.worker.chief.shards import Shards
from downpour.worker.chief.state import JobState

_LOOK_EVERY_S = 0.03  # at the shards, at most
_LAST_REPORTS_WITHIN_S = 2.0  # workers report every second


class EpochEnds:
    """Watches the epochs of one job.

    Args:
        state: The job's state, which has begun.
        folder: The run's folder.
        shards: The job's shards.
        scores: Hears of every epoch that is complete.
    """

    def __init__(self, state: JobState, folder: RunFolder, shards: Shards, scores: Scores) -> None:
        self._state, self._folder, self._shards, self._scores = state, folder, shards, scores
        self._looked_s = 0.0
        self._is_over = False  # the rest has been noted
        self._noting = threading.Lock()  # held from what an epoch is taken until it is in the history
        scored = {entry["step"]: _metrics(entry) for entry in folder.entries("score")}
        with state.changed:
            epochs, step = state.coordinator.epochs, state.coordinator.step
            epochs.begin(folder.entries("epoch"), scored, step)
            if epochs.every and epochs.scored:
                after = max([epochs.epochs.end(epochs.next) - 1, *scored])
                state.unscored = [one for one in _written(folder) if one.step > after][-MOST_UNSCORED:]
        folder.remove_entries(lambda entry: entry.get("kind") == "epoch" and entry["epoch"] >= epochs.next)

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
        with self._noting:
            with state.changed:
                coordinator, now = state.coordinator, time.monotonic()
                coordinator.saw(version)
                self._saw(now)
                complete = list(coordinator.epochs.take(now))
                due = waits and coordinator.checkpoint_due()
            if complete:
                self._scores.ended(complete)
        return due

    def end(self) -> None:
        """Notes the rest once training is over and scored; after the last step, an epoch that is cut off, too."""
        with self._noting:
            self._note_rest(is_over=True)
            self._is_over = True

    def hold(self) -> None:
        """Notes complete epochs, without scores those of the newest checkpoint only: this process is about to stop.

        Waits a moment for the reports of their last steps, which workers that stop as well send at once.
        """
        state = self._state
        self._noting.acquire()
        if self._is_over:
            return
        with state.changed:
            self._saw(time.monotonic())
        state.wait(state.coordinator.epochs.has_losses, _LAST_REPORTS_WITHIN_S)
        self._note_rest(is_over=False)

    def _note_rest(self, *, is_over: bool) -> None:
        state = self._state
        with state.changed:
            coordinator, now = state.coordinator, time.monotonic()
            epochs = coordinator.epochs
            self._saw(now)
            rest, unscored = list(epochs.take(math.inf)), []
            if is_over and coordinator.ended_by() == "steps":
                rest += epochs.take_rest(coordinator.num_steps, coordinator.time.train_s(now))
            else:
                # A job that is resumed begins at its newest checkpoint, and repeats later epochs.
                newest = state.journal_state.checkpoint
                last = newest.step if newest is not None else 0
                unscored = [entry for entry in epochs.unscored() if entry["step"] <= last]
        if rest:
            self._scores.ended(rest)
        for entry in unscored:  # callbacks hear of it when it has its scores
            self._folder.note({"kind": "epoch", **entry})

    def _saw(self, now_s: float) -> None:
        """Has the log know of the steps that are done; the lock is held."""
        coordinator = self._state.coordinator
        step = min(coordinator.step, coordinator.num_steps)
        coordinator.epochs.saw(step, now_s, coordinator.time.train_s(now_s))


def _written(folder: RunFolder) -> list[pb.NextCheckpointReply]:
    """The checkpoints that are there, by step."""
    steps = sorted(int(name.removeprefix("step-")) for name in checkpoint.complete(folder.checkpoints))
    return [pb.NextCheckpointReply(directory=folder.checkpoint_dir(step), step=step) for step in steps]


def _metrics(entry: Mapping[str, Any]) -> dict[str, float]:
    """The scores in a line of the history."""
    return {name: value for name, value in entry.items() if name not in ("kind", "step", "seconds")}
