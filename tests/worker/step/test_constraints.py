"""Keras's constraints become those of shards or are refused by name, and a model trains as plain Keras trains it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from downpour.model.vision.losses import per_label_logistic
from downpour.proto import codec
from downpour.ps.layout import FACTORED, FROZEN, TRAINED, Slicing, Variable, lay_out
from downpour.ps.policy.constraints import Constraint, MaxNorm, MinMaxNorm, NonNeg, UnitNorm
from downpour.ps.policy.rules import KerasRMSProp
from downpour.ps.policy.schedules import Constant
from downpour.worker.exchange.exchange import Exchanger
from downpour.worker.step.constraints import constraint_of
from downpour.worker.step.step import TrainingStep
from downpour.worker.step.variables import factored_names, initial_values, variables_of
from tests.worker.cluster import initialize

BATCH, LABELS, RATE = 4, 60, 0.01


class Halved(keras.constraints.NonNeg):
    """A subclass that does something else."""

    def __call__(self, w: Any) -> Any:
        return super().__call__(w) / 2


def model() -> keras.Model:
    keras.utils.set_random_seed(3)
    k = keras.constraints
    images = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu", kernel_constraint=k.MaxNorm(0.4, [0, 1, 2]), name="conv")(images)
    x = keras.layers.Flatten(name="flat")(x)
    x = keras.layers.Dense(48, kernel_constraint=k.UnitNorm(-1), bias_constraint="non_neg", name="hidden")(x)
    x = keras.layers.LayerNormalization(gamma_constraint=k.MinMaxNorm(0.9, 1.1, 0.5, axis=None), name="norm")(x)
    head = keras.layers.Dense(LABELS, kernel_constraint=k.MaxNorm(0.5), bias_constraint="non_neg", name="head")
    return keras.Model(images, head(x), name="net")


@pytest.fixture
def variable() -> Iterator[keras.Variable]:
    yield keras.Variable(np.zeros((3, 3, 4, 5), np.float32), name="kernel")


@pytest.mark.parametrize(
    ("theirs", "mine"),
    [
        (None, None),
        (keras.constraints.NonNeg(), NonNeg()),
        (keras.constraints.MaxNorm(), MaxNorm(2.0, (0,))),
        (keras.constraints.MaxNorm(3, axis=[2, 0, 1]), MaxNorm(3.0, (0, 1, 2))),
        (keras.constraints.UnitNorm(-1), UnitNorm((3,))),
        (keras.constraints.UnitNorm(None), UnitNorm((0, 1, 2, 3))),
        (keras.constraints.MinMaxNorm(0.5, 2, np.float64(0.25), (-2,)), MinMaxNorm(0.5, 2.0, 0.25, (2,))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_constraint_of_keras(variable: keras.Variable, theirs: Any, mine: Constraint | None) -> None:
    variable.constraint = theirs
    assert constraint_of(variable) == mine


def test_epsilon_is_that_of_keras(variable: keras.Variable) -> None:
    variable.constraint = keras.constraints.UnitNorm()
    before = keras.config.epsilon()
    try:
        keras.config.set_epsilon(1e-3)
        assert constraint_of(variable) == UnitNorm((0,), 1e-3)
    finally:
        keras.config.set_epsilon(before)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (Halved(), "kernel has the constraint Halved, which shards cannot apply; they know NonNeg, MaxNorm, UnitNorm "
         "and MinMaxNorm of keras.constraints themselves, no subclasses: use one of those, or set constraint=None"),
        (keras.ops.abs, "the constraint abs, which"),
        (lambda w: w, r"the constraint .*<lambda>, which"),
        (keras.constraints.Constraint(), "the constraint Constraint, which"),
        (keras.constraints.MaxNorm(1, 4),
         r"kernel \[3, 3, 4, 5\]: its constraint cannot be applied: MaxNorm over axis 4 of a variable with 4 axes"),
        (keras.constraints.UnitNorm([0, -4]), r"UnitNorm over axis \[0, -4\] of"),
        (keras.constraints.UnitNorm([]), r"UnitNorm over axis \[\] of"),
        (keras.constraints.MaxNorm(-1), "MaxNorm: max_value is -1.0; give a finite number of at least 0"),
        (keras.constraints.MaxNorm("2,"), "its constraint cannot be applied: could not convert"),
        (keras.constraints.MinMaxNorm(2, 1), "its constraint cannot be applied: MinMaxNorm"),
    ],
)  # fmt: skip
def test_others_are_refused_by_the_name_of_their_variable(variable: keras.Variable, theirs: Any, message: str) -> None:
    variable.constraint = theirs
    with pytest.raises(ValueError, match=message):
        constraint_of(variable)


def by_name(net: keras.Model, **more: Any) -> dict[str, Variable]:
    return {v.name: v for v in variables_of(net, **more)}


def test_variables_have_those_of_their_layers_and_frozen_ones_none() -> None:
    found = by_name(model(), frozen=("conv/*",))
    assert {name: v.constraint for name, v in found.items() if v.constraint} == {
        "hidden/kernel": UnitNorm((1,)),
        "hidden/bias": NonNeg(),
        "norm/gamma": MinMaxNorm(0.9, 1.1, 0.5, (0,)),
        "head/kernel": MaxNorm(0.5, (0,)),
        "head/bias": NonNeg(),
    }
    assert found["conv/kernel"].kind == FROZEN
    net = model()
    net.get_layer("head").kernel.constraint = Halved()
    with pytest.raises(ValueError, match="head/kernel has the constraint Halved"):
        variables_of(net)
    assert by_name(net, frozen=("head/kernel",))["head/kernel"].constraint is None


@pytest.mark.parametrize(
    ("constraint", "kind"),
    [("non_neg", FACTORED), (keras.constraints.MaxNorm(1, 0), FACTORED), (keras.constraints.MaxNorm(1, 1), TRAINED)],
)
def test_a_kernel_is_factored_unless_its_norms_are_over_outputs(constraint: Any, kind: str) -> None:
    inputs = keras.Input((64,))
    net = keras.Model(inputs, keras.layers.Dense(64, kernel_constraint=constraint, name="d")(inputs))
    assert by_name(net, factored=factored_names(net, BATCH))["d/kernel"].kind == kind


def batch(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.uniform(size=(BATCH, LABELS)) < 0.3).astype(np.float32)
    return rng.standard_normal((BATCH, 6, 6, 3)).astype(np.float32), labels


def train_plainly(num_steps: int) -> list[np.ndarray]:
    net, optimizer = model(), keras.optimizers.RMSprop(RATE, momentum=0.9)
    for number in range(num_steps):
        images, labels = batch(number)
        with tf.GradientTape() as tape:
            loss = per_label_logistic(labels, net(images, training=True))
        optimizer.apply(tape.gradient(loss, [v.value for v in net.trainable_variables]), net.trainable_variables)
    return initial_values(net)


@pytest.mark.parametrize("factored", [False, True])
def test_a_constrained_model_trains_as_plain_keras_trains_it(served: Any, factored: bool) -> None:
    """Through three shards, conv and head sliced along their outputs."""
    net = model()
    names = factored_names(net, BATCH) if factored else set()
    layout = lay_out(variables_of(net, factored=names), 3, [Slicing("head/*", 4), Slicing("conv/kernel", 2)])
    assert any(v.kind == FACTORED and v.constraint for v in layout.variables) == factored
    addresses = served.start(3)
    initialize(addresses, layout, initial_values(net), KerasRMSProp(momentum=0.9), Constant(RATE))
    exchange = Exchanger(addresses, layout, wire=codec.FLOAT32, worker=0, incarnation=1, give_up_after_s=30)
    step = TrainingStep(net, per_label_logistic, layout)
    try:
        answer = exchange.start().result()
        for number in range(20):
            answer = exchange.start(step(answer.parameters, *batch(number)).gradients).result()
        pulled = answer.parameters
    finally:
        exchange.close()
    plain = train_plainly(20)
    for v, mine, theirs in zip(layout.variables, layout.gather(pulled.trained), plain, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=2e-3, atol=2e-4, err_msg=v.name)
