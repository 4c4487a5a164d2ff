"""Epochs, steps and batches: pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Epochs:
    """Which global steps make an epoch. Steps and epochs count from 0.

    Attributes:
        num_positions: Positions of an epoch (`num_records` of the data).
        positions_in_step: Positions that a global step takes: those of a batch, times the batches of a step.
    """

    num_positions: int
    positions_in_step: int

    def of(self, step: int) -> int:
        """The epoch in which a step begins."""
        return step * self.positions_in_step // self.num_positions

    def end(self, epoch: int) -> int:
        """Number of steps that are done when an epoch ends: the first step of the next one."""
        return -(-(epoch + 1) * self.num_positions // self.positions_in_step)


ENDLESS = Epochs(1 << 62, 1)


def num_steps(epochs: float, num_positions: int, positions_in_batch: int) -> int:
    """Steps of all workers together until `epochs` passes over the data are done: their batches, rounded up.

    Batches run across epochs, so an epoch that is no multiple of a batch costs no short one: 2 epochs of 100 examples
    in batches of 64 are 4 steps, where Keras' `fit` makes 2 a pass, also 4; 3 epochs are 5, where `fit` makes 6.

    Args:
        epochs: Passes over the data; more than 0, and may be a fraction, taken as the decimal that it is written as.
        num_positions: Positions of an epoch (`num_records` of the data).
        positions_in_batch: Positions that a batch takes (`positions_in_batch` of the data).

    Raises:
        ValueError: A number is not above 0, or an epoch has fewer positions than a batch.
    """
    if not 0 < epochs < math.inf or positions_in_batch < 1:
        raise ValueError(f"epochs is {epochs} and a batch {positions_in_batch} examples; give more than 0 of both")
    check_fits(positions_in_batch, num_positions)
    return math.ceil(Fraction(str(epochs)) * num_positions / positions_in_batch)


def check_fits(batch_size: int, num_examples: int) -> None:
    """Raises `ValueError` for a batch size above the number of training examples."""
    if batch_size > num_examples:
        raise ValueError(
            f"batch_size is {batch_size} and there are only {num_examples} training examples; give batch_size "
            f"{num_examples} or less, since a batch has an example once"
        )
