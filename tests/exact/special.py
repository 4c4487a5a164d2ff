"""What makes a training step hard to get right: weights used twice, assigned, penalised, constrained or held still.

Each draws one such thing on top of `x`. `REFUSABLE` names those that a job may refuse by name; all others must train.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from tests.exact.kinds import KINDS, kind
from tests.exact.sketch import Draw, Sketch
from tests.exact.written import (
    Counter,
    DataDependentInit,
    DenseCell,
    Halve,
    InBranch,
    KernelPenalty,
    OddWeights,
    OwnDense,
    ReversedGradient,
    RunningScale,
    SameNames,
    TiedDecoder,
    UnusedWeight,
    VectorLoss,
)

_ORDINARY = set(KINDS)


def _small_model(s: Sketch, x: Any, trainable: bool = True) -> Any:
    inputs = keras.Input(x.shape[1:], name=s.name("input"))
    y = s.layer(layers.Dense, x.shape[1], activation=s.activation())(inputs)
    y = s.layer(layers.BatchNormalization, epsilon=1e-2)(y)
    y = s.layer(layers.Dropout, 0.2)(y)
    model = keras.Model(inputs, s.layer(layers.Dense, x.shape[1])(y), name=s.name("nested"))
    model.trainable = trainable
    s.note(f"{model.name}: the model of the last four, trainable={trainable}")
    return model


@kind(2)
def tied(s: Sketch, x: Any) -> Any:
    encoder = s.layer(layers.Dense, s.pick(24, 64), use_bias=s.chance(0.5))
    return s.layer(TiedDecoder, encoder)(ops.tanh(encoder(x)))


@kind(2)
def kernel_penalty(s: Sketch, x: Any) -> Any:
    dense = s.layer(layers.Dense, s.pick(24, 48))
    return s.layer(KernelPenalty, dense, orthogonal=s.chance(0.5))(dense(x))


@kind(2, 3)
def kernel_regularizer(s: Sketch, x: Any) -> Any:
    regularizer = s.pick(keras.regularizers.L2(1e-2), keras.regularizers.OrthogonalRegularizer(1e-2))
    return s.layer(layers.Dense, s.pick(24, 48), kernel_regularizer=regularizer)(x)


@kind(2, 3, 4)
def running_scale(s: Sketch, x: Any) -> Any:
    return s.layer(RunningScale)(x)


@kind(2, 3)
def counter(s: Sketch, x: Any) -> Any:
    return s.layer(Counter)(x)


@kind(2, 3)
def data_dependent_init(s: Sketch, x: Any) -> Any:
    return s.layer(DataDependentInit)(x)


@kind(2)
def same_names(s: Sketch, x: Any) -> Any:
    return s.layer(SameNames)(x)


@kind(2, 3)
def unused_weight(s: Sketch, x: Any) -> Any:
    return s.layer(UnusedWeight)(x)


@kind(2)
def own_dense(s: Sketch, x: Any) -> Any:
    return s.layer(OwnDense, s.pick(24, 48))(x)


@kind(2)
def shared_dense(s: Sketch, x: Any) -> Any:
    """One layer in two places, of the size at which its gradient would travel as factors."""
    x = s.layer(layers.Dense, 48)(x)
    dense = s.layer(layers.Dense, 48)
    s.note(f"{dense.name} is called twice")
    return dense(ops.tanh(dense(x)))


@kind(3, 4)
def shared_over_positions(s: Sketch, x: Any) -> Any:
    dense = s.layer(layers.Dense, x.shape[-1], activation=s.activation())
    s.note(f"{dense.name} is called twice")
    return dense(dense(x)) + x


@kind(2)
def shared_model(s: Sketch, x: Any) -> Any:
    model = _small_model(s, x)
    s.note(f"{model.name} is called twice")
    return model(x) + model(-x)


@kind(2)
def shared_normalization(s: Sketch, x: Any) -> Any:
    """Its statistics are assigned twice in a step."""
    norm = s.layer(layers.BatchNormalization, momentum=0.9, epsilon=1e-2)
    return norm(x) + norm(2 * x + 1)


@kind(2)
def nested(s: Sketch, x: Any) -> Any:
    return _small_model(s, x)(x)


@kind(2)
def sequential(s: Sketch, x: Any) -> Any:
    inner = [s.layer(layers.Dense, 24), s.layer(layers.ReLU), s.layer(layers.Dense, 24)]
    return s.layer(keras.Sequential, inner)(x)


@kind(2)
def frozen_model(s: Sketch, x: Any) -> Any:
    return _small_model(s, x, trainable=False)(x) + s.layer(layers.Dense, x.shape[1])(x)


@kind(2)
def frozen_dense(s: Sketch, x: Any) -> Any:
    return s.layer(layers.Dense, s.pick(24, 48), trainable=False)(s.layer(layers.Dense, 48)(x))


@kind(2)
def lora(s: Sketch, x: Any) -> Any:
    """Low-rank adapters on a built dense layer: its kernel stands still, two small matrices are trained."""
    dense = s.layer(layers.Dense, s.pick(24, 48), activation=s.activation())
    x = dense(x)
    dense.enable_lora(2)
    return x


@kind(2)
def lora_rank(s: Sketch, x: Any) -> Any:
    return s.layer(layers.Dense, 24, lora_rank=2, lora_alpha=4)(x)


@kind(4)
def lora_conv(s: Sketch, x: Any) -> Any:
    return s.layer(layers.Conv2D, 4, 2, padding="same", lora_rank=2)(x)


@kind(2)
def lora_einsum(s: Sketch, x: Any) -> Any:
    return s.layer(layers.EinsumDense, "bf,fu->bu", output_shape=24, lora_rank=2)(x)


@kind(2)
def element_constraint(s: Sketch, x: Any) -> Any:
    return s.layer(layers.Dense, s.pick(24, 48), kernel_constraint="non_neg", bias_constraint="non_neg")(x)


@kind(2, 4)
def norm_constraint(s: Sketch, x: Any) -> Any:
    known = keras.constraints
    drawn = s.pick(known.MaxNorm(0.8), known.UnitNorm(), known.MinMaxNorm(0.5, 0.9, rate=0.7))
    if len(x.shape) == 4:
        drawn.axis = [0, 1, 2]
        return s.layer(layers.Conv2D, 4, 2, padding="same", kernel_constraint=drawn)(x)
    return s.layer(layers.Dense, s.pick(24, 48), kernel_constraint=drawn)(x)


@kind(2)
def own_constraint(s: Sketch, x: Any) -> Any:
    return s.layer(layers.Dense, 12, kernel_constraint=Halve())(x)


@kind(3)
def stateful(s: Sketch, x: Any) -> Any:
    """States that a worker keeps from step to step."""
    x = x if x.shape[1] <= 4 else layers.Cropping1D((0, x.shape[1] - 4), name=s.name("crop"))(x)
    cell = s.pick(layers.LSTM, layers.GRU, layers.SimpleRNN)
    return s.layer(cell, s.pick(3, 6), stateful=True, unroll=s.chance(0.7))(x)


@kind(2, 4)
def spectral_normalization(s: Sketch, x: Any) -> Any:
    inner = s.layer(layers.Dense, 24) if len(x.shape) == 2 else s.layer(layers.Conv2D, 4, 2, padding="same")
    return s.layer(layers.SpectralNormalization, inner, power_iterations=s.pick(1, 2))(x)


@kind(2)
def reversible_embedding(s: Sketch, x: Any) -> Any:
    """Keras's own tied weights: embeds rounded pixels, and maps back with the same matrix."""
    tokens = layers.Flatten(name=s.name("flat"))(s.images)[:, :4]
    tokens = ops.cast(ops.clip(ops.round((tokens + 1) * 3), 0, 6), "int32")
    embedding = s.layer(layers.ReversibleEmbedding, 7, 6, tie_weights=s.chance(0.7))
    logits = embedding(ops.tanh(embedding(tokens)), reverse=True)
    return s.layer(layers.Concatenate)([x, s.flat(logits)])


