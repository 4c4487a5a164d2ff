"""Trains as one worker: pulls parameters, computes gradients on its own batches, pushes them.

python -m downpour.launch.worker --recipe=quickstart --index=0 --ps=HOST:PORT,... --chief=HOST:PORT

At SIGTERM it drops its batch, waits a moment for a push that is under way, gives its leases back and ends with 143. One
that comes when training is over ends with 0.
"""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import Future
from typing import Any

from absl import logging

from downpour.launch.job import Job, mistakes, recipe
from downpour.launch.job.build import build, check_data
from downpour.launch.job.same_job import same_fields
from downpour.launch.roles import ending, entry, security, topology
from downpour.model.data.order import Counted
from downpour.proto.chief_pb2 import ProgressReply
from downpour.proto.codec import BLOCK_CODECS, CODECS
from downpour.proto.errors import DownpourError, JobFailed, NonFinite
from downpour.proto.security.config import Security
from downpour.ps.layout import Layout
from downpour.ps.policy.staleness import Compensate
from downpour.worker.exchange.clients import ChiefClient
from downpour.worker.exchange.exchange import Exchange, Parameters
from downpour.worker.exchange.replica import step_codec
from downpour.worker.loop import train
from downpour.worker.reporter import Reporter

topology.define_flags("worker")

_OVER = (ProgressReply.STATE_SCORING, ProgressReply.STATE_DONE, ProgressReply.STATE_FAILED)
_LEAVE_WITHIN_S = 6.0  # from SIGTERM to the last report
_LOOK_S, _LOOK_AGAIN_S = 2.0, 0.5  # for the chief's answer; between two looks whether it is there


def main() -> None:
    """Trains until the job has its steps."""
    entry.run(_run, role="worker")


def _run() -> None:
    ending.on_sigterm()
    job = recipe.from_flags()
    where, index = topology.from_flags("worker", job)
    check_data(job)
    mine, ready = security.from_flags("worker"), threading.Event()
    with contextlib.ExitStack() as closing:
        closing.enter_context(security.health(ready.is_set))
        chief = ChiefClient(where.chief, job.exchange.give_up_after_s, mine)
        closing.callback(chief.close)
        if _is_over(chief):  # before the model, which takes seconds, and the shards, which have ended perhaps
            return
        model, layout = build(job, job.cluster.threads_per_worker)
        # First: the chief gives out incarnations, and knows whether this is its job.
        reporter = Reporter(chief, index, layout.fingerprint, same_fields(job))
        if reporter.stop.is_set():  # the shards may have ended
            reporter.finish()
            return
        exchange = _exchange(job, where, layout, reporter, index, mine)
        closing.callback(exchange.close)
        _connect(exchange, reporter)
        ready.set()
        _train(job, model, layout, exchange, _Worker(chief, reporter))
    logging.info("trained")


def _is_over(chief: ChiefClient) -> bool:
    """Whether training is over, as far as the chief is there to tell."""
    found = chief.look(_LOOK_S)
    over = found is not None and found.state in _OVER
    if found is not None and over:
        how = f"failed ({found.failure})" if found.failure else "has its steps"
        logging.info("the job %s: at step %d of %d nothing is left to do", how, found.step, found.num_steps)
    return over


def _connect(exchange: Exchange, reporter: Reporter) -> None:
    """Waits for the shards; without them, others get this worker's part."""
    try:
        exchange.connect()
    except BaseException:
        reporter.leave(_LOOK_S)
        raise


def _exchange(
    job: Job, where: topology.Topology, layout: Layout, reporter: Reporter, index: int, mine: Security
) -> Exchange:
    return Exchange(
        where.ps,
        layout,
        wire=CODECS[job.exchange.codec],
        push=BLOCK_CODECS.get(job.exchange.push),
        publish_every=job.publish_every,
        differences=BLOCK_CODECS.get(job.exchange.pull),
        overlap=job.exchange.overlap,
        worker=index,
        incarnation=reporter.incarnation,
        give_up_after_s=job.exchange.give_up_after_s,
        send_base=isinstance(job.staleness, Compensate),
        security=mine,
        job_id=reporter.job_id,
    )


class _Worker:
    """How this worker ends before the job does.

    Attributes:
        reporter: Tells the chief.
        leaving: Done at SIGTERM.
        trained: Set when the training loop has ended, for whatever reason.
    """

    def __init__(self, chief: ChiefClient, reporter: Reporter) -> None:
        self.reporter = reporter
        self.leaving: Future[None] = Future()
        self.trained = threading.Event()
        self._chief = chief
        self._gone = threading.Event()
        ending.on_sigterm(self._leave)

    def wait_for_end(self) -> None:
        """Of the process, which another thread is about to end."""
        self._gone.wait()

    def _leave(self) -> None:
        """Lets the loop end, tells the chief, and ends; without waiting where nobody is there to be told."""
        if self.trained.is_set():
            return  # it ends by itself
        self.leaving.set_result(None)
        deadline = time.monotonic() + _LEAVE_WITHIN_S
        while not self.trained.wait(_LOOK_AGAIN_S) and time.monotonic() < deadline:
            if entry.parent_is_gone() or self._chief.look(_LOOK_S) is None:
                ending.end_now()
        told = self.reporter.leave(_LOOK_S)
        logging.info("told to end; %s", "others have its leases" if told else "the chief does not know")
        ending.end_now()


def _train(job: Job, model: Any, layout: Layout, exchange: Exchange, worker: _Worker) -> None:
    from downpour.worker.step.step import StepResult, TrainingStep

    compiled = TrainingStep(model, job.loss, layout, step_codec(job.cadence, exchange.wire), job.clip)
    reporter = worker.reporter

    has_trained = False

    def step(parameters: Parameters, images: Any, labels: Any) -> StepResult:
        nonlocal has_trained
        entry.set_context(version=max(parameters.versions))
        result = compiled(parameters, images, labels)
        has_trained = True
        return result

    try:
        # All workers make the same order of the records; the chief's leases share it out.
        leases = Counted(reporter.leases(), f"data source {type(job.data).__name__}")
        # What the job's own code raises before the first step, it would raise again.
        with mistakes.final(lambda: not has_trained):
            with job.data.training(batch_size=job.batch_size, seed=job.seed, leases=leases) as batches:
                try:
                    train(
                        step,
                        exchange,
                        batches,
                        reporter,
                        num_steps=job.num_steps,
                        overlap=job.exchange.overlap,
                        cadence=job.cadence,
                        leaving=worker.leaving,
                        check_position=leases.check,
                    )
                finally:
                    worker.trained.set()
                if worker.leaving.done():
                    worker.wait_for_end()
    except BaseException as error:
        # These are the job's fault, and the chief ends it for everybody; others are this worker's own.
        failure = mistakes.describe(error) if isinstance(error, JobFailed | NonFinite | ValueError) else ""
        with contextlib.suppress(DownpourError):
            reporter.finish(failure)
        raise
    reporter.finish()


if __name__ == "__main__":
    main()
