"""Pushes wait for company only where processors are short, and then are applied in one pass; nobody waits for ever."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.synchronize import Semaphore
from pathlib import Path

import numpy as np
import pytest

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.ps.apply import group_commit
from downpour.ps.apply import processors as processor_times
from downpour.ps.apply.admission import Admission, Member
from downpour.ps.apply.group_commit import GroupCommit
from downpour.ps.apply.processors import Processors
from downpour.ps.apply.regions import Region, Work
from downpour.ps.layout import Variable, lay_out
from downpour.ps.policy.pace import Sync
from downpour.ps.policy.rules import SGD
from downpour.ps.shard.shard import Shard
from downpour.ps.shard.updates import Updates
from tests.chunks import encode_chunk
from tests.conftest import wait_until
from tests.ps.pushing import new_shard

LONG_S = 30.0  # nobody waits for so long unless something is wrong
SIZE = 2 * codec.CHUNK_ELEMENTS
LAYOUT = lay_out([Variable("k", (SIZE,))], 1)


class Given(Processors):
    """Processors that are short, or not, as told."""

    def __init__(self, short: bool) -> None:
        super().__init__()
        self.short = short

    @property
    def are_short(self) -> bool:
        return self.short


def busy(short: bool = True, most: int = 3, workers: tuple[int, ...] = (0, 1)) -> Admission:
    """With pushes of some workers, which came one right after another, behind it."""
    processors = Given(False)
    admitted = Admission(most, GroupCommit(processors))
    for i in range(group_commit.ARRIVALS):
        with admitted.place(LONG_S) as member:
            member.worker = workers[i % len(workers)]
    processors.short = short
    return admitted


def come(pool: ThreadPoolExecutor, admitted: Admission, patience_s: float = LONG_S) -> Future[Member]:
    """A push that goes in and out again."""

    def push() -> Member:
        with admitted.place(patience_s) as member:
            return member

    return pool.submit(push)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(20) as threads:
        yield threads


@pytest.mark.parametrize(
    "admitted",
    [busy(short=False), busy(workers=(5,)), Admission(3, GroupCommit(Given(True)))],
    ids=["processors are free", "one worker", "nobody has come before"],
)
def test_a_push_goes_in_alone(admitted: Admission, pool: ThreadPoolExecutor) -> None:
    come(pool, admitted).result(LONG_S / 3)


def test_a_push_goes_in_alone_where_others_come_seldom(pool: ThreadPoolExecutor) -> None:
    admitted = busy()
    come(pool, admitted, patience_s=1e-9).result(LONG_S / 3)


def test_a_push_waits_for_company(pool: ThreadPoolExecutor) -> None:
    admitted = busy()
    first = come(pool, admitted)
    with pytest.raises(TimeoutError):
        first.result(0.2)
    assert come(pool, admitted).result(LONG_S / 3)._group is first.result(LONG_S / 3)._group


def test_without_group_commit_a_push_goes_in_alone_and_at_its_own_pace(pool: ThreadPoolExecutor) -> None:
    admitted = Admission(3)
    for i in range(group_commit.ARRIVALS):
        with admitted.place(LONG_S) as member:
            member.worker = i % 2
    assert come(pool, admitted).result(LONG_S / 3).patience_s == 0.0


def test_a_push_does_not_wait_for_ever(pool: ThreadPoolExecutor) -> None:
    begun = time.monotonic()
    come(pool, busy(), patience_s=0.3).result(LONG_S / 3)
    assert time.monotonic() - begun >= 0.3


def test_those_that_stand_in_line_go_in_together(pool: ThreadPoolExecutor) -> None:
    admitted = busy()
    with admitted.place(0.0):
        waiting = [come(pool, admitted) for _ in range(3)]
        with pytest.raises(TimeoutError):
            waiting[0].result(0.2)
    assert len({id(member.result(LONG_S)._group) for member in waiting}) == 1


def test_who_came_first_goes_in_first(pool: ThreadPoolExecutor) -> None:
    admitted, served = Admission(1), list[int]()

    def call(number: int) -> None:
        with admitted.place():
            served.append(number)

    with admitted.place():
        calls = []
        for number in range(10):
            calls.append(pool.submit(call, number))
            wait_until(lambda: len(admitted._line) == len(calls), "standing in line", LONG_S)
    for each in calls:
        each.result(LONG_S)
    assert served == list(range(10))


def test_never_more_are_inside_than_may_be_and_all_come_in(pool: ThreadPoolExecutor) -> None:
    admitted, inside, most = busy(), 0, 0
    lock = threading.Lock()

    def push(worker: int) -> None:
        nonlocal inside, most
        for position in range(20):
            with admitted.place(0.02) as member:
                member.worker = worker
                with lock:
                    inside += 1
                    most = max(most, inside)
                member.meet(position)
                with lock:
                    inside -= 1

    for future in [pool.submit(push, worker) for worker in range(12)]:
        future.result(LONG_S)
    assert most == 3


def pair(pool: ThreadPoolExecutor, patience_s: float) -> tuple[Member, Member, threading.Event]:
    """Two that came in together, and what lets them out."""
    admitted, out = busy(), threading.Event()
    members: list[Member] = []

    def push() -> None:
        with admitted.place(patience_s) as member:
            members.append(member)
            out.wait(LONG_S)

    for _ in range(2):
        pool.submit(push)
    wait_until(lambda: len(members) == 2, "coming in", LONG_S)
    assert members[0]._group is members[1]._group
    return members[0], members[1], out


def test_members_meet_at_every_chunk(pool: ThreadPoolExecutor) -> None:
    one, other, out = pair(pool, LONG_S)
    with _let_out(out):
        for position in (10, 20):
            ahead = pool.submit(one.meet, position)
            with pytest.raises(TimeoutError):
                ahead.result(0.1)
            other.meet(position)
            ahead.result(LONG_S / 3)


def test_a_member_that_leaves_is_not_waited_for(pool: ThreadPoolExecutor) -> None:
    one, other, out = pair(pool, LONG_S)
    with _let_out(out):
        ahead = pool.submit(one.meet, 10)
        other.leave()
        ahead.result(LONG_S / 3)
        other.meet(20)  # alone


def test_a_late_member_is_left_behind_once(pool: ThreadPoolExecutor) -> None:
    one, other, out = pair(pool, 0.3)
    with _let_out(out):
        begun = time.monotonic()
        one.meet(10)
        assert time.monotonic() - begun >= 0.3
        for position in range(20, 1000):
            one.meet(position)
        other.meet(10)
        assert time.monotonic() - begun < LONG_S


@contextlib.contextmanager
def _let_out(out: threading.Event) -> Iterator[None]:
    try:
        yield
    finally:
        out.set()


def messages(worker: int) -> Iterator[codec.Chunk]:
    for start, stop in codec.split(0, SIZE):
        yield codec.decode_chunk(encode_chunk(start, codec.FLOAT32, np.full(stop - start, worker + 1, np.float32)))


def push(shard: Shard, worker: int, admitted: Admission) -> pb.PushReply:
    with admitted.place(LONG_S) as member:
        opened = shard.begin(pb.PushHeader(worker=worker, incarnation=1, sequence=1), member)
        for chunk in messages(worker):
            shard.apply(opened, chunk)
        return shard.finish(opened)


def test_pushes_that_came_in_together_are_applied_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    update = Updates._update

    def counted(self: Updates, region: Region, works: list[Work]) -> None:
        passes.append(len(works))
        update(self, region, works)

    monkeypatch.setattr(Updates, "_update", counted)
    alone, together = (new_shard(LAYOUT, np.zeros(SIZE, np.float32), SGD()) for _ in range(2))
    for worker in range(2):
        push(alone, worker, busy(short=False))
    assert passes == [1, 1, 1, 1]
    passes.clear()
    admitted = busy(most=2)
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(push, together, worker, admitted) for worker in range(2)]:
            future.result(LONG_S)
    assert passes == [2, 2] and together.version == 2
    np.testing.assert_array_equal(together.arena.parameters, alone.arena.parameters)


def test_a_push_that_is_only_repeated_is_not_waited_for() -> None:
    shard, admitted, over = new_shard(LAYOUT, np.zeros(SIZE, np.float32), SGD()), busy(), threading.Event()
    push(shard, 0, busy(short=False))

    def again() -> bool:
        with admitted.place(LONG_S) as member:
            assert shard.begin(pb.PushHeader(worker=0, incarnation=1, sequence=1), member).repeated
            return over.wait(LONG_S)

    with ThreadPoolExecutor(2) as pool:
        repeated = pool.submit(again)
        pool.submit(push, shard, 1, admitted).result(LONG_S / 3)
        over.set()
        assert repeated.result(LONG_S)


def test_small_shards_and_rounds_have_no_patience() -> None:
    large = new_shard(LAYOUT, np.zeros(SIZE, np.float32), SGD())
    small = new_shard(lay_out([Variable("k", (1000,))], 1), np.zeros(1000, np.float32), SGD())
    rounds = new_shard(LAYOUT, np.zeros(SIZE, np.float32), SGD(), pace=Sync(2))
    assert 0.05 < large.patience_s < 0.2
    assert small.patience_s == rounds.patience_s == 0


def test_what_processors_did_long_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    processors, counts = Processors(), tmp_path / "schedstat"
    monkeypatch.setattr(processor_times, "_SCHEDSTAT", str(counts))
    ran = waited = 0

    def push(more_ran: int, more_waited: int) -> bool:
        nonlocal ran, waited
        counts.write_text(f"{ran} {waited} 1\n")
        with processors.watched():
            ran, waited = ran + more_ran, waited + more_waited
            counts.write_text(f"{ran} {waited} 2\n")
        return processors.are_short

    assert not push(1000, 900)
    assert push(1000, 5000)
    assert push(1000, 900), "on the whole they are still short"
    assert not [push(1000, 900) for _ in range(30)][-1]
    counts.unlink()  # where nobody counts
    with Processors().watched():
        pass


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processors are counted on Linux only")
def test_processors_are_short_where_others_want_the_same_one() -> None:
    processors, before = Processors(), os.sched_getaffinity(0)
    context = multiprocessing.get_context("spawn")
    spinning = context.Semaphore(0)
    others = [context.Process(target=_spin, args=(min(before), spinning), daemon=True) for _ in range(3)]
    for other in others:
        other.start()
    try:
        for _ in others:
            assert spinning.acquire(timeout=LONG_S)
        os.sched_setaffinity(0, {min(before)})
        with processors.watched():
            end = time.monotonic() + 1.0
            while time.monotonic() < end:
                pass
        assert processors.are_short
    finally:
        os.sched_setaffinity(0, before)
        for other in others:
            other.kill()
            other.join()


def _spin(processor: int, spinning: Semaphore) -> None:
    os.sched_setaffinity(0, {processor})
    spinning.release()
    while True:
        pass
