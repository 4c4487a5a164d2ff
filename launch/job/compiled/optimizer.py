"""Reads an optimizer of Keras, argument by argument. Pure."""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from downpour.ps.policy.averages import KerasPolyak
from downpour.ps.policy.rules import SGD, KerasAdagrad, KerasAdam, KerasMomentum, KerasRMSProp, Rule
from downpour.worker.step.clip import Clip

_Config = Mapping[str, Any]

# Arguments that every optimizer has; each is read by a function of this package, except `name`, which changes nothing.
_COMMON = {
    "name",
    "learning_rate",
    "weight_decay",
    "clipnorm",
    "global_clipnorm",
    "clipvalue",
    "use_ema",
    "ema_momentum",
    "ema_overwrite_frequency",
    "loss_scale_factor",
    "gradient_accumulation_steps",
}


@dataclass(frozen=True)
class LossScaling:
    """A factor of the loss by which gradients are divided again, for layers that compute in float16.

    Attributes:
        initial: The factor at first.
        growth_steps: The factor is doubled after so many finite steps in a row, and halved by each step that
            overflows, which is skipped (`keras.optimizers.LossScaleOptimizer`). 0 for a fixed factor.
    """

    initial: float
    growth_steps: int


@dataclass(frozen=True)
class _Known:
    """A supported optimizer: its own arguments, and the rule that they make."""

    arguments: tuple[str, ...]
    rule: Callable[..., Rule]


def _sgd(momentum: float, nesterov: bool) -> Rule:
    return KerasMomentum(float(momentum), bool(nesterov)) if momentum else SGD()


def _rmsprop(rho: float, momentum: float, epsilon: float, centered: bool) -> Rule:
    return KerasRMSProp(float(rho), float(momentum), float(epsilon), bool(centered))


def _adagrad(initial_accumulator_value: float, epsilon: float) -> Rule:
    return KerasAdagrad(float(initial_accumulator_value), float(epsilon))


def _adam(beta_1: float, beta_2: float, epsilon: float, amsgrad: bool) -> Rule:
    return KerasAdam(float(beta_1), float(beta_2), float(epsilon), bool(amsgrad))


_KNOWN = {
    "SGD": _Known(("momentum", "nesterov"), _sgd),
    "RMSprop": _Known(("rho", "momentum", "epsilon", "centered"), _rmsprop),
    "Adagrad": _Known(("initial_accumulator_value", "epsilon"), _adagrad),
    "Adam": _Known(("beta_1", "beta_2", "epsilon", "amsgrad"), _adam),
    "AdamW": _Known(("beta_1", "beta_2", "epsilon", "amsgrad"), _adam),  # its decay is that of every optimizer
}


def unwrapped(optimizer: Any) -> tuple[Any, LossScaling | None]:
    """Returns a supported optimizer, and the dynamic loss scale that it is wrapped in, if it is.

    Raises:
        ValueError: It is not supported, or its loss scale has changed.
    """
    if type(optimizer) is not keras.optimizers.LossScaleOptimizer:
        return _supported(optimizer), None
    inner = _supported(optimizer.inner_optimizer)
    if inner.loss_scale_factor is not None:
        raise ValueError(
            f"{inner.name} has loss_scale_factor={inner.loss_scale_factor} inside a LossScaleOptimizer, which scales "
            "the loss itself; leave one of them out"
        )
    scaling = LossScaling(float(optimizer.initial_scale), int(optimizer.dynamic_growth_steps))
    if optimizer.built and float(optimizer.dynamic_scale.numpy()) != scaling.initial:
        raise _used(optimizer, f"has changed its loss scale to {float(optimizer.dynamic_scale.numpy()):g}")
    return inner, scaling


def check_unused(optimizer: Any) -> None:
    """Raises `ValueError` for an optimizer that has made a step, whose state a job would not continue."""
    if steps := int(optimizer.iterations):
        raise _used(optimizer, f"has made {steps} steps")
    initial_accumulator = getattr(optimizer, "initial_accumulator_value", 0.0)
    for variable in optimizer.variables:
        if variable.name in ("iteration", "learning_rate"):
            continue
        is_accumulator = variable.name.endswith("_accumulator") and not variable.name.endswith("gradient_accumulator")
        if np.any(variable.numpy() != np.float32(initial_accumulator if is_accumulator else 0.0)):
            raise _used(optimizer, f"has a slot {variable.name} that is not as it starts")


