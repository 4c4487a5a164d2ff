"""Layers, constraints and models of the kinds that users write."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops


class TiedDecoder(layers.Layer):
    """Multiplies by the transpose of another layer's kernel."""

    def __init__(self, encoder: Any, **more: Any) -> None:
        super().__init__(**more)
        self.encoder = encoder

    def call(self, z: Any) -> Any:
        return ops.matmul(z, ops.transpose(ops.cast(self.encoder.kernel, z.dtype)))


class KernelPenalty(layers.Layer):
    """Adds a loss on another layer's kernel: its square, or how far its columns are from orthogonal."""

    def __init__(self, other: Any, orthogonal: bool, **more: Any) -> None:
        super().__init__(**more)
        self.other, self.orthogonal = other, orthogonal

    def call(self, x: Any) -> Any:
        kernel = ops.convert_to_tensor(self.other.kernel)
        if self.orthogonal:
            kernel = ops.matmul(ops.transpose(kernel), kernel) - ops.eye(kernel.shape[-1], dtype=kernel.dtype)
        self.add_loss(1e-2 * ops.sum(ops.square(kernel)))
        return x


class RunningScale(layers.Layer):
    """Divides by a moving average that it assigns in `call`: a statistic, unless additive is False."""

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(), initializer="ones", trainable=False, name="scale")

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            now = ops.cast(ops.mean(ops.abs(x)), "float32")
            self.scale.assign(0.9 * ops.cast(self.scale, "float32") + 0.1 * ops.stop_gradient(now))
        return x / ops.cast(self.scale + 0.1, x.dtype)


class Counter(layers.Layer):
    """Counts its calls in an integer and lets the count act on the output."""

    def build(self, shape: Any) -> None:
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, dtype="int32", name="count")

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            self.count.assign_add(1)
        return x / (1 + ops.cast(self.count, x.dtype))


class DataDependentInit(layers.Layer):
    """Sets a trained scale from the first batch (weight normalisation): a trained weight assigned in `call`."""

    def build(self, shape: Any) -> None:
        self.g = self.add_weight(shape=(shape[-1],), initializer="ones", name="g")
        self.done = self.add_weight(shape=(), initializer="zeros", trainable=False, name="done")

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            axes = tuple(range(len(x.shape) - 1))
            first = 1 / (ops.cast(ops.std(ops.stop_gradient(x), axis=axes), "float32") + 0.5)
            self.g.assign(ops.where(self.done > 0, ops.cast(self.g, "float32"), first))
            self.done.assign(1.0)
        return x * ops.cast(self.g, x.dtype)


class SameNames(layers.Layer):
    """Two weights of one name."""

    def build(self, shape: Any) -> None:
        self.first = self.add_weight(shape=(shape[-1], 5), name="w")
        self.second = self.add_weight(shape=(5, 4), name="w")

    def call(self, x: Any) -> Any:
        return ops.matmul(ops.tanh(ops.matmul(x, self.first)), self.second)


class UnusedWeight(layers.Layer):
    """A weight that no output depends on: plain Keras leaves it as it is, weight decay and constraint included."""

    def build(self, shape: Any) -> None:
        self.used = self.add_weight(shape=(), initializer="ones", name="used")
        self.unused = self.add_weight(shape=(3, 2), name="unused")

    def call(self, x: Any) -> Any:
        return x * ops.cast(self.used, x.dtype)


class OwnDense(layers.Dense):
    """A subclass of Dense whose output is not x W + b."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return super().call(2 * inputs) - inputs[..., :1]


class Halve(keras.constraints.Constraint):
    """A constraint of the user's own."""

    def __call__(self, w: Any) -> Any:
        return ops.clip(w, -0.05, 0.05)


class WithoutTraining(keras.Model):
    """A subclassed model whose `call` takes no `training`."""

    def __init__(self, inner: Any, **more: Any) -> None:
        super().__init__(**more)
        self.inner = inner

    def call(self, images: Any) -> Any:
        return self.inner(images)


