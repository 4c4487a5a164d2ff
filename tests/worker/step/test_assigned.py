"""Kernels that their layer assigns: several workers keep the norm that one keeps; what shards cannot do is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from downpour.launch.job import Cluster, Exchange, Job
from downpour.launch.job.build import build
from downpour.model import weights
from downpour.model.data import Examples
from downpour.ps.layout import STATISTIC, lay_out
from downpour.ps.policy.averages import Polyak
from downpour.ps.policy.rules import SGD
from downpour.ps.policy.schedules import Constant
from downpour.worker.exchange.cadence import Accumulate
from downpour.worker.step.assigned import share
from downpour.worker.step.step import TrainingStep
from downpour.worker.step.variables import initial_values, variables_in, variables_of
from tests.worker.step.exactness import parameters_of, squares

X, Y = (np.random.default_rng(0).standard_normal((16, width)).astype(np.float32) for width in (6, 4))


def network(**layer: Any) -> keras.Model:
    inputs = keras.Input((6,))
    inner = layers.Dense(4, name="dense", **layer)
    return keras.Model(inputs, layers.SpectralNormalization(inner, name="spectral")(inputs))


def compiled() -> keras.Model:
    model = network()
    model.compile(optimizer="sgd", loss="mse")
    return model


def test_the_layout_has_a_second_variable_that_is_added_to_the_kernel() -> None:
    model = network()
    layout = lay_out(variables_of(model, weight_decay=0.1, undecayed=("*kernel",)), 1)
    names = {v.name: v.kind for v in layout.variables}
    assert names["spectral/dense/kernel:assigned"] == names["spectral/vector_u"] == STATISTIC
    assert [v.path for v in variables_in(model, layout)] == list(names)[:-1]
    values = dict(zip(names, initial_values(model, layout), strict=True))
    assert not values["spectral/dense/kernel:assigned"].any()
    values["spectral/dense/kernel:assigned"] += 2
    found = weights.added(values)
    np.testing.assert_array_equal(found["spectral/dense/kernel"], model.layers[1].kernel.numpy() + 2)
    assert set(found) == {v.path for v in model.variables}


@pytest.mark.parametrize(("num_workers", "overlap"), [(1, True), (4, False), (4, True)])
def test_several_workers_keep_the_largest_singular_value_near_one(num_workers: int, overlap: bool) -> None:
    """Each computes with what was pulled before the others pushed, and with overlap before its own last push, too."""
    keras.utils.set_random_seed(1)
    model = network(kernel_initializer=keras.initializers.RandomNormal(stddev=2.0))
    layout = lay_out(variables_of(model), 1)
    [vector] = layout.scatter(initial_values(model, layout))
    step = TrainingStep(model, squares, layout, share=share(num_workers, overlap=overlap))
    trained, pushed, waiting = layout.num_trained(0), layout.num_pushed(0), []
    for _ in range(60):
        waiting.append([step(parameters_of(layout, vector), X, Y).gradients for _ in range(num_workers)])
        for gradients in waiting.pop(0) if len(waiting) > overlap else ():
            vector[:trained] -= 0.01 * gradients.trained[0]
            vector[trained:pushed] += gradients.statistics[0]
    values = dict(zip((v.name for v in layout.variables), layout.gather([vector]), strict=True))
    assert np.linalg.norm(weights.added(values)["spectral/dense/kernel"], 2) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"average": Polyak(0.9)}, "average: spectral/dense/kernel is assigned by its layer"),
        ({"cadence": Accumulate(2)}, "cadence: Accumulate: spectral/dense/kernel is assigned by its layer"),
        ({"weight_decay": 0.1}, "divided by its largest singular value .* name it in `undecayed`"),
    ],
)
def test_what_shards_cannot_combine_is_refused(change: dict[str, Any], message: str) -> None:
    model = network()
    job = Job(
        name="spectral", model=network, data=Examples((X, Y)), loss=squares, rule=SGD(), schedule=Constant(0.1),
        num_steps=1, batch_size=8, cluster=Cluster(1, 1), exchange=Exchange(codec="float32", overlap=False),
    )  # fmt: skip
    assert build(job)[1].variables[0].name == model.layers[1].kernel.path
    with pytest.raises(ValueError, match=message):
        build(replace(job, **change))


def test_a_constraint_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot combine with a constraint"):
        variables_of(network(kernel_constraint="non_neg"))
