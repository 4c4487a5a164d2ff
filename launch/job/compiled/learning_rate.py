"""Converts the learning rate of a Keras optimizer to a schedule of the shards. Pure.

Keras evaluates schedules in float32, shards in float64, and then round: the rates differ by rounding only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from downpour.ps.policy.schedules import (
    Constant,
    CosineRestarts,
    Exponential,
    InverseTime,
    KerasCosine,
    Piecewise,
    Polynomial,
    Schedule,
    StaircaseExponential,
)

_Config = Mapping[str, Any]


def schedule_of(optimizer: Any) -> Schedule:
    """Converts an optimizer's learning rate: a number, or one of Keras' own schedules.

    Raises:
        ValueError: It is another function, or has numbers that shards do not accept.
    """
    given = optimizer._learning_rate  # the property `learning_rate` evaluates a schedule
    convert: Callable[[_Config], Schedule]
    name = type(given).__name__
    if isinstance(given, keras.Variable):
        name, convert, config = "learning_rate", _constant, {"learning_rate": decimal(given.numpy())}
    elif name in _SCHEDULES and type(given) is getattr(keras.optimizers.schedules, name):
        convert, config = _SCHEDULES[name], given.get_config()
    else:
        raise ValueError(
            f"the learning rate of {type(optimizer).__name__} is {_described(given)}; shards evaluate schedules, and "
            f"know a number and keras.optimizers.schedules' {', '.join(_SCHEDULES)} themselves: give one of these, or "
            "your own as a table of its values, PiecewiseConstantDecay(list(range(n - 1)), [float(mine(step)) for step "
            "in range(n)]) for n steps"
        )
    try:
        return convert(config)
    except ValueError as error:
        raise ValueError(f"{name} of the optimizer cannot be taken over: {error}") from error


def decimal(value: Any) -> float:
    """The shortest decimal number that is `value` in float32: 0.001, not 0.0010000000474974513."""
    return float(str(np.float32(value)))


def _constant(config: _Config) -> Schedule:
    return Constant(config["learning_rate"])


def _first_rate(config: _Config) -> float:
    value = config["initial_learning_rate"]
    if isinstance(value, int):
        raise ValueError(f"initial_learning_rate is {value}, with which Keras computes in int32; give {float(value)}")
    return float(value)


def _piecewise(config: _Config) -> Schedule:
    if any(isinstance(value, int) for value in config["values"]):
        raise ValueError(f"values are {config['values']}; give floats, with whole numbers Keras computes in int32")
    # A rate of Keras' ends with its boundary, one of ours before it.
    return Piecewise(tuple(int(b) + 1 for b in config["boundaries"]), tuple(map(float, config["values"])))


def _exponential(config: _Config) -> Schedule:
    rate, factor, every = _first_rate(config), float(config["decay_rate"]), float(config["decay_steps"])
    if not config["staircase"]:
        return Exponential(rate, factor, every)
    if every % 1:
        raise ValueError(f"decay_steps is {every} with staircase=True; give a whole number")
    return StaircaseExponential(rate, factor, int(every))


def _inverse_time(config: _Config) -> Schedule:
    factor, every = float(config["decay_rate"]), float(config["decay_steps"])
    return InverseTime(_first_rate(config), factor, every, bool(config["staircase"]))


def _polynomial(config: _Config) -> Schedule:
    return Polynomial(
        _first_rate(config),
        steps=float(config["decay_steps"]),
        end=float(config["end_learning_rate"]),
        power=float(config["power"]),
        cycle=bool(config["cycle"]),
    )


def _cosine(config: _Config) -> Schedule:
    first, steps, final = _first_rate(config), float(config["decay_steps"]), float(config["alpha"])
    if config["warmup_target"] is None:  # then Keras ignores `warmup_steps`
        return KerasCosine(first, steps, final)
    warmup_steps = config["warmup_steps"]
    if warmup_steps % 1:
        raise ValueError(f"warmup_steps is {warmup_steps}; give a whole number")
    return KerasCosine(float(config["warmup_target"]), steps, final, first, int(warmup_steps))


def _restarts(config: _Config) -> Schedule:
    return CosineRestarts(
        _first_rate(config),
        first_steps=float(config["first_decay_steps"]),
        length_factor=float(config["t_mul"]),
        rate_factor=float(config["m_mul"]),
        final=float(config["alpha"]),
    )


_SCHEDULES: dict[str, Callable[[_Config], Schedule]] = {
    "PiecewiseConstantDecay": _piecewise,
    "ExponentialDecay": _exponential,
    "InverseTimeDecay": _inverse_time,
    "PolynomialDecay": _polynomial,
    "CosineDecay": _cosine,
    "CosineDecayRestarts": _restarts,
}


def _described(given: Any) -> str:
    if isinstance(given, keras.optimizers.schedules.LearningRateSchedule):
        return f"a {type(given).__name__}, a schedule of your own"
    return f"a {type(given).__name__}" + (f" {given.__name__}" if hasattr(given, "__name__") else "")
