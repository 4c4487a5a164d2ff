"""What the codecs do to learning: every way to push and pull, several seeds each, beside float32.

    python -m tests.benchmarks.codecs [--data=fashion_mnist] [--modes=float32,pull_int4] [--seeds=3]
    python -m tests.benchmarks.codecs --data=quickstart

fashion_mnist: eight paced workers of one speed over four shards (`tests.benchmarks.paced_fleet`) train for some time,
over which the rate falls to zero; the score is test accuracy. quickstart: the recipe as `downpour local` runs it, or
with fewer --steps a shorter one of its shape; the score is held-out mAP@100, weighted. Its data must have been prepared
(`downpour prepare openmoji`).

Writes a table, curves of all runs in one plot and, as the last line, `RESULT {json}`: every score by mode and seed.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from downpour.launch.job.job import PULLS_A_PUBLICATION, Exchange
from downpour.launch.roles import entry
from downpour.ps.policy.pace import Async
from downpour.ps.policy.rules import KerasAdam
from downpour.ps.policy.schedules import Cosine
from downpour.ps.policy.staleness import Keep
from downpour.worker.exchange.cadence import EveryStep
from tests.benchmarks.fashion_mnist import FOLDER, FashionMnist

NUM_WORKERS = 8

# How a mode differs from float32, dense, live: fields of `launch.job.Exchange`.
MODES: dict[str, dict[str, Any]] = {
    "float32": {"codec": "float32", "factors": False},
    "bfloat16": {"codec": "bfloat16", "factors": False},
    "float16": {"codec": "float16", "factors": False},
    "factors": {"codec": "bfloat16"},
    "push_int8": {"codec": "bfloat16", "push": "int8"},
    "pull_int8": {"codec": "bfloat16", "pull": "int8"},
    "pull_int4": {"codec": "bfloat16", "pull": "int4"},
    "both_int8": {"codec": "bfloat16", "push": "int8", "pull": "int8"},
}

_DATA = flags.DEFINE_enum("data", "fashion_mnist", ["fashion_mnist", "quickstart"], "What to train on.")
_FOLDER = flags.DEFINE_string("folder", FOLDER, "Folder of Fashion-MNIST's four .gz files.")
_MODES = flags.DEFINE_list("modes", list(MODES), "Which to run.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each mode.", 1)
_SECONDS = flags.DEFINE_float("seconds", 25.0, "Length of a run on Fashion-MNIST.", 0.5)
_STEP_S = flags.DEFINE_float("step_seconds", 0.1, "Seconds a step of a worker takes there.", 0.0)
_STEPS = flags.DEFINE_integer("steps", 700, "Steps of a run of quickstart.", 1)
_OUT = flags.DEFINE_string("out", "runs/codecs", "Folder of the plot.")
_QUICKSTART = "runs/codecs_quickstart"  # of one run after the other

Curve = list[tuple[float, float]]  # (examples or steps, score)
Run = Callable[[str, int], Curve]


def fashion_mnist(closing: ExitStack) -> Run:
    """Runs a mode with a seed on the paced fleet."""
    from tests.benchmarks.paced_fleet import Fleet, Method, Speed

    folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="downpour-")))
    fleet = Fleet(FashionMnist.load(_FOLDER.value), [Speed(_STEP_S.value)] * NUM_WORKERS, 32, folder)
    closing.callback(fleet.close)

    def run(mode: str, seed: int) -> Curve:
        publish_every = PULLS_A_PUBLICATION * NUM_WORKERS if "pull" in MODES[mode] else 0
        exchange = Exchange(**MODES[mode], overlap=False, publish_every=publish_every)
        schedule = Cosine(1.5e-3, math.ceil(NUM_WORKERS * _SECONDS.value / max(_STEP_S.value, 1e-3)))
        method = Method(Async(), Keep(), EveryStep(), KerasAdam(), schedule, exchange)
        outcome = fleet.run(method, target=2.0, max_s=_SECONDS.value, seed=seed)
        return [(float(examples), accuracy) for _, _, examples, accuracy in outcome.curve]

    return run


def quickstart(closing: ExitStack) -> Run:
    """Runs the recipe with a mode's exchange."""

    def run(mode: str, seed: int) -> Curve:
        steps = _STEPS.value
        settings = {
            "seed": seed,
            "num_steps": steps,
            "schedule.every": max(1, steps * 3 // 7),
            "checkpoint_every_steps": max(1, steps // 5),
            "max_train_s": 300,
            **{f"exchange.{key}": value for key, value in MODES[mode].items()},
        }
        command = [sys.executable, "-m", "downpour.launch.local", "--recipe=quickstart"]
        command += [f"--run_dir={_QUICKSTART}", "--overwrite"]
        command += [f"--set={key}={value}" for key, value in settings.items()]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise ValueError(f"{' '.join(command[2:])} ended with exit code {done.returncode}")
        lines = Path(_QUICKSTART, "history.jsonl").read_text().splitlines()
        scores = [line for line in map(json.loads, lines) if line["kind"] == "score"]
        return [(float(score["step"]), float(score["map_at_100"])) for score in scores]

    return run


def plot(curves: dict[str, list[Curve]], path: Path) -> None:
    """All curves, a colour a mode."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for number, (mode, runs) in enumerate(curves.items()):
        for seed, curve in enumerate(runs):
            x, y = zip(*curve, strict=True)
            color = colormaps["tab10"](number % 10)
            axes.plot(x, y, color=color, linewidth=1.1, label=None if seed else mode)
    axes.set(xlabel="examples" if _DATA.value == "fashion_mnist" else "steps", ylabel="score")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)


def _main() -> None:
    if unknown := [name for name in _MODES.value if name not in MODES]:
        raise ValueError(f"mode {unknown[0]!r} is not known; the modes are {', '.join(MODES)}")
    curves: dict[str, list[Curve]] = {mode: [] for mode in _MODES.value}
    with ExitStack() as closing:
        run = {"fashion_mnist": fashion_mnist, "quickstart": quickstart}[_DATA.value](closing)
        for seed in range(_SEEDS.value):  # seed by seed, so that what else the machine does hits all modes
            for mode in _MODES.value:
                curves[mode].append(run(mode, seed))
                print(f"seed {seed}  {mode:<10} {curves[mode][-1][-1][1]:.4f}", flush=True)
    scores = {mode: [round(curve[-1][1], 4) for curve in runs] for mode, runs in curves.items()}
    print(f"{'mode':<10} {'mean':>7} {'least':>7} {'most':>7}")
    for mode, values in scores.items():
        print(f"{mode:<10} {np.mean(values):7.4f} {min(values):7.4f} {max(values):7.4f}")
    plot(curves, Path(_OUT.value) / f"{_DATA.value}.png")
    print(f"RESULT {json.dumps(scores)}", flush=True)


if __name__ == "__main__":
    entry.run(_main, role="codecs")
