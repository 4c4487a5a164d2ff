"""The steps of a job that is to train for a number of epochs."""

from __future__ import annotations

import math
from typing import Any

from downpour.model.data.batches import positions_in_batch
from downpour.model.data.epochs import num_steps
from downpour.model.data.streams import ENDLESS
from downpour.ps.policy.pace import Sync


def steps_of(epochs: float, data: Any, batch_size: int, cadence: Any = None, pace: Any = None) -> int:
    """Global steps until all workers together have made so many passes over the training data, rounded up.

    Args:
        epochs: Passes; more than 0, and may be a fraction.
        data: The data, which have been checked.
        batch_size: Examples in a batch of one worker.
        cadence: The job's; a push of `Accumulate`, for example, is of several batches. None: one.
        pace: The job's; a step of `Sync` is of several pushes. None: one.

    Raises:
        ValueError: An epoch of the data has no length, or fewer examples than a batch; `epochs` is not above 0.
    """
    if data.num_records >= ENDLESS:
        raise ValueError(
            f"epochs is {epochs:g}, and an epoch of this stream has no length; give Stream its num_examples, or the "
            "job num_steps"
        )
    batches = num_steps(epochs, data.num_records, positions_in_batch(data, batch_size))
    return math.ceil(batches / batches_in_step(cadence, pace))


def batches_in_step(cadence: Any = None, pace: Any = None) -> int:
    """Batches of one global step, those of backup workers included."""
    pushes = pace.num_gradients + pace.backups if isinstance(pace, Sync) else 1
    return pushes * int(getattr(cadence, "push_every", 1))
