"""Advice from simulated trainings whose scores are made up."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from downpour.launch.job import Job, recipe
from downpour.launch.planning.advice import advise, check
from downpour.launch.planning.comparison import Run
from downpour.launch.planning.simulation import Point, Simulated
from downpour.ps.policy.pace import Bounded
from downpour.ps.policy.staleness import Divide

Score = Callable[[Job], float]


def trainer(score: Score, name: str = "map_at_100") -> Callable[[Job, str], Run]:
    def train(job: Job, changes: str) -> Run:
        value = score(job)
        failed = value != value
        point = Point(100, 12800, 10.0, 1.0, {} if failed else {"chance": 0.1, name: value})
        num_workers = job.cluster.num_workers
        return Run(changes, Simulated(num_workers, (point,), (1,), 0.0, "loss is not finite" if failed else "", ""))

    return train


def of_quickstart(job: Job) -> float:
    """Hurt by overlap, helped by Divide and half the rate; diverges at a quarter of it."""
    if job.schedule.learning_rate < 2e-4 and job.cluster.num_workers > 1:
        return float("nan")
    loss = 0.004 * (job.cluster.num_workers - 1) * (1 + (job.overlap is True))
    loss *= 0.5 if isinstance(job.staleness, Divide) else 1.0
    return 0.7 - loss * (0.4 if job.schedule.learning_rate < 4e-4 else 1.0)


def test_it_keeps_what_helps_and_finds_the_fleet_that_is_good_enough() -> None:
    found = advise(recipe.load("quickstart", ["exchange.overlap=true"]), 32, trainer(of_quickstart))
    assert found.score == "map_at_100"
    assert found.changes == ("exchange.overlap=false", "staleness=Divide", "schedule.learning_rate=0.00025")
    assert found.runs[0].result.num_workers == 1 and found.runs[1].result.num_workers == 32
    assert found.enough is not None and found.enough.result.num_workers == 16
    assert "--set='staleness=Divide'" in str(found) and "16 workers come within 2%" in str(found)


def test_a_setting_that_gains_next_to_nothing_is_not_recommended() -> None:
    found = advise(recipe.load("quickstart"), 4, trainer(lambda job: 0.7 + 0.001 * isinstance(job.staleness, Divide)))
    assert found.changes == () and found.enough is found.best and "no change" in str(found)


def test_a_loss_is_better_when_it_is_lower_and_no_fleet_may_be_good_enough() -> None:
    job = recipe.load("quickstart", ["exchange.overlap=false", "pace=Bounded(lead=2)"])
    assert isinstance(job.pace, Bounded)
    found = advise(job, 8, trainer(lambda job: float(job.cluster.num_workers), "val_loss"))
    assert found.enough is None and found.changes == ()
    assert [run.result.num_workers for run in found.runs] == [1, 8, 8, 8, 4, 2]


def test_one_worker_needs_no_advice() -> None:
    with pytest.raises(ValueError, match="--workers=1; give at least 2"):
        check(1)
