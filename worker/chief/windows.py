"""How totals of many senders have grown over the last seconds. Pure: no clock.

Guarded by the chief's lock, like the objects that hold it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

WINDOW_S = 15.0


@dataclass(frozen=True)
class Growth:
    """What was added to totals in a time.

    Attributes:
        seconds: The time; 0 before two reports are known.
        by_name: The differences, by the totals' names.
    """

    seconds: float = 0.0
    by_name: Mapping[str, float] = field(default_factory=dict)

    def rate(self, name: str) -> float:
        """A second; 0 if it is not known."""
        return self.by_name.get(name, 0.0) / self.seconds if self.seconds > 0 else 0.0

    def mean(self, name: str, per: str) -> float:
        """Growth of one total, divided by that of another; 0 where the other has not grown."""
        return self.by_name.get(name, 0.0) / count if (count := self.by_name.get(per, 0.0)) > 0 else 0.0


class Windows:
    """The totals of the last seconds, by sender."""

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[Hashable, deque[tuple[float, Mapping[str, float]]]]] = {}

    def add(self, sender: Hashable, life: Hashable, at_s: float, totals: Mapping[str, float]) -> None:
        """Adds totals.

        Args:
            sender: Whose they are.
            life: What is different once the sender counts from 0 again, such as an incarnation.
            at_s: When they were received.
            totals: They, by name.
        """
        before, marks = self._known.get(sender, (life, deque[tuple[float, Mapping[str, float]]]()))
        if before != life:
            marks.clear()
        self._known[sender] = life, marks
        marks.append((at_s, totals))
        while len(marks) > 2 and at_s - marks[1][0] > WINDOW_S:
            marks.popleft()

    def growth(self, sender: Hashable, now_s: float) -> Growth:
        """What a sender's totals have grown by over the last seconds; nothing if it has been silent that long."""
        if sender not in self._known:
            return Growth()
        _, marks = self._known[sender]
        if len(marks) < 2 or now_s - marks[-1][0] > WINDOW_S:
            return Growth()
        (begin_s, before), (end_s, after) = marks[0], marks[-1]
        return Growth(end_s - begin_s, {name: value - before.get(name, 0.0) for name, value in after.items()})
