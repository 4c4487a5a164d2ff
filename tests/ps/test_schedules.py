from __future__ import annotations

import pytest

from downpour.ps.schedules import Constant, StaircaseExponential


def test_staircase_falls_at_the_steps_only() -> None:
    """Sun et al. 2017, section 4.1: 0.9 every 3 M steps."""
    schedule = StaircaseExponential(1e-3, 0.9, 3_000_000)
    assert schedule.rate(0) == schedule.rate(2_999_999) == 1e-3
    assert schedule.rate(3_000_000) == pytest.approx(0.9e-3)
    assert schedule.rate(36_000_000) == pytest.approx(1e-3 * 0.9**12)
    assert Constant(0.5).rate(10**9) == 0.5


def test_refusals() -> None:
    for make in (lambda: Constant(0.0), lambda: StaircaseExponential(1e-3, 0.9, 0), lambda: Constant(float("nan"))):
        with pytest.raises(ValueError, match="give a number above 0"):
            make()
