"""One training step as a pure function, compiled once: flat vectors in, flat gradients out.

    step(parameters, images, labels) -> (loss, gradients, differences)

The wire layout is the function's signature: vectors are split, reshaped and cast inside the graph, on the
accelerator if there is one, and gradients are cast and concatenated there. No Python loop runs over variables in
a step, nothing is assigned, the model's own variables are never touched.

Frozen variables are constants to the tape: their gradients, and everything that only those need, are not computed.
So are factored ones: of a dense layer y = x W + b the step gives x and d = dloss/dy; the shard multiplies x^T d.

Batch norm: a worker pushes its moving statistics after the batch minus those it pulled, d * (b - m) with
d = 1 - momentum, the batch's own statistic b and the pulled m; the shard adds it. One worker alone thus has what plain
Keras has, to rounding. Of k workers that pulled the same m, the shard makes m + d * sum(b_i - m); one worker that saw
the same batches one after another has m + d * sum((b_i - m) * (1 - d)^(k - i)). The two differ by at most
d^2 * k * (k - 1) / 2 * max|b_i - m|. If every difference is k pushes old, the statistics still settle while
d < 2 * sin(pi / (4k + 2)) (Levin and May 1976): up to 156 pushes at Keras's momentum of 0.99, up to 15 at 0.9.

Shapes: B batch, S image side, C labels; for shard i, t_i trained elements, s_i of statistics, f_i frozen ones.
Threads: one at a time. TensorFlow is allowed here.
"""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import ml_dtypes
import numpy as np
import tensorflow as tf

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.ps.cuts import may_be_factored
from downpour.ps.layout import FACTORED, FROZEN, STATISTIC, TRAINED, Layout, Range, Rate, Variable
from downpour.ps.patterns import matching
from downpour.worker.clip import Clip
from downpour.worker.constraints import constraint_of
from downpour.worker.exchange import Gradients, Parameters

Tensors = list[tf.Tensor]

# What a wire dtype means to TensorFlow: numpy holds bfloat16 as its bits.
_TENSOR_DTYPES: dict[pb.Codec, np.dtype] = {
    codec.FLOAT32: np.dtype(np.float32),
    codec.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    codec.FLOAT16: np.dtype(np.float16),
}


@dataclass(frozen=True)
class StepResult:
    """What one step gives.

    Attributes:
        loss: Of the batch, the model's own regularisation included.
        gradient_norm: Euclidean norm over all trained variables, before clipping; not finite if any gradient is not.
        gradients: For the shards, in the wire dtype.
    """

    loss: float
    gradient_norm: float
    gradients: Gradients

    @property
    def is_finite(self) -> bool:
        """Whether loss and all gradients are finite."""
        return bool(np.isfinite(self.loss) and np.isfinite(self.gradient_norm))


def variables_of(
    model: keras.Model,
    weight_decay: float = 0.0,
    undecayed: Sequence[str] = (),
    *,
    decay: str = "l2",
    rates: Sequence[Rate] = (),
    frozen: Sequence[str] = (),
    factored: Collection[str] = (),
) -> list[Variable]:
    """The model's variables as the layout sees them: trainable ones, then statistics.

    Statistics are the floating-point variables that are not trained. Others (random seeds) are local: they
    never leave the worker.

    Args:
        model: A built model.
        weight_decay: Of trained variables.
        undecayed: `fnmatch` patterns of names without weight decay.
        decay: Whether weight decay is "l2" (in the gradient) or "decoupled" (off the parameter).
        rates: Multipliers of the learning rate; where several match a variable, the last counts.
        frozen: `fnmatch` patterns of variables and statistics that stay as they are.
        factored: Names of variables whose gradients travel as factors; see `factored_names`.

    Raises:
        ValueError: A pattern of `rates` or `frozen` matches nothing, nothing is left to train, or shards do not know a
            constraint.
    """
    trainable = {v.path: tuple(v.shape) for v in model.trainable_variables}
    statistics = {v.path: tuple(v.shape) for v in statistics_of(model)}
    still = {name for pattern in frozen for name in matching("frozen", pattern, [*trainable, *statistics])}
    if trainable.keys() <= still:
        raise ValueError(f"frozen: {', '.join(frozen)} match every trainable variable; leave something to train")
    multipliers = {name: rate.multiplier for rate in rates for name in matching("rates", rate.pattern, list(trainable))}

    constraints = {v.path: constraint_of(v) for v in model.trainable_variables if v.path not in still}

    def trained(name: str, shape: tuple[int, ...]) -> Variable:
        factor = 0.0 if any(fnmatch.fnmatchcase(name, pattern) for pattern in undecayed) else weight_decay
        factors = (factor, 0.0) if decay == "l2" else (0.0, factor)
        constraint = constraints[name]
        kind = FACTORED if name in factored and (constraint is None or may_be_factored(constraint)) else TRAINED
        return Variable(name, shape, kind, *factors, rate=multipliers.get(name, 1.0), constraint=constraint)

    def fixed(name: str, shape: tuple[int, ...], kind: str) -> Variable:
        return Variable(name, shape, FROZEN if name in still else kind)

    return [
        *(fixed(n, shape, FROZEN) if n in still else trained(n, shape) for n, shape in trainable.items()),
        *(fixed(n, shape, STATISTIC) for n, shape in statistics.items()),
    ]


