"""The count finds what is lost and what is doubled, and forgives a line that a kill has swallowed."""

from __future__ import annotations

import pytest

from tests.chaos import counting
from tests.chaos.counting import longest_stall_s, parse, read_shard, read_worker


def lines(*events: str) -> list[str]:
    return [f"[ps/0] {event}" for event in events]


ALL = ["push 0/7/1 counted", "push 1/8/1 counted", "push 0/7/2 counted"]
ACKNOWLEDGED = read_worker(lines("push 0/7/1 acknowledged", "push 0/7/2 acknowledged", "push 1/8/1 acknowledged"))


def count(*shards: list[str], pushes: int = 3) -> counting.Count:
    return counting.count([ACKNOWLEDGED], [read_shard(lines(*shard)) for shard in shards], [pushes] * len(shards))


def test_reads_events_and_nothing_else() -> None:
    assert parse("[worker/3 step=1 version=2] push 3/99/12 acknowledged") == ("acknowledged", "3/99/12")
    assert parse("[ps/0] ledger 3/99/12 complete") == ("complete", "3/99/12")
    for other in ("[ps/0] ledger 3/99/12 incomplete", "[ps/0] listens on 127.0.0.1:1", "[ps/0] push 3/99/12 cou", ""):
        assert parse(other) is None


def test_all_is_well() -> None:
    found = count(ALL, ALL)
    assert (found.acknowledged, found.lost, found.doubled) == (3, [], 0)


def test_a_push_that_one_shard_lacks_is_lost() -> None:
    assert count(ALL, ALL[:2], pushes=3).lost == ["0/7/2"]


@pytest.mark.parametrize("tale", ["ledger 0/7/2 complete", "push 0/7/2 repeated"])
def test_a_push_whose_line_is_missing_but_which_the_shard_knows_is_not_lost(tale: str) -> None:
    found = count(ALL, [*ALL[:2], tale])
    assert (found.lost, found.doubled) == ([], 0)


def test_an_incomplete_push_is_lost() -> None:
    assert count([*ALL[:2], "ledger 0/7/2 incomplete"]).lost == ["0/7/2"]


def test_a_push_counted_twice_is_doubled() -> None:
    assert count([*ALL, ALL[0]]).doubled == 1


@pytest.mark.parametrize("pushes", [2, 4])
def test_a_counter_that_differs_from_the_names_is_doubled(pushes: int) -> None:
    assert count(ALL, pushes=pushes).doubled == 1


def test_stalls_are_within_an_incarnation_and_without_what_is_excused() -> None:
    times = {"0/7": [0.0, 1.0, 6.0], "0/9": [30.0, 31.0], "1/8": [0.0, 2.0]}
    assert longest_stall_s(times, {}) == 5.0
    assert longest_stall_s(times, {"0": [(2.0, 4.0), (3.0, 5.5)]}) == 2.0
    assert longest_stall_s({}, {}) == 0.0
