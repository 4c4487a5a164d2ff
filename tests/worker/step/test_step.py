"""The pure step with models it has never seen: one of keras.applications, and a hand-written keras.Model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from downpour.model.vision.losses import per_label_logistic
from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.ps.layout import Slicing, lay_out
from downpour.ps.policy.rules import Momentum
from downpour.ps.policy.schedules import Constant
from downpour.ps.service.server import ShardServer
from downpour.worker.exchange.exchange import Exchanger, Parameters
from downpour.worker.step.step import TrainingStep
from downpour.worker.step.variables import initial_values, variables_of
from tests.worker.cluster import initialize

LABELS = 6


def mobile_net() -> keras.Model:
    return keras.applications.MobileNetV2(
        (32, 32, 3), alpha=0.35, weights=None, classes=LABELS, classifier_activation=None
    )


class HandWritten(keras.Model):
    """Dropout (a random seed: local state), regularisation, a scalar weight, and layers in a list."""

    def __init__(self) -> None:
        super().__init__(name="hand_written")
        self.convs = [keras.layers.Conv2D(4, 3, strides=2, name=f"conv{i}") for i in range(2)]
        self.norm = keras.layers.BatchNormalization(name="norm")
        self.dropout = keras.layers.Dropout(0.1, seed=1)
        self.head = keras.layers.Dense(LABELS, name="head", kernel_regularizer=keras.regularizers.L2(1e-3))
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, x: Any, training: bool = False) -> Any:
        for conv in self.convs:
            x = keras.ops.relu(conv(x))
        x = self.dropout(self.norm(x, training=training), training=training)
        return self.scale * self.head(keras.ops.mean(x, axis=(1, 2)))


def hand_written() -> keras.Model:
    model = HandWritten()
    model(np.zeros((1, 32, 32, 3), np.float32))
    return model


@pytest.mark.parametrize(
    ("build", "wire"),
    [
        pytest.param(build, wire, id=f"{build.__name__}-{name}", marks=[pytest.mark.slow] * is_slow)
        for name, wire in codec.CODECS.items()
        for build, is_slow in ((mobile_net, wire != codec.BFLOAT16), (hand_written, False))
    ],
)
def test_any_keras_model_trains_unchanged(build: Callable[[], keras.Model], wire: Any) -> None:
    keras.utils.set_random_seed(0)
    model = build()
    before = [v.numpy().copy() for v in model.variables]
    variables = variables_of(model)
    kernel = next(v for v in reversed(variables) if v.name.endswith("kernel"))
    layout = lay_out(variables, 2, [Slicing(kernel.name, 3)])
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (8, 32, 32, 3)).astype(np.float32)
    labels = np.eye(LABELS, dtype=np.float32)[rng.integers(0, LABELS, 8)]
    with ShardServer(0) as first, ShardServer(1) as second:
        addresses = [f"127.0.0.1:{first.port}", f"127.0.0.1:{second.port}"]
        initialize(addresses, layout, initial_values(model), Momentum(), Constant(0.005))
        exchange = Exchanger(addresses, layout, wire=wire, worker=0, incarnation=1, give_up_after_s=20)
        step = TrainingStep(model, per_label_logistic, layout, wire)
        answer = exchange.start().result()
        losses = []
        for _ in range(12):
            result = step(answer.parameters, images, labels)
            assert result.is_finite
            losses.append(result.loss)
            answer = exchange.start(result.gradients).result()
        exchange.close()
    assert np.mean(losses[-3:]) < 0.95 * np.mean(losses[:3])
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value, f"the step assigned {variable.path}")


class Counting(keras.layers.Layer):
    """Counts its calls where Keras does not see it: in a variable of TensorFlow, or in Python."""

    def __init__(self, *, in_python: bool) -> None:
        super().__init__()
        self.in_python = in_python
        self.calls: Any = []

    def build(self, shape: Any) -> None:
        self.variable = tf.Variable(0)

    def call(self, x: Any) -> Any:
        if self.in_python:
            tf.numpy_function(lambda: self.calls.append(1), [], [])
        else:
            self.variable.assign_add(1)
        return x

    @property
    def count(self) -> int:
        return len(self.calls) + int(self.variable)


@pytest.mark.parametrize("state", ["none", "variable", "python"])
def test_a_rehearsal_changes_nothing_and_the_first_step_traces_nothing(state: str) -> None:
    keras.utils.set_random_seed(0)
    inputs, is_counting = keras.Input((8,)), state != "none"
    counting = Counting(in_python=state == "python")
    x = keras.layers.Dropout(0.5, seed=1)(keras.layers.Dense(4)(counting(inputs) if is_counting else inputs))
    model = keras.Model(inputs, keras.layers.BatchNormalization()(x))
    layout = lay_out(variables_of(model), 1)
    values = layout.scatter(initial_values(model))[0]
    cut = layout.num_trained(0)
    parameters = Parameters([values[:cut]], [values[cut:]], [0], [np.zeros(0, np.float32)])
    batch = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32), np.ones((6, 4), np.float32)
    steps = [TrainingStep(model, keras.losses.MeanSquaredError(), layout) for _ in range(2)]
    steps[0].rehearse(*batch)
    if is_counting:
        assert counting.count == 0
    traced = steps[0]._compiled.experimental_get_tracing_count()
    for number in range(3):
        first, second = (step(parameters, *batch) for step in steps)
        assert first.loss == second.loss
        np.testing.assert_array_equal(first.gradients.trained[0], second.gradients.trained[0])
        if is_counting:
            assert counting.count == 2 * (number + 1)
    assert steps[0]._compiled.experimental_get_tracing_count() == traced == 1


class Checked(keras.layers.Layer):
    """Divides by a weight, and bears no infinity."""

    def build(self, shape: Any) -> None:
        self.divisor = self.add_weight(shape=(), initializer="ones", name="divisor")

    def call(self, x: Any) -> Any:
        return tf.debugging.check_numerics(x / tf.convert_to_tensor(self.divisor), "divided")


def test_a_rehearsal_fails_for_no_value() -> None:
    inputs = keras.Input((8,))
    model = keras.Model(inputs, Checked()(keras.layers.Dense(4)(inputs)))
    layout = lay_out(variables_of(model), 1)
    step = TrainingStep(model, keras.losses.MeanSquaredError(), layout)
    batch = np.ones((6, 8), np.float32), np.ones((6, 4), np.float32)
    step.rehearse(*batch)
    nothing = [np.zeros(0, np.float32)]
    with pytest.raises(tf.errors.InvalidArgumentError, match="divided"):
        step(Parameters([np.zeros(layout.size(0), np.float32)], nothing, [0], nothing), *batch)
    assert step(Parameters([layout.scatter(initial_values(model))[0]], nothing, [0], nothing), *batch).is_finite


@pytest.mark.parametrize("wire", [codec.FLOAT32, codec.BFLOAT16])
def test_the_gradient_of_a_table_leaves_as_rows_with_the_bits_of_the_dense_one(wire: pb.Codec) -> None:
    inputs = keras.Input((5,), dtype="int32")
    looked_up = keras.layers.Embedding(50, 4, name="table")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(looked_up)))
    layout = lay_out(variables_of(model), 2)
    parameters = Parameters(
        [np.ones(layout.num_trained(shard), codec.WIRE_DTYPES[wire]) for shard in range(2)],
        [np.zeros(0, np.float32)] * 2,
        [0, 0],
        [np.zeros(0, codec.WIRE_DTYPES[wire])] * 2,
    )
    words = np.random.default_rng(0).integers(0, 9, (4, 5)).astype(np.int32)
    labels = np.ones((4, 1), np.float32)

    def loss(labels: Any, outputs: Any) -> Any:
        return keras.ops.mean((labels - outputs) ** 2)

    dense = TrainingStep(model, loss, layout, wire)(parameters, words, labels)
    sparse = TrainingStep(model, loss, layout, wire, sparse=True)(parameters, words, labels)
    (number,) = (i for i, v in enumerate(layout.variables) if v.name == "table/embeddings")
    assert not dense.gradients.rows and sparse.gradients.rows is not None
    rows = sparse.gradients.rows[number]
    assert rows.indices.tolist() == sorted(set(words.ravel().tolist()))
    whole = np.zeros((50, 4), codec.WIRE_DTYPES[wire])
    whole[rows.indices] = rows.values
    (shard,) = (i for i, ranges in enumerate(layout.by_shard) if any(r.variable == number for r in ranges))
    (r,) = (r for r in layout.by_shard[shard] if r.variable == number)
    np.testing.assert_array_equal(dense.gradients.trained[shard][r.offset :][: r.size], whole.ravel())
    assert sparse.gradient_norm == pytest.approx(dense.gradient_norm, rel=1e-5)
    assert sparse.gradient_norms() == pytest.approx(dense.gradient_norms(), rel=1e-5)