def statistics_of(model: keras.Model) -> list[keras.Variable]:
    """The model's statistics, in the order of `variables_of`."""
    return [v for v in model.non_trainable_variables if _is_statistic(v)]


def factored_names(model: keras.Model, batch_size: int) -> set[str]:
    """The kernels whose gradients take less than half the bytes as factors, for a batch of so many rows."""
    shapes = {layer.kernel.path: layer.kernel.shape for layer in _factorable_layers(model)}
    return {
        name for name, (inputs, outputs) in shapes.items() if 2 * batch_size * (inputs + outputs) < inputs * outputs
    }


def initial_values(model: keras.Model) -> list[np.ndarray]:
    """The model's present values, in the order of `variables_of`."""
    return [v.numpy() for v in (*model.trainable_variables, *statistics_of(model))]


class TrainingStep:
    """The compiled step of one model, loss and layout.

    Args:
        model: A built Keras model that maps images to logits. Used through `stateless_call` only.
        loss: `loss(labels [B, C], logits [B, C]) -> scalar`.
        layout: Of `variables_of(model)`.
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
        self._is_statistic = [_is_statistic(v) for v in model.non_trainable_variables]
        # The layout's variables, by number: the model's trainable ones, then its statistics.
        self._num_trainable = len(model.trainable_variables)
        self._numbers = {
            kind: [i for i, v in enumerate(layout.variables) if v.kind == kind]
            for kind in (FACTORED, TRAINED, STATISTIC, FROZEN)
        }
        kernels = {layer.kernel.path: layer for layer in _factorable_layers(model)}
        self._factored_layers = {i: kernels[layout.variables[i].name] for i in self._numbers[FACTORED]}
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
        frozen = [tf.convert_to_tensor(vector.view(self._dtype)) for vector in parameters.frozen]
        loss, norm, gradients, factors, differences, self._local = self._compiled(
            trained, statistics, frozen, self._local, tf.convert_to_tensor(images), tf.convert_to_tensor(labels)
        )
        return StepResult(
            float(loss),
            float(norm),
            Gradients(
                [g.numpy().view(self._bits) for g in gradients],
                [d.numpy() for d in differences],
                list(parameters.versions),
                factors=[[both.numpy().view(self._bits) for both in of_shard] for of_shard in factors],
            ),
        )

    def _step(
        self,
        trained: Tensors,
        statistics: Tensors,
        frozen: Tensors,
        local: Tensors,
        images: tf.Tensor,
        labels: tf.Tensor,
    ) -> Any:
        values = self._unflatten([tf.cast(t, tf.float32) for t in trained], FACTORED, TRAINED)
        values |= self._unflatten(statistics, STATISTIC)
        values |= self._unflatten([tf.cast(f, tf.float32) for f in frozen], FROZEN)
        ordered = [values[i] for i in range(len(values))]
        variables, before = ordered[: self._num_trainable], ordered[self._num_trainable :]
        watched = [values[i] for i in self._numbers[TRAINED]]
        with tf.GradientTape(watch_accessed_variables=False) as tape, self._passing(tape) as passed:
            tape.watch(watched)
            logits, after, losses = self._model.stateless_call(
                variables, self._interleave(before, local), images, training=True, return_losses=True
            )
            loss = tf.add_n([self._loss(labels, tf.cast(logits, tf.float32)), *losses])
        passages = [passed[i] for i in self._numbers[FACTORED]]
        outputs = [p.output for p in passages]
        gradients = tape.gradient(loss, [*watched, *outputs], unconnected_gradients=tf.UnconnectedGradients.ZERO)
        gradients = [tf.convert_to_tensor(g) for g in gradients]  # an embedding's comes as slices
        factors = [
            passed[i].factors(d) for i, d in zip(self._numbers[FACTORED], gradients[len(watched) :], strict=True)
        ]
        after_statistics = [v for v, is_statistic in zip(after, self._is_statistic, strict=True) if is_statistic]
        after_local = [v for v, is_statistic in zip(after, self._is_statistic, strict=True) if not is_statistic]
        differences = [tf.cast(a, tf.float32) - b for a, b in zip(after_statistics, before, strict=True)]
        moved = {i: differences[i - self._num_trainable] for i in self._numbers[STATISTIC]}
        gradients, norms = gradients[: len(watched)], [_product_norm(x, d) for x, d in factors]
        norm = tf.linalg.global_norm([*gradients, *norms])
        by_number = dict(zip(self._numbers[TRAINED], _clipped(gradients, self._clip, norm), strict=True))
        factors = [(x, _clipped_factor(d, own, self._clip, norm)) for (x, d), own in zip(factors, norms, strict=True)]
        return (
            loss,
            norm,
            [tf.cast(g, self._dtype) for g in self._flatten(by_number, TRAINED)],
            self._flat_factors(dict(zip(self._numbers[FACTORED], factors, strict=True))),
            self._flatten(moved, STATISTIC),
            after_local,
        )

    def _interleave(self, statistics: Tensors, local: Tensors) -> Tensors:
        """Statistics and local state in the order of the model's non-trainable variables."""
        a, b = iter(statistics), iter(local)
        return [next(a) if is_statistic else next(b) for is_statistic in self._is_statistic]

    @contextlib.contextmanager
    def _passing(self, tape: tf.GradientTape) -> Iterator[dict[int, _Passed]]:
        """While the model runs, notes what passes through each factored layer: its input and output."""
        passed: dict[int, _Passed] = {}

        def noting(number: int, call: Callable[..., Any]) -> Callable[..., Any]:
            def noted(inputs: Any, *arguments: Any, **keywords: Any) -> Any:
                if number in passed:
                    name = self._layout.variables[number].name
                    raise ValueError(f"{name} is used more than once in a step; set exchange.factors=False")
                output = call(inputs, *arguments, **keywords)
                tape.watch(output)
                passed[number] = _Passed(inputs, output)
                return output

            return noted

        for number, layer in self._factored_layers.items():
            object.__setattr__(layer, "call", noting(number, layer.call))
        try:
            yield passed
        finally:
            for layer in self._factored_layers.values():
                object.__delattr__(layer, "call")

    def _flat_factors(self, factors: Mapping[int, tuple[tf.Tensor, tf.Tensor]]) -> list[Tensors]:
        """For each shard and each of its factored variables x and the columns of d that it holds, flat, in one."""
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
        """One flat vector a shard -> one tensor a variable of these kinds, by number."""
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
        """One tensor a variable of this kind, by number -> one flat vector a shard; the inverse of `_unflatten`."""
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
    """The gradients within the limits of `clip`; `norm` is their global one."""
    if clip is None:
        return gradients
    if clip.by_value is not None:
        return [tf.clip_by_value(g, -clip.by_value, clip.by_value) for g in gradients]
    if clip.by_norm is not None:
        return [tf.clip_by_norm(g, clip.by_norm) for g in gradients]
    clipped: Tensors = tf.clip_by_global_norm(gradients, clip.by_global_norm, use_norm=norm)[0]
    return clipped


