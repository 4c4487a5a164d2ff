"""What a job's settings are compared with: the job that wrote a checkpoint, the processes that connect."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from downpour.worker.chief.journal import Journal
from downpour.worker.chief.overlap import OverlapChoice
from downpour.worker.chief.state import JobState
from tests.worker.chief.test_checkpoints import new_plan

EARLIER = {"job": {"recipe": "tiny", "job": {"rule": "SGD", "data.x": "float32[9] of 1a", "num_steps": "30"}}}


def test_a_run_that_resumes_with_other_data_or_another_rule_says_so(tmp_path: Path) -> None:
    plan = replace(new_plan(tmp_path), job={"rule": "Adam", "data.x": "float32[9] of 2b", "num_steps": "60"})
    assert plan.changes(EARLIER) == [
        "data.x is float32[9] of 2b and was float32[9] of 1a",
        "rule is Adam and was SGD",
    ]


def test_more_steps_are_no_other_job_and_neither_is_what_an_older_version_wrote(tmp_path: Path) -> None:
    plan = replace(new_plan(tmp_path), job=EARLIER["job"]["job"] | {"num_steps": "60"})
    assert plan.changes(EARLIER) == []
    assert plan.changes({}) == plan.changes({"job": {"recipe": "tiny"}}) == []


def test_a_restarted_chief_goes_on_with_the_overlap_that_was_chosen(tmp_path: Path) -> None:
    state = JobState(new_plan(tmp_path), Journal(tmp_path / "journal.json"))
    state.overlap.resume(True)
    with state.journaled():
        pass
    journal = Journal(tmp_path / "journal.json").read()
    assert journal is not None and journal["overlap"] is True
    later = OverlapChoice()
    later.resume(journal["overlap"])
    assert later.overlaps and later.chosen
