"""What the chief adds to the history once a second: events, and how fast it goes, also while shards are silent."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from downpour.proto import chief_pb2 as pb
from downpour.proto import parameter_server_pb2 as ps_pb
from downpour.ps.policy.pace import Async
from downpour.ps.policy.rules import SGD
from downpour.ps.policy.schedules import Constant
from downpour.ps.policy.staleness import Keep
from downpour.worker.chief import observer as observer_module
from downpour.worker.chief.observer import Observer
from downpour.worker.chief.progress import as_json, progress
from downpour.worker.chief.run_folder import RunFolder
from downpour.worker.chief.settings import JobSettings
from downpour.worker.chief.state import JobState


@pytest.fixture
def settings(tmp_path: Path) -> JobSettings:
    return JobSettings(
        recipe="test", rule=SGD(), schedule=Constant(0.1), pace=Async(), treatment=Keep(), num_workers=2, lease_s=9,
        num_steps=99, checkpoint_every_steps=9, max_train_s=math.inf, num_records=9, lease_records=9, facts={},
        checkpoint_dir=str(tmp_path / "checkpoints"),
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    made = RunFolder(tmp_path, str(tmp_path / "checkpoints"))
    yield made
    made.close()


@pytest.fixture
def state(settings: JobSettings, folder: RunFolder) -> JobState:
    return JobState(settings, folder.journal)


def shards(counts: Sequence[int] | None, uptime: float = 9.0) -> list[tuple[str, ps_pb.StatusReply | None]]:
    """Two shards, the second of which answers always; None: neither does."""
    if counts is None:
        return [("a:1", None), ("b:2", None)]
    alike = {"ready": True, "staleness_histogram": counts, "pushes": sum(counts), "uptime_seconds": uptime}
    return [("a:1", ps_pb.StatusReply(**alike)), ("b:2", ps_pb.StatusReply(**alike))]


def report(state: JobState, steps: int, at_s: float) -> None:
    state.coordinator.report(
        pb.WorkerReport(
            worker=0, incarnation=1, steps=steps, examples=4 * steps, version=steps, compute_seconds=0.1 * steps,
            input_seconds=0.05 * steps, staleness_sum=steps / 2, loss_sum=float(steps), pushes_acknowledged=steps,
        ),
        at_s,
    )  # fmt: skip


def noted(folder: RunFolder, kind: str) -> list[dict[str, Any]]:
    lines = (folder.path / "history.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


def test_what_happens_is_noted_and_shown(settings: JobSettings, state: JobState, folder: RunFolder) -> None:
    observer = Observer(settings, state, folder)
    state.shards = shards([3])
    observer.look()
    report(state, 1, time.monotonic())
    state.shards = shards(None)
    observer.look()
    state.shards = shards([3], uptime=1.0)
    state.happened.append(("stopped", "enough"))
    observer.look()
    observer.look()  # nothing has changed since
    kinds = ["worker_joined", "shard_silent", "shard_silent", "shard_back", "shard_back", "stopped"]
    assert [entry["event"] for entry in noted(folder, "event")] == kinds
    assert [event.kind for event in state.events] == kinds
    again = JobState(settings, folder.journal)
    Observer(settings, again, folder)
    before = [(event.kind, event.text) for event in state.events]
    assert [(event.kind, event.text) for event in again.events] == before, "a restarted chief shows them, too"
    assert "1 s old" in before[3][1]


def test_speed_is_noted_as_growth_since_the_last_entry(
    settings: JobSettings, state: JobState, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observer_module, "_LEAST_S", 0.0)
    monkeypatch.setattr(observer_module, "_OF_TIME", 0.0)
    observer, begin = Observer(settings, state, folder), time.monotonic() - 10.0
    for number, counts in enumerate(([2, 1], [2, 5], None, [3, 5])):
        report(state, 10 * number + 10, begin + number)
        state.shards = shards(counts)
        observer.look()
    entries = noted(folder, "progress")
    assert [entry["staleness"] for entry in entries] == [{"0": 4, "1": 2}, {"1": 8}, {}, {"0": 2}]
    last = entries[-1]["workers"]["0"]
    assert last["examples_per_second"] == pytest.approx(40.0)
    assert last["seconds_per_step"] == pytest.approx({"input": 0.05, "compute": 0.1, "pull": 0, "push": 0, "wait": 0})
    assert entries[-1]["learning_rate"] == pytest.approx(0.1)


def test_entries_come_less_often_as_the_run_goes_on(
    settings: JobSettings, state: JobState, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer, seconds = Observer(settings, state, folder), [0.0]
    report(state, 1, time.monotonic())
    monkeypatch.setattr(type(state.coordinator.time), "train_s", lambda self, now: seconds[0])
    for _ in range(1000):
        seconds[0] += 1.0
        observer.look()
    at = [entry["seconds"] for entry in noted(folder, "progress")]
    assert at[:3] == [2.0, 4.0, 6.0] and at[-1] - at[-2] > 9.0 and len(at) < 300


def test_numbers_that_are_not_known_are_none_in_json(settings: JobSettings, state: JobState) -> None:
    reply = progress(settings, state, detailed=True)
    found = json.loads(json.dumps(as_json(reply), allow_nan=False))
    assert found["loss"] is None and found["checkpoint"] is None and found["staleness_histogram"] == []
    assert [one["state"] for one in found["workers"]] == ["expected", "expected"]