@dataclass(frozen=True)
class _Passed:
    """What went into a dense layer and came out of it: y = x W + b."""

    inputs: tf.Tensor
    output: tf.Tensor

    def factors(self, d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """X [rows, inputs] and d [rows, outputs] of the kernel's gradient x^T d; `d` is the output's gradient."""
        x, d = (tf.cast(tf.reshape(t, [-1, t.shape[-1]]), tf.float32) for t in (self.inputs, d))
        return x, d


def _factorable_layers(model: keras.Model) -> list[keras.layers.Dense]:
    """Dense layers whose kernel's gradient is the product of what a step computes anyway."""
    return [
        layer
        for layer in model._flatten_layers()
        if type(layer) is keras.layers.Dense
        and layer.activation is keras.activations.linear
        and layer.kernel_regularizer is None
        and layer.kernel.trainable
    ]


def _product_norm(x: tf.Tensor, d: tf.Tensor) -> tf.Tensor:
    """|x^T d|, from [rows, rows] products alone: its square is the sum of (x x^T) * (d d^T)."""
    square = tf.reduce_sum(tf.matmul(x, x, transpose_b=True) * tf.matmul(d, d, transpose_b=True))
    # Rounding may leave less than nothing of a product that is nearly zero.
    return tf.sqrt(tf.where(square < 0, tf.zeros_like(square), square))


def _clipped_factor(d: tf.Tensor, own_norm: tf.Tensor, clip: Clip | None, norm: tf.Tensor) -> tf.Tensor:
    """As `_clipped`, for the second factor of a gradient of norm `own_norm`."""
    if clip is None:
        return d
    limit, length = (clip.by_norm, own_norm) if clip.by_norm is not None else (clip.by_global_norm, norm)
    return d * (limit / tf.maximum(length, limit))


def _is_statistic(variable: Any) -> bool:
    return bool(keras.backend.is_float_dtype(variable.dtype))
