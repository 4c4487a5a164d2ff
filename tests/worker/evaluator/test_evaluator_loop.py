"""The evaluator's loop, with stand-ins for the chief and for the model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from downpour.model.vision.records import RecordCounts
from downpour.proto.chief_pb2 import NextCheckpointReply, Score
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint.shard_file import Damaged, ShardFile
from downpour.ps.layout import Variable, lay_out
from downpour.worker.evaluator import evaluator
from tests.conftest import wait_until


def write_checkpoint(folder: Path, step: int) -> str:
    """A checkpoint of one shard whose file has no content."""
    directory = folder / f"step-{step}"
    directory.mkdir()
    (directory / "shard").touch()
    layout = lay_out([Variable("w", (3,))], 1)
    file = ShardFile("shard", step, step, {})
    checkpoint.write_manifest(checkpoint.Checkpoint(str(directory), step, layout, (file,)))
    return str(directory)


class Chief:
    """Offers checkpoints of steps 10, 20 and 30, the last one; keeps the scores."""

    def __init__(self, folder: Path) -> None:
        self.offers = [
            NextCheckpointReply(directory=write_checkpoint(folder, step), step=step, last=step == 30)
            for step in (10, 20, 30)
        ]
        self.scored: list[int] = []
        self.told: list[int] = []  # steps that an evaluator says it is scoring

    def next_checkpoint(self, after_step: int, evaluator: int, incarnation: int) -> NextCheckpointReply:
        assert evaluator == 0 < incarnation
        return next(offer for offer in self.offers if offer.step > after_step)

    def scoring(self, step: int, evaluator: int, incarnation: int, within_s: float) -> None:
        self.told.append(step)

    def report_score(self, score: Score) -> None:
        self.scored.append(score.step)


class Evaluator:
    """Scores any checkpoint 0.5; does something to that of one step before."""

    def __init__(self, at: str, before: Any) -> None:
        self._at, self._before = at, before

    def illustration(self) -> None:
        """Shows nothing."""

    def score(self, folder: str) -> tuple[dict[str, float], RecordCounts]:
        directory = Path(folder)
        if directory.name == self._at:
            self._before(directory)
        checkpoint.load(directory)
        if not (directory / "shard").exists():
            raise ValueError(f"cannot read {directory / 'shard'}")
        if (directory / "shard").read_text():
            raise Damaged(f"{directory / 'shard'} is damaged")
        return {"map_at_100": 0.5}, RecordCounts()


def run(folder: Path, at: str, before: Any) -> list[int]:
    chief: Any = Chief(folder)
    scorer: Any = Evaluator(at, before)
    evaluator.run(scorer, chief)
    scored: list[int] = chief.scored
    return scored


@pytest.mark.parametrize("remove", [shutil.rmtree, lambda directory: (directory / "shard").unlink()])
def test_a_checkpoint_that_is_removed_before_it_is_read_is_passed_over(tmp_path: Path, remove: Any) -> None:
    assert run(tmp_path, "step-20", remove) == [10, 30]


def test_a_damaged_checkpoint_is_passed_over_but_the_last(tmp_path: Path) -> None:
    def spoil(directory: Path) -> None:
        (directory / "shard").write_text("other bits")

    assert run(tmp_path, "step-20", spoil) == [10, 30]
    (tmp_path / "again").mkdir()
    with pytest.raises(Damaged, match="step-30/shard is damaged"):
        run(tmp_path / "again", "step-30", spoil)


def test_the_last_checkpoint_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="step-30 is not a complete checkpoint"):
        run(tmp_path, "step-30", shutil.rmtree)


def test_an_error_that_has_another_reason_is_raised(tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        raise ValueError("2 of 3 records cannot be read")

    with pytest.raises(ValueError, match="2 of 3 records"):
        run(tmp_path, "step-20", fail)


def test_the_chief_is_told_that_a_checkpoint_is_being_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator, "_TELL_EVERY_S", 0.01)
    chief: Any = Chief(tmp_path)
    scorer: Any = Evaluator("step-20", lambda directory: wait_until(lambda: len(chief.told) >= 2, "to be told twice"))
    evaluator.run(scorer, chief)
    assert chief.scored == [10, 20, 30] and 20 in chief.told
