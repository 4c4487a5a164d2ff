"""Decides for how long a push is delayed so that others are applied with it (group commit, as in databases).

Where processors are short, pushes wait for a processor, and each crosses memory alone. So where recent pushes waited
for a processor longer than they ran on one, and pushes of several workers arrive often enough, a push is delayed before
it is admitted. Where processors are free, no push is delayed.

Threads: the caller's lock guards it.
"""

from __future__ import annotations

from collections import deque

from downpour.ps.apply.processors import Processors

ARRIVALS = 8  # arrival times kept, from which the rate of calls is computed


class GroupCommit:
    """The arrivals of pushes, and the delay that they justify.

    Args:
        processors: Measures whether processors are short.

    Attributes:
        processors: As given.
    """

    def __init__(self, processors: Processors) -> None:
        self.processors = processors
        self._last_two = deque[int](maxlen=2)  # workers of the last two pushes that ended
        self._arrivals = deque[float](maxlen=ARRIVALS)

    def arrived(self, at_s: float) -> None:
        """Records that a call has arrived."""
        self._arrivals.append(at_s)

    def ended(self, worker: int | None) -> None:
        """Records that a call has ended: a push of a worker, or one whose header was not read."""
        if worker is not None:
            self._last_two.append(worker)

    def is_worthwhile(self, patience_s: float) -> bool:
        """Whether pushes of several workers arrive often enough to wait for the next."""
        if len(set(self._last_two)) < 2 or len(self._arrivals) < ARRIVALS:
            return False
        return (self._arrivals[-1] - self._arrivals[0]) / (ARRIVALS - 1) <= 2 * patience_s

    def delay_s(self, patience_s: float) -> float:
        """Seconds for which a push that could be admitted is delayed; `patience_s` or 0."""
        return patience_s if self.processors.are_short and self.is_worthwhile(patience_s) else 0.0
