"""One worker, float32, no overlap, through real shards equals plain Keras with TensorFlow's or Keras's own update.

Tolerances: the shards compute the same formulas in float32, so the traces agree to rounding. Rounding is amplified
by training through batch norm; the same comparison without batch norm shows how much of it that is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from downpour.model.vision.losses import per_label_logistic
from downpour.model.vision.resnet import ResNet
from downpour.proto import codec
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint.shard_file import ShardFile
from downpour.ps.layout import Layout, Slicing, lay_out
from downpour.ps.policy.averages import Polyak
from downpour.ps.policy.rules import KerasAdam, Momentum, RMSProp, Rule
from downpour.ps.policy.schedules import Constant
from downpour.worker.exchange.clients import ShardClient
from downpour.worker.exchange.exchange import Exchanger
from downpour.worker.step.step import TrainingStep
from downpour.worker.step.variables import initial_values, statistics_of, variables_of
from tests.worker.cluster import initialize

NUM_STEPS = 20
RATE = 1e-3
LABELS = 10


def small_resnet() -> keras.Model:
    keras.utils.set_random_seed(7)
    return ResNet(depth=18, width=8, stem="3x3").build(16, LABELS)


def no_batch_norm() -> keras.Model:
    keras.utils.set_random_seed(7)
    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            keras.layers.Conv2D(8, 3, activation="relu", name="conv1"),
            keras.layers.Conv2D(8, 3, strides=2, activation="relu", name="conv2"),
            keras.layers.Flatten(name="flat"),
            keras.layers.Dense(LABELS, name="head"),
        ],
        name="net",
    )


def batches() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(3)
    return [
        (
            rng.uniform(-1, 1, (8, 16, 16, 3)).astype(np.float32),
            (rng.uniform(size=(8, LABELS)) < 0.3).astype(np.float32),
        )
        for _ in range(NUM_STEPS)
    ]


def plain_updates(rule: Rule, variables: list[Any]) -> Callable[[list[tf.Tensor]], None]:
    """The reference's update of all variables: Keras's own optimizer, or TensorFlow's op on each."""
    if isinstance(rule, KerasAdam):
        optimizer = keras.optimizers.Adam(RATE, rule.beta_1, rule.beta_2, rule.epsilon, rule.amsgrad)
        optimizer.build(variables)
        return lambda gradients: optimizer.apply(gradients, variables)
    slots = [[tf.Variable(tf.fill(v.shape, init)) for init in rule.slots.values()] for v in variables]

    def update(gradients: list[tf.Tensor]) -> None:
        for variable, gradient, own in zip(variables, gradients, slots, strict=True):
            plain_update(rule, variable, gradient, own)

    return update


def plain_update(rule: Rule, variable: Any, gradient: tf.Tensor, slots: list[tf.Variable]) -> None:
    """TensorFlow's own op on a Keras variable."""
    handle = variable.value.handle
    if isinstance(rule, RMSProp):
        tf.raw_ops.ResourceApplyRMSProp(
            var=handle, ms=slots[0].handle, mom=slots[1].handle, lr=RATE, rho=rule.rho, momentum=rule.momentum,
            epsilon=rule.epsilon, grad=gradient,
        )  # fmt: skip
    else:
        assert isinstance(rule, Momentum)
        tf.raw_ops.ResourceApplyMomentum(
            var=handle, accum=slots[0].handle, lr=RATE, grad=gradient, momentum=rule.momentum
        )


def train_plainly(model: keras.Model, rule: Rule) -> tuple[list[float], list[np.ndarray]]:
    """Plain Keras: model call, tape, the reference's update; one process, no Downpour."""
    update = plain_updates(rule, model.trainable_variables)

    @tf.function
    def step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = per_label_logistic(labels, model(images, training=True))
        update(tape.gradient(loss, [v.value for v in model.trainable_variables]))
        return loss

    losses = [float(step(images, labels)) for images, labels in batches()]
    return losses, initial_values(model)


