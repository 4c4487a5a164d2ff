"""The compiled loops of a shard: one fused loop for each update rule, statistics, compensation and averages.

Every loop runs without the GIL, over contiguous float32 vectors of one length n, in place, and element by element,
so that updating a vector in pieces gives the same bits as updating it in one pass. All scalars are float32.
`error_model="numpy"` lets the division vectorise (6 times faster); `fastmath` would change results and assumes that
nothing is NaN, so it stays off.

Each loop's name is a function without arguments that returns the compiled loop. Its first call compiles the loop for
its declared types, or loads it from the cache beside this file, so that a shard pays for its own rule only.

Symbols of the update loops: w parameter, g gradient, lr rate, l2 and decoupled the two weight decays, x the
parameter after decoupled decay, d the gradient with l2. The order of operations is that of the reference which
`downpour.ps.policy.rules` names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload, register_jitable
from numba.np.unsafe.ndarray import to_fixed_tuple

from downpour.compiled import Loop, declared, declared_for
from downpour.ps.apply.pointers import cut, keep_order, vector_at

_V, _S = types.float32[::1], types.float32  # a vector, a scalar
# A payload is a view of an immutable message and begins at any byte.
_PAYLOAD16 = types.Array(types.uint16, 1, "C", readonly=True, aligned=False)


_ADDRESSES, _TABLE = types.intp[::1], types.float32[:, ::1]

# Elements that a logged update saves at a time. Three vectors, their saved elements and two gradients take 16 KB, half
# of a first-level cache of 32 KB. Of 256 to 4,096 elements 384 and 512 were fastest, 1,024 far slower.
LOGGED_ELEMENTS = 512

_logged: dict[Callable[[], Loop], Callable[[], Loop]] = {}  # logged loops by plain loop


def _update(num_slots: int, num_scalars: int) -> Callable[[Loop], Callable[[], Loop]]:
    """Declares an update loop: (w, slots..., g, lr, l2, decoupled, scalars...), g in float32 or as bfloat16's bits."""
    before, after = [_V] * (num_slots + 1), [_S] * (num_scalars + 3)

    def declare(function: Loop) -> Callable[[], Loop]:
        compiled = declared_for([types.void(*before, g, *after) for g in (_V, _PAYLOAD16)])(function)
        _logged[compiled] = _declare_logged(function, num_slots, num_scalars)
        return compiled

    return declare


def logged(update: Callable[[], Loop]) -> Callable[[], Loop]:
    """The variant of an update loop that saves elements before it changes them; see `downpour.ps.memory.undo`.

    It takes (vectors, gradients, like, table, saved, progress, first): w and slots as a tuple; the addresses of some
    gradients of one type, one of which is `like`; [gradients, 3 + scalars] float32, each gradient's lr, l2, decoupled
    and scalars; room for LOGGED_ELEMENTS of each vector; the record's three words; the index of the first element.
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
    """A gradient's element as float32; for update loops only."""
    raise NotImplementedError("compiled only")


@overload(number, inline="always")
def _number(g):  # type: ignore[no-untyped-def]
    if g == types.float32:
        return lambda g: g
    return lambda g: np.uint32(np.uint32(g) << np.uint32(16)).view(np.float32)


@_update(0, 0)
def sgd(w, g, lr, l2, decoupled):  # type: ignore[no-untyped-def]
    """Plain SGD: w -= lr * d."""
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        w[i] = x - lr * (number(g[i]) + l2 * x)


@_update(1, 1)
def momentum(w, m, g, lr, l2, decoupled, beta):  # type: ignore[no-untyped-def]
    """TensorFlow's momentum: m = beta * m + d; w -= lr * m."""
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        m[i] = beta * m[i] + (number(g[i]) + l2 * x)
        w[i] = x - lr * m[i]


@_update(1, 1)
def nesterov(w, m, g, lr, l2, decoupled, beta):  # type: ignore[no-untyped-def]
    """TensorFlow's Nesterov momentum: the update uses the momentum of the next step."""
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        d = number(g[i]) + l2 * x
        m[i] = beta * m[i] + d
        w[i] = x - (d * lr + m[i] * beta * lr)


@_update(1, 1)
def keras_momentum(w, m, g, lr, l2, decoupled, beta):  # type: ignore[no-untyped-def]
    """Keras's momentum: m = beta * m - lr * d; w += m."""
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        m[i] = m[i] * beta - (number(g[i]) + l2 * x) * lr
        w[i] = x + m[i]


@_update(1, 1)
def keras_nesterov(w, m, g, lr, l2, decoupled, beta):  # type: ignore[no-untyped-def]
    """Keras's Nesterov momentum: the update uses the momentum of the next step."""
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        step = (number(g[i]) + l2 * x) * lr
        m[i] = m[i] * beta - step
        w[i] = x + (m[i] * beta - step)


@_update(1, 2)
def rmsprop(w, ms, g, lr, l2, decoupled, one_minus_rho, epsilon):  # type: ignore[no-untyped-def]
    """TensorFlow's RMSProp: ms is the moving mean of d * d."""
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        d = number(g[i]) + l2 * x
        ms[i] += (d * d - ms[i]) * one_minus_rho
        w[i] = x - lr * d / np.sqrt(ms[i] + epsilon)


@_update(2, 3)
def rmsprop_momentum(w, ms, mom, g, lr, l2, decoupled, one_minus_rho, epsilon, beta):  # type: ignore[no-untyped-def]
    """`rmsprop` with momentum."""
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        d = number(g[i]) + l2 * x
        ms[i] += (d * d - ms[i]) * one_minus_rho
        mom[i] = beta * mom[i] + lr * d / np.sqrt(ms[i] + epsilon)
        w[i] = x - mom[i]


