"""Curves, bars and short numbers."""

from __future__ import annotations

import math

import pytest

from downpour.launch.observe.terminal import gauges
from downpour.launch.observe.terminal.gauges import ASCII


def test_a_curve_is_as_wide_as_asked_and_spans_its_rows() -> None:
    assert gauges.curve([4, 3, 2, 1], 4) == ["█▆▃▁"]
    assert gauges.curve([float(value) for value in range(100)], 4) == ["▁▃▆█"]
    assert gauges.curve([0.0, 1.0], 10, rows=2) == [" █", "▁█"]
    assert gauges.curve([1.0, 1.0], 10) == ["▁▁"]
    assert gauges.curve([1.0, math.nan, 2.0], 10, glyphs=ASCII) == [".@"]
    assert gauges.curve([], 10, rows=3) == ["", "", ""]


def test_a_wide_range_is_drawn_by_its_logarithm() -> None:
    assert gauges.curve([100.0, 10.0, 1.0], 3) == ["█▄▁"] or gauges.curve([100.0, 10.0, 1.0], 3) == ["█▅▁"]


def test_a_distribution_begins_and_ends_with_what_was_counted() -> None:
    assert gauges.distribution([0, 2, 8, 0, 1, 0, 0], 20) == "1 ▂█ ▁ 4"
    assert gauges.distribution([1] * 256, 20).startswith("0 █") and len(gauges.distribution([1] * 256, 20)) <= 20
    assert gauges.distribution([0, 0], 20) == ""


def test_the_parts_of_a_bar_fill_what_they_are_of_the_whole() -> None:
    assert gauges.lengths([0.1, 0.2, 0.3], 0.6, 12) == [2, 4, 6]
    assert sum(gauges.lengths([1 / 3] * 3, 1.0, 10)) == 10
    assert gauges.lengths([1.0, 1.0], 0.0, 10) == [0, 0]
    assert sum(gauges.lengths([3.0, 3.0], 4.0, 10)) == 10, "no longer than its room"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (gauges.short(7), "7"),
        (gauges.short(9999), "9999"),
        (gauges.short(12_345), "12.3k"),
        (gauges.short(4_560_000), "4.56M"),
        (gauges.size(431), "0.4 kB"),
        (gauges.size(15_400_000), "15.4 MB"),
        (gauges.size(2.5e9), "2.5 GB"),
        (gauges.time_text(None), ""),
        (gauges.time_text(0.00042), "0.4 ms"),
        (gauges.time_text(0.042), "42 ms"),
        (gauges.time_text(1.234), "1.23 s"),
        (gauges.time_text(75.0), "75.0 s"),
    ],
)
def test_numbers_are_short(text: str, expected: str) -> None:
    assert text == expected
