"""One training step as a pure function, compiled once: flat vectors in, flat gradients out.

    step(parameters, inputs, labels, sample_weight) -> (loss, gradients, differences)

The wire layout is the function's signature: vectors are split, reshaped and cast inside the graph, on the
accelerator if there is one, and gradients are cast and concatenated there. No Python loop runs over variables in
a step, and none of the model's variables is assigned. State that Keras does not count among them, such as that of a
recurrent layer, stays in its place from step to step, as in plain Keras.

Frozen variables are constants to the tape: their gradients, and everything that only those need, are not computed. Nor
are those of factored variables: for a product y = x W the step returns x and d = dloss/dy; the shard multiplies x^T d
(`factors`). A factored variable that is used anywhere else as well is refused; `examine` finds such variables before,
and their gradients are pushed dense. Where it may be sparse, the gradient of a variable that is only looked up in, an
embedding table, leaves as the rows that the batch names.

Where a layer computes in float16, the loss is scaled (`loss_scale`). A step that overflows is not pushed.

Batch norm: a worker pushes its moving statistics after the batch minus those it pulled, d * (b - m) with
d = 1 - momentum, the batch's own statistic b and the pulled m; the shard adds it. One worker alone thus gets the same
as plain Keras, to rounding. From k workers that pulled the same m, the shard gets m + d * sum(b_i - m); one worker that
processes the same batches in sequence gets m + d * sum((b_i - m) * (1 - d)^(k - i)). The two differ by at most
d^2 * k * (k - 1) / 2 * max|b_i - m|. If every difference is k pushes old, the statistics settle while
d < 2 * sin(pi / (4k + 2)) (Levin and May 1976): up to 156 pushes at Keras's momentum of 0.99, up to 15 at 0.9. So a
worker whose pushes are staler than 0.5 / d pushes a part of the difference (`damping`).

Shapes: B examples of a batch; for shard i, t_i trained elements, s_i of statistics, f_i frozen ones.
Threads: one at a time. TensorFlow is allowed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import ml_dtypes
import numpy as np
import tensorflow as tf
from absl import logging

from downpour.model import keras_private
from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.ps.layout import FACTORED, FROZEN, STATISTIC, TRAINED, Factored, Layout
from downpour.worker.exchange.exchange import Factors, Gradients, Parameters
from downpour.worker.exchange.rows import Rows, summed
from downpour.worker.step.assigned import Assigned
from downpour.worker.step.clip import Clip
from downpour.worker.step.clipping import clipped, clipped_factor, norms_of
from downpour.worker.step.damping import Damping
from downpour.worker.step.factors import columns, only_product, product_norm
from downpour.worker.step.flat import FlatVectors, rows_once
from downpour.worker.step.forward import Loss, Scope, forward, refuse_assigned
from downpour.worker.step.loss_scale import LossScale
from downpour.worker.step.sharing import array_of, specs_of, tensors_of
from downpour.worker.step.traced import Traced
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
        norms: Numbers of the trained variables in the layout, and the norms of their gradients, a tensor; see
            `gradient_norms`.
    """

    loss: float
    gradient_norm: float
    gradients: Gradients
    loss_scale: float | None = None
    norms: tuple[Sequence[int], Any] = ((), ())

    @property
    def is_finite(self) -> bool:
        """Whether loss and all gradients are finite."""
        return bool(np.isfinite(self.loss) and np.isfinite(self.gradient_norm))

    def gradient_norms(self) -> dict[int, float]:
        """Euclidean norm of each trained variable's gradient, before clipping, by its number in the layout."""
        numbers, values = self.norms
        return dict(zip(numbers, np.asarray(values).tolist(), strict=True))


