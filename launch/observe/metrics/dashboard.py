"""The Grafana dashboard: `panels.ROWS` as Grafana's classic JSON model. Pure.

Two variables: the data source, and `run`, a label of the targets.
"""

from __future__ import annotations

import json
from typing import Any

from downpour.launch.observe.metrics.panels import ROWS, Panel

_WIDTH = 24  # columns of Grafana's grid
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_LAST = {"calcs": ["lastNotNull"]}
_RANKED = _LAST | {"displayMode": "table", "placement": "right", "sortBy": "Last *"}
_OPTIONS: dict[str, dict[str, Any]] = {
    "stat": {"reduceOptions": _LAST, "colorMode": "none", "graphMode": "none"},
    "bargauge": {"reduceOptions": _LAST, "displayMode": "basic", "orientation": "horizontal", "namePlacement": "top"},
    "timeseries": {"tooltip": {"mode": "multi", "sort": "desc"}},
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
    return query.replace("RUN", 'run=~"$run"').replace("JOB", "namespace, run")


def _row(number: int, title: str, y: int) -> dict[str, Any]:
    at = {"x": 0, "y": y, "w": _WIDTH, "h": 1}
    return {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": at, "panels": []}


def _panel(number: int, panel: Panel, at: dict[str, int]) -> dict[str, Any]:
    is_now = panel.kind != "timeseries"  # old values would be shown beside the present ones, or instead of none
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": _SOURCE,
        "gridPos": at,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": _overrides(panel)},
        "options": _options(panel),
        "targets": [
            {"refId": letter, "datasource": _SOURCE, "expr": _query(query), "legendFormat": legend or "__auto"}
            | ({"instant": True, "range": False} if is_now else {})
            for letter, (query, legend) in zip("ABCDEF", panel.queries, strict=False)
        ],
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    found: dict[str, Any] = {"unit": panel.unit}
    if panel.from_zero:
        found["min"] = 0
    if panel.kind == "bargauge":
        found["color"] = {"mode": "fixed", "fixedColor": "blue"}
    if panel.kind == "timeseries":
        found["custom"] = {"fillOpacity": 30 if panel.stacked else 0, "showPoints": "never"}
        if panel.stacked:
            found["custom"]["stacking"] = {"mode": "normal"}
        if panel.up_to is not None:
            found["custom"]["axisSoftMax"] = panel.up_to
    return found


def _overrides(panel: Panel) -> list[dict[str, Any]]:
    if not panel.right:
        return []
    on_the_right = {"id": "custom.axisPlacement", "value": "right"}
    return [{"matcher": {"id": "byName", "options": panel.right}, "properties": [on_the_right]}]


def _options(panel: Panel) -> dict[str, Any]:
    found = _OPTIONS[panel.kind]
    if panel.kind == "stat":
        by_name = len(panel.queries) == 1 and panel.queries[0][1]
        return found | {"textMode": "name" if by_name else "auto"}
    if panel.kind == "timeseries":
        if not panel.ranked:
            return found | {"legend": {"displayMode": "list", "placement": "bottom"}}
        is_down = panel.ranked == "highest"
        order = {"tooltip": {"mode": "multi", "sort": "desc" if is_down else "asc"}}
        return found | order | {"legend": _RANKED | {"sortDesc": is_down}}
    return found


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
