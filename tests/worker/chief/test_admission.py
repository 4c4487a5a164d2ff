"""Which workers the chief lets in, event by event, with the time as a number."""

from __future__ import annotations

import json

import pytest

from downpour.proto.chief_pb2 import ProgressReply, WorkerReport
from downpour.proto.errors import WorkerSuperseded
from downpour.ps.policy.pace import Async, Bounded, Mode, Sync
from downpour.worker.chief.admission import has_room, let_in
from downpour.worker.chief.coordinator import Coordinator
from downpour.worker.chief.details import details
from downpour.worker.chief.journal_state import JournalState
from downpour.worker.chief.leases import LeaseTable
from downpour.worker.chief.membership import Membership

Worker = ProgressReply.Worker


def job(pace: Mode = Async(10), num_steps: int = 1000) -> Coordinator:  # noqa: B008
    members = Membership(num_workers=8, lease_s=30.0, pace=pace)
    return Coordinator(num_steps, num_steps, LeaseTable(10_000, 20), members)


def enter(one: Coordinator, *workers: int, now_s: float = 0.0, incarnation: int = 1) -> list[bool]:
    """Workers ask for a lease; which of them are let in."""
    return [not let_in(one, worker, incarnation, now_s) for worker in workers]


def states(one: Coordinator, now_s: float) -> list[int]:
    return [worker.state for worker in details("recipe", "id", JournalState(one), (), now_s).workers]


def test_four_at_once_and_one_more_for_every_ten_pushes() -> None:
    one = job()
    assert enter(one, *range(8)) == [True] * 4 + [False] * 4
    assert states(one, 0.0) == [Worker.STATE_RUNNING] * 4 + [Worker.STATE_WAITING] * 4
    one.saw(9)
    assert enter(one, 4, 5) == [False, False]
    one.saw(10)
    assert enter(one, 5, 4, 5) == [True, False, True], "the first that asks, which stays in"
    one.saw(29)
    assert enter(one, 4, 6) == [True, False]


@pytest.mark.parametrize("pace", [Async(0), Bounded(2), Sync(8)])
def test_without_a_ramp_all_are_let_in(pace: Mode) -> None:
    assert all(enter(job(pace), *range(8)))


def test_another_is_let_in_for_one_that_is_lost_or_has_ended() -> None:
    one = job()
    enter(one, *range(5))
    for worker in range(2, 5):
        one.members.heard(worker, 40.0)
    assert enter(one, 4, 5, 6, now_s=40.0) == [True, True, False], "workers 0 and 1 are lost"
    one.report(WorkerReport(worker=2, incarnation=1, steps=1, version=1, finished=True), 41.0)
    assert enter(one, 6, 7, now_s=41.0) == [True, False]
    assert enter(one, 0, now_s=42.0) == [True], "it comes back, and goes on"


def test_a_new_process_of_a_worker_takes_its_place() -> None:
    one = job()
    enter(one, *range(5))
    assert enter(one, 3, incarnation=2) == [True]
    assert enter(one, 4) == [False]
    with pytest.raises(WorkerSuperseded):
        enter(one, 3, incarnation=1)


def test_those_that_still_wait_at_the_end_are_let_in_to_end() -> None:
    one = job(num_steps=5)
    enter(one, *range(5))
    assert not has_room(one, 0.0)
    one.saw(5)
    assert enter(one, 4, 5) == [True, True]


def test_many_that_wait_do_not_ask_too_often() -> None:
    one = job()
    enter(one, *range(4))
    assert let_in(one, 4, 1, 0.0) == 0.1
    enter(one, *range(5, 403))
    assert let_in(one, 403, 1, 0.0) == 2.0, "400 wait"


def test_a_chief_that_starts_again_knows_who_was_let_in() -> None:
    one, other = job(), job()
    enter(one, *range(5))
    other.load(json.loads(json.dumps(one.state(0.0, with_workers=True))), 0.0)
    assert enter(other, *range(5)) == [True] * 4 + [False]
