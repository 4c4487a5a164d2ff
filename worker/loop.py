"""The training loop of one worker: pull, compute, push, until the job ends or the worker is asked to stop.

Threads: the loop runs in one; `Prefetch`, `Exchanger` and `Reporter` have their own. No TensorFlow here: the step and
the batches are passed in.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from absl import logging

from downpour.model.data import Batches
from downpour.model.data.batches import Batch
from downpour.model.data.nests import num_examples
from downpour.model.data.prefetch import Prefetch
from downpour.proto.errors import JobFailed
from downpour.worker.exchange.cadence import Cadence, EveryStep
from downpour.worker.exchange.exchange import Exchanger, Gradients, Parameters
from downpour.worker.exchange.overlap import Exchanges
from downpour.worker.exchange.replica import contribution
from downpour.worker.norms import StepNorms
from downpour.worker.reporter import Reporter
from downpour.worker.step import loss_scale
from downpour.worker.tracing import Tracer

if TYPE_CHECKING:
    from downpour.worker.step.step import StepResult


Step = Callable[..., "StepResult"]  # of parameters and the parts of a batch

_LOOK_S = 0.2  # between two looks whether to stop
_EVERY_STEP = EveryStep()
_NEVER: Future[None] = Future()


def train(
    step: Step,
    exchange: Exchanger,
    batches: Batches,
    reporter: Reporter,
    *,
    num_steps: int,
    overlap: bool | None,
    cadence: Cadence = _EVERY_STEP,
    leaving: Future[None] = _NEVER,
    check_position: Callable[[int], None] = lambda position: None,
    tracer: Tracer | None = None,
    norms: StepNorms | None = None,
    rehearse: Callable[..., None] = lambda *batch: None,
) -> None:
    """Trains until a shard's version reaches `num_steps`, the chief ends training, or this worker is asked to stop.

    Without overlap a step is pull, compute, push in sequence. With overlap the exchange of the last
    gradients and the next parameters runs while a batch is computed, so a step works with parameters that
    lack this worker's own last gradient: one step of staleness more. See `downpour.worker.exchange.overlap`.

    A step that overflows under loss scaling is skipped: the next batch is computed with the same parameters, and the
    cadence does not count it.

    The next batch is assembled while one is computed. A batch that was assembled and not trained on does not count.

    A worker that is asked to stop drops its batch, and waits only for a push in flight, not for other workers.

    Args:
        step: Computes loss and gradients.
        exchange: This worker's exchange with the shards.
        batches: Its batches, and the position of its leases that they reach. Iterated by another thread,
            which has ended when this function returns; closed by the caller.
        reporter: Counts what was computed and exchanged, and the position that the acknowledged pushes reach.
        num_steps: Version at which training ends.
        overlap: Whether the exchange runs while a batch is computed; None: as the chief decides, `reporter.overlap`.
        cadence: When to push and when to fetch, counted in batches.
        leaving: Done when this worker is asked to stop.
        check_position: Called with the batches' position before each is trained on; raises if it is beyond the leases.
            Called by the thread that iterates over them.
        tracer: Takes the spans of traced steps.
        norms: Takes the norms of some steps, which are reported; None for none.
        rehearse: Compiles the step for such a batch, before any parameters are pulled.

    Raises:
        JobFailed: The loss or a gradient is not finite, and no smaller loss scale can mend it. Nothing of that step has
            been pushed.
    """
    tracer = tracer or Tracer()
    mine, exchanges = contribution(cadence, exchange.wire), Exchanges(exchange, reporter, leaving, overlap)
    num_batches = 0  # computed
    with Prefetch(batches, check_position) as prefetched, contextlib.closing(exchanges):
        # A worker may not be let in at once, and what it pulled before would be stale.
        while not prefetched.wait(_LOOK_S):
            if leaving.done() or reporter.stop.is_set():
                return
        if prefetched.held is not None:
            rehearse(*prefetched.held)  # it takes as long as many steps of others, by which a first push would be stale
        answer = exchanges.begin()
        if answer is None or answer.parameters is None:
            return
        mine.fetched(answer.parameters)
        while not (leaving.done() or reporter.stop.is_set() or max(answer.versions) >= num_steps):
            with tracer.steps():
                begin = time.monotonic()
                with tracer.phase("input"):
                    batch = next(prefetched)
                input_s = time.monotonic() - begin
                with tracer.phase("compute"):
                    gradients = _compute(step, mine.parameters, batch, reporter, norms)
                reporter.read(prefetched.counts, input_s)
                if gradients is None:
                    continue
                mine.computed(gradients)
                num_batches += 1
                push, fetch = num_batches % cadence.push_every == 0, num_batches % cadence.fetch_every == 0
                if leaving.done():
                    return
                if not push and not fetch:
                    continue
                with tracer.phase("wait"):
                    latest = exchanges.next(mine.take() if push else None, pull=fetch, position=prefetched.position)
                if latest is None:
                    return
                answer = latest
                if answer.parameters is not None:
                    mine.fetched(answer.parameters)


def is_usable(result: StepResult, version: int) -> bool:
    """Whether a step can be pushed; if not, it overflowed under loss scaling and is skipped.

    Raises:
        JobFailed: See `train`.
    """
    if result.is_finite:
        return True
    values = f"loss {result.loss} and gradient norm {result.gradient_norm} at step {version} are not finite"
    if result.loss_scale is None:
        raise JobFailed(f"{values}; lower the learning rate, or look at the data of this worker")
    if result.loss_scale < loss_scale.LEAST:
        raise JobFailed(
            f"{values}, with a loss scale of only {result.loss_scale:.2g}; lower the learning rate, look at the "
            "data of this worker, or compute in mixed_bfloat16, which has the range of float32"
        )
    logging.info("step %d overflows float16 with a loss scale of %g: skipped", version, result.loss_scale)
    return False


def _compute(
    step: Step, parameters: Parameters, batch: Batch, reporter: Reporter, norms: StepNorms | None
) -> Gradients | None:
    """Returns the gradients of a batch; None for a step that overflows under loss scaling and is skipped."""
    begin = time.monotonic()
    result = step(parameters, *batch)
    version = max(parameters.versions)
    if not is_usable(result, version):
        reporter.skipped()
        return None
    seconds = time.monotonic() - begin
    reporter.computed(loss=result.loss, num_examples=num_examples(batch[0]), seconds=seconds, version=version)
    if norms is not None and (found := norms.look(parameters, result)) is not None:
        reporter.normed(found)
    return result.gradients
