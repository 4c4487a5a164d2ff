"""The Grafana dashboard: rows of panels, each with its PromQL, as Grafana's classic JSON model. Pure.

Two variables: the data source, and `run`, a label of the targets. Every panel has a description, which Grafana shows
beside its title.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_RATE = "[$__rate_interval]"
_WIDTH = 24  # columns of Grafana's grid
_STALENESS = f"sum by (le) (rate(downpour_shard_staleness_bucket{{RUN}}{_RATE}))"
_CALLS = f"sum by (grpc_status) (rate(grpc_server_call_duration_seconds_count{{RUN}}{_RATE}))"
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: Its title.
        text: What it shows, and what to do about it.
        queries: (PromQL, legend) of each query; `RUN` stands for the selector of the run.
        unit: Grafana's name of the unit.
        width: Columns of 24.
        kind: Grafana's type of panel.
        stacked: Whether series are stacked.
    """

    title: str
    text: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    width: int = 8
    kind: str = "timeseries"
    stacked: bool = False


def _stat(title: str, text: str, query: str, unit: str = "short", legend: str = "") -> Panel:
    return Panel(title, text, [(query, legend)], unit, 4, "stat")


ROWS: dict[str, Sequence[Panel]] = {
    "Job": (
        _stat("State", "State of the job, as the chief says.", "downpour_job_state{RUN} == 1", legend="{{state}}"),
        _stat("Done", "Global steps done, of all.", "downpour_job_step{RUN} / downpour_job_steps{RUN}", "percentunit"),
        _stat("Time left", "At the present rate; empty when training is over.", "downpour_job_left_seconds{RUN}", "s"),
        _stat(
            "Since the checkpoint",
            "Seconds since the newest checkpoint was complete: what a lost machine would cost.",
            "downpour_job_checkpoint_age_seconds{RUN}",
            "s",
        ),
        _stat(
            "Workers that run",
            "Workers that report; the others are expected, lost or finished.",
            'sum(downpour_job_worker_state{RUN,state="running"})',
        ),
        _stat(
            "Shards ready",
            "Shards that answer the chief and hold parameters; must be all of them.",
            'sum(downpour_job_shard_state{RUN,state="ready"})',
        ),
        Panel("Loss", "Mean over the last reports of all workers.", [("downpour_job_loss{RUN}", "loss")]),
        Panel("Scores", "Of the newest scored checkpoint.", [("downpour_job_score{RUN}", "{{score}}")]),
        Panel(
            "Throughput",
            "Over the last seconds, of all workers together.",
            [
                ("downpour_job_examples_per_second{RUN}", "examples/s"),
                ("downpour_job_steps_per_second{RUN}", "steps/s"),
            ],
        ),
        Panel(
            "Staleness",
            "Updates between the pull that a push was computed from and the push. About the number of workers less one "
            "is usual; growth means that some workers or shards have become slower.",
            [
                ("downpour_job_staleness_mean{RUN}", "mean"),
                (f"histogram_quantile(0.5, {_STALENESS})", "median"),
                (f"histogram_quantile(0.99, {_STALENESS})", "99 %"),
            ],
        ),
        Panel("Learning rate", "At this step.", [("downpour_job_learning_rate{RUN}", "learning rate")]),
        Panel(
            "Faults",
            "So far, by kind; `updates_lost` counts updates that no checkpoint had.",
            [("downpour_job_faults_total{RUN}", "{{kind}}")],
        ),
    ),
    "Workers": (
        Panel(
            "Where a step's time goes",
            "Seconds a second of all workers that a step waits for: input is the data, wait is the exchange.",
            [
                (
                    'sum by (part) (rate(downpour_job_worker_part_seconds_total{RUN,part=~"input|compute|wait"}'
                    f"{_RATE}))",
                    "{{part}}",
                )
            ],
            "s",
            stacked=True,
        ),
        Panel(
            "Examples a second by worker",
            "A line far below the others is a slow worker; the panel beside shows its slowest part.",
            [(f"rate(downpour_job_worker_examples_total{{RUN}}{_RATE})", "worker {{worker}}")],
        ),
        Panel(
            "Seconds a step by worker",
            "By part: input, compute, wait.",
            [
                (
                    f'rate(downpour_job_worker_part_seconds_total{{RUN,part=~"input|compute|wait"}}{_RATE}) / '
                    f"ignoring (part) group_left () rate(downpour_job_worker_steps_total{{RUN}}{_RATE})",
                    "worker {{worker}} {{part}}",
                )
            ],
            "s",
        ),
        Panel(
            "Last heard",
            "Seconds since each worker's last report, which comes once a second.",
            [("downpour_job_worker_silent_seconds{RUN}", "worker {{worker}}")],
            "s",
        ),
        Panel(
            "Bytes of workers",
            "Pulled and pushed, of each worker.",
            [
                (f"rate(downpour_worker_pulled_bytes_total{{RUN}}{_RATE})", "worker {{worker}} pulled"),
                (f"rate(downpour_worker_pushed_bytes_total{{RUN}}{_RATE})", "worker {{worker}} pushed"),
            ],
            "Bps",
        ),
        Panel(
            "Memory of workers, chief, evaluator",
            "Resident memory of each process.",
            [('process_resident_memory_bytes{RUN,role!="ps"}', "{{role}} {{index}}")],
            "bytes",
        ),
    ),
    "Shards": (
        Panel(
            "Pushes a second by shard",
            "The same for all shards, since every push goes to each of them.",
            [(f"rate(downpour_shard_pushes_total{{RUN}}{_RATE})", "shard {{shard}}")],
        ),
        Panel(
            "Time of calls by shard",
            "Seconds a second: the shard with the most of queue and apply is the hot one.",
            [(f"rate(downpour_shard_activity_seconds_total{{RUN}}{_RATE})", "shard {{shard}} {{activity}}")],
            "s",
        ),
        Panel(
            "Calls that wait",
            "Pushes and pulls that wait for admission now.",
            [
                ("downpour_shard_pushes_waiting{RUN}", "shard {{shard}} pushes"),
                ("downpour_shard_pulls_waiting{RUN}", "shard {{shard}} pulls"),
            ],
        ),
        Panel(
            "Bytes of shards",
            "Received in pushes and sent in pulls.",
            [
                (f"rate(downpour_shard_received_bytes_total{{RUN}}{_RATE})", "shard {{shard}} received"),
                (f"rate(downpour_shard_sent_bytes_total{{RUN}}{_RATE})", "shard {{shard}} sent"),
            ],
            "Bps",
        ),
        Panel(
            "Version",
            "Updates applied; lines run together unless a shard was restored from a checkpoint.",
            [("downpour_shard_version{RUN}", "shard {{shard}}")],
        ),
        Panel(
            "Memory of shards",
            "PSS of each process, its arena included.",
            [("downpour_shard_memory_bytes{RUN}", "shard {{shard}}")],
            "bytes",
        ),
    ),
    "Calls, strangers, machines": (
        Panel(
            "Duration of calls, 99 %",
            "Of all servers, by method.",
            [
                (
                    "histogram_quantile(0.99, sum by (le, grpc_method) "
                    f"(rate(grpc_server_call_duration_seconds_bucket{{RUN}}{_RATE})))",
                    "{{grpc_method}}",
                )
            ],
            "s",
        ),
        Panel(
            "Calls a second by status",
            "Anything but OK is a refusal, a retry or a caller that has died.",
            [(_CALLS, "{{grpc_status}}")],
        ),
        Panel(
            "Strangers",
            "Calls refused and connections ended, by reason. Token and role: somebody without the job's credentials.",
            [
                ("sum by (reason) (downpour_server_calls_refused_total{RUN})", "calls: {{reason}}"),
                ("sum by (reason) (downpour_server_connections_ended_total{RUN})", "connections: {{reason}}"),
            ],
        ),
        Panel(
            "Free disk",
            "Of the file systems that processes write to.",
            [("downpour_disk_free_bytes{RUN}", "{{role}} {{index}} {{folder}}")],
            "bytes",
        ),
        Panel(
            "Processors",
            "Processor seconds a second of each process.",
            [(f"rate(process_cpu_seconds_total{{RUN}}{_RATE})", "{{role}} {{index}}")],
        ),
        Panel(
            "Evaluator",
            "Checkpoints scored, and the step of the last one.",
            [
                ("downpour_evaluator_checkpoints_total{RUN}", "checkpoints"),
                ("downpour_evaluator_step{RUN}", "step"),
            ],
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """Returns the dashboard."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append(_row(len(panels) + 1, title, y))
        y += 1
        x = height = 0
        for panel in row:
            if x + panel.width > _WIDTH:
                x, y = 0, y + height
            height = 4 if panel.kind == "stat" else 8
            panels.append(_panel(len(panels) + 1, panel, {"x": x, "y": y, "w": panel.width, "h": height}))
            x += panel.width
        y += height
    return {
        "uid": "downpour",
        "title": "Downpour",
        "description": "A job: progress, workers, shards, calls. Written by `downpour monitoring`.",
        "tags": ["downpour"],
        "timezone": "browser",
        "editable": True,
        "graphTooltip": 1,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "10s",
        "schemaVersion": 39,
        "templating": {"list": [_source_variable(), _run_variable()]},
        "annotations": {"list": []},
        "panels": panels,
    }


def text() -> str:
    """Returns the dashboard as a file's text."""
    return json.dumps(dashboard(), indent=2) + "\n"


def expressions() -> list[str]:
    """Returns the PromQL of every query, with Grafana's variables."""
    return [_query(query) for row in ROWS.values() for panel in row for query, _ in panel.queries]


def _query(query: str) -> str:
    return query.replace("RUN", 'run=~"$run"')


def _row(number: int, title: str, y: int) -> dict[str, Any]:
    at = {"x": 0, "y": y, "w": _WIDTH, "h": 1}
    return {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": at, "panels": []}


def _panel(number: int, panel: Panel, at: dict[str, int]) -> dict[str, Any]:
    custom: dict[str, Any] = {"fillOpacity": 30 if panel.stacked else 0, "showPoints": "never"}
    if panel.stacked:
        custom["stacking"] = {"mode": "normal"}
    stat = {
        "reduceOptions": {"calcs": ["lastNotNull"]},
        "textMode": "name" if panel.queries[0][1] else "auto",
        "colorMode": "none",
    }
    series = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}
    is_stat = panel.kind == "stat"
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": _SOURCE,
        "gridPos": at,
        "fieldConfig": {"defaults": {"unit": panel.unit} | ({} if is_stat else {"custom": custom}), "overrides": []},
        "options": stat if is_stat else series,
        "targets": [
            {"refId": letter, "datasource": _SOURCE, "expr": _query(query), "legendFormat": legend or "__auto"}
            for letter, (query, legend) in zip("ABCDEF", panel.queries, strict=False)
        ],
    }


def _source_variable() -> dict[str, Any]:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "hide": 0}


def _run_variable() -> dict[str, Any]:
    query = "label_values(downpour_job_step, run)"
    return {
        "name": "run",
        "label": "Run",
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": "run"},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": False,
        "includeAll": True,
        "allValue": ".*",
        "hide": 0,
    }
