"""Update rules: their names, hyper-parameters and optimizer slots. Pure.

The arithmetic of each is one loop in `downpour.ps.apply.loops`. Symbols: w parameter, g gradient, lr the rate of the
schedule at the shard's version times the range's multiplier, t the number of the push, from 1. Every rule is
preceded by the range's weight decay: w -= lr * decoupled_decay * w, then g += weight_decay * w.

Where TensorFlow and Keras 3 differ, both forms are here, by their names: `Momentum` and `KerasMomentum`, and so on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol


class Rule(Protocol):
    """A frozen dataclass of hyper-parameters."""

    @property
    def slots(self) -> dict[str, float]:
        """Names of the vectors kept beside the parameters, each with the value it starts at."""
        ...


_Check = tuple[Callable[[Any], bool], str]  # whether a value is accepted; the accepted values in words

_IS_FRACTION: _Check = (lambda v: _is_number(v) and 0 <= v < 1, "a number from 0 up to, not including, 1")
_IS_POSITIVE: _Check = (lambda v: _is_number(v) and 0 < v < math.inf, "a number above 0")
_IS_NOT_NEGATIVE: _Check = (lambda v: _is_number(v) and 0 <= v < math.inf, "0 or a number above it")
_IS_FLAG: _Check = (lambda v: isinstance(v, bool), "True or False")

# A hyper-parameter has the same meaning and accepts the same values in every rule that has it.
_ACCEPTED = {
    "momentum": _IS_FRACTION,
    "rho": _IS_FRACTION,
    "beta_1": _IS_FRACTION,
    "beta_2": _IS_FRACTION,
    "epsilon": _IS_POSITIVE,  # slots may be zero, and a NaN from 0 / 0 would stay in the parameters
    "initial_accumulator": _IS_POSITIVE,
    "weight_decay": _IS_NOT_NEGATIVE,
    "nesterov": _IS_FLAG,
    "centered": _IS_FLAG,
    "amsgrad": _IS_FLAG,
}


class _Checked:
    """Refuses hyper-parameters that `_ACCEPTED` excludes."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            accepts, description = _ACCEPTED[field.name]
            if not accepts(value):
                raise ValueError(f"rule {type(self).__name__}: {field.name} is {value!r}; give {description}")


@dataclass(frozen=True)
class SGD(_Checked):
    """w -= lr * g."""

    @property
    def slots(self) -> dict[str, float]:
        """See `Rule.slots`."""
        return {}


@dataclass(frozen=True)
class Momentum(_Checked):
    """TensorFlow's `ResourceApplyMomentum`: the rate stays outside the accumulator.

    m = momentum * m + g;  w -= lr * m, with `nesterov` w -= lr * (g + momentum * m).

    With `nesterov`, and pushes that carry pseudo-gradients (parameters before minus parameters after a worker's local
    steps), it is the outer rule of DiLoCo (Douillard et al. 2023, arXiv 2311.08105: rate 0.7, momentum 0.9).
    """

    momentum: float = 0.9
    nesterov: bool = False

    @property
    def slots(self) -> dict[str, float]:
        """See `Rule.slots`; without momentum the rule is `SGD`."""
        return {"momentum": 0.0} if self.momentum else {}


@dataclass(frozen=True)
class KerasMomentum(_Checked):
    """`keras.optimizers.SGD` of Keras 3: the rate goes into the accumulator, so a falling rate acts later.

    m = momentum * m - lr * g;  w += m, with `nesterov` w += momentum * m - lr * g.
    """

    momentum: float = 0.9
    nesterov: bool = False

    @property
    def slots(self) -> dict[str, float]:
        """See `Rule.slots`; without momentum the rule is `SGD`."""
        return {"momentum": 0.0} if self.momentum else {}


@dataclass(frozen=True)
class RMSProp(_Checked):
    """TensorFlow's `ResourceApplyRMSProp`, which trained the reference model; `ms` starts at one.

    ms += (g^2 - ms) * (1 - rho);  mom = momentum * mom + lr * g / sqrt(ms + epsilon);  w -= mom.

    With `centered` (`ResourceApplyCenteredRMSProp`) also mg += (g - mg) * (1 - rho), and the root is of
    ms - mg^2 + epsilon. Where a gradient hardly changes, rounding can make that negative and the parameter NaN, in
    TensorFlow as here: give an epsilon above g^2 * 1e-7.
    """

    rho: float = 0.9
    momentum: float = 0.9
    epsilon: float = 1e-10
    centered: bool = False

    @property
    def slots(self) -> dict[str, float]:
        """See `Rule.slots`."""
        return _rmsprop_slots(1.0, self.centered, self.momentum)


