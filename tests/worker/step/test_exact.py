"""Models that do something unusual with their variables: a worker and a shard equal `keras.Model.train_on_batch`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from downpour.ps.layout import FACTORED, FROZEN, STATISTIC, TRAINED, lay_out
from downpour.worker.step.examine import LOCAL
from downpour.worker.step.step import TrainingStep
from downpour.worker.step.variables import initial_values, variables_of
from tests.worker.step.exactness import Batch, Loss, downpour, layout_of, parameters_of, plain_keras, squares

BATCH, WIDTH, OUTPUTS, NUM_STEPS = 4, 64, 96, 3
ROUNDED = 3e-5  # what rounding to bfloat16 moves a parameter by, at the rate of these tests
Case = tuple[keras.Model, Loss]


def batches(shape: tuple[int, ...], outputs: int) -> list[Batch]:
    rng = np.random.default_rng(0)
    return [
        (rng.normal(size=(BATCH, *shape)).astype(np.float32), rng.normal(size=(BATCH, outputs)).astype(np.float32))
        for _ in range(NUM_STEPS)
    ]


class Decoder(layers.Layer):
    """Multiplies with the transposed kernel of another layer."""

    def __init__(self, encoder: layers.Dense, **more: Any) -> None:
        super().__init__(**more)
        self.encoder = encoder

    def call(self, z: Any) -> Any:
        return ops.matmul(z, ops.transpose(self.encoder.kernel))


class Penalty(layers.Layer):
    """Adds a loss on another layer's kernel."""

    def __init__(self, of: layers.Dense, **more: Any) -> None:
        super().__init__(**more)
        self.of = of

    def call(self, x: Any) -> Any:
        gram = ops.matmul(ops.transpose(self.of.kernel), self.of.kernel)
        self.add_loss(0.01 * ops.sum(ops.square(gram - ops.eye(OUTPUTS))))
        return x


class MovingNorm(layers.BatchNormalization):
    """Batch norm under another name."""


def tied_weights() -> Case:
    images = keras.Input((WIDTH,))
    encoder = layers.Dense(OUTPUTS, use_bias=False, name="dense")
    return keras.Model(images, Decoder(encoder, name="decoder")(ops.relu(encoder(images)))), squares


def penalty_on_the_kernel() -> Case:
    images, dense = keras.Input((WIDTH,)), layers.Dense(OUTPUTS, name="dense")
    return keras.Model(images, Penalty(dense, name="penalty")(dense(images))), squares


def kernel_in_the_loss() -> Case:
    images, dense = keras.Input((WIDTH,)), layers.Dense(OUTPUTS, name="dense")

    def loss(labels: Any, outputs: Any) -> Any:
        return squares(labels, outputs) + 0.01 * tf.reduce_sum(tf.square(tf.convert_to_tensor(dense.kernel)))

    return keras.Model(images, dense(images)), loss


def shared_dense() -> Case:
    images, dense = keras.Input((WIDTH,)), layers.Dense(WIDTH, name="dense")
    return keras.Model(images, dense(ops.relu(dense(images)))), squares


def plain_dense() -> Case:
    images = keras.Input((WIDTH,))
    return keras.Model(images, layers.Dense(OUTPUTS, activity_regularizer="l2", name="dense")(images)), squares


def called_for_a_sequence() -> Case:
    images = keras.Input((WIDTH,))
    sequence = layers.Reshape((8, 8))(images)
    return keras.Model(images, layers.Flatten()(layers.Dense(OUTPUTS, name="dense")(sequence))[:, :OUTPUTS]), squares


def lora() -> Case:
    images, dense = keras.Input((WIDTH,)), layers.Dense(OUTPUTS, name="dense")
    model = keras.Model(images, dense(images))
    dense.enable_lora(2)
    return model, squares


def losses_of_two_dtypes() -> Case:
    images = keras.Input((WIDTH,))
    dense = layers.Dense(OUTPUTS, activity_regularizer="l2", dtype="mixed_bfloat16", name="dense")
    return keras.Model(images, layers.Dense(OUTPUTS, name="head")(dense(images))), squares


def no_training_argument() -> Case:
    class Classifier(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="classifier")
            self.norm, self.dense = layers.BatchNormalization(name="norm"), layers.Dense(OUTPUTS, name="dense")

        def call(self, images: Any) -> Any:
            return self.dense(self.norm(images))

    model = Classifier()
    model(np.zeros((1, WIDTH), np.float32))
    return model, squares


def own_weight_in_mixed_precision() -> Case:
    class Scaled(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="scaled", dtype="mixed_bfloat16")
            self.dense = layers.Dense(OUTPUTS, dtype="mixed_bfloat16", name="dense")
            self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

        def call(self, images: Any) -> Any:
            return self.scale * self.dense(images)

    model = Scaled()
    model(np.zeros((1, WIDTH), np.float32))
    return model, squares


def stateful_lstm() -> Case:
    images = keras.Input(batch_shape=(BATCH, 5, 8))
    return keras.Model(images, layers.Dense(OUTPUTS, name="dense")(layers.LSTM(16, stateful=True)(images))), squares


def batch_norm_of_a_subclass() -> Case:
    images = keras.Input((WIDTH,))
    return keras.Model(images, layers.Dense(OUTPUTS, name="dense")(MovingNorm(name="norm")(images))), squares


def frozen_batch_norm() -> Case:
    model, loss = batch_norm_of_a_subclass()
    model.get_layer("norm").trainable = False
    return model, loss