@kind(2)
def one_unit(s: Sketch, x: Any) -> Any:
    return s.layer(layers.Dense, 1)(x) * ops.ones((1, 4))


@kind(2)
def stopped_gradient(s: Sketch, x: Any) -> Any:
    """A layer that the loss cannot reach beside one that it can."""
    y = s.layer(layers.Dense, 24)(x)
    return ops.stop_gradient(y) + s.layer(layers.Dense, 24)(x)


@kind(2)
def activity_penalty(s: Sketch, x: Any) -> Any:
    return s.layer(layers.Dense, 24, activation="relu", activity_regularizer="l2")(x)


@kind(2)
def vector_loss(s: Sketch, x: Any) -> Any:
    return s.layer(VectorLoss)(s.layer(layers.Dense, 24)(x))


@kind(3)
def dense_in_cell(s: Sketch, x: Any) -> Any:
    """A dense layer inside a loop of the graph."""
    return s.layer(layers.RNN, s.layer(DenseCell, 24), unroll=s.chance(0.3), return_sequences=s.chance(0.3))(x)


@kind(2)
def dense_in_branch(s: Sketch, x: Any) -> Any:
    """A dense layer inside a condition of the graph."""
    x = s.layer(layers.Dense, 48)(x)
    return s.layer(InBranch, s.layer(layers.Dense, 48))(x)


