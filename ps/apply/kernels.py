"""A shard's vector arithmetic: a rule's update, statistics, delay compensation and averages.

The loops are in `downpour.ps.apply.loops`; each is compiled, or loaded from its cache, on first use.

    python -m downpour.ps.apply.kernels [--rule=JSON]

fills the cache, so that shards that start at the same time do not all compile: for one rule, given as the JSON form of
the message `Named`, or for all rules. Threads: any; these functions keep no state.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from google.protobuf import json_format

from downpour.compiled import Loop
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.numerics import convert, sparse
from downpour.ps.apply import loops
from downpour.ps.policy import rules, staleness
from downpour.ps.policy.named import from_message
from downpour.ps.policy.rules import (
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

# Maps the learning rate, the number and the look-ahead of a push to the scalars that a loop takes after the decays.
_Scalars = Callable[[np.float32, int, float], tuple[np.float32, ...]]
_f = np.float32


class Update(Protocol):
    """One push's update of n consecutive parameters, in place."""

    def __call__(
        self,
        w: np.ndarray,
        slots: list[np.ndarray],
        g: np.ndarray,
        learning_rate: float,
        weight_decay: float,
        decoupled_decay: float,
        step: int,
        updates: float = 0.0,
        /,
    ) -> None:
        """Updates parameters and slots.

        Args:
            w: [n] float32.
            slots: [n] float32 each, in the order of the rule's `slots`.
            g: [n] float32 or bfloat16 bits at any address, the gradient.
            learning_rate: Learning rate of this push and range.
            weight_decay: g += weight_decay * w.
            decoupled_decay: w -= w * decoupled_decay * learning_rate, before everything else.
            step: Number of the push, from 1.
            updates: How far workers look ahead, which prolongs the momentum; see `downpour.ps.policy.staleness`.
        """
        ...


def update_for(rule: Rule) -> Update:
    """Returns a rule's update with its hyper-parameters bound; compiles its loop, or loads it from the cache.

    Raises:
        ValueError: No loop is known for the rule.
    """
    declared_loop, scalars = _bind(rule)
    loop, arguments = declared_loop(), _arguments(rule, scalars)

    def update(
        w: np.ndarray,
        slots: list[np.ndarray],
        g: np.ndarray,
        learning_rate: float,
        weight_decay: float,
        decoupled_decay: float,
        step: int,
        updates: float = 0.0,
        /,
    ) -> None:
        loop(w, *slots, g, *arguments(learning_rate, weight_decay, decoupled_decay, step, updates))

    return update


class LoggedUpdate(Protocol):
    """Updates n consecutive parameters in place by several pushes; saves old values to the undo log first."""

    def __call__(
        self,
        vectors: tuple[np.ndarray, ...],
        gradients: Sequence[np.ndarray],
        rates: tuple[float, ...],
        steps: tuple[int, ...],
        decays: tuple[float, float],
        log: tuple[np.ndarray, np.ndarray],
        first: int,
        updates: tuple[float, ...] = (),
        /,
    ) -> None:
        """Updates parameters and slots, one push after another, with results bit for bit those of `Update`.

        Args:
            vectors: Parameters and slots, [n] float32 each.
            gradients: [n] for each push, all float32 or all bfloat16 bits.
            rates: Learning rate of each push.
            steps: Number of each push.
            decays: Weight decay and decoupled decay, as `Update` takes them.
            log: `Steps.saved` and `Steps.progress` of a step of the undo log whose position is `first`.
            first: Index of the first element.
            updates: Look-ahead of each push; none for 0.
        """
        ...


def logged_update_for(rule: Rule) -> LoggedUpdate:
    """Returns a rule's logged update with its hyper-parameters bound; compiles its loop, or loads it from the cache.

    Raises:
        ValueError: No loop is known for the rule.
    """
    loop, scalars = _bind(rule)
    logged, arguments = loops.logged(loop)(), _arguments(rule, scalars)

    @functools.lru_cache(maxsize=64)  # all runs of a push have the same arguments
    def table(
        rates: tuple[float, ...], steps: tuple[int, ...], decays: tuple[float, float], updates: tuple[float, ...]
    ) -> np.ndarray:
        numbers = zip(rates, steps, updates or (0.0,) * len(rates), strict=True)
        return np.array([arguments(rate, *decays, step, ahead) for rate, step, ahead in numbers], _f)

    def update(
        vectors: tuple[np.ndarray, ...],
        gradients: Sequence[np.ndarray],
        rates: tuple[float, ...],
        steps: tuple[int, ...],
        decays: tuple[float, float],
        log: tuple[np.ndarray, np.ndarray],
        first: int,
        updates: tuple[float, ...] = (),
        /,
    ) -> None:
        addresses = np.array([gradient.ctypes.data for gradient in gradients])
        logged(vectors, addresses, gradients[0], table(rates, steps, decays, updates), *log, first)

    return update


def add(w: np.ndarray, difference: np.ndarray) -> None:
    """Adds a difference, [n] of a wire dtype, to statistics in place: w += difference."""
    if difference.dtype != np.float32:
        narrow, difference = difference, np.empty(w.size, np.float32)
        convert.to_float32(narrow, difference)
    loops.add()(w, difference)


def compensate(g: np.ndarray, w: np.ndarray, base: np.ndarray, strength: float) -> None:
    """Compensates delay in place: g += strength * g * g * (w - base), to first order the gradient at w, not at base."""
    loops.compensate()(g, w, base, _f(strength))


def average(a: np.ndarray, w: np.ndarray, weight: float) -> None:
    """Updates an average in place: a += weight * (w - a); with weight 1 exactly w."""
    if weight == 1:
        a[:] = w
    else:
        loops.average()(a, w, _f(weight))