def train_through_shards(model: keras.Model, rule: Rule, shards: Any) -> tuple[list[float], list[np.ndarray]]:
    layout = lay_out(variables_of(model), 3, [Slicing("*head/*", 4)])
    addresses = shards.start(3)
    initialize(addresses, layout, initial_values(model), rule, Constant(RATE))
    exchange = Exchanger(addresses, layout, wire=codec.FLOAT32, worker=0, incarnation=1, give_up_after_s=30)
    step = TrainingStep(model, per_label_logistic, layout)
    losses = []
    try:
        exchange.connect()
        answer = exchange.start().result()
        for images, labels in batches():
            result = step(answer.parameters, images, labels)
            losses.append(result.loss)
            answer = exchange.start(result.gradients).result()
            assert answer.staleness == 0
        assert set(answer.parameters.versions) == {NUM_STEPS}
        return losses, values_of(layout, answer.parameters)
    finally:
        exchange.close()


def values_of(layout: Layout, parameters: Any) -> list[np.ndarray]:
    return layout.gather([np.concatenate(p) for p in zip(parameters.trained, parameters.statistics, strict=True)])


def difference(mine: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """Largest relative difference of a variable, by Euclidean norm."""
    return max(float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-12)) for a, b in zip(mine, theirs, strict=True))


@pytest.fixture(autouse=True)
def deterministic() -> Any:
    tf.config.experimental.enable_op_determinism()
    yield


@pytest.mark.process
@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(RMSProp(), id="rmsprop"),
        pytest.param(Momentum(), id="momentum", marks=pytest.mark.slow),
        pytest.param(KerasAdam(), id="adam", marks=pytest.mark.slow),
    ],
)
def test_shard_processes_equal_plain_keras(rule: Rule, shards: Any) -> None:
    check_equal(small_resnet, rule, shards)


@pytest.mark.parametrize("rule", [RMSProp(), Momentum(), KerasAdam()], ids=["rmsprop", "momentum", "adam"])
def test_shards_equal_plain_keras_without_batch_norm(rule: Rule, served: Any) -> None:
    check_equal(no_batch_norm, rule, served)


def check_equal(build: Callable[[], keras.Model], rule: Rule, shards: Any) -> None:
    plain_losses, plain_values = train_plainly(build(), rule)
    losses, values = train_through_shards(build(), rule, shards)
    assert plain_losses[-1] < plain_losses[0]
    np.testing.assert_allclose(losses, plain_losses, rtol=1e-5)
    assert difference(values, plain_values) < 1e-5


def test_the_average_in_a_checkpoint_is_that_of_the_parameters_pulled(served: Any, tmp_path: Path) -> None:
    """Through three shards, slices and statistics included; float64 against float32, within 1e-6."""
    model, layout = small_resnet(), lay_out(variables_of(small_resnet()), 3, [Slicing("*head/*", 4)])
    addresses = served.start(3)
    start = initial_values(model)
    initialize(addresses, layout, start, KerasAdam(), Constant(1e-2), average=Polyak(0.75))
    exchange = Exchanger(addresses, layout, wire=codec.FLOAT32, worker=0, incarnation=1, give_up_after_s=30)
    step = TrainingStep(model, per_label_logistic, layout)
    clients = [ShardClient(i, address, layout, 30) for i, address in enumerate(addresses)]
    expected = [value.astype(np.float64) for value in start]
    try:
        answer = exchange.start().result()
        for images, labels in batches()[:6]:
            answer = exchange.start(step(answer.parameters, images, labels).gradients).result()
            values = values_of(layout, answer.parameters)
            expected = [0.75 * a + 0.25 * w for a, w in zip(expected, values, strict=True)]
        files = tuple(ShardFile.of(client.write_checkpoint(str(tmp_path))) for client in clients)
    finally:
        exchange.close()
        for client in clients:
            client.close()
    saved = checkpoint.Checkpoint(str(tmp_path), 6, layout, files)
    assert difference(layout.gather(saved.parameters(average=True)), expected) < 1e-6
    assert difference(layout.gather(saved.parameters()), values) == 0
    assert difference(values, expected) > 1e-3, "the average is not the parameters"


def test_the_comparison_can_fail() -> None:
    values = [np.ones(3, np.float32)]
    assert difference([v * np.float32(1 + 1e-4) for v in values], values) > 1e-5


def test_statistics_are_part_of_the_comparison() -> None:
    assert len(statistics_of(small_resnet())) > 0
