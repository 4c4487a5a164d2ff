"""Simulated workers against real ones: held-out loss on the way, score at the end, and how stale pushes were.

    python -m tests.benchmarks.reality [--workers=4,8] [--seeds=3] [--steps=3750] [--out=runs/reality]

Fashion-MNIST (`reality_job`), without overlap. Each run of `downpour local`, every role a process, is simulated with
as many workers, its seed, and the times of its steps (`downpour simulate --times_of`). Compared are

- the held-out loss at each of the checkpoints, and the accuracy at the end, means over the seeds: their difference
  beside the spread of the real runs' seeds, largest minus smallest;
- the histograms of staleness, of all seeds together: half the sum of the differences of shares, 0 if they are equal
  and 1 if they have nothing in common.

The last line is `RESULT {json}`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from downpour.launch.job import recipe
from downpour.launch.local import Checkpoints, RunConfig, start
from downpour.launch.planning import recorded
from downpour.launch.planning.simulation import simulate
from downpour.launch.roles import entry
from tests.benchmarks.learning import in_a_process
from tests.benchmarks.shape import ROOT

_WORKERS = flags.DEFINE_list("workers", ["4", "8"], "Numbers of workers.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each.", 1)
_STEPS = flags.DEFINE_integer("steps", 3750, "Global steps; the rate falls to zero within the default.", 5)
_OUT = flags.DEFINE_string("out", "runs/reality", "Folder of the runs.")

_RECIPE = str(ROOT / "tests/benchmarks/reality_job.py")
_POINTS = 5
_BUCKETS = 256


@dataclass(frozen=True)
class Trained:
    """One training.

    Attributes:
        losses: Held-out loss at each of the checkpoints, in order.
        accuracy: At the end.
        staleness: Shares of the pushes by staleness, [`_BUCKETS`].
    """

    losses: tuple[float, ...]
    accuracy: float
    staleness: tuple[float, ...]


def real(overrides: Sequence[str], folder: Path) -> Trained:
    """Trains in processes."""
    with start(
        RunConfig(_RECIPE, overrides=tuple(overrides), run_dir=folder, checkpoints=Checkpoints(overwrite=True))
    ) as run:
        summary = run.wait()
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    scores = {row["step"]: row for row in rows if row["kind"] == "score"}
    steps = np.array(sorted(scores))
    wanted = [_STEPS.value * (point + 1) / _POINTS for point in range(_POINTS)]
    at = [scores[int(steps[np.abs(steps - step).argmin()])] for step in wanted]  # a checkpoint comes some steps late
    counts = np.zeros(_BUCKETS)
    for stale, count in summary["staleness_histogram"].items():
        counts[int(stale)] = count
    return _trained([row["val_loss"] for row in at], at[-1]["val_accuracy"], counts)


def simulated(overrides: Sequence[str], workers: int, seed: int, folder: str) -> Trained:
    """Trains in this process, with the times of the run in a folder."""
    cluster = recorded.assumptions(Path(folder))
    found = simulate(recipe.load(_RECIPE, overrides), workers, seed=seed, cluster=cluster, num_scores=_POINTS)
    counts = np.zeros(_BUCKETS)
    counts[: len(found.staleness)] = found.staleness
    losses = [point.scores["val_loss"] for point in found.points]
    return _trained(losses, found.last.scores["val_accuracy"], counts)


def _trained(losses: Sequence[float], accuracy: float, counts: np.ndarray) -> Trained:
    return Trained(tuple(map(float, losses)), float(accuracy), tuple((counts / counts.sum()).tolist()))


def compared(pairs: Sequence[tuple[Trained, Trained]]) -> dict[str, Any]:
    """Real and simulated trainings of some seeds."""
    found: dict[str, Any] = {}
    for name in ("accuracy", "losses"):
        of_real, of_simulated = (np.array([getattr(pair[i], name) for pair in pairs]) for i in range(2))
        found[name] = {
            "real": np.round(of_real.mean(0), 5).tolist(),
            "simulated": np.round(of_simulated.mean(0), 5).tolist(),
            "spread_of_seeds": np.round(np.ptp(of_real, axis=0), 5).tolist(),
        }
    shares = [np.mean([pair[i].staleness for pair in pairs], axis=0) for i in range(2)]
    means = [float(share @ np.arange(_BUCKETS)) for share in shares]
    found["staleness"] = {"real": round(means[0], 3), "simulated": round(means[1], 3)}
    found["histograms_differ"] = round(float(np.abs(shares[0] - shares[1]).sum() / 2), 4)
    return found


def _main() -> None:
    result = {}
    for workers in map(int, _WORKERS.value):
        pairs = []
        for seed in range(_SEEDS.value):
            overrides = [
                f"seed={seed}",
                f"cluster.num_workers={workers}",
                "exchange.overlap=false",
                f"num_steps={_STEPS.value}",
                f"checkpoint_every_steps={_STEPS.value // _POINTS}",
            ]
            folder = Path(_OUT.value) / f"{workers}-{seed}"
            of_real = real(overrides, folder)
            pairs.append((of_real, in_a_process(simulated, overrides, workers, seed, str(folder))))
            for how, one in zip(("real", "simulated"), pairs[-1], strict=True):
                print(f"{workers} workers, seed {seed}, {how}: {one.accuracy:.4f}, {one.losses}", flush=True)
                print("   ", " ".join(f"{share:.3f}" for share in one.staleness[: 3 * workers]), flush=True)
        result[str(workers)] = compared(pairs)
        print(json.dumps(result[str(workers)], indent=1), flush=True)
    mean = statistics.fmean(one["histograms_differ"] for one in result.values())
    print(f"RESULT {json.dumps({'histograms_differ_mean': round(mean, 4), **result})}", flush=True)


if __name__ == "__main__":
    entry.run(_main, role="reality")
