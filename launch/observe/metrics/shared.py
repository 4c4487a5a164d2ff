"""Metrics that several roles have: calls and connections of a gRPC server, the disks that a process writes to."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from downpour.proto.rpc.call_times import BOUNDS_S, CallTimes
from downpour.proto.security.gate import Counts

if TYPE_CHECKING:
    from downpour.launch.observe.metrics.scrape import Scrape

_REFUSED = {"role": "refused_role", "token": "refused_token", "malformed": "refused_malformed"}


def add_calls(scrape: Scrape, times: CallTimes) -> None:
    """Adds gRPC's server metrics (A66), with the names that OpenTelemetry's exporters give them in Prometheus."""
    started = "Calls begun, by method."
    for method, count in sorted(times.started().items()):
        scrape.counter("grpc_server_call_started_total", started, count, grpc_method=method)
    text = "Time from a call's header fields to its status, by method and status."
    for (method, status), found in sorted(times.durations().items()):
        scrape.histogram(
            "grpc_server_call_duration_seconds",
            text,
            BOUNDS_S,
            found.counts,
            found.total_s,
            grpc_method=method,
            grpc_status=status,
        )


def add_connections(scrape: Scrape, counts: Counts) -> None:
    """Adds who has come to a server, strangers included."""
    scrape.counter("downpour_server_connections_total", "Connections accepted.", counts.connections)
    text = "Of these, connections from which a call was admitted."
    scrape.counter("downpour_server_connections_admitted_total", text, counts.connections_admitted)
    text = "Connections ended by the server: for what they sent, or without a call at their deadline or to make room."
    name = "downpour_server_connections_ended_total"
    scrape.counter(name, text, counts.connections_malformed, reason="malformed")
    scrape.counter(name, text, counts.connections_dropped, reason="dropped")
    text = "Calls refused: for their caller's role, for a wrong or missing token, for what they sent."
    for reason, field in _REFUSED.items():
        scrape.counter("downpour_server_calls_refused_total", text, getattr(counts, field), reason=reason)
    scrape.counter("downpour_server_calls_broken_off_total", "Calls that ended in the middle.", counts.broken_off)


def add_disks(scrape: Scrape, folders: Mapping[str, Path]) -> None:
    """Adds size and free space of the file systems of some folders, by the folder's purpose; URLs are not given."""
    for purpose, folder in folders.items():
        try:
            usage = shutil.disk_usage(folder)
        except OSError:  # it may not exist yet
            continue
        scrape.gauge("downpour_disk_size_bytes", "Size of the folder's file system.", usage.total, folder=purpose)
        scrape.gauge("downpour_disk_free_bytes", "Free space in it.", usage.free, folder=purpose)
