"""The step's factors against its own dense gradient, and a whole training through shards either way."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from downpour.model.vision.losses import per_label_logistic
from downpour.proto import codec
from downpour.ps.layout import FACTORED, Layout, Slicing, lay_out
from downpour.ps.policy.rules import RMSProp
from downpour.ps.policy.schedules import Constant
from downpour.worker.exchange.exchange import Exchanger, Parameters
from downpour.worker.step.clip import Clip
from downpour.worker.step.examine import examine
from downpour.worker.step.step import TrainingStep
from downpour.worker.step.variables import factored_names, initial_values, variables_of
from tests.worker.cluster import initialize

BATCH, FEATURES, LABELS, SHARDS = 4, 48, 60, 3
SLICING = [Slicing("*head/*", 5)]


def model() -> keras.Model:
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            keras.layers.Flatten(name="flat"),
            keras.layers.Dense(FEATURES, activation="relu", name="hidden"),
            keras.layers.Dense(LABELS, name="head"),
        ],
        name="net",
    )


def layout_of(net: keras.Model, *, factored: bool) -> Layout:
    names = factored_names(net, BATCH) if factored else ()
    return lay_out(variables_of(net, factored=names), SHARDS, SLICING)


def batch(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.uniform(size=(BATCH, LABELS)) < 0.3).astype(np.float32)
    return rng.standard_normal((BATCH, 6, 6, 3)).astype(np.float32), labels


def parameters_of(layout: Layout, values: Sequence[np.ndarray]) -> Parameters:
    vectors = layout.scatter(values)
    nothing = [np.empty(0, np.float32) for _ in vectors]
    return Parameters(vectors, nothing, [0] * SHARDS, nothing)


def gradient_of(layout: Layout, gradients: Any) -> list[np.ndarray]:
    """One array a variable, whatever way they travel."""
    vectors = []
    for shard in range(SHARDS):
        parts = []
        for group, (x, d) in zip(layout.factored(shard), gradients.factors[shard], strict=True):
            assert x.shape == (BATCH, group.num_inputs) and d.shape == (BATCH, group.num_outputs)
            product = x.T @ d
            columns = np.cumsum([0, *(r.size // group.num_inputs for r in group.ranges)])
            parts += [product[:, a:b].ravel() for a, b in itertools.pairwise(columns)]
        vectors.append(np.concatenate([*parts, gradients.trained[shard]]))
    return layout.gather(vectors)


def test_only_large_linear_dense_layers_are_factored() -> None:
    assert [name.rpartition("head/")[2] for name in factored_names(model(), BATCH)] == ["kernel"]
    assert factored_names(model(), 1000) == set()


@pytest.mark.parametrize("clip", [None, Clip(by_global_norm=0.5), Clip(by_norm=0.1)], ids=["none", "global", "each"])
def test_factors_multiply_to_the_dense_gradient(clip: Clip | None) -> None:
    net = model()
    values = initial_values(net)
    results = []
    for factored in (False, True):
        layout = layout_of(net, factored=factored)
        step = TrainingStep(net, per_label_logistic, layout, clip=clip)
        result = step(parameters_of(layout, values), *batch(1))
        results.append((result, gradient_of(layout, result.gradients)))
    (dense, dense_values), (by_factors, factor_values) = results
    assert any(v.kind == FACTORED for v in layout.variables)
    assert by_factors.loss == dense.loss
    np.testing.assert_allclose(by_factors.gradient_norm, dense.gradient_norm, rtol=1e-5)
    for a, b in zip(factor_values, dense_values, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)
    norms = dense.gradient_norms()
    assert by_factors.gradient_norms() == pytest.approx(norms, rel=1e-5), "from Gram matrices, before clipping"
    assert np.sqrt(sum(norm**2 for norm in norms.values())) == pytest.approx(dense.gradient_norm, rel=1e-5)
    if clip is None:
        assert norms == pytest.approx({i: np.linalg.norm(g) for i, g in enumerate(dense_values)}, rel=1e-5)
    assert sum(g.size for g in by_factors.gradients.trained) < 0.8 * sum(g.size for g in dense.gradients.trained)


def test_a_layer_that_is_used_twice_is_refused() -> None:
    inputs = keras.Input((64,))
    shared = keras.layers.Dense(64, name="shared")
    net = keras.Model(inputs, shared(shared(inputs)), name="twice")
    layout = lay_out(variables_of(net, factored=factored_names(net, BATCH)), SHARDS)
    step = TrainingStep(net, per_label_logistic, layout)
    images = np.zeros((BATCH, 64), np.float32)
    with pytest.raises(ValueError, match=r"shared/kernel is used more than once.*exchange.factors=False"):
        step(parameters_of(layout, initial_values(net)), images, np.zeros((BATCH, 64), np.float32))


def sum_of_products(self: Any, inputs: Any, training: Any = None) -> Any:
    return self.activation(keras.ops.sum(inputs[:, :, None] * self.kernel, 1) + self.bias)


@pytest.mark.parametrize("is_product", [True, False])
def test_a_dense_layer_that_is_computed_in_another_way_is_pushed_dense(
    is_product: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a later Keras may do; nothing but the graph says that a layer is a product."""
    if not is_product:
        monkeypatch.setattr(keras.layers.Dense, "call", sum_of_products)
    net = model()
    blank = np.empty((BATCH, 6, 6, 3), np.float32), np.empty((BATCH, LABELS), np.float32)
    examined = examine(net, per_label_logistic, blank)
    assert [path.rpartition("/head")[0] for path in factored_names(net, BATCH, examined)] == ["net"] * is_product
    layout = lay_out(variables_of(net, factored=factored_names(net, BATCH, examined)), SHARDS, SLICING)
    result = TrainingStep(net, per_label_logistic, layout)(parameters_of(layout, initial_values(net)), *batch(1))
    reference = layout_of(net, factored=False)
    monkeypatch.undo()
    dense = TrainingStep(net, per_label_logistic, reference)(parameters_of(reference, initial_values(net)), *batch(1))
    for a, b in zip(gradient_of(layout, result.gradients), gradient_of(reference, dense.gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


def test_shards_share_the_first_factor_and_no_gradient_is_computed_beside_the_factors() -> None:
    net = model()
    layout = layout_of(net, factored=True)
    step = TrainingStep(net, per_label_logistic, layout)
    parameters = parameters_of(layout, initial_values(net))
    factors = step(parameters, *batch(1)).gradients.factors
    assert factors is not None
    first = [x for of_shard in factors for x, _ in of_shard]
    assert len(first) == SHARDS and all(np.shares_memory(x, first[0]) for x in first)
    graph = step._compiled.get_concrete_function(*step._arguments(parameters), *map(tf.constant, batch(1)), None)
    needed, waiting = set(), [output.op for output in graph.outputs]
    while waiting:
        op = waiting.pop()
        if op.name not in needed:
            needed.add(op.name)
            waiting += [value.op for value in op.inputs]
    products = [op for op in graph.graph.get_operations() if op.type == "MatMul" and op.name in needed]
    assert not [op for op in products if tuple(op.outputs[0].shape) == (FEATURES, LABELS)], "x^T d is not computed"
    assert [op for op in products if tuple(op.outputs[0].shape) == (BATCH, LABELS)], "x W is"


def test_training_with_factors_equals_training_without(served: Any) -> None:
    traces = []
    for factored in (False, True):
        net = model()
        layout = layout_of(net, factored=factored)
        addresses = served.start(SHARDS)
        initialize(addresses, layout, initial_values(net), RMSProp(), Constant(1e-3))
        exchange = Exchanger(addresses, layout, wire=codec.FLOAT32, worker=0, incarnation=1, give_up_after_s=30)
        step = TrainingStep(net, per_label_logistic, layout)
        answer = exchange.start().result()
        losses = []
        for number in range(10):
            assert answer.parameters is not None
            result = step(answer.parameters, *batch(number))
            losses.append(result.loss)
            answer = exchange.start(result.gradients).result()
        exchange.close()
        traces.append(losses)
    np.testing.assert_allclose(traces[1], traces[0], rtol=1e-5)
    assert traces[0][0] != traces[0][1]
