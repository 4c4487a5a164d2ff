"""A newcomer's questions: docs/watching.md says which one view answers each, and the words of the answer."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from downpour.launch.observe import status_text
from downpour.launch.observe.reports import comparison
from downpour.launch.observe.reports.recorded import Recorded
from downpour.launch.observe.terminal.frame import frame
from downpour.launch.observe.terminal.trail import Trail
from tests.launch.observe.statuses import entry, event, shard, status, worker

PAGE = (Path(__file__).parents[3] / "docs" / "watching.md").read_text()
STATUS = "`downpour status RUN`"
HOT = {"seconds_per_push": {"receive": 0.01, "queue": 0.03, "apply": 0.02}, "pushes_waiting": 2}
WHOLE = {"step": 700, "directory": "runs/mine/checkpoints/step-700", "age_seconds": 6.0, "whole": True}
DIED = (
    event("worker_lost", 310, "worker 1 has not reported for 31 s; others take its records"),
    event("worker_replaced", 316, "worker 1 was taken over by host-7 process 1"),
)
# Question: a run that raises it, and the history of that run.
RUNS: dict[str, tuple[dict[str, Any], Sequence[dict[str, Any]]]] = {
    "Which worker is slow, and in which phase?": (status(workers=[worker(0), worker(1), worker(2, input=0.4)]), ()),
    "Which shard is hot?": (status(shards=[shard(0), shard(1, **HOT), shard(2)]), ()),
    "Does staleness grow?": (status(), [entry(i, {"1": 40} if i < 26 else {"3": 40, "4": 50}) for i in range(40)]),
    "When was the last checkpoint, and is it whole?": (status(checkpoint=WHOLE), ()),
    "How long until the end?": (status(), ()),
    "Did anything die, and was anything lost?": (status(events=DIED), ()),
    "Is the input the bottleneck?": (status(input_bound={"2": 0.75}), ()),
}
COMPARED = "What did this run differ in from yesterday's?"


def rows() -> dict[str, tuple[str, str]]:
    """View and answer by question, as the table of the page has them."""
    begin = PAGE.index("| question | one view |")
    table = PAGE[begin : PAGE.index("\n\n", begin)].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {question: (view, answer.strip("`")) for question, view, answer in cells}


def test_the_page_has_every_question_and_no_other() -> None:
    assert list(rows()) == [*RUNS, COMPARED]
    assert {view for view, _ in rows().values()} == {STATUS, "`downpour compare runs/yesterday runs/today`"}


@pytest.mark.parametrize("question", RUNS)
def test_a_question_is_answered_by_status_and_in_the_same_words_by_the_terminal(question: str) -> None:
    found, history = RUNS[question]
    _, answer = rows()[question]
    text = status_text.text(found, history)
    assert answer in text, text
    healthy = status_text.text(status())
    assert answer not in healthy or question == "How long until the end?", "a run of which nothing is said has it, too"
    trail = Trail(history)
    trail.add(found)
    console = Console(record=True, width=200, file=io.StringIO(), color_system=None)
    for line in frame(trail, 200, 50):
        console.print(line, no_wrap=True)
    assert answer in console.export_text()


def test_what_differs_from_yesterdays_run_is_the_first_thing_that_compare_says() -> None:
    def run(name: str, momentum: str, loss: float) -> Recorded:
        job = {"name": "'mine'", "rule": "Momentum", "rule.momentum": momentum}
        summary = {"global_steps": 2000, "seconds": 130.0, "loss": loss, "ended_by": "steps"}
        return Recorded(Path(f"runs/{name}"), {"state": "done", "step": 2000}, summary, job, ())

    text = comparison.text(comparison.compare((run("yesterday", "0.9", 0.42), run("today", "0.5", 0.4))))
    view, answer = rows()[COMPARED]
    assert view == "`downpour compare runs/yesterday runs/today`"
    assert re.sub(r" +", " ", answer) in re.sub(r" +", " ", text), text
