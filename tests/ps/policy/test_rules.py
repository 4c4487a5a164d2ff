"""Each rule beside a plain numpy reference, its slots, its refusals, and updating in pieces."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downpour.ps.apply import kernels
from downpour.ps.policy import schedules
from downpour.ps.policy.named import from_message, to_message
from downpour.ps.policy.rules import (
    BY_NAME,
    SGD,
    AdagradV1,
    AdagradV2,
    Adam,
    AdamW,
    KerasAdagrad,
    KerasAdam,
    KerasMomentum,
    KerasRMSProp,
    Momentum,
    RMSProp,
    Rule,
)
from downpour.ps.policy.schedules import StaircaseExponential

# Every loop is used by one of these at least.
RULES: list[Rule] = [
    SGD(),
    *(kind(m, nesterov) for kind in (Momentum, KerasMomentum) for m in (0.0, 0.9) for nesterov in (False, True)),
    *(kind(0.9, m, 1e-3, c) for kind in (RMSProp, KerasRMSProp) for m in (0.0, 0.9) for c in (False, True)),
    *(AdagradV1(), AdagradV2(), KerasAdagrad(), Adam(), KerasAdam(), KerasAdam(amsgrad=True)),
    *(AdamW(), AdamW(amsgrad=True)),
]

Slots = dict[str, np.ndarray]
Formula = Callable[[Any, np.ndarray, Slots, np.ndarray, float, int], np.ndarray]


# The formulas, in float64 numpy: (rule, w, slots, g, lr, t) -> new w; slots are replaced in their dictionary.


def sgd(rule: SGD, w: np.ndarray, s: Slots, g: np.ndarray, lr: float, t: int) -> np.ndarray:
    return w - lr * g


def momentum(rule: Momentum, w: np.ndarray, s: Slots, g: np.ndarray, lr: float, t: int) -> np.ndarray:
    s["momentum"] = rule.momentum * s.get("momentum", 0.0) + g
    return w - lr * (g + rule.momentum * s["momentum"] if rule.nesterov else s["momentum"])


def keras_momentum(rule: KerasMomentum, w: np.ndarray, s: Slots, g: np.ndarray, lr: float, t: int) -> np.ndarray:
    s["momentum"] = rule.momentum * s.get("momentum", 0.0) - lr * g
    return w + (rule.momentum * s["momentum"] - lr * g if rule.nesterov else s["momentum"])


def rmsprop(rule: RMSProp | KerasRMSProp, w: np.ndarray, s: Slots, g: np.ndarray, lr: float, t: int) -> np.ndarray:
    s["ms"] = rule.rho * s["ms"] + (1 - rule.rho) * g**2
    variance = s["ms"]
    if rule.centered:
        s["mg"] = rule.rho * s["mg"] + (1 - rule.rho) * g
        variance = variance - s["mg"] ** 2
    s["mom"] = rule.momentum * s.get("mom", 0.0) + lr * g / np.sqrt(variance + rule.epsilon)
    return w - s["mom"]


def adagrad(rule: Any, w: np.ndarray, s: Slots, g: np.ndarray, lr: float, t: int) -> np.ndarray:
    a = s["accumulator"] = s["accumulator"] + g**2
    if isinstance(rule, KerasAdagrad):
        return w - lr * g / np.sqrt(a + rule.epsilon)
    return w - lr * g / (np.sqrt(a) + (rule.epsilon if isinstance(rule, AdagradV2) else 0.0))


def adam(rule: Any, w: np.ndarray, s: Slots, g: np.ndarray, lr: float, t: int) -> np.ndarray:
    if isinstance(rule, AdamW):
        w = w - lr * rule.weight_decay * w
    s["m"] = rule.beta_1 * s["m"] + (1 - rule.beta_1) * g
    s["v"] = v = rule.beta_2 * s["v"] + (1 - rule.beta_2) * g**2
    if "v_hat" in s:
        s["v_hat"] = v = np.maximum(s["v_hat"], v)
    alpha = lr * np.sqrt(1 - rule.beta_2**t) / (1 - rule.beta_1**t)
    return w - alpha * s["m"] / (np.sqrt(v) + rule.epsilon)


FORMULAS: dict[type, Formula] = {
    SGD: sgd,
    Momentum: momentum,
    KerasMomentum: keras_momentum,
    RMSProp: rmsprop,
    KerasRMSProp: rmsprop,
    AdagradV1: adagrad,
    AdagradV2: adagrad,
    KerasAdagrad: adagrad,
    Adam: adam,
    KerasAdam: adam,
    AdamW: adam,
}


def start(rule: Rule, size: int, seed: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    w = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    return w, [np.full(size, value, np.float32) for value in rule.slots.values()]


def gradient(step: int, size: int, seed: int = 100) -> np.ndarray:
    rng = np.random.default_rng([seed, step])
    return (rng.normal(size=size) * 10 ** rng.uniform(-2, 1, size=size)).astype(np.float32)


def test_every_rule_has_a_formula_and_is_tested() -> None:
    assert set(FORMULAS) == {type(rule) for rule in RULES} == set(BY_NAME.values())
    with pytest.raises(ValueError, match="no loop"):
        kernels.update_for(object())  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", RULES, ids=str)
@settings(max_examples=10, deadline=None)
@given(
    size=st.integers(1, 70), seed=st.integers(0, 2**31), rate=st.floats(1e-4, 1e-1), l2=st.sampled_from([0.0, 1e-2]),
    decoupled=st.sampled_from([0.0, 1e-2]),
)  # fmt: skip
def test_equals_the_formula(rule: Rule, size: int, seed: int, rate: float, l2: float, decoupled: float) -> None:
    """In float32 against float64: within 1e-4 of the largest parameter after 100 steps.

    That catches a wrong formula; the last bits are compared in `test_rules_against_tensorflow`.
    """
    w, slots = start(rule, size, seed)
    expected, expected_slots = w.astype(np.float64), {name: np.full(size, v) for name, v in rule.slots.items()}
    update = kernels.update_for(rule)
    for step in range(1, 101):
        g = gradient(step, size, seed)
        update(w, slots, g, rate, l2, decoupled, step)
        expected = expected - rate * decoupled * expected
        # AdamW's own decay comes before L2 as well, so both formulas see the parameter after the first decay only.
        seen = expected * (1 - rate * rule.weight_decay) if isinstance(rule, AdamW) else expected
        expected = FORMULAS[type(rule)](rule, expected, expected_slots, g + l2 * seen, rate, step)
    assert np.abs(w - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("rule", RULES, ids=str)
@settings(max_examples=20, deadline=None)
@given(data=st.data(), size=st.integers(1, 300), seed=st.integers(0, 2**31))
def test_pieces_give_the_same_bits_as_the_whole(rule: Rule, data: st.DataObject, size: int, seed: int) -> None:
    whole, slots = start(rule, size, seed)
    parts, part_slots = start(rule, size, seed)
    update = kernels.update_for(rule)
    for step in range(1, 6):
        g = gradient(step, size, seed)
        update(whole, slots, g, 1e-2, 1e-4, 1e-3, step)
        cuts = sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=4))})
        for a, b in itertools.pairwise(cuts):
            update(parts[a:b], [slot[a:b] for slot in part_slots], g[a:b], 1e-2, 1e-4, 1e-3, step)
    np.testing.assert_array_equal(whole, parts)
    for a_slot, b_slot in zip(slots, part_slots, strict=True):
        np.testing.assert_array_equal(a_slot, b_slot)


@pytest.mark.parametrize("rule", [rule for rule in RULES if not isinstance(rule, AdamW)], ids=str)
def test_both_weight_decays_are_what_they_say_to_the_bit(rule: Rule) -> None:
    rate, l2, decoupled = np.float32(1e-2), np.float32(0.25), np.float32(0.125)
    w, slots = start(rule, 100)
    by_hand, hand_slots = start(rule, 100)
    update = kernels.update_for(rule)
    for step in range(1, 6):
        g = gradient(step, 100)
        update(w, slots, g, float(rate), float(l2), float(decoupled), step)
        by_hand -= by_hand * decoupled * rate
        update(by_hand, hand_slots, g + l2 * by_hand, float(rate), 0.0, 0.0, step)
    np.testing.assert_array_equal(w, by_hand)


def test_adamw_is_keras_adam_with_decoupled_decay() -> None:
    w, slots = start(AdamW(), 50)
    other, other_slots = start(KerasAdam(), 50)
    for step in range(1, 20):
        kernels.update_for(AdamW(weight_decay=0.02))(w, slots, gradient(step, 50), 1e-2, 0.0, 0.0, step)
        kernels.update_for(KerasAdam())(other, other_slots, gradient(step, 50), 1e-2, 0.0, 0.02, step)
    np.testing.assert_array_equal(w, other)


def test_slots_depend_on_flags() -> None:
    assert list(SGD().slots) == list(Momentum(0.0).slots) == list(KerasMomentum(0.0).slots) == []
    assert RMSProp(centered=True).slots == {"ms": 1.0, "mg": 0.0, "mom": 0.0}
    assert KerasRMSProp().slots == {"ms": 0.0}
    assert AdagradV1(0.5).slots == {"accumulator": 0.5}
    assert list(KerasAdam(amsgrad=True).slots) == ["m", "v", "v_hat"]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_rule_travels_with_flags_and_numbers(rule: Rule) -> None:
    back = from_message(BY_NAME, to_message(rule))
    assert back == rule
    assert [type(v) for v in vars(back).values()] == [type(v) for v in vars(rule).values()]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Momentum(1.5), r"rule Momentum: momentum is 1.5; give a number from 0 up to, not including, 1"),
        (lambda: KerasMomentum(-0.1), "momentum is -0.1"),
        (lambda: RMSProp(rho=1.0), "RMSProp: rho is 1.0"),
        (lambda: KerasRMSProp(epsilon=0.0), "epsilon is 0.0; give a number above 0"),
        (lambda: AdagradV1(0.0), "initial_accumulator is 0.0; give a number above 0"),
        (lambda: Adam(beta_2=float("nan")), "beta_2 is nan"),
        (lambda: AdamW(weight_decay=-1.0), "weight_decay is -1.0; give 0 or a number above it"),
        (lambda: Momentum("0.9"), "momentum is '0.9'; give a number"),  # type: ignore[arg-type]
        (lambda: Momentum(nesterov=1), "nesterov is 1; give True or False"),
    ],
)
def test_refusals(make: Callable[[], Rule], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_messages_that_name_no_rule_are_refused() -> None:
    message = to_message(Momentum())
    message.parameters["momentum"].values.append(0.5)
    with pytest.raises(ValueError, match="momentum has 2 values; give one"):
        from_message(BY_NAME, message)
    message = to_message(SGD())
    message.parameters["warp"].values.append(9)
    with pytest.raises(ValueError, match="SGD has no warp; it has nothing"):
        from_message(BY_NAME, message)


def test_messages_that_lack_a_value_are_refused() -> None:
    message = to_message(StaircaseExponential(0.1, 0.5, 3))
    del message.parameters["every"]
    with pytest.raises(ValueError, match="StaircaseExponential lacks every; it needs learning_rate, factor, every"):
        from_message(schedules.BY_NAME, message)
    message = to_message(StaircaseExponential(0.1, 0.5, 3))
    message.parameters["every"].values[:] = [math.inf]
    with pytest.raises(ValueError, match="every is inf; give a whole number"):
        from_message(schedules.BY_NAME, message)
