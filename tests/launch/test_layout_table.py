"""`downpour layout` names the variables that patterns are for."""

from __future__ import annotations

from downpour.launch.layout_table import variables
from downpour.ps.layout import FROZEN, STATISTIC, Slicing, Variable, lay_out


def test_every_variable_is_named_with_shape_kind_and_shards() -> None:
    made = [
        Variable("stem/kernel", (3, 4), FROZEN),
        Variable("norm/moving_mean", (4,), STATISTIC),
        Variable("head/kernel", (4, 6)),
        Variable("scale", ()),
    ]
    rows = [line.split() for line in variables(lay_out(made, 3, (Slicing("head/*", 3),))).splitlines()]
    assert rows[0] == ["variable", "shape", "kind", "shards"]
    assert rows[1][:5] == ["stem/kernel", "3", "x", "4", "frozen"]
    assert rows[2][:3] == ["norm/moving_mean", "4", "statistic"]
    assert rows[3] == ["head/kernel", "4", "x", "6", "trained", "0-2"]
    assert rows[4][:4] == ["scale", "one", "number", "trained"]
