"""Recommends settings for a fleet by simulating it: overlap, treatment of staleness, learning rate, number of workers.

    downpour advise quickstart --workers=16 --steps=350

Simulates one worker, which is the reference, and the fleet as the recipe has it. Then it tries one kind of setting
after the other, keeps what makes the fleet's score better by 1 % or more, and halves the fleet until its score is
within --tolerance of one worker's. Each training takes --steps steps of one worker (`downpour simulate`), about ten
trainings in all; one seed each, so that small differences are noise. The last line is `RESULT {json}`.
"""

from __future__ import annotations

import json
from dataclasses import replace

from absl import flags

from downpour.launch import simulate
from downpour.launch.job import Job, recipe, recipe_flags
from downpour.launch.planning import advice, comparison
from downpour.launch.planning.comparison import Run
from downpour.launch.roles import entry
from downpour.launch.roles.command_line import Syntax
from downpour.launch.simulate import SimulateConfig, Simulator, Variant

SYNTAX = Syntax(
    shown="recipe set workers steps tolerance seconds_per_step stragglers slowdown gbit core_ms_per_step",
    positional="recipe",
)


def main() -> None:
    """Prints the advice."""
    define()
    entry.run(lambda: run(from_flags(), float(flags.FLAGS["tolerance"].value or 0.0)), role="advise", syntax=SYNTAX)


def define() -> None:
    """Defines the flags."""
    recipe_flags.define()
    flags.DEFINE_integer("workers", None, "Workers of the fleet; the recipe's by default.")
    flags.DEFINE_float("tolerance", 0.02, "How much worse than one worker's the score may be, relative to that.")
    simulate.define_training()


def from_flags() -> SimulateConfig:
    """Returns the configuration of the command line, with the fleet as its only variant."""
    job, count = recipe.load(*recipe_flags.read()), flags.FLAGS["workers"].value
    count = job.cluster.num_workers if count is None else count
    advice.check(count)
    [fleet] = simulate.variants(job, [count], [])
    return replace(simulate.config_from_flags([fleet]), num_scores=1)


def run(config: SimulateConfig, tolerance: float) -> None:
    """Simulates, and prints the table and the advice; the last line is `RESULT {json}`."""
    simulator, job = Simulator(config), config.variants[0].job

    def train(job: Job, changes: str) -> Run:
        return simulator.run(Variant(changes, job))

    found = advice.advise(job, job.cluster.num_workers, train, tolerance)
    result = {
        "recipe": job.name,
        "score": found.score,
        "changes": found.changes,
        "reference": advice.value_of(found.runs[0], found.score),
        "as_it_is": advice.value_of(found.runs[1], found.score),
        "recommended": advice.value_of(found.best, found.score),
        "workers": found.enough.result.num_workers if found.enough else 1,
    }
    table = comparison.table(found.runs, timed=config.timed, histograms=False)
    print(f"{table}\n\n{found}\nRESULT {json.dumps(comparison.finite(result))}", flush=True)


if __name__ == "__main__":
    main()
