"""Scores every checkpoint of a job on its held-out images and reports to the chief.

python -m downpour.launch.evaluator --recipe=quickstart --ps=HOST:PORT,... --chief=HOST:PORT
"""

from __future__ import annotations

import threading

from downpour.launch.job import Job, mistakes, recipe
from downpour.launch.job.build import build, check_data
from downpour.launch.job.same_job import same_fields
from downpour.launch.roles import ending, entry, security, topology
from downpour.proto.security.config import Security
from downpour.worker.exchange.clients import ChiefClient

topology.define_flags("evaluator")


def main() -> None:
    """Scores until the last checkpoint."""
    entry.run(_run, role="evaluator")


def _run() -> None:
    ending.on_sigterm()  # it has no state: its replacement scores the newest checkpoint
    job = recipe.from_flags()
    where, _ = topology.from_flags("evaluator", job)
    check_data(job)
    mine, ready = security.from_flags("evaluator"), threading.Event()
    with security.health(ready.is_set):
        _score(job, where, mine, ready)


def _score(job: Job, where: topology.Topology, mine: Security, ready: threading.Event) -> None:
    model, layout = build(job, job.cluster.threads_per_worker)
    ready.set()

    from downpour.worker.evaluator import evaluator

    chief = ChiefClient(where.chief, job.exchange.give_up_after_s, mine)
    try:
        chief.check_job(same_fields(job))
        scorer = evaluator.Evaluator(model, layout, job.data, job.batch_size, average=job.evaluate_average)
        # An error of the network or the data before the first score would recur after a restart.
        with mistakes.final(lambda: not scorer.has_scored):
            evaluator.run(scorer, chief)
    finally:
        chief.close()


if __name__ == "__main__":
    main()
