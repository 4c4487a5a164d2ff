"""The compiled loops: one fused loop for each update rule, averages, and the wire conversions.

Every loop runs without the GIL, over contiguous float32 vectors of one length n, in place, and element by element,
so that updating a vector in pieces gives the same bits as updating it at once. All scalars are float32.
`error_model="numpy"` lets the division vectorise (6 times faster); `fastmath` would change results and believes
that nothing is ever NaN, so it stays off.

A name of this module is a function without arguments that gives the compiled loop: compiled for its declared types,
or loaded from the cache beside this file, when it is first asked for, so that a shard pays for its own rule only.

Symbols of the update loops: w parameter, g gradient, lr rate, l2 and decoupled the two weight decays, x the
parameter after decoupled decay, d the gradient with l2. The order of operations is that of the reference which
`downpour.ps.policy.rules` names.
"""

# ruff: noqa: D103 - what a loop does is said by its rule

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload, register_jitable
from numba.np.unsafe.ndarray import to_fixed_tuple

from downpour.ps.apply.compiled import Loop, declared, declared_for
from downpour.ps.apply.pointers import cut, keep_order, vector_at

_V, _S = types.float32[::1], types.float32  # a vector, a scalar
_BITS16, _BITS32, _BYTES = types.uint16[::1], types.uint32[::1], types.int8[::1]
# A payload is a view of an immutable message and begins at any byte.
_PAYLOAD16 = types.Array(types.uint16, 1, "C", readonly=True, aligned=False)
_PAYLOAD32 = types.Array(types.uint32, 1, "C", readonly=True, aligned=False)
_PAYLOAD_SCALES = types.Array(types.float32, 1, "C", readonly=True, aligned=False)
_PAYLOAD8 = types.Array(types.int8, 1, "C", readonly=True, aligned=False)


_ADDRESSES, _TABLE = types.intp[::1], types.float32[:, ::1]

# Elements that a logged update saves at a time. With three vectors, what was saved of them and two gradients they take
# 16 KB, half of a first-level cache of 32 KB. Of 256 to 4,096 elements 384 and 512 were fastest, 1,024 far slower.
LOGGED_ELEMENTS = 512

_logged: dict[Callable[[], Loop], Callable[[], Loop]] = {}  # by the loop that does not log


def _update(num_slots: int, num_scalars: int) -> Callable[[Loop], Callable[[], Loop]]:
    """Declares an update loop: (w, slots..., g, lr, l2, decoupled, scalars...), g in float32 or as bfloat16's bits."""
    before, after = [_V] * (num_slots + 1), [_S] * (num_scalars + 3)

    def declare(function: Loop) -> Callable[[], Loop]:
        compiled = declared_for([types.void(*before, g, *after) for g in (_V, _PAYLOAD16)])(function)
        _logged[compiled] = _declare_logged(function, num_slots, num_scalars)
        return compiled

    return declare


def logged(update: Callable[[], Loop]) -> Callable[[], Loop]:
    """Of an update loop the one that saves what it changes, see `downpour.ps.memory.undo`.

    It takes (vectors, gradients, like, table, saved, progress, first): w and slots as a tuple; the addresses of some
    gradients of one type, of which `like` is one; [gradients, 3 + scalars] float32, of each its lr, l2, decoupled and
    scalars; room for LOGGED_ELEMENTS of each vector; the record's three words; the number of the first element.
    """
    return _logged[update]


def _declare_logged(function: Loop, num_slots: int, num_scalars: int) -> Callable[[], Loop]:
    update, num_columns = register_jitable(function), 3 + num_scalars

    def logged(vectors, gradients, like, table, saved, progress, first):  # type: ignore[no-untyped-def]
        for begin in range(0, like.size, LOGGED_ELEMENTS):
            end = min(begin + LOGGED_ELEMENTS, like.size)
            size, parts = end - begin, cut(vectors, begin, end)
            for v in range(len(parts)):
                part, room = parts[v], saved[v * size : (v + 1) * size]
                for i in range(size):
                    room[i] = part[i]
            progress[1] = first + end
            keep_order()
            progress[0] = first + begin
            keep_order()
            for k in range(gradients.size):
                g = vector_at(gradients[k], like)[begin:end]
                update(*parts, g, *to_fixed_tuple(table[k], num_columns))
            keep_order()
            progress[2] = first + end
            keep_order()

    vectors = types.UniTuple(_V, 1 + num_slots)
    signatures = [
        types.void(vectors, _ADDRESSES, g, _TABLE, _V, types.uint64[::1], types.intp) for g in (_V, _PAYLOAD16)
    ]
    return declared_for(signatures)(logged)


