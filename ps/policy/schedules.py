"""Learning-rate schedules. A shard evaluates its schedule at its own version; rates are never sent. Pure.

Every schedule may be preceded by a linear warm-up, after which it starts at step 0:

    rate(v) = schedule(v - warmup_steps)                            from version `warmup_steps` on,
    rate(v) = schedule(0) * (v + 1) / (warmup_steps + 1)            before, so no push has rate 0.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Protocol


class Schedule(Protocol):
    """A learning rate as a function of the version (pushes applied so far)."""

    def rate(self, version: int) -> float:
        """The rate for the push that turns `version` into `version + 1`."""
        ...


class _Warmed:
    """Adds the warm-up to a schedule, and checks its values."""

    warmup_steps: int

    def __post_init__(self) -> None:
        if not (isinstance(self.warmup_steps, int) and self.warmup_steps >= 0):
            raise self._refusal("warmup_steps", "a whole number of at least 0")
        self._check()

    def rate(self, version: int) -> float:
        """See `Schedule.rate`."""
        if version < self.warmup_steps:
            return self._after_warmup(0) * (version + 1) / (self.warmup_steps + 1)
        return self._after_warmup(version - self.warmup_steps)

    def _after_warmup(self, step: int) -> float:
        raise NotImplementedError

    def _check(self) -> None:
        raise NotImplementedError

    def _check_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not (_is_number(value) and 0 < value < math.inf):
                raise self._refusal(name, "a number above 0")

    def _check_steps(self, name: str) -> None:
        value = getattr(self, name)
        if not (_is_whole(value) and value >= 1):
            raise self._refusal(name, "a whole number of at least 1")

    def _refusal(self, name: str, accepted: str) -> ValueError:
        return ValueError(f"schedule {type(self).__name__}: {name} is {getattr(self, name)!r}; give {accepted}")


@dataclass(frozen=True)
class Constant(_Warmed):
    """schedule(s) = learning_rate."""

    learning_rate: float
    warmup_steps: int = 0

    def _check(self) -> None:
        self._check_positive("learning_rate")

    def _after_warmup(self, step: int) -> float:
        return self.learning_rate


@dataclass(frozen=True)
class StaircaseExponential(_Warmed):
    """schedule(s) = learning_rate * factor ** floor(s / every).

    Sun et al. 2017, section 4.1: learning_rate 1e-3, factor 0.9, every 3 M steps.
    """

    learning_rate: float
    factor: float
    every: int
    warmup_steps: int = 0

    def _check(self) -> None:
        self._check_positive("learning_rate", "factor")
        self._check_steps("every")

    def _after_warmup(self, step: int) -> float:
        return self.learning_rate * self.factor ** (step // int(self.every))


@dataclass(frozen=True)
class Piecewise(_Warmed):
    """schedule(s) = rates[i], where i is the number of boundaries that are at most s.

    So rates[i] begins at step boundaries[i - 1]; with Keras's `PiecewiseConstantDecay` it begins one step later.
    """

    boundaries: tuple[int, ...]
    rates: tuple[float, ...]
    warmup_steps: int = 0

    def _check(self) -> None:
        steps = (0, *self.boundaries)
        if any(not _is_whole(b) for b in steps) or any(a >= b for a, b in itertools.pairwise(steps)):
            raise self._refusal("boundaries", "whole numbers above 0 in ascending order")
        if len(self.rates) != len(self.boundaries) + 1:
            raise self._refusal("rates", f"{len(self.boundaries) + 1} of them, one more than boundaries")
        if any(not (_is_number(rate) and 0 < rate < math.inf) for rate in self.rates):
            raise self._refusal("rates", "numbers above 0")

    def _after_warmup(self, step: int) -> float:
        return self.rates[sum(boundary <= step for boundary in self.boundaries)]


@dataclass(frozen=True)
class Cosine(_Warmed):
    """schedule(s) = learning_rate * (final + (1 - final) * (1 + cos(pi * s / steps)) / 2), constant from `steps` on.

    Keras's `CosineDecay`, whose `alpha` is `final`: the fraction of the rate that is left at the end.
    """

    learning_rate: float
    steps: int
    final: float = 0.0
    warmup_steps: int = 0

    def _check(self) -> None:
        self._check_positive("learning_rate")
        self._check_steps("steps")
        if not (_is_number(self.final) and 0 <= self.final <= 1):
            raise self._refusal("final", "a fraction from 0 to 1")

    def _after_warmup(self, step: int) -> float:
        cosine = math.cos(math.pi * min(step, self.steps) / self.steps)
        return self.learning_rate * (self.final + (1 - self.final) * (1 + cosine) / 2)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    """Also for a float, such as 3e6."""
    return _is_number(value) and float(value).is_integer()


BY_NAME: dict[str, type] = {
    schedule.__name__: schedule for schedule in (Constant, StaircaseExponential, Piecewise, Cosine)
}
