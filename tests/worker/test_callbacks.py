"""Callbacks in a whole job over real gRPC in one process; its evaluator gives the scores that a test says."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from downpour.model.data.epochs import Epochs
from downpour.proto.chief_pb2 import Score
from downpour.proto.errors import JobFailed
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint.storage import Folder
from downpour.ps.layout import STATISTIC
from downpour.ps.policy.rules import SGD
from downpour.ps.policy.schedules import StaircaseExponential
from downpour.worker import reporter
from downpour.worker.chief import healer, watch
from downpour.worker.chief.callbacks import Callback, EarlyStopping, KeepBest, ReduceOnPlateau
from downpour.worker.exchange.clients import ChiefClient, ShardClient
from downpour.worker.exchange.exchange import Parameters
from tests.conftest import wait_until
from tests.worker.test_faults import lose_memory
from tests.worker.test_job import GIVE_UP_S, LAYOUT, Cluster, Result, serving, toward_one

SCHEDULE = StaircaseExponential(0.01, 0.9, 50)
MANY = 100_000  # steps: what ends a job here are its callbacks


@pytest.fixture(autouse=True)
def _in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers report, the chief looks and shards are looked after every few hundredths of a second."""
    monkeypatch.setattr(reporter, "_EVERY_S", 0.05)
    monkeypatch.setattr(watch, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(healer, "_LOOK_EVERY_S", 0.02)


@pytest.fixture
def changes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, float]]:
    """Every change of a shard's rate, as it answered: shard, version, factor."""
    found = []
    real = ShardClient.set_rate

    def noted(self: ShardClient, number: int, factor: float) -> Any:
        rate = real(self, number, factor)
        found.append((self.shard, rate.version, rate.factor))
        return rate

    monkeypatch.setattr(ShardClient, "set_rate", noted)
    return found


def job(*callbacks: Callback, **more: Any) -> dict[str, Any]:
    """Changes of the plan: checkpoints are scored a few times a second, and only the newest is kept."""
    return {
        "callbacks": callbacks, "rule": SGD(), "schedule": SCHEDULE, "num_workers": 1, "num_steps": MANY,
        "checkpoint_every_steps": 20, "epochs": Epochs(160, 8), "keep_checkpoints": 1, "expects_evaluator": True, **more
    }  # fmt: skip


def paced(parameters: Parameters, images: Any, labels: Any) -> Result:
    time.sleep(0.002)
    return toward_one(parameters, images, labels)


def work(cluster: Cluster) -> Future[None]:
    return cluster.pool.submit(cluster.work, 0, paced, overlap=False, num_steps=MANY)


def evaluate(cluster: Cluster, scores: Iterable[float]) -> Future[list[int]]:
    """Reports these scores, one a checkpoint and the last one from then on; returns the steps."""

    def run() -> list[int]:
        client, steps, remaining = ChiefClient(f"127.0.0.1:{cluster.chief.port}", GIVE_UP_S), [], iter(scores)
        value = 0.0
        while True:
            found = client.next_checkpoint(steps[-1] if steps else -1)
            if found.directory:
                value = next(remaining, value)
                steps.append(int(found.step))
                for _ in range(2):  # the reply may be lost
                    client.report_score(Score(step=found.step, metrics={"val_loss": value}))
            if found.last or found.stop:
                client.close()
                return steps
            time.sleep(0.01)

    return cluster.pool.submit(run)


def history(folder: Path, kind: str) -> list[dict[str, Any]]:
    rows = map(json.loads, (folder / "history.jsonl").read_text().splitlines())
    return [row for row in rows if row["kind"] == kind]


Vectors = list[tuple[int, np.ndarray]]  # version and elements of every shard


def vectors_of(folder: Path, step: int) -> Vectors:
    saved = checkpoint.load(folder / "checkpoints" / f"step-{step:010d}")
    return [(entry.version, vector) for entry, vector in zip(saved.shards, saved.parameters(), strict=True)]


