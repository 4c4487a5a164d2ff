"""`fashion_job` with two passes of its data, in which its rate falls to zero."""

from dataclasses import replace
from typing import Any

from downpour.launch.job import Job
from downpour.ps.schedules import KerasCosine
from tests.benchmarks import fashion_job

STEPS = 2 * fashion_job.NUM_TRAIN // fashion_job.BATCH


def model() -> Any:
    """The compiled model."""
    import keras

    built = fashion_job.network(10, "fashion")
    schedule = keras.optimizers.schedules.CosineDecay(fashion_job.RATE, STEPS)
    optimizer = keras.optimizers.RMSprop(schedule, momentum=0.9)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    built.compile(optimizer, loss, metrics=["accuracy"])
    return built


def job() -> Job:
    """The job; see the module."""
    return replace(fashion_job.job(), model=model, schedule=KerasCosine(fashion_job.RATE, STEPS), num_steps=STEPS)
