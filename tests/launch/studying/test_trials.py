"""Trainings that are done are not repeated, whatever has become of the file's last line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from downpour.launch.studying import trials
from downpour.launch.studying.grid import Trial
from downpour.launch.studying.trials import RUNS_FILE, Trials
from tests.launch import jobs

SCORES = [(20, {"map_at_100": 0.25}), (40, {"map_at_100": 0.5})]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Trial]:
    """What is trained, in order; training takes no time."""
    found: list[Trial] = []

    def train(self: Trials, trial: Trial) -> dict[str, Any]:
        found.append(trial)
        return {"scores": SCORES, "seconds": 2.5, "cpu_s": 4.0}

    monkeypatch.setattr(Trials, "_train", train)
    return found


def test_a_training_that_is_done_is_read(tmp_path: Path, trained: list[Trial]) -> None:
    recipe = str(jobs.write_recipe(tmp_path))
    first, second = Trial(1, ("seed=0",)), Trial(2, ("seed=1",))
    begun = Trials(recipe, (), tmp_path / "out")
    assert not begun.is_done(first)
    outcome = begun.of(first)
    assert (outcome.scores, outcome.seconds, outcome.cpu_s) == (tuple(SCORES), 2.5, 4.0)
    again = Trials(recipe, (), tmp_path / "out")
    assert again.is_done(first) and again.of(first) == outcome and again.of(second).trial == second
    assert trained == [first, second]


def test_a_line_that_was_cut_off_is_trained_again(tmp_path: Path, trained: list[Trial]) -> None:
    recipe, both = str(jobs.write_recipe(tmp_path)), [Trial(1, ("seed=0",)), Trial(2, ("seed=1",))]
    for trial in both:
        Trials(recipe, (), tmp_path).of(trial)
    file = tmp_path / RUNS_FILE
    file.write_bytes(file.read_bytes()[:-20])
    for trial in both:
        Trials(recipe, (), tmp_path).of(trial)
    assert trained == [*both, both[1]]
    lines = file.read_text().splitlines()
    assert len(lines) == 3 and json.loads(lines[0]) and json.loads(lines[2])
    for trial in both:
        assert Trials(recipe, (), tmp_path).is_done(trial)


def test_another_recipe_override_or_source_is_another_training(tmp_path: Path, trained: list[Trial]) -> None:
    recipe, trial = jobs.write_recipe(tmp_path), Trial(1, ("seed=0",))
    Trials(str(recipe), (), tmp_path).of(trial)
    assert not Trials(str(recipe), ("num_steps=3",), tmp_path).is_done(trial)
    assert not Trials(str(recipe), (), tmp_path).is_done(Trial(1, ("seed=0",), init_from="runs/a"))
    assert not Trials("quickstart", (), tmp_path).is_done(trial)
    recipe.write_text(recipe.read_text() + "\n# changed\n")
    assert not Trials(str(recipe), (), tmp_path).is_done(trial)


def test_scores_are_those_of_the_history(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"kind": "score", "step": 40, "seconds": 2.0, "map_at_100": 0.5},
        {"kind": "loss", "step": 10, "seconds": 1.0, "loss": 3.0},
        {"kind": "score", "step": 20, "seconds": 1.0, "map_at_100": 0.25},
    ]
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert trials.scores_of(tmp_path) == SCORES
    (tmp_path / "history.jsonl").write_text(json.dumps(rows[1]) + "\n")
    with pytest.raises(ValueError, match="no checkpoint was scored; a study needs held-out examples"):
        trials.scores_of(tmp_path)
