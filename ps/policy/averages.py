"""Averages of the parameters over versions. Shards keep them beside the parameters; they are scored, never trained on.

After the push that makes version t of an element w (statistics included), its average moves by

    average += weight(t) * (w - average).

If w has a constraint, w is projected first. The average starts at the initial parameters. Overlapping pushes share
one t, and each of them moves the average with the weight of that t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Average(Protocol):
    """A frozen dataclass that defines how far an average moves."""

    def weight(self, version: int) -> float:
        """Weight of the parameters of this version, above 0; 1 makes the average equal to them."""
        ...


@dataclass(frozen=True)
class Polyak:
    """Exponential: weight(t) = 1 - decay, as in `tf.train.ExponentialMovingAverage`."""

    decay: float

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(
                f"average {type(self).__name__}: decay is {self.decay}; give a number from 0 up to, not including, 1"
            )

    def weight(self, version: int) -> float:
        """See `Average.weight`."""
        return 1 - self.decay


@dataclass(frozen=True)
class KerasPolyak(Polyak):
    """Keras's `use_ema`: as `Polyak`, but the average begins with version 1, so weight(1) = 1."""

    def weight(self, version: int) -> float:
        """See `Average.weight`."""
        return 1.0 if version <= 1 else 1 - self.decay


@dataclass(frozen=True)
class Mean:
    """Mean of the parameters of versions `start` to t (Polyak and Juditsky 1992); before `start`, those of t."""

    start: int = 0

    def __post_init__(self) -> None:
        if not (isinstance(self.start, int) and self.start >= 0):
            raise ValueError(f"average Mean: start is {self.start}; give a whole number of at least 0")

    def weight(self, version: int) -> float:
        """See `Average.weight`."""
        return 1 / (max(version - self.start, 0) + 1)


BY_NAME: dict[str, type] = {average.__name__: average for average in (Polyak, KerasPolyak, Mean)}
