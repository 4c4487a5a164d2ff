"""Metrics of a shard, from the counters in its status."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from downpour.launch.observe.metrics.shared import add_calls, add_connections, add_disks
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.rpc.call_times import CallTimes
from downpour.proto.security.gate import Counts

if TYPE_CHECKING:
    from downpour.launch.observe.metrics.scrape import Scrape

_BOUNDS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)  # of the staleness

# Metric, field of the status, description.
_COUNTERS = (
    ("downpour_shard_pushes_total", "pushes", "Pushes acknowledged, dropped included."),
    ("downpour_shard_pushes_dropped_total", "pushes_dropped", "Of these: pushes of which some or all was not applied."),
    ("downpour_shard_pushes_refused_total", "pushes_refused", "Pushes refused for numbers that are not finite."),
    ("downpour_shard_pushes_repeated_total", "pushes_repeated", "Pushes sent again after they had been applied."),
    ("downpour_shard_pulls_total", "pulls", "Pulls answered to the end."),
    ("downpour_shard_received_bytes_total", "bytes_received", "Bytes of the chunks of pushes."),
    ("downpour_shard_sent_bytes_total", "bytes_sent", "Bytes of the chunks that answered pulls."),
)
_GAUGES = (
    ("downpour_shard_version", "version", "Updates applied: the shard's global step."),
    ("downpour_shard_pushes_waiting", "pushes_waiting", "Pushes that wait to be admitted."),
    ("downpour_shard_pulls_waiting", "pulls_waiting", "Pulls that wait to be admitted."),
    ("downpour_shard_state_bytes", "state_bytes", "Size of the shard's arena: parameters and optimizer slots."),
    ("downpour_shard_memory_bytes", "memory_bytes", "Memory of the process: PSS, the arena included."),
)
_ACTIVITIES = {
    "queue": "queue_seconds",
    "receive": "receive_seconds",
    "apply": "apply_seconds",
    "send": "pull_seconds",
    "pace": "pace_seconds",
}
_ACTIVITY = (
    "Seconds that calls spent: waiting for admission (queue), waiting for chunks of a push (receive), applying them "
    "(apply, processor time), encoding and sending pulls (send), waiting for the pace of the job (pace)."
)


def metrics_of_shard(
    status: Callable[[], pb.StatusReply], times: CallTimes, arena: Path | None
) -> Callable[[Scrape], None]:
    """Returns the function that adds a shard's metrics.

    Args:
        status: Returns its status.
        times: The calls of its server.
        arena: File of its arena; None for anonymous memory.
    """
    folders = {"arena": arena.parent} if arena else {}

    def add(scrape: Scrape) -> None:
        found = status()
        shard = str(found.shard)
        text = "Whether the shard holds parameters."
        scrape.gauge("downpour_shard_ready", text, found.ready, shard=shard)
        for name, field, text in _COUNTERS:
            scrape.counter(name, text, getattr(found, field), shard=shard)
        for name, field, text in _GAUGES:
            scrape.gauge(name, text, getattr(found, field), shard=shard)
        for activity, field in _ACTIVITIES.items():
            seconds = getattr(found, field)
            scrape.counter("downpour_shard_activity_seconds_total", _ACTIVITY, seconds, shard=shard, activity=activity)
        text = "Seconds that admitted pushes took, from admission to their reply."
        scrape.counter("downpour_shard_push_seconds_total", text, found.push_seconds, shard=shard)
        text = "What the schedule's learning rate is multiplied by, as callbacks have decided."
        scrape.gauge("downpour_shard_learning_rate_factor", text, found.rate.factor or 1.0, shard=shard)
        add_staleness(scrape, "downpour_shard_staleness", found.staleness_histogram, shard=shard)
        guests = {field.name: value for field, value in found.guests.ListFields()}
        add_connections(scrape, Counts(**guests))
        add_calls(scrape, times)
        add_disks(scrape, folders)

    return add


def add_staleness(scrape: Scrape, name: str, histogram: Sequence[int], **labels: str) -> None:
    """Adds a histogram of pushes by staleness: `histogram[i]` pushes of staleness i, the last entry all above."""
    bounds = [bound for bound in _BOUNDS if bound < len(histogram) - 1] if len(histogram) else list(_BOUNDS)
    counts, first = [], 0
    for bound in bounds:
        counts.append(sum(histogram[first : bound + 1]))
        first = bound + 1
    total = sum(i * count for i, count in enumerate(histogram))
    text = "Pushes by staleness: the updates between the pull that a push was computed from and the push."
    scrape.histogram(name, text, bounds, [*counts, sum(histogram[first:])], float(total), **labels)
