"""`Evaluation` against `model.evaluate` of plain Keras on the same batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest

from downpour.model.metrics import Evaluation

SIZES = (8, 8, 8, 3)  # batches of evaluate(batch_size=8)
NUM = sum(SIZES)


def two_ends() -> keras.Model:
    inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((3,), name="b")}
    joined = keras.layers.Concatenate()([inputs["a"], inputs["b"]])
    hidden = keras.layers.Dense(5, "relu", kernel_regularizer="l2")(joined)
    hidden = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(hidden))
    outputs = {
        "kind": keras.layers.Dense(3, "softmax", name="kind")(hidden),
        "size": keras.layers.Dense(1, name="size")(hidden),
    }
    model = keras.Model(inputs, outputs)
    model.compile(
        "adam",
        loss={"kind": "sparse_categorical_crossentropy", "size": "mse"},
        loss_weights={"kind": 0.3, "size": 2.0},
        metrics={"kind": ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2)], "size": ["mae"]},
        weighted_metrics={"kind": ["accuracy"], "size": [keras.metrics.RootMeanSquaredError()]},
    )
    return model


def arrays(dtype: type = np.float32) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    x = {"a": rng.normal(size=(NUM, 4)).astype(dtype), "b": rng.normal(size=(NUM, 3)).astype(dtype)}
    y = {"kind": rng.integers(0, 3, NUM), "size": rng.normal(size=(NUM, 1)).astype(dtype)}
    weight = {"kind": rng.random(NUM).astype(dtype), "size": rng.random(NUM).astype(dtype)}
    return x, y, weight


def batches(*parts: Any) -> Iterator[Any]:
    start = 0
    for size in SIZES:
        cut = slice(start, start + size)
        yield keras.tree.map_structure(lambda a: None if a is None else a[cut], parts)  # noqa: B023
        start += size


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_evaluate_with_two_outputs_dicts_and_sample_weights(dtype: type) -> None:
    keras.utils.set_random_seed(1)
    model = two_ends()
    x, y, weight = arrays(dtype)
    expected = model.evaluate(x, y, sample_weight=weight, batch_size=SIZES[0], verbose=0, return_dict=True)
    assert len(expected) >= 8
    evaluate = Evaluation(model)
    for _ in range(2):  # the second does not go on from the first
        found = evaluate(batches(x, y, weight))
        assert found.keys() == expected.keys()
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_without_sample_weights_and_with_none_in_their_place() -> None:
    model = two_ends()
    x, y, _ = arrays()
    expected = model.evaluate(x, y, batch_size=SIZES[0], verbose=0, return_dict=True)
    evaluate = Evaluation(model)
    assert evaluate(batches(x, y)) == pytest.approx(expected, rel=1e-6)
    assert evaluate(batches(x, y, None)) == pytest.approx(expected, rel=1e-6)


def test_metrics_of_several_values_stay_arrays() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
    model.compile("sgd", "categorical_crossentropy", metrics=[keras.metrics.F1Score(average=None)])
    x, y = np.random.default_rng(0).random((NUM, 4), np.float32), np.eye(3, dtype=np.float32)[np.arange(NUM) % 3]
    expected = model.evaluate(x, y, batch_size=SIZES[0], verbose=0, return_dict=True)
    np.testing.assert_allclose(Evaluation(model)(batches(x, y))["f1_score"], expected["f1_score"], rtol=1e-6)


def test_a_models_own_test_step_counts() -> None:
    class Own(keras.Sequential):
        def test_step(self, data: Any) -> Any:
            return super().test_step((data[0], data[1] + 1))

    model = Own([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile("sgd", "mse")
    x, y = np.ones((NUM, 4), np.float32), np.ones((NUM, 1), np.float32)
    assert Evaluation(model)(batches(x, y)) == {"loss": 4.0}


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_shows_the_outputs_of_each_batch_where_each_class_has_one(run_eagerly: bool) -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(3, "softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=run_eagerly)
    x, y = np.random.default_rng(0).random((NUM, 4), np.float32), np.arange(NUM) % 3
    parts: list[Any] = []
    found = Evaluation(model)(batches(x, y), lambda *part: parts.append(part))
    assert found == pytest.approx(model.evaluate(x, y, batch_size=SIZES[0], verbose=0, return_dict=True), rel=1e-6)
    seen_x, seen_y, outputs = (np.concatenate(part) for part in zip(*parts, strict=True))
    assert [len(part[0]) for part in parts] == list(SIZES)
    assert (seen_x == x).all() and (seen_y == y).all()
    np.testing.assert_allclose(outputs, model.predict(x, verbose=0), rtol=1e-5)
    assert "compute_metrics" not in vars(model), "the model is as it was"


def test_shows_nothing_of_several_outputs() -> None:
    x, y, _ = arrays()
    shown: list[Any] = []
    Evaluation(two_ends())(batches(x, y), lambda *part: shown.append(part))
    assert not shown


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_is_traced_once_whatever_the_batches(run_eagerly: bool) -> None:
    traced = []

    class Counted(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            traced.append(1)
            return x

    model = keras.Sequential([keras.Input((4,)), Counted(), keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=run_eagerly)
    x, y = np.ones((NUM, 4), np.float32), np.ones((NUM, 1), np.float32)
    evaluate = Evaluation(model)
    before = len(traced)
    for _ in range(3):
        evaluate(batches(x, y))
    assert len(traced) - before == (3 * len(SIZES) if run_eagerly else 1)


def test_refusals() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="is not compiled"):
        Evaluation(model)
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="there is no batch"):
        Evaluation(model)([])
