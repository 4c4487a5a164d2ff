"""Who may go on when: simulated workers in random order, without a socket or a thread."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from downpour.ps.policy import pace
from downpour.ps.policy.pace import ROUND, Async, Bounded, Pace, Sync

NUM_CHUNKS = 3


def new(mode: pace.Mode, num_workers: int) -> Pace:
    return Pace(mode, num_workers, np.zeros(NUM_CHUNKS, ROUND))


@dataclass
class Worker:
    """Pulls, then pushes, then pulls; `pulled` is the version it computes with, None while it waits to pull."""

    index: int
    pushes: int = 0
    pulled: int | None = None


def arrive(decider: Pace, chunk: int, base_version: int) -> tuple[pace.Verdict, int]:
    """A gradient comes, as the shard lets it; returns the verdict and the gradients of the round that it completes."""
    verdict = decider.arrived(chunk, base_version)
    return verdict, sum(decider.complete(due) for due in decider.due())


def advance(decider: Pace, worker: Worker, version: int) -> tuple[bool, int]:
    """Lets a worker do its next action if it may; returns whether it could, and the shard's version after it."""
    if worker.pulled is None:
        if not decider.may_pull(worker.index, 1, worker.pushes, version):
            return False, version
        worker.pulled = version
        return True, version
    if isinstance(decider.mode, Sync):
        for chunk in range(NUM_CHUNKS):
            arrive(decider, chunk, worker.pulled)
        version = decider.rounds()
    else:
        version += 1
    worker.pushes += 1
    decider.pushed(worker.index, 1, worker.pushes, worker.pulled)
    worker.pulled = None
    return True, version


@given(st.integers(0, 4), st.integers(1, 5), st.data())
def test_nobody_leads_by_more_and_somebody_may_always_go_on(lead: int, num_workers: int, data: st.DataObject) -> None:
    decider = new(Bounded(lead), num_workers)
    workers = [Worker(index) for index in range(num_workers)]
    version = 0
    for _ in range(60):
        order = data.draw(st.permutations(workers))
        could = []
        for worker in order[: data.draw(st.integers(1, num_workers))]:
            went_on, version = advance(decider, worker, version)
            could.append(went_on)
            started = [w.pushes for w in workers if w.pulled is not None]
            assert not started or max(started) - min(w.pushes for w in workers) <= lead
        assert any(could) or any(advance(decider, worker, version)[0] for worker in workers)


@given(st.integers(1, 4), st.integers(0, 2), st.data())
def test_every_version_is_of_the_first_n_gradients(n: int, backups: int, data: st.DataObject) -> None:
    decider = new(Sync(n, backups), n + backups)
    workers = [Worker(index) for index in range(n + backups)]
    version = 0
    in_time = {0: 0}
    for _ in range(80):
        worker = data.draw(st.sampled_from(workers))
        computed = worker.pulled
        went_on, after = advance(decider, worker, version)
        if computed is not None and computed == version:
            in_time[version] += 1
        if after > version:
            assert in_time[version] == n
            in_time[after] = 0
        version = after
        if not went_on:
            assert any(advance(decider, other, version)[0] for other in workers)
            version = decider.rounds()
            in_time.setdefault(version, 0)
            break


def test_late_gradients_are_told_so_and_the_first_begins_a_sum() -> None:
    decider = new(Sync(2, 1), 3)
    assert arrive(decider, 0, 0) == (pace.Verdict(first=True), 0)
    assert arrive(decider, 0, 0) == (pace.Verdict(), 2)
    assert arrive(decider, 0, 0) == (pace.Verdict(late=True), 0)
    assert decider.rounds() == 0, "the other chunks are not through"
    assert not decider.may_pull(2, 1, 0, 0), "a mixture of two versions"


def test_a_lost_worker_holds_up_nobody() -> None:
    decider = new(Bounded(0), 3)
    decider.pushed(0, 1, 1, 0)
    decider.pushed(1, 1, 1, 0)
    assert not decider.may_pull(0, 1, 1, 2)
    decider.absent([(2, 0)])
    assert decider.may_pull(0, 1, 1, 2)


def test_when_too_few_live_the_round_is_complete_with_fewer() -> None:
    decider = new(Sync(3), 3)
    for chunk in range(NUM_CHUNKS):
        assert arrive(decider, chunk, 0)[1] == arrive(decider, chunk, 0)[1] == 0
    decider.absent([(2, 0)])
    assert decider.due() == [0, 1, 2]
    assert [decider.complete(chunk) for chunk in decider.due()] == [2, 2, 2]
    assert decider.rounds() == 1
    assert arrive(decider, 0, 1) == (pace.Verdict(first=True), 0)
    assert arrive(decider, 0, 1)[1] == 2


def test_a_worker_that_returns_neither_leads_nor_holds_up() -> None:
    decider = new(Bounded(1), 2)
    for pushes in range(1, 9):
        decider.pushed(0, 1, pushes, 0)
        decider.pushed(1, 1, pushes, 0)
    decider.absent([(1, 1)])
    decider.pushed(0, 1, 9, 0)
    assert decider.may_pull(1, 2, 0, 0)
    assert decider.may_pull(0, 1, 9, 0) and decider.may_pull(0, 1, 10, 0)
    assert not decider.may_pull(0, 1, 11, 0), "the new one counts"
    decider.absent([(1, 1)])
    assert not decider.may_pull(0, 1, 11, 0), "the message was of an older incarnation"


