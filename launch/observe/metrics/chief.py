"""Metrics of the chief: the job as a whole, and its workers and shards as the chief sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from downpour.launch.observe.metrics.shard import add_staleness
from downpour.launch.observe.metrics.shared import add_calls, add_connections, add_disks
from downpour.proto import chief_pb2 as pb
from downpour.proto.rpc.call_times import CallTimes
from downpour.proto.security.gate import Gate
from downpour.worker.chief.changes import FAULTS

if TYPE_CHECKING:
    from downpour.launch.observe.metrics.scrape import Scrape

_PARTS = ("input", "pull", "compute", "push", "wait")
_PART = "of a worker's steps, by part: waiting for input, pulls, computing, pushes, waiting for an exchange"


def metrics_of_chief(
    progress: Callable[[], pb.ProgressReply],
    gate: Gate,
    times: CallTimes,
    folders: Mapping[str, Path],
) -> Callable[[Scrape], None]:
    """Returns the function that adds the chief's metrics.

    Args:
        progress: Returns the job's progress with its details.
        gate: The gate of the chief's server.
        times: The calls of that server.
        folders: Folders that the chief writes to, by purpose.
    """

    def add(scrape: Scrape) -> None:
        reply = progress()
        _add_job(scrape, reply)
        _add_checkpoint(scrape, reply.details)
        for worker in reply.details.workers:
            _add_worker(scrape, worker)
        for index, shard in enumerate(reply.details.shards):
            _add_shard(scrape, str(index), shard)
        add_connections(scrape, gate.counts())
        add_calls(scrape, times)
        add_disks(scrape, folders)

    return add


def _add_job(scrape: Scrape, reply: pb.ProgressReply) -> None:
    more = reply.details
    text = "1; the labels are the recipe and the id of the run."
    scrape.gauge("downpour_job_info", text, 1, recipe=more.recipe, job_id=more.job_id)
    state = "State of the job: 1 for the present one."
    scrape.state("downpour_job_state", state, _name(pb.ProgressReply.State, reply.state), _JOB_STATES)
    scrape.gauge("downpour_job_step", "Global steps done.", reply.step)
    scrape.gauge("downpour_job_steps", "Global steps that the job is to do.", reply.num_steps)
    if reply.step:
        scrape.gauge("downpour_job_loss", "Loss, mean over the last reports.", reply.loss)
    text = "Learning rate at this step: the schedule's, and what callbacks made of it."
    scrape.gauge("downpour_job_learning_rate", text, more.learning_rate)
    text = "Passes over the training records, of all workers together."
    scrape.gauge("downpour_job_epochs", text, more.epochs)
    scrape.gauge("downpour_job_train_seconds", "Seconds of training so far.", more.train_seconds)
    if reply.seconds_left >= 0:
        text = "Seconds left at the present rate; absent while it is not known."
        scrape.gauge("downpour_job_left_seconds", text, reply.seconds_left)
    text = "Examples a second, over the last seconds, of all workers."
    scrape.gauge("downpour_job_examples_per_second", text, reply.examples_per_second)
    text = "Global steps a second, over the last seconds."
    scrape.gauge("downpour_job_steps_per_second", text, reply.pushes_per_second)
    text = "Mean staleness of pushes over the last seconds."
    scrape.gauge("downpour_job_staleness_mean", text, reply.staleness_mean)
    add_staleness(scrape, "downpour_job_staleness", more.staleness_histogram)
    for name, value in sorted(reply.metrics.items()):
        scrape.gauge("downpour_job_score", "Newest score on held-out examples, by name.", value, score=name)
    if reply.metrics:
        scrape.gauge("downpour_job_score_step", "Step of the checkpoint that it is of.", more.score_step)
    text = "Faults so far, by kind; see docs/runs.md."
    for kind in (*FAULTS, "shards_restored"):
        scrape.counter("downpour_job_faults_total", text, more.faults.get(kind, 0), kind=kind)


def _add_checkpoint(scrape: Scrape, more: pb.ProgressReply.Details) -> None:
    if more.checkpoint:
        scrape.gauge("downpour_job_checkpoint_step", "Step of the newest complete checkpoint.", more.checkpoint_step)
    if more.checkpoint_age_seconds >= 0:
        text = "Seconds since it was complete; absent before this chief has written one."
        scrape.gauge("downpour_job_checkpoint_age_seconds", text, more.checkpoint_age_seconds)
    if more.checkpoint_every_steps:
        text = "Global steps from one checkpoint to the next, as the job asks for; absent if only epochs have one."
        scrape.gauge("downpour_job_checkpoint_every_steps", text, more.checkpoint_every_steps)


def _add_worker(scrape: Scrape, found: pb.ProgressReply.Worker) -> None:
    worker = str(found.index)
    text = "State of a worker: 1 for the present one."
    state = _name(pb.ProgressReply.Worker.State, found.state)
    scrape.state("downpour_job_worker_state", text, state, _WORKER_STATES, worker=worker)
    if state == "expected":
        return
    text = "Seconds since a worker was last heard of."
    scrape.gauge("downpour_job_worker_silent_seconds", text, found.silent_seconds, worker=worker)
    text = "Steps of a worker's present process."
    scrape.counter("downpour_job_worker_steps_total", text, found.steps, worker=worker)
    text = "Examples of a worker's present process."
    scrape.counter("downpour_job_worker_examples_total", text, found.examples, worker=worker)
    text = "Highest version that a worker has seen."
    scrape.gauge("downpour_job_worker_version", text, found.version, worker=worker)
    text = "Mean staleness of a worker's pushes over the last seconds."
    scrape.gauge("downpour_job_worker_staleness_mean", text, found.staleness_mean, worker=worker)
    text = "Examples a second of a worker, over the last seconds."
    scrape.gauge("downpour_job_worker_examples_per_second", text, found.examples_per_second, worker=worker)
    for part in _PARTS:
        name, seconds = "downpour_job_worker_part_seconds_total", found.seconds.get(part, 0.0)
        scrape.counter(name, f"Seconds {_PART}.", seconds, worker=worker, part=part)


def _add_shard(scrape: Scrape, shard: str, found: pb.ProgressReply.Shard) -> None:
    text = "State of a shard as the chief sees it: 1 for the present one."
    state = _name(pb.ProgressReply.Shard.State, found.state)
    scrape.state("downpour_job_shard_state", text, state, _SHARD_STATES, shard=shard)
    if state == "ready":
        text = "Version of a shard as the chief has seen it last."
        scrape.gauge("downpour_job_shard_version", text, found.version, shard=shard)


def _states(enum: Any) -> tuple[str, ...]:
    return tuple(_name(enum, number) for _, number in enum.items() if number)


def _name(enum: Any, number: int) -> str:
    name: str = enum.Name(number)
    return name.removeprefix("STATE_").lower()


_JOB_STATES = _states(pb.ProgressReply.State)
_WORKER_STATES = _states(pb.ProgressReply.Worker.State)
_SHARD_STATES = _states(pb.ProgressReply.Shard.State)
