"""What asynchrony costs: every pace and staleness treatment to one test accuracy on Fashion-MNIST, side by side.

    python -m tests.benchmarks.consistency [--folder=DIR] [--modes=async,sync] [--seeds=3]

Eight workers over four shard processes; worker 0 is five times slower, worker 1 pauses at random. Time is paced (see
`tests.benchmarks.paced_fleet`): what is compared is the methods, not this machine. `--rate_factors`
sweeps the rates. Writes a table, `consistency.png` and, as the last
line, `RESULT {json}`. Then local training, H batches alone between exchanges: bytes against accuracy.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from downpour.launch.roles import entry
from downpour.ps.policy.pace import Async, Bounded, Sync
from downpour.ps.policy.rules import KerasAdam, Momentum
from downpour.ps.policy.schedules import Constant
from downpour.ps.policy.staleness import Compensate, Divide, Drop, Keep, Lookahead
from downpour.worker.exchange.cadence import EveryStep, LocalSteps
from tests.benchmarks.fashion_mnist import FOLDER, FashionMnist
from tests.benchmarks.paced_fleet import Fleet, Method, Outcome, Speed

NUM_WORKERS = 8
_RULE = KerasAdam()
_RATE, _SYNC_RATE = 1.5e-3, 5e-3  # of one worker's gradient, and of the mean of many
_DROP_LIMIT = 2 * NUM_WORKERS

_TREATMENTS = {
    "": Keep(),
    "+divide": Divide(),
    "+compensate": Compensate(1.0),
    "+drop": Drop(_DROP_LIMIT),
    "+lookahead": Lookahead(),
}
# Under sync a gradient that is applied is never stale, so there is nothing to treat.
MODES: dict[str, Method] = {
    **{f"async{name}": Method(Async(0), t, EveryStep(), _RULE, Constant(_RATE)) for name, t in _TREATMENTS.items()},
    **{f"bounded{name}": Method(Bounded(4), t, EveryStep(), _RULE, Constant(_RATE)) for name, t in _TREATMENTS.items()},
    "sync": Method(Sync(NUM_WORKERS), Keep(), EveryStep(), _RULE, Constant(_SYNC_RATE)),
    "sync2backups": Method(Sync(NUM_WORKERS - 2, 2), Keep(), EveryStep(), _RULE, Constant(_SYNC_RATE)),
}
LOCAL: dict[str, Method] = {
    f"local{h}": Method(Async(0), Keep(), LocalSteps(h, _RULE, _RATE), Momentum(0.5, nesterov=True), Constant(0.15))
    for h in (1, 8, 32)
}

_FOLDER = flags.DEFINE_string("folder", FOLDER, "Folder of Fashion-MNIST's four .gz files.")
_MODES = flags.DEFINE_list("modes", [*MODES, *LOCAL], "Which to run.")
_TARGET = flags.DEFINE_float("target", 0.85, "Test accuracy at which a run ends.", 0.1, 1.0)
_SECONDS = flags.DEFINE_float("max_seconds", 120.0, "A run that has not reached the target by then ends.", 0.5)
_STEP_S = flags.DEFINE_float("step_seconds", 0.1, "Seconds a step of an ordinary worker takes.", 0.0)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each mode; the table has their medians.", 1)
_BATCH = flags.DEFINE_integer("batch_size", 32, "Pictures in a worker's batch.", 1)
_RATE_FACTORS = flags.DEFINE_list("rate_factors", ["1"], "Multiplies every rate: a sweep, for one seed each.")
_OUT = flags.DEFINE_string("out", "runs/consistency", "Folder of the plot.")

_HEADING = (
    f"{'mode':<20} {'seconds':>8} {'examples':>9} {'steps':>7} {'reached':>7} {'staleness':>9} {'p99':>4} "
    f"{'dropped':>8} {'MB':>7}"
)


def speeds(step_s: float) -> list[Speed]:
    """One slow worker, one that pauses, six ordinary ones."""
    ordinary = Speed(step_s)
    return [Speed(5 * step_s), Speed(step_s, pause=0.05, pause_s=20 * step_s), *[ordinary] * (NUM_WORKERS - 2)]


def row(name: str, runs: list[Outcome]) -> str:
    """One line under the heading: medians over the seeds."""
    s = summary(runs)
    return (
        f"{name:<20} {s['seconds']:>8.1f} {s['examples']:>9,.0f} {s['steps']:>7,.0f} {s['reached']:>7} "
        f"{s['staleness_mean']:>9.2f} {s['staleness_p99']:>4.0f} {s['dropped']:>8.0f} {s['mb']:>7.0f}"
    )


def summary(runs: list[Outcome]) -> dict[str, Any]:
    """Medians over the seeds, how many of them reached the target, and the least and most seconds."""
    keys = ("seconds", "examples", "steps", "staleness_mean", "staleness_p99", "dropped", "pushes", "mb")
    result: dict[str, Any] = {key: round(float(np.median([asdict(run)[key] for run in runs])), 3) for key in keys}
    result["reached"] = f"{sum(run.reached for run in runs)}/{len(runs)}"
    result["seconds_range"] = [round(min(run.seconds for run in runs), 1), round(max(run.seconds for run in runs), 1)]
    return result


def plot(outcomes: dict[str, list[Outcome]], target: float, path: Path) -> None:
    """Accuracy over seconds and over examples, the first seed of every mode."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    for axes, column, label in zip(figure.subplots(1, 2, sharey=True), (0, 2), ("seconds", "examples"), strict=True):
        for number, (name, runs) in enumerate(outcomes.items()):
            x, y = [p[column] for p in runs[0].curve], [p[3] for p in runs[0].curve]
            axes.plot(x, y, label=name, linewidth=1.4, color=colormaps["tab20"](number % 20))
        axes.axhline(target, color="0.6", linestyle="--", linewidth=1)
        axes.set(xlabel=label, ylim=(0.5, target + 0.03))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("test accuracy")
    figure.axes[1].legend(fontsize=8, ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)


def _main() -> None:
    known = MODES | LOCAL
    if unknown := [name for name in _MODES.value if name not in known]:
        raise ValueError(f"mode {unknown[0]!r} is not known; the modes are {', '.join(known)}")
    data = FashionMnist.load(_FOLDER.value)
    outcomes: dict[str, list[Outcome]] = {}
    print(_HEADING, flush=True)
    with tempfile.TemporaryDirectory(prefix="downpour-") as folder:
        fleet = Fleet(data, speeds(_STEP_S.value), _BATCH.value, Path(folder))
        try:
            for factor in map(float, _RATE_FACTORS.value):
                for name in _MODES.value:
                    method = replace(known[name], learning_rate=known[name].learning_rate * factor)
                    label = name if len(_RATE_FACTORS.value) == 1 else f"{name} x{factor:g}"
                    outcomes[label] = [
                        fleet.run(method, target=_TARGET.value, max_s=_SECONDS.value, seed=seed)
                        for seed in range(_SEEDS.value)
                    ]
                    print(row(label, outcomes[label]), flush=True)
        finally:
            fleet.close()
    plot(outcomes, _TARGET.value, Path(_OUT.value) / "consistency.png")
    print(f"RESULT {json.dumps({name: summary(runs) for name, runs in outcomes.items()})}", flush=True)


if __name__ == "__main__":
    entry.run(_main, role="consistency")
