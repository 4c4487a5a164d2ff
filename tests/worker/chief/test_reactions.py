"""What follows from scores: as Keras' callbacks of the same arguments, over restarts, and each score once."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

from downpour.model.data.epochs import Epochs
from downpour.worker.chief.callbacks import Callback, EarlyStopping, KeepBest, ReduceOnPlateau
from downpour.worker.chief.reactions import Factor, Observation, Reactions

RATE = 0.5


def reactions(*callbacks: Callback) -> Reactions:
    return Reactions(callbacks, Epochs(10, 1))


def score(given: Reactions, epoch: int, value: float, *, over: bool = False, **more: float) -> Observation:
    return given.scored(10 * (epoch + 1), {"val_loss": value, **more}, RATE, (0, 0.0), over=over)


def restarted(given: Reactions) -> Reactions:
    """As a chief makes them of the journal of the last one."""
    return given.continued(json.loads(json.dumps(given.state())))


def sequences(number: int) -> list[list[float]]:
    """Scores that fall, wander, repeat and are now and then not a number."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(number):
        values = np.round(1.0 + np.cumsum(rng.normal(-0.02, 0.1, 25)), 1)
        values[rng.random(25) < 0.05 * rng.integers(0, 2)] = math.nan
        for first in (0, 5):  # Keras never forgets a first score of NaN
            if math.isnan(values[first]):
                values[first] = 1.0
        found.append([float(value) for value in values])
    return found


def model() -> Any:
    return SimpleNamespace(stop_training=False, optimizer=SimpleNamespace(learning_rate=RATE))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"patience": 3},
        {"patience": 2, "min_delta": 0.15},
        {"patience": 4, "mode": "max"},
        {"patience": 2, "start_from_epoch": 5},
        {"patience": 5, "baseline": 0.7},
        {"patience": 5, "baseline": 1.2, "mode": "max", "min_delta": 0.1},
    ],
)
def test_early_stopping_ends_where_keras_does(arguments: dict[str, Any]) -> None:
    ends = []
    for number, values in enumerate(sequences(60)):
        theirs, mine, fake = keras.callbacks.EarlyStopping(**arguments), reactions(EarlyStopping(**arguments)), model()
        if "mode" not in arguments:
            theirs.mode = "min"  # Keras tells by the model's metrics
        theirs.set_model(fake)
        theirs.on_train_begin()
        for epoch, value in enumerate(values):
            theirs.on_epoch_end(epoch, {"val_loss": value})
            seen = score(mine, epoch, value)
            assert bool(seen.stop) == fake.stop_training, (number, epoch)
            if seen.stop:
                ends.append(epoch)
                break
            if number % 3 == 0:
                mine = restarted(mine)
    assert len(set(ends)) > 2, "the sequences are to end at different epochs"


@pytest.mark.parametrize(
    "arguments",
    [
        {"patience": 2, "factor": 0.5},
        {"patience": 1, "factor": 0.3, "cooldown": 3, "min_delta": 0.12},
        {"patience": 2, "factor": 0.5, "min_lr": 0.1},
        {"patience": 3, "factor": 0.1, "mode": "max", "cooldown": 1},
        {"patience": 0, "factor": 0.9},
    ],
)
def test_the_rate_is_reduced_as_by_keras(arguments: dict[str, Any]) -> None:
    renamed = {"min_rate" if key == "min_lr" else key: value for key, value in arguments.items()}
    changes = 0
    for number, values in enumerate(sequences(60)):
        theirs, mine, fake = (
            keras.callbacks.ReduceLROnPlateau(**arguments),
            reactions(ReduceOnPlateau(**renamed)),
            model(),
        )
        if "mode" not in arguments:
            theirs.mode = "min"
        theirs.set_model(fake)
        theirs.on_train_begin()
        for epoch, value in enumerate(values):
            theirs.on_epoch_end(epoch, {"val_loss": value})
            before = mine.factor
            seen = score(mine, epoch, value)
            assert RATE * mine.factor.factor == pytest.approx(fake.optimizer.learning_rate, rel=1e-12), (number, epoch)
            changed = mine.factor != before
            assert mine.factor.number == before.number + changed
            assert [note["kind"] for note in seen.notes] == ["rate"] * changed
            changes += changed
            if number % 3 == 0:
                mine = restarted(mine)
    assert changes > 60


