"""Schedules are seeded, even, and leave their targets alone at the beginning and at the end."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.chaos.schedule import KINDS, SHIFT, Fault, schedule

ROLES = {"ps": 17, "worker": 2, "chief": 1, "evaluator": 1}


def faults(seed: int = 0, num_faults: int = 180) -> list[Fault]:
    return schedule(seed, 600.0, num_faults, ROLES)


def test_a_seed_gives_its_schedule_and_no_other() -> None:
    assert faults(3) == faults(3) != faults(4)


def test_every_kind_comes_equally_often_and_every_role_is_struck() -> None:
    assert Counter(fault.kind for fault in faults()) == dict.fromkeys(KINDS, 20)
    roles = Counter(fault.target.partition("/")[0] for fault in faults())
    assert set(roles) == set(ROLES)
    assert roles["ps"] == max(roles.values())


def test_as_many_faults_as_kinds_are_of_every_kind() -> None:
    assert {fault.kind for fault in faults(num_faults=len(KINDS))} == set(KINDS)


@pytest.mark.parametrize("seed", range(20))
def test_times_are_in_order_and_within_bounds(seed: int) -> None:
    found = faults(seed)
    times = [fault.at_s for fault in found]
    assert times == sorted(times)
    assert times[0] >= 5.0 and times[-1] <= 590.0
    for fault in found:
        assert fault.duration_s <= (30.0 if fault.kind == SHIFT else 8.0)
        assert fault.at_s + fault.duration_s <= 594.0  # the shortest that a fault may be goes on after the end


def test_only_servers_have_proxies() -> None:
    found = faults()
    on_proxies = {fault.target.partition("/")[0] for fault in found if fault.place[0] == "proxy"}
    assert on_proxies == {"ps", "chief"}
    assert {fault.kind for fault in found if fault.place[0] == "process"} == {"kill", "pause", "flip", "intrude"}
    assert all(fault.duration_s == 0 for fault in found if fault.kind in ("kill", "cut", "flip", "intrude"))


def test_a_place_is_struck_by_one_fault_at_a_time() -> None:
    assert Fault(0, "kill", "ps/1", 0).place == Fault(0, "pause", "ps/1", 1).place
    assert Fault(0, "cut", "ps/1", 0).place == Fault(0, "delay", "ps/1", 1).place != Fault(0, "kill", "ps/1", 0).place
    assert Fault(0, "fill", "ps/1", 1).place == Fault(0, "fill", "ps/2", 1).place != Fault(0, "fill", "chief", 1).place


def test_too_little_time_is_refused() -> None:
    with pytest.raises(ValueError, match="12 s leave no time"):
        schedule(0, 12.0, 3, ROLES)
