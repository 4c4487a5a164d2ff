"""Callbacks in jobs as they are started: by their recipe, with real roles; and what is refused before one starts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import downpour
from downpour.launch import chief
from downpour.launch.job import recipe
from downpour.launch.local import preflight
from downpour.launch.roles.topology import Topology
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint.storage import Folder
from downpour.worker.chief.callbacks import Callback, EarlyStopping, KeepBest, ReduceOnPlateau
from tests.launch import jobs

# No score is better than the first by 1, so that the second and third reduce the rate, and the third ends the job.
STOPS = """
from pathlib import Path

from downpour.worker.chief.callbacks import Callback, EarlyStopping, KeepBest, ReduceOnPlateau


class Tells(Callback):
    def on_epoch_end(self, epoch, logs):
        with Path(__file__).with_name("told").open("a") as file:
            file.write(f"{epoch} {sorted(logs)}\\n")

    def on_train_end(self, logs):
        with Path(__file__).with_name("told").open("a") as file:
            file.write("end\\n")


def job():
    score = {"monitor": "map_at_100", "min_delta": 1.0}
    return tiny(
        num_steps=1_000_000, checkpoint_every_epoch=True, steps_per_epoch=20, keep_checkpoints=1,
        callbacks=(EarlyStopping(patience=2, **score), KeepBest("map_at_100"),
                   ReduceOnPlateau(patience=1, factor=0.5, **score), Tells()),
    )
"""


@pytest.mark.slow
@pytest.mark.process
def test_a_job_ends_early_and_a_resumed_one_counts_on(tmp_path: Path) -> None:
    job = jobs.LocalJob(jobs.write_recipe(tmp_path, STOPS), tmp_path)
    try:
        assert job.end() == 0, job.stderr
        first = job.result()
        assert first["ended_by"] == "early stopping" and first["learning_rate_factor"] == 0.25
        assert "ended by early stopping at step" in job.stdout.splitlines()[-2]
        best = first["best"]["map_at_100"]
        rows = [json.loads(line) for line in (job.run_dir / "history.jsonl").read_text().splitlines()]
        scores = {row["step"]: row["map_at_100"] for row in rows if row["kind"] == "score"}
        assert best["score"] == max(scores.values()) == scores[best["step"]]
        names = checkpoint.complete(Folder(job.run_dir / "checkpoints"))
        assert f"step-{best['step']:010d}" in names and len(names) <= 3
        told = (tmp_path / "told").read_text().splitlines()
        scored = "['chance', 'chance_weighted', 'learning_rate', 'loss', 'map_at_100', 'map_at_100_unweighted']"
        assert told == [*(f"{epoch} {scored}" for epoch in range(len(told) - 1)), "end"] and len(told) >= 4, told
        job = jobs.LocalJob(tmp_path / "tiny.py", tmp_path, "--resume", "--set=callbacks=EarlyStopping(patience=3, "
                            "monitor='map_at_100', min_delta=1)")  # fmt: skip
        assert job.end() == 0, job.stderr
        again = job.result()
        assert again["ended_by"] == "early stopping" and again["learning_rate_factor"] == 0.25
        assert again["ended_because"] == "map_at_100 has not improved for 3 epochs"
    finally:
        job.kill()


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        ("KeepBest(monitor='val_loss')", r"KeepBest: monitor is 'val_loss', .* chance_weighted, map_at_100, map"),
        ("EarlyStopping(monitor='map_at_10')", "EarlyStopping: monitor is 'map_at_10', and there is no such score"),
    ],
)  # fmt: skip
def test_a_name_that_is_no_score_is_refused_before_the_start(tmp_path: Path, callback: str, message: str) -> None:
    job = recipe.load(jobs.write_recipe(tmp_path), [f"callbacks={callback}"])
    with pytest.raises(ValueError, match=message):
        preflight.check(job, evaluator=True)


def test_without_an_evaluator_only_loss_and_rate_may_be_followed(tmp_path: Path) -> None:
    job = recipe.load(jobs.write_recipe(tmp_path), ["callbacks=KeepBest"])
    where = Topology(("localhost:1",), "localhost:2", 2, evaluator=False)
    with pytest.raises(ValueError, match=r"KeepBest: .* loss, learning_rate; the others need an evaluator"):
        chief.run(chief.ChiefConfig(job, where, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@dataclasses.dataclass
class Own(Callback):
    path: str = "here"


class Plain(Callback):
    pass


class WithState(Callback):
    def __init__(self) -> None:
        self.seen = 0


def dry(tmp_path: Path, *callbacks: Any) -> Any:
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile(loss="mse", metrics=["mae"])
    x = np.zeros((80, 6), np.float32)
    given: dict[str, Any] = {"validation_data": (x, x[:, :1]), "run_dir": tmp_path / "run", "batch_size": 8}
    return downpour.fit(model, (x, x[:, :1]), callbacks=callbacks, dry_run=True, **given)


def test_a_written_recipe_has_its_callbacks_and_their_scores_are_known(tmp_path: Path) -> None:
    given = (EarlyStopping(patience=3), ReduceOnPlateau("val_mae"), Own("there"), Plain())
    job = recipe.load(dry(tmp_path, *given).recipe)
    assert job.callbacks[:2] == given[:2]
    assert [type(one).__name__ for one in job.callbacks[2:]] == ["Own", "Plain"]
    assert vars(job.callbacks[2]) == {"path": "there"}
    preflight.check(job, evaluator=True)
    with pytest.raises(ValueError, match=r"KeepBest: monitor is 'val_acc', .* loss, learning_rate, val_loss, val_mae$"):
        preflight.check(dataclasses.replace(job, callbacks=(KeepBest("val_acc"),)), evaluator=True)


def local() -> Any:
    class Local(Callback):
        pass

    return Local()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            WithState,
            r"callbacks\[0\] is a WithState, whose attributes live in this process only; make its",
        ),
        (local, r"callbacks\[0\] is local.<locals>.Local, a lambda or local function, which other processes cannot"),
        (keras.callbacks.TensorBoard, "callback TensorBoard is not supported; where tensorboardX is installed"),
    ],
)
def test_a_callback_that_other_processes_cannot_have_is_refused(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dry(tmp_path, make())
    assert not (tmp_path / "run").exists()
