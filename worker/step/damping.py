"""Keeps batch norm's moving statistics stable when many workers move them at the same time.

A batch moves a moving statistic by a share 1 - momentum of the way to its own value. The worker pushes the difference,
which it computed from what it had pulled. Where it is applied after s differences of other batches, all of them go from
about the same value, so that together they move it by s (1 - momentum) of the way: beyond 1 they overshoot, beyond
about pi / 2 they oscillate without end (`step` has the exact limit). 50 workers do so with a momentum of 0.9, 200 with
Keras' 0.99; no gradient shows it, since only the evaluator computes with these statistics.

So a worker whose last push was s batches stale pushes the part 0.5 / (s (1 - momentum)) of a difference, at most 1. A
statistic then follows as slowly as s allows; without staleness, and with few workers, it is as in plain Keras, to the
bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

from downpour.model import keras_private
from downpour.ps.layout import STATISTIC, Layout

_MOST = 0.5  # of the way, by all differences that lack each other


class Damping:
    """The part of each difference that a worker pushes.

    Args:
        model: A built Keras model.
        layout: Layout of its variables.
        variables: The model's variables, in the order of the layout's, which may have others after them.
    """

    def __init__(self, model: keras.Model, layout: Layout, variables: Sequence[keras.Variable]) -> None:
        shares: dict[int, float] = {}  # of the way that a batch moves a statistic, by its variable
        for layer in keras_private.layers_of(model):
            if isinstance(layer, keras.layers.BatchNormalization) and layer.built:
                shares |= {id(v): 1.0 - layer.momentum for v in (layer.moving_mean, layer.moving_variance)}
        self._shares = []
        for shard, ranges in enumerate(layout.by_shard):
            first = layout.num_trained(shard)
            of_shard = np.zeros(layout.num_pushed(shard) - first, np.float32)
            for r in ranges:
                if layout.variables[r.variable].kind == STATISTIC and r.variable < len(variables):
                    begin = r.offset - first
                    of_shard[begin : begin + r.size] = shares.get(id(variables[r.variable]), 0.0)
            self._shares.append(of_shard)
        self._largest = max((float(share.max(initial=0.0)) for share in self._shares), default=0.0)

    def damped(self, differences: list[np.ndarray], staleness: float) -> list[np.ndarray]:
        """Returns what is pushed.

        Args:
            differences: [num_statistics] float32 of each shard.
            staleness: Differences of other batches that are applied between a pull and its push.
        """
        if staleness * self._largest <= _MOST:
            return differences
        parts = [
            np.float32(_MOST) / np.maximum(np.float32(staleness) * share, np.float32(_MOST)) for share in self._shares
        ]
        return [difference * part for difference, part in zip(differences, parts, strict=True)]
