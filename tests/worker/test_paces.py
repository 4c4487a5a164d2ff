"""Paces and staleness treatments through real shards, against what they promise."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from downpour.proto import codec
from downpour.ps.layout import STATISTIC, Slicing, Variable, lay_out
from downpour.ps.policy.pace import Async, Bounded, Mode, Sync
from downpour.ps.policy.rules import SGD, Momentum, RMSProp, Rule
from downpour.ps.policy.schedules import Constant
from downpour.ps.policy.staleness import Compensate, Divide, Drop, Keep, Treatment
from downpour.worker.exchange.clients import ShardClient
from downpour.worker.exchange.exchange import Exchanger, Gradients, Parameters
from tests.worker.cluster import initialize

FEATURES, OUTPUTS, BATCH, NUM_STEPS = 7, 5, 6, 20
LAYOUT = lay_out([Variable("w", (FEATURES, OUTPUTS)), Variable("b", (OUTPUTS,)), Variable("mean", (3,), STATISTIC)], 2,
              [Slicing("w", 4)])  # fmt: skip
RATE = 0.05


class Worker:
    """One worker's exchange, and least squares on its own batches."""

    def __init__(self, addresses: Sequence[str], index: int, *, send_base: bool = False) -> None:
        self.exchange = Exchanger(
            addresses, LAYOUT, wire=codec.FLOAT32, worker=index, incarnation=1, give_up_after_s=30, send_base=send_base
        )

    def pull(self) -> Parameters:
        parameters = self.exchange.start().result().parameters
        assert parameters is not None
        return parameters


@pytest.fixture
def start(served: Any) -> Any:
    """`start(num_workers, pace, ...)`: initialised shards and so many workers, closed at the end."""
    workers: list[Worker] = []

    def begin(num_workers: int, *, pace: Mode = Async(), staleness: Treatment = Keep(), rule: Rule = SGD()) -> Any:  # noqa: B008
        addresses = served.start(2)
        values = [np.full(v.shape, 0.5, np.float32) for v in LAYOUT.variables]
        initialize(addresses, LAYOUT, values, rule, Constant(RATE), pace=pace, staleness=staleness,
                   num_workers=num_workers)  # fmt: skip
        send_base = isinstance(staleness, Compensate)
        workers.extend(Worker(addresses, i, send_base=send_base) for i in range(num_workers))
        return addresses, list(workers)

    yield begin
    for worker in workers:
        worker.exchange.close()


