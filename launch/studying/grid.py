"""The trainings of a study: which overrides each has, and where it stands on the axis. Pure.

A study varies one thing and repeats every training with several seeds, each of which also draws another part of the
data. The same arguments give the same trainings, so that a study which was interrupted finds those that it has done.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from downpour.launch.job import Job, overrides

RANDOM, INITIALISED = "random", "checkpoint"  # curves of `init`
# Fields of schedules that are numbers of steps.
_STEP_FIELDS = ("boundaries", "every", "first_steps", "steps", "warmup_steps")
_HOW_TO_RESTRICT = (
    "data.num_examples and data.only_labels are fields of ImageRecords and Examples (docs/data.md); give a data set "
    "of your own such fields, a frozen dataclass"
)


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        size: Place on the axis; 0 where the axis is that of its checkpoints.
        overrides: Of the recipe, each `key=value`, after those of the whole study.
        curve: Name of the curve that it belongs to; "" where there is one.
        init_from: Where its initial values are read; "" for fresh ones.
        init_only: Name patterns of the variables that are read; none for all.
        seed: Of initial values, order, augmentation and the choice of examples.
    """

    size: float
    overrides: tuple[str, ...] = ()
    curve: str = ""
    init_from: str = ""
    init_only: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Study:
    """A grid of trainings.

    Attributes:
        kind: `data-size`, `labels`, `capacity`, `epochs` or `init`.
        axis: What the sizes are, for table and plot.
        trials: The trainings, in the order in which they run.
        of_checkpoints: Whether every checkpoint is a point, at its step; else the last one, at the trial's size.
        every: Steps between two checkpoints, where they are points.
        num_steps: Steps of a training, where its checkpoints are points.
    """

    kind: str
    axis: str
    trials: tuple[Trial, ...]
    of_checkpoints: bool = False
    every: int = 1
    num_steps: int = 1


def with_seeds(settings: Sequence[Trial], first: int, num_seeds: int) -> tuple[Trial, ...]:
    """Every setting with each of `num_seeds` seeds, seed by seed, so that what else a machine does hits all settings.

    Args:
        settings: Trainings without their seeds.
        first: The first seed.
        num_seeds: Their number.

    Raises:
        ValueError: There is no seed.
    """
    if num_seeds < 1:
        raise ValueError(f"--seeds={num_seeds}; give at least 1")
    seeds = range(first, first + num_seeds)
    return tuple(
        replace(one, seed=seed, overrides=(*one.overrides, f"seed={seed}")) for seed in seeds for one in settings
    )


def data_sizes(num_records: int, fractions: Sequence[str], sizes: Sequence[str], batch_size: int) -> list[int]:
    """Numbers of examples, ascending.

    Args:
        num_records: Training examples that there are.
        fractions: Of them, above 0 and at most 1; none where sizes are given.
        sizes: Numbers of examples; none where fractions are given.
        batch_size: The least size that can be trained on.

    Raises:
        ValueError: Both or neither are given, one is refused, there are more than the data have, or fewer than two.
    """
    if bool(fractions) == bool(sizes):
        raise ValueError("give one of --fractions=0.01,0.1,1 and --sizes=600,6000,60000")
    found = [_size_of(text, num_records) for text in fractions] or [_whole("--sizes", text) for text in sizes]
    if max(found) > num_records:
        raise ValueError(f"--sizes: {max(found)} is more than the {num_records} training examples that there are")
    if min(found) < batch_size:
        raise ValueError(
            f"{min(found)} examples are fewer than a batch, {batch_size}; give larger sizes, or --set=batch_size"
        )
    return checked_sizes(found)


def checked_sizes(sizes: Sequence[int]) -> list[int]:
    """Sizes, ascending; raises `ValueError` for fewer than two, or one that is given twice."""
    if len(sizes) < 2:
        raise ValueError(f"one size, {', '.join(map(str, sizes))}; a study needs at least two")
    if twice := [size for number, size in enumerate(sizes) if size in sizes[:number]]:
        raise ValueError(f"size {twice[0]} occurs twice; give different ones")
    return sorted(sizes)


def of_data_sizes(job: Job, sizes: Sequence[int], num_records: int, equal: str) -> list[Trial]:
    """Trainings on so many examples.

    Args:
        job: The recipe's job.
        sizes: Numbers of examples.
        num_records: Training examples that there are.
        equal: `steps`: all trainings have the job's steps and schedule, as in Sun et al. 2017. `epochs`: all have the
            job's epochs; steps and schedule shrink with the examples.

    Raises:
        ValueError: The job's data have no field for it.
    """
    _check_field(job, "data.num_examples")
    shorter = {size: _shrunk(job, size / num_records) if equal == "epochs" else () for size in sizes}
    return [Trial(size, (f"data.num_examples={size}", *shorter[size])) for size in sizes]


