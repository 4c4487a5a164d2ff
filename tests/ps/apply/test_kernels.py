"""The wire conversions, and what a shard compiles or loads when it starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from downpour.proto import codec
from downpour.proto.numerics import convert
from downpour.ps.apply import kernels
from downpour.ps.apply.loops import LOGGED_ELEMENTS
from downpour.ps.policy.named import to_message
from downpour.ps.policy.rules import KerasAdam, Rule


@settings(max_examples=300, deadline=None)
@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64), shift=st.integers(0, 3))
def test_bfloat16_is_rounded_as_ml_dtypes_does(bits: list[int], shift: int) -> None:
    values = np.array(bits, np.uint32).view(np.float32)
    narrowed = np.empty(values.size, np.uint16)
    convert.narrow(values, narrowed)
    expected = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    nan = np.isnan(values)
    np.testing.assert_array_equal(narrowed[~nan], expected[~nan])
    assert np.isnan(narrowed.view(ml_dtypes.bfloat16)[nan].astype(np.float32)).all()
    unaligned = np.frombuffer(bytes(shift) + narrowed.tobytes(), "<u2", offset=shift)
    wide = np.empty(values.size, np.float32)
    convert.widen(unaligned, wide)
    np.testing.assert_array_equal(wide, narrowed.view(ml_dtypes.bfloat16).astype(np.float32))


def test_non_finite_numbers_are_counted() -> None:
    values = np.ones(100, np.float32)
    assert convert.num_non_finite(values) == 0
    values[[3, 50, 99]] = [np.nan, np.inf, -np.inf]
    assert convert.num_non_finite(values) == 3


COMPILED = """
import json, pathlib, sys
from downpour.ps.apply import kernels, loops
from downpour.ps.policy.rules import KerasAdam
kernels.update_for(KerasAdam())
names = [name for name, loop in vars(loops).items() if hasattr(loop, "cache_info") and loop.cache_info().currsize]
print(json.dumps(names))
"""


@pytest.mark.parametrize("rule", kernels._all_rules(), ids=repr)
@pytest.mark.parametrize("shift", [0, 1])
def test_gradients_in_bfloat16_give_the_bits_of_widened_ones(rule: Rule, shift: int) -> None:
    rng = np.random.default_rng(3)
    narrow, wide = np.empty(1003, np.uint16), np.empty(1003, np.float32)
    convert.narrow(rng.standard_normal(1003).astype(np.float32), narrow)
    convert.widen(narrow, wide)
    unaligned = np.frombuffer(bytes(shift) + narrow.tobytes(), "<u2", offset=shift)
    update, results = kernels.update_for(rule), []
    start = rng.standard_normal(1003).astype(np.float32)
    for g in (wide, unaligned):
        w, slots = start.copy(), [np.full(1003, value, np.float32) for value in rule.slots.values()]
        for step in (1, 2):
            update(w, slots, g, 0.1, 1e-3, 1e-4, step)
        results.append([w, *slots])
    np.testing.assert_array_equal(*results)
    assert not np.array_equal(results[0][0], start)


@pytest.mark.parametrize("rule", kernels._all_rules(), ids=repr)
@pytest.mark.parametrize("wire", [np.float32, np.uint16])
def test_logged_updates_have_the_bits_of_the_others_and_save_the_last_run(rule: Rule, wire: type) -> None:
    size, first = 2 * LOGGED_ELEMENTS + 7, 1000
    rng = np.random.default_rng(4)
    gradients = [rng.standard_normal(size).astype(np.float32) for _ in range(3)]
    if wire is np.uint16:
        wide, gradients = gradients, [np.empty(size, np.uint16) for _ in gradients]
        for values, narrow in zip(wide, gradients, strict=True):
            convert.narrow(values, narrow)
    rates, steps, decays = (0.1, 0.05, 0.2), (1, 1, 2), (1e-3, 1e-4)
    w = rng.standard_normal(size).astype(np.float32)
    slots = [np.full(size, value, np.float32) for value in rule.slots.values()]
    expected, update = [w.copy(), *(slot.copy() for slot in slots)], kernels.update_for(rule)
    for gradient, rate, step in zip(gradients, rates, steps, strict=True):
        update(expected[0], expected[1:], gradient, rate, *decays, step)
    before = [vector[-7:].copy() for vector in (w, *slots)]

    saved, progress = np.zeros(4 * LOGGED_ELEMENTS, np.float32), np.array([0, 0, first], np.uint64)
    kernels.logged_update_for(rule)((w, *slots), gradients, rates, steps, decays, (saved, progress), first)
    for mine, theirs in zip((w, *slots), expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert progress.tolist() == [first + size - 7, first + size, first + size]
    np.testing.assert_array_equal(saved[: 7 * len(before)].reshape(-1, 7), before)


def test_statistics_may_come_in_any_wire_dtype() -> None:
    differences = np.arange(9, dtype=np.float32)
    for wire, dtype in codec.WIRE_DTYPES.items():
        w, narrow = np.ones(9, np.float32), np.empty(9, dtype)
        convert.to_wire(differences, narrow)
        kernels.add(w, narrow)
        np.testing.assert_array_equal(w, 1 + differences, err_msg=str(wire))


def test_a_shard_compiles_or_loads_only_the_loop_of_its_rule() -> None:
    out = subprocess.run([sys.executable, "-c", COMPILED], check=True, capture_output=True, text=True).stdout
    assert json.loads(out) == ["adam"]


@pytest.mark.parametrize("is_one", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_cache_is_filled_by_a_command_for_one_rule_or_all(is_one: bool) -> None:
    rule = json_format.MessageToJson(to_message(KerasAdam(amsgrad=True)))
    command = [sys.executable, "-m", "downpour.ps.apply.kernels", *([f"--rule={rule}"] if is_one else [])]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert out.startswith("kernels compiled or loaded")
    cache = Path(kernels.__file__).parent / "__pycache__"
    assert list(cache.glob("loops.amsgrad-*.nbc"))


@pytest.mark.parametrize("wire", list(codec.WIRE_DTYPES))
def test_every_wire_dtype_there_and_back(wire: int) -> None:
    values = np.array([0, 1, -1.5, 1e-3, 3e4, np.inf, -np.inf, np.nan], np.float32)
    there, back = np.empty(values.size, codec.WIRE_DTYPES[wire]), np.empty(values.size, np.float32)
    convert.to_wire(values, there)
    convert.to_float32(there, back)
    np.testing.assert_allclose(back, values, rtol=2.0**-8)
    assert convert.num_non_finite(there) == 3
    assert convert.num_non_finite(np.frombuffer(b"\0" + there.tobytes(), there.dtype, offset=1)) == 3


def test_what_float16_cannot_hold_is_infinite() -> None:
    out = np.empty(1, np.float16)
    convert.to_wire(np.array([1e6], np.float32), out)
    assert convert.num_non_finite(out) == 1


@settings(max_examples=200, deadline=None)
@given(exponent=st.floats(-45, 38), levels=st.sampled_from([7, 127]), seed=st.integers(0, 9))
def test_blocks_of_any_size_of_numbers_are_rounded_and_what_is_left_stays_finite(
    exponent: float, levels: int, seed: int
) -> None:
    """Of a gradient that stays zero the rounding errors shrink by two hundred a push, down to denormal numbers."""
    x = np.random.default_rng(seed).uniform(-1, 1, 300).astype(np.float32) * np.float32(10.0**exponent)
    left, scales, q = x.copy(), np.empty(2, np.float32), np.empty(x.size, np.int8)
    convert.quantize(left, scales, q, levels)
    sent = q.astype(np.float32) * np.repeat(scales, codec.BLOCK)[: x.size]
    assert np.isfinite(left).all() and np.isfinite(scales).all() and np.abs(q).max() <= levels
    np.testing.assert_allclose(sent + left, x, rtol=1e-6, atol=1e-44)
    largest = np.abs(x).max()
    assert np.abs(left).max() <= max(0.501 / levels * largest, 1e-36)
