"""Batch norm's moving statistics under asynchrony, through real shards and the compiled step.

What is equal, and what is not, for K workers that pull the same parameters, compute different batches and push, against
one worker that sees the same batches one after another (`downpour.worker.step.step` has the formulas):

- one worker: statistics and parameters are those of plain Keras, to rounding;
- K workers: the statistics are m + d * sum(b_i - m), to rounding, whatever the order of the pushes; not those of the
  one worker, but within d^2 * K * (K - 1) / 2 * max|b_i - m| of them while the parameters do not move;
- K workers: the parameters are w - rate * sum(g_i(w)), to rounding; not those of the one worker, whose later gradients
  were computed at parameters that had moved.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from downpour.model.vision.losses import per_label_logistic
from downpour.proto import codec
from downpour.ps.layout import STATISTIC, Layout, Variable, lay_out
from downpour.ps.policy.rules import SGD
from downpour.ps.policy.schedules import Constant
from downpour.ps.service.server import ShardServer
from downpour.worker.exchange.exchange import Exchanger, Gradients, Parameters
from downpour.worker.step.damping import Damping
from downpour.worker.step.step import TrainingStep
from downpour.worker.step.variables import initial_values, variables_in, variables_of
from tests.ps.pushing import new_shard, push
from tests.worker.cluster import initialize

LABELS, NUM_WORKERS = 4, 5
MOMENTUM = 0.9
D = 1 - MOMENTUM
STILL = 1e-30  # a rate that moves no parameter: float32 rounds it away, except from zero


def network() -> keras.Model:
    keras.utils.set_random_seed(5)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(momentum=MOMENTUM, name="norm"),
            layers.Flatten(name="flat"),
            layers.Dense(LABELS, name="head"),
        ]
    )


LAYOUT = lay_out(variables_of(network()), 2)


def batches() -> list[tuple[np.ndarray, np.ndarray]]:
    """Of different mean and spread, one a worker."""
    rng = np.random.default_rng(2)
    return [
        (
            rng.normal(i, 1 + i, (16, 6, 6, 3)).astype(np.float32),
            (rng.uniform(size=(16, LABELS)) < 0.3).astype(np.float32),
        )
        for i in range(NUM_WORKERS)
    ]


@dataclass
class Worker:
    """One worker's step and its exchange with the shards of a test."""

    exchange: Exchanger
    step: TrainingStep

    def compute(self, images: np.ndarray, labels: np.ndarray) -> Gradients:
        parameters = self.exchange.start().result().parameters
        assert parameters is not None
        gradients = self.step(parameters, images, labels).gradients
        # The buffers that were computed with are filled again by later pulls.
        return Gradients([g.copy() for g in gradients.trained], gradients.statistics, list(parameters.versions))

    def push(self, gradients: Gradients) -> float:
        return self.exchange.start(gradients, pull=False).result().staleness

    def values(self) -> list[np.ndarray]:
        parameters = self.exchange.start().result().parameters
        assert parameters is not None
        parts = zip(parameters.trained, parameters.statistics, strict=True)
        return LAYOUT.gather([np.concatenate(part) for part in parts])


@contextmanager
def workers(count: int, rate: float) -> Iterator[list[Worker]]:
    """Workers of one fresh pair of shards."""
    model = network()
    with ExitStack() as stack:
        servers = [stack.enter_context(ShardServer(i)) for i in range(LAYOUT.num_shards)]
        addresses = [f"127.0.0.1:{server.port}" for server in servers]
        initialize(addresses, LAYOUT, initial_values(model), SGD(), Constant(rate))
        step = TrainingStep(model, per_label_logistic, LAYOUT)
        made = [
            Worker(Exchanger(addresses, LAYOUT, wire=codec.FLOAT32, worker=i, incarnation=1, give_up_after_s=30), step)
            for i in range(count)
        ]
        for worker in made:
            stack.callback(worker.exchange.close)
        yield made


def together(rate: float, order: Sequence[int] = range(NUM_WORKERS)) -> list[np.ndarray]:
    """All compute from the same parameters, then all push."""
    with workers(NUM_WORKERS, rate) as team:
        gradients = [worker.compute(*batch) for worker, batch in zip(team, batches(), strict=True)]
        staleness = [team[i].push(gradients[i]) for i in order]
        assert staleness == [float(i) for i in range(NUM_WORKERS)], "each is one push staler than the one before"
        return team[0].values()


def in_turn(rate: float) -> list[np.ndarray]:
    """One worker computes and pushes one batch after another."""
    with workers(1, rate) as (worker,):
        for batch in batches():
            assert worker.push(worker.compute(*batch)) == 0
        return worker.values()


def plain_keras(rate: float) -> list[np.ndarray]:
    model = network()
    optimizer = keras.optimizers.SGD(rate)
    for images, labels in batches():
        with tf.GradientTape() as tape:
            loss = per_label_logistic(labels, model(images, training=True))
        gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
        optimizer.apply(gradients, model.trainable_variables)
    return initial_values(model)


def of_kind(values: list[np.ndarray], *, statistics: bool) -> list[np.ndarray]:
    return [x for v, x in zip(LAYOUT.variables, values, strict=True) if (v.kind == STATISTIC) == statistics]


def batch_statistics() -> list[list[np.ndarray]]:
    """Of every batch, mean and variance over images and places of what enters the normalisation."""
    model = network()
    inputs = [model.get_layer("conv")(images).numpy() for images, _ in batches()]
    return [[x.mean((0, 1, 2)), x.var((0, 1, 2))] for x in inputs]


