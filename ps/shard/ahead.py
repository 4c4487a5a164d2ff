"""Look-ahead: what workers pull under `Lookahead`, the parameters moved by what their momentum is expected to do.

Threads: any may call; the caller holds the lock of the region that it reads.
"""

from __future__ import annotations

import bisect

import numpy as np

from downpour.ps.apply.movement import Movement
from downpour.ps.memory.arena import Arena
from downpour.ps.policy.rules import Rule
from downpour.ps.policy.staleness import Lookahead, rate_factor
from downpour.ps.shard.books import Books


class Ahead:
    """The moved elements of one shard's vector; see `downpour.ps.policy.staleness`.

    Statistics, frozen elements and variables with a constraint, which the movement could violate, are not moved.

    Args:
        arena: Arena of the shard, marked complete.
        books: The shard's records, with rate, version and measured staleness.
        rule: Update rule of the shard.
        treatment: Treatment of staleness of the shard.

    Raises:
        ValueError: The rule has no momentum.
    """

    def __init__(self, arena: Arena, books: Books, rule: Rule, treatment: Lookahead) -> None:
        self._arena, self._books, self._treatment = arena, books, treatment
        self._movement = Movement(rule, treatment.strength)
        self._starts, self._rates = [0], [0.0]  # of runs that move alike; multipliers of the rate, 0 for no movement
        layout, shard = arena.layout, arena.specification.shard
        for r in layout.by_shard[shard]:
            variable = layout.variables[r.variable]
            rate = 0.0 if variable.constraint or not variable.is_trained else variable.rate
            if rate != self._rates[-1]:
                self._starts.append(r.offset)
                self._rates.append(rate)
        self._stops = [*self._starts[1:], layout.size(shard)]

    def values(self, start: int, stop: int) -> np.ndarray:
        """Elements [start, stop) as workers are sent them; the parameters themselves where nothing moves."""
        parameters: np.ndarray = self._arena.parameters
        version = int(self._arena.counters["version"])
        updates = self._books.updates_ahead
        first = bisect.bisect_right(self._starts, start) - 1
        last = bisect.bisect_left(self._starts, stop)
        if not updates or not version or not any(self._rates[first:last]):
            return parameters[start:stop]
        learning_rate = self._books.rate(version) * rate_factor(self._treatment, updates, version)
        out = np.empty(stop - start, np.float32)
        for run in range(first, last):
            begin, end = max(start, self._starts[run]), min(stop, self._stops[run])
            w, into = parameters[begin:end], out[begin - start : end - start]
            if rate := self._rates[run]:
                slots = [slot[begin:end] for slot in self._arena.slots]
                number = self._books.means.number(version) + 1
                self._movement.move(w, slots, into, learning_rate * rate, number, updates)
            else:
                into[:] = w
        return out