def number(g: Any) -> Any:
    """A gradient's element as float32, within an update loop."""
    raise NotImplementedError("compiled only")


@overload(number, inline="always")
def _number(g):  # type: ignore[no-untyped-def]
    if g == types.float32:
        return lambda g: g
    return lambda g: np.uint32(np.uint32(g) << np.uint32(16)).view(np.float32)


@_update(0, 0)
def sgd(w, g, lr, l2, decoupled):  # type: ignore[no-untyped-def]
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        w[i] = x - lr * (number(g[i]) + l2 * x)


@_update(1, 1)
def momentum(w, m, g, lr, l2, decoupled, beta):  # type: ignore[no-untyped-def]
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        m[i] = beta * m[i] + (number(g[i]) + l2 * x)
        w[i] = x - lr * m[i]


@_update(1, 1)
def nesterov(w, m, g, lr, l2, decoupled, beta):  # type: ignore[no-untyped-def]
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        d = number(g[i]) + l2 * x
        m[i] = beta * m[i] + d
        w[i] = x - (d * lr + m[i] * beta * lr)


@_update(1, 1)
def keras_momentum(w, m, g, lr, l2, decoupled, beta):  # type: ignore[no-untyped-def]
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        m[i] = m[i] * beta - (number(g[i]) + l2 * x) * lr
        w[i] = x + m[i]


@_update(1, 1)
def keras_nesterov(w, m, g, lr, l2, decoupled, beta):  # type: ignore[no-untyped-def]
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        step = (number(g[i]) + l2 * x) * lr
        m[i] = m[i] * beta - step
        w[i] = x + (m[i] * beta - step)


@_update(1, 2)
def rmsprop(w, ms, g, lr, l2, decoupled, one_minus_rho, epsilon):  # type: ignore[no-untyped-def]
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        d = number(g[i]) + l2 * x
        ms[i] += (d * d - ms[i]) * one_minus_rho
        w[i] = x - lr * d / np.sqrt(ms[i] + epsilon)


@_update(2, 3)
def rmsprop_momentum(w, ms, mom, g, lr, l2, decoupled, one_minus_rho, epsilon, beta):  # type: ignore[no-untyped-def]
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        d = number(g[i]) + l2 * x
        ms[i] += (d * d - ms[i]) * one_minus_rho
        mom[i] = beta * mom[i] + lr * d / np.sqrt(ms[i] + epsilon)
        w[i] = x - mom[i]


@_update(2, 2)
def rmsprop_centered(w, ms, mg, g, lr, l2, decoupled, one_minus_rho, epsilon):  # type: ignore[no-untyped-def]
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        d = number(g[i]) + l2 * x
        ms[i] += (d * d - ms[i]) * one_minus_rho
        mg[i] += (d - mg[i]) * one_minus_rho
        w[i] = x - lr * d / np.sqrt(ms[i] - mg[i] * mg[i] + epsilon)


@_update(3, 3)
def rmsprop_centered_momentum(  # type: ignore[no-untyped-def]
    w, ms, mg, mom, g, lr, l2, decoupled, one_minus_rho, epsilon, beta
):
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        d = number(g[i]) + l2 * x
        ms[i] += (d * d - ms[i]) * one_minus_rho
        mg[i] += (d - mg[i]) * one_minus_rho
        mom[i] = beta * mom[i] + lr * d / np.sqrt(ms[i] - mg[i] * mg[i] + epsilon)
        w[i] = x - mom[i]


@_update(1, 3)
def keras_rmsprop(w, ms, g, lr, l2, decoupled, rho, one_minus_rho, epsilon):  # type: ignore[no-untyped-def]
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        d = number(g[i]) + l2 * x
        ms[i] = rho * ms[i] + one_minus_rho * (d * d)
        w[i] = x - lr * d / np.sqrt(ms[i] + epsilon)


@_update(2, 4)
def keras_rmsprop_momentum(  # type: ignore[no-untyped-def]
    w, ms, mom, g, lr, l2, decoupled, rho, one_minus_rho, epsilon, beta
):
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        d = number(g[i]) + l2 * x
        ms[i] = rho * ms[i] + one_minus_rho * (d * d)
        mom[i] = beta * mom[i] + lr * d / np.sqrt(ms[i] + epsilon)
        w[i] = x - mom[i]


