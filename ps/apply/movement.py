"""Look-ahead: moves parameters by the updates that the momentum will cause until a gradient computed now is applied.

The formulas are in `downpour.ps.policy.staleness`. Threads: any; no state.
"""

from __future__ import annotations

import math

import numpy as np

from downpour.ps.apply import loops
from downpour.ps.policy import rules
from downpour.ps.policy.rules import Adam, KerasAdam, KerasMomentum, Momentum, Rule
from downpour.ps.policy.staleness import extrapolated, prolonged


class Movement:
    """The movement by a rule's momentum; its constructor compiles the loop, or loads it from the cache.

    Args:
        rule: The rule.
        strength: Multiplies the movement.

    Raises:
        ValueError: The rule has no momentum.
    """

    def __init__(self, rule: Rule, strength: float) -> None:
        self._rule, self._strength, self._beta = rule, strength, rules.momentum_of(rule)
        if not self._beta:
            raise ValueError(f"{rule!r} has no momentum, which a look-ahead extrapolates")
        self._loop = loops.move_scaled() if isinstance(rule, Adam | KerasAdam) else loops.move()

    def move(
        self,
        w: np.ndarray,
        slots: list[np.ndarray],
        out: np.ndarray,
        learning_rate: float,
        step: int,
        updates: float,
    ) -> None:
        """Writes the moved parameters.

        Args:
            w: [n] float32.
            slots: [n] float32 each, in the order of the rule's `slots`.
            out: [n] float32, receives the moved parameters.
            learning_rate: Learning rate of the next push and of these parameters.
            step: Number of the next push, from 1.
            updates: Number of updates ahead.
        """
        rule, beta = self._rule, prolonged(self._beta, updates)
        factor = self._strength * extrapolated(beta, updates)
        if isinstance(rule, Adam | KerasAdam):
            alpha = learning_rate * math.sqrt(1 - rule.beta_2**step) / (1 - self._beta**step)
            self._loop(w, slots[0], slots[-1], out, np.float32(-alpha * factor), np.float32(rule.epsilon))
            return
        if isinstance(rule, Momentum | KerasMomentum) and rule.nesterov:
            factor *= beta
        if isinstance(rule, Momentum):
            factor *= -learning_rate / (1 + updates)
        elif not isinstance(rule, KerasMomentum):
            factor = -factor
        self._loop(w, slots[-1], out, np.float32(factor))
