"""Schedules: their values against Keras's, warm-up, refusals, the wire, and what a shard does with them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from downpour.ps.layout import Variable, lay_out
from downpour.ps.policy.named import from_message, to_message
from downpour.ps.policy.rules import SGD
from downpour.ps.policy.schedules import (
    BY_NAME,
    Constant,
    Cosine,
    CosineRestarts,
    Exponential,
    InverseTime,
    KerasCosine,
    Piecewise,
    Polynomial,
    Schedule,
    StaircaseExponential,
)
from tests.ps.pushing import new_shard, push

SCHEDULES: list[Callable[[int], Schedule]] = [
    lambda warmup: Constant(0.5, warmup),
    lambda warmup: StaircaseExponential(0.5, 0.5, 7, warmup),
    lambda warmup: Piecewise((5, 11), (0.5, 0.25, 1.0), warmup),
    lambda warmup: Cosine(0.5, 20, 0.1, warmup),
    lambda warmup: CosineRestarts(0.5, 5.0, 1.5, 0.5, 0.1, warmup),
    lambda warmup: Exponential(0.5, 0.5, 7.5, warmup),
    lambda warmup: InverseTime(0.5, 0.25, 7.5, True, warmup),
    lambda warmup: Polynomial(0.5, 20.5, 0.1, 2.0, True, warmup),
]
# Its warm-up is another.
ALL = [*SCHEDULES, lambda warmup: KerasCosine(0.5, 20.5, 0.1, 0.125, warmup)]


def test_every_schedule_is_tested() -> None:
    assert {type(make(0)) for make in ALL} == set(BY_NAME.values())


def test_staircase_falls_at_the_steps_only() -> None:
    """Sun et al. 2017, section 4.1: 0.9 every 3 M steps."""
    schedule = StaircaseExponential(1e-3, 0.9, 3_000_000)
    assert schedule.rate(0) == schedule.rate(2_999_999) == 1e-3
    assert schedule.rate(3_000_000) == pytest.approx(0.9e-3)
    assert schedule.rate(36_000_000) == pytest.approx(1e-3 * 0.9**12)
    assert Constant(0.5).rate(10**9) == 0.5


def test_piecewise_changes_at_its_boundaries() -> None:
    schedule = Piecewise((2, 4), (1.0, 0.5, 0.25))
    assert [schedule.rate(v) for v in range(6)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    assert Piecewise((), (0.1,)).rate(10**9) == 0.1


@given(
    rate=st.floats(1e-5, 1), steps=st.integers(1, 1000), final=st.floats(0, 1), step=st.integers(0, 2000),
    every=st.integers(1, 500), factor=st.floats(0.1, 1),
)  # fmt: skip
def test_equal_to_keras(rate: float, steps: int, final: float, step: int, every: int, factor: float) -> None:
    """Keras computes in float32, also powers of a rounded factor; a cosine is compared with the first rate."""
    import keras

    theirs = keras.optimizers.schedules
    for mine, reference in (
        (Cosine(rate, steps, final), theirs.CosineDecay(rate, steps, final)),
        (StaircaseExponential(rate, factor, every), theirs.ExponentialDecay(rate, every, factor, staircase=True)),
        # Ours change at the boundary, Keras's after it.
        (Piecewise((steps,), (rate, rate / 2)), theirs.PiecewiseConstantDecay([steps - 1], [rate, rate / 2])),
    ):
        assert mine.rate(step) == pytest.approx(float(reference(step)), rel=1e-5 + 1e-7 * step, abs=1e-7 * rate)


@given(
    rate=st.floats(1e-5, 1), start=st.floats(0, 1), steps=st.floats(1, 1000), final=st.floats(0, 1),
    step=st.integers(0, 2000), factor=st.floats(0.1, 1), warmup=st.integers(0, 500), power=st.sampled_from([0.5, 1, 2]),
)  # fmt: skip
def test_equal_to_keras_with_numbers_of_steps_that_are_not_whole(
    rate: float, start: float, steps: float, final: float, step: int, factor: float, warmup: int, power: float
) -> None:
    """Away from jumps, where float32 decides on which side a step is."""
    import keras

    theirs, steps = keras.optimizers.schedules, float(np.float32(steps))
    cases = [
        (KerasCosine(rate, steps, final, start, warmup), theirs.CosineDecay(start, steps, final, "", rate, warmup)),
        (Exponential(rate, factor, steps), theirs.ExponentialDecay(rate, steps, factor)),
        (InverseTime(rate, factor, steps), theirs.InverseTimeDecay(rate, steps, factor)),
    ]
    if abs(step / steps - round(step / steps)) > 1e-3:
        cases += [
            (InverseTime(rate, factor, steps, True), theirs.InverseTimeDecay(rate, steps, factor, True)),
            (Polynomial(rate, steps, final, 1.0, True), theirs.PolynomialDecay(rate, steps, final, 1.0, True)),
            (
                CosineRestarts(rate, steps, 1.0, factor, final),
                theirs.CosineDecayRestarts(rate, steps, 1, factor, final),
            ),
        ]
    for mine, reference in cases:
        assert mine.rate(step) == pytest.approx(float(reference(step)), rel=1e-4, abs=1e-5 * max(rate, final)), mine


def test_restarts_are_exact_where_keras_rounds() -> None:
    schedule = CosineRestarts(1.0, 3.0, length_factor=2.0, rate_factor=0.5)
    starts = [3 * (2**i - 1) for i in range(20)]
    assert [schedule.rate(start) for start in starts] == [0.5**i for i in range(20)]
    lowest = [schedule.rate(start - 1) for start in starts[5:]]
    assert max(lowest) < 1e-3


@pytest.mark.parametrize("make", SCHEDULES)
@given(warmup=st.integers(0, 50), version=st.integers(0, 200))
def test_the_clock_starts_after_a_linear_warmup(make: Callable[[int], Schedule], warmup: int, version: int) -> None:
    schedule, plain = make(warmup), make(0)
    if version >= warmup:
        assert schedule.rate(version) == plain.rate(version - warmup)
    else:
        line = np.linspace(0, plain.rate(0), warmup + 2)[1:-1]
        assert schedule.rate(version) == pytest.approx(line[version])
        assert schedule.rate(version) > 0


@pytest.mark.parametrize("make", ALL)
def test_a_schedule_travels_with_tuples_and_whole_numbers(make: Callable[[int], Schedule]) -> None:
    schedule = make(3)
    back = from_message(BY_NAME, to_message(schedule))
    assert back == schedule
    assert repr(back) == repr(schedule), "whole numbers come back whole"


@pytest.mark.parametrize("make", ALL)
def test_a_shard_reads_its_rate_at_its_version(make: Callable[[int], Schedule]) -> None:
    schedule = make(4)
    shard = new_shard(lay_out([Variable("w", (3,))], 1), np.zeros(3, np.float32), SGD(), schedule)
    expected = np.zeros(3, np.float32)
    for version in range(30):
        push(shard, version + 1, np.ones(3, np.float32))
        expected -= np.float32(schedule.rate(version))
    np.testing.assert_array_equal(shard.arena.parameters, expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(0.0), "Constant: learning_rate is 0.0; give a number above 0"),
        (lambda: Constant(float("nan")), "give a number above 0"),
        (lambda: StaircaseExponential(1e-3, 0.9, 0), "every is 0; give a whole number of at least 1"),
        (lambda: StaircaseExponential(1e-3, 0.9, 0.5), "every is 0.5; give a whole number of at least 1"),  # type: ignore[arg-type]
        (lambda: StaircaseExponential(1e-3, 0.9, 2.5), "every is 2.5"),  # type: ignore[arg-type]
        (lambda: Cosine(0.1, 0.5), "steps is 0.5; give a whole number"),  # type: ignore[arg-type]
        (lambda: Piecewise((0.5,), (1.0, 0.5)), "whole numbers above 0"),  # type: ignore[arg-type]
        (lambda: Constant(0.1, -1), "warmup_steps is -1; give a whole number of at least 0"),
        (lambda: Constant(0.1, 2.5), "warmup_steps is 2.5"),
        (lambda: Piecewise((10, 5), (1.0, 0.5, 0.1)), r"Piecewise: boundaries is \(10, 5\); give .* ascending order"),
        (lambda: Piecewise((5, 5), (1.0, 0.5, 0.1)), "ascending order"),
        (lambda: Piecewise((0,), (1.0, 0.5)), "whole numbers above 0"),
        (lambda: Piecewise((5,), (1.0,)), "rates is .*; give 2 of them, one more than boundaries"),
        (lambda: Piecewise((5,), (1.0, 0.0)), "rates is .*; give numbers above 0"),
        (lambda: Cosine(0.1, 0), "steps is 0"),
        (lambda: Cosine(0.1, 5, 1.5), "final is 1.5; give a fraction from 0 to 1"),
        (lambda: KerasCosine(0.1, 5.0, start=-0.1), "KerasCosine: start is -0.1; give 0 or a number above it"),
        (lambda: CosineRestarts(0.1, 5.0, 0.5), "length_factor is 0.5; give a number of at least 1"),
        (lambda: Exponential(0.1, 0.0, 5.0), "factor is 0.0; give a number above 0"),
        (lambda: InverseTime(0.1, -1.0, 5.0), "factor is -1.0; give 0 or a number above it"),
        (lambda: InverseTime(0.1, 1.0, 5.0, 1), "staircase is 1; give True or False"),  # type: ignore[arg-type]
        (lambda: Polynomial(0.1, 5.0, -1.0), "end is -1.0; give 0"),
        (lambda: Polynomial(0.1, 5.0, power=0.0), "power is 0.0; give a number above 0"),
        (lambda: Polynomial(0.1, 5.0, cycle=0), "cycle is 0; give True or False"),  # type: ignore[arg-type]
    ],
)
def test_refusals(make: Callable[[], Schedule], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