@_update(2, 3)
def keras_rmsprop_centered(w, ms, mg, g, lr, l2, decoupled, rho, one_minus_rho, epsilon):  # type: ignore[no-untyped-def]
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        d = number(g[i]) + l2 * x
        ms[i] = rho * ms[i] + one_minus_rho * (d * d)
        mg[i] = rho * mg[i] + one_minus_rho * d
        w[i] = x - lr * d / np.sqrt(ms[i] - mg[i] * mg[i] + epsilon)


@_update(3, 4)
def keras_rmsprop_centered_momentum(  # type: ignore[no-untyped-def]
    w, ms, mg, mom, g, lr, l2, decoupled, rho, one_minus_rho, epsilon, beta
):
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        d = number(g[i]) + l2 * x
        ms[i] = rho * ms[i] + one_minus_rho * (d * d)
        mg[i] = rho * mg[i] + one_minus_rho * d
        mom[i] = beta * mom[i] + lr * d / np.sqrt(ms[i] - mg[i] * mg[i] + epsilon)
        w[i] = x - mom[i]


@_update(1, 0)
def adagrad_v1(w, a, g, lr, l2, decoupled):  # type: ignore[no-untyped-def]
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        d = number(g[i]) + l2 * x
        a[i] += d * d
        w[i] = x - d * lr * (np.float32(1) / np.sqrt(a[i]))


@_update(1, 1)
def adagrad_v2(w, a, g, lr, l2, decoupled, epsilon):  # type: ignore[no-untyped-def]
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        d = number(g[i]) + l2 * x
        a[i] += d * d
        w[i] = x - d * lr / (np.sqrt(a[i]) + epsilon)


@_update(1, 1)
def keras_adagrad(w, a, g, lr, l2, decoupled, epsilon):  # type: ignore[no-untyped-def]
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        d = number(g[i]) + l2 * x
        a[i] += d * d
        w[i] = x - lr * d / np.sqrt(a[i] + epsilon)


@_update(2, 4)
def adam(w, m, v, g, lr, l2, decoupled, alpha, one_minus_beta_1, one_minus_beta_2, epsilon):  # type: ignore[no-untyped-def]
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        d = number(g[i]) + l2 * x
        m[i] += (d - m[i]) * one_minus_beta_1
        v[i] += (d * d - v[i]) * one_minus_beta_2
        w[i] = x - m[i] * alpha / (np.sqrt(v[i]) + epsilon)


@_update(3, 4)
def amsgrad(  # type: ignore[no-untyped-def]
    w, m, v, v_hat, g, lr, l2, decoupled, alpha, one_minus_beta_1, one_minus_beta_2, epsilon
):
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        d = number(g[i]) + l2 * x
        m[i] += (d - m[i]) * one_minus_beta_1
        v[i] += (d * d - v[i]) * one_minus_beta_2
        v_hat[i] = max(v_hat[i], v[i])
        w[i] = x - m[i] * alpha / (np.sqrt(v_hat[i]) + epsilon)


@declared(_V, _V)
def add(w, difference):  # type: ignore[no-untyped-def]
    for i in range(w.size):
        w[i] += difference[i]


@declared(_V, _V, _V, _S)
def compensate(g, w, base, strength):  # type: ignore[no-untyped-def]
    for i in range(g.size):
        g[i] += strength * g[i] * g[i] * (w[i] - base[i])


@declared(_V, _V, _S)
def average(a, w, weight):  # type: ignore[no-untyped-def]
    for i in range(a.size):
        a[i] += (w[i] - a[i]) * weight


@declared(_PAYLOAD16, _BITS32)
def widen(source, target):  # type: ignore[no-untyped-def]
    for i in range(source.size):
        target[i] = np.uint32(source[i]) << np.uint32(16)


@declared(_BITS32, _BITS16)
def narrow(source, target):  # type: ignore[no-untyped-def]
    for i in range(source.size):
        bits = source[i]
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        target[i] = np.uint16(0x7FC0) if is_nan else np.uint16(rounded)


