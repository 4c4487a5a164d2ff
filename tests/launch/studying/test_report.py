"""Table, result and plot of what trainings came to."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from downpour.launch.studying import report
from downpour.launch.studying.grid import Study, Trial, with_seeds
from downpour.launch.studying.report import Found
from downpour.launch.studying.trials import Outcome

SIZES = (100, 1000, 10_000)


def sizes_study(num_seeds: int = 2) -> Found:
    """Scores log10(size) / 10, and 0.01 more with every seed."""
    study = Study("data-size", "training examples", with_seeds([Trial(size) for size in SIZES], 0, num_seeds))
    outcomes = []
    for trial in study.trials:
        last = {"loss": 1.0, "chance": 0.1, "top": math.log10(trial.size) / 10 + trial.seed / 100}
        outcomes.append(Outcome(trial, ((5, {"loss": 9.0}), (9, last)), 2, 3))
    return report.found(study, "tiny", "", outcomes)


def curves_study() -> Found:
    """Two curves of three checkpoints, each a little beyond its step."""
    trials = with_seeds([Trial(0, curve="random"), Trial(0, curve="checkpoint")], 0, 2)
    study = Study("init", "global step", trials, True, 100, 250)
    scores = {"random": (0.1, 0.2, 0.3), "checkpoint": (0.2, 0.3, 0.3)}
    outcomes = [
        Outcome(t, tuple((at, {"map_at_100": s}) for at, s in zip((101, 202, 251), scores[t.curve], strict=True)), 2, 3)
        for t in trials
    ]
    return report.found(study, "tiny", "", outcomes)


def test_the_result_has_means_by_size_and_the_line() -> None:
    data = sizes_study()
    result = report.result(data)
    assert data.score == "top", "neither a loss nor chance"
    assert result["sizes"] == list(SIZES) and result["seeds"] == 2
    assert result["scores"] == pytest.approx([0.205, 0.305, 0.405])
    assert result["slope"] == pytest.approx(0.1) and result["intercept"] == pytest.approx(0.005)
    assert result["r2"] == pytest.approx(data.line.r2, abs=1e-5) if data.line else False
    assert (result["seconds"], result["cpu_s"]) == (12, 18)
    assert json.loads(json.dumps(result)) == result


def test_a_table_has_a_line_for_every_size() -> None:
    lines = report.table(sizes_study()).splitlines()
    assert lines[2].startswith("| 100 | 0.2000 0.2100 | 0.2050 | 0.2050 | 0.19")
    assert lines[4].startswith("| 10,000 | 0.4000 0.4100 | 0.4050 | 0.4050 |") and lines[4].endswith("| +0.1000 |")
    assert lines[-1].startswith("top = 0.0050 + 0.1000 ± 0.00") and lines[-1].endswith("6 points.")


def test_two_points_have_no_band() -> None:
    study = Study("capacity", "model.width", with_seeds([Trial(4), Trial(8)], 0, 1))
    outcomes = [Outcome(trial, ((9, {"top": trial.size}),), 1, 1) for trial in study.trials]
    data = report.found(study, "tiny", "top", outcomes)
    assert report.result(data)["slope_margin"] is None
    assert report.table(data).splitlines()[2] == "| 4 | 4.0000 | 4.0000 | 4.0000 | - |  |"


def test_curves_are_compared_step_by_step() -> None:
    data = curves_study()
    result = report.result(data)
    assert result["sizes"] == [100, 200, 250] and data.line is None
    assert result["scores_random"] == [0.1, 0.2, 0.3] and result["scores_checkpoint"] == [0.2, 0.3, 0.3]
    lines = report.table(data).splitlines()
    assert lines[2] == "| 100 | 0.1000 0.1000 | 0.1000 | 0.2000 0.2000 | 0.2000 | +0.1000 |"
    assert lines[4].endswith("| +0.0000 |")


@pytest.mark.parametrize("data", [sizes_study(), sizes_study(1), curves_study()])
@pytest.mark.parametrize("name", ["plot.svg", "plot.png"])
def test_a_plot_is_drawn(tmp_path: Path, data: Found, name: str) -> None:
    pytest.importorskip("matplotlib")
    report.draw(data, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    assert content.startswith((b"<?xml", b"\x89PNG")) and len(content) > 5000
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_score_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="--score=acc; the checkpoints have map_at_100, chance"):
        report.score_of({"map_at_100": 0.5, "chance": 0.1}, "acc")
    assert report.score_of({"val_loss": 1.0, "val_chance": 0.1, "val_map_at_100": 0.5}, "") == "val_map_at_100"
    assert report.score_of({"val_loss": 1.0}, "") == "val_loss"


def test_a_plot_of_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--plot=a\.jpg; give a file that ends with \.svg, \.png, \.pdf"):
        report.check_drawable(Path("a.jpg"))


def test_what_the_decimals_do_not_show_has_no_minus() -> None:
    assert [report._signed(value) for value in (-1e-6, -0.00016, 0.5)] == ["+0.0000", "-0.0002", "+0.5000"]
