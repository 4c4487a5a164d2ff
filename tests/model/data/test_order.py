from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from downpour.model.data.order import Lease, Order, augmentation, forever

sizes = st.integers(1, 300)
blocks = st.integers(1, 9)
seeds = st.integers(0, 2**63)


@given(sizes, seeds, st.integers(0, 1 << 40), blocks)
def test_every_epoch_holds_every_record_once(num_records, seed, epoch, block):
    numbers = Order(num_records, seed, block).records(Lease(epoch, 0, num_records))
    assert sorted(numbers.tolist()) == list(range(num_records))


@given(sizes, seeds, blocks, st.lists(st.integers(0, 300), max_size=8))
def test_the_order_does_not_depend_on_how_leases_are_cut(num_records, seed, block, cuts):
    order = Order(num_records, seed, block)
    ends = sorted({0, num_records, *(min(cut, num_records) for cut in cuts)})
    leases = [Lease(4, start, stop) for start, stop in itertools.pairwise(ends)]
    together = [place.record for place in order.places(leases)]
    assert together == order.records(Lease(4, 0, num_records)).tolist()
    assert together == [n for lease in leases for n in Order(num_records, seed, block).records(lease).tolist()]


@given(sizes, seeds, blocks, st.lists(st.integers(0, 300), max_size=8), st.integers(1, 40), st.booleans())
def test_groups_are_the_places_in_a_row(num_records, seed, block, cuts, size, shuffle):
    order = Order(num_records, seed, block, shuffle=shuffle)
    ends = sorted({0, num_records, *(min(cut, num_records) for cut in cuts)})
    leases = [Lease(epoch, start, stop) for epoch in (0, 1) for start, stop in itertools.pairwise(ends)]
    groups = [group.tolist() for group in order.groups(leases, size)]
    assert [len(group) for group in groups[:-1]] == [size] * (len(groups) - 1) and 0 < len(groups[-1]) <= size
    assert list(itertools.chain(*groups)) == [place.record for place in order.places(leases)]


def test_groups_take_a_lease_when_they_need_it():
    taken = []
    leases = (taken.append(lease) or lease for lease in (Lease(0, 0, 8), Lease(0, 8, 10)))
    groups = Order(10, 0).groups(leases, 4)
    assert [len(next(groups)), len(next(groups))] == [4, 4] and len(taken) == 1
    assert len(next(groups)) == 2 and len(taken) == 2


def test_epochs_and_seeds_differ():
    orders = [Order(100, seed, 2).records(Lease(epoch, 0, 100)).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_many_epochs_in_any_turn_are_the_same_as_one_by_one():
    order = Order(50, 3)
    expected = {epoch: Order(50, 3).records(Lease(epoch, 0, 50)).tolist() for epoch in range(5)}
    for epoch in (0, 1, 0, 4, 2, 1, 4, 3, 0):
        assert order.records(Lease(epoch, 0, 50)).tolist() == expected[epoch]
        assert len(order._permutations) <= 2


def test_blocks_are_read_about_the_same_time_but_not_in_order():
    num_records, block = 64 * 16 * 5 + 30, 64
    numbers = Order(num_records, 0, block).records(Lease(0, 0, num_records))
    window = numbers[: 16 * block]
    assert len(np.unique(window // block)) in (16, 17), "as many places of the disk, one more beside the short block"
    assert len(np.unique(numbers[:block] // block)) > 8, "a batch mixes them"
    assert (np.diff(numbers) == 1).mean() < 0.01


def test_shuffling_moves_records_anywhere():
    numbers = Order(1000, 5).records(Lease(0, 0, 1000))
    assert abs(np.corrcoef(numbers, np.arange(1000))[0, 1]) < 0.15


def test_places_name_epoch_and_position():
    order = Order(10, 0)
    places = list(order.places([Lease(2, 8, 10), Lease(3, 0, 1)]))
    assert [(place.epoch, place.position) for place in places] == [(2, 8), (2, 9), (3, 0)]
    assert [place.record for place in places[:2]] == order.records(Lease(2, 8, 10)).tolist()


@pytest.mark.parametrize(("start", "stop"), [(0, 11), (-1, 5), (6, 5)])
def test_positions_outside_the_epoch_are_refused(start, stop):
    with pytest.raises(ValueError, match=f"positions {start} to {stop} .* epoch of 10 records.*same data"):
        Order(10, 0).records(Lease(0, start, stop))


def test_impossible_orders_are_refused():
    for arguments in ((0, 0, 1), (5, -1, 1), (5, 0, 0)):
        with pytest.raises(ValueError, match="give at least 1 record"):
            Order(*arguments)


def test_augmentation_depends_on_seed_epoch_and_position_alone():
    names = list(itertools.product((0, 1), (0, 1), (0, 1, 2)))
    drawn = [tuple(augmentation(*name).integers(0, 1 << 60, 5)) for name in names]
    assert drawn == [tuple(augmentation(*name).integers(0, 1 << 60, 5)) for name in names]
    assert len({number for numbers in drawn for number in numbers}) == 5 * len(names)


def test_leases_without_a_chief_run_for_ever():
    leases = list(itertools.islice(forever(10, 4), 5))
    assert leases == [Lease(0, 0, 4), Lease(0, 4, 8), Lease(0, 8, 10), Lease(1, 0, 4), Lease(1, 4, 8)]
    assert [lease.num_records for lease in leases] == [4, 4, 2, 4, 4]
