"""The training loop of one worker: pull, compute, push, until the job ends or the worker is asked to stop.

Threads: the loop runs in one; `Exchange` and `Reporter` have their own. No TensorFlow here: the step and the
batches are passed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TYPE_CHECKING, Any

from absl import logging

from downpour.model.data import Batches
from downpour.proto.errors import JobFailed
from downpour.worker.exchange.cadence import Cadence, EveryStep
from downpour.worker.exchange.exchange import Answer, Exchange, Gradients, Parameters
from downpour.worker.exchange.replica import contribution
from downpour.worker.reporter import Reporter
from downpour.worker.step import loss_scale

if TYPE_CHECKING:
    from downpour.worker.step.step import StepResult


Step = Callable[[Parameters, Any, Any], "StepResult"]

_EVERY_STEP = EveryStep()
_NEVER: Future[None] = Future()
_ACKNOWLEDGED_WITHIN_S = 4.0  # deadline of a push in flight when the worker is asked to stop


def train(
    step: Step,
    exchange: Exchange,
    batches: Batches,
    reporter: Reporter,
    *,
    num_steps: int,
    overlap: bool,
    cadence: Cadence = _EVERY_STEP,
    leaving: Future[None] = _NEVER,
    check_position: Callable[[int], None] = lambda position: None,
) -> None:
    """Trains until a shard's version reaches `num_steps`, the chief ends training, or this worker is asked to stop.

    Without overlap a step is pull, compute, push in sequence. With overlap the exchange of the last
    gradients and the next parameters runs while a batch is computed, so a step works with parameters that
    lack this worker's own last gradient: one step of staleness more.

    A step that overflows under loss scaling is skipped: the next batch is computed with the same parameters, and the
    cadence does not count it.

    A worker that is asked to stop drops its batch, and waits only for a push in flight, not for other workers.

    Args:
        step: Computes loss and gradients.
        exchange: This worker's exchange with the shards.
        batches: Its images and labels, and the position of its leases that they reach.
        reporter: Counts what was computed and exchanged, and the position that the acknowledged pushes reach.
        num_steps: Version at which training ends.
        overlap: Whether the exchange runs while a batch is computed.
        cadence: When to push and when to fetch, counted in batches.
        leaving: Done when this worker is asked to stop.
        check_position: Called with the batches' position before each is trained on; raises if it is beyond the leases.

    Raises:
        JobFailed: The loss or a gradient is not finite, and no smaller loss scale can mend it. Nothing of that step has
            been pushed.
    """
    mine = contribution(cadence, exchange.wire)
    answer = _answer(exchange, exchange.start(), leaving)
    if answer is None or answer.parameters is None:
        return
    mine.fetched(answer.parameters)
    ahead = exchange.start(ahead=True) if overlap else None
    num_batches = sent = 0  # batches computed; position that the push in flight reaches
    try:
        while not (leaving.done() or reporter.stop.is_set() or max(answer.versions) >= num_steps):
            images, labels = next(batches)
            check_position(batches.position)
            gradients = _compute(step, mine.parameters, images, labels, reporter)
            reporter.read(batches.counts)
            if gradients is None:
                continue
            mine.computed(gradients)
            num_batches += 1
            push, fetch = num_batches % cadence.push_every == 0, num_batches % cadence.fetch_every == 0
            if leaving.done():
                return
            if not push and not fetch:
                continue
            gathered = mine.take() if push else None
            if ahead is None:
                under_way, reaches = exchange.start(gathered, pull=fetch), batches.position
                latest = _answer(exchange, under_way, leaving)
            else:
                latest, reaches = _answer(exchange, ahead, leaving), sent
                ahead = None  # its answer is taken, whatever the next start does
                if not leaving.done():
                    ahead, sent = exchange.start(gathered, ahead=True), batches.position
            if latest is None:
                return
            answer = latest
            reporter.exchanged(answer, reaches)
            if answer.parameters is not None:
                mine.fetched(answer.parameters)
    finally:
        if ahead is not None and (latest := _answer(exchange, ahead, leaving)):
            reporter.exchanged(latest, sent)


def _answer(exchange: Exchange, under_way: Future[Answer], leaving: Future[None]) -> Answer | None:
    """Returns the answer of an exchange; if `leaving` is done first, that of its push alone, or None."""
    either: list[Future[Any]] = [under_way, leaving]
    wait(either, return_when=FIRST_COMPLETED)
    return under_way.result() if under_way.done() else exchange.acknowledged(_ACKNOWLEDGED_WITHIN_S)


def _compute(step: Step, parameters: Parameters, images: Any, labels: Any, reporter: Reporter) -> Gradients | None:
    """Returns the gradients of a batch; None for a step that overflows under loss scaling and is skipped."""
    begin = time.monotonic()
    result = step(parameters, images, labels)
    version = max(parameters.versions)
    if not result.is_finite:
        values = f"loss {result.loss} and gradient norm {result.gradient_norm} at step {version} are not finite"
        if result.loss_scale is None:
            raise JobFailed(f"{values}; lower the learning rate, or look at the data of this worker")
        if result.loss_scale < loss_scale.LEAST:
            raise JobFailed(
                f"{values}, with a loss scale of only {result.loss_scale:.2g}; lower the learning rate, look at the "
                "data of this worker, or compute in mixed_bfloat16, which has the range of float32"
            )
        logging.info("step %d overflows float16 with a loss scale of %g: skipped", version, result.loss_scale)
        reporter.skipped()
        return None
    seconds = time.monotonic() - begin
    reporter.computed(loss=result.loss, num_images=len(images), seconds=seconds, version=version)
    return result.gradients
