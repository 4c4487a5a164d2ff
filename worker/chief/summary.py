"""The final figures of a job: the object that the chief writes to `summary.json`. Pure."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from downpour.proto import chief_pb2 as pb
from downpour.proto import parameter_server_pb2 as ps_pb
from downpour.ps.layout import Layout
from downpour.worker.chief.coordinator import Coordinator
from downpour.worker.chief.reports import PARTS, Reports
from downpour.worker.chief.settings import JobSettings
from downpour.worker.chief.shards import Loss
from downpour.worker.input_share import LIMIT


def summary(
    settings: JobSettings,
    layout: Layout,
    coordinator: Coordinator,
    statuses: Sequence[ps_pb.StatusReply],
    score: pb.Score,
    losses: Sequence[Loss],
    now_s: float,
) -> dict[str, Any]:
    """Returns the summary, as JSON values.

    Args:
        settings: The job's settings.
        layout: Layout of its variables.
        coordinator: The chief's state.
        statuses: Status of every shard.
        score: The newest score, or an empty one.
        losses: Losses of the shards' memory.
        now_s: The time, on the coordinator's clock.
    """
    seconds = coordinator.time.train_s(now_s)
    examples = coordinator.reports.total(lambda r: r.examples)
    return {
        "recipe": settings.recipe,
        "num_ps": len(statuses),
        "num_workers": settings.num_workers,
        **settings.facts,
        "parameters": sum(v.size for v in layout.variables),
        "imbalance": round(layout.imbalance, 5),
        "global_steps": min(status.version for status in statuses),
        "ended_by": coordinator.ended_by(),
        **({"ended_because": coordinator.stopped[1]} if coordinator.stopped else {}),
        "seconds": round(seconds, 2),
        "examples_per_second": round(examples / seconds, 1) if seconds else 0.0,
        "loss": coordinator.reports.recent_loss(),
        **score.metrics,
        "staleness_mean": round(coordinator.reports.mean(lambda r: r.staleness_sum), 3),
        "staleness_by_cause": staleness_by_cause(coordinator.reports),
        "staleness_histogram": _histogram(statuses),
        "pushes_acknowledged": int(coordinator.reports.total(lambda r: r.pushes_acknowledged)),
        "pushes_applied_min": min(status.pushes for status in statuses),
        "pushes_applied_max": max(status.pushes for status in statuses),
        "steps_skipped": int(coordinator.reports.total(lambda r: r.steps_skipped)),
        "pushes_dropped": int(coordinator.reports.total(lambda r: r.pushes_dropped)),
        "pushes_refused": sum(status.pushes_refused for status in statuses),
        "seconds_per_step": {part: round(value, 4) for part, value in seconds_per_step(coordinator.reports).items()},
        "worker_steps": worker_steps(coordinator.reports),
        "input_bound": input_bound(coordinator.reports),
        "exchanges_ahead": int(coordinator.reports.total(lambda r: r.exchanges_ahead)),
        "pulls_late": int(coordinator.reports.total(lambda r: r.pulls_late)),
        "bytes_per_step": int(coordinator.reports.mean(lambda r: r.bytes_pulled + r.bytes_pushed)),
        "epochs": round(coordinator.leases.epochs, 4),
        "records_repeated": coordinator.leases.records_repeated,
        "records_skipped": int(coordinator.reports.total(lambda r: r.records_skipped)) + score.records_skipped,
        "skipped_examples": coordinator.reports.skipped_examples() + list(score.skipped_examples),
        "updates_lost": _updates_lost(losses, statuses),
    }


def seconds_per_step(reports: Reports) -> dict[str, float]:
    """Mean seconds of a worker's step, by part.

    A step lasts `input` + `compute` + `wait`, which is what the loop waited for exchanges. `pull` and `push` are what
    the exchange took, of which some is not waited for where it overlaps.
    """
    return {part: reports.mean(operator.attrgetter(f"{part}_seconds")) for part in PARTS}


def worker_steps(reports: Reports) -> dict[str, dict[str, float]]:
    """Steps of every worker, their mean seconds, and the standard deviation of these, relative to the mean."""
    found = {}
    for worker, totals in reports.by_worker().items():
        mean = totals.period_seconds / max(totals.periods, 1)
        variance = max(0.0, totals.period_square_seconds / max(totals.periods, 1) - mean**2)
        spread = math.sqrt(variance) / mean if mean else 0.0
        found[str(worker)] = {"steps": totals.steps, "seconds": round(mean, 6), "spread": round(spread, 4)}
    return found


def input_bound(reports: Reports) -> dict[str, float]:
    """Workers that computed faster than they read: the largest share of their steps that was waiting for data."""
    return {str(worker): round(share, 3) for worker, share in sorted(reports.input_shares().items()) if share > LIMIT}


def staleness_by_cause(reports: Reports) -> dict[str, float]:
    """Mean staleness of a push, by cause; see `downpour.worker.exchange.overlap.Course`."""
    own, early = reports.mean(lambda r: r.staleness_own_sum), reports.mean(lambda r: r.staleness_early_sum)
    return {
        "own_push": round(own, 3),
        "others_before_step": round(early, 3),
        "others_during_step": round(reports.mean(lambda r: r.staleness_sum) - own - early, 3),
    }


def _histogram(statuses: Sequence[ps_pb.StatusReply]) -> dict[str, int]:
    """Pushes by staleness, over all shards; a staleness without pushes is left out."""
    counts = staleness_counts(statuses)
    return {str(staleness): int(count) for staleness, count in enumerate(counts) if count}


def staleness_counts(statuses: Sequence[ps_pb.StatusReply]) -> list[int]:
    """Pushes of staleness 0, 1, ..., over all shards; the last counts all above."""
    known = [status.staleness_histogram for status in statuses if status.staleness_histogram]
    return [int(count) for count in np.sum(known, axis=0)] if known else []


def _updates_lost(losses: Sequence[Loss], statuses: Sequence[ps_pb.StatusReply]) -> dict[str, int]:
    """Updates lost by shard; unobserved losses are found by comparison with the shard that has the most pushes."""
    most = max(status.pushes for status in statuses)
    shards = sorted({loss.shard for loss in losses})
    seen = {shard: sum(loss.updates for loss in losses if loss.shard == shard) for shard in shards}
    return {str(shard): max(updates, most - statuses[shard].pushes) for shard, updates in seen.items()}
