"""Applies a shard's rule to any part of its vector: decays, rates, constraints, statistics and the average.

Threads: any; no locks of its own. The caller holds the lock of the region it updates.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from downpour.ps.apply import kernels
from downpour.ps.apply.regions import Push
from downpour.ps.layout import STATISTIC, Span
from downpour.ps.memory.arena import Arena
from downpour.ps.memory.undo import Steps
from downpour.ps.policy.constraints import Constraint
from downpour.ps.policy.specification import Policies
from downpour.ps.testing.points import reach

_MAX_KNOWN = 10_000  # cached pieces; a shard at the paper's shape has 36 pieces


class Updater:
    """Updates the vectors of an arena by some policies; its constructor compiles or loads the loops it needs."""

    def __init__(self, arena: Arena, policies: Policies) -> None:
        specification = arena.specification
        self._arena = arena
        self._spans = arena.layout.spans(specification.shard)
        self._stops = [span.stop for span in self._spans]
        ranges = [(r, arena.layout.variables[r.variable]) for r in arena.layout.by_shard[specification.shard]]
        self._constrained = [(r, v.constraint) for r, v in ranges if v.constraint]
        self._known: dict[tuple[int, int], list[_Part]] = {}
        kernels.load(with_average=arena.average is not None)
        # Logged loops save only parameters and slots, so no other vector may change with these.
        self._is_logged = len(arena.vectors) == 1 + len(arena.slots)
        if self._is_logged:
            self._logged_update = kernels.logged_update_for(policies.rule)
        if not self._is_logged or self._constrained:
            self._update = kernels.update_for(policies.rule)
        self._average = policies.average

    def update(self, start: int, gradients: Sequence[np.ndarray], pushes: Sequence[Push], steps: Steps) -> None:
        """Updates elements [start, start + n) with the gradients of some pushes, one after another.

        Args:
            start: First element; the position of the undo log's step.
            gradients: [n] for each push, all of one dtype.
            pushes: The gradients' pushes, with their rates and numbers.
            steps: Steps of the undo log; advanced to start + n.
        """
        for part in self._parts(start, start + gradients[0].size):
            some = [gradient[part.start - start : part.stop - start] for gradient in gradients]
            if self._is_plain(part):
                self._update_logged(part, some, pushes, steps)
                reach("apply.logged")
                continue
            steps.save(part.start, part.stop)
            for gradient, push in zip(some, pushes, strict=True):
                self._update_saved(part, gradient, push.learning_rate, push.step, push.updates)
                reach("apply.updated")
            steps.advance(part.stop)

    def saves_nothing_whole(self, start: int, stop: int) -> bool:
        """Whether `update` accepts [start, stop) at any length, since logged loops save all of it in short runs."""
        return all(map(self._is_plain, self._parts(start, stop)))

    def update_saved(
        self, start: int, gradient: np.ndarray, learning_rate: float, step: int, updates: float = 0.0
    ) -> None:
        """Updates elements [start, start + n), which the undo log's step has saved, with one gradient.

        Args:
            start: First element.
            gradient: [n] float32; of statistics, their differences.
            learning_rate: Of the update.
            step: Its number, from 1.
            updates: How many updates workers look ahead.
        """
        for part in self._parts(start, start + gradient.size):
            self._update_saved(part, gradient[part.start - start : part.stop - start], learning_rate, step, updates)

    def _is_plain(self, part: _Part) -> bool:
        """Whether only the rule changes the part, in a logged loop."""
        return self._is_logged and part.span.kind != STATISTIC and not part.constrained

    def _update_logged(self, part: _Part, gradients: list[np.ndarray], pushes: Sequence[Push], steps: Steps) -> None:
        span = part.span
        rates, numbers = tuple(p.learning_rate * span.rate for p in pushes), tuple(p.step for p in pushes)
        decays, log = (span.weight_decay, span.decoupled_decay), (steps.saved, steps.progress)
        ahead = tuple(p.updates for p in pushes)
        self._logged_update((part.w, *part.slots), gradients, rates, numbers, decays, log, part.start, ahead)

    def _update_saved(
        self, part: _Part, gradient: np.ndarray, learning_rate: float, step: int, updates: float = 0.0
    ) -> None:
        """Applies a gradient by rule and constraints, or adds it to statistics; then updates the average.

        A range whose constraint has norms lies wholly in the part, or outside.
        """
        span = part.span
        if span.kind == STATISTIC:
            kernels.add(part.w, gradient)
        else:
            rate = learning_rate * span.rate
            self._update(part.w, part.slots, gradient, rate, span.weight_decay, span.decoupled_decay, step, updates)
        for constraint, w in part.constrained:
            reach("update.unconstrained")
            constraint.project(w)
        if self._arena.average is not None and self._average is not None:
            kernels.average(self._arena.average[part.start : part.stop], part.w, self._average.weight(step))

    def _parts(self, start: int, stop: int) -> list[_Part]:
        """[start, stop) cut at the borders of spans; cached, since all pushes have the same pieces."""
        parts = self._known.get((start, stop))
        if parts is None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()  # the rest of an interrupted push may begin anywhere
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
    """Elements [start, stop) of the vectors, which are updated alike, and the constraints to project them with."""

    start: int
    stop: int
    span: Span
    w: np.ndarray
    slots: list[np.ndarray]
    constrained: list[tuple[Constraint, np.ndarray]]
