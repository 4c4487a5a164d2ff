"""Which settings suit a fleet, found by simulating one after another: `advise`. Trains nothing itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from downpour.launch.job import Job, overrides
from downpour.launch.planning.comparison import Run, scores_of
from downpour.ps.policy import staleness
from downpour.ps.policy.pace import Async

_GAIN = 0.01  # relative; a setting that gains less is not worth a change, and may be noise
_FACTORS = (0.5, 0.25)  # of the learning rate


@dataclass(frozen=True)
class Advice:
    """What is recommended.

    Attributes:
        score: Name of the score that was compared.
        runs: All simulated trainings, the reference of one worker first, then the fleet as the job has it.
        changes: Settings that made the fleet's score better, each as `--set` takes it.
        best: The fleet with these.
        enough: The largest fleet, with these, whose score is within `tolerance` of one worker's; None if none is.
        tolerance: Relative.
    """

    score: str
    runs: tuple[Run, ...]
    changes: tuple[str, ...]
    best: Run
    enough: Run | None
    tolerance: float

    def __str__(self) -> str:
        reference, fleet = self.runs[0], self.runs[1]
        lines = [
            f"{self.score}: {self._value(reference)} with one worker, {self._value(fleet)} with "
            f"{fleet.result.num_workers} as the recipe has them, {self._value(self.best)} with what is recommended:"
        ]
        lines += [f"  --set='{change}'" for change in self.changes] or ["  no change"]
        least = f"{self.tolerance:.0%} of one worker's score"
        if self.enough is None:
            lines.append(f"no fleet above one worker comes within {least} in so many steps")
        else:
            lines.append(f"{self.enough.result.num_workers} workers come within {least}: {self._value(self.enough)}")
        return "\n".join(lines)

    def _value(self, run: Run) -> str:
        return f"{value_of(run, self.score):.4f}"


def advise(job: Job, num_workers: int, train: Callable[[Job, str], Run], tolerance: float = 0.02) -> Advice:
    """Tries settings for a fleet, one kind after the other, and keeps what makes its score better.

    Then it halves the fleet until its score is within `tolerance` of one worker's.

    Args:
        job: The job.
        num_workers: Workers of the fleet; see `check`.
        train: Simulates a job with its number of workers; also given how it differs from the recipe.
        tolerance: Relative.
    """
    reference = train(of_size(job, 1), "")
    score = next(iter(scores_of([reference])), "loss")
    job, changes = of_size(job, num_workers), list[str]()
    best = train(job, "")
    runs = [reference, best]
    for kind in (overlaps, treatments, rates):
        found, chosen = best, ""
        for change in kind(job):
            try:
                tried = overrides.apply(job, [change])
            except ValueError:  # what else the job says does not go with it
                continue
            runs.append(train(tried, " ".join([*changes, change])))
            if _gain(runs[-1], found, score) > (0.0 if chosen else _GAIN):
                found, chosen = runs[-1], change
        if chosen:
            best, job = found, overrides.apply(job, [chosen])
            changes.append(chosen)
    enough = best
    while _gain(enough, reference, score) < -tolerance and enough.result.num_workers > 2:
        enough = train(of_size(job, enough.result.num_workers // 2), " ".join(changes))
        runs.append(enough)
    within = _gain(enough, reference, score) >= -tolerance
    return Advice(score, tuple(runs), tuple(changes), best, enough if within else None, tolerance)


def check(num_workers: int) -> None:
    """Raises `ValueError` for a fleet that needs no advice."""
    if num_workers < 2:
        raise ValueError(f"--workers={num_workers}; give at least 2, which are compared with one")


def overlaps(job: Job) -> Iterator[str]:
    """Changes of the overlap that are worth trying."""
    if job.overlap:
        yield "exchange.overlap=false"


def treatments(job: Job) -> Iterator[str]:
    """Treatments of staleness that need no values, but for the job's and `Auto`, which stands for another."""
    if not isinstance(job.pace, Async):
        return
    for name, kind in staleness.BY_NAME.items():
        needed = [one for one in inspect.signature(kind).parameters.values() if one.default is one.empty]
        if not needed and kind not in (staleness.Auto, type(job.treatment)):
            yield f"staleness={name}"


def rates(job: Job) -> Iterator[str]:
    """Lower learning rates, if the schedule is one with a rate."""
    rate = getattr(job.schedule, "learning_rate", None)
    if rate:
        yield from (f"schedule.learning_rate={factor * rate:g}" for factor in _FACTORS)


def of_size(job: Job, num_workers: int) -> Job:
    """The job with another number of workers."""
    return replace(job, cluster=replace(job.cluster, num_workers=num_workers, max_workers=0))


def value_of(run: Run, score: str) -> float:
    """The score of a training at its end; NaN if it failed."""
    last = run.result.last
    return last.scores.get(score, last.loss if score == "loss" and not run.result.failure else float("nan"))


def _gain(run: Run, over: Run, score: str) -> float:
    """By how much the score of a run is better than another's, relative to that; below all others if it failed."""
    mine, theirs = value_of(run, score), value_of(over, score)
    if mine != mine:
        return -float("inf")
    if theirs != theirs:
        return float("inf")
    better = theirs - mine if score.endswith("loss") else mine - theirs
    return better / max(abs(theirs), 1e-12)
