"""Gradient clipping on the worker, exact because the worker holds the whole gradient; `step` implements it.

A shard could not clip exactly: it receives only its own part of a gradient. No TensorFlow here.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Clip:
    """One of three limits, defined as in TensorFlow's functions of the same names.

    It applies to the gradient of each batch, in float32, before the cast to the wire dtype and before a cadence adds
    several up. The gradient norm that is reported and checked is the one before clipping.

    Attributes:
        by_value: Every element is limited to [-by_value, by_value].
        by_norm: Each variable's gradient is scaled down to this Euclidean norm, if it is longer.
        by_global_norm: All gradients are scaled by one factor, so that their common norm is at most this.
    """

    by_value: float | None = None
    by_norm: float | None = None
    by_global_norm: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        if len(given) != 1:
            raise ValueError(
                f"clip: {' and '.join(given) or 'nothing'} given; give exactly one of by_value, by_norm, by_global_norm"
            )
        for name, value in given.items():
            if not 0 < value < math.inf:
                raise ValueError(f"clip: {name} is {value}; give a number above 0")
