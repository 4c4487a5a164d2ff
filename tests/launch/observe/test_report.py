from __future__ import annotations

import json
import sys

import pytest

from downpour.launch.job import recipe
from downpour.launch.observe import report

PNG = b"\x89PNG\r\n"


@pytest.fixture
def run_dir(tmp_path):
    losses = [{"kind": "loss", "step": 10 * i, "seconds": i, "loss": 100 / (i + 1) + i % 3} for i in range(1, 60)]
    scores = [
        {"kind": "score", "step": 100 * i, "seconds": i, "map_at_100": i / 10, "map_at_100_unweighted": i / 20}
        for i in range(7)
    ]
    text = "".join(json.dumps(row) + "\n" for row in losses + scores)
    (tmp_path / "history.jsonl").write_text(text + '{"kind": "lo')
    summary = {"recipe": "quickstart", "num_ps": 17, "num_workers": 2, "head_slices": 50, "chance": 0.02}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    return tmp_path


def test_learning_curve_is_a_picture(run_dir):
    pytest.importorskip("matplotlib")
    path = report.learning_curve(run_dir)
    assert path == run_dir / "learning_curve.png"
    assert path.read_bytes().startswith(PNG)
    assert not list(run_dir.glob("*.part*"))


@pytest.mark.parametrize("kind", ["loss", "score"])
def test_one_kind_of_row_is_enough(run_dir, kind):
    pytest.importorskip("matplotlib")
    path = run_dir / "history.jsonl"
    kept = [line for line in path.read_text().splitlines() if f'"kind": "{kind}"' in line]
    path.write_text("\n".join(kept))
    assert report.learning_curve(run_dir).exists()


def test_history_is_sorted_and_a_torn_line_left_out(run_dir):
    losses, scores = report.read_history(run_dir)
    assert (len(losses), len(scores)) == (59, 7)
    assert [row["step"] for row in losses] == sorted(row["step"] for row in losses)


def test_nothing_to_draw_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no .*history\.jsonl"):
        report.learning_curve(tmp_path)
    (tmp_path / "history.jsonl").write_text("")
    with pytest.raises(ValueError, match="neither a loss nor a score"):
        report.learning_curve(tmp_path)


def test_without_matplotlib_it_says_so(run_dir, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match="matplotlib is not installed"):
        report.learning_curve(run_dir)
    assert not (run_dir / "learning_curve.png").exists()


def test_smoothing_keeps_length_and_constants():
    assert report.smooth([5.0] * 9, 4) == [5.0] * 9
    assert report.smooth([0.0, 3.0, 6.0, 0.0], 3) == [1.5, 3.0, 3.0, 3.0]
    assert report.smooth([], 3) == []


def test_cost_table_has_a_row_for_what_is_known():
    summary = {
        "seconds_per_step": {"pull": 0.5, "compute": 3.0, "push": 0.25},
        "bytes_per_step": 245_000_000,
        "peak_pss_mb": {"ps": 161.2, "worker": 3001.0},
    }
    assert report.cost_table(summary).splitlines() == [
        "seconds a step in one worker   3.750 (pull 0.500, compute 3.000, push 0.250)",
        "MB moved a step                245.0",
        "peak memory (PSS), MB          ps 161, worker 3001",
    ]
    assert report.cost_table({}) == ""


def test_title_says_the_configuration():
    summary = {"recipe": "quickstart", "num_ps": 17, "num_workers": 2, "head_slices": 50}
    assert report.title(summary) == "quickstart: 17 shards, 2 workers, head in 50 slices"
    assert report.title({}) == "Learning curve"


def test_an_end_before_the_steps_is_said_in_words() -> None:
    job = recipe.load("quickstart", ["max_train_s=140"])
    assert report.early_end({"ended_by": "steps", "global_steps": 700}, job) == ""
    said = report.early_end({"ended_by": "max_train_s", "global_steps": 421}, job)
    assert said == (
        "ended after max_train_s, 140 s of training, at step 421 of 700; the same command with --resume trains on"
    )
    early = {"ended_by": "early stopping", "ended_because": "val_loss has not improved", "global_steps": 50}
    assert report.early_end(early, job) == "ended by early stopping at step 50 of 700: val_loss has not improved"
