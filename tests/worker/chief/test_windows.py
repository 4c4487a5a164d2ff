"""Growth of totals over the last seconds, of senders that restart, fall silent or report rarely."""

from __future__ import annotations

import pytest

from downpour.worker.chief.windows import WINDOW_S, Growth, Windows


def test_growth_is_that_of_the_last_seconds() -> None:
    windows = Windows()
    for second in range(100):
        windows.add("w", 1, float(second), {"steps": second * (1.0 if second < 50 else 3.0), "loss": second / 2})
    growth = windows.growth("w", 99.0)
    assert WINDOW_S <= growth.seconds <= WINDOW_S + 1
    assert growth.rate("steps") == pytest.approx(3.0) and growth.mean("loss", "steps") == pytest.approx(0.5 / 3)
    assert growth.rate("unknown") == growth.mean("loss", "unknown") == 0.0


def test_nothing_is_known_of_one_report_of_silence_and_of_another_life() -> None:
    windows = Windows()
    assert windows.growth("w", 0.0) == Growth()
    windows.add("w", 1, 0.0, {"steps": 5.0})
    assert windows.growth("w", 0.0) == Growth()
    windows.add("w", 1, 1.0, {"steps": 8.0})
    assert windows.growth("w", 1.0) == Growth(1.0, {"steps": 3.0})
    assert windows.growth("w", 1.0 + WINDOW_S + 0.1) == Growth(), "it has been silent"
    windows.add("w", 2, 2.0, {"steps": 1.0})
    assert windows.growth("w", 2.0) == Growth(), "a restarted one counts from 0"
    assert windows.growth("other", 2.0) == Growth()


def test_a_sender_that_reports_rarely_has_a_rate_over_the_gap() -> None:
    windows = Windows()
    for at_s in (0.0, 40.0, 80.0):
        windows.add("w", 1, at_s, {"steps": at_s})
    assert windows.growth("w", 80.0) == Growth(40.0, {"steps": 40.0})
