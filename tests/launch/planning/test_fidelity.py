"""Asynchrony costs no score: simulated workers learn digits as one does, by default and not with `Keep`.

`make fidelity` has more data, real workers, plain Keras and three seeds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from downpour.launch.job import Cluster, Exchange, Job
from downpour.launch.planning.simulation import simulate
from downpour.model.data import Examples
from downpour.ps.policy.rules import KerasAdam, KerasMomentum
from downpour.ps.policy.schedules import Constant, KerasCosine
from downpour.ps.policy.staleness import Auto, Keep, Treatment

STEPS, ADAM_STEPS, ADAM_RATE = 1500, 150, 0.04


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


def adam_model() -> Any:
    import keras

    hidden = [keras.layers.Dense(64, "relu") for _ in range(2)]
    built = keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(10)], name="digits")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    built.compile(keras.optimizers.Adam(ADAM_RATE), loss, metrics=["accuracy"])
    return built


MOMENTUM = Job(
    name="digits",
    model=model,
    data=Examples(training, heldout),
    loss=None,
    rule=KerasMomentum(0.9),
    schedule=KerasCosine(0.05, STEPS),
    num_steps=STEPS,
    batch_size=32,
    cluster=Cluster(num_ps=1, num_workers=1),
    exchange=Exchange(codec="float32"),
)
ADAM = replace(MOMENTUM, model=adam_model, rule=KerasAdam(), schedule=Constant(ADAM_RATE), num_steps=ADAM_STEPS)


def accuracy(job: Job, num_workers: int, treatment: Treatment) -> float:
    """Held-out accuracy at the end."""
    job = replace(job, staleness=treatment, cluster=replace(job.cluster, num_workers=num_workers))
    return simulate(job, num_workers, num_scores=1).last.scores["val_accuracy"]


def test_sixteen_workers_learn_as_one_by_default() -> None:
    one, kept, default = (accuracy(MOMENTUM, n, how) for n, how in ((1, Auto()), (16, Keep()), (16, Auto())))
    assert one > 0.9
    assert default > one - 0.02
    assert kept < 0.2, "it diverges"
    assert accuracy(MOMENTUM, 1, Keep()) == pytest.approx(one, abs=0), "nothing is stale"


def test_four_workers_learn_as_one_with_adam_at_a_high_rate_from_the_first_step_on() -> None:
    """Their first gradients are of one place. Adam, which knows no scale, would follow each by a whole step."""
    one, kept, default = (accuracy(ADAM, n, how) for n, how in ((1, Auto()), (4, Keep()), (4, Auto())))
    assert one > 0.85
    assert default > one - 0.05
    assert kept < 0.5
