"""Keras' callbacks in `fit`: carried out by the chief, called in the process that called `fit`, or refused by name.

| callback | |
|---|---|
| `EarlyStopping` | the chief's; with `restore_best_weights` also `KeepBest`, and `run.model` gives the best |
| `ReduceLROnPlateau` | the chief's `ReduceOnPlateau`: shards multiply their rate |
| `ModelCheckpoint` | called here; with `save_best_only` also the chief's `KeepBest` |
| `TerminateOnNaN` | what every job does |
| `CSVLogger`, `History`, `LambdaCallback`, `RemoteMonitor`, own ones | called here, if they use events of epochs only |
| callbacks of `downpour.worker.chief.callbacks` | the job's own |

Keras with the TensorFlow backend is imported on use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from downpour.worker.chief.callbacks import Callback, EarlyStopping, KeepBest, ReduceOnPlateau

_SUPPORTED = (
    "EarlyStopping, ReduceLROnPlateau, ModelCheckpoint, TerminateOnNaN, CSVLogger, History, LambdaCallback, "
    "RemoteMonitor, own subclasses of keras.callbacks.Callback with on_train_begin, on_epoch_begin, on_epoch_end and "
    "on_train_end, and those of downpour.worker.chief.callbacks"
)
_REFUSED = {
    "LearningRateScheduler": "compile the optimizer with a keras.optimizers.schedules.LearningRateSchedule: shards "
    "compute the rate",
    "BackupAndRestore": "every run writes checkpoints, and fit(..., resume=True) continues one",
    "ProgbarLogger": "fit(..., verbose=1) shows bars",
    "SwapEMAWeights": "compile the optimizer with use_ema=True: run.model has the average",
    "TensorBoard": "where tensorboardX is installed, runs write event files to tensorboard/ in their folder",
}
_RECORDERS = ("CSVLogger", "History", "RemoteMonitor")
# Events of single batches, which happen in other processes, and of evaluate and predict, which fit does not call.
_OF_BATCHES = tuple(
    f"on_{of}{when}"
    for of in ("batch_", "train_batch_", "test_batch_", "predict_batch_", "test_", "predict_")
    for when in ("begin", "end")
)


@dataclass(frozen=True)
class Callbacks:
    """The callbacks of a run.

    Attributes:
        chief: Those that the chief carries out, a field of the job.
        here: Keras' callbacks whose events are called in this process.
        best: What decides which checkpoint `run.model` gives; None for the newest.
    """

    chief: tuple[Callback, ...] = ()
    here: tuple[Any, ...] = ()
    best: KeepBest | None = None


def converted(given: Any) -> Callbacks:
    """Converts the argument `callbacks` of `fit`: None, a callback, or a list of them.

    Raises:
        ValueError: A callback, or an argument of it, is refused.
    """
    if given is None:
        return Callbacks()
    chief: list[Callback] = []
    here: list[Any] = []
    kept: dict[str, KeepBest] = {}  # one a score
    best = None
    for callback in given if isinstance(given, list | tuple) else [given]:
        if isinstance(callback, Callback):
            chief.append(callback)
            continue
        name = _checked(callback)
        if name == "EarlyStopping":
            chief.append(_early_stopping(callback))
            if callback.restore_best_weights:
                best = kept.setdefault(callback.monitor, KeepBest(callback.monitor, callback.mode))
        elif name == "ReduceLROnPlateau":
            chief.append(_reduction(callback))
        elif name != "TerminateOnNaN":
            here.append(callback)
            if name == "ModelCheckpoint" and callback.save_best_only:
                kept.setdefault(callback.monitor, KeepBest(callback.monitor, callback.mode))
    given_too = {one.monitor for one in chief if isinstance(one, KeepBest)}
    chief += [one for one in kept.values() if one.monitor not in given_too]
    return Callbacks(tuple(chief), tuple(here), best)


def _checked(callback: Any) -> str:
    """Returns the name of the callback of Keras that something is; "" for an own one.

    Raises:
        ValueError: It is refused.
    """
    import keras

    of_keras = keras.callbacks
    if not isinstance(callback, of_keras.Callback):
        what = f"the class {callback.__name__}, not an object" if isinstance(callback, type) else repr(callback)
        raise ValueError(f"callbacks has {what}; accepted are {_SUPPORTED}")
    kind = type(callback)
    for name, instead in _REFUSED.items():
        if isinstance(callback, getattr(of_keras, name)):
            raise ValueError(f"callback {kind.__name__} is not supported; {instead}")
    is_own = getattr(of_keras, kind.__name__, None) is not kind
    if is_own and isinstance(callback, of_keras.ReduceLROnPlateau):
        raise ValueError(
            f"callback {kind.__name__} sets the learning rate, which shards compute; use ReduceLROnPlateau"
        )
    if kind is of_keras.ModelCheckpoint and callback.save_freq != "epoch":
        raise ValueError(f"ModelCheckpoint: save_freq is {callback.save_freq!r}; only 'epoch' is supported")
    if is_own or kind in (of_keras.LambdaCallback, of_keras.Callback):
        events = [name for name in _OF_BATCHES if _is_overridden(callback, name)]
        if events:
            raise ValueError(
                f"callback {kind.__name__} has {', '.join(events)}; batches are computed in other processes. Supported "
                f"are {_SUPPORTED}"
            )
    elif kind.__name__ not in _SUPPORTED:
        raise ValueError(f"callback {kind.__name__} is not supported; supported are {_SUPPORTED}")
    return "" if is_own else kind.__name__


def _is_overridden(callback: Any, event: str) -> bool:
    """Whether an event is handled by the user's own code, in a class or as an attribute."""
    if event in vars(callback):
        return True
    owner = next(kind for kind in type(callback).__mro__ if event in vars(kind))
    return not owner.__module__.startswith("keras.")


