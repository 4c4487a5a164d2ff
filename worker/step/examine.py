"""Finds what a model does to its variables in a training call, from one trace of it before training.

The trace is neither compiled nor run, and has no gradients; it takes about as long as building the model. It depends on
the model, the loss and the shapes of a batch alone, so every process of a job gets the same result.

Threads: one. TensorFlow is allowed here.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from downpour.model import keras_private
from downpour.ps.layout import FROZEN, STATISTIC
from downpour.ps.layout.patterns import matching
from downpour.worker.step.assigned import assigned_statistics
from downpour.worker.step.factors import factorable_layers, uses_of
from downpour.worker.step.forward import Loss, Scope, forward, refuse_assigned
from downpour.worker.step.sharing import specs_of

LOCAL = "local"  # never leaves the worker, so it is in no layout


@dataclass(frozen=True)
class Examination:
    """Result of one trace of a model.

    Attributes:
        assigned: Paths of the variables that a training call assigns; none of them is trained but for kernels of
            `assigned`.
        rows: For each dense layer's kernel that is used in one product only, the rows R of that product's input.
        unreached: Paths of the trained variables that no gradient reaches, as far as the outermost graph shows. Plain
            Keras leaves them as they are, weight decay and constraints included.
    """

    assigned: frozenset[str] = frozenset()
    rows: Mapping[str, int] = field(default_factory=dict)
    unreached: frozenset[str] = frozenset()


def examine(model: keras.Model, loss: Loss, batch: Sequence[Any]) -> Examination:
    """Traces the model's loss in training mode.

    Args:
        model: A built model.
        loss: Loss of labels and outputs; None for that of the compiled model.
        batch: A batch of arrays, `(x, y)` or `(x, y, sample_weight)`, of which only shapes and dtypes count.

    Raises:
        ValueError: The call assigns a variable that is trained, or one is of a kind that no rule updates; the model
            computes its loss or trains in its own way. Errors of the model's own code are raised unchanged.
    """
    _refuse_own_training(model, is_compiled=loss is None)
    for variable in model.trainable_variables:
        if getattr(variable, "overwrite_with_gradient", False):
            raise ValueError(
                f"{variable.path} is a scale of float8, which Keras overwrites with its gradient; use mixed_bfloat16"
            )
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    factorable = [layer.kernel for layer in factorable_layers(model)]
    assigned: list[keras.Variable] = []
    rows: dict[str, int] = {}
    unreached: list[str] = []
    trained = model.trainable_variables

    def trace(values: list[tf.Tensor], *batch: Any) -> None:
        scope = Scope(variables, values)
        kernels = {kernel.path: scope.get_current_value(kernel) for kernel in factorable}
        reached = _reached(forward(model, scope, loss, *batch))
        unreached[:] = [v.path for v, value in zip(trained, values, strict=False) if value.name not in reached]
        assigned[:] = scope.assigned
        products = {path: uses_of(kernel).only for path, kernel in kernels.items()}
        rows.update({path: product.inputs.shape[0] for path, product in products.items() if product})

    specs = [tf.TensorSpec(v.shape, v.dtype) for v in variables]
    tf.function(trace, autograph=False).get_concrete_function(specs, *specs_of(tuple(batch)))
    refuse_assigned(model, assigned)
    return Examination(frozenset(variable.path for variable in assigned), rows, frozenset(unreached))


def kinds_of(
    model: keras.Model,
    examined: Examination | None = None,
    *,
    statistics: Sequence[str] = (),
    local: Sequence[str] = (),
    frozen: Sequence[str] = (),
) -> dict[str, str]:
    """STATISTIC, FROZEN or LOCAL for each of the model's floating-point variables that are not trained, by path.

    The first that applies: FROZEN, LOCAL or STATISTIC if a pattern says so; LOCAL if it is of a `Normalization` layer,
    which computes with constants that it made when it was adapted, in every process; FROZEN if no training call assigns
    it; STATISTIC if it is the moving mean or variance of batch norm, or of SpectralNormalization. Variables that are
    not floating-point, random seeds mostly, are local and have no entry.

    Args:
        model: A built model.
        examined: What a training call does. None: it counts as assigning every variable, each of them additive.
        statistics: `fnmatch` patterns of variables whose differences add up.
        local: Patterns of variables that stay in each worker.
        frozen: Patterns of variables that do not change, trained ones among them; checked by `variables_of`.

    Raises:
        ValueError: A pattern of `statistics` or `local` matches nothing, both match a variable, or a training call
            assigns a variable that is neither batch norm's nor matched.
    """
    names = [v.path for v in model.non_trainable_variables if is_float(v)]
    added = {name for pattern in statistics for name in matching("statistics", pattern, names)}
    kept = {name for pattern in local for name in matching("local", pattern, names)}
    still = {name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in frozen)}
    if both := sorted(added & kept):
        raise ValueError(f"statistics and local both match {', '.join(both[:3])}; name it in one of them")
    adapted = {v.path for layer in _layers(model, keras.layers.Normalization) for v in layer.variables}
    moving = assigned_statistics(model) | {
        v.path
        for layer in _layers(model, keras.layers.BatchNormalization)
        for v in (layer.moving_mean, layer.moving_variance)
    }
    kinds: dict[str, str] = {}
    for name in names:
        if name in still:
            kinds[name] = FROZEN
        elif name in kept or (name in adapted and name not in added):
            kinds[name] = LOCAL
        elif name in added or examined is None:
            kinds[name] = STATISTIC
        elif name not in examined.assigned:
            kinds[name] = FROZEN
        elif name in moving:
            kinds[name] = STATISTIC
        else:
            raise ValueError(
                f"{name} is not trained, and a training call assigns it; say in the job what workers do with it: name "
                "it in `statistics` if the differences of all workers add up (a moving mean), in `local` if each "
                "worker keeps its own, or in `frozen` if it stays as it is"
            )
    return kinds


def _reached(loss: tf.Tensor) -> set[str]:
    """Names of the tensors from which a differentiable path leads to the loss.

    Inputs of a loop or a condition count as reached: their bodies are graphs of their own.
    """
    reached, waiting = {loss.name}, [loss.op]
    while waiting:
        op = waiting.pop()
        if op.type == "StopGradient":
            continue
        # Lists in which loops gather their outputs are of a variant type.
        new = [t for t in op.inputs if _is_differentiable(t.dtype) and t.name not in reached]
        reached.update(t.name for t in new)
        waiting += [t.op for t in new]
    return reached


def _is_differentiable(dtype: tf.DType) -> bool:
    return bool(dtype.is_floating or dtype.is_complex or dtype in (tf.variant, tf.resource))


def _refuse_own_training(model: keras.Model, *, is_compiled: bool) -> None:
    """Raises `ValueError` if the model's class overrides what `fit` does with a batch and workers do not call."""
    for name in ("train_step",) if is_compiled else ("train_step", "compute_loss"):
        if getattr(type(model), name) is not getattr(keras.Model, name):
            own = "the job's `loss` of the model's output, and what layers add with add_loss"
            called = "compute_loss" if is_compiled else own
            raise ValueError(
                f"{type(model).__name__} {model.name!r} has its own {name}, which workers do not call: they compute "
                f"{called}; express it by those and take {name} out"
            )


def is_float(variable: Any) -> bool:
    """Whether a variable is a floating-point one."""
    return bool(keras.backend.is_float_dtype(variable.dtype))


def _layers(model: keras.Model, kind: Any) -> list[Any]:
    return [layer for layer in keras_private.layers_of(model) if isinstance(layer, kind) and layer.built]
