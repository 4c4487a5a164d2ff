"""What counts as growth."""

from __future__ import annotations

import os

import pytest

from tests.chaos.growth import sample, table, trends

HOUR = [30.0 * i for i in range(121)]


@pytest.mark.parametrize(
    ("quantity", "values", "grows"),
    [
        ("fds", [20.0] * 121, False),
        ("fds", [20.0 + i % 2 for i in range(121)], False),  # goes up and down
        ("fds", [20.0 + i / 20 for i in range(121)], True),
        ("threads", [9.0] * 60 + [12.0] * 61, True),
        ("threads", [16.0 + i * 7 % 5 for i in range(121)], False),
        ("processes", [6.0] * 121, False),
        ("rss_mb", [100.0 + i / 30 for i in range(121)], False),  # 4 % within the hour
        ("rss_mb", [100.0 + i / 15 for i in range(121)], True),
    ],
)
def test_growth(quantity: str, values: list[float], grows: bool) -> None:
    found = trends({("ps/0", quantity): list(zip(HOUR, values, strict=True))})
    assert found["ps/0"][quantity].grows is grows
    assert ("GROWS" in table(found)) is grows


def test_slopes_are_per_hour() -> None:
    found = trends({("ps/0", "rss_mb"): [(t, 100 + t / 360) for t in HOUR]})
    assert found["ps/0"]["rss_mb"].per_hour == pytest.approx(10.0)
    assert found["ps/0"]["rss_mb"].last - found["ps/0"]["rss_mb"].first == pytest.approx(7.5, abs=0.1)


def test_samples_what_runs_and_skips_what_is_gone() -> None:
    found = sample({"me": os.getpid(), "gone": 2**22 + 1})
    assert {quantity for _, quantity in found} >= {"fds", "threads", "rss_mb"}
    assert {name for name, _ in found} == {"me"}
    assert all(value > 0 for value in found.values())
