"""Rows of epochs, read while they are appended."""

from __future__ import annotations

import json
import math
from pathlib import Path

from downpour.launch.fitting.history import EpochRows, by_name, first_open, lines, values


def row(epoch: int, **more: float) -> str:
    return json.dumps({"kind": "epoch", "epoch": epoch, "step": 10 * epoch + 10, "seconds": 1.0, **more}) + "\n"


def test_rows_come_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    rows = EpochRows(path)
    assert rows.new() == []
    text = json.dumps({"kind": "loss", "step": 3, "loss": 2.0}) + "\n" + row(0, loss=1.5)
    path.write_text(text + row(1, loss=1.0)[:12])
    assert [found["epoch"] for found in rows.new()] == [0] and rows.new() == []
    path.write_text(text + row(1, loss=1.0))
    (found,) = rows.new()
    assert values(found) == {"loss": 1.0} and rows.new() == []
    path.write_text(text)  # a chief that resumes removes what came later
    assert rows.new() == []
    path.write_text(text + row(1, loss=7.0) + "nonsense\n" + row(2, loss=0.5))
    assert [found["epoch"] for found in rows.new()] == [2]
    assert [found["epoch"] for found in EpochRows(path, first=1).new()] == [1, 2]


def test_every_name_has_a_value_an_epoch() -> None:
    rows = [json.loads(row(0, loss=2.0)), json.loads(row(1, loss=1.0, val_loss=3.0))]
    found = by_name(rows)
    assert found["loss"] == [2.0, 1.0] and math.isnan(found["val_loss"][0]) and found["val_loss"][1] == 3.0
    assert by_name([]) == {"loss": []}


def test_a_run_that_resumes_tells_what_it_has_noted_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    assert lines(path) == frozenset() and first_open(path, 99) == 0
    noted = row(0, loss=3.0, val_loss=3.0) + row(1, loss=2.0, val_loss=2.0)
    path.write_text(noted + row(2, loss=1.0) + row(3, loss=0.5))
    assert first_open(path, 35) == first_open(path, 40) == 2  # two were noted without their scores at the stop
    rows = EpochRows(path, known=lines(path))
    assert rows.new() == []
    path.write_text(noted)
    assert rows.new() == []
    path.write_text(noted + row(2, loss=1.0, val_loss=1.0) + row(3, loss=0.5, val_loss=0.5) + row(4, loss=0.25))
    assert [found["epoch"] for found in rows.new()] == [2, 3, 4]
    path.write_text(row(0, loss=3.0) + row(1, loss=2.0))
    assert first_open(path, 10) == 1 and first_open(path, 20) == 2  # of a run without scores