def test_the_best_checkpoint_is_known_by_step_and_score() -> None:
    mine = reactions(KeepBest(), KeepBest("val_mae", "max"))
    assert mine.best == {} == mine.summary()
    notes = [score(mine, e, v, val_mae=1 - v).notes for e, v in enumerate([3.0, math.nan, 2.0, 2.0, 2.5])]
    assert notes[2] == (
        {"kind": "best", "monitor": "val_loss", "score": 2.0}, {"kind": "best", "monitor": "val_mae", "score": -1.0}
    )  # fmt: skip
    assert not notes[1] and not notes[3] and not notes[4], "an equal score is not better, as in Keras"
    mine = restarted(mine)
    assert mine.best == {"val_loss": {"step": 30, "score": 2.0}, "val_mae": {"step": 30, "score": -1.0}}
    assert mine.summary() == {"best": mine.best}
    score(mine, 5, 1.0, over=True, val_mae=0.0)
    assert mine.best["val_loss"]["step"] == 60, "the last checkpoint may be the best"


def test_a_score_that_comes_twice_or_late_counts_once() -> None:
    mine = reactions(EarlyStopping(patience=3), ReduceOnPlateau(patience=2))
    score(mine, 0, 1.0)
    for _ in range(5):
        assert not score(mine, 1, 2.0).stop
    assert not score(mine, 0, 2.0).notes and mine.factor == Factor()
    assert score(mine, 2, 2.0).notes and score(mine, 3, 2.0).stop


def test_nothing_ends_or_is_reduced_when_training_is_over() -> None:
    mine = reactions(EarlyStopping(), ReduceOnPlateau(patience=0))
    score(mine, 0, 1.0)
    seen = score(mine, 1, 2.0, over=True)
    assert not seen.stop and mine.factor == Factor()


def test_a_callback_counts_on_when_its_other_arguments_differ() -> None:
    mine = reactions(EarlyStopping(patience=2), EarlyStopping("val_mae", patience=9), EarlyStopping(patience=5))
    for epoch in range(3):
        seen = score(mine, epoch, 1.0, val_mae=1.0)
    assert seen.stop == "val_loss has not improved for 2 scored checkpoints"
    longer = Reactions((KeepBest(), EarlyStopping(patience=4)), Epochs(10, 1), "epochs").continued(mine.state())
    assert not score(longer, 3, 1.0).stop and score(longer, 4, 1.0).stop == "val_loss has not improved for 4 epochs"
    assert mine.state()["counters"].keys() == {
        "EarlyStopping val_loss", "EarlyStopping val_mae", "EarlyStopping val_loss #2"
    }  # fmt: skip


def test_the_highest_change_of_the_rate_holds() -> None:
    mine = reactions()
    mine.adopt(2, 0.01)
    mine.adopt(2, 0.5)
    mine.adopt(1, 0.1)
    assert mine.factor == Factor(2, 0.01) == restarted(mine).factor


def test_a_score_that_is_missing_ends_the_job_at_the_first_checkpoint() -> None:
    mine = reactions(EarlyStopping("val_accuracy"))
    assert "give one of loss, learning_rate, val_loss" in score(mine, 0, 1.0).mistake


def test_a_job_without_callbacks_has_a_state_too() -> None:
    assert restarted(reactions()).state() == reactions().state() == reactions().continued({}).state()
    with pytest.raises(KeyError):
        reactions().continued({"observed": 3})


def test_the_loss_is_that_of_an_epoch_or_since_the_last_count() -> None:
    mine = reactions(KeepBest("loss"))
    assert "loss" not in mine.scored(10, {}, RATE, (0, 0.0), over=False).logs, "no worker has reported"
    assert mine.scored(20, {}, RATE, (4, 8.0), over=False).logs == {"loss": 2.0, "learning_rate": RATE}
    assert mine.scored(20, {}, RATE, (8, 9.0), over=False).logs == {}, "it was counted"
    mine = restarted(mine)
    assert mine.scored(30, {"val_loss": 1.0}, RATE, (6, 9.0), over=False).logs["loss"] == 0.5
    assert mine.scored(40, {"loss": 7.0}, RATE, (9, 9.0), over=False).logs["loss"] == 7.0
    assert mine.scored(50, {}, RATE, (2, 6.0), over=False).logs["loss"] == 3.0, "reports were lost with a journal"
    assert mine.best == {"loss": {"step": 30, "score": 0.5}}


@pytest.mark.parametrize("steps", [(5, 12, 25, 30), (5, 8, 21, 24)])
def test_epochs_before_the_first_to_count_are_ignored_also_where_checkpoints_are_within_them(
    steps: tuple[int, ...],
) -> None:
    mine = reactions(EarlyStopping("val_loss", start_from_epoch=1), EarlyStopping("val_mae", patience=9))
    seen = [mine.scored(step, {"val_loss": 1.0, "val_mae": 1.0}, RATE, (0, 0.0), over=False) for step in steps]
    assert [bool(one.stop) for one in seen] == [False, False, False, True]
    assert mine.state()["counters"]["EarlyStopping val_mae"]["wait"] == 3, "all of them count from the first on"
