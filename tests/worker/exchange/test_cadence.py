"""Each cadence through a real shard against the same algorithm written out in numpy."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from downpour.model.vision.records import RecordCounts
from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.ps.layout import STATISTIC, Variable, lay_out
from downpour.ps.policy.named import to_message
from downpour.ps.policy.rules import SGD, Momentum, Rule
from downpour.ps.policy.schedules import Constant
from downpour.ps.service.server import ShardServer
from downpour.worker.exchange import cadence as cadences
from downpour.worker.exchange import replica
from downpour.worker.exchange.cadence import Accumulate, Cadence, Downpour, EveryStep, LocalSteps
from downpour.worker.exchange.clients import ShardClient
from downpour.worker.exchange.exchange import Exchanger, Gradients, Parameters
from downpour.worker.loop import train

SIZE, RATE, OUTER_RATE = 6, 0.1, 0.5
LAYOUT = lay_out([Variable("w", (SIZE,)), Variable("m", (2,), STATISTIC)], 1)
START = np.arange(SIZE + 2, dtype=np.float32)


@dataclass(frozen=True)
class Result:
    gradients: Gradients
    loss: float = 1.0
    gradient_norm: float = 1.0
    is_finite: bool = True
    loss_scale: float | None = None


def gradient(w: np.ndarray, batch: float) -> np.ndarray:
    """Of |w - batch|^2 / 2."""
    return w - np.float32(batch)


def step(parameters: Parameters, images: Any, labels: Any) -> Result:
    trained = [gradient(w, images[0]) for w in parameters.trained]
    for vector in trained:
        vector.flags.writeable = False  # as memory of a tensor
    return Result(Gradients(trained, [np.ones_like(m) for m in parameters.statistics], list(parameters.versions)))


def overflowing(parameters: Parameters, images: Any, labels: Any) -> Result:
    """As `step`; overflows on every third batch, from the second on, and then its gradients are no numbers."""
    result = step(parameters, images, labels)
    if images[0] % 3 != 1:
        return result
    nothing = [np.full_like(g, np.nan) for g in result.gradients.trained]
    gradients = Gradients(nothing, result.gradients.statistics, result.gradients.versions)
    return Result(gradients, np.inf, np.nan, is_finite=False, loss_scale=32768.0)


class Finite:
    """The batches on which `overflowing` does not."""

    counts = RecordCounts()

    def __init__(self) -> None:
        self._numbers = (number for number in itertools.count() if number % 3 != 1)

    def __next__(self) -> tuple[list[int], None]:
        number = next(self._numbers)
        self.position = number + 1
        return [number], None


class Batches:
    """Batches of one number: 0, 1, 2, ..."""

    counts = RecordCounts()

    def __init__(self) -> None:
        self.position = 0

    def __next__(self) -> tuple[list[int], None]:
        self.position += 1
        return [self.position - 1], None


class Silent:
    """A reporter that keeps what was exchanged."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.num_pushes = 0
        self.num_pulls = 0
        self.num_skipped = 0
        self.num_read = 0
        self.records_done: list[int] = []

    def computed(self, **totals: Any) -> None: ...

    def skipped(self) -> None:
        self.num_skipped += 1

    def read(self, counts: RecordCounts, input_s: float) -> None:
        assert input_s >= 0
        self.num_read += 1

    def exchanged(self, answer: Any, records_done: int, course: Any) -> None:
        self.num_pushes += answer.acknowledged
        self.records_done += [records_done] if answer.acknowledged else []
        self.num_pulls += answer.parameters is not None


@pytest.fixture
def address() -> Iterator[str]:
    with ShardServer(0) as server:
        yield f"127.0.0.1:{server.port}"


def run(
    address: str,
    cadence: Cadence,
    rule: Rule,
    rate: float,
    num_steps: int,
    *,
    overlap: bool = False,
    step: Any = step,
    batches: Any = Batches,
    exchange: Exchanger | None = None,
    **options: Any,
) -> tuple[np.ndarray, Silent]:
    """Trains on one shard; returns its vector and what was exchanged."""
    client = ShardClient(0, address, LAYOUT, 20)
    specification = pb.ShardSpecification(
        fingerprint=LAYOUT.fingerprint, layout=LAYOUT.canonical,
        rule=to_message(rule), schedule=to_message(Constant(rate)),
    )  # fmt: skip
    client.initialize(specification, START)
    exchange = exchange or Exchanger([address], LAYOUT, wire=codec.FLOAT32, worker=0, incarnation=1, give_up_after_s=20)
    reporter = Silent()
    train(step, exchange, batches(), reporter, num_steps=num_steps, overlap=overlap, cadence=cadence, **options)  # type: ignore[arg-type]
    end = exchange.start().result().parameters
    exchange.close()
    client.close()
    assert end is not None
    return np.concatenate([end.trained[0], end.statistics[0]]), reporter


def test_the_step_is_rehearsed_with_the_first_batch_before_anything_is_pulled(address: str) -> None:
    """What compiles for seconds after a pull pushes a gradient that is stale by all that others push meanwhile."""
    happened: list[Any] = []

    class Pulling(Exchanger):
        def start(self, *args: Any, **kwargs: Any) -> Any:
            happened.append("pull")
            return super().start(*args, **kwargs)

    exchange = Pulling([address], LAYOUT, wire=codec.FLOAT32, worker=0, incarnation=1, give_up_after_s=20)
    run(address, EveryStep(), SGD(), RATE, 1, exchange=exchange, rehearse=lambda *batch: happened.append(batch))
    assert happened[:2] == [([0], None), "pull"]