def test_a_restarted_shard_continues_from_what_workers_say() -> None:
    decider = new(Bounded(1), 2)
    assert decider.may_pull(0, 1, 57, 0)
    assert decider.may_pull(1, 1, 55, 0)
    assert decider.may_pull(0, 1, 58, 0)
    assert not decider.may_pull(0, 1, 59, 0)


def test_an_observer_neither_waits_nor_is_waited_for() -> None:
    decider = new(Bounded(0), 1)
    decider.pushed(0, 1, 1, 0)
    assert decider.may_pull(99, 0, 0, 0)
    decider.pushed(0, 1, 2, 0)
    assert decider.may_pull(0, 1, 2, 0)


def test_async_never_waits() -> None:
    decider = new(Async(), 2)
    decider.pushed(0, 1, 1000, 0)
    assert decider.may_pull(0, 1, 1001, 0)


def test_async_lets_workers_in_one_after_another() -> None:
    assert [pace.most_workers(Async(10), pushes) for pushes in (0, 9, 10, 19, 20, 1000)] == [4, 4, 5, 5, 6, 104]
    assert pace.most_workers(Async(), 0) == 4, "the default"
    for all_at_once in (Async(0), Bounded(2), Sync(50)):
        assert pace.most_workers(all_at_once, 0) == math.inf
    with pytest.raises(ValueError, match="ramp is -1; give the pushes for each further worker, or 0"):
        Async(-1)


@pytest.mark.parametrize(
    ("mode", "overlap", "message"),
    [
        (Bounded(0), True, "lead is 0 with exchange.overlap"),
        (Sync(4), True, "needs exchange.overlap=False"),
        (Sync(2, 4), False, "backups is 4 of 4 workers"),
        (Sync(2, 1), False, "must be the same"),
    ],
)
def test_modes_that_could_not_run_are_refused(mode: pace.Mode, overlap: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pace.check(mode, 4, 4, overlap=overlap)


def test_only_sync_refuses_workers_that_come_and_go() -> None:
    with pytest.raises(ValueError, match=r"exactly cluster.num_workers = 4 workers, and cluster.max_workers is 6"):
        pace.check(Sync(4), 4, 6, overlap=False)
    for mode in (Async(), Bounded(2)):
        pace.check(mode, 4, 6, overlap=True)


def test_nobody_waits_for_a_pull_that_a_worker_has_left_behind() -> None:
    decider = new(Bounded(1), 3)
    for pushes in range(1, 4):
        decider.pushed(0, 1, pushes, 0)
        decider.pushed(2, 1, pushes, 0)
    assert decider.may_pull(1, 1, 0, 0) and not decider.may_pull(2, 1, 3, 0)
    decider.absent([(1, 1)])
    assert decider.may_pull(1, 1, 0, 0), "asked again by the call that is still open"
    decider.pushed(0, 1, 4, 0)
    decider.pushed(2, 1, 4, 0)
    assert decider.may_pull(0, 1, 5, 0) and decider.may_pull(2, 1, 5, 0)
    decider.pushed(1, 1, 1, 0)  # it lives after all
    assert not decider.may_pull(0, 1, 6, 0)


def test_a_worker_beyond_those_that_are_expected_is_waited_for_once_it_has_come() -> None:
    decider = new(Bounded(1), 1)
    decider.pushed(0, 1, 1, 0)
    assert decider.may_pull(7, 1, 0, 0)
    for pushes in (2, 3):
        decider.pushed(0, 1, pushes, 0)
    assert not decider.may_pull(0, 1, 3, 0)
    decider.absent([(7, 1)])
    assert decider.may_pull(0, 1, 3, 0)


def test_numbers_out_of_range() -> None:
    with pytest.raises(ValueError, match="lead is -1"):
        Bounded(-1)
    with pytest.raises(ValueError, match="num_gradients is 0"):
        Sync(0)
    with pytest.raises(ValueError, match="backups is -2"):
        Sync(1, -2)


@pytest.mark.parametrize(
    ("gradients", "mode"),
    [(1, Async()), (6, Async(50)), (25, Async(7)), (25, Async(1)), (5, Async(0)), (3, Bounded(2))],
)
def test_an_update_takes_an_eighth_of_the_workers_that_are_let_in(gradients: int, mode: pace.Mode) -> None:
    means = pace.Means(gradients, mode)
    version, number, seen = 0, 0, []
    while version < 3000:
        pushes = means.pushes(number)
        assert (
            pushes == max(1, int(min(gradients, pace.most_workers(mode, version) / 8))) == means.of(np.array([number]))
        )
        for more in range(pushes):
            assert (means.number(version + more), means.at(version + more)) == (number, pushes)
        version, number = version + pushes, number + 1
        seen.append(pushes)
    assert seen[-1] == gradients and seen == sorted(seen)
    assert (seen[0] == gradients) == (gradients == 1 or not (isinstance(mode, Async) and mode.ramp))


def test_a_slow_ramp_takes_no_more_memory() -> None:
    means = pace.Means(25, Async(10**12))
    assert (means.number(10**9), means.at(10**9), means.pushes(10**15)) == (10**9, 1, 25)
