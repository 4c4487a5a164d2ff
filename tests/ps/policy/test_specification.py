"""Specifications say what a job says, and shards read the same from them."""

from __future__ import annotations

import pytest

from downpour.ps.layout import Variable, lay_out
from downpour.ps.policy.averages import Polyak
from downpour.ps.policy.pace import Async, Bounded
from downpour.ps.policy.rules import RMSProp
from downpour.ps.policy.schedules import StaircaseExponential
from downpour.ps.policy.specification import POLICIES, Policies, policies_of, specification_of
from downpour.ps.policy.staleness import Drop, Keep

LAYOUT = lay_out([Variable("w", (5,)), Variable("v", (3,))], 2)
SOME = Policies(RMSProp(momentum=0.9), StaircaseExponential(0.1, 0.5, 3), Bounded(2), Drop(4), Polyak(0.5))


@pytest.mark.parametrize("average", [None, Polyak(0.5)])
def test_policies_come_back(average: Polyak | None) -> None:
    policies = Policies(SOME.rule, SOME.schedule, SOME.pace, SOME.treatment, average)
    specification = specification_of(policies, LAYOUT, num_workers=7, shard=1)
    assert policies_of(specification) == policies
    assert (specification.shard, specification.num_workers) == (1, 7)
    assert (specification.layout, specification.fingerprint) == (LAYOUT.canonical, LAYOUT.fingerprint)


def test_pace_and_treatment_have_defaults() -> None:
    specification = specification_of(SOME, LAYOUT, num_workers=7)
    for name in ("pace", "staleness", "average"):
        specification.ClearField(name)  # type: ignore[arg-type]
    assert policies_of(specification) == Policies(SOME.rule, SOME.schedule, Async(), Keep(), None)


@pytest.mark.parametrize("name", POLICIES)
def test_what_is_not_known_is_refused(name: str) -> None:
    specification = specification_of(SOME, LAYOUT, num_workers=7)
    getattr(specification, name).name = "Warp"
    with pytest.raises(ValueError, match="'Warp' is not known; known are "):
        policies_of(specification)
