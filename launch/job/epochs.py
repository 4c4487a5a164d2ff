"""The epochs of a job: which steps make one, and how many steps some of them are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from downpour.model.data.batches import positions_in_batch
from downpour.model.data.epochs import Epochs, num_steps
from downpour.model.data.streams import ENDLESS
from downpour.ps.policy.pace import Sync

if TYPE_CHECKING:
    from downpour.launch.job.job import Job


def epochs_of(job: Job) -> Epochs:
    """Which global steps make an epoch: a step has one batch, or those that are accumulated or averaged."""
    in_step = positions_in_batch(job.data, job.batch_size) * batches_in_step(job.cadence, job.pace)
    return Epochs(job.steps_per_epoch * in_step or job.data.num_records, in_step)


def steps_of(
    epochs: float, data: Any, batch_size: int, cadence: Any = None, pace: Any = None, steps_per_epoch: int = 0
) -> int:
    """Global steps until all workers together have made so many passes over the training data, rounded up.

    Args:
        epochs: Passes; more than 0, and may be a fraction.
        data: The data, which have been checked.
        batch_size: Examples in a batch of one worker.
        cadence: The job's; a push of `Accumulate`, for example, is of several batches. None: one.
        pace: The job's; a step of `Sync` is of several pushes. None: one.
        steps_per_epoch: Global steps of an epoch; 0 for as many as the data have.

    Raises:
        ValueError: An epoch of the data has no length, or fewer examples than a batch; `epochs` is not above 0.
    """
    if steps_per_epoch:
        return num_steps(epochs, steps_per_epoch, 1)
    if data.num_records >= ENDLESS:
        raise ValueError(
            f"epochs is {epochs:g}, and an epoch of this stream has no length; give Stream its num_examples, or the "
            "job steps_per_epoch or num_steps"
        )
    batches = num_steps(epochs, data.num_records, positions_in_batch(data, batch_size))
    return math.ceil(batches / batches_in_step(cadence, pace))


def batches_in_step(cadence: Any = None, pace: Any = None) -> int:
    """Batches of one global step, those of backup workers included."""
    pushes = pace.num_gradients + pace.backups if isinstance(pace, Sync) else 1
    return pushes * int(getattr(cadence, "push_every", 1))