def config_of(optimizer: Any) -> dict[str, Any]:
    """Returns all arguments of a supported optimizer by name.

    Raises:
        ValueError: It has arguments that this package does not read, of a newer Keras.
    """
    config: dict[str, Any] = optimizer.get_config()
    known = _COMMON.union(_KNOWN[type(optimizer).__name__].arguments)
    if config.keys() != known:
        raise ValueError(
            f"{type(optimizer).__name__} of Keras {keras.__version__} has other arguments than those known: "
            f"{', '.join(sorted(config.keys() ^ known))}; use a Keras of the versions in pyproject.toml"
        )
    return config


def rule_of(optimizer: Any, config: _Config) -> Rule:
    """Returns the rule.

    Raises:
        ValueError: A hyper-parameter is outside what shards accept.
    """
    known = _KNOWN[type(optimizer).__name__]
    try:
        return known.rule(*(config[name] for name in known.arguments))
    except ValueError as error:
        raise ValueError(f"{type(optimizer).__name__} cannot be taken over: {error}") from error


def weight_decay_of(optimizer: Any, config: _Config) -> float:
    """Returns the coefficient of the decoupled decay; raises `ValueError` if it is negative."""
    coefficient = float(config["weight_decay"] or 0.0)
    if not coefficient >= 0:
        raise ValueError(f"{type(optimizer).__name__}: weight_decay is {coefficient}; give 0 or more")
    return coefficient


def undecayed_of(optimizer: Any, config: _Config, variables: Sequence[Any]) -> tuple[str, ...]:
    """Returns one pattern for each variable that `exclude_from_weight_decay` names, if there is a decay."""
    if not config["weight_decay"]:
        return ()
    # Keras looks for its patterns in the names of TensorFlow's variables, not in the paths of its own.
    return tuple(glob.escape(v.path) for v in variables if not optimizer._use_weight_decay(v.value))


def clip_of(config: _Config) -> Clip | None:
    """Returns the limit of the gradient; Keras ignores limits that are not above 0."""
    names = {"by_norm": "clipnorm", "by_global_norm": "global_clipnorm", "by_value": "clipvalue"}
    given = {ours: float(config[theirs]) for ours, theirs in names.items() if config[theirs] and config[theirs] > 0}
    return Clip(**given) if given else None


def average_of(config: _Config, variables: Sequence[Any]) -> KerasPolyak | None:
    """Returns the average of `use_ema`.

    Raises:
        ValueError: It would be written over the parameters while these are trained, it is of parameters with
            constraints, or its momentum is 1.
    """
    if not config["use_ema"]:
        return None
    if config["ema_overwrite_frequency"]:
        raise ValueError(
            f"the optimizer has ema_overwrite_frequency={config['ema_overwrite_frequency']}; shards do not write the "
            "average over parameters that are trained: give None, and the average is assigned when training ends"
        )
    constrained = [v.path for v in variables if v.constraint is not None]
    if constrained:
        raise ValueError(
            f"the optimizer has use_ema=True and {constrained[0]} has a constraint; Keras averages parameters before "
            "they are projected, shards after it: leave one of them out"
        )
    try:
        return KerasPolyak(float(config["ema_momentum"]))
    except ValueError as error:
        raise ValueError(f"ema_momentum of the optimizer cannot be taken over: {error}") from error


def fixed_scale_of(config: _Config) -> LossScaling | None:
    """Returns the scale of `loss_scale_factor`; raises `ValueError` if it is not above 0."""
    factor = config["loss_scale_factor"]
    if factor is None:
        return None
    if not 0 < factor < float("inf"):
        raise ValueError(f"loss_scale_factor of the optimizer is {factor}; give a number above 0")
    return LossScaling(float(factor), 0)


def _supported(optimizer: Any) -> Any:
    kind = type(optimizer)
    if kind in (getattr(keras.optimizers, name) for name in _KNOWN):
        return optimizer
    bases = [base.__name__ for base in kind.__mro__[1:] if base.__name__ in _KNOWN]
    what = f", a subclass of {bases[0]}" if bases else ""
    raise ValueError(
        f"the optimizer is a {kind.__name__}{what}; shards run compiled rules for keras.optimizers' "
        f"{', '.join(_KNOWN)} themselves, each also in a LossScaleOptimizer: compile the model with one of these"
    )


def _used(optimizer: Any, how: str) -> ValueError:
    return ValueError(
        f"the optimizer {optimizer.name} {how}; a job starts with an optimizer state of its own: keep the weights, and "
        "compile the model again with a new optimizer, such as type(optimizer).from_config(optimizer.get_config())"
    )
