"""A model with constraints through the launcher: what is exported keeps them, and what cannot be kept is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from downpour.launch import export
from downpour.launch.job import recipe
from downpour.launch.job.build import build
from downpour.ps.policy.rules import SGD
from downpour.worker.exchange.cadence import Accumulate, Downpour, LocalSteps
from tests.launch.jobs import LocalJob

RECIPE = """
from dataclasses import dataclass

from downpour.launch.job import Cluster, Exchange, Job
from downpour.model.data import GeneratedImages
from downpour.model.vision.losses import per_label_logistic
from downpour.ps.policy.averages import Polyak
from downpour.ps.policy.rules import SGD
from downpour.ps.policy.schedules import Constant


@dataclass(frozen=True)
class Net:
    def build(self, size, labels):
        import keras
        from keras import layers

        i = keras.Input((size, size, 3))
        hidden = layers.Dense(20, kernel_constraint=keras.constraints.MaxNorm(0.3), name="hidden")
        head = layers.Dense(labels, kernel_constraint="non_neg", kernel_initializer="zeros", name="head")
        return keras.Model(i, head(hidden(layers.Flatten()(i))))


def job():
    return Job(name="constraint", model=Net(), data=GeneratedImages(image_size=8, num_labels=5, num_heldout=16, num_records=512),
               loss=per_label_logistic, rule=SGD(), schedule=Constant(0.1), num_steps=60, batch_size=8, average=Polyak(0.9),
               cluster=Cluster(num_ps=2, num_workers=1, threads_per_worker=1), exchange=Exchange(give_up_after_s=20.0))
"""  # noqa: E501


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "constraint.py"
    path.write_text(RECIPE)
    return path


@pytest.mark.process
@pytest.mark.slow
def test_the_exported_model_and_the_average_keep_their_constraints(path: Path, tmp_path: Path) -> None:
    job = LocalJob(path, tmp_path, "--noevaluator")
    try:
        assert job.end() == 0, job.stderr
    finally:
        job.kill()
    kernels = []
    for average in (False, True):
        out = tmp_path / f"{average}.keras"
        export.export(recipe.load(path), str(job.run_dir), str(out), average)
        exported = keras.saving.load_model(out)
        kernels.append([exported.get_layer(name).kernel.numpy() for name in ("head", "hidden")])
    for head, _ in kernels:
        assert head.min() >= 0 and head.max() > 0
    head, hidden = kernels[0]
    assert (head == 0).any() and np.linalg.norm(hidden, axis=0).max() <= 0.3 * (1 + 1e-6)


@pytest.mark.parametrize("cadence", [Downpour(2, 2, 0.1), LocalSteps(2, SGD(), 0.1)], ids=lambda c: type(c).__name__)
def test_cadences_that_step_on_the_workers_copy_are_refused(path: Path, cadence: Any) -> None:
    job = recipe.load(path)
    build(replace(job, cadence=Accumulate(2)))
    message = r"cadence: \w+ steps on the worker's own copy, to which the constraint MaxNorm.* of hidden/kernel is not"
    with pytest.raises(ValueError, match=message):
        build(replace(job, cadence=cadence, exchange=replace(job.exchange, overlap=False)))
