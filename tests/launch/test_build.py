"""What is decided of a layout before it is used."""

from __future__ import annotations

import pytest

from downpour.launch.build import unsendable
from downpour.proto.assembly import MAX_FACTORS_BYTES
from downpour.ps.layout import FACTORED, Slicing, Variable, plan

_VARIABLES = (Variable("head/kernel", (2048, 18291), FACTORED), Variable("small/kernel", (512, 600), FACTORED))


def _rows(batch_size: int) -> dict[str, int]:
    return {variable.name: batch_size for variable in _VARIABLES}


@pytest.mark.parametrize(
    ("batch_size", "num_shards", "slices", "itemsize", "names"),
    [
        (32, 1, 1, 4, set()),
        (256, 1, 1, 4, {"head/kernel"}),
        (256, 17, 50, 4, set()),  # each shard gets its columns only
        (256, 1, 1, 2, set()),
        (4096, 1, 1, 4, {"head/kernel", "small/kernel"}),
    ],
)
def test_factors_that_are_too_large_for_a_message_are_named(
    batch_size: int, num_shards: int, slices: int, itemsize: int, names: set[str]
) -> None:
    layout = plan(_VARIABLES, num_shards, (Slicing("head/*", slices),) if slices > 1 else ())
    assert unsendable(layout, _rows(batch_size), itemsize) == names


def test_the_limit_is_of_what_travels() -> None:
    rows = MAX_FACTORS_BYTES // (4 * (2048 + 18291))
    layout = plan(_VARIABLES, 1)
    assert unsendable(layout, _rows(rows), 4) == set()
    assert unsendable(layout, _rows(rows + 1), 4) == {"head/kernel"}
