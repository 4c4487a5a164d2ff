"""Each kernel against TensorFlow's own op (or Keras 3's optimizer) and the formula in numpy."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downpour.ps import kernels
from downpour.ps.rules import BY_NAME, SGD, KerasRMSProp, Momentum, RMSProp, Rule

N = 1003  # not a multiple of any vector width
RULES: list[Rule] = [SGD(), Momentum(), RMSProp(), KerasRMSProp(momentum=0.9), KerasRMSProp()]


def start(rule: Rule, seed: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    w = np.random.default_rng(seed).normal(size=N).astype(np.float32)
    return w, [np.full(N, value, np.float32) for value in rule.slots.values()]


def gradient(step: int) -> np.ndarray:
    rng = np.random.default_rng(100 + step)
    return (rng.normal(size=N) * 10 ** rng.uniform(-4, 1, size=N)).astype(np.float32)


def tensorflow_steps(rule: Rule, num_steps: int, rate: float) -> np.ndarray:
    import keras
    import tensorflow as tf

    w, slots = start(rule)
    if isinstance(rule, KerasRMSProp):
        variable = keras.Variable(w)
        optimizer = keras.optimizers.RMSprop(rate, rule.rho, rule.momentum, rule.epsilon)
        for i in range(num_steps):
            optimizer.apply([tf.constant(gradient(i))], [variable])
        return variable.numpy()
    var, extra = tf.Variable(w), [tf.Variable(slot) for slot in slots]
    for i in range(num_steps):
        g: Any = gradient(i)
        if isinstance(rule, SGD):
            tf.raw_ops.ResourceApplyGradientDescent(var=var.handle, alpha=rate, delta=g)
        elif isinstance(rule, Momentum):
            tf.raw_ops.ResourceApplyMomentum(
                var=var.handle, accum=extra[0].handle, lr=rate, grad=g, momentum=rule.momentum
            )
        elif isinstance(rule, RMSProp):
            tf.raw_ops.ResourceApplyRMSProp(
                var=var.handle, ms=extra[0].handle, mom=extra[1].handle, lr=rate, rho=rule.rho,
                momentum=rule.momentum, epsilon=rule.epsilon, grad=g,
            )  # fmt: skip
    return var.numpy()


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_equals_the_reference_within_one_in_a_million_over_100_steps(rule: Rule) -> None:
    w, slots = start(rule)
    update = kernels.update_for(rule)
    for i in range(100):
        update(w, slots, gradient(i), 1e-3, 0.0)
    reference = tensorflow_steps(rule, 100, 1e-3)
    np.testing.assert_allclose(w, reference, rtol=1e-6, atol=1e-6 * float(np.abs(reference).max()))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_pieces_give_the_same_bits_as_the_whole(rule: Rule) -> None:
    whole, slots = start(rule)
    parts, part_slots = start(rule)
    update = kernels.update_for(rule)
    for i in range(5):
        update(whole, slots, gradient(i), 1e-2, 1e-4)
        for a, b in ((0, 1), (1, 130), (130, 1000), (1000, N)):
            update(parts[a:b], [slot[a:b] for slot in part_slots], gradient(i)[a:b], 1e-2, 1e-4)
    np.testing.assert_array_equal(whole, parts)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_weight_decay_is_added_to_the_gradient(rule: Rule) -> None:
    decayed, decayed_slots = start(rule)
    added, added_slots = start(rule)
    update = kernels.update_for(rule)
    for i in range(5):
        update(decayed, decayed_slots, gradient(i), 1e-2, 0.25)
        update(added, added_slots, gradient(i) + np.float32(0.25) * added, 1e-2, 0.0)
    np.testing.assert_array_equal(decayed, added)


def test_every_rule_has_a_kernel() -> None:
    assert {type(rule) for rule in RULES} == set(BY_NAME.values())
    with pytest.raises(ValueError, match="no kernel"):
        kernels.update_for(object())  # type: ignore[arg-type]


@settings(max_examples=300)
@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64), shift=st.integers(0, 3))
def test_bfloat16_is_rounded_as_ml_dtypes_does(bits: list[int], shift: int) -> None:
    values = np.array(bits, np.uint32).view(np.float32)
    narrowed = np.empty(values.size, np.uint16)
    kernels.narrow(values, narrowed)
    expected = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    nan = np.isnan(values)
    np.testing.assert_array_equal(narrowed[~nan], expected[~nan])
    assert np.isnan(narrowed.view(ml_dtypes.bfloat16)[nan].astype(np.float32)).all()
    unaligned = np.frombuffer(bytes(shift) + narrowed.tobytes(), "<u2", offset=shift)
    wide = np.empty(values.size, np.float32)
    kernels.widen(unaligned, wide)
    np.testing.assert_array_equal(wide, narrowed.view(ml_dtypes.bfloat16).astype(np.float32))


def test_non_finite_numbers_are_counted() -> None:
    values = np.ones(100, np.float32)
    assert kernels.num_non_finite(values) == 0
    values[[3, 50, 99]] = [np.nan, np.inf, -np.inf]
    assert kernels.num_non_finite(values) == 3
