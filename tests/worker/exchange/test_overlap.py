"""Exchanges that overlap with a step or do not, changed during training; pulls that begin as late as they can."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import pytest

from downpour.proto import codec
from downpour.ps.layout import Variable, lay_out
from downpour.ps.policy.rules import SGD
from downpour.ps.policy.schedules import Constant
from downpour.ps.service.server import ShardServer
from downpour.worker.exchange.exchange import Answer, Exchanger, Gradients
from downpour.worker.exchange.overlap import Course, Exchanges, PullTimes
from tests.worker.cluster import initialize

LAYOUT = lay_out([Variable("w", (64,)), Variable("v", (64,))], 2)


class Log:
    """A reporter that keeps what was exchanged, and says whether to overlap."""

    def __init__(self) -> None:
        self.overlap = False
        self.exchanges: list[tuple[Answer, int, Course]] = []

    def exchanged(self, answer: Answer, records_done: int, course: Course) -> None:
        self.exchanges.append((answer, records_done, course))

    @property
    def pushes(self) -> list[tuple[Answer, int, Course]]:
        return [one for one in self.exchanges if one[0].acknowledged]


@pytest.fixture
def addresses() -> Iterator[list[str]]:
    with ShardServer(0) as one, ShardServer(1) as other:
        found = [f"127.0.0.1:{server.port}" for server in (one, other)]
        initialize(found, LAYOUT, [np.zeros(64, np.float32)] * 2, SGD(), Constant(1.0))
        yield found


def exchanger(addresses: list[str], worker: int = 0, *, joined: bool = False) -> Exchanger:
    return Exchanger(
        addresses, LAYOUT, wire=codec.FLOAT32, worker=worker, incarnation=1, give_up_after_s=20, joined=joined
    )


def ones(versions: list[int]) -> Gradients:
    return Gradients([np.ones(64, np.float32)] * 2, [np.zeros(0, np.float32)] * 2, versions)


@pytest.mark.parametrize("joined", [False, True])
def test_every_push_is_applied_and_counted_once_however_overlap_changes(addresses: list[str], joined: bool) -> None:
    exchange, log, leaving = exchanger(addresses, joined=joined), Log(), Future[None]()
    exchanges = Exchanges(exchange, log, leaving, None)
    answer = exchanges.begin()
    overlaps = [False, False, True, True, True, False, False, True, False, True, True]
    for position, log.overlap in enumerate(overlaps, 1):
        assert answer is not None and answer.parameters is not None
        answer = exchanges.next(ones(answer.parameters.versions), pull=True, position=position)
    exchanges.close()
    end = exchange.start().result().parameters
    exchange.close()
    assert end is not None and end.versions == [len(overlaps)] * 2
    assert (end.trained[0] == -len(overlaps)).all(), "a rate of one, gradients of one"
    assert [done for _, done, _ in log.pushes] == list(range(1, len(overlaps) + 1))
    # A step lacks the push before it if that was in flight when its parameters were pulled.
    own = [course.own for _, _, course in log.pushes]
    assert own == [answer.staleness for answer, _, _ in log.pushes], "nobody else pushes"
    assert own == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]


def test_a_delayed_pull_begins_when_it_is_due_or_asked_for(addresses: list[str]) -> None:
    exchange = exchanger(addresses)
    exchange.connect()
    versions = exchange.start().result().versions
    due = exchange.start(ones(versions), ahead=True, delay_s=2.0).result()
    assert due.push_s < 1.9 and due.read_s - due.begun_s >= 2.0 and due.pull_s < 1.9
    under_way = exchange.start(ones(versions), ahead=True, delay_s=60.0)
    time.sleep(0.05)
    assert not under_way.done()
    exchange.hurry()
    assert under_way.result(20).versions == [2, 2]
    exchange.close()


def test_a_late_pull_brings_the_pushes_of_others_before_the_step(addresses: list[str]) -> None:
    """One computes for 0.2 s a step, another pushes every 10 ms."""
    exchange, other, log, leaving = exchanger(addresses), exchanger(addresses, 1), Log(), Future[None]()
    over = threading.Event()

    def pushes() -> None:
        while not over.wait(0.01):
            other.start(ones(other.start().result().versions), pull=False).result()

    thread = threading.Thread(target=pushes)
    thread.start()
    exchanges = Exchanges(exchange, log, leaving, True)
    answer = exchanges.begin()
    for position in range(12):
        assert answer is not None and answer.parameters is not None
        time.sleep(0.2)
        answer = exchanges.next(ones(answer.parameters.versions), pull=True, position=position)
    over.set()
    thread.join()
    exchanges.close()
    exchange.close()
    other.close()
    stale = [(answer.staleness, course) for answer, _, course in log.pushes]
    early, late = [course.early for _, course in stale[1:4]], [course.early for _, course in stale[7:]]
    assert np.mean(late) < np.mean(early) / 3, stale
    assert np.mean([s for s, _ in stale[7:]]) < 0.75 * np.mean([s for s, _ in stale[1:4]]), "fewer in all"
    assert all(course.own == 1 for _, course in stale[2:])


def test_the_delay_leaves_room_for_the_slowest_pull_in_the_shortest_step() -> None:
    times = PullTimes()
    for step_s, pull_s in ((1.0, 0.1), (0.9, 0.2), (1.2, 0.1)):
        times.add(step_s, pull_s)
        assert times.delay_s() == 0, "too few"
    times.add(1.0, 0.1)
    assert times.delay_s() == pytest.approx(0.9 - 1.25 * 0.2 - 0.002)
    for _ in range(8):
        times.add(0.1, 0.2)
    assert times.delay_s() == 0
