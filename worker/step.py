"""One training step as a pure function, compiled once: flat vectors in, flat gradients out.

    step(parameters, images, labels) -> (loss, gradients, differences)

The wire layout is the function's signature: vectors are split, reshaped and cast inside the graph, on the
accelerator if there is one, and gradients are cast and concatenated there. No Python loop runs over variables in
a step, nothing is assigned, the model's own variables are never touched.

Shapes: B batch, S image side, C labels; for shard i, t_i trained elements and s_i elements of statistics.
Threads: one at a time. TensorFlow is allowed here.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import ml_dtypes
import numpy as np
import tensorflow as tf

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.ps.layout import STATISTIC, TRAINED, Layout, Range, Variable
from downpour.worker.exchange import Gradients, Parameters

Tensors = list[tf.Tensor]

# What a wire dtype means to TensorFlow: numpy holds bfloat16 as its bits.
_TENSOR_DTYPES: dict[pb.Codec, np.dtype] = {
    codec.FLOAT32: np.dtype(np.float32),
    codec.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class StepResult:
    """What one step gives.

    Attributes:
        loss: Of the batch, the model's own regularisation included.
        gradient_norm: Euclidean norm over all trained variables; not finite if any gradient is not.
        gradients: For the shards, in the wire dtype.
    """

    loss: float
    gradient_norm: float
    gradients: Gradients

    @property
    def is_finite(self) -> bool:
        """Whether loss and all gradients are finite."""
        return bool(np.isfinite(self.loss) and np.isfinite(self.gradient_norm))


def variables_of(model: keras.Model, weight_decay: float = 0.0, undecayed: Sequence[str] = ()) -> list[Variable]:
    """The model's variables as the layout sees them: trained ones, then statistics.

    Statistics are the floating-point variables that are not trained. Others (random seeds) are local: they
    never leave the worker.

    Args:
        model: A built model.
        weight_decay: L2 factor of trained variables.
        undecayed: `fnmatch` patterns of names without weight decay.
    """

    def decay(name: str) -> float:
        return 0.0 if any(fnmatch.fnmatchcase(name, pattern) for pattern in undecayed) else weight_decay

    trained = [Variable(v.path, tuple(v.shape), TRAINED, decay(v.path)) for v in model.trainable_variables]
    return trained + [Variable(v.path, tuple(v.shape), STATISTIC) for v in statistics_of(model)]


def statistics_of(model: keras.Model) -> list[keras.Variable]:
    """The model's statistics, in the order of `variables_of`."""
    return [v for v in model.non_trainable_variables if _is_statistic(v)]


def initial_values(model: keras.Model) -> list[np.ndarray]:
    """The model's present values, in the order of `variables_of`."""
    return [v.numpy() for v in (*model.trainable_variables, *statistics_of(model))]


