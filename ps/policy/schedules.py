"""Learning-rate schedules. A shard evaluates its schedule at its own version; rates are never sent. Pure.

Every schedule may be preceded by a linear warm-up, after which it starts at step 0:

    rate(v) = schedule(v - warmup_steps)                            from version `warmup_steps` on,
    rate(v) = schedule(0) * (v + 1) / (warmup_steps + 1)            before, so no push has rate 0.
"""

from __future__ import annotations

import bisect
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

    def _check_not_negative(self, name: str) -> None:
        value = getattr(self, name)
        if not (_is_number(value) and 0 <= value < math.inf):
            raise self._refusal(name, "0 or a number above it")

    def _check_fraction(self, name: str) -> None:
        value = getattr(self, name)
        if not (_is_number(value) and 0 <= value <= 1):
            raise self._refusal(name, "a fraction from 0 to 1")

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
        return self.rates[bisect.bisect_right(self.boundaries, step)]


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
        self._check_fraction("final")

    def _after_warmup(self, step: int) -> float:
        cosine = math.cos(math.pi * min(step, self.steps) / self.steps)
        return self.learning_rate * (self.final + (1 - self.final) * (1 + cosine) / 2)


@dataclass(frozen=True)
class KerasCosine(_Warmed):
    """Keras's `CosineDecay` with its own warm-up: linear from `start` to `learning_rate`, then as `Cosine`.

    rate(v) = start + (learning_rate - start) * v / warmup_steps before `warmup_steps`, so the first push has rate
    `start`, which may be 0. `learning_rate` is Keras's `warmup_target`; `steps` need not be whole.
    """

    learning_rate: float
    steps: float
    final: float = 0.0
    start: float = 0.0
    warmup_steps: int = 0

    def _check(self) -> None:
        self._check_positive("learning_rate", "steps")
        self._check_not_negative("start")
        self._check_fraction("final")

    def rate(self, version: int) -> float:
        """See `Schedule.rate`."""
        if version < self.warmup_steps:
            return self.start + (self.learning_rate - self.start) * version / self.warmup_steps
        return self._after_warmup(version - self.warmup_steps)

    def _after_warmup(self, step: int) -> float:
        return self.learning_rate * _cosine(min(step / self.steps, 1.0), self.final)


@dataclass(frozen=True)
class CosineRestarts(_Warmed):
    """Keras's `CosineDecayRestarts` (Loshchilov and Hutter 2016): periods of cosine decay.

    Period i has first_steps * length_factor ** i steps. With p, the part of it that has passed, schedule(s) =
    learning_rate * (final + (1 - final) * rate_factor ** i * (1 + cos(pi * p)) / 2).

    Keras finds i by logarithms in float32, whose rounding can move a restart by one step (length_factor 1.2); here
    it is exact.
    """

    learning_rate: float
    first_steps: float
    length_factor: float = 2.0
    rate_factor: float = 1.0
    final: float = 0.0
    warmup_steps: int = 0

    def _check(self) -> None:
        self._check_positive("learning_rate", "first_steps", "rate_factor")
        if not (_is_number(self.length_factor) and 1 <= self.length_factor < math.inf):
            raise self._refusal("length_factor", "a number of at least 1")
        self._check_fraction("final")

    def _after_warmup(self, step: int) -> float:
        if self.length_factor == 1:
            period, passed = divmod(step / self.first_steps, 1)
        else:
            period, start, length = 0, 0.0, float(self.first_steps)
            while step >= start + length:
                start += length
                length *= self.length_factor
                period += 1
            passed = (step - start) / length
        return self.learning_rate * _cosine(passed, self.final, self.rate_factor**period)


@dataclass(frozen=True)
class Exponential(_Warmed):
    """schedule(s) = learning_rate * factor ** (s / every): Keras's `ExponentialDecay` without `staircase`."""

    learning_rate: float
    factor: float
    every: float
    warmup_steps: int = 0

    def _check(self) -> None:
        self._check_positive("learning_rate", "factor", "every")

    def _after_warmup(self, step: int) -> float:
        return self.learning_rate * math.pow(self.factor, step / self.every)


@dataclass(frozen=True)
class InverseTime(_Warmed):
    """schedule(s) = learning_rate / (1 + factor * s / every), with `staircase` floor(s / every).

    Keras's `InverseTimeDecay`.
    """

    learning_rate: float
    factor: float
    every: float
    staircase: bool = False
    warmup_steps: int = 0

    def _check(self) -> None:
        self._check_positive("learning_rate", "every")
        self._check_not_negative("factor")
        if not isinstance(self.staircase, bool):
            raise self._refusal("staircase", "True or False")

    def _after_warmup(self, step: int) -> float:
        passed = step // self.every if self.staircase else step / self.every
        return self.learning_rate / (1 + self.factor * passed)


@dataclass(frozen=True)
class Polynomial(_Warmed):
    """schedule(s) = end + (learning_rate - end) * (1 - s / steps) ** power, constant from `steps` on.

    With `cycle`, `steps` grows to its next multiple at or above s instead. Keras's `PolynomialDecay`.
    """

    learning_rate: float
    steps: float
    end: float = 1e-4
    power: float = 1.0
    cycle: bool = False
    warmup_steps: int = 0

    def _check(self) -> None:
        self._check_positive("learning_rate", "steps", "power")
        self._check_not_negative("end")
        if not isinstance(self.cycle, bool):
            raise self._refusal("cycle", "True or False")

    def _after_warmup(self, step: int) -> float:
        cycles = max(math.ceil(step / self.steps), 1) if self.cycle else 1
        passed = min(step / (self.steps * cycles), 1.0)
        return self.end + (self.learning_rate - self.end) * math.pow(1 - passed, self.power)


def _cosine(passed: float, final: float, height: float = 1.0) -> float:
    """A cosine's fall from `height` to 0 at the part `passed` of its length, on top of `final`."""
    return final + (1 - final) * height * (1 + math.cos(math.pi * passed)) / 2


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    """Also for a float, such as 3e6."""
    return _is_number(value) and float(value).is_integer()


BY_NAME: dict[str, type] = {
    schedule.__name__: schedule
    for schedule in (
        Constant,
        StaircaseExponential,
        Exponential,
        InverseTime,
        Piecewise,
        Polynomial,
        Cosine,
        KerasCosine,
        CosineRestarts,
    )
}
