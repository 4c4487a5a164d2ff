"""Rates, decoupled decay and frozen variables: from a model's names, through the compiled step and real shards."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from downpour.model.vision.losses import per_label_logistic
from downpour.proto import codec
from downpour.ps.layout import FROZEN, STATISTIC, TRAINED, Layout, Rate, lay_out
from downpour.ps.policy.rules import SGD
from downpour.ps.policy.schedules import Constant
from downpour.worker.exchange.exchange import Exchanger, Parameters
from downpour.worker.step.step import TrainingStep
from downpour.worker.step.variables import initial_values, variables_of
from tests.conftest import ServedShards
from tests.worker.cluster import initialize

LABELS = 4
FROZEN_PATTERNS = ("net/conv1/*", "net/norm1/*")


def network() -> keras.Model:
    keras.utils.set_random_seed(3)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Conv2D(4, 3, activation="relu", name="conv1"),
            layers.BatchNormalization(name="norm1"),
            layers.Conv2D(4, 3, activation="relu", name="conv2"),
            layers.BatchNormalization(name="norm2"),
            layers.Flatten(name="flat"),
            layers.Dense(LABELS, name="head"),
        ],
        name="net",
    )


def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (4, 12, 12, 3)).astype(np.float32), np.eye(LABELS, dtype=np.float32)


def parameters(layout: Layout, model: keras.Model) -> Parameters:
    """What a pull of the initial values gives."""
    vectors = layout.scatter(initial_values(model))
    shards = range(layout.num_shards)
    return Parameters(
        [vectors[i][: layout.num_trained(i)] for i in shards],
        [vectors[i][layout.num_trained(i) : layout.num_pushed(i)] for i in shards],
        [0 for _ in shards],
        [vectors[i][layout.num_pushed(i) :] for i in shards],
    )


def test_variables_get_what_the_patterns_say() -> None:
    model = network()
    variables = variables_of(
        model,
        0.01,
        ("*/bias",),
        decay="decoupled",
        rates=(Rate("*", 0.5), Rate("net/head/*", 2.0)),
        frozen=FROZEN_PATTERNS,
    )
    assert [v.name for v in variables] == [v.name for v in variables_of(model)], "the order is the model's"
    by_name = {v.name: v for v in variables}
    assert {n for n, v in by_name.items() if v.kind == FROZEN} == {n for n in by_name if n[4:9] in ("conv1", "norm1")}
    assert {n for n, v in by_name.items() if v.kind == STATISTIC} == {
        "net/norm2/moving_mean",
        "net/norm2/moving_variance",
    }
    assert by_name["net/conv2/kernel"].treatment == (TRAINED, 0.0, 0.01, 0.5)
    assert by_name["net/head/bias"].treatment == (TRAINED, 0.0, 0.0, 2.0)
    assert by_name["net/conv1/kernel"].treatment == (FROZEN, 0.0, 0.0, 1.0)


def test_patterns_that_match_nothing_are_refused_by_name() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"frozen: pattern 'net/conf1/\*' matches no variable; .*net/conv1/"):
        variables_of(model, frozen=("net/conf1/*",))
    with pytest.raises(ValueError, match=r"rates: pattern 'net/norm1/moving\*' matches no variable"):
        variables_of(model, rates=(Rate("net/norm1/moving*", 0.1),))
    with pytest.raises(ValueError, match=r"frozen: \* match every trainable variable"):
        variables_of(model, frozen=("*",))


def num_operations(step: TrainingStep, given: Parameters, kind: str) -> int:
    """Operations that the step's outputs depend on; TensorFlow leaves the others out."""
    images, labels = batch()
    step(given, images, labels)
    (graph,) = [f.graph for f in step._compiled._list_all_concrete_functions()]
    waiting, seen = [output.op for output in graph.outputs], set()
    while waiting:
        op = waiting.pop()
        if op.name not in seen:
            seen.add(op.name)
            waiting += [*(tensor.op for tensor in op.inputs), *op.control_inputs]
    return sum(graph.get_operation_by_name(name).type == kind for name in seen)


@pytest.mark.parametrize(
    ("frozen", "filters", "inputs"), [((), 2, 1), (FROZEN_PATTERNS, 1, 0), (("net/conv2/*",), 1, 1)]
)
def test_frozen_variables_are_not_differentiated(frozen: tuple[str, ...], filters: int, inputs: int) -> None:
    """Nor is what only they would need: below a frozen first layer no gradient flows at all."""
    model = network()
    layout = lay_out(variables_of(model, frozen=frozen), 2)
    step = TrainingStep(model, per_label_logistic, layout)
    given = parameters(layout, model)
    assert num_operations(step, given, "Conv2DBackpropFilter") == filters
    assert num_operations(step, given, "Conv2DBackpropInput") == inputs


def test_gradients_of_the_others_are_the_same() -> None:
    model = network()
    images, labels = batch()
    found = {}
    for frozen in ((), FROZEN_PATTERNS):
        layout = lay_out(variables_of(model, frozen=frozen), 2)
        result = TrainingStep(model, per_label_logistic, layout)(parameters(layout, model), images, labels)
        pushed = [np.concatenate(p) for p in zip(result.gradients.trained, result.gradients.statistics, strict=True)]
        padded = [np.concatenate([p, np.zeros(layout.size(i) - p.size, "f4")]) for i, p in enumerate(pushed)]
        gathered = layout.gather(padded)
        found[frozen] = {v.name: g for v, g in zip(layout.variables, gathered, strict=True) if v.kind != FROZEN}
    for name, gradient in found[FROZEN_PATTERNS].items():
        np.testing.assert_array_equal(gradient, found[()][name], name)


@pytest.mark.process
@pytest.mark.parametrize(
    "wire",
    [
        codec.BFLOAT16,
        pytest.param(codec.FLOAT32, marks=pytest.mark.slow),
        pytest.param(codec.FLOAT16, marks=pytest.mark.slow),
    ],
)
def test_frozen_variables_stay_and_the_rest_learns_through_real_shards(wire: int, served: ServedShards) -> None:
    """Five shards for the few variables that are left: one holds only frozen ones, so its pushes are empty."""
    model = network()
    layout = lay_out(variables_of(model, frozen=FROZEN_PATTERNS, rates=(Rate("net/conv2/*", 0.5),)), 5)
    assert any(layout.num_pushed(i) == 0 < layout.size(i) for i in range(5))
    before = initial_values(model)
    addresses = served.start(5)
    initialize(addresses, layout, before, SGD(), Constant(0.1))
    exchange = Exchanger(addresses, layout, wire=wire, worker=0, incarnation=1, give_up_after_s=30)  # type: ignore[arg-type]
    step = TrainingStep(model, per_label_logistic, layout, wire)  # type: ignore[arg-type]
    images, labels = batch()
    losses = []
    try:
        answer = exchange.start().result()
        for number in range(10):
            assert answer.parameters is not None and set(answer.parameters.versions) == {number}
            result = step(answer.parameters, images, labels)
            losses.append(result.loss)
            answer = exchange.start(result.gradients).result()
            assert answer.bytes_pulled > answer.bytes_pushed
    finally:
        exchange.close()
    assert losses[-1] < 0.7 * losses[0]
    assert answer.parameters is not None
    frozen = [value for v, value in zip(layout.variables, before, strict=True) if v.kind == FROZEN]
    pulled = np.concatenate([f.view(step._dtype).astype(np.float32) for f in answer.parameters.frozen])
    assert sorted(pulled) == sorted(np.concatenate([f.ravel() for f in frozen]).astype(step._dtype).astype(np.float32))
