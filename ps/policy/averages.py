"""Averages of the parameters over versions, kept by the shards beside them. They are scored, never trained with.

After the push that makes version t of an element w (statistics included), its average moves by

    average += weight(t) * (w - average).

If w has a constraint, it is projected before. The average starts at the initial parameters. Pushes that overlap share
one t, so each of them moves it with that weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Average(Protocol):
    """A frozen dataclass that says how far an average moves."""

    def weight(self, version: int) -> float:
        """Of the parameters of this version, above 0; 1 makes the average equal to them."""
        ...


@dataclass(frozen=True)
class Polyak:
    """Exponential: weight(t) = 1 - decay. As `tf.train.ExponentialMovingAverage` and Keras's `use_ema`."""

    decay: float

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"average Polyak: decay is {self.decay}; give a number from 0 up to, not including, 1")

    def weight(self, version: int) -> float:
        """See `Average.weight`."""
        return 1 - self.decay


@dataclass(frozen=True)
class Mean:
    """Plain mean of the parameters of versions `start` to t (Polyak and Juditsky 1992); before, the parameters."""

    start: int = 0

    def __post_init__(self) -> None:
        if not (isinstance(self.start, int) and self.start >= 0):
            raise ValueError(f"average Mean: start is {self.start}; give a whole number of at least 0")

    def weight(self, version: int) -> float:
        """See `Average.weight`."""
        return 1 / (max(version - self.start, 0) + 1)


BY_NAME: dict[str, type] = {average.__name__: average for average in (Polyak, Mean)}
