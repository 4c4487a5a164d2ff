"""Epochs much shorter than a report's second, in a whole job over real gRPC in one process."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from downpour.model.data.epochs import Epochs
from downpour.proto.chief_pb2 import Score
from downpour.worker.exchange.clients import ChiefClient
from tests.worker.test_job import GIVE_UP_S, Cluster, serving

TWENTY = Epochs(160, 8)  # steps an epoch; they take a few milliseconds each
JOB: dict[str, Any] = {
    "epochs": TWENTY, "checkpoint_every_epoch": True, "checkpoint_every_steps": 1000, "num_steps": 200,
    "lease_records": 16, "keep_checkpoints": 1,
}  # fmt: skip


def rows(folder: Path, kind: str = "epoch") -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "history.jsonl").read_text().splitlines())
    return [row for row in lines if row["kind"] == kind]


def evaluate(cluster: Cluster, seconds: float, index: int = 0) -> list[int]:
    """Scores every checkpoint it is given, by its step; returns the steps."""
    client, steps = ChiefClient(f"127.0.0.1:{cluster.chief.port}", GIVE_UP_S), []
    while True:
        found = client.next_checkpoint(steps[-1] if steps else -1, index)
        if found.directory:
            time.sleep(seconds)
            assert (Path(found.directory) / "manifest.json").exists(), "what is to be scored stays"
            steps.append(int(found.step))
            client.report_score(Score(step=found.step, metrics={"val_loss": found.step}))
        if found.last or found.stop:
            client.close()
            return steps


def train(cluster: Cluster) -> dict[str, Any]:
    chief = cluster.run_chief()
    workers = [cluster.pool.submit(cluster.work, index, overlap=False, num_steps=200) for index in range(2)]
    for worker in workers:
        worker.result(60)
    summary: dict[str, Any] = chief.result(60)
    return summary


@pytest.mark.parametrize("seconds", [0.0, 0.15], ids=["an epoch takes longer than its score", "its score takes longer"])
def test_every_epoch_has_its_loss_and_the_score_of_its_own_checkpoint(tmp_path: Path, seconds: float) -> None:
    with serving(tmp_path, **JOB, expects_evaluator=True) as cluster:
        scored = cluster.pool.submit(evaluate, cluster, seconds)
        summary = train(cluster)
        steps = scored.result(60)
    found = rows(tmp_path)
    assert [row["epoch"] for row in found] == list(range(10)) and summary["records_repeated"] == 0
    assert all(math.isfinite(row["loss"]) for row in found)
    assert found[0]["loss"] > 10 * found[-1]["loss"], "the losses of an epoch are its own"
    assert steps == sorted(set(steps)) and steps[-1] >= 200
    for row in found:
        end = TWENTY.end(row["epoch"])
        assert row["step"] == end <= row["val_loss"] < TWENTY.end(row["epoch"] + 1), (row, steps)


def test_without_an_evaluator_every_epoch_has_its_loss(tmp_path: Path) -> None:
    with serving(tmp_path, **JOB) as cluster:
        train(cluster)
    assert [(row["epoch"], math.isfinite(row["loss"])) for row in rows(tmp_path)] == [(e, True) for e in range(10)]


def test_scores_of_two_evaluators_count_in_the_order_of_their_checkpoints(tmp_path: Path) -> None:
    with serving(tmp_path, **JOB, expects_evaluator=True, num_evaluators=2) as cluster:
        trained = cluster.pool.submit(train, cluster)
        client = ChiefClient(f"127.0.0.1:{cluster.chief.port}", GIVE_UP_S)
        first, second = (given(client, index) for index in range(2))
        assert first < second, "each has its own"
        client.report_score(Score(step=second, metrics={"val_loss": second}))
        client.report_score(Score(step=second, metrics={"val_loss": 0.0}))
        assert not rows(tmp_path, "score"), "the other one is being scored"
        client.report_score(Score(step=first, metrics={"val_loss": first}))
        assert [row["step"] for row in rows(tmp_path, "score")] == [first, second]
        client.close()
        scored = [cluster.pool.submit(evaluate, cluster, 0.02, index) for index in range(2)]
        trained.result(60)
        steps = sorted(step for one in scored for step in one.result(60))
    found = rows(tmp_path, "score")
    assert [row["step"] for row in found] == [first, second, *steps], "each once, in order"
    assert all(row["val_loss"] == row["step"] for row in found)
    assert [row["epoch"] for row in rows(tmp_path)] == list(range(10))


def given(client: ChiefClient, index: int) -> int:
    """Step of the first checkpoint that an evaluator is given."""
    while not (found := client.next_checkpoint(-1, index)).directory:
        pass  # the chief waits before it answers
    return int(found.step)
