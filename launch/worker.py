"""Trains as one worker: pulls parameters, computes gradients on its own batches, pushes them.

    downpour worker --recipe=mine.py --index=0 --ps=A:2222,B:2222 --chief=C:2223

At SIGTERM it drops its batch, waits briefly for a push in flight, returns its leases and ends with 143. A worker that
starts after training has ended exits with 0.
"""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from downpour.launch.job import Job, mistakes, recipe, recipe_flags
from downpour.launch.job.build import build, check_data, limit_threads
from downpour.launch.job.epochs import epochs_of
from downpour.launch.job.same_job import same_fields
from downpour.launch.job.step import overlap_of, training_step
from downpour.launch.observe.metrics.worker import WorkerMetrics
from downpour.launch.roles import ending, entry, metrics, role_flags, security
from downpour.launch.roles.command_line import Syntax
from downpour.launch.roles.config import Access
from downpour.launch.roles.topology import Topology
from downpour.model.data.batches import part_of
from downpour.model.data.order import Counted
from downpour.proto.chief_pb2 import ProgressReply
from downpour.proto.codec import BLOCK_CODECS, CODECS
from downpour.proto.errors import DownpourError, JobFailed, NonFinite
from downpour.ps.layout import Layout
from downpour.ps.policy.pace import Async
from downpour.ps.policy.staleness import Compensate
from downpour.worker.exchange.clients import ChiefClient
from downpour.worker.exchange.exchange import Exchanger, Parameters
from downpour.worker.loop import train
from downpour.worker.norms import StepNorms
from downpour.worker.reporter import Reporter

SYNTAX = Syntax("recipe set index ps chief run_dir tls token_file health_port metrics_port log_format")
_OVER = (ProgressReply.STATE_SCORING, ProgressReply.STATE_DONE, ProgressReply.STATE_FAILED)
_LEAVE_WITHIN_S = 6.0  # from SIGTERM to the last report
_LOOK_S, _LOOK_AGAIN_S = 2.0, 0.5  # deadline of the chief's answer; pause between two requests


@dataclass(frozen=True)
class WorkerConfig:
    """Configuration of one worker.

    Attributes:
        job: The job.
        topology: The cluster.
        index: Index of the worker.
        access: Identity, access, health port and metrics port.
    """

    job: Job
    topology: Topology
    index: int
    access: Access = field(default_factory=Access)


def main() -> None:
    """Trains until the job has done its steps."""
    define()
    entry.run(_main, role="worker", syntax=SYNTAX)


def define() -> None:
    """Defines the flags."""
    recipe_flags.define()
    role_flags.define("worker")


def _main() -> None:
    ending.on_sigterm()
    run(from_flags())


def from_flags() -> WorkerConfig:
    """Returns the configuration of the command line."""
    job = recipe.load(*recipe_flags.read())
    return WorkerConfig(job, *role_flags.cluster("worker", job), role_flags.access("worker"))


def run(config: WorkerConfig) -> None:
    """Trains as one worker until the job has its steps; called from the main thread of a process of its own."""
    job, mine, ready = config.job, config.access.security, threading.Event()
    with contextlib.ExitStack() as closing:
        closing.enter_context(security.health(config.access.health_port, ready.is_set))
        observed = WorkerMetrics(config.index)
        closing.enter_context(metrics.serve(config.access, observed))
        chief = ChiefClient(config.topology.chief, job.exchange.give_up_after_s, mine)
        closing.callback(chief.close)
        if _is_over(chief):  # before TensorFlow, which takes seconds, and the shards, which may have stopped
            return
        limit_threads(job.cluster.threads_per_worker)
        check_data(job)
        model, layout = build(job)
        # First: the chief assigns incarnations and checks that this is its job.
        reporter = Reporter(chief, config.index, layout.fingerprint, same_fields(job), epochs_of(job))
        observed.totals = reporter.totals
        if reporter.stop.is_set():  # the shards may have stopped
            reporter.finish()
            return
        exchange = _exchange(config, layout, reporter)
        closing.callback(exchange.close)
        _connect(exchange, reporter)
        ready.set()
        _train(job, model, layout, exchange, _Worker(config.index, chief, reporter))
    entry.conclude("trained")


