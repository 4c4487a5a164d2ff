"""Layers that compute in float16: the loss is scaled as Keras' LossScaleOptimizer does."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from downpour.worker.step.clip import Clip
from downpour.worker.step.loss_scale import LossScale
from downpour.worker.step.step import TrainingStep
from downpour.worker.step.variables import initial_values
from tests.worker.step.exactness import Batch, Loss, gradient_of, layout_of, parameters_of, squares

BATCH, WIDTH, OUTPUTS = 4, 64, 96


def network(policy: str = "mixed_float16") -> keras.Model:
    keras.utils.set_random_seed(3)
    images = keras.Input((WIDTH,))
    hidden = layers.Dense(16, activation="relu", dtype=policy, name="hidden")(images)
    return keras.Model(images, layers.Dense(OUTPUTS, dtype=policy, name="head")(hidden))


def times(factor: float) -> Loss:
    return lambda labels, outputs: factor * squares(labels, outputs)


def batches(num: int) -> list[Batch]:
    rng = np.random.default_rng(0)
    return [
        (rng.normal(size=(BATCH, WIDTH)).astype(np.float32), rng.normal(size=(BATCH, OUTPUTS)).astype(np.float32))
        for _ in range(num)
    ]


def test_the_numbers_are_those_of_keras() -> None:
    reference = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    scale = LossScale()
    assert scale.value == reference.initial_scale == 2.0**15
    for _ in range(reference.dynamic_growth_steps - 1):
        scale.update(True)
    assert scale.value == 2.0**15
    scale.update(True)
    assert (scale.value, scale.num_finite) == (2.0**16, 0)
    scale.update(True)
    scale.update(False)
    assert (scale.value, scale.num_finite) == (2.0**15, 0)


@pytest.mark.parametrize(
    ("factor", "rate", "num_skipped"),
    [
        pytest.param(1e-6, 1e5, 0, id="tiny"),
        pytest.param(1.0, 0.1, 0, id="usual"),
        pytest.param(2e3, 5e-5, None, id="large"),
    ],
)
def test_training_is_that_of_plain_keras(factor: float, rate: float, num_skipped: int | None) -> None:
    """Keras wraps SGD in its LossScaleOptimizer. Of the large loss several steps overflow, and both skip the same."""
    several, loss = batches(12), times(factor)
    theirs = network()
    keras.config.set_dtype_policy("float32")
    theirs.dtype_policy = keras.DTypePolicy("mixed_float16")  # of the model as a whole; `compile` looks at it
    theirs.compile(optimizer=keras.optimizers.SGD(rate), loss=loss, jit_compile=False)
    model = network()
    layout = layout_of(model, loss, several[0])
    start = layout.scatter(initial_values(model, layout))[0]
    vector, step, skipped = start.copy(), TrainingStep(model, loss, layout), 0
    assert layout.num_factored(0) > 0
    for batch in several:
        expected = float(theirs.train_on_batch(*batch))
        result = step(parameters_of(layout, vector), *batch)
        assert result.loss_scale is not None
        if result.is_finite:
            vector -= np.float32(rate) * gradient_of(layout, result)
            np.testing.assert_allclose(result.loss, expected, rtol=2e-3)
        else:
            skipped += 1
    assert skipped == num_skipped if num_skipped is not None else 0 < skipped < 8
    assert step.scale is not None and step.scale.value == float(theirs.optimizer.dynamic_scale.numpy())
    mine = layout.gather([vector - start])
    moved = [b.numpy() - a for a, b in zip(layout.gather([start]), theirs.trainable_variables, strict=True)]
    for a, b in zip(mine, moved, strict=True):
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, rtol=0.01, atol=0.01 * np.abs(b).max())


def test_a_tiny_loss_is_learned_from() -> None:
    """Without scaling every gradient of this loss is zero in float16."""
    model, loss = network(), times(1e-6)
    batch = batches(1)[0]
    layout = layout_of(model, loss, batch)
    vector, step = layout.scatter(initial_values(model, layout))[0], TrainingStep(model, loss, layout)
    losses = []
    for _ in range(30):
        result = step(parameters_of(layout, vector), *batch)
        losses.append(result.loss)
        vector -= np.float32(1e6) * gradient_of(layout, result)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_nothing_is_scaled_without_float16(policy: str) -> None:
    model = network(policy)
    batch = batches(1)[0]
    layout = layout_of(model, squares, batch)
    step = TrainingStep(model, squares, layout)
    [vector] = layout.scatter(initial_values(model, layout))
    assert step(parameters_of(layout, vector), *batch).loss_scale is None


def test_the_clip_is_of_the_gradient_without_its_scale() -> None:
    model = network()
    batch = batches(1)[0]
    layout = layout_of(model, squares, batch)
    [vector] = layout.scatter(initial_values(model, layout))
    step = TrainingStep(model, squares, layout, clip=Clip(by_global_norm=1e-3))
    result = step(parameters_of(layout, vector), *batch)
    assert 1e-3 < result.gradient_norm < 10
    assert np.linalg.norm(gradient_of(layout, result)) == pytest.approx(1e-3, rel=1e-3)


def test_an_overflow_does_not_stay_in_local_state() -> None:
    class Last(layers.Layer):
        """Keeps the mean of the last batch."""

        def build(self, shape: Any) -> None:
            self.last = self.add_weight(shape=(shape[-1],), initializer="zeros", trainable=False, name="last")

        def call(self, x: Any) -> Any:
            self.last.assign(tf.reduce_mean(tf.cast(x, tf.float32), 0))
            return x

    keras.utils.set_random_seed(3)
    images = keras.Input((WIDTH,))
    model = keras.Model(images, layers.Dense(OUTPUTS, dtype="mixed_float16", name="head")(Last(name="last")(images)))
    batch = batches(1)[0]
    layout = layout_of(model, squares, batch, local=("*last*",))
    [vector] = layout.scatter(initial_values(model, layout))
    step = TrainingStep(model, squares, layout)
    assert not step(parameters_of(layout, vector), np.full((BATCH, WIDTH), np.inf, np.float32), batch[1]).is_finite
    [local] = step.local
    assert not local.numpy().any()
    assert step(parameters_of(layout, vector), *batch).is_finite
    np.testing.assert_allclose(step.local[0].numpy(), batch[0].mean(0), rtol=1e-5, atol=1e-6)
