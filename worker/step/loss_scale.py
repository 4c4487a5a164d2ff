"""Dynamic loss scaling for layers that compute in float16, whose smallest number is 6e-8. Pure.

The loss is multiplied before gradients are computed, which are divided by the same number in float32. The numbers are
those of `keras.optimizers.LossScaleOptimizer` (Keras 3): from 2^15 on, doubled after 2000 finite steps in a row, halved
by each step that overflows, which is skipped. Unlike there, the scale has a least value, as in fairseq
(`min_loss_scale`): a step that overflows below it overflows at any scale.

Threads: one.
"""

from __future__ import annotations

from dataclasses import dataclass

GROWTH_STEPS = 2000
LEAST = 1e-4


@dataclass
class LossScale:
    """The loss scale of one worker.

    Attributes:
        value: Factor by which the next loss is multiplied.
        num_finite: Steps without overflow since `value` last changed.
    """

    value: float = 2.0**15
    num_finite: int = 0

    def update(self, is_finite: bool) -> None:
        """Counts a step, whose loss and gradients were finite or not."""
        self.num_finite += 1
        if not is_finite:
            self.value, self.num_finite = self.value / 2, 0
        elif self.num_finite == GROWTH_STEPS:
            self.value, self.num_finite = self.value * 2, 0
