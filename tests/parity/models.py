"""Compiled Keras models of many kinds, each with data: what people bring, at toy size.

Models with embeddings have SGD: Keras' adaptive optimizers square each slice of an embedding's gradient, where a batch
names a row more than once, and not their sum, which is the row's gradient; shards square the sum.

A function of `MODELS` returns a new compiled model; `data_of` returns its training examples `(x, y)` or
`(x, y, sample_weight)`. Batches have `BATCH` examples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

BATCH, NUM_EXAMPLES = 8, 80

MODELS: dict[str, Callable[[], keras.Model]] = {}
DATA: dict[str, Callable[[np.random.Generator], Any]] = {}

Builder = Callable[[], keras.Model]


def _numbers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal((NUM_EXAMPLES, *shape)).astype(np.float32)


def _classes(rng: np.random.Generator, num_classes: int, *shape: int) -> np.ndarray:
    return rng.integers(0, num_classes, (NUM_EXAMPLES, *shape)).astype(np.int32)


def _tabular(rng: np.random.Generator) -> Any:
    x = _numbers(rng, 6)
    return x, x.sum(1, keepdims=True)


def _labelled(rng: np.random.Generator) -> Any:
    return _numbers(rng, 6), _classes(rng, 3)


def _pictures(rng: np.random.Generator) -> Any:
    return _numbers(rng, 8, 8, 3), _classes(rng, 3)


def _words(rng: np.random.Generator) -> Any:
    return _classes(rng, 20, 7), _classes(rng, 2, 1).astype(np.float32)


def _sequences(rng: np.random.Generator) -> Any:
    x = _classes(rng, 20, 7)
    x[:, 5:] = 0
    return x, _classes(rng, 4, 7)


def _model(data: Callable[[np.random.Generator], Any]) -> Callable[[Builder], Builder]:
    def add(build: Builder) -> Builder:
        MODELS[build.__name__], DATA[build.__name__] = build, data
        return build

    return add


def data_of(name: str) -> Any:
    """The training examples of a model."""
    return DATA[name](np.random.default_rng(5))


def _compiled(model: keras.Model, optimizer: Any = None, loss: Any = "mse", **more: Any) -> keras.Model:
    model.compile(optimizer=optimizer or keras.optimizers.SGD(0.05), loss=loss, **more)
    return model


def _mlp(*, outputs: int = 1, **last: Any) -> keras.Model:
    inputs = keras.Input((6,))
    hidden = layers.Dense(8, activation="tanh")(inputs)
    return keras.Model(inputs, layers.Dense(outputs, **last)(hidden))


_SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@_model(_tabular)
def regression() -> keras.Model:
    return _compiled(_mlp(), metrics=["mae"])


@_model(_tabular)
def sequential_nesterov() -> keras.Model:
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, activation="relu"), layers.Dense(1)])
    return _compiled(model, keras.optimizers.SGD(0.02, momentum=0.9, nesterov=True), "huber")


@_model(_labelled)
def classification_adam() -> keras.Model:
    return _compiled(_mlp(outputs=3), keras.optimizers.Adam(0.01, amsgrad=True), _SPARSE, metrics=["accuracy"])


@_model(_tabular)
def decay_and_schedule() -> keras.Model:
    rate = keras.optimizers.schedules.CosineDecay(0.01, 15, alpha=0.1)
    optimizer = keras.optimizers.AdamW(rate, weight_decay=0.02)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return _compiled(_mlp(), optimizer)


@_model(_tabular)
def centered_rmsprop_clipped() -> keras.Model:
    return _compiled(_mlp(), keras.optimizers.RMSprop(0.005, centered=True, momentum=0.5, global_clipnorm=0.5))


@_model(_tabular)
def adagrad() -> keras.Model:
    return _compiled(_mlp(), keras.optimizers.Adagrad(0.05))


@_model(_tabular)
def average() -> keras.Model:
    return _compiled(_mlp(), keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.9))


@_model(_pictures)
def convolutions_batch_norm() -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.DepthwiseConv2D(3)(x)
    x = layers.SeparableConv2D(6, 3, activation="relu")(x)
    return _compiled(keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x))), loss=_SPARSE)


@_model(_pictures)
def augmentation_and_dropout() -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    x = layers.RandomFlip("horizontal")(inputs)
    x = layers.GaussianNoise(0.1)(x)
    x = layers.Dropout(0.3)(layers.Flatten()(x))
    return _compiled(keras.Model(inputs, layers.Dense(3)(x)), loss=_SPARSE)


@_model(_pictures)
def group_and_layer_norm() -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    x = layers.GroupNormalization(2)(layers.Conv2D(4, 3)(inputs))
    x = layers.LayerNormalization()(layers.Flatten()(x))
    return _compiled(keras.Model(inputs, layers.Dense(3)(x)), keras.optimizers.Adam(0.003), _SPARSE)


@_model(lambda rng: (_numbers(rng, 8, 8, 3), _classes(rng, 3, 8, 8)))
def segmentation() -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu")(inputs)
    x = layers.Conv2DTranspose(4, 3, strides=2, padding="same", activation="relu")(x)
    return _compiled(keras.Model(inputs, layers.Conv2D(3, 1)(x)), loss=_SPARSE)


@_model(_words)
def embedding_pooled() -> keras.Model:
    inputs = keras.Input((7,), dtype="int32")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(20, 4)(inputs))
    return _compiled(keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x)), loss="binary_crossentropy")


@_model(_words)
def lstm() -> keras.Model:
    inputs = keras.Input((7,), dtype="int32")
    x = layers.LSTM(5)(layers.Embedding(20, 4)(inputs))
    return _compiled(keras.Model(inputs, layers.Dense(1)(x)), loss=keras.losses.BinaryCrossentropy(from_logits=True))


@_model(_words)
def bidirectional_gru() -> keras.Model:
    inputs = keras.Input((7,), dtype="int32")
    x = layers.Bidirectional(layers.GRU(4, recurrent_dropout=0.1))(layers.Embedding(20, 4)(inputs))
    return _compiled(keras.Model(inputs, layers.Dense(1)(x)))


@_model(_sequences)
def masked_sequences() -> keras.Model:
    inputs = keras.Input((7,), dtype="int32")
    x = layers.LSTM(5, return_sequences=True)(layers.Embedding(20, 4, mask_zero=True)(inputs))
    return _compiled(keras.Model(inputs, layers.TimeDistributed(layers.Dense(4))(x)), loss=_SPARSE)


@_model(_sequences)
def transformer_block() -> keras.Model:
    inputs = keras.Input((7,), dtype="int32")
    x = layers.Embedding(20, 8)(inputs)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4, dropout=0.1)(x, x))
    x = layers.LayerNormalization()(x + layers.Dense(8)(layers.Dense(16, activation="gelu")(x)))
    return _compiled(keras.Model(inputs, layers.Dense(4)(x)), keras.optimizers.SGD(0.05, momentum=0.9), _SPARSE)


@_model(lambda rng: (_numbers(rng, 12, 2), _numbers(rng, 1)))
def convolution_1d() -> keras.Model:
    inputs = keras.Input((12, 2))
    x = layers.GlobalMaxPooling1D()(layers.Conv1D(6, 3, dilation_rate=2, activation="relu")(inputs))
    return _compiled(keras.Model(inputs, layers.Dense(1)(x)), loss="mae")


def _two_inputs(rng: np.random.Generator) -> Any:
    numbers, word = _numbers(rng, 4), _classes(rng, 10, 1)
    return {"numbers": numbers, "word": word}, {"value": numbers[:, :1], "kind": _classes(rng, 3)}


@_model(_two_inputs)
def dict_inputs_two_losses() -> keras.Model:
    numbers, word = keras.Input((4,), name="numbers"), keras.Input((1,), dtype="int32", name="word")
    x = layers.Concatenate()([numbers, layers.Flatten()(layers.Embedding(10, 3)(word))])
    x = layers.Dense(8, activation="relu")(x)
    outputs = {"value": layers.Dense(1, name="value")(x), "kind": layers.Dense(3, name="kind")(x)}
    model = keras.Model({"numbers": numbers, "word": word}, outputs)
    return _compiled(
        model, None, {"value": "mse", "kind": _SPARSE}, loss_weights={"value": 0.3, "kind": 2.0},
        metrics={"kind": ["accuracy"]},
    )  # fmt: skip


@_model(lambda rng: ((_numbers(rng, 4), _numbers(rng, 4)), _numbers(rng, 1)))
def shared_layer() -> keras.Model:
    left, right = keras.Input((4,)), keras.Input((4,))
    shared = layers.Dense(5, activation="tanh")
    return _compiled(keras.Model((left, right), layers.Dot(1)([shared(left), shared(right)])))


@_model(_tabular)
def nested_models() -> keras.Model:
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(5, activation="relu"), layers.BatchNormalization()])
    inputs = keras.Input((6,))
    return _compiled(keras.Model(inputs, layers.Dense(1)(inner(inputs))))


class Subclassed(keras.Model):
    """Takes `training`, and adds a loss of its own."""

    def __init__(self) -> None:
        super().__init__(name="subclassed")
        self.hidden, self.drop, self.out = layers.Dense(7, activation="relu"), layers.Dropout(0.2), layers.Dense(1)

    def call(self, inputs: Any, training: bool = False) -> Any:
        x = self.drop(self.hidden(inputs), training=training)
        self.add_loss(1e-2 * keras.ops.mean(keras.ops.square(x)))
        return self.out(x)


@_model(_tabular)
def subclassed_add_loss() -> keras.Model:
    model = Subclassed()
    model(np.zeros((1, 6), np.float32))
    return _compiled(model)


class OwnLoss(keras.Model):
    """Computes its loss itself."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):  # type: ignore[no-untyped-def]
        del x, sample_weight, training
        return keras.ops.mean(keras.ops.abs(y - y_pred)) + 0.1 * keras.ops.mean(y_pred**2)


