"""Trains a recipe's job in this process as fleets of any size would: score, loss, staleness and hours beforehand.

    downpour simulate quickstart --workers=1,16 --vary=staleness=Keep,Divide

A queue of events decides which worker pushes and pulls when; each step computes one gradient with the job's own model,
step, update rules, pace, cadence, codec and treatment, however many workers there are, so that a step costs what it
costs one worker. The same command gives the same numbers.

Workers compute for --seconds_per_step, with a --spread, and --stragglers of them --slowdown times as long. An exchange
takes no time, unless --gbit or --core_ms_per_step are given, from which its times follow as `downpour plan` predicts
them. --times_of=RUN takes the seconds, their spread and how the workers differ from the summary of a run that has
ended; its exchanges are within these seconds. Without --seconds_per_step or a run no hours are predicted; learning does
not need them while an exchange takes no time.

--vary=KEY=VALUE,VALUE,... takes several values of a field of the job (as --set takes one); given many times, all
combinations. Commas within parentheses belong to a value: --vary='pace=Async,Bounded(lead=4)'. The last line is
`RESULT {json}`, which --out writes to a file with every score, --plot draws score over examples and over hours.

Not simulated: workers that come and go, callbacks, and waiting for checkpoints.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags, logging

from downpour import files
from downpour.launch.job import Job, overrides, recipe, recipe_flags
from downpour.launch.planning import recorded
from downpour.launch.planning.assumptions import Assumptions
from downpour.launch.planning.fleet import COMPUTE_TIMES
from downpour.launch.roles import entry
from downpour.launch.roles.command_line import Syntax

if TYPE_CHECKING:
    from downpour.launch.planning.comparison import Run
    from downpour.launch.planning.footprint import Footprint
    from downpour.launch.planning.simulation import Point
    from downpour.launch.planning.trainable import Trainable

SYNTAX = Syntax(
    shown="recipe set workers steps vary seconds_per_step stragglers slowdown times_of gbit core_ms_per_step scores "
    "plot out",
    positional="recipe",
)

_TIMES = ("seconds_per_step", "spread", "compute", "stragglers", "slowdown", "gbit", "core_ms_per_step")


@dataclass(frozen=True)
class Variant:
    """One training to simulate.

    Attributes:
        name: How its job differs from the recipe's; "" if it does not.
        job: The job, with its number of workers.
    """

    name: str
    job: Job


@dataclass(frozen=True)
class SimulateConfig:
    """What to simulate.

    Attributes:
        variants: The trainings, one after the other.
        cluster: Times of the fleet.
        timed: Whether the time that a worker computes was given.
        core_ms_per_step: Core-milliseconds of all shards together for one step; None for none.
        num_steps: Global steps; 0 for those of the job.
        num_scores: Scores of each training.
        seed: Seed of the times.
        plot: File of the figure; None for none.
        out: File of the results; None for none.
    """

    variants: tuple[Variant, ...]
    cluster: Assumptions
    timed: bool
    core_ms_per_step: float | None = None
    num_steps: int = 0
    num_scores: int = 4
    seed: int = 0
    plot: Path | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        if not self.timed and (self.core_ms_per_step is not None or self.cluster.gbit < math.inf):
            raise ValueError("no --seconds_per_step; an exchange takes time beside it: give what a worker computes for")
        for name, value, least in (("steps", self.num_steps, 0), ("scores", self.num_scores, 1)):
            if value < least:
                raise ValueError(f"--{name}={value}; give a whole number of at least {least}")


def main() -> None:
    """Prints the table."""
    define()
    entry.run(lambda: run(from_flags()), role="simulate", syntax=SYNTAX)


def define() -> None:
    """Defines the flags."""
    recipe_flags.define()
    flags.DEFINE_list("workers", None, "Numbers of workers, 1,4,16; the recipe's by default.")
    flags.DEFINE_multi_string("vary", [], "Field and values to compare, KEY=VALUE,VALUE; may be given many times.")
    flags.DEFINE_integer("scores", 4, "How often each training is scored, the last time at its end.")
    flags.DEFINE_string("plot", None, "File of a figure, .svg, .png or .pdf: score over examples and over hours.")
    flags.DEFINE_string("out", None, "File for all results, JSON.")
    define_training()


def define_training() -> None:
    """Defines the flags of steps and times."""
    flags.DEFINE_integer("steps", 0, "Global steps of each training; the recipe's by default.")
    flags.DEFINE_float("seconds_per_step", None, "Seconds that a worker takes to compute one gradient.")
    flags.DEFINE_float("spread", 0.1, "Standard deviation of those seconds, relative to their mean (lognormal).")
    flags.DEFINE_enum("compute", "lognormal", COMPUTE_TIMES, "Distribution of those seconds.")
    flags.DEFINE_float("stragglers", 0.0, "Share of the workers that are slower.")
    flags.DEFINE_float("slowdown", 5.0, "How many times as long they take.")
    flags.DEFINE_float("gbit", None, "Line rate of a host, each way, in 10^9 bits a second; by default unlimited.")
    flags.DEFINE_string("times_of", None, "Folder of a run whose workers' times are taken, in place of all these.")
    text = "Core-milliseconds of all shards together for one step; by default none."
    flags.DEFINE_float("core_ms_per_step", None, text)
    flags.DEFINE_float("cores_per_shard", 1.0, "Cores of one shard's host or container.")
    flags.DEFINE_integer("seed", 0, "Seed of the times; that of the job is --set=seed=N.")


def from_flags() -> SimulateConfig:
    """Returns the configuration of the command line.

    Raises:
        ValueError: The recipe, an override, a number of workers or another number is refused.
    """
    job, values = recipe.load(*recipe_flags.read()), flags.FLAGS.flag_values_dict()
    counts = values["workers"] or [str(job.cluster.num_workers)]
    return replace(
        config_from_flags(list(variants(job, list(map(_number_of_workers, counts)), values["vary"]))),
        num_scores=values["scores"],
        plot=Path(values["plot"]) if values["plot"] else None,
        out=Path(values["out"]) if values["out"] else None,
    )


def config_from_flags(chosen: Sequence[Variant]) -> SimulateConfig:
    """Returns the configuration of some trainings with the flags of `define_training`.

    Raises:
        ValueError: A number is refused.
    """
    values = flags.FLAGS.flag_values_dict()
    seconds, run = values["seconds_per_step"], values["times_of"]
    if run and (given := [name for name in _TIMES if flags.FLAGS[name].present]):
        raise ValueError(f"--times_of={run} with --{given[0]}; the run's times stand for it: leave one of them out")
    if run:
        cluster = recorded.assumptions(Path(run))
    else:
        cluster = Assumptions(
            1,
            math.inf if values["gbit"] is None else values["gbit"],
            1.0 if seconds is None else seconds,
            values["spread"],
            values["cores_per_shard"],
            values["compute"],
            values["stragglers"],
            values["slowdown"],
        )
    core_ms, timed = values["core_ms_per_step"], bool(run) or seconds is not None
    return SimulateConfig(tuple(chosen), cluster, timed, core_ms, values["steps"], seed=values["seed"])


def variants(job: Job, counts: list[int], vary: list[str]) -> Iterator[Variant]:
    """Yields the job with every combination of values and number of workers.

    Args:
        job: The job.
        counts: Numbers of workers.
        vary: Each `KEY=VALUE,VALUE,...`.

    Raises:
        ValueError: A key, a value or a number of workers is refused.
    """
    choices = []
    for one in vary:
        key, equals, values = one.partition("=")
        if not equals or not values:
            raise ValueError(f"--vary={one} is not of the form KEY=VALUE,VALUE, for example staleness=Keep,Divide")
        choices.append([f"{key}={value}" for value in split(values)])
    for changes in itertools.product(*choices):
        for count in counts:
            Assumptions(count, math.inf, 1.0)  # refuses a number of workers
            of_cluster = [f"cluster.num_workers={count}", "cluster.max_workers=0"]
            yield Variant(" ".join(changes), overrides.apply(job, [*changes, *of_cluster]))


def split(values: str) -> list[str]:
    """Cuts a text at the commas that are not within brackets."""
    parts, depth = [""], 0
    for character in values:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _number_of_workers(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"--workers={text}; give whole numbers, 1,4,16") from None


def run(config: SimulateConfig) -> None:
    """Simulates, and prints the table; the last line is `RESULT {json}`."""
    from downpour.launch.planning import comparison

    if config.plot:
        comparison.check_drawable(config.plot)
    simulator = Simulator(config)
    runs = [simulator.run(variant) for variant in config.variants]
    name = config.variants[0].job.name
    result: dict[str, Any] = {"recipe": name, "runs": comparison.result(runs, timed=config.timed)}
    if config.out:
        with files.replacing(config.out) as temporary:
            Path(temporary).write_text(json.dumps(result, indent=1) + "\n")
    if config.plot:
        comparison.draw(runs, f"{name}, simulated", config.plot, timed=config.timed)
    print(f"{comparison.table(runs, timed=config.timed)}\nRESULT {json.dumps(result)}", flush=True)


class Simulator:
    """Simulates variants of one recipe, one after the other, and logs what each needs and how far it is.

    Args:
        config: What they have in common.
    """

    def __init__(self, config: SimulateConfig) -> None:
        from downpour.launch.job.build import limit_threads

        limit_threads(config.variants[0].job.cluster.threads_per_worker)
        self._config = config
        self._trainable: Trainable | None = None  # of the last variant

    def run(self, variant: Variant) -> Run:
        """Simulates one of them."""
        from downpour.launch.planning.comparison import Run
        from downpour.launch.planning.simulation import simulate
        from downpour.launch.planning.trainable import Trainable

        config, job, said, began_s = self._config, variant.job, _Said(variant), time.monotonic()
        if self._trainable is None or not self._trainable.fits(job):
            self._trainable = Trainable(job)
        found = simulate(
            job,
            job.cluster.num_workers,
            config.num_steps,
            config.seed,
            cluster=config.cluster,
            core_ms_per_step=config.core_ms_per_step,
            num_scores=config.num_scores,
            model=self._trainable,
            on_memory=said.memory,
            on_point=said.point,
        )
        said.speed(found.last.step / (time.monotonic() - began_s))
        return Run(variant.name, found)


class _Said:
    """Log lines of one training."""

    def __init__(self, variant: Variant) -> None:
        number = variant.job.cluster.num_workers
        self._name = ", ".join(filter(None, [f"{number} worker{'s' * (number > 1)}", variant.name]))

    def memory(self, needed: Footprint) -> None:
        logging.info("%s: %s", self._name, needed)

    def point(self, point: Point) -> None:
        scores = "".join(f", {key} {value:.4g}" for key, value in point.scores.items())
        logging.info("%s: step %d, loss %.4g%s", self._name, point.step, point.loss, scores)

    def speed(self, steps_per_s: float) -> None:
        logging.info("%s: simulated %.3g steps a second", self._name, steps_per_s)


if __name__ == "__main__":
    main()