@dataclass(frozen=True)
class KerasRMSProp(_Checked):
    """`keras.optimizers.RMSprop` of Keras 3; `ms` starts at zero.

    ms = rho * ms + (1 - rho) * g^2;  mom = momentum * mom + lr * g / sqrt(ms + epsilon);  w -= mom.

    With `centered` also mg = rho * mg + (1 - rho) * g, and the root is of ms - mg^2 + epsilon; see `RMSProp`.
    """

    rho: float = 0.9
    momentum: float = 0.0
    epsilon: float = 1e-7
    centered: bool = False

    @property
    def slots(self) -> dict[str, float]:
        """See `Rule.slots`."""
        return _rmsprop_slots(0.0, self.centered, self.momentum)


@dataclass(frozen=True)
class AdagradV1(_Checked):
    """TensorFlow's `ResourceApplyAdagrad`, without epsilon: a += g^2;  w -= lr * g / sqrt(a)."""

    initial_accumulator: float = 0.1

    @property
    def slots(self) -> dict[str, float]:
        """See `Rule.slots`."""
        return {"accumulator": self.initial_accumulator}


@dataclass(frozen=True)
class AdagradV2(_Checked):
    """TensorFlow's `ResourceApplyAdagradV2`, epsilon outside the root: a += g^2;  w -= lr * g / (sqrt(a) + epsilon)."""

    initial_accumulator: float = 0.1
    epsilon: float = 1e-7

    @property
    def slots(self) -> dict[str, float]:
        """See `Rule.slots`."""
        return {"accumulator": self.initial_accumulator}


@dataclass(frozen=True)
class KerasAdagrad(_Checked):
    """`keras.optimizers.Adagrad` of Keras 3, epsilon inside the root: a += g^2;  w -= lr * g / sqrt(a + epsilon)."""

    initial_accumulator: float = 0.1
    epsilon: float = 1e-7

    @property
    def slots(self) -> dict[str, float]:
        """See `Rule.slots`."""
        return {"accumulator": self.initial_accumulator}


@dataclass(frozen=True)
class Adam(_Checked):
    """TensorFlow's `ResourceApplyAdam` without Nesterov; Kingma and Ba 2015 with their "epsilon hat".

    alpha = lr * sqrt(1 - beta_2^t) / (1 - beta_1^t);  m += (g - m) * (1 - beta_1);  v += (g^2 - v) * (1 - beta_2);
    w -= alpha * m / (sqrt(v) + epsilon).

    It differs from `KerasAdam` in the last bit of 1 - beta (subtracted in float32) and in its default epsilon.
    """

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8

    @property
    def slots(self) -> dict[str, float]:
        """See `Rule.slots`."""
        return {"m": 0.0, "v": 0.0}


@dataclass(frozen=True)
class KerasAdam(_Checked):
    """`keras.optimizers.Adam` of Keras 3: as `Adam`, 1 - beta subtracted in float64.

    With `amsgrad` the root is of v_hat = max(v_hat, v).
    """

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7
    amsgrad: bool = False

    @property
    def slots(self) -> dict[str, float]:
        """See `Rule.slots`."""
        return {"m": 0.0, "v": 0.0} | ({"v_hat": 0.0} if self.amsgrad else {})


@dataclass(frozen=True)
class AdamW(KerasAdam):
    """`keras.optimizers.AdamW` of Keras 3: w -= w * weight_decay * lr, then `KerasAdam`.

    Its `weight_decay` acts on every trained range, on top of the range's own. To exclude biases and batch norm, use
    `KerasAdam` and a job's `decay="decoupled"`, which is the same otherwise.
    """

    weight_decay: float = 0.004


def momentum_of(rule: Rule) -> float:
    """The factor by which a rule's momentum decays from one push to the next; 0 for a rule without momentum."""
    return float(getattr(rule, "beta_1", getattr(rule, "momentum", 0.0)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rmsprop_slots(ms: float, centered: bool, momentum: float) -> dict[str, float]:
    return {"ms": ms} | ({"mg": 0.0} if centered else {}) | ({"mom": 0.0} if momentum else {})


BY_NAME: dict[str, type] = {
    rule.__name__: rule
    for rule in (
        SGD,
        Momentum,
        KerasMomentum,
        RMSProp,
        KerasRMSProp,
        AdagradV1,
        AdagradV2,
        KerasAdagrad,
        Adam,
        KerasAdam,
        AdamW,
    )
}
