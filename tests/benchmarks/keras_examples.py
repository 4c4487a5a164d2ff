"""Keras' public examples as recipes (docs/examples): Downpour's scores beside plain Keras' of as many examples.

    python -m tests.benchmarks.keras_examples [--examples=addition_rnn,text_transformer] [--seeds=3]

Plain Keras: `fit` of the recipe's model on the recipe's training data with its batch size, in one process. Downpour:
the recipe as `downpour local` runs it, 2 workers and 3 shards, each a process. Both train on `num_steps * batch_size`
examples, and are scored by the same metric of the compiled model on all held-out examples. A seed determines initial
values and order.

Downpour's mean of the seeds is `within` if it is no worse than plain Keras' worst seed; where it is worse, `overlap`
says that Downpour's best seed is at least as good as plain Keras' worst, and `worse` that it is not. Runs are written
as they end to OUT/runs.jsonl; those of an unchanged recipe that are there already are taken from it. Writes a table
and, as the last line, `RESULT {json}`.
"""

from __future__ import annotations

import collections
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from downpour.launch.local import Checkpoints, RunConfig, start
from downpour.launch.roles import entry
from tests.benchmarks.learning import in_a_process, keras_scores, scores_of
from tests.examples import EXAMPLES, recipe_of, verdict

_EXAMPLES = flags.DEFINE_list("examples", list(EXAMPLES), "Which to run.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each example, of each of the two.", 1)
_STEPS = flags.DEFINE_integer("steps", 0, "Steps in place of each recipe's own; 0 for those.", 0)
_OUT = flags.DEFINE_string("out", "runs/keras_examples", "Folder of the results.")


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        example: Name of the recipe.
        how: `keras` or `downpour`.
        seed: Of initial values and order.
        version: Of the recipe: a hash of its text and overrides.
        scores: All scores on the held-out examples, by metric.
        seconds: Of training, without the start of processes.
        staleness: Mean of all pushes; 0 in plain Keras.
    """

    example: str
    how: str
    seed: int
    version: str
    scores: dict[str, float]
    seconds: float
    staleness: float = 0.0


def through_shards(example: str, overrides: Sequence[str], folder: Path) -> tuple[dict[str, float], float, float]:
    """Runs a recipe; returns the scores of its last checkpoint, the seconds of training, and the mean staleness."""
    config = RunConfig(
        recipe_of(example), overrides=tuple(overrides), run_dir=folder, checkpoints=Checkpoints(overwrite=True)
    )
    with start(config) as run:
        summary = run.wait()
    return scores_of(folder), summary["seconds"], summary["staleness_mean"]


def row(name: str, runs: Sequence[Run]) -> dict[str, Any]:
    """What the runs of an example show."""
    example = EXAMPLES[name]
    scores = {how: [run.scores[example.metric] for run in runs if run.how == how] for how in ("keras", "downpour")}
    return {
        "metric": example.metric,
        **{how: [round(score, 4) for score in values] for how, values in scores.items()},
        **{f"{how}_mean": round(float(np.mean(values)), 4) for how, values in scores.items()},
        "verdict": verdict(example, scores["keras"], scores["downpour"]),
        "seconds": {how: round(float(np.mean([r.seconds for r in runs if r.how == how])), 1) for how in scores},
        "staleness": round(float(np.mean([run.staleness for run in runs if run.how == "downpour"])), 2),
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """In Markdown."""
    lines = ["| example | metric | plain Keras | mean | Downpour | mean | |", "|---|---|---|---|---|---|---|"]
    for name, found in rows.items():
        keras, downpour = (" ".join(f"{score:.4g}" for score in found[how]) for how in ("keras", "downpour"))
        lines.append(
            f"| {EXAMPLES[name].title} (`{name}`) | {found['metric']} | {keras} | {found['keras_mean']:.4g} | "
            f"{downpour} | {found['downpour_mean']:.4g} | {found['verdict']} |"
        )
    return "\n".join(lines)


class _Runs:
    """Trains, and keeps what was trained in a file."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, folder / "runs.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        self._done = [Run(**json.loads(line)) for line in lines]

    def of(self, example: str, how: str, seed: int) -> Run:
        """The run of a seed, out of the file or trained now."""
        overrides = [f"seed={seed}", *([f"num_steps={_STEPS.value}"] if _STEPS.value else [])]
        version = hashlib.sha256(f"{recipe_of(example).read_text()}{overrides}".encode()).hexdigest()[:12]
        for run in self._done:
            if (run.example, run.how, run.seed, run.version) == (example, how, seed, version):
                return run
        if how == "keras":
            scores, seconds, staleness = *in_a_process(keras_scores, recipe_of(example), overrides), 0.0
        else:
            scores, seconds, staleness = through_shards(example, overrides, self._folder / "run")
        run = Run(example, how, seed, version, scores, round(seconds, 2), round(staleness, 3))
        with self._file.open("a") as file:
            file.write(f"{json.dumps(asdict(run))}\n")
        return run


def _main() -> None:
    if unknown := [name for name in _EXAMPLES.value if name not in EXAMPLES]:
        raise ValueError(f"example {unknown[0]!r} is not known; the examples are {', '.join(EXAMPLES)}")
    runs, found = _Runs(Path(_OUT.value)), collections.defaultdict(list)
    for seed in range(_SEEDS.value):  # seed by seed, so that what else the machine does hits all examples
        for name in _EXAMPLES.value:
            for how in ("keras", "downpour"):
                run = runs.of(name, how, seed)
                found[name].append(run)
                score = run.scores[EXAMPLES[name].metric]
                print(f"seed {seed}  {name:<26} {how:<8} {score:.4f}  {run.seconds:.0f} s", flush=True)
    rows = {name: row(name, of_name) for name, of_name in found.items()}
    print(table(rows), flush=True)
    print(f"RESULT {json.dumps(rows)}", flush=True)


if __name__ == "__main__":
    entry.run(_main, role="keras_examples")
