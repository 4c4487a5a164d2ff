"""The epochs of a job."""

from __future__ import annotations

from downpour.launch.job.job import Job
from downpour.model.data.batches import positions_in_batch
from downpour.model.data.epochs import Epochs
from downpour.ps.policy.pace import Sync


def epochs_of(job: Job) -> Epochs:
    """Which global steps make an epoch: a step has one batch, or those that are accumulated or averaged."""
    batches = job.cadence.push_every * (job.pace.num_gradients if isinstance(job.pace, Sync) else 1)
    in_step = positions_in_batch(job.data, job.batch_size) * batches
    return Epochs(job.steps_per_epoch * in_step or job.data.num_records, in_step)
