"""Treatments of staleness: the number s of updates between a gradient's base version and the shard's version. Pure.

| treatment | effect on the gradient g of a push that begins with staleness s |
|---|---|
| `Keep` | applied as it is |
| `Divide` | its rate is divided by max(s, 1) (Zhang et al. 2016, arXiv 1511.05950) |
| `Compensate(strength)` | g + strength * g * g * (w_now - w_then) (DC-ASGD: Zheng et al. 2017, arXiv 1609.08326) |
| `Drop(limit)` | not applied, but counted, if s > limit |

`Compensate` needs w_then: the worker keeps the parameters it pulled and sends them with the gradient, in the same
codec, so a push has twice the size. The correction is only as precise as the codec: bfloat16 rounds w_then to 8 bits,
and the rounding counts as movement; use it with float32. Differences of statistics are added unchanged, unless dropped.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Keep:
    """Applies every gradient as it is."""


@dataclass(frozen=True)
class Divide:
    """Divides the rate by the staleness."""


@dataclass(frozen=True)
class Compensate:
    """Corrects the gradient to first order for how far the parameters have moved."""

    strength: float

    def __post_init__(self) -> None:
        if not self.strength > 0:
            raise ValueError(f"staleness: strength is {self.strength}; give a number above 0")


@dataclass(frozen=True)
class Drop:
    """Drops gradients whose staleness is above `limit`."""

    limit: int

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ValueError(f"staleness: limit is {self.limit}; give 0 or more updates")


Treatment = Keep | Divide | Compensate | Drop
BY_NAME: dict[str, type] = {kind.__name__: kind for kind in (Keep, Divide, Compensate, Drop)}


def rate_factor(treatment: Treatment, staleness: int) -> float:
    """Returns the factor of the learning rate."""
    return 1 / max(staleness, 1) if isinstance(treatment, Divide) else 1.0


def drops(treatment: Treatment, staleness: int) -> bool:
    """Whether the gradient is dropped."""
    return isinstance(treatment, Drop) and staleness > treatment.limit
