"""Who may go when, with the time as a number."""

from __future__ import annotations

from downpour.worker.chief.departures import Departures


def test_one_checkpoint_serves_all_that_leave_within_a_moment() -> None:
    leaving = Departures()
    assert not leaving.due(0.0)
    assert not leaving.ask(0, 1, 0.0) and not leaving.ask(1, 1, 0.4)
    assert not leaving.due(0.4), "others may leave as well"
    assert leaving.due(0.6)
    leaving.begin(0.6)
    assert not leaving.ask(0, 1, 0.7), "it is only begun"
    leaving.end()
    assert leaving.ask(0, 1, 0.8) and leaving.waiting(0.8), "shard 1 has not been told"
    assert leaving.ask(1, 1, 0.8) and not leaving.waiting(0.8)
    assert not leaving.due(5.0)


def test_asking_again_changes_nothing_until_another_process_leaves() -> None:
    leaving = Departures()
    for now in (0.0, 0.2, 0.4, 0.6):
        assert not leaving.ask(3, 7, now)
    leaving.begin(0.6)
    leaving.end()
    assert leaving.ask(3, 7, 0.7) and not leaving.due(2.0)
    assert not leaving.ask(3, 8, 100.0), "the shard was started again, and leaves again"
    assert leaving.due(100.5)


def test_who_leaves_while_a_checkpoint_is_written_gets_another_one_and_all_wait_for_it() -> None:
    leaving = Departures()
    leaving.ask(0, 1, 0.0)
    leaving.begin(0.5)
    assert not leaving.ask(1, 1, 0.6)
    leaving.end()
    assert not leaving.ask(0, 1, 0.7), "shard 0 has its checkpoint, but the next one needs shard 0"
    assert leaving.due(1.1)
    leaving.begin(1.1)
    leaving.end()
    assert leaving.ask(0, 1, 1.2) and leaving.ask(1, 1, 1.2)


def test_a_checkpoint_that_fails_is_due_again() -> None:
    leaving = Departures()
    leaving.ask(0, 1, 0.0)
    leaving.begin(0.5)
    assert leaving.due(0.6)


def test_nobody_waits_for_a_shard_that_has_gone_without_its_checkpoint() -> None:
    leaving = Departures()
    leaving.ask(0, 1, 0.0)
    leaving.ask(1, 1, 4.0)
    leaving.begin(4.5)
    leaving.end()
    leaving.ask(2, 1, 5.0)
    assert not leaving.ask(1, 1, 9.0)
    assert leaving.ask(1, 1, 10.5), "shard 2 has fallen silent"
    assert not leaving.due(11.0)
