"""The lease table, event by event, and under any order of events."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from downpour.model.data.order import Lease
from downpour.proto.errors import WorkerSuperseded
from downpour.worker.chief.leases import LeaseTable, lease_records


def test_the_next_epoch_begins_at_once() -> None:
    table = LeaseTable(10, 4)
    leases = [table.grant(worker=number % 2, incarnation=1, number=number // 2) for number in range(5)]
    assert leases == [Lease(0, 0, 4), Lease(0, 4, 8), Lease(0, 8, 10), Lease(1, 0, 4), Lease(1, 4, 8)]


def test_the_same_number_gives_the_same_lease() -> None:
    table = LeaseTable(10, 4)
    assert table.grant(0, 1, 0) == table.grant(0, 1, 0) == Lease(0, 0, 4)
    assert table.grant(1, 1, 0) == Lease(0, 4, 8)
    assert table.grant(0, 1, 1) == table.grant(0, 1, 1) == Lease(0, 8, 10)


def test_what_is_given_back_begins_at_the_exact_position_and_comes_first() -> None:
    table = LeaseTable(100, 10)
    for number in range(2):
        table.grant(0, 1, number)
    table.done(0, 1, 13)
    table.release(0, 1)
    assert table.grant(1, 1, 0) == Lease(0, 13, 20)
    assert table.grant(1, 1, 1) == Lease(0, 20, 30)
    assert table.records_repeated == 7


def test_the_oldest_epoch_is_given_out_first() -> None:
    table = LeaseTable(10, 10)
    for number in range(3):
        table.grant(number, 1, 0)
    for worker in (2, 0, 1):
        table.release(worker, 1)
    assert [table.grant(3, 1, number).epoch for number in range(4)] == [0, 1, 2, 3]


def test_a_newer_incarnation_gives_back_what_the_older_held() -> None:
    table = LeaseTable(100, 10)
    table.grant(0, 1, 0)
    table.done(0, 1, 4)
    assert table.grant(0, 2, 0) == Lease(0, 4, 10)
    table.done(0, 1, 9)
    assert table.finished_in_epoch == 4, "a late report of the older one"
    with pytest.raises(WorkerSuperseded, match="worker 0 has a newer incarnation"):
        table.grant(0, 1, 1)


def test_totals_that_are_lost_repeated_or_late_change_nothing() -> None:
    table = LeaseTable(100, 10)
    for number in range(3):
        table.grant(0, 1, number)
    for records_done in (15, 15, 3, 22, 0):
        table.done(0, 1, records_done)
    assert table.finished_in_epoch == 22
    table.done(5, 1, 10)
    table.release(5, 1)
    assert table.epochs == pytest.approx(0.22)


def test_one_that_was_taken_for_lost_goes_on_with_new_leases() -> None:
    table = LeaseTable(100, 10)
    table.grant(0, 1, 0)
    table.release(0, 1)
    table.done(0, 1, 10)
    assert table.finished_in_epoch == 0, "somebody else may have begun them"
    assert table.grant(1, 1, 0) == Lease(0, 0, 10)
    assert table.grant(0, 1, 1) == Lease(0, 10, 20)
    table.done(0, 1, 13)
    assert table.finished_in_epoch == 3


def test_a_lease_whose_reply_was_lost_with_its_worker_is_replaced() -> None:
    table = LeaseTable(100, 10)
    table.grant(0, 1, 0)
    table.grant(0, 1, 1)
    table.done(0, 1, 10)
    table.release(0, 1)
    assert table.grant(1, 1, 0) == Lease(0, 10, 20)
    assert table.grant(0, 1, 1) == Lease(0, 20, 30)
    table.done(0, 1, 14)
    assert table.finished_in_epoch == 14


def test_a_worker_that_knows_of_more_leases_than_the_table_must_start_anew() -> None:
    table = LeaseTable(100, 10)
    with pytest.raises(WorkerSuperseded, match="worker 0 requested lease 3, and the chief has granted 0"):
        table.grant(0, 1, 3)


@pytest.mark.parametrize(("num_records", "lease_records"), [(0, 1), (1, 0)])
def test_impossible_tables_are_refused(num_records: int, lease_records: int) -> None:
    with pytest.raises(ValueError, match="give at least 1 of each"):
        LeaseTable(num_records, lease_records)


def test_leases_are_whole_batches_and_short_where_the_epoch_is() -> None:
    assert lease_records(1 << 20, batch_size=32, num_workers=50) == 128
    assert lease_records(3173, batch_size=128, num_workers=2) == 384
    assert lease_records(101, batch_size=4, num_workers=2) == 12
    assert lease_records(10, batch_size=16, num_workers=2) == 16


def test_a_state_gives_back_what_workers_hold_unless_it_names_them() -> None:
    table = LeaseTable(100, 10)
    table.grant(0, 1, 0)
    table.grant(1, 1, 0)
    table.done(0, 1, 4)
    whole = LeaseTable.from_state(json.loads(json.dumps(table.state(with_holders=True))), 10)
    whole.done(0, 1, 6)
    assert whole.grant(0, 1, 1) == Lease(0, 20, 30)
    assert whole.grant(0, 1, 1) == Lease(0, 20, 30)
    assert whole.finished_in_epoch == 6 and whole.records_repeated == 0
    bare = LeaseTable.from_state(json.loads(json.dumps(table.state())), 25)
    assert bare.finished_in_epoch == 4
    assert [bare.grant(0, 2, number) for number in range(3)] == [Lease(0, 4, 10), Lease(0, 10, 20), Lease(0, 20, 45)]
    assert bare.records_repeated == 16


@settings(max_examples=200)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 4), st.data())
def test_while_nobody_dies_every_position_is_finished_exactly_once(
    num_records: int, lease_records: int, num_workers: int, data: st.DataObject
) -> None:
    """Workers ask and finish in any order and report now and then; at the end all finish what they hold."""
    table = LeaseTable(num_records, lease_records)
    positions: list[list[tuple[int, int]]] = [[] for _ in range(num_workers)]
    granted, done = [0] * num_workers, [0] * num_workers
    for worker, asks in data.draw(st.lists(st.tuples(st.integers(0, num_workers - 1), st.booleans()), max_size=60)):
        if asks:
            lease = table.grant(worker, 1, granted[worker])
            granted[worker] += 1
            positions[worker] += [(lease.epoch, position) for position in range(lease.start, lease.stop)]
        else:
            done[worker] = data.draw(st.integers(done[worker], len(positions[worker])))
            table.done(worker, 1, done[worker])
    for worker in range(num_workers):
        table.done(worker, 1, len(positions[worker]))
    trained = sorted(position for mine in positions for position in mine)
    assert trained == [divmod(i, num_records) for i in range(len(trained))]
    assert table.records_repeated == 0
    assert table.epochs == len(trained) / num_records


class Deaths(RuleBasedStateMachine):
    """Workers that die, fall silent and come back, replies and reports that are lost, restarts of the table."""

    NUM_RECORDS, NUM_WORKERS = 12, 3

    def __init__(self) -> None:
        super().__init__()
        self.table = LeaseTable(self.NUM_RECORDS, 5)
        self.incarnations = [1] * self.NUM_WORKERS
        self.num_leases = [0] * self.NUM_WORKERS
        self.given: list[list[tuple[int, int]]] = [[] for _ in range(self.NUM_WORKERS)]
        self.done = [0] * self.NUM_WORKERS
        self.reported = [0] * self.NUM_WORKERS
        self.trained: Counter[tuple[int, int]] = Counter()
        self.repeats = 0  # at most so many could have been trained twice

    workers = st.integers(0, NUM_WORKERS - 1)

    @rule(worker=workers, reply_is_lost=st.booleans())
    def ask(self, worker: int, reply_is_lost: bool) -> None:
        lease = self.table.grant(worker, self.incarnations[worker], self.num_leases[worker])
        if not reply_is_lost:
            self.num_leases[worker] += 1
            self.given[worker] += [(lease.epoch, position) for position in range(lease.start, lease.stop)]

    @rule(worker=workers, count=st.integers(1, 7), report_is_lost=st.booleans())
    def train(self, worker: int, count: int, report_is_lost: bool) -> None:
        mine = self.given[worker][self.done[worker] : self.done[worker] + count]
        self.trained.update(mine)
        self.done[worker] += len(mine)
        if not report_is_lost:
            self.table.done(worker, self.incarnations[worker], self.done[worker])

    @rule(worker=workers)
    def fall_silent(self, worker: int) -> None:
        self.table.release(worker, self.incarnations[worker])

    @rule(worker=workers, is_noticed=st.booleans())
    def die(self, worker: int, is_noticed: bool) -> None:
        if is_noticed:
            self.table.release(worker, self.incarnations[worker])
        self.incarnations[worker] += 1
        self.num_leases[worker] = self.done[worker] = 0
        self.given[worker] = []

    @rule()
    def restart_with_a_journal(self) -> None:
        self.table = LeaseTable.from_state(json.loads(json.dumps(self.table.state(with_holders=True))), 5)

    @precondition(lambda self: self.table.epochs > 0)
    @rule()
    def restart_everything(self) -> None:
        self.table = LeaseTable.from_state(json.loads(json.dumps(self.table.state())), 4)
        for worker in range(self.NUM_WORKERS):
            self.die(worker, is_noticed=False)

    @invariant()
    def repeats_are_counted(self) -> None:
        assert sum(count - 1 for count in self.trained.values()) <= self.table.records_repeated

    @invariant()
    def what_counts_as_finished_was_trained(self) -> None:
        assert round(self.table.epochs * self.NUM_RECORDS) <= len(self.trained)

    def teardown(self) -> None:
        """A last worker trains alone until nothing of the epochs begun is left: every position was seen."""
        for worker in range(self.NUM_WORKERS):
            self.die(worker, is_noticed=True)
        epoch = self.table.epoch
        number = 0
        while (lease := self.table.grant(99, 1, number)).epoch <= epoch:
            self.trained.update((lease.epoch, position) for position in range(lease.start, lease.stop))
            number += 1
        for each in range(epoch + 1):
            assert all(self.trained[each, position] for position in range(self.NUM_RECORDS))


TestDeaths = Deaths.TestCase
