"""The progress of a job as the chief tells it: the reply of `Progress`, and the same as JSON values. No I/O."""

from __future__ import annotations

import math
import time
from typing import Any

from downpour.proto import chief_pb2 as pb
from downpour.worker.chief.details import details
from downpour.worker.chief.settings import JobSettings
from downpour.worker.chief.state import JobState
from downpour.worker.input_share import LIMIT


def progress(settings: JobSettings, state: JobState, *, detailed: bool) -> pb.ProgressReply:
    """Returns the progress; called with the chief's lock held."""
    now, known = time.monotonic(), state.journal_state
    reply = state.coordinator.progress(now)
    waits = state.phase == pb.ProgressReply.STATE_TRAINING and state.coordinator.time.started_s is None
    reply.state = pb.ProgressReply.STATE_PREPARING if waits else state.phase
    if known.score is not None:
        reply.metrics.update(known.score.metrics)
    if detailed:
        found = details(settings.recipe, state.job_id, known, state.shards, now, state.shard_windows)
        found.learning_rate = settings.schedule.rate(reply.step) * known.reactions.factor.factor
        if state.checkpoint_s is not None:
            found.checkpoint_age_seconds = now - state.checkpoint_s
        found.lease_seconds = settings.lease_s
        found.checkpoint_every_steps = 0 if settings.checkpoint_every_epoch else settings.checkpoint_every_steps
        found.expects_evaluator = settings.expects_evaluator
        found.events.extend(state.events)
        found.evaluators.extend(state.turns.progress(now))
        reply.details.CopyFrom(found)
    return reply


def as_json(reply: pb.ProgressReply) -> dict[str, Any]:
    """A detailed reply as JSON values; numbers that are not known are None."""
    more = reply.details
    return {
        "state": pb.ProgressReply.State.Name(reply.state).removeprefix("STATE_").lower(),
        "recipe": more.recipe,
        "job_id": more.job_id,
        "step": reply.step,
        "num_steps": reply.num_steps,
        "epochs": more.epochs,
        "seconds": more.train_seconds,
        "seconds_left": reply.seconds_left if reply.seconds_left >= 0 else None,
        "loss": finite(reply.loss) if reply.step else None,
        "learning_rate": more.learning_rate,
        "examples_per_second": reply.examples_per_second,
        "pushes_per_second": reply.pushes_per_second,
        "staleness_mean": reply.staleness_mean,
        "staleness_histogram": list(more.staleness_histogram),
        "scores": {name: finite(value) for name, value in sorted(reply.metrics.items())},
        "score_step": more.score_step if reply.metrics else None,
        "seconds_per_step": dict(more.seconds_per_step),
        "checkpoint": _of_checkpoint(more) if more.checkpoint else None,
        "checkpoint_every_steps": more.checkpoint_every_steps or None,
        "lease_seconds": more.lease_seconds or None,
        "failure": reply.failure,
        "faults": dict(more.faults),
        "input_bound": {
            str(worker.index): round(worker.input_share, 3) for worker in more.workers if worker.input_share > LIMIT
        },
        "workers": [_of_worker(worker) for worker in more.workers],
        "evaluators": _of_evaluators(more),
        "shards": [_of_shard(index, shard) for index, shard in enumerate(more.shards)],
        "events": [
            {"time": event.time, "step": event.step, "event": event.kind, "text": event.text} for event in more.events
        ],
    }


def finite(value: Any) -> float | None:
    """The number, or None for NaN and infinity, which JSON has not."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _of_checkpoint(more: pb.ProgressReply.Details) -> dict[str, Any]:
    age = more.checkpoint_age_seconds
    return {
        "step": more.checkpoint_step,
        "directory": more.checkpoint,
        "age_seconds": round(age, 1) if age >= 0 else None,
    }


def _of_worker(worker: pb.ProgressReply.Worker) -> dict[str, Any]:
    return {
        "worker": worker.index,
        "state": pb.ProgressReply.Worker.State.Name(worker.state).removeprefix("STATE_").lower(),
        "host": worker.host,
        "incarnation": worker.incarnation,
        "steps": worker.steps,
        "examples": worker.examples,
        "version": worker.version,
        "silent_seconds": round(worker.silent_seconds, 1),
        "input_share": round(worker.input_share, 3),
        "examples_per_second": round(worker.examples_per_second, 2),
        "staleness_mean": round(worker.staleness_mean, 3),
        "seconds_per_step": {part: round(value, 6) for part, value in worker.seconds_per_step.items()},
        "seconds": {part: round(value, 3) for part, value in worker.seconds.items()},
        "bytes_pulled": worker.bytes_pulled,
        "bytes_pushed": worker.bytes_pushed,
    }


def _of_evaluators(more: pb.ProgressReply.Details) -> list[dict[str, Any]]:
    """Those that have been heard of; one that is `expected` where none has been; none for a job without."""
    expected = {"evaluator": 0, "state": "expected", "step": None, "seconds": None, "scored": 0, "silent_seconds": None}
    found = [_of_evaluator(evaluator) for evaluator in more.evaluators]
    return found or ([expected] if more.expects_evaluator else [])


def _of_evaluator(evaluator: pb.ProgressReply.Evaluator) -> dict[str, Any]:
    state = pb.ProgressReply.Evaluator.State.Name(evaluator.state).removeprefix("STATE_").lower()
    return {
        "evaluator": evaluator.index,
        "state": state,
        "step": evaluator.step if state == "scoring" else None,
        "seconds": round(evaluator.seconds, 1),
        "scored": evaluator.scored,
        "silent_seconds": round(evaluator.silent_seconds, 1),
    }


def _of_shard(index: int, shard: pb.ProgressReply.Shard) -> dict[str, Any]:
    return {
        "shard": index,
        "address": shard.address,
        "state": pb.ProgressReply.Shard.State.Name(shard.state).removeprefix("STATE_").lower(),
        "version": shard.version,
        "pushes": shard.pushes,
        "pulls": shard.pulls,
        "pushes_per_second": round(shard.pushes_per_second, 3),
        "pushes_waiting": shard.pushes_waiting,
        "pushes_refused": shard.pushes_refused,
        "pushes_dropped": shard.pushes_dropped,
        "staleness_mean": round(shard.staleness_mean, 3),
        "seconds_per_push": {part: round(value, 6) for part, value in shard.seconds_per_push.items()},
        "bytes_received_per_second": round(shard.bytes_received_per_second),
        "bytes_sent_per_second": round(shard.bytes_sent_per_second),
        "bytes_received": shard.bytes_received,
        "bytes_sent": shard.bytes_sent,
        "state_bytes": shard.state_bytes,
        "memory_bytes": shard.memory_bytes,
        "uptime_seconds": round(shard.uptime_seconds, 1),
    }
