"""A shard's rule over any part of its vector: decays, rates, statistics and the average. No locks."""

from __future__ import annotations

import bisect

import numpy as np

from downpour.ps import averages, kernels, rules
from downpour.ps.arena import Arena
from downpour.ps.layout import STATISTIC
from downpour.ps.named import from_message


class Updater:
    """Changes the vectors of an arena; compiles or loads the loops it needs when it is made."""

    def __init__(self, arena: Arena) -> None:
        specification = arena.specification
        self._arena = arena
        self._spans = arena.layout.spans(specification.shard)
        self._stops = [span.stop for span in self._spans]
        kernels.load(with_average=arena.average is not None)
        self._update = kernels.update_for(from_message(rules.BY_NAME, specification.rule))
        self._average: averages.Average | None = None
        if specification.HasField("average"):
            self._average = from_message(averages.BY_NAME, specification.average)

    def update(self, start: int, gradient: np.ndarray, learning_rate: float, step: int) -> None:
        """Sends the gradient of [start, start + n) through the rule or, for statistics, adds it; then the average."""
        stop = start + gradient.size
        at = bisect.bisect_right(self._stops, start)
        while at < len(self._spans) and self._spans[at].start < stop:
            span = self._spans[at]
            begin, end = max(start, span.start), min(stop, span.stop)
            part = gradient[begin - start : end - start]
            w = self._arena.parameters[begin:end]
            if span.kind == STATISTIC:
                kernels.add(w, part)
            else:
                slots = [slot[begin:end] for slot in self._arena.slots]
                rate = learning_rate * span.rate
                self._update(w, slots, part, rate, span.weight_decay, span.decoupled_decay, step)
            at += 1
        if self._arena.average is not None and self._average is not None:
            average, w = self._arena.average[start:stop], self._arena.parameters[start:stop]
            kernels.average(average, w, self._average.weight(step))