@_update(2, 2)
def rmsprop_centered(w, ms, mg, g, lr, l2, decoupled, one_minus_rho, epsilon):  # type: ignore[no-untyped-def]
    """`rmsprop`, with ms less the square of mg, the moving mean of d."""
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
    """`rmsprop_centered` with momentum."""
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        d = number(g[i]) + l2 * x
        ms[i] += (d * d - ms[i]) * one_minus_rho
        mg[i] += (d - mg[i]) * one_minus_rho
        mom[i] = beta * mom[i] + lr * d / np.sqrt(ms[i] - mg[i] * mg[i] + epsilon)
        w[i] = x - mom[i]


@_update(1, 3)
def keras_rmsprop(w, ms, g, lr, l2, decoupled, rho, one_minus_rho, epsilon):  # type: ignore[no-untyped-def]
    """Keras's RMSProp: ms is the moving mean of d * d."""
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        d = number(g[i]) + l2 * x
        ms[i] = rho * ms[i] + one_minus_rho * (d * d)
        w[i] = x - lr * d / np.sqrt(ms[i] + epsilon)


@_update(2, 4)
def keras_rmsprop_momentum(  # type: ignore[no-untyped-def]
    w, ms, mom, g, lr, l2, decoupled, rho, one_minus_rho, epsilon, beta
):
    """`keras_rmsprop` with momentum."""
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        d = number(g[i]) + l2 * x
        ms[i] = rho * ms[i] + one_minus_rho * (d * d)
        mom[i] = beta * mom[i] + lr * d / np.sqrt(ms[i] + epsilon)
        w[i] = x - mom[i]


@_update(2, 3)
def keras_rmsprop_centered(w, ms, mg, g, lr, l2, decoupled, rho, one_minus_rho, epsilon):  # type: ignore[no-untyped-def]
    """`keras_rmsprop`, with ms less the square of mg, the moving mean of d."""
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
    """`keras_rmsprop_centered` with momentum."""
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        d = number(g[i]) + l2 * x
        ms[i] = rho * ms[i] + one_minus_rho * (d * d)
        mg[i] = rho * mg[i] + one_minus_rho * d
        mom[i] = beta * mom[i] + lr * d / np.sqrt(ms[i] - mg[i] * mg[i] + epsilon)
        w[i] = x - mom[i]


@_update(1, 0)
def adagrad_v1(w, a, g, lr, l2, decoupled):  # type: ignore[no-untyped-def]
    """TensorFlow's first Adagrad: no epsilon."""
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        d = number(g[i]) + l2 * x
        a[i] += d * d
        w[i] = x - d * lr * (np.float32(1) / np.sqrt(a[i]))


@_update(1, 1)
def adagrad_v2(w, a, g, lr, l2, decoupled, epsilon):  # type: ignore[no-untyped-def]
    """TensorFlow's second Adagrad: epsilon outside the root."""
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        d = number(g[i]) + l2 * x
        a[i] += d * d
        w[i] = x - d * lr / (np.sqrt(a[i]) + epsilon)


@_update(1, 1)
def keras_adagrad(w, a, g, lr, l2, decoupled, epsilon):  # type: ignore[no-untyped-def]
    """Keras's Adagrad: epsilon inside the root."""
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        d = number(g[i]) + l2 * x
        a[i] += d * d
        w[i] = x - lr * d / np.sqrt(a[i] + epsilon)


@_update(2, 4)
def adam(w, m, v, g, lr, l2, decoupled, alpha, one_minus_beta_1, one_minus_beta_2, epsilon):  # type: ignore[no-untyped-def]
    """Adam: m and v are the moving means of d and d * d; alpha includes the bias corrections of both."""
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
    """`adam` with v_hat, the largest v so far, in place of v."""
    for i in range(w.size):
        x = w[i] - w[i] * decoupled * lr
        d = number(g[i]) + l2 * x
        m[i] += (d - m[i]) * one_minus_beta_1
        v[i] += (d * d - v[i]) * one_minus_beta_2
        v_hat[i] = max(v_hat[i], v[i])
        w[i] = x - m[i] * alpha / (np.sqrt(v_hat[i]) + epsilon)


@declared(_V, _V)
def add(w, difference):  # type: ignore[no-untyped-def]
    """Statistics: w += difference."""
    for i in range(w.size):
        w[i] += difference[i]


@declared(_V, _V, _V, _S)
def compensate(g, w, base, strength):  # type: ignore[no-untyped-def]
    """Delay compensation: g += strength * g * g * (w - base)."""
    for i in range(g.size):
        g[i] += strength * g[i] * g[i] * (w[i] - base[i])


@declared(_V, _V, _V, _S)
def move(w, m, out, factor):  # type: ignore[no-untyped-def]
    """Look-ahead by a momentum: out = w + factor * m."""
    for i in range(w.size):
        out[i] = w[i] + factor * m[i]


@declared(_V, _V, _V, _V, _S, _S)
def move_scaled(w, m, v, out, factor, epsilon):  # type: ignore[no-untyped-def]
    """Look-ahead by Adam's momentum: out = w + factor * m / (sqrt(v) + epsilon)."""
    for i in range(w.size):
        out[i] = w[i] + factor * m[i] / (np.sqrt(v[i]) + epsilon)


@declared(_V, _V, _S)
def average(a, w, weight):  # type: ignore[no-untyped-def]
    """The average: a += weight * (w - a)."""
    for i in range(a.size):
        a[i] += (w[i] - a[i]) * weight
