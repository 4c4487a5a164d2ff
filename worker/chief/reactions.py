"""What `EarlyStopping`, `KeepBest` and `ReduceOnPlateau` decide when a checkpoint has been scored.

Pure: no clock, no I/O, no threads; guarded by the chief's lock. The state is in the chief's journal and in every
checkpoint, so that a restarted chief and a resumed run count on. A score that is not a number is no improvement.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from downpour.model.data.epochs import ENDLESS, Epochs
from downpour.worker.chief import callbacks as kinds
from downpour.worker.chief.callbacks import Callback, EarlyStopping, KeepBest, Monitor, ReduceOnPlateau


@dataclass(frozen=True)
class Factor:
    """What the shards multiply their schedule's rate by: the change's number, 0 before the first, and the factor."""

    number: int = 0
    factor: float = 1.0


@dataclass(frozen=True)
class Observation:
    """What a scored checkpoint meant.

    Attributes:
        logs: Loss, learning rate and scores.
        notes: Lines for the history, without step and time.
        stop: Why a callback ends training; empty if none does.
        mistake: Why the job fails: a callback follows a score that there is not.
        repeated: Whether it, or a later one, was counted before; then only `logs` are set, to the scores.
    """

    logs: dict[str, float]
    notes: tuple[dict[str, Any], ...] = ()
    stop: str = ""
    mistake: str = ""
    repeated: bool = False


@dataclass
class Counters:
    """What one callback has counted.

    Attributes:
        best: The best score; None before the first.
        step: Step of its checkpoint.
        wait: Scored checkpoints since then, or since the patience began anew.
        cooldown: Scored checkpoints that are still not counted after a reduction.
    """

    best: float | None = None
    step: int = 0
    wait: int = 0
    cooldown: int = 0


class Reactions:
    """The callbacks of a job that follow a score, and what they have counted.

    Args:
        callbacks: All callbacks of the job.
        epochs: Its epochs.
        counted: What has a scored checkpoint each, for reasons that people read.

    Attributes:
        factor: What the shards multiply their schedule's rate by.
        observed: Step of the newest checkpoint whose score was counted; -1 before the first.
    """

    def __init__(
        self, callbacks: Sequence[Callback] = (), epochs: Epochs = ENDLESS, counted: str = "scored checkpoints"
    ) -> None:
        self.factor = Factor()
        self._callbacks, self._epochs, self._counted = callbacks, epochs, counted
        self._followed = [(one, Counters()) for one in callbacks if isinstance(one, Monitor)]
        self.observed = -1
        self._reported = 0, 0.0  # steps, and the sum of their losses, when that was

    @property
    def keeps_best(self) -> bool:
        """Whether a checkpoint may be kept for its score."""
        return any(isinstance(one, KeepBest) for one, _ in self._followed)

    @property
    def best(self) -> dict[str, dict[str, Any]]:
        """Step and score of the checkpoints that are kept for their scores, by the score's name."""
        return {
            one.monitor: {"step": counters.step, "score": counters.best}
            for one, counters in self._followed
            if isinstance(one, KeepBest) and counters.best is not None
        }

    def adopt(self, number: int, factor: float) -> None:
        """Takes over the factor of a shard, which its checkpoint may hold, if it is of a later change."""
        if number > self.factor.number:
            self.factor = Factor(number, factor)

    def scored(
        self, step: int, scores: Mapping[str, float], rate: float, reported: tuple[int, float], *, over: bool
    ) -> Observation:
        """Counts the scores of a checkpoint; those that have been counted, or are older, change nothing.

        Args:
            step: Its global step.
            scores: The evaluator's scores, none where there is no evaluator; and `loss`, if it is that of an epoch.
            rate: What the schedule says at that step.
            reported: Number of steps that workers have reported, and the sum of their losses. Where `loss` is not among
                the scores, it is the mean over the steps reported since the last checkpoint that was counted.
            over: Whether training is over, so that only the best checkpoint matters.
        """
        if step <= self.observed:
            return Observation(dict(scores), repeated=True)
        logs = {"learning_rate": rate * self.factor.factor, **self._loss_since(*reported), **scores}
        try:
            kinds.check_scores(self._callbacks, scores)
        except ValueError as error:
            return Observation(logs, mistake=str(error))
        is_first, self.observed, self._reported = self.observed < 0, step, reported
        notes, stop = [], ""
        for one, counters in self._followed:
            value = logs.get(one.monitor)
            if value is None:  # no worker has reported a loss yet
                continue
            if isinstance(one, KeepBest) and _improves(one, value, counters.best):
                counters.best, counters.step = value, step
                notes.append({"kind": "best", "monitor": one.monitor, "score": value})
            elif isinstance(one, ReduceOnPlateau) and not over and _has_plateau(one, counters, value):
                notes += self._reduced(one, counters, rate)
            elif isinstance(one, EarlyStopping) and not over and self._epoch(step) >= one.start_from_epoch:
                if _has_stopped(one, counters, value) and not is_first:
                    stop = stop or f"{one.monitor} has not improved for {counters.wait} {self._counted}"
        return Observation(logs, tuple(notes), stop)

    def _epoch(self, step: int) -> int:
        """The last epoch that has ended at a step, or the first."""
        return max(self._epochs.of(step) - 1, 0)

    def _loss_since(self, steps: int, loss_sum: float) -> dict[str, float]:
        before, sum_before = self._reported
        if steps < before:  # reports were lost with a journal
            before, sum_before = 0, 0.0
        return {"loss": (loss_sum - sum_before) / (steps - before)} if steps > before else {}

    def _reduced(self, one: ReduceOnPlateau, counters: Counters, rate: float) -> list[dict[str, Any]]:
        """Reduces the rate, unless it is at its limit; returns the lines for the history."""
        if rate * self.factor.factor <= one.min_rate:
            return []
        factor = max(self.factor.factor * one.factor, one.min_rate / rate)
        self.factor = Factor(self.factor.number + 1, factor)
        counters.cooldown, counters.wait = one.cooldown, 0
        return [{"kind": "rate", "factor": factor, "learning_rate": rate * factor}]

    def summary(self) -> dict[str, Any]:
        """Returns the entries of the summary: the best checkpoints by score, and the factor of the rate, if any."""
        found: dict[str, Any] = {"best": self.best} if self.best else {}
        if self.factor.number:
            found["learning_rate_factor"] = self.factor.factor
        return found

    def state(self) -> dict[str, Any]:
        """Returns everything that a later chief needs, as JSON values."""
        return {
            "factor": asdict(self.factor),
            "observed": self.observed,
            "reported": list(self._reported),
            "counters": {key: asdict(counters) for key, (_, counters) in self._by_key().items()},
        }

    def continued(self, state: Mapping[str, Any]) -> Reactions:
        """Returns reactions of the same callbacks that continue from a state; an empty one is that of a new job.

        A callback counts on from one of the same kind that followed the same score; its other arguments may differ.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: It is not a state of reactions.
        """
        made = Reactions(self._callbacks, self._epochs, self._counted)
        if state:
            made.factor = Factor(int(state["factor"]["number"]), float(state["factor"]["factor"]))
            made.observed = int(state["observed"])
            made._reported = int(state["reported"][0]), float(state["reported"][1])
            for key, (_, counters) in made._by_key().items():
                if key in state["counters"]:
                    theirs = state["counters"][key]
                    counters.best = None if theirs["best"] is None else float(theirs["best"])
                    counters.step, counters.wait = int(theirs["step"]), int(theirs["wait"])
                    counters.cooldown = int(theirs["cooldown"])
        return made

    def _by_key(self) -> dict[str, tuple[Monitor, Counters]]:
        """The callbacks by kind and score; of several alike, the second has a number."""
        found: dict[str, tuple[Monitor, Counters]] = {}
        for one, counters in self._followed:
            name = f"{type(one).__name__} {one.monitor}"
            alike = sum(key.partition(" #")[0] == name for key in found)
            found[f"{name} #{alike + 1}" if alike else name] = one, counters
        return found


def _has_stopped(one: EarlyStopping, counters: Counters, value: float) -> bool:
    """Counts a score; returns whether the patience is over. As `on_epoch_end` of Keras' `EarlyStopping`."""
    counters.wait += 1
    if _improves(one, value, counters.best, one.min_delta):
        counters.best = value
        if one.baseline is None or _improves(one, value, one.baseline, one.min_delta):
            counters.wait = 0
        return False
    return counters.wait >= one.patience


def _has_plateau(one: ReduceOnPlateau, counters: Counters, value: float) -> bool:
    """Counts a score; returns whether the rate is to be reduced. As `on_epoch_end` of Keras' `ReduceLROnPlateau`."""
    if counters.cooldown:
        counters.cooldown, counters.wait = counters.cooldown - 1, 0
    if _improves(one, value, counters.best, one.min_delta):
        counters.best, counters.wait = value, 0
        return False
    if counters.cooldown:
        return False
    counters.wait += 1
    return counters.wait >= one.patience


def _improves(one: Monitor, value: float, best: float | None, min_delta: float = 0.0) -> bool:
    """Whether a score is better than the best by more than `min_delta`."""
    if best is None:
        return not math.isnan(value)
    return value - min_delta > best if one.is_higher_better else value + min_delta < best
