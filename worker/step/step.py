"""One training step as a pure function, compiled once: flat vectors in, flat gradients out.

    step(parameters, images, labels) -> (loss, gradients, differences)

The wire layout is the function's signature: vectors are split, reshaped and cast inside the graph, on the
accelerator if there is one, and gradients are cast and concatenated there. No Python loop runs over variables in
a step, and none of the model's variables is assigned. State that Keras does not count among them, such as that of a
recurrent layer, stays in its place from step to step, as in plain Keras.

Frozen variables are constants to the tape: their gradients, and everything that only those need, are not computed.
So are factored ones in their layer's own call: for a dense layer y = x W + b the step returns x and d = dloss/dy; the
shard multiplies x^T d. A factored one that is used anywhere else as well is refused; `worker.examine` finds such
variables before, and their gradients are pushed dense.

Where a layer computes in float16, the loss is scaled (`worker.loss_scale`). A step that overflows is not pushed.

Batch norm: a worker pushes its moving statistics after the batch minus those it pulled, d * (b - m) with
d = 1 - momentum, the batch's own statistic b and the pulled m; the shard adds it. One worker alone thus gets the same
as plain Keras, to rounding. From k workers that pulled the same m, the shard gets m + d * sum(b_i - m); one worker that
processes the same batches in sequence gets m + d * sum((b_i - m) * (1 - d)^(k - i)). The two differ by at most
d^2 * k * (k - 1) / 2 * max|b_i - m|. If every difference is k pushes old, the statistics still settle while
d < 2 * sin(pi / (4k + 2)) (Levin and May 1976): up to 156 pushes at Keras's momentum of 0.99, up to 15 at 0.9.

Shapes: B batch, S image side, C labels; for shard i, t_i trained elements, s_i of statistics, f_i frozen ones.
Threads: one at a time. TensorFlow is allowed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import ml_dtypes
import numpy as np
import tensorflow as tf
from absl import logging

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.ps.layout import FACTORED, FROZEN, STATISTIC, TRAINED, Layout, Range
from downpour.worker.exchange.exchange import Gradients, Parameters
from downpour.worker.step.clip import Clip
from downpour.worker.step.forward import Scope, Use, factorable_layers, forward, noting, refuse_assigned
from downpour.worker.step.loss_scale import LossScale
from downpour.worker.step.variables import variables_in

Tensors = list[tf.Tensor]

# What a wire dtype means to TensorFlow: numpy holds bfloat16 as its bits.
_TENSOR_DTYPES: dict[pb.Codec, np.dtype] = {
    codec.FLOAT32: np.dtype(np.float32),
    codec.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    codec.FLOAT16: np.dtype(np.float16),
}


@dataclass(frozen=True)
class StepResult:
    """Result of one step.

    Attributes:
        loss: Loss of the batch, the model's own regularisation included.
        gradient_norm: Euclidean norm over all trained variables, before clipping; not finite if any gradient is not.
        gradients: Gradients for the shards, in the wire dtype.
        loss_scale: Factor of the loss while the gradients were computed; None without loss scaling.
    """

    loss: float
    gradient_norm: float
    gradients: Gradients
    loss_scale: float | None = None

    @property
    def is_finite(self) -> bool:
        """Whether loss and all gradients are finite."""
        return bool(np.isfinite(self.loss) and np.isfinite(self.gradient_norm))


class TrainingStep:
    """The compiled step of one model, loss and layout.

    Args:
        model: A built Keras model that maps images to logits. Its own variables are not changed.
        loss: `loss(labels [B, C], logits [B, C]) -> scalar`.
        layout: Layout of `variables_of(model)`. Variables of the model that are not in it are state of this object.
        wire: Codec of the trained and the frozen part, a value of `pb.Codec`.
        clip: Limits the gradient; None for none.
    """

    def __init__(
        self,
        model: keras.Model,
        loss: Callable[[Any, Any], Any],
        layout: Layout,
        wire: pb.Codec = codec.FLOAT32,
        clip: Clip | None = None,
    ) -> None:
        self._model = model
        self._clip = clip
        self._loss = loss
        self._layout = layout
        self._dtype = _TENSOR_DTYPES[wire]
        self._bits = codec.WIRE_DTYPES[wire]
        # The layout's variables, by number: the model's trainable ones, then others. The rest is local.
        self._variables = variables_in(model, layout)
        self._num_trainable = len(model.trainable_variables)
        placed = {id(v) for v in self._variables}
        self._local_variables = [v for v in model.non_trainable_variables if id(v) not in placed]
        self._numbers = {
            kind: [i for i, v in enumerate(layout.variables) if v.kind == kind]
            for kind in (FACTORED, TRAINED, STATISTIC, FROZEN)
        }
        kernels = {layer.kernel.path: layer for layer in factorable_layers(model)}
        self._factored_layers = [kernels[layout.variables[i].name] for i in self._numbers[FACTORED]]
        self._local: Tensors = [tf.convert_to_tensor(v) for v in self._local_variables]
        computes_in_float16 = any(layer.compute_dtype == "float16" for layer in model._flatten_layers())
        self._scale = LossScale() if computes_in_float16 else None
        self._compiled = tf.function(self._step, reduce_retracing=True, autograph=False)

    def __call__(self, parameters: Parameters, images: Any, labels: Any) -> StepResult:
        """Computes loss and gradients.

        Args:
            parameters: As pulled.
            images: [B, S, S, 3] float32.
            labels: [B, C] float32.

        Raises:
            ValueError: The model does something with its variables that the layout does not allow for, found when the
                first batch is traced.
        """
        scale = self._scale.value if self._scale else None
        loss, norm, gradients, factors, differences, local = self._compiled(
            *self._arguments(parameters, images, labels)
        )
        result = StepResult(
            float(loss),
            float(norm),
            Gradients(
                [g.numpy().view(self._bits) for g in gradients],
                [d.numpy() for d in differences],
                list(parameters.versions),
                factors=[[both.numpy().view(self._bits) for both in of_shard] for of_shard in factors],
            ),
            scale,
        )
        # An overflow must not stay in local state; random seeds advance.
        self._local = [
            after if result.is_finite or not after.dtype.is_floating else before
            for after, before in zip(local, self._local, strict=True)
        ]
        if self._scale:
            self._scale.update(result.is_finite)
        return result

    def trace(self, images: Any, labels: Any) -> None:
        """Traces the step for batches of these shapes without computing it; raises what model and loss raise."""
        layout, shards = self._layout, range(self._layout.num_shards)
        zeros = Parameters(
            [np.zeros(layout.num_trained(shard), self._bits) for shard in shards],
            [np.zeros(layout.num_pushed(shard) - layout.num_trained(shard), np.float32) for shard in shards],
            [0] * len(shards),
            [np.zeros(layout.size(shard) - layout.num_pushed(shard), self._bits) for shard in shards],
        )
        self._compiled.get_concrete_function(*self._arguments(zeros, images, labels))

    def _arguments(self, parameters: Parameters, images: Any, labels: Any) -> tuple[Any, ...]:
        """Returns the arguments of the compiled step."""
        trained = [tf.convert_to_tensor(vector.view(self._dtype)) for vector in parameters.trained]
        statistics = [tf.convert_to_tensor(vector) for vector in parameters.statistics]
        frozen = [tf.convert_to_tensor(vector.view(self._dtype)) for vector in parameters.frozen]
        scale = tf.constant(self._scale.value if self._scale else 1.0)
        batch = tf.convert_to_tensor(images), tf.convert_to_tensor(labels)
        return trained, statistics, frozen, self._local, scale, *batch

    def _step(
        self,
        trained: Tensors,
        statistics: Tensors,
        frozen: Tensors,
        local: Tensors,
        scale: tf.Tensor,
        images: tf.Tensor,
        labels: tf.Tensor,
    ) -> Any:
        values = self._unflatten([tf.cast(t, tf.float32) for t in trained], FACTORED, TRAINED)
        values |= self._unflatten(statistics, STATISTIC)
        values |= self._unflatten([tf.cast(f, tf.float32) for f in frozen], FROZEN)
        ordered = [values[i] for i in range(len(values))]
        watched, kernels = ([values[i] for i in self._numbers[kind]] for kind in (TRAINED, FACTORED))
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([*watched, *kernels])
            scope = Scope([*self._variables, *self._local_variables], [*ordered, *local])
            with noting(scope, self._factored_layers, tape.watch) as noted:
                loss = forward(self._model, scope, self._loss, images, labels)
            scaled = loss * scale if self._scale else loss
        refuse_assigned(self._model, scope.assigned)
        uses = [self._only_use(layer, noted) for layer in self._factored_layers]
        wanted = [watched, [use.output for use in uses], kernels]
        found, of_outputs, beside = tape.gradient(scaled, wanted)
        self._check_gradients(found, beside)
        gradients, of_outputs = (
            [self._unscaled(g, of, scale) for g, of in zip(gs, ofs, strict=True)]
            for gs, ofs in zip((found, of_outputs), wanted[:2], strict=True)
        )
        factors = [use.factors(d) for use, d in zip(uses, of_outputs, strict=True)]
        moved = {
            i: tf.cast(scope.get_current_value(self._variables[i]), tf.float32) - ordered[i]
            for i in self._numbers[STATISTIC]
        }
        norms = [_product_norm(x, d) for x, d in factors]
        norm = tf.linalg.global_norm([*gradients, *norms])
        by_number = dict(zip(self._numbers[TRAINED], _clipped(gradients, self._clip, norm), strict=True))
        factors = [(x, _clipped_factor(d, own, self._clip, norm)) for (x, d), own in zip(factors, norms, strict=True)]
        return (
            loss,
            norm,
            [tf.cast(g, self._dtype) for g in self._flatten(by_number, TRAINED)],
            self._flat_factors(dict(zip(self._numbers[FACTORED], factors, strict=True))),
            self._flatten(moved, STATISTIC),
            [scope.get_current_value(v) for v in self._local_variables],
        )

    def _unscaled(self, gradient: Any, of: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        """Returns a gradient without the loss scale, in float32 if there is a scale; zeros where none reaches `of`."""
        if gradient is None:
            return tf.zeros_like(of)
        dense = tf.convert_to_tensor(gradient)  # an embedding's gradient is given as slices
        return tf.cast(dense, tf.float32) / scale if self._scale else dense

    def _only_use(self, layer: keras.layers.Dense, uses: Mapping[str, Sequence[Use]]) -> Use:
        """Returns the one call of a factored layer."""
        path = layer.kernel.path
        if len(uses[path]) != 1:
            how = "more than once" if uses[path] else "nowhere"
            raise ValueError(f"{path} is used {how} in a step; set exchange.factors=False")
        return uses[path][0]

    def _check_gradients(self, trained: Sequence[Any], beside: Sequence[Any]) -> None:
        """Refuses a factored kernel with a gradient beside its factors; warns of variables that no gradient reaches."""
        for layer, gradient in zip(self._factored_layers, beside, strict=True):
            if gradient is not None:
                raise ValueError(
                    f"{layer.kernel.path} is used outside its own layer, so its gradient is not that of its factors "
                    "alone; set exchange.factors=False"
                )
        lost = [self._variables[i].path for i, g in zip(self._numbers[TRAINED], trained, strict=True) if g is None]
        if lost:
            logging.warning("no gradient reaches %s: not trained, as in plain Keras", ", ".join(lost))

    def _flat_factors(self, factors: Mapping[int, tuple[tf.Tensor, tf.Tensor]]) -> list[Tensors]:
        """For each shard and each of its factored variables, x and the shard's columns of d, in one flat vector."""
        flat: list[Tensors] = []
        for shard in range(self._layout.num_shards):
            flat.append([])
            for group in self._layout.factored(shard):
                x, d = factors[group.ranges[0].variable]
                columns = [d[:, r.begin : r.stop] if r.axis == 1 else d for r in group.ranges]
                both = [tf.reshape(x, [-1]), tf.reshape(tf.concat(columns, 1), [-1])]
                flat[-1].append(tf.cast(tf.concat(both, 0), self._dtype))
        return flat

    def _unflatten(self, vectors: Tensors, *kinds: str) -> dict[int, tf.Tensor]:
        """Converts one flat vector a shard to one tensor a variable of these kinds, by number."""
        slices: dict[int, list[tuple[Range, tf.Tensor]]] = {}
        for vector, ranges in zip(vectors, self._ranges(*kinds), strict=True):
            for r, part in zip(ranges, tf.split(vector, [r.size for r in ranges]) if ranges else [], strict=True):
                slices.setdefault(r.variable, []).append((r, tf.reshape(part, self._slice_shape(r))))
        variables = {}
        for number, pieces in slices.items():
            parts = sorted(pieces, key=lambda piece: piece[0].begin)
            tensors = [tensor for _, tensor in parts]
            variables[number] = tensors[0] if len(tensors) == 1 else tf.concat(tensors, parts[0][0].axis)
        return variables

    def _flatten(self, values: Mapping[int, tf.Tensor], kind: str) -> Tensors:
        """Converts one tensor a variable of this kind, by number, to one flat vector a shard; inverts `_unflatten`."""
        slices: dict[tuple[int, int], tf.Tensor] = {}
        for number, value in values.items():
            ranges = sorted((r for r in self._layout.ranges if r.variable == number), key=lambda r: r.begin)
            parts = tf.split(value, [r.stop - r.begin for r in ranges], ranges[0].axis) if len(ranges) > 1 else [value]
            slices.update({(number, r.begin): part for r, part in zip(ranges, parts, strict=True)})
        return [
            tf.concat([tf.reshape(slices[r.variable, r.begin], [-1]) for r in ranges], 0) if ranges else tf.zeros([0])
            for ranges in self._ranges(kind)
        ]

    def _ranges(self, *kinds: str) -> list[list[Range]]:
        return [[r for r in rs if self._layout.variables[r.variable].kind in kinds] for rs in self._layout.by_shard]

    def _slice_shape(self, r: Range) -> list[int]:
        shape = list(self._layout.variables[r.variable].shape)
        if shape:
            shape[r.axis] = r.stop - r.begin
        return shape


