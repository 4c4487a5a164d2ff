"""Maps a Keras model's variables to those of a layout: names, shapes, kinds, initial values."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Collection, Mapping, Sequence

import keras
import numpy as np

from downpour.model import weights
from downpour.model.weights import ASSIGNED
from downpour.ps.checkpoint.manifest import Checkpoint
from downpour.ps.layout import FACTORED, FROZEN, STATISTIC, TRAINED, Layout, Rate, Variable
from downpour.ps.layout.cuts import may_be_factored
from downpour.ps.layout.patterns import matching
from downpour.worker.step.assigned import assigned_kernels, beside
from downpour.worker.step.constraints import constraint_of
from downpour.worker.step.examine import LOCAL, Examination, is_float, kinds_of
from downpour.worker.step.factors import factorable_layers


def variables_of(
    model: keras.Model,
    weight_decay: float = 0.0,
    undecayed: Sequence[str] = (),
    *,
    decay: str = "l2",
    rates: Sequence[Rate] = (),
    frozen: Sequence[str] = (),
    factored: Collection[str] = (),
    kinds: Mapping[str, str] | None = None,
    unreached: Collection[str] = (),
) -> list[Variable]:
    """Returns a model's variables for a layout: the trainable ones, then the other floating-point ones.

    Local variables, and those that are not floating-point (random seeds), are left out: the worker never sends them.

    Args:
        model: A built model.
        weight_decay: Weight decay of trained variables.
        undecayed: `fnmatch` patterns of names without weight decay.
        decay: Whether weight decay is "l2" (in the gradient) or "decoupled" (off the parameter).
        rates: Multipliers of the learning rate; where several match a variable, the last applies.
        frozen: `fnmatch` patterns of variables and statistics that do not change.
        factored: Names of variables whose gradients are pushed as factors; see `factored_names`.
        kinds: Kinds of variables that are not trained, from `worker.examine.kinds_of`; None for its default.
        unreached: Names of trainable variables that no gradient reaches, which are frozen.

    Raises:
        ValueError: A pattern of `rates` or `frozen` matches nothing, nothing is left to train, two variables have one
            name, shards cannot apply a constraint, or a kernel that its layer assigns has one or is decayed.
    """
    if kinds is None:
        kinds = kinds_of(model)
    others = [v for v in model.non_trainable_variables if is_float(v) and kinds[v.path] != LOCAL]
    _check_names([*model.trainable_variables, *others])
    trainable = {v.path: tuple(v.shape) for v in model.trainable_variables}
    fixed_shapes = {v.path: tuple(v.shape) for v in others}
    still = {name for pattern in frozen for name in matching("frozen", pattern, [*trainable, *fixed_shapes])}
    if trainable.keys() <= still:
        raise ValueError(f"frozen: {', '.join(frozen)} match every trainable variable; leave something to train")
    still |= set(unreached)
    if trainable.keys() <= still:
        raise ValueError(f"no gradient of the loss reaches {', '.join(sorted(trainable))}: nothing is left to train")
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

    assigned = [kernel.path for kernel in assigned_kernels(model) if kernel.path not in still]
    made = [
        *(fixed(n, shape, FROZEN) if n in still else trained(n, shape) for n, shape in trainable.items()),
        *(fixed(n, shape, kinds[n]) for n, shape in fixed_shapes.items()),
    ]
    for variable in made:
        if variable.name in assigned and (variable.constraint or variable.weight_decay or variable.decoupled_decay):
            raise ValueError(
                f"{variable.name} is divided by its largest singular value in each step, which shards cannot combine "
                "with a constraint or weight decay; set constraint=None, or name it in `undecayed`, as "
                "optimizer.exclude_from_weight_decay does"
            )
    return [*made, *(Variable(name + ASSIGNED, trainable[name], STATISTIC) for name in assigned)]


def statistics_of(model: keras.Model) -> list[keras.Variable]:
    """Returns the model's floating-point variables that are not trained, in the order of `variables_of`."""
    return [v for v in model.non_trainable_variables if is_float(v)]


def factored_names(model: keras.Model, batch_size: int, examined: Examination | None = None) -> set[str]:
    """Returns the paths of the kernels whose gradients take less than half the bytes as factors.

    Args:
        model: A built model.
        batch_size: Rows of a dense layer's input without `examined`.
        examined: Without it every kernel counts as used by its own layer alone; a step refuses one that is not.
    """
    names = set()
    assigned = {id(kernel) for kernel in assigned_kernels(model)}
    for kernel in (layer.kernel for layer in factorable_layers(model) if id(layer.kernel) not in assigned):
        rows = batch_size if examined is None else examined.rows.get(kernel.path, math.inf)
        inputs, outputs = kernel.shape
        if 2 * rows * (inputs + outputs) < inputs * outputs:
            names.add(kernel.path)
    return names


def variables_in(model: keras.Model, layout: Layout) -> list[keras.Variable]:
    """Returns the model's variables that are in a layout, in its order, which ends with those of `assigned`.

    If the layout has all of them, they are matched by order, since Keras names the variables of a model that is built
    twice in one process differently. If some are local, they are matched by name, or by order without those that are
    local by the type of their layer.

    Raises:
        ValueError: The layout is of another model.
    """
    variables = [*model.trainable_variables, *statistics_of(model)]
    names = [variable.name for variable in layout.variables if not variable.name.endswith(ASSIGNED)]
    if len(variables) == len(names):
        return variables
    by_name = {v.path: v for v in variables}
    if all(name in by_name for name in names):
        return [by_name[name] for name in names]
    kinds = kinds_of(model)
    placed = [v for v in variables if kinds.get(v.path) != LOCAL]
    if len(placed) != len(names):
        missing = next(name for name in names if name not in by_name)
        raise ValueError(f"the model {model.name!r} has no variable {missing}; give every layer in it a name")
    return placed


def values_in(model: keras.Model, saved: Checkpoint, average: bool = False) -> dict[str, np.ndarray]:
    """Returns the values of a checkpoint, or their average, by the paths that the variables have in this process.

    Keras may number the layers within own classes otherwise here than in the processes of the job.
    """
    paths = [variable.path for variable in variables_in(model, saved.layout)]
    return dict(zip(paths, weights.named(saved, average).values(), strict=True))


def initial_values(model: keras.Model, layout: Layout | None = None) -> list[np.ndarray]:
    """Returns the model's present values, in the order of the layout, or of `variables_of` without one."""
    variables = [*model.trainable_variables, *statistics_of(model)] if layout is None else variables_in(model, layout)
    assigned = assigned_kernels(model) if layout is None else [layout.variables[i] for i in beside(layout).values()]
    return [*(v.numpy() for v in variables), *(np.zeros(v.shape, np.float32) for v in assigned)]


def _check_names(variables: Sequence[keras.Variable]) -> None:
    first: dict[str, keras.Variable] = {}
    for variable in variables:
        other = first.setdefault(variable.path, variable)
        if other is not variable:
            raise ValueError(
                f"two variables are named {variable.path}, of shapes {list(other.shape)} and {list(variable.shape)}; "
                "give every layer within its layer or model, and every variable of a layer, its own name: "
                "Dense(8, name='hidden_2'), add_weight(..., name='scale')"
            )