def test_accumulate_pushes_the_mean(address: str) -> None:
    end, reporter = run(address, Accumulate(3), SGD(), RATE, 4)
    w = START[:SIZE].copy()
    for push in range(4):
        w -= np.float32(RATE) * np.mean([gradient(w, 3 * push + i) for i in range(3)], axis=0, dtype=np.float32)
    np.testing.assert_allclose(end[:SIZE], w, rtol=1e-6)
    np.testing.assert_array_equal(end[SIZE:], START[SIZE:] + 12)
    assert (reporter.num_pushes, reporter.num_pulls) == (4, 4)
    assert reporter.records_done == [3, 6, 9, 12]


@pytest.mark.parametrize(("push_every", "fetch_every"), [(1, 3), (2, 4), (4, 2), (3, 1), (1, 1)])
def test_downpour_pushes_and_fetches_at_its_own_times(address: str, push_every: int, fetch_every: int) -> None:
    end, reporter = run(address, Downpour(push_every, fetch_every, RATE), SGD(), RATE, 5)
    server = START[:SIZE].copy()
    own, accrued = server.copy(), np.zeros(SIZE, np.float32)
    pushes = pulls = batch = 0
    while pushes < 5:
        g = gradient(own, batch)
        batch += 1
        own, accrued = own - np.float32(RATE) * g, accrued + g
        if batch % push_every == 0:
            server, accrued = server - np.float32(RATE) * accrued, np.zeros(SIZE, np.float32)
            pushes += 1
        if batch % fetch_every == 0:
            own = server.copy()
            pulls += 1
    np.testing.assert_allclose(end[:SIZE], server, rtol=1e-5, atol=1e-6)
    assert (reporter.num_pushes, reporter.num_pulls) == (pushes, pulls)
    assert (end[SIZE:] == START[SIZE:] + 5 * push_every).all()
    assert reporter.records_done == [push_every * push for push in range(1, pushes + 1)]


@pytest.mark.parametrize("cadence", [EveryStep(), Accumulate(3)])
def test_with_overlap_records_are_done_one_exchange_later(address: str, cadence: Cadence) -> None:
    _, reporter = run(address, cadence, SGD(), RATE, 4, overlap=True)
    assert reporter.records_done == [cadence.push_every * push for push in range(1, reporter.num_pushes + 1)]
    assert reporter.num_pushes == reporter.num_pulls - 1 >= 4, "the first exchange has nothing to push"


def test_local_steps_push_how_far_they_went_to_an_outer_rule(address: str) -> None:
    end, _ = run(address, LocalSteps(4, Momentum(0.9), RATE), Momentum(0.5), OUTER_RATE, 3)
    server, outer, inner = START[:SIZE].copy(), np.zeros(SIZE, np.float32), np.zeros(SIZE, np.float32)
    for push in range(3):
        own = server.copy()
        for i in range(4):
            inner = np.float32(0.9) * inner + gradient(own, 4 * push + i)
            own = own - np.float32(RATE) * inner
        outer = np.float32(0.5) * outer + (server - own)
        server = server - np.float32(OUTER_RATE) * outer
    np.testing.assert_allclose(end[:SIZE], server, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(end[SIZE:], START[SIZE:] + 12)


@pytest.mark.parametrize(
    "cadence", [EveryStep(), Accumulate(3), Downpour(2, 4, RATE), LocalSteps(4, SGD(), RATE)], ids=repr
)
def test_a_batch_that_overflows_adds_nothing(cadence: Cadence) -> None:
    """The shard has what it has without those batches, and their records count as done."""
    ends, reporters = [], []
    for given in ({"step": overflowing}, {"batches": Finite}):
        with ShardServer(0) as server:
            end, reporter = run(f"127.0.0.1:{server.port}", cadence, SGD(), RATE, 4, **given)
            ends.append(end)
            reporters.append(reporter)
    np.testing.assert_array_equal(*ends)
    assert reporters[0].num_skipped > 0 == reporters[1].num_skipped
    assert reporters[0].records_done == reporters[1].records_done


@pytest.mark.parametrize("overlap", [False, True])
def test_a_batch_that_was_assembled_and_not_trained_on_does_not_count(address: str, overlap: bool) -> None:
    batches = Batches()
    _, reporter = run(address, EveryStep(), SGD(), RATE, 4, overlap=overlap, batches=lambda: batches)
    num_trained = 4 + overlap  # the last push is in flight when the version is reached
    assert reporter.num_read == num_trained and reporter.records_done == list(range(1, num_trained + 1))
    assert num_trained <= batches.position <= num_trained + 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_in_bfloat16_only_what_travels_is_rounded() -> None:
    mine = replica.contribution(Accumulate(2), codec.BFLOAT16)
    bits = (np.float32([1, 2]).view(np.uint32) >> 16).astype(np.uint16)
    mine.fetched(Parameters([bits], [np.zeros(0, np.float32)], [7]))
    assert mine.parameters.trained[0].tolist() == [1, 2]
    for _ in range(2):
        mine.computed(Gradients([np.float32([0.5, 1 + 2**-8])], [np.zeros(0, np.float32)], [7]))
    pushed = mine.take()
    assert ((pushed.trained[0].astype(np.uint32) << 16).view(np.float32)).tolist() == [0.5, 1]
    assert pushed.versions == [7]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="push_every is 0"):
        Downpour(0, 1, RATE)
    with pytest.raises(ValueError, match="num_steps is 0"):
        LocalSteps(0, SGD(), RATE)
    with pytest.raises(ValueError, match="learning_rate is -1"):
        LocalSteps(1, SGD(), -1)
    with pytest.raises(ValueError, match=r"Downpour needs exchange.overlap=False"):
        cadences.check(Downpour(1, 2, RATE), overlap=True)
    cadences.check(EveryStep(), overlap=True)
