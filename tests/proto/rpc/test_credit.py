"""The part of a processor that strangers get."""

from __future__ import annotations

from downpour.proto.rpc import credit
from downpour.proto.rpc.credit import Credit


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_after_a_burst_strangers_get_their_share() -> None:
    clock = Clock()
    left = Credit(clock)
    left.spend(credit.BURST_S + 0.1)
    assert not left.has_some()
    assert abs(left.wait_s() - 0.1 / credit.SHARE) < 1e-9
    clock.now += 0.1 / credit.SHARE + 1e-6
    assert left.wait_s() == 0.0


def test_nothing_is_saved_up_beyond_the_burst() -> None:
    clock = Clock()
    left = Credit(clock)
    clock.now = 1e6
    assert left.wait_s() == 0.0
    left.spend(credit.BURST_S + 0.01)
    assert not left.has_some()


def test_members_cause_a_short_debt_at_most_and_pay_off_none() -> None:
    left = Credit(Clock())
    for _ in range(100):
        left.charge(1.0)
    assert not left.has_some()
    assert abs(left.wait_s() - credit.MAX_DEBT_S / credit.SHARE) < 1e-9
    left.spend(1.0)
    left.charge(1.0)
    assert left.wait_s() > 1.0 / credit.SHARE


def test_what_a_member_has_cost_is_given_back() -> None:
    left = Credit(Clock())
    left.spend(1.0)
    left.give_back(1.0)
    assert left.has_some()
