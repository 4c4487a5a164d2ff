"""Fast workers get longer leases, no lease lasts long, and an epoch ends with short ones."""

from __future__ import annotations

import pytest

from downpour.worker.chief.coordinator import Coordinator
from downpour.worker.chief.leases import LeaseTable
from downpour.worker.chief.membership import Membership

EPOCH, LEAST = 1_000_000, 100


def job(num_workers: int = 2) -> Coordinator:
    return Coordinator(1 << 40, 1 << 40, LeaseTable(EPOCH, LEAST), Membership(num_workers))


def lasting(coordinator: Coordinator, rate: float, num_leases: int) -> list[int]:
    """Positions of the leases of a worker that trains on so many positions a second."""
    now_s, sizes = 0.0, []
    for number in range(num_leases):
        sizes.append(coordinator.lease(0, 1, number, now_s).num_records)
        now_s += sizes[-1] / rate
    return sizes


@pytest.mark.parametrize("rate", [1.0, 200.0, 5_000.0, 80_000.0])
def test_a_lease_lasts_half_a_second_or_is_the_shortest(rate: float) -> None:
    sizes = lasting(job(), rate, 8)
    assert sizes[0] == LEAST and all(size % LEAST == 0 for size in sizes)
    assert max(LEAST, rate * 0.5 - LEAST) <= sizes[-1] <= max(LEAST, rate * 0.5)


def test_a_worker_that_slows_down_gets_shorter_ones() -> None:
    coordinator = job()
    long = [coordinator.lease(0, 1, number, 0.1 * number).num_records for number in range(6)][-1]
    short = coordinator.lease(0, 1, 6, 10.0).num_records
    assert long > 100 * LEAST and short < long / 10


def test_every_worker_gets_a_fair_part_of_what_is_left_of_an_epoch() -> None:
    coordinator = job(num_workers=2)
    left, number = EPOCH, 0
    while left:
        before = left
        lease = coordinator.lease(0, 1, number, 0.001 * number)
        left -= lease.num_records
        assert lease.num_records <= max(before / 4, LEAST), "two more of these for each of two workers"
        number += 1
    assert number < 100, "and no more calls than it takes"


def test_another_process_begins_with_the_shortest_and_a_repeated_call_changes_nothing() -> None:
    coordinator = job()
    leases = [coordinator.lease(0, 1, number, 0.01 * number) for number in range(5)]
    assert coordinator.lease(0, 1, 4, 0.05) == leases[4]
    assert coordinator.lease(0, 1, 5, 0.06).num_records > leases[4].num_records
    coordinator.register(0, 2, "", 1.0)
    table = coordinator.leases
    while table._returned:
        table._take(0)
    assert coordinator.lease(0, 2, 0, 1.0).num_records == LEAST
