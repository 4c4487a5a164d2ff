"""Keras' callbacks in `fit`: which the chief carries out, which are called here, which are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import pytest
from keras import callbacks

from downpour.launch.fitting.callbacks import Callbacks, Calls, converted
from downpour.worker.chief.callbacks import EarlyStopping, KeepBest, ReduceOnPlateau


class Own(callbacks.Callback):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.stop_training = epoch == 1


class OfBatches(callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None: ...


class OwnRate(callbacks.ReduceLROnPlateau): ...


class SetsRate(callbacks.Callback):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.optimizer.learning_rate = 0.5


class OwnCheckpoint(callbacks.ModelCheckpoint):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, Callbacks()),
        (
            callbacks.EarlyStopping("val_accuracy", min_delta=0.1, patience=3, mode="max", start_from_epoch=2),
            Callbacks((EarlyStopping("val_accuracy", "max", 0.1, 3, None, 2),)),
        ),
        (
            [callbacks.EarlyStopping(baseline=2, restore_best_weights=True), callbacks.TerminateOnNaN()],
            Callbacks((EarlyStopping(baseline=2.0), KeepBest()), best=KeepBest()),
        ),
        (
            callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=4, min_delta=0.01, cooldown=2, min_lr=0.001),
            Callbacks((ReduceOnPlateau("loss", "auto", 0.5, 4, 0.01, 2, 0.001),)),
        ),
        (KeepBest("loss"), Callbacks((KeepBest("loss"),))),
    ],
)
def test_the_chief_carries_out_what_concerns_training(given: Any, expected: Callbacks) -> None:
    assert converted(given) == expected


def test_the_rest_is_called_here(tmp_path: Path) -> None:
    given = [
        callbacks.History(),
        callbacks.CSVLogger(str(tmp_path / "log.csv")),
        callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: None),
        Own(),
        OwnCheckpoint("x.keras"),
        callbacks.ModelCheckpoint("best.keras", monitor="val_accuracy", mode="max", save_best_only=True),
    ]
    found = converted(given)
    assert found.here == tuple(given) and found.chief == (KeepBest("val_accuracy", "max"),)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (callbacks.LearningRateScheduler(lambda epoch: 0.1), "LearningRateScheduler is not supported; compile the"),
        (callbacks.BackupAndRestore("x"), "BackupAndRestore is not supported; every run writes"),
        (callbacks.TensorBoard("x"), "TensorBoard is not supported; where tensorboardX is installed"),
        (callbacks.SwapEMAWeights(), "SwapEMAWeights is not supported; compile the optimizer with use_ema=True"),
        (OfBatches(), "OfBatches has on_train_batch_end; .* other processes. Supported are EarlyStopping, ReduceLR"),
        (callbacks.LambdaCallback(on_train_batch_end=lambda b, logs: 0), "LambdaCallback has on_train_batch_end"),
        (OwnRate(), "OwnRate sets the learning rate, which shards compute; use ReduceLROnPlateau"),
        (callbacks.ModelCheckpoint("x.keras", save_freq=100), "ModelCheckpoint: save_freq is 100; only 'epoch'"),
        (callbacks.CallbackList([]), "is not supported|accepted are EarlyStopping"),
        ([Own], "callbacks has the class Own, not an object; accepted are EarlyStopping"),
        (3, "callbacks has 3; accepted are EarlyStopping"),
        (callbacks.EarlyStopping("val_own_number"), "mode='auto' cannot tell whether a higher or a lower"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        converted(given)


def compiled() -> keras.Model:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
    return model


def test_events_come_in_order_and_logs_are_recorded(tmp_path: Path) -> None:
    events: list[Any] = []
    history, logger = callbacks.History(), callbacks.CSVLogger(str(tmp_path / "log.csv"))
    every = callbacks.LambdaCallback(
        on_train_begin=lambda logs: events.append("begin"),
        on_epoch_begin=lambda epoch, logs: events.append(f"begin {epoch}"),
        on_epoch_end=lambda epoch, logs: events.append((epoch, logs)),
        on_train_end=lambda logs: events.append("end"),
    )
    calls = Calls([history, logger, every], {"epochs": 2})
    model, copy = compiled(), compiled()
    assert calls.need_model and not Calls([history, logger], {}).need_model
    calls.begin(model, copy, 0)
    assert history.model is model and every.model is copy and every.params == {"epochs": 2}
    calls.epoch(0, {"loss": 2.0}, is_last=False)
    calls.epoch(1, {"loss": 1.0}, is_last=True)
    calls.end()
    assert events == ["begin", "begin 0", (0, {"loss": 2.0}), "begin 1", (1, {"loss": 1.0}), "end"]
    assert model.history.history == {"loss": [2.0, 1.0]}
    assert (tmp_path / "log.csv").read_text().split() == ["epoch,loss,val_loss", "0,2.0,NA", "1,1.0,NA"]


def test_a_callback_stops_training_and_none_sets_the_rate() -> None:
    calls = Calls([Own()], {})
    calls.begin(None, compiled(), 0)
    calls.epoch(0, {}, is_last=False)
    assert not calls.stopped_by
    calls.epoch(1, {}, is_last=False)
    assert calls.stopped_by == "Own"
    calls = Calls([SetsRate()], {})
    calls.begin(None, compiled(), 0)
    with pytest.raises(ValueError, match="callback SetsRate has set the learning rate, which shards compute"):
        calls.epoch(0, {}, is_last=False)
