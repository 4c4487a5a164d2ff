"""Takes the evaluators' scores: callbacks decide, and the history and own callbacks are told.

Scores count in the order of their checkpoints, whichever evaluator ends first: one whose predecessor is still being
scored waits, in the journal.

Threads: the service's threads call `take`, the chief's main thread the rest.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging

from downpour.proto import chief_pb2 as pb
from downpour.ps.checkpoint.manifest import Checkpoint
from downpour.worker.chief.events import Events
from downpour.worker.chief.reactions import Observation
from downpour.worker.chief.run_folder import RunFolder
from downpour.worker.chief.settings import JobSettings
from downpour.worker.chief.state import JobState

_SCORE_WITHIN_S = 600.0
_COMES_WITHIN_S = 120.0  # for an expected evaluator to connect once training is over


class Scores:
    """The scores of one job.

    Args:
        settings: The job's settings.
        state: The job's state.
        folder: The run's folder; scores and what follows from them are added to its history.
        events: Events of own callbacks.

    Attributes:
        evaluated: Called with what an evaluation shows beside its scores; see `Sink.on_evaluation`.
    """

    def __init__(self, settings: JobSettings, state: JobState, folder: RunFolder, events: Events) -> None:
        self._settings, self._state, self._folder, self._events = settings, state, folder, events
        self.evaluated: Callable[[Mapping[str, Any]], None] = lambda evaluation: None
        self._in_order = threading.Lock()  # held until a score is in the history; guards the next line
        self._illustrations: dict[int, pb.Illustration] = {}  # by step; of scores that wait
        # Guarded by `changed`:
        self._logs: dict[str, float] = {}  # of the checkpoint observed last
        self._telling = 0  # scores that are not in the history yet
        self._written: list[int] = []  # steps of checkpoints that wait for the loss of their epoch
        self._losses: list[tuple[int, float]] = []  # ends of epochs, and their losses, that wait for a checkpoint

    def take(self, score: pb.Score) -> None:
        """Records a score that an evaluator reports.

        Raises:
            NotReady: See `JobState.ready`.
        """
        state = self._state
        with self._in_order:
            with state.journaled():
                state.ready()
                if not state.turns.scored(score.step):
                    return
                state.unscored = [one for one in state.unscored if one.step != score.step]
                if score.illustration.ByteSize():
                    self._illustrations[score.step] = score.illustration
                due = self._due(state.journal_state.scored(_without_illustration(score), state.turns.steps))
            self._note(due)

    def count(self, *, everything: bool = False) -> None:
        """Counts scores that no earlier one will precede any more, or everything that there is."""
        state = self._state
        if not state.journal_state.held:  # unlocked: what is added just now is counted by who adds it
            return
        with self._in_order:
            with state.journaled():
                due = self._due(state.journal_state.scored(None, () if everything else state.turns.steps))
            self._note(due)

    def _due(self, scores: Sequence[pb.Score]) -> list[tuple[pb.Score, float, Observation]]:
        """Has callbacks count scores; the lock is held."""
        coordinator, due = self._state.coordinator, []
        for score in scores:
            coordinator.epochs.score(score.step, dict(score.metrics))
            seconds = round(coordinator.time.train_s(time.monotonic()), 2)
            due.append((score, seconds, self._observe(score.step, score.metrics)))
            self._telling += 1
        return due

    def _note(self, due: Sequence[tuple[pb.Score, float, Observation]]) -> None:
        """Adds scores and what follows from them to the history."""
        for score, seconds, seen in due:
            try:
                self._folder.note({"kind": "score", "step": score.step, "seconds": seconds, **score.metrics})
                if (shown := self._illustrations.pop(score.step, None)) is not None:
                    self.evaluated({"step": score.step, "seconds": seconds, **_shown(shown)})
                self._tell(score.step, seconds, seen)
            finally:
                with self._state.changed:
                    self._telling -= 1
                    self._state.changed.notify_all()

    def written(self, saved: Checkpoint) -> None:
        """Has callbacks hear of a checkpoint; without an evaluator, loss and rate are all that they follow."""
        self._events.checkpoint(saved.step, saved.directory)
        self._observe_unscored(written=[saved.step])

    def ended(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Adds epochs that are complete, entries of `EpochLog`, to the history, and has callbacks hear of them."""
        for entry in entries:
            self._folder.note({"kind": "epoch", **entry})
            factor = self._state.journal_state.reactions.factor.factor
            logs = {name: value for name, value in entry.items() if name not in ("epoch", "step", "seconds")}
            logs["learning_rate"] = self._settings.schedule.rate(entry["step"]) * factor
            self._events.epoch(entry["epoch"], logs)
        self._observe_unscored(losses=[(entry["step"], entry["loss"]) for entry in entries if "loss" in entry])

    @property
    def waiting(self) -> set[int]:
        """Steps of checkpoints whose epoch's loss is not complete; the lock is held."""
        return set(self._written)

    def wait_for_last(self) -> None:
        """Waits for the score of the last checkpoint, if an evaluator has ever asked for one or is expected."""
        state, expected = self._state, self._settings.expects_evaluator

        def heard() -> bool:
            return state.evaluator_heard_s is not None

        def scored() -> bool:
            saved, score = state.journal_state.checkpoint, state.journal_state.score
            return saved is None or (score is not None and score.step == saved.step and not self._telling)

        if not state.wait(heard, _COMES_WITHIN_S if expected else 0.0):
            if expected:
                logging.warning(
                    "no evaluator connected within %.0f s; start without one by --noevaluator", _COMES_WITHIN_S
                )
        elif not state.wait(scored, _SCORE_WITHIN_S):
            logging.warning("the last checkpoint was not scored within %.0f s", _SCORE_WITHIN_S)
        self.count(everything=True)

    def finish(self) -> None:
        """Tells own callbacks that training is over, and waits for them."""
        with self._state.changed:
            score = self._state.journal_state.score
            logs = self._logs or (dict(score.metrics) if score is not None else {})
        self._events.finish(logs)

    def _observe_unscored(self, written: Sequence[int] = (), losses: Sequence[tuple[int, float]] = ()) -> None:
        """Has callbacks count checkpoints where there is no evaluator; those of epochs once the epoch's loss is known.

        Args:
            written: Steps of new checkpoints.
            losses: Number of steps at the end of an epoch, and its loss.
        """
        state, counted = self._state, []
        if self._settings.expects_evaluator or not self._settings.callbacks:
            return
        with state.journaled():
            if state.evaluator_heard_s is not None:
                return
            self._written += written
            self._losses += losses
            seconds = round(state.coordinator.time.train_s(time.monotonic()), 2)
            if not self._settings.checkpoint_every_epoch:
                counted = [(step, self._observe(step, {})) for step in self._written]
                self._written, self._losses = [], []
            while self._losses and (at := [step for step in self._written if step >= self._losses[0][0]]):
                counted.append((at[0], self._observe(at[0], {"loss": self._losses.pop(0)[1]})))
                self._written = at if self._losses else at[1:]
            state.changed.notify_all()
        for step, seen in counted:
            self._tell(step, seconds, seen)

    def _observe(self, step: int, metrics: Mapping[str, float]) -> Observation:
        """Has callbacks count a checkpoint's scores; the lock is held."""
        coordinator, known = self._state.coordinator, self._state.journal_state
        over = coordinator.should_stop(time.monotonic())
        loss = coordinator.epochs.loss_before(step) if self._settings.checkpoint_every_epoch else math.nan
        scores = metrics if math.isnan(loss) else {"loss": loss, **metrics}
        reported = int(coordinator.reports.total(lambda r: r.steps)), coordinator.reports.total(lambda r: r.loss_sum)
        seen = known.reactions.scored(step, scores, self._settings.schedule.rate(step), reported, over=over)
        if not seen.repeated:
            self._logs = seen.logs
        if seen.stop:
            coordinator.stop("early stopping", seen.stop)
        if seen.mistake and not over:
            coordinator.failure = coordinator.failure or seen.mistake
        return seen

    def _tell(self, step: int, seconds: float, seen: Observation) -> None:
        for note in seen.notes:
            self._folder.note({"kind": note["kind"], "step": step, "seconds": seconds} | note)
            if "learning_rate" in note:
                self._happened("learning_rate", f"reduced to {note['learning_rate']:.4g}")
                logging.info("the learning rate is reduced to %.4g after step %d", note["learning_rate"], step)
        if seen.mistake:
            logging.error("%s", seen.mistake)
        if seen.stop:
            self._happened("stopped", f"training ends early: {seen.stop}")
            logging.info("training ends early at step %d: %s", step, seen.stop)

    def _happened(self, kind: str, text: str) -> None:
        with self._state.changed:
            self._state.happened.append((kind, text))


def _without_illustration(score: pb.Score) -> pb.Score:
    """A copy that fits the journal."""
    found = pb.Score()
    found.CopyFrom(score)
    found.ClearField("illustration")
    return found


def _shown(illustration: pb.Illustration) -> dict[str, Any]:
    """Fields of the dict that `Sink.on_evaluation` is called with."""
    curves = {
        one.name: {"positives": list(one.positives), "negatives": list(one.negatives)} for one in illustration.curves
    }
    return {"pictures": illustration.pictures, "curves": curves}
