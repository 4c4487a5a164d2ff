"""The streaming metric against mAP@100 of all predictions at once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from downpour.model.metrics import Evaluation, MeanAveragePrecision
from downpour.model.vision.metrics import BestPredictions
from downpour.model.vision.scored_classes import ScoredClasses
from tests.model.vision.test_metrics import chance, mean_average_precision_at


def drawn(seed: int, num: int, num_classes: int, decimals: int | None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random((num, num_classes)) < 0.1).astype(np.float32)
    labels[0, 0] = 1
    scores = rng.normal(size=labels.shape).astype(np.float32) + labels
    return scores if decimals is None else scores.round(decimals), labels


def at_once(scores: np.ndarray, labels: np.ndarray, cut: int) -> dict[str, float]:
    mean, by_chance = mean_average_precision_at(scores, labels, cut), chance(labels)
    return {
        "map_at_100": mean.weighted,
        "map_at_100_unweighted": mean.unweighted,
        "chance": by_chance.unweighted,
        "chance_weighted": by_chance.weighted,
    }


def numbers(result: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in result.items()}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31), num=st.integers(1, 70), num_classes=st.integers(1, 40), batch_size=st.integers(1, 17),
    decimals=st.sampled_from([None, 1, 0]), cut=st.sampled_from([1, 3, 10, 100]), in_graph=st.booleans(),
)  # fmt: skip
def test_batches_give_what_all_at_once_give(
    seed: int, num: int, num_classes: int, batch_size: int, decimals: int | None, cut: int, in_graph: bool
) -> None:
    scores, labels = drawn(seed, num, num_classes, decimals)
    metric = MeanAveragePrecision(cut)
    update = tf.function(metric.update_state, reduce_retracing=True) if in_graph else metric.update_state
    for start in range(0, num, batch_size):
        update(tf.constant(labels[start : start + batch_size]), tf.constant(scores[start : start + batch_size]))
    assert numbers(metric.result()) == pytest.approx(at_once(scores, labels, cut), abs=1e-12)


def test_what_is_kept_does_not_depend_on_the_number_of_classes() -> None:
    best = BestPredictions(100)
    best.add(np.random.default_rng(0).random((20, 5000), np.float32), np.ones((20, 5000)))
    assert sum(part.nbytes for batch in best._kept for part in batch) == 20 * 100 * 9


def test_in_evaluate_and_evaluation() -> None:
    scores, labels = drawn(3, 50, 20, None)
    model = keras.Sequential([keras.Input((20,)), keras.layers.Identity()])
    model.compile(loss="mse", metrics=[MeanAveragePrecision(5), "mae"])
    expected = at_once(scores, labels, 5)
    for _ in range(2):
        found = model.evaluate(scores, labels, batch_size=16, verbose=0, return_dict=True)
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
        found = Evaluation(model)((scores[i : i + 16], labels[i : i + 16]) for i in range(0, 50, 16))
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
        assert found["mae"] == pytest.approx(np.abs(scores - labels).mean(), rel=1e-6)


def test_evaluation_computes_the_result_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels = drawn(3, 50, 20, None)
    metric, computed = MeanAveragePrecision(), []
    values = metric._values
    monkeypatch.setattr(metric, "_values", lambda counted: (computed.append(int(counted)), values(counted))[1])
    model = keras.Sequential([keras.Input((20,)), keras.layers.Identity()])
    model.compile(loss="mse", metrics=[metric])
    Evaluation(model)((scores[i : i + 10], labels[i : i + 10]) for i in range(0, 50, 10))
    assert computed == [50]


def test_no_label_gives_nan_until_there_is_one() -> None:
    metric = MeanAveragePrecision()
    assert all(math.isnan(value) for value in numbers(metric.result()).values())
    metric.update_state(np.zeros((2, 3)), np.zeros((2, 3)))
    assert all(math.isnan(value) for value in numbers(metric.result()).values())
    metric.update_state(np.eye(3), np.eye(3))
    assert numbers(metric.result())["map_at_100"] == pytest.approx(1.0)
    metric.reset_state()
    assert math.isnan(float(metric.result()["map_at_100"]))


def test_two_outputs_need_two_names() -> None:
    inputs = keras.Input((20,))
    model = keras.Model(inputs, {"a": keras.layers.Identity()(inputs), "b": keras.layers.Rescaling(-1.0)(inputs)})
    metrics = {"a": [MeanAveragePrecision(5)], "b": [MeanAveragePrecision(5, "b_map", "b_chance")]}
    model.compile(loss={"a": "mse", "b": "mse"}, metrics=metrics)
    scores, labels = drawn(4, 30, 20, None)
    found = model.evaluate(scores, {"a": labels, "b": labels}, batch_size=8, verbose=0, return_dict=True)
    assert found["map_at_100"] == pytest.approx(mean_average_precision_at(scores, labels, 5).weighted, abs=1e-12)
    assert found["b_map_unweighted"] == pytest.approx(
        mean_average_precision_at(-scores, labels, 5).unweighted, abs=1e-12
    )
    assert found["b_chance"] == found["chance"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_predictions_of_any_float(dtype: str) -> None:
    scores, labels = drawn(5, 30, 20, 1)
    given = tf.cast(scores, dtype)
    metric = MeanAveragePrecision(5)
    metric.update_state(labels.astype(bool), given)
    assert numbers(metric.result()) == pytest.approx(at_once(tf.cast(given, tf.float64).numpy(), labels, 5), abs=1e-12)


def test_is_saved_with_a_model(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(20)])
    model.compile(loss="mse", metrics=[MeanAveragePrecision(5, "m", "c")])
    scores, labels = drawn(6, 30, 20, None)
    expected = model.evaluate(scores, labels, verbose=0, return_dict=True)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.evaluate(scores, labels, verbose=0, return_dict=True) == pytest.approx(expected)
    assert "m_unweighted" in expected and "c_weighted" in expected


@pytest.mark.parametrize(
    ("labels", "scores", "weight", "message"),
    [
        (np.ones((2, 3)), np.ones((2, 3)), np.ones(2), "map_at_100 has no sample weights; list it in metrics"),
        (np.full((2, 3), 0.5), np.ones((2, 3)), None, "labels hold 0.5"),
        (np.ones((2, 4)), np.ones((2, 3)), None, r"scores are \(2, 3\) and labels \(2, 4\)"),
        (np.ones((2, 3)), np.full((2, 3), np.nan), None, "6 scores are not finite"),
    ],
)
def test_refusals(labels: np.ndarray, scores: np.ndarray, weight: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeanAveragePrecision().update_state(labels, scores, weight)
    if weight is None:
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            tf.function(MeanAveragePrecision().update_state)(tf.constant(labels), tf.constant(scores))


def test_batches_of_other_classes_are_refused() -> None:
    metric = MeanAveragePrecision()
    metric.update_state(np.eye(3), np.eye(3))
    with pytest.raises(ValueError, match="a batch has 4 classes, those before it 3"):
        metric.update_state(np.eye(4), np.eye(4))
    with pytest.raises(ValueError, match="cut is 0"):
        MeanAveragePrecision(0)


def test_it_takes_class_weights_and_annotated_classes_and_survives_being_saved() -> None:
    scores, labels = drawn(1, 50, 8, None)
    weights, annotated = np.arange(8.0), [5, 1, 2]
    metric = MeanAveragePrecision(class_weights=weights, annotated=annotated)
    again = MeanAveragePrecision.from_config(metric.get_config())
    assert math.isnan(numbers(again.result())["map_at_100"])
    best = BestPredictions(100, ScoredClasses(np.array([1, 2, 5]), weights))
    best.add(scores, labels)
    for one in (metric, again):
        for _ in range(2):
            one.reset_state()
            one.update_state(labels, scores)
        found = numbers(one.result())
        assert found["map_at_100"] == best.mean().weighted != best.mean().unweighted
        assert found["chance_weighted"] == best.chance().weighted