def test_one_worker_has_what_plain_keras_has() -> None:
    for mine, theirs in zip(in_turn(0.05), plain_keras(0.05), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_statistics_of_several_workers_are_the_sum_of_their_differences() -> None:
    before = of_kind(initial_values(network()), statistics=True)
    batch = batch_statistics()
    merged = of_kind(together(STILL), statistics=True)
    alone = of_kind(in_turn(STILL), statistics=True)
    for i, (m, mine, other) in enumerate(zip(before, merged, alone, strict=True)):
        apart = [b[i].astype(np.float64) - m for b in batch]
        largest = np.abs(apart).max()
        np.testing.assert_allclose(mine, m + D * sum(apart), atol=1e-5 * largest)
        in_order = sum(x * (1 - D) ** (NUM_WORKERS - 1 - n) for n, x in enumerate(apart))
        np.testing.assert_allclose(other, m + D * in_order, atol=1e-5 * largest)
        bound = D**2 * NUM_WORKERS * (NUM_WORKERS - 1) / 2 * largest
        assert 0.05 * bound < np.abs(mine - other).max() <= bound, "not equal, but near"
    untouched = of_kind(initial_values(network()), statistics=False)
    for mine, start in zip(of_kind(together(STILL), statistics=False), untouched, strict=True):
        np.testing.assert_allclose(mine, start, atol=1e-25, err_msg="the rate is too small to move a parameter")


def test_the_order_of_the_pushes_does_not_matter() -> None:
    for mine, other in zip(together(0.05), together(0.05, range(NUM_WORKERS)[::-1]), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5)


def test_parameters_of_several_workers_move_by_the_sum_of_gradients_at_one_point() -> None:
    rate = 0.05
    merged, alone = together(rate), in_turn(rate)
    with workers(1, rate) as (worker,):
        all_gradients = [worker.compute(*batch).trained for batch in batches()]
    padded = [
        [np.concatenate([g, np.zeros(LAYOUT.size(i) - g.size, np.float32)]) for i, g in enumerate(gradients)]
        for gradients in all_gradients
    ]
    total = [np.sum(parts, axis=0) for parts in zip(*(LAYOUT.gather(p) for p in padded), strict=True)]
    triples = zip(initial_values(network()), total, merged, strict=True)
    expected = [start - rate * g for start, g, _ in triples]
    for mine, sum_of_gradients in zip(
        of_kind(merged, statistics=False), of_kind(expected, statistics=False), strict=True
    ):
        np.testing.assert_allclose(mine, sum_of_gradients, rtol=1e-5, atol=1e-5)
    difference = max(np.abs(a - b).max() for a, b in zip(merged, alone, strict=True))
    assert difference > 1e-3, "one worker's later gradients are of other parameters"


@pytest.mark.parametrize(("staleness", "settles"), [(0, True), (5, True), (15, True), (16, False), (25, False)])
def test_how_stale_differences_may_be(staleness: int, settles: bool) -> None:
    """Every difference `staleness` pushes old, d = 0.1: 15 is the last that settles, as Levin and May (1976) say."""
    layout: Layout = lay_out([Variable("moving_mean", (1,), STATISTIC)], 1)
    shard = new_shard(layout, np.ones(1, np.float32), SGD())
    history: list[Any] = [shard.arena.parameters.copy()]
    for number in itertools.count(1):
        pulled = history[max(len(history) - 1 - staleness, 0)]
        push(shard, number, np.float32(D) * (0 - pulled))  # the batches' own statistic is 0
        history.append(shard.arena.parameters.copy())
        if number == 3000:
            break
    early, late = (np.abs(np.concatenate(history[a:b])).max() for a, b in ((300, 600), (2700, 3000)))
    assert (late < early or late == 0) == settles


@pytest.mark.parametrize(("num_workers", "is_damped"), [(50, False), (50, True), (2, True)])
def test_statistics_settle_however_many_workers_move_them(num_workers: int, is_damped: bool) -> None:
    """Each pulls, and pushes when all others have; every batch has a mean of 3 and a variance of 4."""
    model = network()
    damping = Damping(model, LAYOUT, variables_in(model, LAYOUT))
    batch = [np.full(LAYOUT.num_pushed(i) - LAYOUT.num_trained(i), 3 + i, np.float32) for i in range(2)]
    held = [np.zeros_like(values) for values in batch]
    pulled = [[values.copy() for values in held] for _ in range(num_workers)]
    for turn in range(60 * num_workers):
        mine = pulled[turn % num_workers]
        differences = [np.float32(D) * (b - m) for b, m in zip(batch, mine, strict=True)]
        pushed = damping.damped(differences, num_workers - 1) if is_damped else differences
        for values, difference in zip(held, pushed, strict=True):
            values += difference
        pulled[turn % num_workers] = [values.copy() for values in held]
        if num_workers == 2:
            assert pushed is differences, "as in plain Keras"
    off = max(float(np.abs(values - b).max(initial=0.0)) for values, b in zip(held, batch, strict=True))
    assert off < 0.01 if is_damped else off > 100


def test_a_step_pushes_less_of_a_difference_the_staler_it_will_be() -> None:
    model = network()
    step = TrainingStep(model, per_label_logistic, LAYOUT)
    values = LAYOUT.scatter(initial_values(model))
    trained = [vector[: LAYOUT.num_trained(i)] for i, vector in enumerate(values)]
    statistics = [vector[LAYOUT.num_trained(i) :] for i, vector in enumerate(values)]
    fresh = Parameters(trained, statistics, [0, 0], [np.zeros(0, np.float32)] * 2)
    of = {s: step(replace(fresh, staleness=s), *batches()[1]).gradients.statistics for s in (0.0, 5.0, 49.0)}
    for whole, same, part in zip(of[0.0], of[5.0], of[49.0], strict=True):
        np.testing.assert_array_equal(whole, same)
        np.testing.assert_allclose(part, whole * (0.5 / (49 * D)), rtol=1e-5)
