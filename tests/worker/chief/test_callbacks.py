"""What a recipe may give as callbacks, and what is refused with its reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from downpour.worker.chief.callbacks import Callback, EarlyStopping, KeepBest, ReduceOnPlateau, check, check_scores


class Own(Callback):
    pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EarlyStopping(patience=-1), "EarlyStopping: patience is -1; give a whole number of at least 0"),
        (lambda: EarlyStopping(patience=2.5), "patience is 2.5"),  # type: ignore[arg-type]
        (lambda: EarlyStopping(min_delta=-0.1), "min_delta is -0.1; give 0 or a number above it"),
        (lambda: EarlyStopping(baseline=float("nan")), "baseline is nan; give a number, or None"),
        (lambda: EarlyStopping(start_from_epoch=True), "start_from_epoch is True"),
        (lambda: KeepBest(""), "KeepBest: monitor is ''; give the name of a score"),
        (lambda: KeepBest(mode="best"), "mode is 'best'; give 'auto', 'min' or 'max'"),
        (lambda: KeepBest("val_size"), "whether a higher or a lower val_size is better; give mode='min' or mode='max'"),
        (lambda: ReduceOnPlateau(factor=1.0), "factor is 1.0; give a number above 0 and below 1"),
        (lambda: ReduceOnPlateau(factor=0), "factor is 0"),
        (lambda: ReduceOnPlateau(min_rate=float("inf")), "min_rate is inf"),
        (lambda: ReduceOnPlateau(cooldown=-2), "cooldown is -2"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        make()


@pytest.mark.parametrize(
    ("name", "higher"),
    [
        ("val_loss", False), ("loss", False), ("val_kind_accuracy", True), ("val_acc", True), ("val_auc_1", True),
        ("val_mean_squared_error", False), ("val_sparse_categorical_crossentropy", False), ("map_at_100", True),
        ("val_false_negatives", False), ("val_true_positives", True), ("val_mean_io_u", True), ("val_f1_score", True),
        ("val_cosine_similarity", True), ("val_kl_divergence", False), ("val_top_k_categorical_accuracy", True),
        ("val_root_mean_squared_error", False), ("val_accuracy_loss", False), ("val_r2_score", True),
    ],
)  # fmt: skip
def test_whether_higher_is_better_is_told_by_the_name(name: str, higher: bool) -> None:
    assert KeepBest(name).is_higher_better is higher
    assert KeepBest(name, "max").is_higher_better and not KeepBest(name, "min").is_higher_better


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([EarlyStopping()], r"callbacks is a list; give a tuple of EarlyStopping, KeepBest, ReduceOnPlateau, or an"),
        ((EarlyStopping(), 3), r"callbacks\[1\] is a int; give EarlyStopping, KeepBest, ReduceOnPlateau, or an object"),
        ((KeepBest(), Own(), KeepBest(mode="max")), r"callbacks\[2\] is a second KeepBest of 'val_loss'; give one"),
        ((Own,), r"callbacks\[0\] is the class Own, not an object of it; give"),
        ((pytest.Item,), r"callbacks\[0\] is the class Item"),
        ((pytest.Session.__new__(pytest.Session),), r"callbacks\[0\] is a _pytest.Session; give EarlyStopping"),
    ],
)
def test_what_is_no_callback_is_refused_by_name(given: Any, message: str) -> None:
    check((EarlyStopping(), Own(), ReduceOnPlateau("loss")))
    with pytest.raises(ValueError, match=message):
        check(given)


def test_a_score_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    check_scores((Own(), EarlyStopping("loss"), KeepBest("val_mae")), ["val_mae", "val_loss"])
    with pytest.raises(ValueError, match=r"KeepBest: monitor is 'val_acc', and there is no such score; give one of "
                       r"loss, learning_rate, val_accuracy, val_loss$"):  # fmt: skip
        check_scores((EarlyStopping(), KeepBest("val_acc")), ["val_loss", "val_accuracy"])
    with pytest.raises(ValueError, match=r"EarlyStopping: .* loss, learning_rate; the others need an evaluator and"):
        check_scores((EarlyStopping(),), ())
