"""Vectors are cut without gaps, and every part that is sent, updated or stored keeps to what contains it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downpour.proto import codec
from downpour.ps.layout import FACTORED, FROZEN, STATISTIC, Slicing, Variable, chunks, lay_out
from downpour.ps.policy.constraints import MaxNorm

SIZES = st.integers(0, 60)


def assert_covers(parts: list[chunks.Part], start: int, stop: int) -> None:
    assert all(a < b for a, b in parts)
    assert [start, *(b for _, b in parts)] == [*(a for a, _ in parts), stop] if parts else start >= stop


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "CHUNK_ELEMENTS", 16)
    monkeypatch.setattr(chunks, "PIECE_ELEMENTS", 12)
    for wire, most in ((codec.INT8, 32), (codec.INT4, 64)):
        monkeypatch.setitem(chunks.DIFFERENCE_ELEMENTS, wire, most)


def test_a_pull_keeps_to_the_chunks_of_pushes_and_pieces_to_chunks() -> None:
    layout = lay_out(
        [
            Variable("k", (6, 8), FACTORED),
            Variable("n", (5, 3), constraint=MaxNorm(1.0, (0,))),
            Variable("b", (37,)),
            Variable("m", (20,), STATISTIC),
            Variable("f", (19,), FROZEN),
        ],
        1,
        [Slicing("k", 2)],
    )
    size, num_pushed = layout.size(0), layout.num_pushed(0)
    pushed = layout.chunks(0)
    assert_covers(pushed, 0, num_pushed)
    [group] = layout.factored(0)
    assert pushed[0] == (0, 48) and all(b - a <= 16 for a, b in pushed[1:])
    borders = {a for a, _ in pushed} | {num_pushed}
    for start, stop in [(0, size), (0, num_pushed), (num_pushed, size), (3, 70), (50, 50)]:
        pulled = list(chunks.chunks_of_pull(pushed, size, start, stop))
        assert_covers(pulled, start, stop)
        assert all(b - a <= 16 for a, b in pulled)
        assert not any(a < border < b for a, b in pulled for border in borders)
    for a, b in pushed[1:]:
        pieces = chunks.pieces_of_range(a, b, layout.uncut(0))
        assert_covers(pieces, a, b)
        assert all(stop - start <= 12 for start, stop in pieces if (start, stop) not in layout.uncut(0))
    pieces = chunks.pieces_of_factors([(r.offset, r.offset + r.size) for r in group.ranges], group.num_inputs)
    assert_covers(pieces, 0, 48)
    assert all((b - a) % 4 == 0 and b - a <= 12 for a, b in pieces), "whole rows"


@given(size=SIZES)
def test_values_and_differences(size: int) -> None:
    assert_covers(list(chunks.chunks_of_values(size)), 0, size)
    for wire, most in chunks.DIFFERENCE_ELEMENTS.items():
        found = list(chunks.chunks_of_differences(wire, size))
        assert_covers(found, 0, size)
        assert all(b - a == most for a, b in found[:-1])


@given(start=SIZES, length=SIZES, longest=st.integers(1, 20), borders=st.lists(SIZES, unique=True, max_size=6))
def test_runs_end_within_no_uncut_part(start: int, length: int, longest: int, borders: list[int]) -> None:
    borders = sorted(border for border in borders if start <= border <= start + length)
    uncut = list(zip(borders[::2], borders[1::2], strict=False))
    found = list(chunks.runs(start, start + length, longest, uncut))
    assert_covers(found, start, start + length)
    ends = [b for _, b in found[:-1]]
    assert not any(a < end < b for end in ends for a, b in uncut)