def _clipped(gradients: Tensors, clip: Clip | None, norm: tf.Tensor) -> Tensors:
    """Returns the gradients within the limits of `clip`; `norm` is their global norm."""
    if clip is None:
        return gradients
    if clip.by_value is not None:
        return [tf.clip_by_value(g, -clip.by_value, clip.by_value) for g in gradients]
    if clip.by_norm is not None:
        return [tf.clip_by_norm(g, clip.by_norm) for g in gradients]
    clipped: Tensors = tf.clip_by_global_norm(gradients, clip.by_global_norm, use_norm=norm)[0]
    return clipped


def _product_norm(x: tf.Tensor, d: tf.Tensor) -> tf.Tensor:
    """|x^T d|, from [rows, rows] products alone: its square is the sum of (x x^T) * (d d^T)."""
    square = tf.reduce_sum(tf.matmul(x, x, transpose_b=True) * tf.matmul(d, d, transpose_b=True))
    # Rounding may make a square that is nearly zero negative.
    return tf.sqrt(tf.where(square < 0, tf.zeros_like(square), square))


def _clipped_factor(d: tf.Tensor, own_norm: tf.Tensor, clip: Clip | None, norm: tf.Tensor) -> tf.Tensor:
    """Clips the second factor of a gradient of norm `own_norm`, as `_clipped` does dense ones."""
    if clip is None:
        return d
    limit, length = (clip.by_norm, own_norm) if clip.by_norm is not None else (clip.by_global_norm, norm)
    return d * (limit / tf.maximum(length, limit))
