"""A run whose clocks are set by an hour, forth and back, as every view shows it: only times of day move."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from downpour.launch.observe.reports.recorded import read
from downpour.launch.observe.reports.run import page as report
from tests.launch import jobs
from tests.launch.fleet import first_of_free

pytestmark = [pytest.mark.process, pytest.mark.slow]  # small: tests/launch/observe/test_reports.py and test_status.py

CLOCK = Path(__file__).parents[1] / "chaos" / "clock"
AHEAD_S = (3600.0, -3600.0)
LONGEST_S = 900.0  # more than anything in such a run takes
# A worker of ours hardly ever reads the clock that may be set; the user's data set may.
RECIPE = jobs.PACED.replace("in fast:\n", "in fast:\n                time.time()\n")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[jobs.LocalJob]:
    """A run that trains slowly as long as the file `slow` is there."""
    (tmp_path / "slow").touch()
    clocks = tmp_path / "clocks"
    clocks.mkdir()
    path = os.pathsep.join([str(CLOCK), *filter(None, [os.environ.get("PYTHONPATH")])])
    flags = (f"--metrics_port={first_of_free(6)}", "--trace=40", "--set=num_steps=1500")
    made = jobs.LocalJob(
        jobs.write_recipe(tmp_path, RECIPE), tmp_path, *flags, PYTHONPATH=path, CHAOS_CLOCKS=str(clocks)
    )
    try:
        yield made
    finally:
        made.kill()


def set_clock(run: jobs.LocalJob, role: str, ahead_s: float) -> None:
    clocks = run.run_dir.parent / "clocks"
    (clocks / role).write_text(str(ahead_s))
    seen = clocks / f"{role}.seen"
    run.wait(lambda: seen.exists() and seen.read_text() == str(ahead_s), f"{role} has read its clock")


def durations(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yields every number of JSON values with its name, except times of day."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from durations(one, f"{name}.{key}")
    elif isinstance(value, list):
        for one in value:
            yield from durations(one, name)
    elif isinstance(value, int | float) and not name.endswith((".time", ".file")):
        yield name, float(value)


def is_plausible(name: str, value: float) -> bool:
    is_time = re.search(r"seconds(_left)?$|_age$", name) and "per_second" not in name
    return value >= 0 and (not is_time or value < LONGEST_S)


def get(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=30) as answer:
        return str(answer.read().decode())


def look(run: jobs.LocalJob) -> dict[str, Any]:
    """Looks at every view; the status."""
    command = [sys.executable, "-m", "downpour.launch.cli"]
    asked = subprocess.run([*command, "status", "--json", run.run_dir], check=True, capture_output=True, text=True)
    status: dict[str, Any] = json.loads(asked.stdout)
    (url,) = re.findall(r"page (http://\S+)", run.stderr)
    page, curves = (json.loads(get(f"{url}/{name}")) for name in ("status.json", "history.json?since=0"))
    wrong = [one for view in (status, page, curves) for one in durations(view) if not is_plausible(*one)]
    assert not wrong
    assert {one["kind"] for one in (*status["findings"], *page["findings"])} <= {"input_bound"}  # its data is slow
    environment = os.environ | {"COLUMNS": "200"}
    asked = subprocess.run([*command, "top", "--once", run.run_dir], capture_output=True, text=True, env=environment)
    top = asked.stdout
    assert re.search(r", \d+:\d\d left", top) and re.search(r"checkpoint step \d+, [0-2]:\d\d ago, whole", top), top
    for target in json.loads((run.run_dir / "metrics_targets.json").read_text()):
        for line in get(f"http://{target['targets'][0]}/metrics").splitlines():
            name, _, value = line.rpartition(" ")
            is_time = name.partition("{")[0].endswith(("_seconds", "_seconds_total", "_seconds_sum"))
            if is_time and not name.startswith(("#", "process_start_time")):
                assert 0 <= float(value) < LONGEST_S, line
    return status


def test_no_view_shows_the_hour_by_which_a_clock_was_set(run: jobs.LocalJob) -> None:
    watcher = jobs.Watcher(run)
    watcher.wait_for_step(60)  # there is a checkpoint
    for role in ("chief", "worker-0"):
        for ahead_s in (*AHEAD_S, 0.0):
            set_clock(run, role, ahead_s)
            watcher.wait_for_step(watcher.progress().step + 10)
            before = look(run)
            assert all(worker["state"] == "running" for worker in before["workers"])
    watcher.assert_training()
    watcher.close()
    (run.run_dir.parent / "slow").unlink()
    assert run.end() == 0, run.stderr

    recorded = read(run.run_dir)
    seconds = [entry["seconds"] for entry in recorded.entries if entry["kind"] in ("event", "loss", "progress")]
    assert seconds == sorted(seconds) and seconds[-1] < LONGEST_S
    assert not [one for one in durations(list(recorded.entries)) if not is_plausible(*one)]
    assert "worker_lost" not in {event["event"] for event in recorded.of_kind("event")}
    assert "clock was set back" in report(recorded)
    assert json.loads((run.run_dir / "summary.json").read_text())["seconds"] < LONGEST_S
    spans = [e for e in json.loads((run.run_dir / "trace.json").read_text())["traceEvents"] if e["ph"] == "X"]
    assert spans and all(0 <= e["ts"] and 0 <= e["dur"] < 1e6 * LONGEST_S for e in spans)
