"""The curves of the page out of a history that grows, is replaced, cut off, and very long."""

from __future__ import annotations

import json
from pathlib import Path

from downpour.launch.observe.page.history import MOST_CURVES, MOST_POINTS, Curves


def line(kind: str, step: int, **values: object) -> str:
    return json.dumps({"kind": kind, "step": step, "seconds": step / 10, **values}) + "\n"


def test_curves_grow_with_the_file_and_a_late_score_is_not_missed(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    curves = Curves(path)
    assert curves.after(0) == {"file": 0, "next": 0, "curves": {}}
    path.write_text(line("loss", 10, loss=2.0) + line("loss", 20, loss=1.0) + '{"kind": "loss", "step": 3')
    found = curves.after(0)
    assert found["curves"] == {"loss": [(10, 1.0, 2.0), (20, 2.0, 1.0)]} and found["next"] == 2
    with path.open("a") as file:
        file.write('0, "seconds": 3, "loss": 0.5}\n' + line("score", 10, top_1=0.5) + "nonsense\n[1]\n")
        file.write(line("loss", 40, loss=float("nan")))
        rates = {"examples_per_second": 7.0, "staleness_mean": 1.5, "learning_rate": 0.1}
        more = {"staleness": {"1": 5}, "workers": {"0": {"state": "running", "steps": 9}}, "shards": []}
        file.write(line("progress", 40, **rates, **more))
    later = curves.after(found["next"])
    assert later["file"] == found["file"]
    assert later["curves"] == {
        "loss": [(30, 3.0, 0.5)],
        "score.top_1": [(10, 1.0, 0.5)],
        "examples_per_second": [(40, 4.0, 7.0)],
        "staleness_mean": [(40, 4.0, 1.5)],
        "learning_rate": [(40, 4.0, 0.1)],
    }
    assert not any(curves.after(later["next"])["curves"].values())
    (entry,) = curves.progress()
    assert entry["staleness"] == {"1": 5} and entry["workers"] == {"0": {"state": "running"}}


def test_a_history_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    path, other = tmp_path / "history.jsonl", tmp_path / "other"
    path.write_text("".join(line("loss", step, loss=1.0) for step in range(9)))
    curves = Curves(path)
    before = curves.after(0)
    other.write_text(line("loss", 0, loss=3.0))
    other.replace(path)
    after = curves.after(before["next"])
    assert after["file"] != before["file"] and after["next"] == 1
    assert curves.after(0)["curves"] == {"loss": [(0, 0.0, 3.0)]}


def test_a_long_run_has_a_bounded_number_of_points_and_its_newest(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    num = 50_000
    path.write_text("".join(line("loss", step, loss=float(step)) for step in range(num)))
    curves = Curves(path)
    points = curves.after(0)["curves"]["loss"]
    assert MOST_POINTS / 3 < len(points) <= MOST_POINTS
    assert points[-1][0] == points[-1][2] == num - 1
    assert [point[0] for point in points] == sorted({point[0] for point in points})
    assert sum(point[2] for point in points) / len(points) == num / 2 or abs(points[0][2]) < num / 50
    assert len(curves._curves["loss"]._points) < 2048


def test_a_history_of_many_scores_has_a_bounded_number_of_curves(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(line("score", 1, **{f"score_{i}": 1.0 for i in range(100)}))
    assert len(Curves(path).after(0)["curves"]) == MOST_CURVES
