"""Scores every checkpoint of a job on its held-out examples and reports to the chief.

    downpour evaluator --recipe=mine.py --ps=A:2222,B:2222 --chief=C:2223

It has no state: one that is started again scores the checkpoint that it was given, or the next. Several share a job's
checkpoints, `--set=cluster.num_evaluators=2` and each with an `--index`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from downpour.launch.job import Job, mistakes, recipe, recipe_flags
from downpour.launch.job.build import build, check_data, limit_threads
from downpour.launch.job.same_job import same_fields
from downpour.launch.local import memory
from downpour.launch.observe.metrics.worker import EvaluatorMetrics
from downpour.launch.roles import ending, entry, metrics, role_flags, security
from downpour.launch.roles.command_line import Syntax
from downpour.launch.roles.config import Access
from downpour.model import lean
from downpour.worker.chief import sinks
from downpour.worker.chief.tensorboard import TensorBoard
from downpour.worker.exchange.clients import ChiefClient

SYNTAX = Syntax("recipe set ps chief index run_dir tls token_file health_port metrics_port log_format")


@dataclass(frozen=True)
class EvaluatorConfig:
    """Configuration of the evaluator.

    Attributes:
        job: The job.
        chief: `host:port` of the chief.
        index: Index among the evaluators.
        access: Identity, access, health port and metrics port.
    """

    job: Job
    chief: str
    index: int = 0
    access: Access = field(default_factory=Access)


def main() -> None:
    """Scores until the last checkpoint."""
    define()
    entry.run(_main, role="evaluator", syntax=SYNTAX)


def define() -> None:
    """Defines the flags."""
    recipe_flags.define()
    role_flags.define("evaluator")


def _main() -> None:
    ending.on_sigterm()  # it has no state: its replacement scores the checkpoint that it was given
    run(from_flags())


def from_flags() -> EvaluatorConfig:
    """Returns the configuration of the command line."""
    job = recipe.load(*recipe_flags.read())
    where, index = role_flags.cluster("evaluator", job)
    return EvaluatorConfig(job, where.chief, index, role_flags.access("evaluator"))


def run(config: EvaluatorConfig) -> None:
    """Scores every checkpoint until the last."""
    limit_threads(config.job.cluster.threads_per_worker)
    check_data(config.job)
    ready = threading.Event()
    observed = EvaluatorMetrics()
    with security.health(config.access.health_port, ready.is_set), metrics.serve(config.access, observed):
        _score(config, ready, observed)
    entry.conclude("the job is over; checkpoints scored here: %d", observed.num_scored)


def _score(config: EvaluatorConfig, ready: threading.Event, observed: EvaluatorMetrics) -> None:
    job = config.job
    from downpour.worker.evaluator import evaluator
    from downpour.worker.evaluator.illustration import Illustrator

    memory.release_libraries()  # of TensorFlow, which is loaded now
    with lean.undrawn() as undrawn:
        model, layout = build(job)
    lean.draw(undrawn, {variable.name for variable in layout.variables})
    ready.set()
    chief = ChiefClient(config.chief, job.exchange.give_up_after_s, config.access.security)
    try:
        chief.check_job(same_fields(job))
        scorer = evaluator.Evaluator(
            model,
            layout,
            job.data,
            job.batch_size,
            job.loss,
            job.evaluate_average,
            job.validation_sets,
            Illustrator.of(job.data, _classes(job)) if sinks.take_evaluations(job.sinks) else None,
        )
        # An error of the network or the data before the first score would recur after a restart.
        with mistakes.final(lambda: not scorer.has_scored):
            evaluator.run(scorer, chief, observed.scored, config.index)
    finally:
        chief.close()


def _classes(job: Job) -> tuple[int, ...]:
    """The classes whose precision and recall TensorBoard shows; empty for the most frequent ones."""
    return next((sink.classes for sink in job.sinks if isinstance(sink, TensorBoard)), ())


if __name__ == "__main__":
    main()
