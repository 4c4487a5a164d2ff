"""Makes the compiled training step of a job's workers. Imports TensorFlow inside the function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from downpour.launch.job.job import Job
from downpour.proto.codec import CODECS
from downpour.ps.layout import Layout
from downpour.ps.policy.staleness import Compensate
from downpour.worker.exchange.cadence import EveryStep
from downpour.worker.exchange.replica import step_codec

if TYPE_CHECKING:
    from downpour.worker.step.step import TrainingStep


def training_step(job: Job, model: Any, layout: Layout) -> TrainingStep:
    """Returns the step of a job's workers, which is traced when the first batch is computed.

    Args:
        job: The job.
        model: Its model.
        layout: Layout of the model's variables.
    """
    from downpour.worker.step.assigned import share
    from downpour.worker.step.step import TrainingStep

    sparse = isinstance(job.cadence, EveryStep) and not isinstance(job.treatment, Compensate)
    wire = step_codec(job.cadence, CODECS[job.exchange.codec])
    part = share(job.cluster.most_workers, overlap=bool(overlap_of(job, model)))
    return TrainingStep(model, job.loss, layout, wire, job.clip, sparse=sparse, share=part)


def overlap_of(job: Job, model: Any) -> bool | None:
    """Returns whether workers overlap the exchange with computing; None if the chief decides during training.

    What kernels that are assigned push depends on it when the step is traced, so there it is not left open.
    """
    from downpour.worker.step.assigned import has_assigned

    return False if job.overlap is None and has_assigned(model) else job.overlap