def normalization() -> Case:
    images, scaling = keras.Input((WIDTH,)), layers.Normalization(name="scaling")
    scaling.adapt(np.random.default_rng(1).normal(3, 2, (50, WIDTH)).astype(np.float32))
    return keras.Model(images, layers.Dense(OUTPUTS, name="dense")(scaling(images))), squares


def random_numbers_without_a_seed() -> Case:
    class Noise(layers.Layer):
        def call(self, x: Any) -> Any:
            return x + keras.random.normal(ops.shape(x))

    images = keras.Input((WIDTH,))
    return keras.Model(images, layers.Dense(OUTPUTS, name="dense")(Noise(name="noise")(images))), squares


def unused_dense() -> Case:
    images, unused = keras.Input((WIDTH,)), layers.Dense(4, name="unused")
    unused.build((None, WIDTH))

    class Holder(layers.Layer):
        def __init__(self, **more: Any) -> None:
            super().__init__(**more)
            self.unused, self.never_built = unused, layers.Dense(3, name="never_built")

        def call(self, x: Any) -> Any:
            return x

    return keras.Model(images, layers.Dense(OUTPUTS, name="dense")(Holder(name="holder")(images))), squares


@pytest.mark.parametrize(
    ("build", "kinds"),
    [
        (plain_dense, {"dense/kernel": FACTORED}),
        (tied_weights, {"dense/kernel": TRAINED}),
        (penalty_on_the_kernel, {"dense/kernel": TRAINED}),
        (kernel_in_the_loss, {"dense/kernel": TRAINED}),
        (shared_dense, {"dense/kernel": TRAINED}),
        (called_for_a_sequence, {"dense/kernel": TRAINED}),
        (lora, {"dense/kernel": FROZEN, "dense/lora_kernel_a": TRAINED}),
        (no_training_argument, {"dense/kernel": FACTORED, "norm/moving_mean": FROZEN}),
        (own_weight_in_mixed_precision, {"scale": TRAINED}),
        (stateful_lstm, {}),
        (batch_norm_of_a_subclass, {"norm/moving_mean": STATISTIC, "norm/moving_variance": STATISTIC}),
        (frozen_batch_norm, {"norm/moving_mean": FROZEN, "norm/gamma": FROZEN}),
        (normalization, {"scaling/mean": LOCAL, "scaling/variance": LOCAL}),
        (random_numbers_without_a_seed, {"dense/kernel": FACTORED}),
        (unused_dense, {"unused/kernel": TRAINED}),
    ],
)
def test_a_step_is_that_of_plain_keras(build: Callable[[], Case], kinds: dict[str, str]) -> None:
    trained = []
    for train in (downpour, plain_keras):
        keras.utils.set_random_seed(3)
        model, loss = build()
        is_functional = isinstance(model, keras.src.models.Functional)
        several = batches(*((model.input_shape[1:], model.output_shape[-1]) if is_functional else ((WIDTH,), OUTPUTS)))
        layout = layout_of(model, loss, several[0])
        trained.append(train(model, loss, several, 0.05, layout))
    named = {variable.name: variable.kind for variable in layout.variables}
    for end, kind in kinds.items():
        assert [k for name, k in named.items() if name.endswith(end)] == ([] if kind == LOCAL else [kind]), named
    mine, theirs = trained
    np.testing.assert_allclose(mine.losses, theirs.losses, rtol=1e-5)
    assert len(set(mine.losses)) == NUM_STEPS
    # Keras rounds a kernel's gradient to bfloat16 where it computes in it; the product of factors is not rounded.
    atol = 1e-6 if model.dtype_policy.name == "float32" else ROUNDED
    for variable, a, b in zip(layout.variables, mine.values, theirs.values, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol, err_msg=variable.name)


def test_losses_of_another_dtype_are_added_in_float32() -> None:
    """Keras itself cannot add them (3.15), so the reference is a tape."""
    model, loss = losses_of_two_dtypes()
    images, labels = batches((WIDTH,), OUTPUTS)[0]
    with tf.GradientTape() as tape:
        logits = model(images, training=True)
        [activity] = model.losses
        expected = loss(labels, logits) + tf.cast(activity, tf.float32)
    assert activity.dtype == tf.bfloat16
    gradients = tape.gradient(expected, [v.value for v in model.trainable_variables])
    layout = layout_of(model, loss, (images, labels))
    trained = downpour(model, loss, [(images, labels)], 0.05, layout)
    assert trained.losses == [float(expected)]
    for start, gradient, value in zip(initial_values(model, layout), gradients, trained.values, strict=True):
        np.testing.assert_allclose(value, start - np.float32(0.05) * gradient.numpy(), rtol=1e-5, atol=ROUNDED)


@pytest.mark.parametrize("build", [tied_weights, penalty_on_the_kernel, kernel_in_the_loss])
def test_a_step_refuses_factors_of_a_kernel_that_has_another_gradient(build: Callable[[], Case]) -> None:
    """A layout that was made without looking at the model's calls."""
    model, loss = build()
    kernel = next(v.path for v in model.trainable_variables if v.path.endswith("dense/kernel"))
    layout = lay_out(variables_of(model, factored=[kernel]), 1)
    [vector] = layout.scatter(initial_values(model))
    batch = batches((WIDTH,), model.output_shape[-1])[0]
    with pytest.raises(ValueError, match=r"dense/kernel is used outside its own layer.*exchange.factors=False"):
        TrainingStep(model, loss, layout)(parameters_of(layout, vector), *batch)


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    model, _ = plain_dense()
    with pytest.raises(ValueError, match=r"the job's loss has the shape \(4,\); return a scalar"):
        layout_of(model, lambda labels, outputs: tf.reduce_mean(outputs - labels, -1), batches((WIDTH,), OUTPUTS)[0])
