"""Asynchrony costs no score: 16 simulated workers learn digits as one does, by default and not with `Keep`.

`make fidelity` has more data, real workers, plain Keras and three seeds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from downpour.launch.job import Cluster, Exchange, Job
from downpour.launch.planning.simulation import simulate
from downpour.model.data import Examples
from downpour.ps.policy.rules import KerasMomentum
from downpour.ps.policy.schedules import KerasCosine
from downpour.ps.policy.staleness import Auto, Keep, Treatment

STEPS = 1500


def digits(part: slice) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's, [n, 64] in [-1, 1], and their numbers."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return (found.data[part] / 8 - 1).astype(np.float32), found.target[part].astype(np.int32)


def training() -> tuple[np.ndarray, np.ndarray]:
    return digits(slice(1200))


def heldout() -> tuple[np.ndarray, np.ndarray]:
    return digits(slice(1200, None))


def model() -> Any:
    import keras

    layers = [keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(10)]
    built = keras.Sequential(layers, name="digits")
    optimizer = keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.05, STEPS), momentum=0.9)
    built.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return built


def accuracy(num_workers: int, treatment: Treatment) -> float:
    """Held-out accuracy at the end."""
    job = Job(
        name="digits",
        model=model,
        data=Examples(training, heldout),
        loss=None,
        rule=KerasMomentum(0.9),
        schedule=KerasCosine(0.05, STEPS),
        staleness=treatment,
        num_steps=STEPS,
        batch_size=32,
        cluster=Cluster(num_ps=1, num_workers=num_workers),
        exchange=Exchange(codec="float32"),
    )
    return simulate(job, num_workers, num_scores=1).last.scores["val_accuracy"]


def test_sixteen_workers_learn_as_one_by_default() -> None:
    one, kept, default = accuracy(1, Auto()), accuracy(16, Keep()), accuracy(16, Auto())
    assert one > 0.9
    assert default > one - 0.02
    assert kept < 0.2, "it diverges"
    assert accuracy(1, Keep()) == pytest.approx(one, abs=0), "nothing is stale"
