"""Constraints: projections of a variable right after each of its updates. Formulas and names are Keras 3's.

Symbols: w parameters, n the Euclidean norm of w over `axes`, which keep length 1. All arithmetic is in float32, in the
order of `keras.constraints`; only the squares of a norm are summed in float64.

As `keras.optimizers.Optimizer.apply` does, a shard applies decays and rule, then the constraint. Each gradient is
followed by its projection, also where several are applied in one pass. Initial values are not projected, as in Keras.

A shard averages projected parameters. Keras's `use_ema` averages them before the projection, so its average of NonNeg
weights can become negative. An average satisfies NonNeg and MaxNorm; under UnitNorm and MinMaxNorm its norms may be
smaller.

Pure; threads: any.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

_f = np.float32


class _Checked:
    """Refuses parameters for which the projection cannot be computed."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.name == "axes":
                accepted, description = _are_axes(value), "one axis or more, from 0, in ascending order"
            else:
                accepted, description = _is_number(value), "a finite number of at least 0"
            if not accepted:
                raise ValueError(f"{type(self).__name__}: {field.name} is {value!r}; give {description}")


@dataclass(frozen=True)
class NonNeg:
    """max(w, 0), element by element."""

    axes: ClassVar[tuple[int, ...]] = ()

    def project(self, w: np.ndarray) -> None:
        """Projects float32 parameters of any shape, in place."""
        np.maximum(w, _f(0), out=w)
        w += _f(0)  # turns -0 into 0; whether `maximum` does depends on the element's position


@dataclass(frozen=True)
class MaxNorm(_Checked):
    """w * (min(n, max_value) / (epsilon + n)).

    Attributes:
        max_value: Largest norm.
        axes: Axes of the variable that a norm is summed over.
        epsilon: Added to each norm that is divided by.
    """

    max_value: float
    axes: tuple[int, ...]
    epsilon: float = 1e-7

    def project(self, w: np.ndarray) -> None:
        """Projects float32 parameters in place; they may be a slice of the variable along axes not in `axes`."""
        with np.errstate(all="ignore"):  # overflow gives infinity, as in Keras
            norms = _norms(w, self.axes)
            w *= np.minimum(norms, _f(self.max_value)) / (_f(self.epsilon) + norms)


@dataclass(frozen=True)
class UnitNorm(_Checked):
    """w / (epsilon + n); see `MaxNorm` for the attributes."""

    axes: tuple[int, ...]
    epsilon: float = 1e-7

    def project(self, w: np.ndarray) -> None:
        """See `MaxNorm.project`."""
        with np.errstate(all="ignore"):
            w /= _f(self.epsilon) + _norms(w, self.axes)


@dataclass(frozen=True)
class MinMaxNorm(_Checked):
    """w * ((rate * min(max(n, min_value), max_value) + (1 - rate) * n) / (epsilon + n)).

    Attributes:
        min_value: Smallest norm.
        max_value: Largest norm.
        rate: Fraction of the distance to the nearest allowed norm that one update covers; at most 1.
        axes: See `MaxNorm`.
        epsilon: See `MaxNorm`.
    """

    min_value: float
    max_value: float
    rate: float
    axes: tuple[int, ...]
    epsilon: float = 1e-7

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_value > self.max_value or self.rate > 1:
            raise ValueError(f"{self}: give a min_value of at most max_value, and a rate of at most 1")

    def project(self, w: np.ndarray) -> None:
        """See `MaxNorm.project`."""
        with np.errstate(all="ignore"):
            norms = _norms(w, self.axes)
            clipped = np.clip(norms, _f(self.min_value), _f(self.max_value))
            desired = _f(self.rate) * clipped + _f(1 - self.rate) * norms
            w *= desired / (_f(self.epsilon) + norms)


Constraint = NonNeg | MaxNorm | UnitNorm | MinMaxNorm
BY_NAME: dict[str, type] = {kind.__name__: kind for kind in (NonNeg, MaxNorm, UnitNorm, MinMaxNorm)}


def canonical(constraint: Constraint) -> list[Any]:
    """Returns name and parameters as JSON values."""
    return [type(constraint).__name__, *map(_plain, dataclasses.astuple(constraint))]


def from_canonical(name: str, *parameters: Any) -> Constraint:
    """The inverse of `canonical`.

    Raises:
        KeyError: The name is unknown.
        TypeError: The parameters have another number or type.
        ValueError: The constraint refuses the parameters.
    """
    values = [tuple(value) if isinstance(value, list) else value for value in parameters]
    constraint: Constraint = BY_NAME[name](*values)
    return constraint


def _norms(w: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    # Summed in float64, so that norms are almost always bit-identical however the variable is cut along other axes.
    sums = np.square(w).sum(axis=axes, dtype=np.float64, keepdims=True)
    norms: np.ndarray = np.sqrt(sums.astype(np.float32))
    return norms


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _are_axes(axes: Sequence[int]) -> bool:
    return len(axes) > 0 and all(type(a) is int and a >= 0 for a in axes) and list(axes) == sorted(set(axes))
