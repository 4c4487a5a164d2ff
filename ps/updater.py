"""A shard's rule over any part of its vector: decays, rates, constraints, statistics and the average. No locks."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from downpour.ps import averages, kernels, rules
from downpour.ps.arena import Arena
from downpour.ps.constraints import Constraint
from downpour.ps.layout import STATISTIC, Span
from downpour.ps.named import from_message
from downpour.ps.points import reach

_MAX_KNOWN = 10_000  # parts of pieces; a shard of the paper's has 36 pieces


class Updater:
    """Changes the vectors of an arena; compiles or loads the loops it needs when it is made."""

    def __init__(self, arena: Arena) -> None:
        specification = arena.specification
        self._arena = arena
        self._spans = arena.layout.spans(specification.shard)
        self._stops = [span.stop for span in self._spans]
        ranges = [(r, arena.layout.variables[r.variable]) for r in arena.layout.by_shard[specification.shard]]
        self._constrained = [(r, v.constraint) for r, v in ranges if v.constraint]
        self._known: dict[tuple[int, int], list[_Part]] = {}
        kernels.load(with_average=arena.average is not None)
        self._update = kernels.update_for(from_message(rules.BY_NAME, specification.rule))
        self._average: averages.Average | None = None
        if specification.HasField("average"):
            self._average = from_message(averages.BY_NAME, specification.average)

    def update(self, start: int, gradient: np.ndarray, learning_rate: float, step: int) -> None:
        """Sends the gradient of [start, start + n) through rule and constraints; adds it to statistics; then averages.

        A range whose constraint has norms lies wholly in [start, start + n), or outside.
        """
        stop = start + gradient.size
        for part in self._parts(start, stop):
            g, span = gradient[part.start - start : part.stop - start], part.span
            if span.kind == STATISTIC:
                kernels.add(part.w, g)
            else:
                rate = learning_rate * span.rate
                self._update(part.w, part.slots, g, rate, span.weight_decay, span.decoupled_decay, step)
            for constraint, w in part.constrained:
                reach("update.unconstrained")
                constraint.project(w)
        if self._arena.average is not None and self._average is not None:
            average, w = self._arena.average[start:stop], self._arena.parameters[start:stop]
            kernels.average(average, w, self._average.weight(step))

    def _parts(self, start: int, stop: int) -> list[_Part]:
        """[start, stop) by span; found once for the pieces that every push has."""
        parts = self._known.get((start, stop))
        if parts is None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()  # what is left of a push that broke may begin anywhere
            parts = self._known[start, stop] = list(self._cut(start, stop))
        return parts

    def _cut(self, start: int, stop: int) -> Iterator[_Part]:
        at = bisect.bisect_right(self._stops, start)
        while at < len(self._spans) and self._spans[at].start < stop:
            span = self._spans[at]
            begin, end = max(start, span.start), min(stop, span.stop)
            slots = [slot[begin:end] for slot in self._arena.slots]
            constrained = list(self._constrained_within(begin, end))
            yield _Part(begin, end, span, self._arena.parameters[begin:end], slots, constrained)
            at += 1

    def _constrained_within(self, start: int, stop: int) -> Iterator[tuple[Constraint, np.ndarray]]:
        for r, constraint in self._constrained:
            begin, end = max(start, r.offset), min(stop, r.offset + r.size)
            if begin < end:
                w = self._arena.parameters[begin:end]
                yield constraint, w.reshape(self._arena.layout.shape(r)) if constraint.axes else w


class _Part(NamedTuple):
    """Elements [start, stop) of the vectors, which are updated alike, and what of them is projected afterwards."""

    start: int
    stop: int
    span: Span
    w: np.ndarray
    slots: list[np.ndarray]
    constrained: list[tuple[Constraint, np.ndarray]]