def batch(step: int, num_images: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(step)
    return rng.normal(size=(num_images, FEATURES)), rng.normal(size=(num_images, OUTPUTS))


def least_squares(parameters: Parameters, x: np.ndarray, y: np.ndarray) -> Gradients:
    """Of mean((x w + b - y)^2) / 2; the statistic moves towards the batch's mean."""
    vectors = [np.concatenate(p) for p in zip(parameters.trained, parameters.statistics, strict=True)]
    w, b, mean = LAYOUT.gather(vectors)
    error = (x @ w + b - y) / len(x)
    moved = 0.1 * (x[:, :3].mean(0) - mean)
    flat = LAYOUT.scatter([(x.T @ error).astype(np.float32), error.sum(0).astype(np.float32),
                           moved.astype(np.float32)])  # fmt: skip
    sizes = [LAYOUT.num_trained(shard) for shard in range(2)]
    return Gradients(
        [v[:n] for v, n in zip(flat, sizes, strict=True)],
        [v[n:] for v, n in zip(flat, sizes, strict=True)],
        list(parameters.versions),
        base=[v.copy() for v in parameters.trained],
    )


def flat(parameters: Parameters) -> np.ndarray:
    return np.concatenate([*parameters.trained, *parameters.statistics])


@pytest.mark.parametrize("rule", [SGD(), Momentum(), RMSProp()], ids=["sgd", "momentum", "rmsprop"])
def test_sync_equals_one_worker_with_a_larger_batch(start: Any, rule: Rule) -> None:
    num_workers = 3
    _, [alone] = start(1, rule=rule)
    parameters = alone.pull()
    for step in range(NUM_STEPS):
        answer = alone.exchange.start(least_squares(parameters, *batch(step, BATCH * num_workers))).result()
        parameters = answer.parameters
    expected = flat(parameters)
    _, workers = start(num_workers, pace=Sync(num_workers), rule=rule)

    def work(index: int) -> np.ndarray:
        mine = workers[-num_workers:][index]
        parameters = mine.pull()
        for step in range(NUM_STEPS):
            x, y = batch(step, BATCH * num_workers)
            part = slice(index * BATCH, (index + 1) * BATCH)
            answer = mine.exchange.start(least_squares(parameters, x[part], y[part])).result()
            assert not answer.dropped
            parameters = answer.parameters
            assert parameters.versions == [step + 1] * 2
        return flat(parameters)

    with ThreadPoolExecutor(num_workers) as pool:
        for result in pool.map(work, range(num_workers)):
            np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_backups_fill_in_and_late_gradients_are_dropped_and_counted(start: Any) -> None:
    addresses, workers = start(3, pace=Sync(2, 1))
    slow = workers[2]
    stale = least_squares(slow.pull(), *batch(0, BATCH))
    pulled = [worker.pull() for worker in workers[:2]]
    for step in range(3):
        gradients = [least_squares(parameters, *batch(step, BATCH)) for parameters in pulled]
        answers = [w.exchange.start(g) for w, g in zip(workers[:2], gradients, strict=True)]
        assert not any(answer.result().dropped for answer in answers)
        pulled = [answer.result().parameters for answer in answers]
    answer = slow.exchange.start(stale).result()
    assert answer.dropped and answer.versions == [3, 3]
    for shard, address in enumerate(addresses):
        client = ShardClient(shard, address, LAYOUT, 30)
        status = client.status()
        assert (status.version, status.pushes, status.pushes_dropped) == (3, 7, 1)
        client.close()


def run_bounded(workers: list[Worker], lead: int, between: Callable[[int], None]) -> list[tuple[str, int, int]]:
    """Every worker does NUM_STEPS; returns the log of (event, worker, step): "start", "send", "end"."""
    log: list[tuple[str, int, int]] = []
    lock = threading.Lock()

    def note(event: str, worker: int, step: int) -> None:
        with lock:
            log.append((event, worker, step))

    def work(index: int) -> None:
        mine = workers[index]
        parameters = mine.pull()
        for step in range(NUM_STEPS):
            note("start", index, step)
            between(index)
            gradients = least_squares(parameters, *batch(step, BATCH))
            note("send", index, step)
            answer = mine.exchange.start(gradients, pull=False).result()
            note("end", index, step)
            assert answer.acknowledged
            if step + 1 < NUM_STEPS:
                parameters = mine.pull()

    with ThreadPoolExecutor(len(workers)) as pool:
        list(pool.map(work, range(len(workers))))
    return log


@pytest.mark.parametrize("lead", [0, 3])
def test_bounded_never_lets_anybody_lead_by_more(start: Any, lead: int) -> None:
    _, workers = start(3, pace=Bounded(lead))
    slow = threading.Event()
    log = run_bounded(workers, lead, lambda index: slow.wait(0.05 if index == 2 else 0.005) and None)
    assert sum(event == "end" for event, _, _ in log) == 3 * NUM_STEPS
    # The shards count a push between its "send" and its "end", and the slow worker spends its time before both.
    assert max(leads(log, "send")) == lead, "nobody led by more, and the fast ones did run ahead"
    assert max(leads(log, "end")) <= lead + 1


def leads(log: list[tuple[str, int, int]], counted_at: str) -> list[int]:
    """At each start of a step, how many pushes the worker was ahead of the one that had made the fewest."""
    made = [0, 0, 0]
    found = []
    for event, worker, step in log:
        if event == "start":
            found.append(step - min(made))
        made[worker] += event == counted_at
    return found


def test_an_absent_worker_frees_the_others(start: Any) -> None:
    addresses, workers = start(2, pace=Bounded(0))
    parameters = workers[0].pull()
    push = workers[0].exchange.start(least_squares(parameters, *batch(0, BATCH)))
    assert not push.done()
    for shard, address in enumerate(addresses):
        client = ShardClient(shard, address, LAYOUT, 30)
        client.absent([(1, 0)])
        client.close()
    assert push.result(20).parameters is not None


def test_stale_gradients_are_divided_dropped_or_compensated(start: Any) -> None:
    def after_a_stale_push(staleness: Treatment) -> tuple[np.ndarray, np.ndarray, Gradients, bool]:
        """Parameters before and after a push that is two updates late, its gradient, and whether it was dropped."""
        _, workers = start(2, staleness=staleness)
        late, other = workers[-2:]
        stale = least_squares(late.pull(), *batch(9, BATCH))
        parameters = other.pull()
        for step in range(2):
            parameters = other.exchange.start(least_squares(parameters, *batch(step, BATCH))).result().parameters
        before = np.concatenate(parameters.trained)
        answer = late.exchange.start(stale).result()
        assert answer.staleness == 2
        after = np.concatenate(answer.parameters.trained)
        return before, after, stale, answer.dropped

    before, after, stale, dropped = after_a_stale_push(Divide())
    g = np.concatenate(list(stale.trained))
    np.testing.assert_allclose(before - after, RATE * g / 2, rtol=1e-4, atol=1e-7)
    assert not dropped
    before, after, _, dropped = after_a_stale_push(Drop(1))
    np.testing.assert_array_equal(before, after)
    assert dropped
    before, after, stale, dropped = after_a_stale_push(Compensate(0.7))
    assert stale.base is not None
    moved = before - np.concatenate(list(stale.base))
    assert np.abs(moved).max() > 1e-3
    np.testing.assert_allclose(before - after, RATE * (g + 0.7 * g * g * moved), rtol=1e-4, atol=1e-7)
    assert not dropped
