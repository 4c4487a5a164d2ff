"""Callbacks of a job: what the chief does when a checkpoint has been scored. Pure: the values that a recipe gives.

`EarlyStopping`, `KeepBest` and `ReduceOnPlateau` are carried out by `downpour.worker.chief.reactions`; methods of own
subclasses of `Callback` are called by `downpour.worker.chief.events`. Arguments mean what they mean in Keras'
`EarlyStopping`, `ModelCheckpoint(save_best_only=True)` and `ReduceLROnPlateau`, but scored checkpoints are counted, not
epochs: an evaluator that is slower than the checkpoints scores the newest, and those between do not count.

Imports no framework.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

OF_TRAINING = ("loss", "learning_rate")  # what is known without an evaluator
MODES = ("auto", "min", "max")
# Parts of a score's name, between underscores, that say whether lower or higher is better, as Keras' metrics do.
_LOWER = {"loss", "error", "err", "mse", "rmse", "mae", "mape", "msle", "crossentropy", "entropy", "divergence"}
_LOWER |= {"hinge", "logcosh", "poisson", "perplexity", "false"}
_HIGHER = {"acc", "accuracy", "auc", "precision", "recall", "sensitivity", "specificity", "score", "f1", "r2", "iou"}
_HIGHER |= {"map", "similarity", "dice", "true", "bleu", "psnr", "ssim"}


class Callback:
    """Base of own callbacks: override what is needed. Objects live on the chief, which holds no model.

    All methods are called in one thread of their own, one after another, and never hold up training; where they are
    slower than the job, events in between are left out, which is logged. An exception ends the job after a last
    checkpoint. `downpour.fit` writes a callback into a recipe, so its class must be at the top level of a file, and be
    a dataclass if it has attributes.

    Attributes:
        stop_training: Set to True by a method to end training, as `model.stop_training` in Keras.
    """

    stop_training: bool = False

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        """An epoch has ended, and its checkpoint is scored if the job has `checkpoint_every_epoch` and an evaluator.

        Args:
            epoch: Number of the epoch, from 0.
            logs: `loss`, the mean over the steps of this epoch; `learning_rate`; and the scores, `val_loss` and so on.
        """

    def on_checkpoint(self, step: int, path: str) -> None:
        """A checkpoint has been written.

        Args:
            step: Its global step.
            path: Path or URL of its folder.
        """

    def on_train_end(self, logs: dict[str, float]) -> None:
        """Training is over, and the last checkpoint has been scored; not called where the job fails.

        Args:
            logs: As in `on_epoch_end`, of the last checkpoint.
        """


@dataclass(frozen=True)
class Monitor(Callback):
    """A callback that follows one score.

    Attributes:
        monitor: Name of a score of the evaluator, such as `val_loss`, or `loss` of training.
        mode: `min` where lower is better, `max` where higher is, `auto` to tell by the name.
    """

    monitor: str = "val_loss"
    mode: str = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.monitor, str) or not self.monitor:
            raise self._refusal("monitor", "the name of a score, such as 'val_loss'")
        if self.mode not in MODES:
            raise self._refusal("mode", "'auto', 'min' or 'max'")
        if self.mode == "auto" and _direction(self.monitor) is None:
            raise ValueError(
                f"{type(self).__name__}: mode='auto' cannot tell whether a higher or a lower {self.monitor} is better; "
                "give mode='min' or mode='max'"
            )
        self._check()

    @property
    def is_higher_better(self) -> bool:
        """Whether a higher score is better."""
        return self.mode == "max" or (self.mode == "auto" and _direction(self.monitor) == "max")

    def _check(self) -> None:
        """Checks the fields of a subclass."""

    def _check_whole(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise self._refusal(name, "a whole number of at least 0")

    def _check_not_negative(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not (_is_number(value) and 0 <= value < math.inf):
                raise self._refusal(name, "0 or a number above it")

    def _refusal(self, name: str, accepted: str) -> ValueError:
        return ValueError(f"{type(self).__name__}: {name} is {getattr(self, name)!r}; give {accepted}")


@dataclass(frozen=True)
class EarlyStopping(Monitor):
    """Ends the job, as its last step does, when a score has stopped improving.

    Attributes:
        monitor: Name of the score.
        mode: `min`, `max` or `auto`.
        min_delta: What a score must be better by to count as an improvement.
        patience: Scored checkpoints without improvement after which the job ends.
        baseline: Score that must be beaten, too, for the patience to begin anew; None for none.
        start_from_epoch: Checkpoints of earlier epochs, counted from 0, are ignored.
    """

    min_delta: float = 0.0
    patience: int = 0
    baseline: float | None = None
    start_from_epoch: int = 0

    def _check(self) -> None:
        self._check_not_negative("min_delta")
        self._check_whole("patience", "start_from_epoch")
        if self.baseline is not None and not (_is_number(self.baseline) and math.isfinite(self.baseline)):
            raise self._refusal("baseline", "a number, or None")


@dataclass(frozen=True)
class KeepBest(Monitor):
    """Keeps the checkpoint with the best score beside the newest ones.

    Its step and score are in the history and the summary of the run.

    Attributes:
        monitor: Name of the score.
        mode: `min`, `max` or `auto`.
    """


@dataclass(frozen=True)
class ReduceOnPlateau(Monitor):
    """Multiplies the learning rate by a factor when a score has stopped improving.

    The shards multiply what their schedule says, from then on. They do not all switch at the same push. The rate of a
    worker's own steps, in the cadences `Downpour` and `LocalSteps`, stays as it is.

    Attributes:
        monitor: Name of the score.
        mode: `min`, `max` or `auto`.
        factor: What the rate is multiplied by, above 0 and below 1.
        patience: Scored checkpoints without improvement after which the rate is reduced.
        min_delta: What a score must be better by to count as an improvement.
        cooldown: Scored checkpoints after a reduction that are not counted.
        min_rate: Lower limit of the rate at the time of a reduction.
    """

    factor: float = 0.1
    patience: int = 10
    min_delta: float = 1e-4
    cooldown: int = 0
    min_rate: float = 0.0

    def _check(self) -> None:
        if not (_is_number(self.factor) and 0 < self.factor < 1):
            raise self._refusal("factor", "a number above 0 and below 1")
        self._check_not_negative("min_delta", "min_rate")
        self._check_whole("patience", "cooldown")


BY_NAME: dict[str, type[Monitor]] = {kind.__name__: kind for kind in (EarlyStopping, KeepBest, ReduceOnPlateau)}


def check(callbacks: Any) -> None:
    """Checks the callbacks of a job.

    Raises:
        ValueError: An entry is no callback, or a second `KeepBest` of one score; the message names the first.
    """
    accepted = f"{', '.join(BY_NAME)}, or an object of an own subclass of {Callback.__module__}.Callback"
    if not isinstance(callbacks, tuple):
        raise ValueError(f"callbacks is a {type(callbacks).__name__}; give a tuple of {accepted}")
    for number, given in enumerate(callbacks):
        if not isinstance(given, Callback):
            kind = given if isinstance(given, type) else type(given)
            what = f"the class {kind.__name__}, not an object of it" if given is kind else f"a {_named(kind)}"
            raise ValueError(f"callbacks[{number}] is {what}; give {accepted}")
        if isinstance(given, KeepBest) and any(
            isinstance(one, KeepBest) and one.monitor == given.monitor for one in callbacks[:number]
        ):
            raise ValueError(f"callbacks[{number}] is a second KeepBest of {given.monitor!r}; give one for each score")


def check_scores(callbacks: Iterable[Callback], scores: Collection[str]) -> None:
    """Raises `ValueError` for a callback that follows a score which there is not, with those that there are.

    Args:
        callbacks: The callbacks of a job.
        scores: Names of the evaluator's scores; none where there is no evaluator.
    """
    others = sorted(set(scores).difference(OF_TRAINING))
    for given in callbacks:
        if isinstance(given, Monitor) and given.monitor not in (*OF_TRAINING, *others):
            why = "" if others else "; the others need an evaluator and held-out data"
            raise ValueError(
                f"{type(given).__name__}: monitor is {given.monitor!r}, and there is no such score; give one of "
                f"{', '.join((*OF_TRAINING, *others))}{why}"
            )


def _direction(monitor: str) -> str | None:
    """Returns `min` or `max` by the last part of a score's name that says so; None if none does."""
    for part in reversed(re.split(r"[^a-z0-9]+", monitor.lower().replace("io_u", "iou"))):
        if part in _LOWER or part in _HIGHER:
            return "min" if part in _LOWER else "max"
    return None


def _named(kind: type) -> str:
    return f"{kind.__module__.split('.')[0]}.{kind.__name__}" if "." in kind.__module__ else kind.__name__


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
