"""Learning-rate schedules. A shard reads its rate at its own version; nobody sends rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """A learning rate as a function of the version (pushes applied so far)."""

    def rate(self, version: int) -> float:
        """The rate for the push that turns `version` into `version + 1`."""
        ...


@dataclass(frozen=True)
class Constant:
    """rate(v) = learning_rate."""

    learning_rate: float

    def __post_init__(self) -> None:
        _positive("learning_rate", self.learning_rate)

    def rate(self, version: int) -> float:
        """See `Schedule.rate`."""
        return self.learning_rate


@dataclass(frozen=True)
class StaircaseExponential:
    """rate(v) = learning_rate * factor ** floor(v / every).

    Sun et al. 2017, section 4.1: learning_rate 1e-3, factor 0.9, every 3 M steps.
    """

    learning_rate: float
    factor: float
    every: int

    def __post_init__(self) -> None:
        _positive("learning_rate", self.learning_rate)
        _positive("factor", self.factor)
        _positive("every", self.every)

    def rate(self, version: int) -> float:
        """See `Schedule.rate`."""
        return self.learning_rate * self.factor ** (version // int(self.every))


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"schedule: {name} is {value}; give a number above 0")


BY_NAME: dict[str, type] = {schedule.__name__: schedule for schedule in (Constant, StaircaseExponential)}
