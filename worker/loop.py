"""The training loop of one worker: pull, compute, push, until the job has its steps.

Threads: the loop runs in one; `Exchange` and `Reporter` have their own. No TensorFlow here: the step and the
batches are passed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from downpour.model.data import Batches
from downpour.proto.errors import JobFailed
from downpour.worker.exchange import Exchange, Gradients, Parameters
from downpour.worker.reporter import Reporter

if TYPE_CHECKING:
    from downpour.worker.step import StepResult


Step = Callable[[Parameters, Any, Any], "StepResult"]


def train(
    step: Step, exchange: Exchange, batches: Batches, reporter: Reporter, *, num_steps: int, overlap: bool
) -> None:
    """Trains until a shard's version reaches `num_steps` or the chief says stop.

    Without overlap a step is pull, compute, push, one after the other. With overlap the exchange of the last
    gradients and the next parameters runs while a batch is computed, so a step works with parameters that
    lack this worker's own last gradient: one step of staleness more.

    Raises:
        JobFailed: The loss or a gradient is not finite. Nothing of that step has been pushed.
    """
    answer = exchange.start().result()
    ahead = exchange.start() if overlap else None
    try:
        while not reporter.stop.is_set() and max(answer.parameters.versions) < num_steps:
            images, labels = next(batches)
            gradients = _compute(step, answer.parameters, images, labels, reporter)
            reporter.read(batches.counts)
            if ahead is None:
                answer = exchange.start(gradients).result()
            else:
                answer = ahead.result()
                ahead = None  # its answer is taken, whatever the next start does
                ahead = exchange.start(gradients)
            reporter.exchanged(answer, exchange.num_bytes)
    finally:
        if ahead is not None:
            reporter.exchanged(ahead.result(), exchange.num_bytes)


def _compute(step: Step, parameters: Parameters, images: Any, labels: Any, reporter: Reporter) -> Gradients:
    begin = time.monotonic()
    result = step(parameters, images, labels)
    version = max(parameters.versions)
    if not result.is_finite:
        raise JobFailed(
            f"loss {result.loss} and gradient norm {result.gradient_norm} at step {version} are not finite; "
            "lower the learning rate, or look at the data of this worker"
        )
    seconds = time.monotonic() - begin
    reporter.computed(loss=result.loss, num_images=len(images), seconds=seconds, version=version)
    return result.gradients