class TrainingStep:
    """The compiled step of one model, loss and layout.

    Args:
        model: A built Keras model. Its own variables are not changed.
        loss: Loss of labels and outputs; None for that of the compiled model.
        layout: Layout of `variables_of(model)`. Variables of the model that are not in it are state of this object.
        wire: Codec of the trained and the frozen part, a value of `pb.Codec`.
        clip: Limits the gradient; None for none.
        sparse: Whether gradients of tables may be rows (`exchange.rows`); with `clip` they are dense.
        share: Part of the differences that assigned kernels push (`assigned`); 1 for one worker without overlap.

    Attributes:
        local: Values of the variables that are not in the layout, after the last step.
        scale: The loss scale; None without loss scaling. Both are the worker's: a process that computes for several
            sets them before each step.
    """

    def __init__(
        self,
        model: keras.Model,
        loss: Loss,
        layout: Layout,
        wire: pb.Codec = codec.FLOAT32,
        clip: Clip | None = None,
        *,
        sparse: bool = False,
        share: float = 1.0,
    ) -> None:
        self._model, self._clip = model, clip
        self._is_sparse = sparse and clip is None
        self._tables: list[int] = []  # variables whose gradients are rows; known when the step has been traced
        self._normed: list[int] = []  # trained variables, in the order of the norms; likewise
        self._wire = wire
        self._loss = loss
        self._layout = layout
        self._vectors = FlatVectors(layout)
        self._dtype, self._bits = _TENSOR_DTYPES[wire], codec.WIRE_DTYPES[wire]
        # The layout's variables, by number: the model's trainable ones, then others. The rest is local.
        self._variables = variables_in(model, layout)
        placed = {id(v) for v in self._variables}
        self._local_variables = [v for v in model.non_trainable_variables if id(v) not in placed]
        self._numbers = {
            kind: [i for i, v in enumerate(layout.variables) if v.kind == kind]
            for kind in (FACTORED, TRAINED, STATISTIC, FROZEN)
        }
        self._damping = Damping(model, layout, self._variables)
        self._assigned = Assigned(model, layout, self._variables, share)
        self._factored = [layout.factored(shard) for shard in range(layout.num_shards)]
        self.local: Tensors = [tf.convert_to_tensor(v) for v in self._local_variables]
        is_scaled = any(layer.compute_dtype == "float16" for layer in keras_private.layers_of(model))
        self.scale = LossScale() if is_scaled else None
        self._compiled = tf.function(self._step, reduce_retracing=True, autograph=False)
        self._traced = Traced(self._compiled)
        self._no_scale = tf.constant(1.0)

    def __call__(self, parameters: Parameters, inputs: Any, labels: Any, sample_weight: Any = None) -> StepResult:
        """Computes loss and gradients.

        Args:
            parameters: As pulled.
            inputs: x of a batch: a nest of arrays [B, ...].
            labels: y of the batch, likewise; None where the loss needs none.
            sample_weight: Weights of the examples, likewise; None for none.

        Raises:
            ValueError: The model does something with its variables that the layout does not allow for, found when the
                first batch is traced.
        """
        scale = self.scale.value if self.scale else None
        loss, norm, norms, gradients, rows, inputs, outputs, differences, local = self._traced(
            self._arguments(parameters), tensors_of((inputs, labels, sample_weight))
        )
        result = StepResult(
            float(loss),
            float(norm),
            Gradients(
                [self._sent(g) for g in gradients],
                self._damping.damped([array_of(d) for d in differences], parameters.staleness),
                list(parameters.versions),
                factors=self._factors(inputs, outputs),
                rows=_rows_of(self._tables, rows, self._layout, self._wire),
            ),
            scale,
            (self._normed, norms),
        )
        # An overflow must not stay in local state; random seeds advance.
        self.local = [
            after if result.is_finite or not after.dtype.is_floating else before
            for after, before in zip(local, self.local, strict=True)
        ]
        if self.scale:
            self.scale.update(result.is_finite)
        return result

    def rehearse(self, inputs: Any, labels: Any, sample_weight: Any = None) -> None:
        """Makes the first step with such a batch as fast as the next; raises as `__call__`, and changes nothing."""
        batch = tensors_of((inputs, labels, sample_weight))
        self._traced.rehearse(self._arguments(_zeros(self._layout, self._bits)), batch)

    def trace(self, inputs: Any, labels: Any, sample_weight: Any = None) -> None:
        """Traces the step for batches of these types without computing it; raises what model and loss raise."""
        batch = specs_of((inputs, labels, sample_weight))
        self._compiled.get_concrete_function(*self._arguments(_zeros(self._layout, self._bits)), *batch)

    def _arguments(self, parameters: Parameters) -> tuple[Any, ...]:
        """Returns the arguments of the compiled step that precede the batch."""
        trained = [tf.convert_to_tensor(vector.view(self._dtype)) for vector in parameters.trained]
        statistics = [tf.convert_to_tensor(vector) for vector in parameters.statistics]
        frozen = [tf.convert_to_tensor(vector.view(self._dtype)) for vector in parameters.frozen]
        scale = tf.constant(self.scale.value) if self.scale else self._no_scale
        return trained, statistics, frozen, self.local, scale

    def _sent(self, tensor: tf.Tensor) -> np.ndarray:
        """Returns a tensor in the wire dtype as an array of what is sent."""
        return array_of(tensor).view(self._bits)

    def _factors(self, inputs: Tensors, outputs: list[Tensors]) -> list[list[Factors]]:
        """Returns each shard's factors from x of every factored variable and the shards' columns of d."""
        x = dict(zip(self._numbers[FACTORED], map(self._sent, inputs), strict=True))
        return [
            [(x[group.ranges[0].variable], self._sent(d)) for group, d in zip(groups, of_shard, strict=True)]
            for groups, of_shard in zip(self._factored, outputs, strict=True)
        ]

    def _step(
        self,
        trained: Tensors,
        statistics: Tensors,
        frozen: Tensors,
        local: Tensors,
        scale: tf.Tensor,
        inputs: Any,
        labels: Any,
        sample_weight: Any,
    ) -> Any:
        """Computes what `__call__` returns: the function that is compiled."""
        values = self._vectors.split([tf.cast(t, tf.float32) for t in trained], FACTORED, TRAINED)
        values |= self._vectors.split(statistics, STATISTIC)
        values |= self._vectors.split([tf.cast(f, tf.float32) for f in frozen], FROZEN)
        ordered = self._assigned.values(values)
        watched = {i: [ordered[i]] for i in self._numbers[TRAINED]}
        kernels = [ordered[i] for i in self._numbers[FACTORED]]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([watched, kernels])
            scope = Scope(self._variables + self._local_variables, ordered + local, self._assigned.held(tape, watched))
            loss = forward(self._model, scope, self._loss, inputs, labels, sample_weight)
            scaled = loss * scale if self.scale else loss
        refuse_assigned(self._model, scope.assigned)
        names = [self._variables[i].path for i in self._numbers[FACTORED]]
        products = [only_product(name, kernel) for name, kernel in zip(names, kernels, strict=True)]
        outputs = [product.output for product in products]
        dense, factored = self._gradients(tape, scaled, scale, list(watched.values()), outputs)
        factors = [product.factors(d) for product, d in zip(products, factored, strict=True)]
        lengths = [product_norm(x, d) for x, d in factors]
        by_number = dict(zip(self._numbers[TRAINED], dense, strict=True))
        self._tables = [i for i, gradient in by_number.items() if isinstance(gradient, tf.IndexedSlices)]
        rows = [rows_once(by_number.pop(i)) for i in self._tables]
        self._normed = [*by_number, *self._tables, *self._numbers[FACTORED]]
        norm, norms = norms_of([*by_number.values(), *(values for _, values in rows), *lengths])
        limited = dict(zip(by_number, clipped(list(by_number.values()), self._clip, norm), strict=True))
        factors = [(x, clipped_factor(d, own, self._clip, norm)) for (x, d), own in zip(factors, lengths, strict=True)]
        return (
            loss,
            norm,
            norms,
            [tf.cast(g, self._dtype) for g in self._vectors.join(limited, TRAINED)],
            rows,
            [tf.cast(x, self._dtype) for x, _ in factors],
            _columns(
                dict(zip(self._numbers[FACTORED], (d for _, d in factors), strict=True)), self._factored, self._dtype
            ),
            self._vectors.join(self._assigned.differences(scope, ordered), STATISTIC),
            [scope.get_current_value(v) for v in self._local_variables],
        )

    def _gradients(
        self, tape: tf.GradientTape, loss: tf.Tensor, scale: tf.Tensor, dense: list[Tensors], outputs: Tensors
    ) -> tuple[Tensors, Tensors]:
        """Returns gradients of variables, summed over their values, and of factored ones' outputs; warns of none."""
        of_values, of_factored = tape.gradient(loss, [dense, outputs])
        found = [_sum(gradients) for gradients in of_values], of_factored
        names = [self._variables[i].path for kind in (TRAINED, FACTORED) for i in self._numbers[kind]]
        lost = [name for name, gradient in zip(names, [*found[0], *found[1]], strict=True) if gradient is None]
        if lost:
            logging.warning("no gradient reaches %s, so it is not trained, as in plain Keras", ", ".join(lost))
        of_dense, of_outputs = (
            [self._unscaled(g, of, scale) for g, of in zip(gs, ofs, strict=True)]
            for gs, ofs in zip(found, ([values[0] for values in dense], outputs), strict=True)
        )
        return of_dense, of_outputs

    def _unscaled(self, gradient: Any, of: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        """Returns a gradient without the loss scale, in float32 if there is a scale; zeros where none reaches `of`."""
        if gradient is None:
            return tf.zeros_like(of)
        if self._is_sparse and isinstance(gradient, tf.IndexedSlices):
            return tf.IndexedSlices(self._unscaled(gradient.values, of, scale), gradient.indices, gradient.dense_shape)
        dense = tf.convert_to_tensor(gradient)  # an embedding's gradient is given as slices
        return tf.cast(dense, tf.float32) / scale if self.scale else dense


def _zeros(layout: Layout, bits: np.dtype) -> Parameters:
    shards = range(layout.num_shards)
    return Parameters(
        [np.zeros(layout.num_trained(shard), bits) for shard in shards],
        [np.zeros(layout.num_pushed(shard) - layout.num_trained(shard), np.float32) for shard in shards],
        [0] * len(shards),
        [np.zeros(layout.size(shard) - layout.num_pushed(shard), bits) for shard in shards],
    )


def _columns(d: Mapping[int, tf.Tensor], factored: Sequence[Sequence[Factored]], dtype: np.dtype) -> list[Tensors]:
    """Returns each shard's columns of d of its factored variables, which are given by number, in the wire dtype."""
    return [[tf.cast(columns(d[group.ranges[0].variable], group), dtype) for group in groups] for groups in factored]


def _sum(gradients: Sequence[Any]) -> Any:
    """Returns the sum of the gradients that are not None; a single one as it is."""
    found = [gradient for gradient in gradients if gradient is not None]
    if len(found) < 2:
        return found[0] if found else None
    return tf.add_n([tf.convert_to_tensor(gradient) for gradient in found])


def _rows_of(tables: Sequence[int], rows: Sequence[Tensors], layout: Layout, wire: pb.Codec) -> dict[int, Rows]:
    """Returns the rows of each table, by its number in the layout, from their indices and values."""
    return {
        number: summed(layout.variables[number], array_of(indices), array_of(values), wire)
        for number, (indices, values) in zip(tables, rows, strict=True)
    }
