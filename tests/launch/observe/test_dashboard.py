"""The Grafana dashboard is what Grafana's definition of a dashboard admits; panels do not overlap and have a text.

The schema is written down from Grafana's `kinds/dashboard/dashboard_kind.cue` (the classic model): what we use of it,
closed, so that a misspelt field is noticed.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from downpour.launch import monitoring
from downpour.launch.observe.metrics import dashboard


def closed(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


TEXT, FLAG, ARRAY = {"type": "string", "minLength": 1}, {"type": "boolean"}, {"type": "array"}
SOURCE = closed(["type", "uid"], type={"const": "prometheus"}, uid=TEXT)
GRID = closed(
    ["x", "y", "w", "h"],
    x={"type": "integer", "minimum": 0, "maximum": 23},
    y={"type": "integer", "minimum": 0},
    w={"type": "integer", "minimum": 1, "maximum": 24},
    h={"type": "integer", "minimum": 1},
)
TARGET = closed(
    ["refId", "datasource", "expr", "legendFormat"],
    refId={"pattern": "^[A-Z]$"},
    datasource=SOURCE,
    expr=TEXT,
    legendFormat=TEXT,
    instant=FLAG,
    range=FLAG,
)
# Units by Grafana's identifiers, of those that we use.
FIELDS = closed(
    ["defaults", "overrides"],
    defaults=closed(
        ["unit"],
        unit={"enum": ["short", "locale", "s", "bytes", "binBps", "percentunit"]},
        min={"const": 0},
        color=closed(["mode", "fixedColor"], mode={"const": "fixed"}, fixedColor=TEXT),
        custom=closed(
            ["fillOpacity", "showPoints"],
            fillOpacity={"type": "integer", "minimum": 0, "maximum": 100},
            showPoints={"enum": ["never", "auto", "always"]},
            stacking=closed(["mode"], mode={"enum": ["none", "normal", "percent"]}),
            axisSoftMax={"type": "number"},
        ),
    ),
    overrides={
        "type": "array",
        "items": closed(
            ["matcher", "properties"],
            matcher=closed(["id", "options"], id={"const": "byName"}, options=TEXT),
            properties={
                "type": "array",
                "items": closed(
                    ["id", "value"], id={"const": "custom.axisPlacement"}, value={"enum": ["left", "right"]}
                ),
            },
        ),
    },
)
CALCS = {"type": "array", "items": {"enum": ["lastNotNull"]}}
SERIES_OPTIONS = closed(
    ["legend", "tooltip"],
    legend=closed(
        ["displayMode", "placement"],
        displayMode={"enum": ["list", "table"]},
        placement={"enum": ["bottom", "right"]},
        calcs=CALCS,
        sortBy=TEXT,
        sortDesc=FLAG,
    ),
    tooltip=closed(
        ["mode", "sort"], mode={"enum": ["single", "multi", "none"]}, sort={"enum": ["none", "asc", "desc"]}
    ),
)
STAT_OPTIONS = closed(
    ["reduceOptions", "textMode", "colorMode", "graphMode"],
    reduceOptions=closed(["calcs"], calcs=CALCS),
    graphMode={"enum": ["none", "area", "line"]},
    textMode={"enum": ["auto", "name", "value", "value_and_name"]},
    colorMode={"enum": ["none", "value", "background"]},
)
BAR_OPTIONS = closed(
    ["reduceOptions", "displayMode", "orientation", "namePlacement"],
    reduceOptions=closed(["calcs"], calcs=CALCS),
    displayMode={"enum": ["basic", "lcd", "gradient"]},
    orientation={"enum": ["auto", "horizontal", "vertical"]},
    namePlacement={"enum": ["auto", "top", "left", "hidden"]},
)


def panel(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    names = ["id", "type", "title", "description", "datasource", "gridPos", "fieldConfig", "options", "targets"]
    return closed(
        names,
        id={"type": "integer", "minimum": 1},
        type={"const": kind},
        title=TEXT,
        description=TEXT,
        datasource=SOURCE,
        gridPos=GRID,
        fieldConfig=FIELDS,
        options=options,
        targets={"type": "array", "minItems": 1, "items": TARGET},
    )


ROW = closed(
    ["id", "type", "title", "collapsed", "gridPos", "panels"],
    id={"type": "integer", "minimum": 1},
    type={"const": "row"},
    title=TEXT,
    collapsed=FLAG,
    gridPos=GRID,
    panels={"type": "array", "maxItems": 0},
)
VARIABLE = closed(
    ["name", "type", "query", "hide"],
    name={"pattern": "^[a-z]+$"},
    label=TEXT,
    type={"enum": ["query", "datasource"]},
    query={"type": ["string", "object"]},
    definition=TEXT,
    datasource=SOURCE,
    refresh={"enum": [0, 1, 2]},
    sort={"type": "integer"},
    multi=FLAG,
    includeAll=FLAG,
    allValue=TEXT,
    hide={"enum": [0, 1, 2]},
)
SCHEMA = closed(
    ["uid", "title", "schemaVersion", "time", "refresh", "templating", "annotations", "panels", "graphTooltip"],
    uid={"pattern": "^[a-zA-Z0-9_-]{1,40}$"},
    title=TEXT,
    description=TEXT,
    tags={"type": "array", "items": TEXT},
    timezone={"enum": ["browser", "utc"]},
    editable=FLAG,
    graphTooltip={"enum": [0, 1, 2]},
    time=closed(["from", "to"], **{"from": {"pattern": "^now(-[0-9]+[smhd])?$"}, "to": {"const": "now"}}),
    refresh={"pattern": "^[0-9]+[smh]$"},
    schemaVersion={"type": "integer", "minimum": 36, "maximum": 0xFFFF},
    templating=closed(["list"], list={"type": "array", "items": VARIABLE}),
    annotations=closed(["list"], list=ARRAY),
    panels={
        "type": "array",
        "items": {
            "oneOf": [
                ROW,
                panel("stat", STAT_OPTIONS),
                panel("bargauge", BAR_OPTIONS),
                panel("timeseries", SERIES_OPTIONS),
            ]
        },
    },
)


@pytest.fixture(name="found")
def written(tmp_path: Path) -> dict[str, Any]:
    monitoring.run(monitoring.MonitoringConfig(tmp_path, ()))
    found: dict[str, Any] = json.loads((tmp_path / "grafana.json").read_text())
    return found


def test_it_follows_the_schema_of_grafana(found: dict[str, Any]) -> None:
    jsonschema.validate(found, SCHEMA)
    wrong = copy.deepcopy(found)
    wrong["panels"][1]["titel"] = wrong["panels"][1].pop("title")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA)


def test_panels_do_not_overlap_and_have_a_number_of_their_own(found: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for one in found["panels"]:
        at = one["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, one["title"]
        taken |= cells
    assert len({one["id"] for one in found["panels"]}) == len(found["panels"])


def test_the_worker_or_shard_in_trouble_is_on_top_of_each_table(found: dict[str, Any]) -> None:
    legends = {one["title"]: one["options"]["legend"] for one in found["panels"] if one["type"] == "timeseries"}
    tables = {title: legend["sortDesc"] for title, legend in legends.items() if legend["displayMode"] == "table"}
    lowest = {title for title, is_down in tables.items() if not is_down}
    assert lowest == {"Examples a second by worker", "Pushes a second by shard", "Version"} and len(tables) > 10


def test_every_query_is_of_the_chosen_run_and_every_legend_of_a_label(found: dict[str, Any]) -> None:
    targets = [target for one in found["panels"] for target in one.get("targets", ())]
    assert len(targets) == len(dashboard.expressions()) > 30
    for target in targets:
        assert 'run=~"$run"' in target["expr"] and not re.search("RUN|JOB", target["expr"])