def of_labels(job: Job, vocabularies: Sequence[Sequence[int]], scored: str) -> list[Trial]:
    """Trainings on sub-vocabularies.

    Args:
        job: The recipe's job.
        vocabularies: Numbers of the labels that are kept, one sequence a training, the smallest first.
        scored: `common` scores the labels of the smallest one in all trainings, `kept` those that each keeps.

    Raises:
        ValueError: The job's data have no field for it.
    """
    _check_field(job, "data.only_labels")
    common = (f"data.scored_labels={_listed(vocabularies[0])}",) if scored == "common" else ()
    return [Trial(len(one), (f"data.only_labels={_listed(one)}", *common)) for one in vocabularies]


def of_capacities(job: Job, field: str, values: Sequence[str]) -> list[Trial]:
    """Trainings with values of a field of the job, numbers above 0.

    Raises:
        ValueError: There is no such field, a value is refused, or there are fewer than two.
    """
    trials = []
    for text in values:
        overrides.apply(job, [f"{field}={text}"])  # raises
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            raise ValueError(f"--sizes: {text!r} is no number above 0; a size has a place on the axis")
        trials.append(Trial(number, (f"{field}={text}",)))
    if len({trial.size for trial in trials}) < max(len(trials), 2):
        raise ValueError(f"--sizes={','.join(values)}; give at least two, all different")
    return sorted(trials, key=lambda trial: trial.size)


def of_checkpoints(job: Job, num_scores: int, init_from: str = "", init_only: Sequence[str] = ()) -> Study:
    """The trainings whose checkpoints are the points, without seeds: one, or one from random and one from given values.

    Args:
        job: The recipe's job.
        num_scores: Checkpoints that are scored.
        init_from: Where the second training's initial values are read; "" for one training.
        init_only: Name patterns of the variables that are read; none for all.

    Raises:
        ValueError: There are fewer than two checkpoints, or more than steps.
    """
    if not 2 <= num_scores <= job.num_steps:
        raise ValueError(f"--scores={num_scores}; give from 2 to {job.num_steps}, the steps of the training")
    every = -(-job.num_steps // num_scores)
    # As ends of epochs, of which the evaluator scores each; of other checkpoints it takes the newest.
    changes = (f"steps_per_epoch={every}", "checkpoint_every_epoch=true", f"checkpoint_every_steps={job.num_steps}")
    trials: tuple[Trial, ...] = (Trial(0, changes),)
    if init_from:
        random = Trial(0, changes, RANDOM)
        trials = random, replace(random, curve=INITIALISED, init_from=init_from, init_only=tuple(init_only))
    return Study("init" if init_from else "epochs", "global step", trials, True, every, job.num_steps)


def _shrunk(job: Job, share: float) -> tuple[str, ...]:
    """Overrides that shorten a job's steps and those of its schedule."""
    steps = max(1, round(job.num_steps * share))
    changes = [f"num_steps={steps}", f"checkpoint_every_steps={min(job.checkpoint_every_steps, steps)}"]
    for name in _STEP_FIELDS:
        value = getattr(job.schedule, name, None)
        if isinstance(value, tuple):
            changes.append(f"schedule.{name}={_listed([max(1, round(one * share)) for one in value])}")
        elif value:
            changes.append(f"schedule.{name}={max(1, round(value * share))}")
    return tuple(changes)


def _check_field(job: Job, field: str) -> None:
    if field not in {leaf.key for leaf in overrides.leaves(job)}:
        raise ValueError(f"the recipe's data, {type(job.data).__name__}, have no field {field}; {_HOW_TO_RESTRICT}")


def _size_of(text: str, num_records: int) -> int:
    try:
        fraction = float(text)
    except ValueError:
        fraction = math.nan
    if not 0 < fraction <= 1:
        raise ValueError(f"--fractions: {text!r} is not a number above 0 and at most 1, such as 0.1")
    return round(fraction * num_records)


def _whole(flag: str, text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise ValueError(f"{flag}: {text!r} is not a whole number of at least 1")
    return int(text)


def whole_sizes(sizes: Sequence[str]) -> list[int]:
    """Whole numbers of at least 1 out of `--sizes`, ascending, at least two; raises `ValueError` for others."""
    return checked_sizes([_whole("--sizes", text) for text in sizes])


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))
