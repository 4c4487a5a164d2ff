"""Keras's own layers, with arguments drawn at random. Shapes: `B` batch, `T` steps, `F` features, `H` `W` a map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from tests.exact.sketch import Draw, Sketch

ANY = (2, 3, 4)

# Name -> ranks of input that it takes, and what applies it.
KINDS: dict[str, tuple[tuple[int, ...], Draw]] = {}


def kind(*ranks: int) -> Callable[[Draw], Draw]:
    def register(draw: Draw) -> Draw:
        KINDS[draw.__name__] = (ranks, draw)
        return draw

    return register


def _plain(layer: Any, *ranks: int, **choices: tuple[Any, ...]) -> None:
    """A layer whose arguments are drawn independently, each from a few values."""

    def draw(s: Sketch, x: Any) -> Any:
        return s.layer(layer, **{name: s.pick(*values) for name, values in choices.items()})(x)

    KINDS[layer.__name__] = (ranks, draw)


_plain(layers.Activation, *ANY, activation=("relu", "elu", "selu", "gelu", "softsign", "mish", "hard_silu", "tanh"))
_plain(layers.ReLU, *ANY, max_value=(None, 0.5), negative_slope=(0.0, 0.1))
_plain(layers.LeakyReLU, *ANY, negative_slope=(0.1, 0.3))
_plain(layers.ELU, *ANY, alpha=(0.5, 1.0))
_plain(layers.Softmax, *ANY, axis=(-1, 1))
_plain(layers.Dropout, *ANY, rate=(0.1, 0.5))
_plain(layers.GaussianNoise, *ANY, stddev=(0.1, 0.3))
_plain(layers.GaussianDropout, *ANY, rate=(0.1, 0.3))
_plain(layers.AlphaDropout, *ANY, rate=(0.1, 0.3))
_plain(layers.ActivityRegularization, *ANY, l1=(0.0, 1e-3), l2=(1e-3, 1e-2))
_plain(layers.Rescaling, *ANY, scale=(0.5, 2.0), offset=(0.0, -0.5))
_plain(layers.Identity, *ANY)
_plain(layers.UnitNormalization, *ANY)
_plain(layers.RMSNormalization, *ANY, epsilon=(1e-3,))
_plain(layers.SpatialDropout1D, 3, rate=(0.2, 0.5))
_plain(layers.SpatialDropout2D, 4, rate=(0.2, 0.5))
_plain(layers.MaxPooling1D, 3, pool_size=(1, 2), padding=("same",))
_plain(layers.AveragePooling1D, 3, pool_size=(1, 2), padding=("same",))
_plain(layers.MaxPooling2D, 4, pool_size=(2, 3), strides=(1, 2), padding=("same",))
_plain(layers.AveragePooling2D, 4, pool_size=(2, 3), strides=(1, 2), padding=("same",))
_plain(layers.GlobalAveragePooling1D, 3)
_plain(layers.GlobalMaxPooling1D, 3)
_plain(layers.GlobalAveragePooling2D, 4)
_plain(layers.GlobalMaxPooling2D, 4)
_plain(layers.ZeroPadding2D, 4, padding=(1, ((0, 1), (1, 0))))
_plain(layers.UpSampling1D, 3, size=(2,))
_plain(layers.RandomFlip, 4, mode=("horizontal", "vertical", "horizontal_and_vertical"))
_plain(layers.RandomContrast, 4, factor=(0.3,), value_range=((-1, 1),))
_plain(layers.RandomBrightness, 4, factor=(0.2,), value_range=((-1, 1),))
_plain(layers.RandomTranslation, 4, height_factor=(0.3,), width_factor=(0.3,), dtype=("float32",))
_plain(layers.RandomRotation, 4, factor=(0.1,), dtype=("float32",))  # in bfloat16 it has no gradient
_plain(layers.ZeroPadding1D, 3, padding=(1,))
_plain(layers.Cropping2D, 4, cropping=(((0, 0), (0, 0)),))
_plain(layers.UpSampling2D, 4, size=(1, (2, 1)), interpolation=("nearest", "bilinear"))
_plain(layers.Resizing, 4, height=(3,), width=(4,))
_plain(layers.Flatten, *ANY)
_plain(layers.RepeatVector, 2, n=(2, 3))


@kind(4)
def permute(s: Sketch, x: Any) -> Any:
    return s.layer(layers.Permute, (2, 1, 3))(x)


@kind(2)
def reshape(s: Sketch, x: Any) -> Any:
    return s.layer(layers.Reshape, (x.shape[1], 1) if s.chance(0.5) else (1, x.shape[1]))(x)


@kind(2, 2, 3, 4)
def dense(s: Sketch, x: Any) -> Any:
    return s.layer(layers.Dense, s.units(), **s.kernel_arguments())(x)


@kind(2)
def wide_dense(s: Sketch, x: Any) -> Any:
    """Two without an activation, wide enough that their gradients travel as factors."""
    x = s.layer(layers.Dense, s.pick(64, 96))(x)
    return s.layer(layers.Dense, s.pick(32, 48), use_bias=s.chance(0.5))(x)


@kind(2, 3)
def einsum_dense(s: Sketch, x: Any) -> Any:
    units = s.units()
    equation, shape = ("bf,fu->bu", units) if len(x.shape) == 2 else ("btf,fu->btu", (x.shape[1], units))
    more = {"bias_axes": "u"} if s.chance(0.5) else {}
    return s.layer(layers.EinsumDense, equation, output_shape=shape, **more)(x)


@kind(*ANY)
def prelu(s: Sketch, x: Any) -> Any:
    shared = list(range(1, len(x.shape) - 1)) if s.chance(0.5) and len(x.shape) > 2 else None
    return s.layer(layers.PReLU, alpha_initializer="ones" if s.chance(0.5) else "zeros", shared_axes=shared)(x)


@kind(*ANY)
def batch_normalization(s: Sketch, x: Any) -> Any:
    return s.layer(
        layers.BatchNormalization,
        momentum=s.pick(0.5, 0.9, 0.99),
        epsilon=1e-2,
        center=s.chance(0.8),
        scale=s.chance(0.8),
        trainable=s.chance(0.85),
    )(x)


@kind(*ANY)
def layer_normalization(s: Sketch, x: Any) -> Any:
    return s.layer(layers.LayerNormalization, epsilon=1e-2, center=s.chance(0.7), scale=s.chance(0.7))(x)


@kind(3, 4)
def group_normalization(s: Sketch, x: Any) -> Any:
    groups = s.pick(*(n for n in (1, 2, 3, -1) if n == -1 or x.shape[-1] % n == 0))
    return s.layer(layers.GroupNormalization, groups=groups, epsilon=1e-2)(x)


@kind(*ANY)
def normalization(s: Sketch, x: Any) -> Any:
    """With given moments, or adapted to data."""
    if s.chance(0.5):
        return s.layer(layers.Normalization, mean=0.1, variance=2.0)(x)
    layer = s.layer(layers.Normalization)
    layer.adapt(np.random.default_rng(5).normal(size=(4, *x.shape[1:])).astype(np.float32))
    return layer(x)


@kind(3)
def conv1d(s: Sketch, x: Any) -> Any:
    padding = s.pick("same", "causal")
    return s.layer(layers.Conv1D, s.units(), s.pick(1, 2, 3), padding=padding, **s.kernel_arguments())(x)


@kind(4)
def conv2d(s: Sketch, x: Any) -> Any:
    groups = s.pick(*(n for n in (1, 1, 2, 3) if x.shape[-1] % n == 0))
    filters = groups * s.pick(1, 4, 6)
    spaced = {"dilation_rate": 2} if s.chance(0.2) else {"strides": s.pick(1, 2)}
    more = s.kernel_arguments() | spaced
    return s.layer(layers.Conv2D, filters, s.pick(1, 2, 3), groups=groups, padding="same", **more)(x)


@kind(3)
def conv1d_transpose(s: Sketch, x: Any) -> Any:
    return s.layer(layers.Conv1DTranspose, s.pick(2, 5), 2, padding="same", **s.kernel_arguments())(x)


@kind(4)
def conv2d_transpose(s: Sketch, x: Any) -> Any:
    more = s.kernel_arguments()
    return s.layer(layers.Conv2DTranspose, s.pick(2, 5), 2, strides=s.pick(1, 2), padding="same", **more)(x)


@kind(4)
def conv3d(s: Sketch, x: Any) -> Any:
    x = s.layer(layers.Reshape, (*x.shape[1:], 1))(x)
    return s.flat(s.layer(layers.Conv3D, 3, 2, padding="same", **s.kernel_arguments())(x))


@kind(4)
def conv3d_transpose(s: Sketch, x: Any) -> Any:
    x = s.layer(layers.Reshape, (*x.shape[1:], 1))(x)
    return s.flat(s.layer(layers.Conv3DTranspose, 2, 2, padding="same")(x))


@kind(3)
def depthwise_conv1d(s: Sketch, x: Any) -> Any:
    return s.layer(layers.DepthwiseConv1D, 2, padding="same", **s.kernel_arguments(depthwise=True))(x)


@kind(4)
def depthwise_conv2d(s: Sketch, x: Any) -> Any:
    more = s.kernel_arguments(depthwise=True)
    return s.layer(layers.DepthwiseConv2D, 2, depth_multiplier=s.pick(1, 2), padding="same", **more)(x)


@kind(3)
def separable_conv1d(s: Sketch, x: Any) -> Any:
    return s.layer(layers.SeparableConv1D, s.pick(2, 6), 2, padding="same")(x)


@kind(4)
def separable_conv2d(s: Sketch, x: Any) -> Any:
    more = {"pointwise_regularizer": "l2"} if s.chance(0.3) else {}
    return s.layer(layers.SeparableConv2D, s.pick(2, 6), 2, padding="same", **more)(x)


def _recurrent(s: Sketch, backwards: bool = True) -> Any:
    """A recurrent layer of one of the three kinds, not stateful."""
    cell = s.pick(layers.LSTM, layers.GRU, layers.SimpleRNN)
    more: dict[str, Any] = {"return_sequences": s.chance(0.4), "unroll": s.chance(0.7), "use_bias": s.chance(0.8)}
    if s.chance(0.2):
        more["dropout"] = 0.2
    if s.chance(0.2):
        more["recurrent_dropout"] = 0.2
    if s.chance(0.15):
        more["recurrent_regularizer"] = keras.regularizers.L2(1e-2)
    if backwards and s.chance(0.2):
        more["go_backwards"] = True
    return s.layer(cell, s.pick(1, 4, 7), **more)


@kind(3)
def recurrent(s: Sketch, x: Any) -> Any:
    return _recurrent(s)(_short(s, x))


@kind(3)
def bidirectional(s: Sketch, x: Any) -> Any:
    return s.layer(layers.Bidirectional, _recurrent(s, backwards=False), merge_mode=s.pick("concat", "sum", "mul"))(
        _short(s, x)
    )


@kind(3)
def stacked_cells(s: Sketch, x: Any) -> Any:
    cells = [layers.GRUCell(3, name=s.name("cell")), layers.LSTMCell(4, name=s.name("cell"))]
    return s.layer(layers.RNN, cells, unroll=True)(_short(s, x))


@kind(3)
def masked_recurrent(s: Sketch, x: Any) -> Any:
    x = s.layer(layers.Masking, mask_value=0.0)(_short(s, layers.ReLU(name=s.name("relu"))(x)))
    return s.layer(layers.LSTM, 4, unroll=s.chance(0.5))(x)


@kind(3, 4)
def time_distributed(s: Sketch, x: Any) -> Any:
    return s.layer(layers.TimeDistributed, s.layer(layers.Dense, s.units(), **s.kernel_arguments()))(x)


@kind(4)
def conv_lstm1d(s: Sketch, x: Any) -> Any:
    """Over the rows of a map, [B, H, W, F] as [B, T, W, F]."""
    return s.flat(s.layer(layers.ConvLSTM1D, 2, 2, padding="same", return_sequences=s.chance(0.3))(x))


@kind(4)
def conv_lstm2d(s: Sketch, x: Any) -> Any:
    """Over one axis of a map, [B, H, W, F] as [B, T, W, F, 1]."""
    x = s.layer(layers.Reshape, (*x.shape[1:], 1))(x)
    return s.flat(s.layer(layers.ConvLSTM2D, 2, 1, padding="same", dropout=s.pick(0.0, 0.2))(x))


@kind(*ANY)
def function(s: Sketch, x: Any) -> Any:
    return s.layer(layers.Lambda, lambda y: keras.ops.sin(y) + 0.5 * y, output_shape=x.shape[1:])(x)


def _short(s: Sketch, x: Any) -> Any:
    """At most four steps: recurrent layers take long to trace."""
    return x if x.shape[1] <= 4 else layers.Cropping1D((0, x.shape[1] - 4), name=s.name("crop"))(x)


@kind(3)
def multi_head_attention(s: Sketch, x: Any) -> Any:
    more = {"dropout": 0.2} if s.chance(0.3) else {}
    layer = s.layer(layers.MultiHeadAttention, num_heads=s.pick(1, 2), key_dim=s.pick(1, 4), **more)
    return layer(x, x, use_causal_mask=s.chance(0.3))


@kind(3)
def grouped_query_attention(s: Sketch, x: Any) -> Any:
    return s.layer(layers.GroupQueryAttention, head_dim=3, num_query_heads=2, num_key_value_heads=1)(x, x)


@kind(3)
def attention(s: Sketch, x: Any) -> Any:
    layer = s.pick(layers.Attention, layers.AdditiveAttention)
    more = {"score_mode": s.pick("dot", "concat")} if layer is layers.Attention else {}
    return s.layer(layer, use_scale=True, **more)([x, x])


@kind(2)
def merged(s: Sketch, x: Any) -> Any:
    """Two dense branches and one of the merging layers."""
    units = s.pick(3, 24)
    branches = [s.layer(layers.Dense, units, activation=s.activation())(x) for _ in range(2)]
    merge = s.pick(layers.Add, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum, layers.Subtract)
    merge = s.pick(merge, layers.Concatenate, layers.Dot)
    return s.layer(merge, **({"axes": -1} if merge is layers.Dot else {}))(branches)


@kind(2)
def embedding(s: Sketch, x: Any) -> Any:
    """Of the rounded pixels: they are the same numbers on both sides, so that rounding never differs."""
    tokens = layers.Flatten(name=s.name("flat"))(s.images)
    tokens = keras.ops.cast(keras.ops.clip(keras.ops.round((tokens[:, :6] + 1) * 3), 0, 6), "int32")
    more: dict[str, Any] = {"embeddings_regularizer": "l2"} if s.chance(0.2) else {}
    embedded = s.layer(layers.Embedding, 7, s.pick(1, 5, 12), **more)(tokens)
    return s.layer(layers.Concatenate)([s.flat(x), s.flat(embedded)])
