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
from downpour.worker.cadence import Cadence, EveryStep
from downpour.worker.exchange import Exchange, Gradients, Parameters
from downpour.worker.replica import contribution
from downpour.worker.reporter import Reporter

if TYPE_CHECKING:
    from downpour.worker.step import StepResult


Step = Callable[[Parameters, Any, Any], "StepResult"]

_EVERY_STEP = EveryStep()


def train(
    step: Step,
    exchange: Exchange,
    batches: Batches,
    reporter: Reporter,
    *,
    num_steps: int,
    overlap: bool,
    cadence: Cadence = _EVERY_STEP,
) -> None:
    """Trains until a shard's version reaches `num_steps` or the chief says stop.

    Without overlap a step is pull, compute, push, one after the other. With overlap the exchange of the last
    gradients and the next parameters runs while a batch is computed, so a step works with parameters that
    lack this worker's own last gradient: one step of staleness more.

    Args:
        step: Computes loss and gradients.
        exchange: Of this worker.
        batches: Its images and labels, and the position of its leases that they reach.
        reporter: Is told what was computed and exchanged, and which position the acknowledged pushes reach.
        num_steps: Version at which training ends.
        overlap: See above.
        cadence: When to push and when to fetch, counted in batches.

    Raises:
        JobFailed: The loss or a gradient is not finite. Nothing of that step has been pushed.
    """
    mine = contribution(cadence, exchange.wire)
    answer = exchange.start().result()
    assert answer.parameters is not None
    mine.fetched(answer.parameters)
    ahead = exchange.start(ahead=True) if overlap else None
    num_batches = sent = 0  # batches computed; position that the push under way reaches
    try:
        while not reporter.stop.is_set() and max(answer.versions) < num_steps:
            images, labels = next(batches)
            mine.computed(_compute(step, mine.parameters, images, labels, reporter))
            reporter.read(batches.counts)
            num_batches += 1
            push, fetch = num_batches % cadence.push_every == 0, num_batches % cadence.fetch_every == 0
            if not push and not fetch:
                continue
            gradients = mine.take() if push else None
            if ahead is None:
                answer, answered = exchange.start(gradients, pull=fetch).result(), batches.position
            else:
                answer, answered = ahead.result(), sent
                ahead = None  # its answer is taken, whatever the next start does
                ahead, sent = exchange.start(gradients, ahead=True), batches.position
            if answer.parameters is not None:
                mine.fetched(answer.parameters)
            reporter.exchanged(answer, answered)
    finally:
        if ahead is not None:
            reporter.exchanged(ahead.result(), sent)


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
