"""The shard's arithmetic: one fused, compiled loop for each update rule, and the wire conversions.

Every kernel runs without the GIL, over contiguous float32 vectors of one length n, in place, and element by
element, so that updating a vector in pieces gives the same bits as updating it at once. All scalars are float32.
`error_model="numpy"` lets the division vectorise (6 times faster); `fastmath` would change results and believes
that nothing is ever NaN, so it stays off.

Compiled code is cached beside this file; `python -m downpour.ps.kernels` fills the cache, so that many shards
that start at once do not all compile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types

from downpour.ps.rules import SGD, KerasRMSProp, Momentum, RMSProp, Rule

Update = Callable[[np.ndarray, list[np.ndarray], np.ndarray, float, float], None]

_V, _S = types.float32[::1], types.float32  # a vector, a scalar
_BITS16, _BITS32 = types.uint16[::1], types.uint32[::1]
# A payload is a view of an immutable message and begins at any byte.
_PAYLOAD16 = types.Array(types.uint16, 1, "C", readonly=True, aligned=False)


def _kernel(*arguments: types.Type, returns: types.Type = types.void) -> Callable[[Callable[..., Any]], Any]:
    """Compiles for these argument types when the module is imported, or loads the cache."""
    compiler: Callable[..., Any] = njit(returns(*arguments), cache=True, nogil=True, error_model="numpy")
    return compiler


@_kernel(_V, _V, _S, _S)
def _sgd(w, g, lr, decay):  # type: ignore[no-untyped-def]
    for i in range(w.size):
        w[i] -= lr * (g[i] + decay * w[i])


@_kernel(_V, _V, _V, _S, _S, _S)
def _momentum(w, m, g, lr, decay, momentum):  # type: ignore[no-untyped-def]
    for i in range(w.size):
        m[i] = momentum * m[i] + (g[i] + decay * w[i])
        w[i] -= lr * m[i]


@_kernel(_V, _V, _V, _V, _S, _S, _S, _S, _S)
def _rmsprop(w, ms, mom, g, lr, decay, one_minus_rho, momentum, epsilon):  # type: ignore[no-untyped-def]
    for i in range(w.size):
        gradient = g[i] + decay * w[i]
        ms[i] += (gradient * gradient - ms[i]) * one_minus_rho
        mom[i] = momentum * mom[i] + lr * gradient / np.sqrt(ms[i] + epsilon)
        w[i] -= mom[i]


@_kernel(_V, _V, _V, _V, _S, _S, _S, _S, _S, _S)
def _keras_rmsprop(w, ms, mom, g, lr, decay, rho, one_minus_rho, momentum, epsilon):  # type: ignore[no-untyped-def]
    for i in range(w.size):
        gradient = g[i] + decay * w[i]
        ms[i] = rho * ms[i] + one_minus_rho * (gradient * gradient)
        mom[i] = momentum * mom[i] + lr * gradient / np.sqrt(ms[i] + epsilon)
        w[i] -= mom[i]


@_kernel(_V, _V)
def add(w, difference):  # type: ignore[no-untyped-def]
    """W += difference: statistics."""
    for i in range(w.size):
        w[i] += difference[i]


@_kernel(_PAYLOAD16, _BITS32)
def _widen(source, target):  # type: ignore[no-untyped-def]
    for i in range(source.size):
        target[i] = np.uint32(source[i]) << np.uint32(16)


@_kernel(_BITS32, _BITS16)
def _narrow(source, target):  # type: ignore[no-untyped-def]
    for i in range(source.size):
        bits = source[i]
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        target[i] = np.uint16(0x7FC0) if is_nan else np.uint16(rounded)


@_kernel(_BITS32, returns=types.uint64)
def _count_non_finite(bits):  # type: ignore[no-untyped-def]
    # Integers, because a float test costs a branch an element; the exponent of NaN and infinity is all ones.
    count = np.uint64(0)
    for i in range(bits.size):
        count += np.uint64((bits[i] & np.uint32(0x7F800000)) == np.uint32(0x7F800000))
    return count


def widen(source: np.ndarray, target: np.ndarray) -> None:
    """Bfloat16 bits, [n] uint16, to [n] float32; exact."""
    _widen(source, target.view(np.uint32))


def narrow(source: np.ndarray, target: np.ndarray) -> None:
    """[n] float32 to bfloat16 bits, [n] uint16, rounded to nearest even; any NaN becomes the quiet one."""
    _narrow(source.view(np.uint32), target)


def num_non_finite(values: np.ndarray) -> int:
    """How many of [n] float32 are NaN or infinite."""
    return int(_count_non_finite(values.view(np.uint32)))


def update_for(rule: Rule) -> Update:
    """The kernel of a rule with its hyper-parameters bound.

    Returns:
        `update(w, slots, g, learning_rate, weight_decay)`: in place; `slots` in the order of `rule.slots`.

    Raises:
        ValueError: No kernel is known for the rule.
    """
    f = np.float32
    match rule:
        case SGD():
            return lambda w, slots, g, lr, decay: _sgd(w, g, f(lr), f(decay))
        case Momentum(momentum):
            return lambda w, slots, g, lr, decay: _momentum(w, *slots, g, f(lr), f(decay), f(momentum))
        case RMSProp(rho, momentum, epsilon):
            # TensorFlow subtracts in float32, Keras in float64: the last bit of 1 - rho differs.
            tf_scalars = f(1) - f(rho), f(momentum), f(epsilon)
            return lambda w, slots, g, lr, decay: _rmsprop(w, *slots, g, f(lr), f(decay), *tf_scalars)
        case KerasRMSProp(rho, momentum, epsilon):
            scalars = f(rho), f(1 - rho), f(momentum), f(epsilon)
            return lambda w, slots, g, lr, decay: _keras_rmsprop(w, *slots, g, f(lr), f(decay), *scalars)
    raise ValueError(f"no kernel for the rule {rule!r}")


if __name__ == "__main__":
    print(f"kernels compiled or loaded; process time {time.process_time():.1f} s")
