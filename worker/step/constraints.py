"""Translates Keras constraints to those that shards apply; any other is refused with the name of its variable."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from downpour.ps.policy import constraints
from downpour.ps.policy.constraints import Constraint

_KNOWN = "NonNeg, MaxNorm, UnitNorm and MinMaxNorm of keras.constraints"


def constraint_of(variable: keras.Variable) -> Constraint | None:
    """Returns the constraint of a trainable variable, with Keras's epsilon of this process.

    Raises:
        ValueError: It is of another class, subclasses included, since what those compute is not known, or has
            parameters or axes that the variable does not allow.
    """
    theirs, epsilon = variable.constraint, float(keras.config.epsilon())
    kind = type(theirs)
    try:
        if theirs is None:
            return None
        if kind is keras.constraints.NonNeg:
            return constraints.NonNeg()
        if kind is keras.constraints.MaxNorm:
            return constraints.MaxNorm(float(theirs.max_value), _axes(theirs, variable), epsilon)
        if kind is keras.constraints.UnitNorm:
            return constraints.UnitNorm(_axes(theirs, variable), epsilon)
        if kind is keras.constraints.MinMaxNorm:
            limits = float(theirs.min_value), float(theirs.max_value), float(theirs.rate)
            return constraints.MinMaxNorm(*limits, _axes(theirs, variable), epsilon)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{variable.path} {list(variable.shape)}: its constraint cannot be applied: {error}") from None
    name = getattr(theirs, "__qualname__", kind.__qualname__)
    raise ValueError(
        f"{variable.path} has the constraint {name}, which shards cannot apply; they know {_KNOWN} themselves, no "
        "subclasses: use one of those, or set constraint=None"
    )


def _axes(constraint: Any, variable: keras.Variable) -> tuple[int, ...]:
    """Returns the axes that norms are summed over, from 0, ascending; all axes if none is given, as in Keras."""
    rank, axis = len(variable.shape), constraint.axis
    given = list(range(rank)) if axis is None else [int(a) for a in np.atleast_1d(axis)]
    axes = sorted({a + rank if a < 0 else a for a in given})
    if len(axes) < len(given) or not axes or not 0 <= axes[0] <= axes[-1] < rank:
        raise ValueError(f"{type(constraint).__name__} over axis {axis} of a variable with {rank} axes")
    return tuple(axes)