@declared(_V, _BITS32, _V, _BITS32, _BYTES, types.intp, _S)
def quantize(x, bits, scales, scale_bits, q, block, levels):  # type: ignore[no-untyped-def]
    for b in range(scales.size):
        # A slice each: indices that start at 0 are known not to be negative, so the loops vectorise.
        block_bits, block_x = bits[b * block : (b + 1) * block], x[b * block : (b + 1) * block]
        block_q = q[b * block : (b + 1) * block]
        # As integers, since numbers of one sign compare like their bits: a float maximum would not vectorise.
        largest_bits = np.uint32(0)
        for i in range(block_bits.size):
            largest_bits = max(largest_bits, block_bits[i] & np.uint32(0x7FFFFFFF))
        scale_bits[b] = largest_bits
        largest = scales[b]  # the same memory
        # Below this the inverse would overflow, and zeros become NaN: such a block stays as it is, and 0 is sent.
        scale = largest / levels if largest > np.float32(1e-36) else np.float32(0)
        inverse = levels / largest if largest > np.float32(1e-36) else np.float32(0)
        scales[b] = scale
        for i in range(block_x.size):
            rounded = np.rint(block_x[i] * inverse)
            block_q[i] = np.int8(rounded)
            block_x[i] -= rounded * scale


@declared(_BYTES, _BYTES, types.intp)
def pack4(q, packed, block):  # type: ignore[no-untyped-def]
    half = block // 2
    for b in range(packed.size // half):
        lower, upper = q[b * block : b * block + half], q[b * block + half : (b + 1) * block]
        block_packed = packed[b * half : (b + 1) * half]
        for i in range(half):
            block_packed[i] = (lower[i] + np.int8(8)) | ((upper[i] + np.int8(8)) << np.int8(4))


@declared(_PAYLOAD_SCALES, _PAYLOAD8, types.intp, types.intp, _V)
def dequantize(scales, q, first, block, out):  # type: ignore[no-untyped-def]
    done = 0
    while done < out.size:
        b = (first + done) // block
        stop = min((b + 1) * block - first, out.size)
        block_q, block_out, scale = q[first + done : first + stop], out[done:stop], scales[b]
        for i in range(block_out.size):
            block_out[i] = np.float32(block_q[i]) * scale
        done = stop


@declared(_V, _PAYLOAD16, _BITS32, _V)
def difference(w, published, bits, out):  # type: ignore[no-untyped-def]
    # `bits` is the memory of `out`.
    for i in range(out.size):
        bits[i] = np.uint32(published[i]) << np.uint32(16)
    for i in range(out.size):
        out[i] = w[i] - out[i]


@declared(_PAYLOAD16, _PAYLOAD_SCALES, _PAYLOAD8, types.boolean, types.intp, _BYTES, _V, _BITS32, _BITS16)
def advance(published, scales, payload, is_int4, block, q, wide, bits, out):  # type: ignore[no-untyped-def]
    # `q`, and `wide` with its memory `bits`, are room for a block. Two roundings to nearest, one of the sum and one to
    # bfloat16, so that every machine gets the same bits.
    half = block // 2
    upper = q[half:block]
    for b in range(scales.size):
        block_published, block_out = published[b * block : (b + 1) * block], out[b * block : (b + 1) * block]
        scale = scales[b]
        if is_int4:
            packed = payload[b * half : (b + 1) * half]
            for i in range(half):
                q[i] = (packed[i] & np.int8(15)) - np.int8(8)
            for i in range(half):
                upper[i] = ((packed[i] >> np.int8(4)) & np.int8(15)) - np.int8(8)
        else:
            block_q = payload[b * block : (b + 1) * block]
            for i in range(block_q.size):
                q[i] = block_q[i]
        for i in range(block_out.size):
            bits[i] = np.uint32(block_published[i]) << np.uint32(16)
        for i in range(block_out.size):
            wide[i] += np.float32(q[i]) * scale
        for i in range(block_out.size):
            x = bits[i]
            block_out[i] = np.uint16((x + np.uint32(0x7FFF) + ((x >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@declared(_PAYLOAD32, returns=types.uint64)
def count_non_finite(bits):  # type: ignore[no-untyped-def]
    # Integers, because a float test costs a branch an element; the exponent of NaN and infinity is all ones.
    count = np.uint64(0)
    for i in range(bits.size):
        count += np.uint64((bits[i] & np.uint32(0x7F800000)) == np.uint32(0x7F800000))
    return count


@declared(_PAYLOAD16, types.uint16, returns=types.uint64)
def count_non_finite_16(bits, exponent):  # type: ignore[no-untyped-def]
    count = np.uint64(0)
    for i in range(bits.size):
        count += np.uint64((bits[i] & exponent) == exponent)
    return count