def _early_stopping(callback: Any) -> EarlyStopping:
    return EarlyStopping(
        callback.monitor,
        callback.mode,
        float(abs(callback.min_delta)),
        int(callback.patience),
        None if callback.baseline is None else float(callback.baseline),
        int(callback.start_from_epoch),
    )


def _reduction(callback: Any) -> ReduceOnPlateau:
    return ReduceOnPlateau(
        callback.monitor,
        callback.mode,
        float(callback.factor),
        int(callback.patience),
        float(abs(callback.min_delta)),
        int(callback.cooldown),
        float(callback.min_lr),
    )


class Calls:
    """Calls the events of Keras' callbacks, in order of epochs, in one thread.

    Each callback's `model` is a copy of the model with the values of the epoch's checkpoint; what is assigned to it
    changes nothing else. Those that only record logs get the model that was given to `fit`.

    Args:
        callbacks: The callbacks.
        params: Their `params`.

    Attributes:
        stopped_by: Name of the callback that has set `model.stop_training`; empty for none.
    """

    def __init__(self, callbacks: Sequence[Any], params: dict[str, Any]) -> None:
        self._callbacks, self._params = callbacks, params
        self._logs: dict[str, float] = {}
        self.stopped_by = ""

    @property
    def need_model(self) -> bool:
        """Whether a callback gets a copy of the model."""
        return any(type(callback).__name__ not in _RECORDERS for callback in self._callbacks)

    def begin(self, model: Any, copy: Any, first_epoch: int) -> None:
        """Training begins.

        Args:
            model: The model that was given to `fit`.
            copy: A copy of it; None if no callback needs one.
            first_epoch: The epoch that begins.
        """
        for callback in self._callbacks:
            callback.set_params(self._params)
            callback.set_model(model if type(callback).__name__ in _RECORDERS else copy)
        self._call("on_train_begin", {})
        self._call("on_epoch_begin", first_epoch, {})

    def epoch(self, epoch: int, logs: dict[str, float], is_last: bool) -> None:
        """An epoch is complete."""
        self._logs = logs
        self._call("on_epoch_end", epoch, logs)
        if not is_last and not self.stopped_by:
            self._call("on_epoch_begin", epoch + 1, {})

    def end(self) -> None:
        """Training is over."""
        self._call("on_train_end", self._logs)

    def _call(self, event: str, *arguments: Any) -> None:
        for callback in self._callbacks:
            model = callback.model
            rate = _rate(model)
            getattr(callback, event)(*(dict(one) if isinstance(one, dict) else one for one in arguments))
            name = type(callback).__name__
            if _rate(model) != rate:
                raise ValueError(
                    f"callback {name} has set the learning rate, which shards compute; use ReduceLROnPlateau, or "
                    "compile the optimizer with a schedule"
                )
            if getattr(model, "stop_training", False):
                model.stop_training, self.stopped_by = False, name


def _rate(model: Any) -> float | None:
    optimizer = getattr(model, "optimizer", None)
    return None if optimizer is None else float(optimizer.learning_rate)