def replayed(shard: int, start: np.ndarray, versions: range, rates: list[tuple[int, float]]) -> np.ndarray:
    """What plain numpy makes of a shard with one worker's gradients; `rates` are factors, each from a version on."""
    w, trained = start.copy(), np.ones(start.size, bool)
    for span in LAYOUT.spans(shard):
        trained[span.start : span.stop] = span.kind != STATISTIC
    for version in versions:
        factor = [factor for since, factor in rates if since <= version][-1]
        rate = np.float32(0.01 * 0.9 ** (version // 50) * factor)
        pulled = w.astype(ml_dtypes.bfloat16).astype(np.float32)
        gradient = ((pulled - 1).view(np.uint32) & 0xFFFF0000).view(np.float32)
        w = np.where(trained, w - rate * gradient, w + 1).astype(np.float32)
    return w


def check_replay(begin: Vectors, end: Vectors, factor: float, changes: list[tuple[int, int, float]]) -> None:
    """Compares all shards with their replay, in which their rates change at the versions that they answered.

    A push that had begun kept the rate before, so each change counts from that version on, or from the next.
    """
    for shard, ((first, start), (stop, theirs)) in enumerate(zip(begin, end, strict=True)):
        mine = [(at, changed) for of, at, changed in changes if of == shard]
        for late in itertools.product((0, 1), repeat=len(mine)):
            rates = [(first, factor), *((at + by, f) for (at, f), by in zip(mine, late, strict=True))]
            if np.array_equal(replayed(shard, start, range(first, stop), rates), theirs):
                break
        else:
            raise AssertionError(f"shard {shard} from {first} to {stop} is not what {mine} make of it")


def steps_of(folder: Path) -> list[int]:
    return [int(name.removeprefix("step-")) for name in checkpoint.complete(Folder(folder / "checkpoints"))]


def test_a_job_stops_keeps_its_best_and_lowers_its_rate_and_a_resumed_one_goes_on(
    tmp_path: Path, changes: list[tuple[int, int, float]]
) -> None:
    reduce = ReduceOnPlateau(factor=0.25, patience=1)
    with serving(tmp_path, **job(EarlyStopping(patience=3), KeepBest(), reduce)) as cluster:
        chief, worker = cluster.run_chief(), work(cluster)
        steps = evaluate(cluster, [1.0, 0.5, 0.8, 0.7, 0.9]).result(GIVE_UP_S)
        worker.result(GIVE_UP_S)
        summary = chief.result(GIVE_UP_S)
    assert len(steps) >= 6, "five scores and that of the last checkpoint, which counts no longer"
    assert summary["ended_by"] == "early stopping" and summary["failure"] == ""
    assert summary["ended_because"] == "val_loss has not improved for 3 scored checkpoints"
    assert summary["best"] == {"val_loss": {"step": steps[1], "score": 0.5}}
    assert [row["step"] for row in history(tmp_path, "best")] == steps[:2]
    left = steps_of(tmp_path)
    assert {steps[1], steps[-1]} <= set(left) and not {steps[0], steps[2], steps[3]} & set(left), "one, and the best"
    assert summary["learning_rate_factor"] == 0.25**3
    assert [(row["step"], row["factor"]) for row in history(tmp_path, "rate")] == [
        (step, 0.25**n) for n, step in enumerate(steps[2:5], 1)
    ]
    told = {shard: {f for of, _, f in changes if of == shard} for shard in range(3)}
    assert all({0.25, 0.25**2} <= factors <= {0.25, 0.25**2, 0.25**3} for factors in told.values()), changes
    first = vectors_of(tmp_path, steps[-1])
    check_replay([(0, np.zeros_like(vector)) for _, vector in first], first, 1.0, changes)

    changes.clear()
    longer = job(EarlyStopping(patience=6), KeepBest(), reduce, resume="yes")
    with serving(tmp_path, **longer) as cluster:
        chief, worker = cluster.run_chief(), work(cluster)
        again = evaluate(cluster, [0.9]).result(GIVE_UP_S)
        worker.result(GIVE_UP_S)
        summary = chief.result(GIVE_UP_S)
    assert again[0] == steps[-1] and len(again) in (4, 5), "three counted before, and three more, one of them again"
    assert summary["ended_by"] == "early stopping" and summary["resumed_from"] == steps[-1]
    assert summary["best"] == {"val_loss": {"step": steps[1], "score": 0.5}} and steps_of(tmp_path)[0] == steps[1]
    assert summary["learning_rate_factor"] == 0.25**6
    assert [row["factor"] for row in history(tmp_path, "rate")] == [0.25**n for n in range(1, 7)]
    check_replay(first, vectors_of(tmp_path, again[-1]), 0.25**3, changes)


def test_a_shard_that_lost_its_memory_is_told_the_rate_and_a_new_chief_knows_it(tmp_path: Path) -> None:
    plan = job(ReduceOnPlateau(factor=0.5, patience=1, cooldown=MANY), keep_checkpoints=9)

    def rates(cluster: Cluster) -> list[tuple[int, float]]:
        clients = [ShardClient(i, a, LAYOUT, GIVE_UP_S) for i, a in enumerate(cluster.addresses)]
        found = [(status.rate.number, status.rate.factor) for status in map(ShardClient.status, clients)]
        for client in clients:
            client.close()
        return found

    with serving(tmp_path, **plan) as cluster:
        chief, worker, scored = cluster.run_chief(), work(cluster), evaluate(cluster, [1.0, 2.0])
        wait_until(lambda: rates(cluster) == [(1, 0.5)] * 3, "all shards have halved their rate")
        for name in checkpoint.complete(Folder(tmp_path / "checkpoints"))[1:]:  # of those that hold the new rate
            (tmp_path / "checkpoints" / name / "manifest.json").unlink()
        lose_memory(cluster, 1)
        wait_until(lambda: rates(cluster) == [(1, 0.5)] * 3, "shard 1 has halved its rate again")
        cluster.chief._state.coordinator.num_steps = 1
        worker.result(GIVE_UP_S)
        assert chief.result(GIVE_UP_S)["learning_rate_factor"] == 0.5
        scored.result(GIVE_UP_S)


def test_a_monitor_that_is_no_score_ends_the_job_at_the_first_score(tmp_path: Path) -> None:
    with serving(tmp_path, **job(KeepBest("val_accuracy"))) as cluster:
        chief, worker, _ = cluster.run_chief(), work(cluster), evaluate(cluster, [1.0])
        with pytest.raises(JobFailed, match=r"KeepBest: monitor is 'val_accuracy', .* loss, learning_rate, val_loss; "):
            chief.result(GIVE_UP_S)
        worker.result(GIVE_UP_S)


class Notes(Callback):
    def __init__(self, breaks_at: int | None = None) -> None:
        self.epochs: list[Any] = []
        self.checkpoints: list[tuple[int, str]] = []
        self.end: Any = None
        self._breaks_at = breaks_at

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        self.epochs.append((epoch, logs))
        if self._breaks_at is not None and epoch >= self._breaks_at:
            raise OSError("the disk of the callback is full")

    def on_checkpoint(self, step: int, path: str) -> None:
        assert Path(path, "manifest.json").exists()
        self.checkpoints.append((step, path))

    def on_train_end(self, logs: dict[str, float]) -> None:
        self.end = logs


def test_own_callbacks_hear_of_epochs_checkpoints_and_the_end(tmp_path: Path) -> None:
    notes = Notes()
    every = {"checkpoint_every_epoch": True, "checkpoint_every_steps": MANY, "keep_checkpoints": 99}
    with serving(tmp_path, **job(notes, EarlyStopping(patience=2), **every)) as cluster:
        chief, worker = cluster.run_chief(), work(cluster)
        steps = evaluate(cluster, [3.0, 2.0, 2.0, 2.0]).result(GIVE_UP_S)
        worker.result(GIVE_UP_S)
        summary = chief.result(GIVE_UP_S)
    assert [step for step, _ in notes.checkpoints] == steps
    assert [epoch for epoch, _ in notes.epochs] == list(range(len(notes.epochs))) and len(notes.epochs) >= 4
    losses = [logs["loss"] for _, logs in notes.epochs]
    assert all(later < earlier for earlier, later in itertools.pairwise(losses)), "mean losses of each epoch"
    assert [logs["val_loss"] for _, logs in notes.epochs[:4]] == [3.0, 2.0, 2.0, 2.0]
    assert [logs["learning_rate"] for _, logs in notes.epochs[:3]] == [SCHEDULE.rate(step) for step in (20, 40, 60)]
    assert notes.end["val_loss"] == 2.0 == summary["val_loss"] and "loss" in notes.end


@pytest.mark.parametrize("every", [True, False])
def test_without_an_evaluator_the_loss_is_followed(tmp_path: Path, every: bool) -> None:
    notes = Notes()
    more: dict[str, Any] = {"num_steps": 200, "expects_evaluator": False, "checkpoint_every_epoch": every}
    with serving(tmp_path, **job(notes, KeepBest("loss"), EarlyStopping("loss", "max", patience=2), **more)) as cluster:
        chief, worker = cluster.run_chief(), work(cluster)
        worker.result(GIVE_UP_S)
        summary = chief.result(GIVE_UP_S)
    assert summary["ended_by"] == "early stopping" and summary["global_steps"] < 200, "the loss does not rise"
    assert [set(logs) for _, logs in notes.epochs] == [{"loss", "learning_rate"}] * len(notes.epochs)
    assert set(notes.end) == {"loss", "learning_rate"}
    best = summary["best"]["loss"]
    assert best["step"] in steps_of(tmp_path)
    if every:
        assert best["score"] in [logs["loss"] for _, logs in notes.epochs], "each epoch's own"


def test_an_exception_of_a_callback_ends_the_job_with_a_last_checkpoint(tmp_path: Path) -> None:
    notes = Notes(breaks_at=1)
    with serving(tmp_path, **job(notes)) as cluster:
        chief, worker, _ = cluster.run_chief(), work(cluster), evaluate(cluster, [1.0])
        with pytest.raises(JobFailed, match=r"Notes.on_epoch_end raised OSError: the disk of the callback is full "
                           r"\(test_callbacks.py:\d+\); the parameters before it are in"):  # fmt: skip
            chief.result(GIVE_UP_S)
        worker.result(GIVE_UP_S)
    assert [epoch for epoch, _ in notes.epochs] == [0, 1] and notes.end is None
    with serving(tmp_path, **job(EarlyStopping(), resume="yes", num_steps=1)) as cluster:
        chief = cluster.run_chief()
        evaluate(cluster, [1.0]).result(GIVE_UP_S)
        assert chief.result(GIVE_UP_S)["failure"] == "", "what ended a run does not end the resumed one"
