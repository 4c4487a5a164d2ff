"""Trains as one worker: pulls parameters, computes gradients on its own batches, pushes them.

python -m downpour.launch.worker --recipe=quickstart --index=0 --ps=HOST:PORT,... --chief=HOST:PORT
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

from absl import logging

from downpour.launch import entry, recipe, security, topology
from downpour.launch.build import build
from downpour.launch.job import Job
from downpour.proto.codec import BLOCK_CODECS, CODECS
from downpour.proto.errors import DownpourError, JobFailed, NonFinite
from downpour.proto.security import Security
from downpour.ps.staleness import Compensate
from downpour.worker.clients import ChiefClient
from downpour.worker.exchange import Exchange, Parameters
from downpour.worker.loop import train
from downpour.worker.replica import step_codec
from downpour.worker.reporter import Reporter

topology.define_flags("worker")


def main() -> None:
    """Trains until the job has its steps."""
    entry.run(_run, role="worker")


def _run() -> None:
    job = recipe.from_flags()
    where, index = topology.from_flags("worker", job)
    job.data.check()
    mine, ready = security.from_flags("worker"), threading.Event()
    with security.health(ready.is_set):
        _train(job, where, index, mine, ready)


def _train(job: Job, where: topology.Topology, index: int, mine: Security, ready: threading.Event) -> None:
    model, layout = build(job, job.cluster.threads_per_worker)

    from downpour.worker.step import StepResult, TrainingStep

    # Later processes with this index have a higher incarnation, as long as clocks do not run backwards.
    incarnation = time.time_ns()
    wire = CODECS[job.exchange.codec]
    with contextlib.ExitStack() as closing:
        chief = ChiefClient(where.chief, job.exchange.give_up_after_s, mine)
        closing.callback(chief.close)
        exchange = Exchange(
            where.ps,
            layout,
            wire=wire,
            push=BLOCK_CODECS.get(job.exchange.push),
            publish_every=job.publish_every,
            differences=BLOCK_CODECS.get(job.exchange.pull),
            overlap=job.exchange.overlap,
            worker=index,
            incarnation=incarnation,
            give_up_after_s=job.exchange.give_up_after_s,
            send_base=isinstance(job.staleness, Compensate),
            security=mine,
        )
        closing.callback(exchange.close)
        exchange.connect()  # a shard says what differs in another layout, the chief only that it does
        reporter = Reporter(chief, index, incarnation, layout.fingerprint)
        ready.set()
        compiled = TrainingStep(model, job.loss, layout, step_codec(job.cadence, wire), job.clip)

        def step(parameters: Parameters, images: Any, labels: Any) -> StepResult:
            entry.set_context(version=max(parameters.versions))
            return compiled(parameters, images, labels)

        try:
            # All workers make the same order of the records; the chief's leases share it out.
            leases = reporter.leases()
            with job.data.training(batch_size=job.batch_size, seed=job.seed, leases=leases) as batches:
                train(
                    step,
                    exchange,
                    batches,
                    reporter,
                    num_steps=job.num_steps,
                    overlap=job.exchange.overlap,
                    cadence=job.cadence,
                )
        except BaseException as error:
            # These are the job's fault, and the chief ends it for everybody; others are this worker's own.
            failure = str(error) if isinstance(error, JobFailed | NonFinite | ValueError) else ""
            with contextlib.suppress(DownpourError):
                reporter.finish(failure)
            raise
        reporter.finish()
    logging.info("trained")


if __name__ == "__main__":
    main()
