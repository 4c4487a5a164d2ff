"""Update rules: what they are called, their hyper-parameters and their optimizer slots.

The arithmetic of each is one kernel in `downpour.ps.kernels`. Symbols: w parameter, g gradient plus
`weight_decay * w`, lr the rate of the schedule at the shard's version.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol


class Rule(Protocol):
    """A frozen dataclass of hyper-parameters. `slots` maps each slot's name to its initial value."""

    @property
    def slots(self) -> dict[str, float]:
        """Names of the vectors kept beside the parameters, each with the value it starts at."""
        ...


@dataclass(frozen=True)
class SGD:
    """w -= lr * g."""

    slots: ClassVar[dict[str, float]] = {}


@dataclass(frozen=True)
class Momentum:
    """TensorFlow's `ResourceApplyMomentum`: m = momentum * m + g; w -= lr * m."""

    momentum: float = 0.9
    slots: ClassVar[dict[str, float]] = {"momentum": 0.0}

    def __post_init__(self) -> None:
        _fraction("momentum", self.momentum)


@dataclass(frozen=True)
class RMSProp:
    """TensorFlow's `ResourceApplyRMSProp`, which trained the reference model; `ms` starts at one.

    ms += (g^2 - ms) * (1 - rho);  mom = momentum * mom + lr * g / sqrt(ms + epsilon);  w -= mom.
    """

    rho: float = 0.9
    momentum: float = 0.9
    epsilon: float = 1e-10
    slots: ClassVar[dict[str, float]] = {"ms": 1.0, "mom": 0.0}

    def __post_init__(self) -> None:
        _fraction("rho", self.rho)
        _fraction("momentum", self.momentum)
        _not_negative("epsilon", self.epsilon)


@dataclass(frozen=True)
class KerasRMSProp:
    """`keras.optimizers.RMSprop` of Keras 3; `ms` starts at zero.

    ms = rho * ms + (1 - rho) * g^2;  mom = momentum * mom + lr * g / sqrt(ms + epsilon);  w -= mom.
    """

    rho: float = 0.9
    momentum: float = 0.0
    epsilon: float = 1e-7
    slots: ClassVar[dict[str, float]] = {"ms": 0.0, "mom": 0.0}

    def __post_init__(self) -> None:
        _fraction("rho", self.rho)
        _fraction("momentum", self.momentum)
        _not_negative("epsilon", self.epsilon)


def _fraction(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"rule: {name} is {value}; give a number from 0 up to, not including, 1")


def _not_negative(name: str, value: float) -> None:
    if not value >= 0:
        raise ValueError(f"rule: {name} is {value}; give 0 or more")


BY_NAME: dict[str, type] = {rule.__name__: rule for rule in (SGD, Momentum, RMSProp, KerasRMSProp)}