@kind(2)
def frozen_kernel(s: Sketch, x: Any) -> Any:
    """One variable of a layer that stands still while the other is trained."""
    dense = s.layer(layers.Dense, s.pick(24, 48))
    x = dense(x)
    dense.kernel.trainable = False
    s.note(f"{dense.name}.kernel.trainable = False")
    return x


@kind(2)
def same_layer_names(s: Sketch, x: Any) -> Any:
    """Two models made by one function: paths of Keras begin at the layer, so all their variables' paths repeat."""

    def made(name: str) -> Any:
        inputs = keras.Input(x.shape[1:])
        return keras.Model(inputs, layers.Dense(5, name="twin")(inputs), name=name)

    s.note("Dense(5, name='twin') in each of two nested models")
    return made(s.name("left"))(x) + made(s.name("right"))(x)


@kind(2)
def narrow_variables(s: Sketch, x: Any) -> Any:
    """Variables that are themselves of 16 bits. Gradients of float16 ones overflow in Keras where float32 does not."""
    return ops.cast(s.layer(layers.Dense, 24, dtype="bfloat16")(x), "float32")


@kind(2)
def double_variables(s: Sketch, x: Any) -> Any:
    return ops.cast(s.layer(layers.Dense, 24, dtype="float64")(x), "float32")


@kind(2)
def quantized(s: Sketch, x: Any) -> Any:
    """A kernel of 8-bit integers that stands still, or of float8, whose scales Keras overwrites with gradients."""
    x = s.layer(layers.Dense, 24)(x)
    dense = s.layer(layers.Dense, 24, dtype="float32")
    dense.build(x.shape)
    mode = s.pick("int8", "float8")
    dense.quantize(mode)
    s.note(f"{dense.name}.quantize({mode!r})")
    return dense(x)


@kind(2, 3)
def odd_weights(s: Sketch, x: Any) -> Any:
    return s.layer(OddWeights)(x)


@kind(2)
def replaced_kernel(s: Sketch, x: Any) -> Any:
    """A layer that was given another's kernel after it was built; its own is left over."""
    x = s.layer(layers.Dense, 48)(x)
    first, second = s.layer(layers.Dense, 48), s.layer(layers.Dense, 48)
    first.build(x.shape)
    second.build(x.shape)
    object.__setattr__(second, "_kernel", first._kernel)
    s.note(f"{second.name} computes with the kernel of {first.name}")
    return second(ops.tanh(first(x)))


@kind(2)
def reversed_gradient(s: Sketch, x: Any) -> Any:
    return s.layer(ReversedGradient)(s.layer(layers.Dense, 24)(x))


@kind(2)
def overflowing(s: Sketch, x: Any) -> Any:
    """Gradients too large for float16 at the first loss scales: such a step is left out."""
    y = s.layer(layers.Dense, 24, activation="tanh")(x)
    factor = 300 if keras.config.dtype_policy().name == "mixed_float16" else 3
    s.note(f"times {factor}")
    return factor * y


@kind(2)
def own_train_step(s: Sketch, x: Any) -> Any:
    """See `models._wrapped`, which wraps the whole model in `written.OwnTrainStep`."""
    return s.layer(layers.Dense, 24)(x)


@kind(2)
def masked_output(s: Sketch, x: Any) -> Any:
    """A mask [B] that reaches the model's output: Keras leaves masked examples out of the loss."""
    half = ops.cast(ops.mean(s.flat(s.images), axis=1, keepdims=True) > 0, "float32")
    return s.layer(layers.Masking)(ops.cast(s.flat(x), "float32") * half)


# What a job may refuse, by the name of a layer or a variable; everything else must train.
REFUSABLE = {
    "data_dependent_init",  # a trained variable is assigned
    "spectral_normalization",  # the same
    "same_names",
    "same_layer_names",
    "norm_constraint",  # where a norm runs over slices
    "own_constraint",
    "double_variables",
    "own_train_step",
    "masked_output",
    "quantized",
}
SPECIAL: dict[str, tuple[tuple[int, ...], Draw]] = {name: of for name, of in KINDS.items() if name not in _ORDINARY}
for _name in SPECIAL:
    del KINDS[_name]