@_model(_tabular)
def own_compute_loss() -> keras.Model:
    inputs = keras.Input((6,))
    return _compiled(OwnLoss(inputs, layers.Dense(1)(layers.Dense(4, activation="relu")(inputs))))


class Sampling(layers.Layer):
    """Draws from a normal distribution, with a seed of its own, in inference too."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.seeds = keras.random.SeedGenerator(3)

    def call(self, inputs: Any) -> Any:
        mean, scale = inputs
        self.add_loss(-0.01 * keras.ops.mean(1 + scale - mean**2 - keras.ops.exp(scale)))
        return mean + keras.ops.exp(scale / 2) * keras.random.normal(keras.ops.shape(mean), seed=self.seeds)


@_model(lambda rng: (lambda x: (x, x))(_numbers(rng, 6)))
def variational_autoencoder() -> keras.Model:
    inputs = keras.Input((6,))
    x = layers.Dense(8, activation="relu")(inputs)
    code = Sampling()([layers.Dense(2, name="mean")(x), layers.Dense(2, name="scale")(x)])
    return _compiled(keras.Model(inputs, layers.Dense(6)(code)), keras.optimizers.Adam(0.01))


@_model(_tabular)
def regularized_and_constrained() -> keras.Model:
    inputs = keras.Input((6,))
    x = layers.Dense(
        8, kernel_regularizer="l2", activity_regularizer=keras.regularizers.L1(1e-3), kernel_constraint="non_neg"
    )(inputs)
    return _compiled(keras.Model(inputs, layers.Dense(1, kernel_constraint=keras.constraints.MaxNorm(0.5))(x)))


@_model(_tabular)
def adapted_normalization() -> keras.Model:
    normalization = layers.Normalization()
    normalization.adapt(data_of("adapted_normalization")[0] * 3 + 1)
    model = keras.Sequential([keras.Input((6,)), normalization, layers.Dense(4, activation="relu"), layers.Dense(1)])
    return _compiled(model)


@_model(lambda rng: (_classes(rng, 30, 3), _numbers(rng, 1)))
def integer_lookup() -> keras.Model:
    lookup = layers.IntegerLookup(vocabulary=list(range(5, 25)))
    inputs = keras.Input((3,), dtype="int64")
    x = layers.Flatten()(layers.Embedding(lookup.vocabulary_size(), 3)(lookup(inputs)))
    return _compiled(keras.Model(inputs, layers.Dense(1)(x)))


@_model(lambda rng: (np.array([f"w{a} w{b}" for a, b in _classes(rng, 9, 2)], object), _numbers(rng, 1)))
def text_vectorization() -> keras.Model:
    vectorization = layers.TextVectorization(output_sequence_length=3, vocabulary=[f"w{i}" for i in range(8)])
    inputs = keras.Input((), dtype="string")
    x = layers.Flatten()(layers.Embedding(vectorization.vocabulary_size(), 3)(vectorization(inputs)))
    return _compiled(keras.Model(inputs, layers.Dense(1)(x)))


@_model(lambda rng: (*_labelled(rng), np.abs(_numbers(rng))))
def sample_weights() -> keras.Model:
    return _compiled(_mlp(outputs=3), loss=_SPARSE, weighted_metrics=["accuracy"])


@_model(_tabular)
def frozen_in_part() -> keras.Model:
    model = _mlp()
    model.layers[1].trainable = False
    return _compiled(model)


@_model(_tabular)
def lora() -> keras.Model:
    model = _mlp()
    model.layers[1].enable_lora(2)
    return _compiled(model, keras.optimizers.Adam(0.01))


@_model(_pictures)
def spectral_normalization() -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    x = layers.SpectralNormalization(layers.Conv2D(4, 3, activation="relu"))(inputs)
    x = layers.SpectralNormalization(layers.Dense(6, activation="tanh"), power_iterations=2)(layers.Flatten()(x))
    return _compiled(keras.Model(inputs, layers.Dense(3)(x)), keras.optimizers.Adam(0.01), _SPARSE)


@_model(lambda rng: ((_numbers(rng, 6), _numbers(rng, 6)), _numbers(rng, 1)))
def spectral_normalization_called_twice() -> keras.Model:
    left, right = keras.Input((6,)), keras.Input((6,))
    critic = layers.SpectralNormalization(layers.Dense(4))
    frozen = layers.SpectralNormalization(layers.Dense(4))
    frozen.build((None, 6))
    frozen.trainable = False
    x = layers.Subtract()([critic(left), critic(right)])
    return _compiled(keras.Model((left, right), layers.Dense(1)(layers.Concatenate()([x, frozen(left)]))))


class Scaled(layers.Layer):
    """A variable of one element and one of none, and an integer one."""

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")
        self.nothing = self.add_weight(shape=(0,), initializer="zeros", name="nothing")
        self.number = self.add_weight(shape=(), initializer="ones", dtype="int32", trainable=False, name="number")
        super().build(shape)

    def call(self, inputs: Any) -> Any:
        extra = keras.ops.sum(self.nothing) + keras.ops.cast(self.number, inputs.dtype)
        return inputs * self.scale + extra


@_model(_tabular)
def small_and_integer_variables() -> keras.Model:
    return _compiled(keras.Sequential([keras.Input((6,)), Scaled(), layers.Dense(1)]))


def _focal(labels: Any, outputs: Any) -> Any:
    return keras.ops.mean(keras.ops.abs(labels - outputs) ** 1.5, axis=-1)


@_model(_tabular)
def own_loss_function() -> keras.Model:
    return _compiled(_mlp(), loss=_focal)


@_model(_labelled)
def mixed_bfloat16() -> keras.Model:
    return _mixed("mixed_bfloat16")


@_model(_labelled)
def mixed_float16() -> keras.Model:
    return _mixed("mixed_float16")


def _mixed(policy: str) -> keras.Model:
    inputs = keras.Input((6,))
    x = layers.Dense(8, activation="relu", dtype=policy)(inputs)
    outputs = layers.Dense(3, dtype="float32")(x)
    model = keras.Model(inputs, outputs)
    optimizer: Any = keras.optimizers.SGD(0.05)
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return _compiled(model, optimizer, _SPARSE)