class WithTraining(keras.Model):
    """A subclassed model with weights of its own, beside those of its layers."""

    def __init__(self, inner: Any, **more: Any) -> None:
        super().__init__(**more)
        self.inner = {"of": [inner]}
        self.gain = self.add_weight(shape=(), initializer="ones", name="gain")

    def call(self, images: Any, training: bool = False) -> Any:
        return ops.cast(self.gain, "float32") * ops.cast(self.inner["of"][0](images, training=training), "float32")


class PenalisedOutput(keras.Model):
    """A subclassed model that adds a loss of its own in `call`."""

    def __init__(self, inner: Any, **more: Any) -> None:
        super().__init__(**more)
        self.inner = inner

    def call(self, images: Any) -> Any:
        outputs = self.inner(images)
        self.add_loss(1e-2 * ops.mean(ops.square(outputs)))
        return outputs


class OwnTrainStep(WithoutTraining):
    """A model that trains itself in its own way: here with a third of the loss that `compile` was given."""

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        return super().compute_loss(x, y, y_pred, sample_weight, training) / 3


class VectorLoss(layers.Layer):
    """Adds a loss of one number an example, which Keras adds up."""

    def call(self, x: Any) -> Any:
        self.add_loss(1e-2 * ops.mean(ops.square(x), axis=-1))
        return x


class DenseCell(layers.Layer):
    """A recurrent cell that holds a dense layer, which thus runs inside a loop of the graph."""

    def __init__(self, units: int, **more: Any) -> None:
        super().__init__(**more)
        self.units = self.state_size = units
        self.dense = layers.Dense(units, dtype=self.dtype_policy, name="dense_in_cell")

    def build(self, shape: Any) -> None:
        self.dense.build((shape[0], shape[-1] + self.units))
        self.built = True

    def call(self, x: Any, states: Any) -> Any:
        new = ops.tanh(self.dense(ops.concatenate([x, ops.cast(states[0], x.dtype)], axis=-1)))
        return new, [new]


class InBranch(layers.Layer):
    """Calls a dense layer in one branch of a condition that depends on the data."""

    def __init__(self, dense: Any, **more: Any) -> None:
        super().__init__(**more)
        self.dense = dense

    def build(self, shape: Any) -> None:
        self.dense.build(shape)

    def call(self, x: Any) -> Any:
        return ops.cond(ops.mean(x) > -1e9, lambda: self.dense(x), lambda: 2 * x)

    def compute_output_shape(self, shape: Any) -> Any:
        return shape


class OddWeights(layers.Layer):
    """Weights of unusual kinds: a scalar with penalty and constraint, no elements, five axes, booleans, integers."""

    def build(self, shape: Any) -> None:
        kind = {"regularizer": "l2", "constraint": "non_neg"}
        self.scalar = self.add_weight(shape=(), initializer="ones", name="scalar", **kind)
        self.none = self.add_weight(shape=(0,), name="none")
        self.deep = self.add_weight(shape=(1, 1, 1, 1, 2), initializer="ones", name="deep")
        self.mask = self.add_weight(shape=(shape[-1],), initializer="ones", dtype="bool", trainable=False, name="mask")
        self.table = self.add_weight(shape=(2, 2), initializer="ones", dtype="int64", trainable=False, name="table")

    def call(self, x: Any) -> Any:
        scale = self.scalar * ops.sum(self.deep) + ops.sum(self.none)
        return x * ops.cast(scale, x.dtype) * ops.cast(self.mask, x.dtype) * ops.cast(self.table[0, 1], x.dtype)


class ReversedGradient(layers.Layer):
    """The identity, whose gradient is turned round (domain adaptation)."""

    def call(self, x: Any) -> Any:
        return tf.custom_gradient(lambda value: (tf.identity(value), lambda upstream: -upstream))(x)

    def compute_output_shape(self, shape: Any) -> Any:
        return shape
