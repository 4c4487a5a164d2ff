"""What a chief writes of a run, with damaged checkpoints in it and on a disk that is full for a while."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint.storage import NoRoom
from downpour.ps.layout import Variable, lay_out
from downpour.worker.chief import owner
from downpour.worker.chief.run_folder import RunFolder
from tests.conftest import SmallDisk
from tests.ps.checkpoint.saving import save

LAYOUT = lay_out([Variable("w", (30,))], 1)


def new(folder: Path, *steps: int) -> RunFolder:
    made = RunFolder(folder, str(folder / "checkpoints"))
    for step in steps:
        save(made.checkpoint_dir(step), LAYOUT, [{"parameters": np.ones(30, np.float32)}], step=step)
    return made


def spoil(folder: RunFolder, step: int) -> None:
    path = Path(folder.checkpoint_dir(step)) / "shard-00000-of-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def steps(folder: RunFolder) -> list[int]:
    return [int(name.removeprefix("step-")) for name in checkpoint.complete(folder.checkpoints)]


@pytest.mark.parametrize("wanted", ["yes", "if_any"])
def test_a_damaged_newest_checkpoint_is_not_resumed_from(tmp_path: Path, wanted: str) -> None:
    folder = new(tmp_path, 10, 20, 30)
    for step in (5, 10, 15, 25):
        folder.note({"step": step})
    spoil(folder, 30)
    spoil(folder, 20)
    Path(folder.checkpoint_dir(12)).mkdir()
    saved = folder.resume(wanted)
    assert saved is not None and saved.step == 10
    assert steps(folder) == [10]
    assert not Path(folder.checkpoint_dir(12)).exists(), "torn"
    assert [json.loads(line)["step"] for line in (tmp_path / "history.jsonl").read_text().splitlines()] == [5, 10]


@pytest.mark.parametrize("wanted", ["yes", "if_any"])
def test_where_all_are_damaged_nothing_is_resumed_and_nothing_removed(tmp_path: Path, wanted: str) -> None:
    folder = new(tmp_path, 10, 20)
    spoil(folder, 10)
    spoil(folder, 20)
    with pytest.raises(ValueError, match=r"all 2 are damaged: .*step-0000000020/.*step-0000000010/"):
        folder.resume(wanted)
    assert steps(folder) == [10, 20]


def test_damaged_ones_do_not_count_among_those_that_are_kept(tmp_path: Path) -> None:
    folder = new(tmp_path, 10, 20, 30, 40)
    spoil(folder, 40)
    found = folder.newest()
    assert found is not None and found.step == 30
    folder.keep(2, 0)
    assert steps(folder) == [20, 30]
    assert Path(folder.checkpoint_dir(40)).exists(), "to be looked at"
    for step in (50, 60):
        save(folder.checkpoint_dir(step), LAYOUT, [{"parameters": np.ones(30, np.float32)}], step=step)
    folder.keep(2, 0)
    assert steps(folder) == [50, 60]
    assert not Path(folder.checkpoint_dir(40)).exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"', "null", "{}", '{"written_at": "today"}', "\x00\xff"])
def test_a_journal_that_is_none_counts_as_none(tmp_path: Path, text: str) -> None:
    folder = new(tmp_path)
    (tmp_path / "journal.json").write_text(text)
    assert folder.journal.read() is None


def test_a_full_disk_is_said_once_and_nothing_is_missing_afterwards(
    small_disk: SmallDisk, caplog: pytest.LogCaptureFixture
) -> None:
    folder = new(small_disk.path / "run")
    state: dict[str, Any] = {"words": "x" * 9000}
    folder.journal.commit(folder.journal.stage(state))
    folder.note({"step": 1})
    small_disk.fill()
    for step in range(2, 400):
        folder.note({"step": step, "words": "x" * 50})
        folder.journal.commit(folder.journal.stage(state | {"step": step}))
    said = [record.getMessage().partition(" cannot be written")[0] for record in caplog.records]
    assert sorted(said) == [str(small_disk.path / "run" / name) for name in ("history.jsonl", "journal.json")]
    journal = folder.journal.read()
    assert journal is not None and "step" not in journal, "the last one that could be written"
    with pytest.raises(OSError, match="No space left"):
        folder.write_summary({"words": "x" * 9000})
    assert {path.name for path in (small_disk.path / "run").iterdir()} == {
        "journal.json",
        "history.jsonl",
        "owner.lock",
    }
    small_disk.make_room()
    folder.note({"step": 400})
    folder.journal.commit(folder.journal.stage(state | {"step": 400}))
    lines = (small_disk.path / "run" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 401))
    journal = folder.journal.read()
    assert journal is not None and journal["step"] == 400
    assert len(caplog.records) == 4 and "can be written again" in caplog.records[-1].getMessage()


def test_a_run_folder_that_is_away_for_a_while_ends_nothing(tmp_path: Path) -> None:
    folder = new(tmp_path / "run")
    folder.note({"step": 1})
    shutil.move(tmp_path / "run", tmp_path / "away")
    folder.note({"step": 2})
    folder.journal.commit(folder.journal.stage({"step": 2}))
    shutil.move(tmp_path / "away", tmp_path / "run")
    folder.note({"step": 3})
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


def test_a_chief_that_is_started_again_finds_its_folder_full_and_goes_on(small_disk: SmallDisk) -> None:
    run_dir = small_disk.path / "run"
    run_dir.mkdir()
    small_disk.fill()
    with pytest.raises(NoRoom, match="No space left"):
        RunFolder(run_dir, str(run_dir / "checkpoints"))
    small_disk.make_room()
    owner.write_identity(run_dir, owner.Identity("a"))
    small_disk.fill()
    RunFolder(run_dir, str(run_dir / "checkpoints")).close()


def test_checkpoints_that_a_score_keeps_stay_beside_the_newest(tmp_path: Path) -> None:
    folder = new(tmp_path, 10, 20, 30, 40)
    folder.keep(1, 0, {20, 30, 99})
    assert steps(folder) == [20, 30, 40]
    folder.keep(1, 0, {30})
    assert steps(folder) == [30, 40]