def _is_over(chief: ChiefClient) -> bool:
    """Whether the chief reports that training is over; False without an answer."""
    found = chief.look(_LOOK_S)
    over = found is not None and found.state in _OVER
    if found is not None and over:
        how = f"failed ({found.failure})" if found.failure else "has reached its number of steps"
        entry.conclude("the job %s: it is at step %d of %d, so this worker ends", how, found.step, found.num_steps)
    return over


def _connect(exchange: Exchanger, reporter: Reporter) -> None:
    """Waits for the shards; on failure, returns this worker's leases."""
    try:
        exchange.connect()
    except BaseException:
        reporter.leave(_LOOK_S)
        raise


def _exchange(config: WorkerConfig, layout: Layout, reporter: Reporter) -> Exchanger:
    job = config.job
    return Exchanger(
        config.topology.ps,
        layout,
        wire=CODECS[job.exchange.codec],
        push=BLOCK_CODECS.get(job.exchange.push),
        publish_every=job.publish_every,
        differences=BLOCK_CODECS.get(job.exchange.pull),
        worker=config.index,
        incarnation=reporter.incarnation,
        give_up_after_s=job.exchange.give_up_after_s,
        send_base=isinstance(job.treatment, Compensate),
        joined=isinstance(job.pace, Async),
        security=config.access.security,
        job_id=reporter.job_id,
        tracer=reporter.tracer,
    )


class _Worker:
    """Ends this worker at SIGTERM, before the job is over.

    Attributes:
        index: Index of this worker.
        reporter: Sends reports to the chief.
        leaving: Completed at SIGTERM, which stops the training loop.
        trained: Set when the training loop has ended, for whatever reason.
    """

    def __init__(self, index: int, chief: ChiefClient, reporter: Reporter) -> None:
        self.index, self.reporter = index, reporter
        self.leaving: Future[None] = Future()
        self.trained = threading.Event()
        self._chief = chief
        self._gone = threading.Event()
        ending.on_sigterm(self._leave)

    def wait_for_end(self) -> None:
        """Blocks until another thread ends the process."""
        self._gone.wait()

    def _leave(self) -> None:
        """Stops the loop, reports to the chief and ends; at once if the parent is dead or the chief does not answer."""
        if self.trained.is_set():
            return  # it ends by itself
        self.leaving.set_result(None)
        deadline = time.monotonic() + _LEAVE_WITHIN_S
        while not self.trained.wait(_LOOK_AGAIN_S) and time.monotonic() < deadline:
            if entry.parent_is_gone() or self._chief.look(_LOOK_S) is None:
                ending.end_now()
        told = self.reporter.leave(_LOOK_S)
        entry.conclude(
            "stopping; the chief %s", "has its leases back" if told else "did not answer, so its leases must expire"
        )
        ending.end_now()


def _train(job: Job, model: Any, layout: Layout, exchange: Exchanger, worker: _Worker) -> None:
    from downpour.worker.step.step import StepResult

    compiled = training_step(job, model, layout)
    reporter = worker.reporter

    has_trained = False

    def step(parameters: Parameters, *batch: Any) -> StepResult:
        nonlocal has_trained
        entry.set_context(version=max(parameters.versions))
        result = compiled(parameters, *batch)
        has_trained = True
        return result

    try:
        # All workers compute the same order of the records; the chief's leases divide it among them.
        leases = Counted(reporter.leases(), f"data source {type(job.data).__name__}")
        # An error of the job's own code before the first step would recur after a restart.
        with mistakes.final(lambda: not has_trained):
            data = part_of(job.data, worker.index, job.cluster.most_workers)
            with data.training(batch_size=job.batch_size, seed=job.seed, leases=leases) as batches:
                try:
                    train(
                        step,
                        exchange,
                        batches,
                        reporter,
                        num_steps=job.num_steps,
                        overlap=overlap_of(job, model),
                        cadence=job.cadence,
                        leaving=worker.leaving,
                        check_position=leases.check,
                        tracer=reporter.tracer,
                        norms=StepNorms(layout),
                        rehearse=compiled.rehearse,
                    )
                finally:
                    worker.trained.set()
                if worker.leaving.done():
                    worker.wait_for_end()
    except BaseException as error:
        # These errors are the job's: the chief ends it for all workers. Others concern this worker alone.
        failure = mistakes.describe(error) if isinstance(error, JobFailed | NonFinite | ValueError) else ""
        with contextlib.suppress(DownpourError):
            reporter.finish(failure)
        raise
    reporter.finish()


if __name__ == "__main__":
    main()
