"""Studies how a recipe's score grows: trains a grid with several seeds, fits a line over the logarithm, draws it.

    downpour study data-size --recipe=quickstart --fractions=0.1,0.3,1
    downpour study labels --recipe=quickstart --sizes=20,60,130
    downpour study capacity --recipe=quickstart --field=model.width --sizes=8,16
    downpour study epochs --recipe=quickstart --scores=10
    downpour study init --recipe=quickstart --init_from=runs/first

Every training is a local run with its own processes, as `downpour train`. `data-size` trains on parts of the examples,
all for the recipe's steps, or with --equal=epochs for its epochs. `labels` keeps the most frequent labels, or with
--by=subtree those below the most frequent roots, in the targets, and scores the common ones. `capacity` varies one
field of the job. `epochs` scores the checkpoints of a training over its steps; `init` those of one from random values
and of one from a checkpoint.

The folder --out gets a line in runs.jsonl for each training when it has ended, then study.md, a table, and the plot.
The same command again repeats no training that has ended. The last line on stdout is `RESULT {json}`.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import flags, logging

from downpour import files
from downpour.launch.job import Job, recipe, recipe_flags
from downpour.launch.job.build import check_data
from downpour.launch.local import ProcessFailed, Stopped
from downpour.launch.local.supervisor import Interrupted
from downpour.launch.roles import entry, initial
from downpour.launch.roles.command_line import Syntax
from downpour.launch.studying import grid, report, vocabulary
from downpour.launch.studying.grid import Study, Trial, with_seeds
from downpour.launch.studying.trials import Trials
from downpour.model.data.batches import has_labelled_images, positions_in_batch

SYNTAX = Syntax(
    shown="kind recipe set seeds fractions sizes equal by scored field scores init_from init_only score out plot",
    positional="kind",
)
TABLE_FILE = "study.md"


@dataclass(frozen=True)
class StudyConfig:
    """What to study, and where its results go.

    Attributes:
        recipe: Name of the recipe, or path of its .py file.
        overrides: Of all its trainings.
        job: The recipe's job with them.
        study: The trainings.
        score: Name of the score; "" to choose.
        out: Folder of the results.
        plot: File of the plot.
    """

    recipe: str
    overrides: tuple[str, ...]
    job: Job
    study: Study
    score: str
    out: Path
    plot: Path


def main() -> None:
    """Runs the study of the flags."""
    define()
    entry.run(lambda: run(from_flags()), role="study", syntax=SYNTAX)


def define() -> None:
    """Defines the flags."""
    recipe_flags.define()
    flags.DEFINE_enum("kind", None, KINDS, "What is varied.")
    flags.DEFINE_integer("seeds", 3, "Trainings of each size, with the job's seed and those after it.")
    flags.DEFINE_list("fractions", [], "Of the training examples, for data-size: 0.01,0.1,1.")
    text = "Numbers of examples (data-size), labels or roots (labels), or values of --field (capacity): 600,6000,60000."
    flags.DEFINE_list("sizes", [], text)
    text = "What trainings on fewer examples share with the recipe's: steps and schedule, or epochs."
    flags.DEFINE_enum("equal", "steps", ["steps", "epochs"], text)
    text = "Which labels are kept: the most frequent, or those below the most frequent roots."
    flags.DEFINE_enum("by", "frequency", ["frequency", "subtree"], text)
    text = "Which labels are scored: those that all trainings keep, or those that each keeps."
    flags.DEFINE_enum("scored", "common", ["common", "kept"], text)
    flags.DEFINE_string("field", "model.depth", "Field of the job that capacity varies.")
    flags.DEFINE_integer("scores", 10, "Checkpoints that are scored, for epochs and init.")
    flags.DEFINE_string("init_from", None, "Where init reads values: a Keras file, a checkpoint or a run's folder.")
    flags.DEFINE_list("init_only", None, "Name patterns of the variables that are read; all by default.")
    flags.DEFINE_string("score", "", "Name of the score; mAP@100 by default, or the first that is no loss.")
    flags.DEFINE_string("out", None, "Folder of the results; runs/study_KIND_NAME by default.")
    flags.DEFINE_string("plot", None, "File of the plot, .svg, .png or .pdf; study.png in --out by default.")


def from_flags() -> StudyConfig:
    """Returns the configuration of the command line.

    Raises:
        ValueError: The recipe, an override, a size or another flag is refused, or the data cannot be read.
    """
    values = flags.FLAGS.flag_values_dict()
    kind = values["kind"]
    if not kind:
        raise ValueError(f"nothing to study; give one of {', '.join(KINDS)}: downpour study data-size --recipe=NAME")
    _check_given(kind, values)
    name, overrides = recipe_flags.read()
    job = recipe.load(name, overrides)
    out = Path(values["out"] or f"runs/study_{kind.replace('-', '_')}_{job.name}")
    plot = Path(values["plot"] or out / "study.png")
    report.check_drawable(plot)
    check_data(job)
    study = KINDS[kind](job, values)
    for trial in study.trials:
        recipe.load(name, (*overrides, *trial.overrides))  # raises
    return StudyConfig(name, overrides, job, study, values["score"], out, plot)


# Flags that only some kinds have.
_OF_KINDS = {
    "fractions": ("data-size",),
    "sizes": ("data-size", "labels", "capacity"),
    "equal": ("data-size",),
    "by": ("labels",),
    "scored": ("labels",),
    "field": ("capacity",),
    "scores": ("epochs", "init"),
    "init_from": ("init",),
    "init_only": ("init",),
}


def _check_given(kind: str, values: dict[str, Any]) -> None:
    for name, kinds in _OF_KINDS.items():
        if kind not in kinds and not flags.FLAGS[name].using_default_value:
            raise ValueError(f"--{name} with {kind}; it is for {' and '.join(kinds)}")
    if kind in ("labels", "capacity") and not values["sizes"]:
        raise ValueError(f"no sizes for {kind}; give at least two, --sizes=10,100")
    if kind == "init" and not values["init_from"]:
        raise ValueError("init compares with values from a checkpoint; give --init_from=runs/NAME")


def _data_size(job: Job, values: dict[str, Any]) -> Study:
    num = job.data.num_records
    least = positions_in_batch(job.data, job.batch_size)
    sizes = grid.data_sizes(num, values["fractions"], values["sizes"], least)
    trials = grid.of_data_sizes(job, sizes, num, values["equal"])
    return Study("data-size", "training examples", with_seeds(trials, job.seed, values["seeds"]))


def _labels(job: Job, values: dict[str, Any]) -> Study:
    sizes = grid.whole_sizes(values["sizes"])
    tree = job.data.labels if has_labelled_images(job.data) else None
    if tree is not None:
        vocabulary.check_sizes(sizes, len(tree))  # before counting, which takes long
    choose = {"frequency": vocabulary.most_frequent, "subtree": vocabulary.subtrees}[values["by"]]
    vocabularies = choose(vocabulary.counts_of(job.data, job.batch_size), sizes, tree)
    trials = grid.of_labels(job, vocabularies, values["scored"])
    return Study("labels", "labels", with_seeds(trials, job.seed, values["seeds"]))


def _capacity(job: Job, values: dict[str, Any]) -> Study:
    trials = grid.of_capacities(job, values["field"], values["sizes"])
    return Study("capacity", values["field"], with_seeds(trials, job.seed, values["seeds"]))


def _checkpoints(job: Job, values: dict[str, Any]) -> Study:
    init_from, init_only = values["init_from"] or "", tuple(values["init_only"] or ())
    if init_from:
        initial.check(initial.Source(init_from, init_only or ("*",)))
    study = grid.of_checkpoints(job, values["scores"], init_from, init_only)
    trials: tuple[Trial, ...] = with_seeds(study.trials, job.seed, values["seeds"])
    return Study(study.kind, study.axis, trials, True, study.every, study.num_steps)


KINDS: dict[str, Callable[[Job, dict[str, Any]], Study]] = {
    "data-size": _data_size,
    "labels": _labels,
    "capacity": _capacity,
    "epochs": _checkpoints,
    "init": _checkpoints,
}


def run(config: StudyConfig) -> int | None:
    """Trains what is not done yet, then writes table and plot; the last line is `RESULT {json}`.

    Returns the exit code of a training that was stopped or has failed; those before it are kept.
    """
    trials, outcomes = Trials(config.recipe, config.overrides, config.out), []
    all_trials = config.study.trials
    done = sum(map(trials.is_done, all_trials))
    logging.info("%d trainings, %d of them done before, in %s", len(all_trials), done, config.out)
    try:
        for trial in all_trials:
            outcomes.append(trials.of(trial))
            name = report.score_of(outcomes[-1].scores[-1][1], config.score)
            score = outcomes[-1].scores[-1][1][name]
            logging.info("%d of %d done: %s %.4f", len(outcomes), len(all_trials), name, score)
    except (Stopped, ProcessFailed, KeyboardInterrupt) as error:
        # Between two trainings nobody has made the signal an exception of ours.
        given = Interrupted(signal.SIGINT) if isinstance(error, KeyboardInterrupt) else error
        print(f"[study] {given}; the same command goes on after {len(outcomes)} trainings", file=sys.stderr)
        return int(given.code)
    data = report.found(config.study, config.job.name, config.score, outcomes)
    text = report.table(data)
    files.write(config.out / TABLE_FILE, f"{text}\n")
    report.draw(data, config.plot)
    print(f"{text}\nRESULT {json.dumps(report.result(data))}", flush=True)
    return None


if __name__ == "__main__":
    main()
