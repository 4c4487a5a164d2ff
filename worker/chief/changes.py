"""What has happened between two looks at a job, as events that people want to know of. Pure: no clock, no I/O.

| kind | what |
|---|---|
| `worker_joined` | a worker has registered |
| `worker_replaced` | another process has taken over its index |
| `worker_lost` | it has not reported within its lease, and its records are trained on by others |
| `worker_back` | the same process reports again |
| `worker_finished` | it has sent its last report |
| `worker_input_bound` | it has waited for data for much of its time |
| `shard_silent` | a shard does not answer |
| `shard_back` | it answers again |
| `shard_restarted` | its process is a new one; with its memory, unless `updates_lost` follows |
| `updates_lost` | a shard lost its memory and was restored from a checkpoint |
| `checkpoint` | a checkpoint is complete |
| `pushes_dropped`, `pushes_refused`, `steps_skipped`, `records_skipped`, `records_repeated` | more than before |
| `checkpoint_failed`, `learning_rate`, `stopped`, `failed` | as said by the part of the chief that decides it |
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from downpour.proto import chief_pb2 as pb
from downpour.worker.input_share import LIMIT

Details: TypeAlias = pb.ProgressReply.Details
Worker: TypeAlias = pb.ProgressReply.Worker
Shard: TypeAlias = pb.ProgressReply.Shard
FAULTS = {
    "updates_lost": "{} updates lost by a shard that lost its memory, in all",
    "pushes_dropped": "{} pushes dropped, in all",
    "pushes_refused": "{} pushes with numbers that are not finite refused, in all",
    "steps_skipped": "{} steps skipped because they overflowed under loss scaling, in all",
    "records_skipped": "{} records skipped that cannot be read, in all",
    "records_repeated": "{} records trained on again, in all",
}


def changes(before: Details, after: Details) -> Iterator[tuple[str, str]]:
    """Yields kind and text of what has happened, workers first."""
    workers = {worker.index: worker for worker in before.workers}
    for worker in after.workers:
        yield from _of_worker(workers.get(worker.index, Worker()), worker)
    shards = {shard.address: shard for shard in before.shards}
    for index, shard in enumerate(after.shards):
        if shard.address in shards:
            yield from _of_shard(index, shards[shard.address], shard)
    for kind, text in FAULTS.items():
        if after.faults.get(kind, 0) > before.faults.get(kind, 0):
            yield kind, text.format(f"{after.faults[kind]:,}")
    if after.checkpoint and after.checkpoint_step != before.checkpoint_step and after.checkpoint_age_seconds >= 0:
        yield "checkpoint", f"the checkpoint at step {after.checkpoint_step:,} is complete"


def _of_worker(before: Worker, after: Worker) -> Iterator[tuple[str, str]]:
    name = f"worker {after.index}"
    is_other = after.incarnation != before.incarnation
    if is_other:
        if before.incarnation:
            yield "worker_replaced", f"{name} was taken over by {after.host or 'another process'}"
        else:
            yield "worker_joined", f"{name} has joined: {after.host or 'known from before'}"
    if after.state == Worker.STATE_LOST != before.state:
        yield "worker_lost", f"{name} has not reported for {after.silent_seconds:.0f} s; others take its records"
    if after.state == Worker.STATE_RUNNING and before.state == Worker.STATE_LOST and not is_other:
        yield "worker_back", f"{name} reports again"
    if after.state == Worker.STATE_FINISHED != before.state:
        yield "worker_finished", f"{name} has ended after {after.steps:,} steps"
    if after.input_share > LIMIT >= before.input_share:
        yield "worker_input_bound", f"{name} has waited for data for {after.input_share:.0%} of a hundred steps"


def _of_shard(index: int, before: Shard, after: Shard) -> Iterator[tuple[str, str]]:
    name, empty = f"shard {index}", after.state == Shard.STATE_EMPTY
    if after.state == Shard.STATE_SILENT != before.state:
        yield "shard_silent", f"{name} at {after.address} does not answer"
        return
    if before.state == Shard.STATE_SILENT != after.state:
        holds = ", which holds no parameters" if empty else ""
        yield "shard_back", f"{name} answers; its process is {after.uptime_seconds:.0f} s old{holds}"
    elif after.uptime_seconds < before.uptime_seconds:
        yield "shard_restarted", f"{name} was started again {after.uptime_seconds:.0f} s ago"
