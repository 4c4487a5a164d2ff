"""Top-k accuracy of multi-hot rows against Keras' own and against a count by hand."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from downpour.model.metrics import Evaluation, TopKAccuracy


def drawn(num: int = 101, num_classes: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return np.eye(num_classes, dtype=np.float32)[rng.integers(0, num_classes, num)], rng.normal(
        size=(num, num_classes)
    ).astype(np.float32)


@pytest.mark.parametrize("in_graph", [True, False])
def test_of_one_hot_rows_it_is_what_keras_says(in_graph: bool) -> None:
    labels, scores = drawn()
    for mine, theirs in (
        (TopKAccuracy(1), keras.metrics.CategoricalAccuracy()),
        (TopKAccuracy(5), keras.metrics.TopKCategoricalAccuracy(5)),
    ):
        update = tf.function(mine.update_state, reduce_retracing=True) if in_graph else mine.update_state
        for start in range(0, len(labels), 8):
            update(tf.constant(labels[start : start + 8]), tf.constant(scores[start : start + 8]))
        theirs.update_state(labels, scores)
        assert float(mine.result()) == pytest.approx(float(theirs.result()), abs=1e-6)
        assert 0 < float(mine.result()) < 1


def test_any_of_several_labels_will_do_and_examples_without_one_are_left_out() -> None:
    metric = TopKAccuracy(2)
    metric.update_state([[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], [[0.1, 0.9, 0.5, 0], [3, 2, 1, 0], [1, 2, 3, 4]])
    assert float(metric.result()) == 0.5
    metric.reset_state()
    assert np.isnan(float(metric.result()))


def test_equal_scores_are_right_by_chance_alone() -> None:
    metric = TopKAccuracy(1)
    metric.update_state(np.eye(4), np.zeros((4, 4)))
    assert float(metric.result()) == 0.25


def test_it_survives_being_saved_and_takes_all_of_a_few_classes() -> None:
    metric = TopKAccuracy.from_config(TopKAccuracy(5, name="five").get_config())
    metric.update_state(np.eye(3), np.zeros((3, 3)))
    assert (metric.k, metric.name, float(metric.result())) == (5, "five", 1.0)


def test_a_compiled_model_streams_it() -> None:
    labels, scores = drawn()
    model = keras.Sequential([keras.Input((12,)), keras.layers.Identity()])
    model.compile(
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=[TopKAccuracy(1), TopKAccuracy(5), keras.metrics.TopKCategoricalAccuracy(5)],
    )
    found = Evaluation(model)((scores[i : i + 7], labels[i : i + 7]) for i in range(0, len(labels), 7))
    assert found["top_5_accuracy"] == pytest.approx(found["top_k_categorical_accuracy"], abs=1e-6)
    assert found["top_1_accuracy"] == pytest.approx(np.mean(labels.argmax(1) == scores.argmax(1)), abs=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TopKAccuracy(0), "k is 0"),
        (lambda: TopKAccuracy().update_state(np.eye(2), np.eye(2), np.ones(2)), "has no sample weights"),
        (lambda: TopKAccuracy().update_state(np.zeros(2), np.eye(2)), "give both as"),
    ],
)
def test_what_it_cannot_score_is_refused(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()
