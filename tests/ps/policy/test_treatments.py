"""Weight decay, rates and freezing, range by range, through a shard."""

from __future__ import annotations

import numpy as np
import pytest

from downpour.proto.errors import MalformedChunk
from downpour.ps.apply import kernels
from downpour.ps.layout import FROZEN, STATISTIC, Variable, lay_out
from downpour.ps.policy.rules import SGD, AdamW, KerasAdam, Rule
from downpour.ps.policy.schedules import StaircaseExponential
from tests.ps.pushing import new_shard, push

VARIABLES = [
    Variable("frozen", (5,), FROZEN),
    Variable("plain", (5,)),
    Variable("decayed", (5,), weight_decay=0.5),
    Variable("decoupled", (5,), decoupled_decay=0.25),
    Variable("slow", (5,), rate=0.125),
    Variable("slow_decoupled", (5,), decoupled_decay=0.25, rate=0.125),
    Variable("statistic", (5,), STATISTIC),
]
LAYOUT = lay_out(VARIABLES, 1)
TWO, ONE = np.full(LAYOUT.size(0), 2, np.float32), np.ones(LAYOUT.num_pushed(0), np.float32)


def test_each_range_gets_its_own_treatment() -> None:
    shard = new_shard(LAYOUT, TWO, SGD())
    push(shard, 1, ONE)
    values = LAYOUT.gather([shard.arena.parameters])
    assert {v.name: float(x[0]) for v, x in zip(VARIABLES, values, strict=True)} == {
        "frozen": 2.0,
        "plain": 2 - 1,
        "decayed": 2 - (1 + 0.5 * 2),
        "decoupled": (2 - 0.25 * 2) - 1,
        "slow": 2 - 0.125,
        "slow_decoupled": (2 - 0.25 * 2 * 0.125) - 0.125,
        "statistic": 2 + 1,
    }
    assert all((x == x[0]).all() for x in values)


@pytest.mark.parametrize("rule", [KerasAdam(), AdamW()], ids=str)
def test_a_shard_equals_the_rule_on_each_variable_alone(rule: Rule) -> None:
    """To the bit, over 20 pushes cut anywhere, with a falling rate and Adam's step from the version."""
    schedule = StaircaseExponential(0.1, 0.5, 3)
    rng = np.random.default_rng(0)
    shard = new_shard(LAYOUT, rng.normal(size=LAYOUT.size(0)), rule, schedule)
    alone = LAYOUT.gather([shard.arena.parameters])
    slots = [[np.full(5, value, np.float32) for value in rule.slots.values()] for _ in VARIABLES]
    update = kernels.update_for(rule)
    for step in range(1, 21):
        gradients = rng.normal(size=LAYOUT.num_pushed(0)).astype(np.float32)
        push(shard, step, gradients)
        whole = np.concatenate([gradients, np.zeros(5, np.float32)])
        parts = LAYOUT.gather([whole])
        for v, w, slot, g in zip(VARIABLES, alone, slots, parts, strict=True):
            if v.kind == STATISTIC:
                w += g
            elif v.kind != FROZEN:
                rate = schedule.rate(step - 1) * v.rate
                update(w, slot, g, rate, v.weight_decay, v.decoupled_decay, step)
    for v, mine, theirs in zip(VARIABLES, LAYOUT.gather([shard.arena.parameters]), alone, strict=True):
        np.testing.assert_array_equal(mine, theirs, v.name)


def test_a_push_that_covers_frozen_ranges_is_refused() -> None:
    shard = new_shard(LAYOUT, TWO, SGD())
    with pytest.raises(MalformedChunk, match="within 30"):
        push(shard, 1, np.ones(LAYOUT.size(0), np.float32))
    assert (LAYOUT.gather([shard.arena.parameters])[0] == 2).all()


def test_a_shard_with_nothing_to_push_counts_pushes_all_the_same() -> None:
    layout = lay_out([Variable("frozen", (5,), FROZEN)], 1)
    shard = new_shard(layout, TWO[:5], SGD())
    assert push(shard, 1, np.empty(0, np.float32)).version == 1
    assert push(shard, 1, np.empty(0, np.float32)).repeated
