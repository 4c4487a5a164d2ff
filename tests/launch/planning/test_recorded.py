"""The times of a run as those of a simulation."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from downpour.launch.planning import queueing, recorded
from downpour.launch.planning.fleet import CallCosts, Fleet
from downpour.proto import chief_pb2 as pb
from downpour.worker.chief.reports import Reports
from downpour.worker.chief.summary import worker_steps


def report(worker: int, incarnation: int, seconds: list[float]) -> pb.WorkerReport:
    return pb.WorkerReport(
        worker=worker,
        incarnation=incarnation,
        steps=1 + len(seconds),
        periods=len(seconds),
        period_seconds=sum(seconds),
        period_square_seconds=sum(one**2 for one in seconds),
    )


def write(folder: Path, steps: Any) -> Path:
    (folder / "summary.json").write_text(json.dumps({"worker_steps": steps}))
    return folder


def test_steps_of_a_worker_are_those_of_all_its_incarnations() -> None:
    reports = Reports()
    for one in (report(0, 1, [1.0, 3.0]), report(0, 4, [2.0, 2.0]), report(1, 2, [4.0, 4.0])):
        reports.add(one)
    found = worker_steps(reports)
    assert found["0"] == {"steps": 6, "seconds": 2.0, "spread": round(statistics.pstdev([1, 3, 2, 2]) / 2, 4)}
    assert found["1"] == {"steps": 3, "seconds": 4.0, "spread": 0.0}


def test_simulated_workers_are_as_fast_as_those_of_the_run(tmp_path: Path) -> None:
    steps = {"0": {"steps": 400, "seconds": 0.2, "spread": 0.3}, "1": {"steps": 100, "seconds": 0.8, "spread": 0.3}}
    found = recorded.assumptions(write(tmp_path, steps))
    assert found.spread == pytest.approx(0.3)
    nothing = (CallCosts(),)
    fleet = Fleet(2, found.seconds_per_step, nothing, nothing, spread=found.spread, relative_s=found.relative_s)
    assert fleet.workers_limit() == pytest.approx(1 / 0.2 + 1 / 0.8)
    counts, events = [0, 0], queueing.events(fleet, seed=0)
    while sum(counts) < 2000:
        event = next(events)
        counts[event.worker] += event.kind is queueing.Kind.COMPUTED
    assert counts[0] / counts[1] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({}, "none of its workers has made two steps"),
        ({"0": {"steps": 1, "seconds": 0.0, "spread": 0.0}}, "none of its workers has made two steps"),
        (None, "says nothing of its workers' steps"),
    ],
)
def test_a_run_that_says_nothing_of_its_steps_is_refused(tmp_path: Path, steps: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}.*give the folder of a run that has ended"):
        recorded.assumptions(write(tmp_path, steps))
