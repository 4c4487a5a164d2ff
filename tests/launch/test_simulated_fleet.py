"""Simulated fleets against real ones of processes, as `downpour local` starts them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from downpour.launch.job import recipe
from downpour.launch.planning.simulation import digest_of, simulate
from downpour.model import weights
from downpour.ps.checkpoint import manifest as checkpoint
from tests.launch import jobs

pytestmark = [pytest.mark.process, pytest.mark.slow]

# Overlapping clusters of points; at 400 steps of the rate the loss still falls, so that staleness can be seen in it.
# Workers wait for each other before their first step, however long some take to start.
CLUSTERS = """
import os
import time
from pathlib import Path

from absl import flags

from downpour.model.data import Examples


def network():
    import keras

    inputs = keras.Input((32,))
    x = inputs
    for width in (256, 256):
        x = keras.layers.Dense(width, activation="relu")(x)
    return keras.Model(inputs, keras.layers.Dense(20)(x))


def loss(labels, outputs):
    import keras

    return keras.ops.mean(keras.losses.sparse_categorical_crossentropy(labels, outputs, from_logits=True))


@dataclass(frozen=True, eq=False)
class Together(Examples):
    def training(self, *, batch_size, seed, leases):
        batches = super().training(batch_size=batch_size, seed=seed, leases=leases)

        def wait():
            if "index" in flags.FLAGS:  # a worker's process
                here = Path(__file__).parent
                (here / f"started-{os.getppid()}-{flags.FLAGS.index}").touch()
                while len(list(here.glob(f"started-{os.getppid()}-*"))) < int((here / "workers").read_text()):
                    time.sleep(0.01)
            for batch in batches:
                yield batch, batches.position

        return Batches(wait(), batches.counts)


def points(number, seed):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((20, 32))
    labels = rng.integers(0, 20, number)
    return (centres[labels] + 1.5 * rng.standard_normal((number, 32))).astype("float32"), labels.astype("int32")


def job():
    return tiny(
        model=network,
        data=Together(points(8000, 1), points(4000, 2)),
        loss=loss,
        rule=Momentum(0.9),
        schedule=Constant(0.002),
        num_steps=400,
        batch_size=64,
        slicing=(),
        exchange=Exchange(codec="float32", overlap=False),
        checkpoint_every_steps=400,
    )
"""
StartJob = Callable[..., jobs.LocalJob]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartJob]:
    """Starts `downpour local` of a recipe in a folder of its own."""
    started: list[jobs.LocalJob] = []

    def start(path: Path, *arguments: str) -> jobs.LocalJob:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(jobs.LocalJob(path, folder, *arguments))
        return started[-1]

    yield start
    for job in started:
        job.kill()


def test_one_simulated_worker_ends_with_the_parameters_of_a_real_job(start: StartJob, tmp_path: Path) -> None:
    path, overrides = jobs.write_recipe(tmp_path, CLUSTERS), ["cluster.num_workers=1", "num_steps=100"]
    (tmp_path / "workers").write_text("1")
    real = start(path, *(f"--set={one}" for one in overrides))
    assert real.end() == 0, real.stderr
    saved = checkpoint.load(max((real.run_dir / "checkpoints").iterdir()))
    assert simulate(recipe.load(path, overrides), 1).digest == digest_of(weights.named(saved))


def test_four_simulated_workers_learn_as_four_real_ones(start: StartJob, tmp_path: Path) -> None:
    path = jobs.write_recipe(tmp_path, CLUSTERS)
    (tmp_path / "workers").write_text("4")
    scores: dict[str, list[float]] = {"real": [], "simulated": []}
    staleness: dict[str, list[float]] = {"real": [], "simulated": []}
    for seed in range(3):
        overrides = ["cluster.num_workers=4", f"seed={seed}"]
        real = start(path, *(f"--set={one}" for one in overrides))
        assert real.end() == 0, real.stderr
        result: dict[str, Any] = real.result()
        simulated = simulate(recipe.load(path, overrides), 4, seed=seed, num_scores=1)
        scores["real"].append(result["val_loss"])
        scores["simulated"].append(simulated.last.scores["val_loss"])
        staleness["real"].append(result["staleness_mean"])
        staleness["simulated"].append(simulated.staleness_mean)
    print(scores, staleness)
    means = {key: statistics.mean(found) for key, found in scores.items()}
    spread = max(max(found) - min(found) for found in scores.values())
    assert abs(means["real"] - means["simulated"]) <= spread, scores
    assert statistics.mean(staleness["simulated"]) == pytest.approx(statistics.mean(staleness["real"]), rel=0.1)