class TrainingStep:
    """The compiled step of one model, loss and layout.

    Args:
        model: A built Keras model that maps images to logits. Used through `stateless_call` only.
        loss: `loss(labels [B, C], logits [B, C]) -> scalar`.
        layout: Of `variables_of(model)`.
        wire: Codec of the trained part, a value of `pb.Codec`.
    """

    def __init__(
        self, model: keras.Model, loss: Callable[[Any, Any], Any], layout: Layout, wire: pb.Codec = codec.FLOAT32
    ) -> None:
        self._model = model
        self._loss = loss
        self._layout = layout
        self._dtype = _TENSOR_DTYPES[wire]
        self._bits = codec.WIRE_DTYPES[wire]
        self._is_statistic = [_is_statistic(v) for v in model.non_trainable_variables]
        # Local state: lives here between steps, on no shard.
        self._local: Tensors = [tf.convert_to_tensor(v) for v in model.non_trainable_variables if not _is_statistic(v)]
        self._compiled = tf.function(self._step, reduce_retracing=True)

    def __call__(self, parameters: Parameters, images: Any, labels: Any) -> StepResult:
        """Computes loss and gradients.

        Args:
            parameters: As pulled.
            images: [B, S, S, 3] float32.
            labels: [B, C] float32.
        """
        trained = [tf.convert_to_tensor(vector.view(self._dtype)) for vector in parameters.trained]
        statistics = [tf.convert_to_tensor(vector) for vector in parameters.statistics]
        loss, norm, gradients, differences, self._local = self._compiled(
            trained, statistics, self._local, tf.convert_to_tensor(images), tf.convert_to_tensor(labels)
        )
        return StepResult(
            float(loss),
            float(norm),
            Gradients(
                [g.numpy().view(self._bits) for g in gradients],
                [d.numpy() for d in differences],
                list(parameters.versions),
            ),
        )

    def _step(self, trained: Tensors, statistics: Tensors, local: Tensors, images: tf.Tensor, labels: tf.Tensor) -> Any:
        variables = self._unflatten([tf.cast(t, tf.float32) for t in trained], TRAINED)
        before = self._unflatten(statistics, STATISTIC)
        with tf.GradientTape() as tape:
            tape.watch(variables)
            logits, after, losses = self._model.stateless_call(
                variables, self._interleave(before, local), images, training=True, return_losses=True
            )
            loss = tf.add_n([self._loss(labels, tf.cast(logits, tf.float32)), *losses])
        gradients = tape.gradient(loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        gradients = [tf.convert_to_tensor(g) for g in gradients]  # an embedding's comes as slices
        after_statistics = [v for v, is_statistic in zip(after, self._is_statistic, strict=True) if is_statistic]
        after_local = [v for v, is_statistic in zip(after, self._is_statistic, strict=True) if not is_statistic]
        differences = [tf.cast(a, tf.float32) - b for a, b in zip(after_statistics, before, strict=True)]
        return (
            loss,
            tf.linalg.global_norm(gradients),
            [tf.cast(g, self._dtype) for g in self._flatten(gradients, TRAINED)],
            self._flatten(differences, STATISTIC),
            after_local,
        )

    def _interleave(self, statistics: Tensors, local: Tensors) -> Tensors:
        """Statistics and local state in the order of the model's non-trainable variables."""
        a, b = iter(statistics), iter(local)
        return [next(a) if is_statistic else next(b) for is_statistic in self._is_statistic]

    def _unflatten(self, vectors: Tensors, kind: str) -> Tensors:
        """One flat vector a shard -> one tensor a variable of this kind."""
        slices: dict[int, list[tuple[Range, tf.Tensor]]] = {}
        for vector, ranges in zip(vectors, self._ranges(kind), strict=True):
            for r, part in zip(ranges, tf.split(vector, [r.size for r in ranges]) if ranges else [], strict=True):
                slices.setdefault(r.variable, []).append((r, tf.reshape(part, self._slice_shape(r))))
        variables = []
        for number in sorted(slices):
            parts = sorted(slices[number], key=lambda piece: piece[0].begin)
            tensors = [tensor for _, tensor in parts]
            variables.append(tensors[0] if len(tensors) == 1 else tf.concat(tensors, parts[0][0].axis))
        return variables

    def _flatten(self, values: Tensors, kind: str) -> Tensors:
        """One tensor a variable of this kind -> one flat vector a shard; the inverse of `_unflatten`."""
        first = min((r.variable for ranges in self._ranges(kind) for r in ranges), default=0)
        slices: dict[tuple[int, int], tf.Tensor] = {}
        for number, value in enumerate(values, first):
            ranges = sorted((r for r in self._layout.ranges if r.variable == number), key=lambda r: r.begin)
            parts = tf.split(value, [r.stop - r.begin for r in ranges], ranges[0].axis) if len(ranges) > 1 else [value]
            slices.update({(number, r.begin): part for r, part in zip(ranges, parts, strict=True)})
        return [
            tf.concat([tf.reshape(slices[r.variable, r.begin], [-1]) for r in ranges], 0) if ranges else tf.zeros([0])
            for ranges in self._ranges(kind)
        ]

    def _ranges(self, kind: str) -> list[list[Range]]:
        return [[r for r in rs if self._layout.variables[r.variable].kind == kind] for rs in self._layout.by_shard]

    def _slice_shape(self, r: Range) -> list[int]:
        shape = list(self._layout.variables[r.variable].shape)
        if shape:
            shape[r.axis] = r.stop - r.begin
        return shape


def _is_statistic(variable: Any) -> bool:
    return bool(keras.backend.is_float_dtype(variable.dtype))
