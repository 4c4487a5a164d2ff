"""Norms of gradients and weights by layer, of one step of a worker now and then, for the history and TensorBoard.

A worker takes them, not a shard: it holds whole gradients of one batch and the parameters that they were computed at,
so that the two belong together, while a shard has slices of variables, which the pushes of others change meanwhile, and
of a dense layer the two factors only. The gradients' norms cost nothing: the compiled step has them already, since it
checks that all are finite; of factors from their Gram matrices, before clipping and before the cast to the wire dtype.
Those of the weights are of the parameters as pulled, in the wire dtype, and take one pass over them: 1 ns an
element. A step's norms are taken so rarely that this pass stays below a thousandth of the time.

Layers are the variables' paths without their last part. Of more than `MOST_LAYERS` the names are shortened, all by as
many parts as it takes; what they share is one layer then.

Pure numpy. Threads: the training loop.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from downpour.proto.chief_pb2 import Norms
from downpour.ps.layout import Layout
from downpour.worker.exchange.exchange import Parameters

MOST_LAYERS = 40
OTHERS = "others"  # where even the shortest names are more: the layers with fewest parameters
_LEAST_S, _OF_TIME = 2.0, 0.01  # between two: some seconds, or so much of the time so far, as in the history
_TIMES = 1000.0  # as long as taking them took, at least
_AT_ONCE = 1 << 13  # elements, so that what is computed stays in the cache


class HasNorms(Protocol):
    """What `downpour.worker.step.step.StepResult` offers."""

    def gradient_norms(self) -> Mapping[int, float]:
        """The norm of each trained variable's gradient, by its number in the layout."""
        ...


class StepNorms:
    """Takes the norms of some of a worker's steps.

    Args:
        layout: Layout of the job's variables.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._layers = layers_of(layout)
        self._began_s = time.monotonic()
        self._due_s = self._began_s

    def look(self, parameters: Parameters, result: HasNorms) -> Norms | None:
        """Returns the norms of a step if it is time; else None.

        Args:
            parameters: What the step has computed with.
            result: Its result.
        """
        now = time.monotonic()
        if now < self._due_s:
            return None
        found = norms(self._layout, self._layers, parameters, result.gradient_norms())
        done_s = time.monotonic()
        self._due_s = done_s + max(_LEAST_S, _OF_TIME * (done_s - self._began_s), _TIMES * (done_s - now))
        return found


def norms(
    layout: Layout, layers: Mapping[int, str], parameters: Parameters, gradient_norms: Mapping[int, float]
) -> Norms:
    """Returns the norms by layer.

    Args:
        layout: The layout.
        layers: As `layers_of` returns them.
        parameters: Values of the trained variables, in a wire dtype.
        gradient_norms: The norm of each variable's gradient, by its number.
    """
    gradients, weights = Counter[str](), Counter[str]()  # sums of squares
    for number, norm in gradient_norms.items():
        gradients[layers[number]] += norm**2  # type: ignore[assignment]
    for ranges, trained in zip(layout.by_shard, parameters.trained, strict=True):
        for r in ranges:
            if layout.variables[r.variable].is_trained:
                weights[layers[r.variable]] += _squares(trained[r.offset : r.offset + r.size])  # type: ignore[assignment]
    roots = ({layer: math.sqrt(total) for layer, total in of.items()} for of in (gradients, weights))
    return Norms(version=max(parameters.versions), **dict(zip(("gradients", "weights"), roots, strict=True)))


def layers_of(layout: Layout) -> dict[int, str]:
    """The layer of every trained variable, by its number: at most `MOST_LAYERS` different ones."""
    sizes = {number: v.size for number, v in enumerate(layout.variables) if v.is_trained}
    paths = {number: layout.variables[number].name for number in sizes}
    names = {number: path.rpartition("/")[0] or path for number, path in paths.items()}
    parts = {number: re.split(r"([/_])", name) for number, name in names.items()}  # with what is between them
    for length in range(max(map(len, parts.values()), default=1), 0, -2):
        names = {number: "".join(of[:length]) for number, of in parts.items()}
        if len(set(names.values())) <= MOST_LAYERS:
            return names
    by_layer = Counter[str]()
    for number, name in names.items():
        by_layer[name] += sizes[number]
    kept = {name for name, _ in by_layer.most_common(MOST_LAYERS - 1)}
    return {number: name if name in kept else OTHERS for number, name in names.items()}


def _squares(values: np.ndarray) -> float:
    """The sum of squares of [n] values of a wire dtype, bfloat16 as its bits, accumulated in float64."""
    is_bits = values.dtype == np.uint16
    room = np.empty(min(values.size, _AT_ONCE), np.uint32 if is_bits else np.float32)
    total = 0.0
    for start in range(0, values.size, _AT_ONCE):
        part = values[start : start + _AT_ONCE]
        wide = room[: part.size]
        wide[...] = part
        if is_bits:
            np.left_shift(wide, 16, out=wide)
        numbers = wide.view(np.float32)
        total += float(np.dot(numbers, numbers))
    return total