def load(*, with_average: bool = False) -> None:
    """Compiles or loads the loops a shard needs besides its rule's, so that its first push is not delayed."""
    convert.load()
    for loop in [loops.add] + [loops.average] * with_average:
        loop()


def _arguments(rule: Rule, scalars: _Scalars) -> Callable[..., tuple[np.float32, ...]]:
    """Maps learning rate, weight decay, decoupled decay, number and look-ahead of a push to a loop's arguments."""
    own_decay = rule.weight_decay if isinstance(rule, AdamW) else 0.0
    is_mean = isinstance(rule, Adam | KerasAdam)  # whether its momentum is a mean of gradients, not a sum

    def arguments(rate: float, l2: float, decoupled: float, step: int, updates: float) -> tuple[np.float32, ...]:
        if updates and not is_mean:
            rate, decoupled = rate / (1 + updates), decoupled * (1 + updates)
        lr = _f(rate)
        return lr, _f(l2), _f(own_decay + decoupled), *scalars(lr, step, updates)

    return arguments


def _bind(rule: Rule) -> tuple[Callable[[], Loop], _Scalars]:
    match rule:
        case SGD() | Momentum(momentum=0) | KerasMomentum(momentum=0):
            return loops.sgd, _constant()
        case Momentum():
            return (loops.nesterov if rule.nesterov else loops.momentum), _with_momentum(rule.momentum)
        case KerasMomentum():
            return (loops.keras_nesterov if rule.nesterov else loops.keras_momentum), _with_momentum(rule.momentum)
        case RMSProp():
            # TensorFlow subtracts in float32, Keras in float64: the last bit of 1 - rho differs.
            tf_loops = loops.rmsprop, loops.rmsprop_momentum, loops.rmsprop_centered, loops.rmsprop_centered_momentum
            scalars = _f(1) - _f(rule.rho), _f(rule.epsilon)
            return _rmsprop(rule, tf_loops, scalars)
        case KerasRMSProp():
            keras_loops = (
                loops.keras_rmsprop,
                loops.keras_rmsprop_momentum,
                loops.keras_rmsprop_centered,
                loops.keras_rmsprop_centered_momentum,
            )
            return _rmsprop(rule, keras_loops, (_f(rule.rho), _f(1 - rule.rho), _f(rule.epsilon)))
        case AdagradV1():
            return loops.adagrad_v1, _constant()
        case AdagradV2():
            return loops.adagrad_v2, _constant(_f(rule.epsilon))
        case KerasAdagrad():
            return loops.keras_adagrad, _constant(_f(rule.epsilon))
        case Adam():
            return loops.adam, _adam(rule, _f(1) - _f(rule.beta_1), _f(1) - _f(rule.beta_2))
        case KerasAdam():
            loop = loops.amsgrad if rule.amsgrad else loops.adam
            return loop, _adam(rule, _f(1 - rule.beta_1), _f(1 - rule.beta_2))
    raise ValueError(f"no loop for the rule {rule!r}")


def _constant(*scalars: np.float32) -> _Scalars:
    return lambda lr, step, updates: scalars


def _with_momentum(momentum: float, *before: np.float32) -> _Scalars:
    return lambda lr, step, updates: (*before, _f(staleness.prolonged(momentum, updates)))


def _rmsprop(
    rule: RMSProp | KerasRMSProp, variants: tuple[Callable[[], Loop], ...], scalars: tuple[np.float32, ...]
) -> tuple[Callable[[], Loop], _Scalars]:
    """Selects the variant (plain, momentum, centered, both) by the rule's flags."""
    loop = variants[2 * rule.centered + (rule.momentum > 0)]
    return loop, _with_momentum(rule.momentum, *scalars) if rule.momentum else _constant(*scalars)


def _adam(rule: Adam | KerasAdam, one_minus_beta_1: np.float32, one_minus_beta_2: np.float32) -> _Scalars:
    beta_1, beta_2, epsilon = float(_f(rule.beta_1)), float(_f(rule.beta_2)), _f(rule.epsilon)

    def scalars(lr: np.float32, step: int, updates: float) -> tuple[np.float32, ...]:
        # Powers in float64 of the float32 betas, as in the references; the rest in their order, in float32.
        power_1, power_2 = _f(beta_1**step), _f(beta_2**step)
        alpha = lr * np.sqrt(_f(1) - power_2) / (_f(1) - power_1)
        return alpha, _f(one_minus_beta_1 / (1 + updates)), one_minus_beta_2, epsilon

    return scalars


def _all_rules() -> list[Rule]:
    """Rules that together use every loop."""
    flags = (False, True)
    both = [(centered, momentum) for centered in flags for momentum in (0.0, 0.9)]
    return [
        SGD(),
        *(kind(nesterov=nesterov) for kind in (Momentum, KerasMomentum) for nesterov in flags),
        *(kind(momentum=m, centered=c) for kind in (RMSProp, KerasRMSProp) for c, m in both),
        *(AdagradV1(), AdagradV2(), KerasAdagrad(), Adam(), KerasAdam(amsgrad=True)),
    ]


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rule", help="Rule in the JSON form of the message Named; all rules by default.")
    text = parser.parse_args().rule
    wanted = [from_message(rules.BY_NAME, json_format.Parse(text, pb.Named()))] if text else _all_rules()
    load(with_average=True)
    convert.load_blocks()
    sparse.fill()
    for loop in (loops.compensate, loops.move, loops.move_scaled):
        loop()
    for rule in wanted:
        update_for(rule)
        logged_update_for(rule)
    print(f"kernels compiled or loaded; process time {time.process_time():.1f} s")


if __name__ == "__main__":
    _main()
