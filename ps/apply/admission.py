"""Admission queue: limits the calls in progress; pushes that are admitted together proceed in step.

A shard admits a few pushes and a few pulls at a time; other calls queue. Gradients that are queued for the same
elements at the same moment are applied in one pass over memory (`downpour.ps.apply.regions`). To that end pushes may be
delayed until another one arrives (`group_commit`), and those admitted together proceed chunk by chunk in step.

Threads: the thread that serves a call uses the call's member; any number may queue.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field

from downpour.ps.apply.group_commit import GroupCommit


@dataclass(eq=False)
class _Group:
    """Pushes that were admitted together, without those that have been removed since."""

    members: list[Member] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)


@dataclass(eq=False)
class Member:
    """A call in the admission queue, then in a group.

    Attributes:
        patience_s: Seconds that a push may still wait for others.
        worker: The push's worker, once its header has been read.
    """

    patience_s: float
    worker: int | None = None
    _position: int = 0
    _group: _Group | None = None

    def meet(self, position: int) -> None:
        """Called when the push has received all elements before `position`; returns when the other members have, too.

        Members that are late when `patience_s` has run out are removed from the group, and continue alone.
        """
        group = self._group
        if group is None or len(group.members) < 2:
            return
        with group.changed:
            if self not in group.members:
                return
            self._position = position
            group.changed.notify_all()
            begun = time.monotonic()
            if not group.changed.wait_for(lambda: not _behind(group, position), self.patience_s):
                for late in _behind(group, position):
                    group.members.remove(late)
                group.changed.notify_all()
            self.patience_s = max(0.0, self.patience_s - (time.monotonic() - begun))

    def leave(self) -> None:
        """Removes the push from its group: neither waits for the other any longer."""
        if self._group is None:
            return
        with self._group.changed:
            if self in self._group.members:
                self._group.members.remove(self)
                self._group.changed.notify_all()


class Admission:
    """Admits a limited number of calls at a time, first come, first served.

    Args:
        most: Most calls admitted at a time.
        grouping: Decides which pushes are delayed; None: none is.
    """

    def __init__(self, most: int, grouping: GroupCommit | None = None) -> None:
        self._most = most
        self._grouping = grouping
        self._moved = threading.Condition()
        # Guarded by `_moved`.
        self._line = deque[Member]()
        self._num_inside = 0
        self._since: float | None = None  # when there were first both a free place and a queued call

    @property
    def num_waiting(self) -> int:
        """Calls that are queued now; read unlocked."""
        return len(self._line)

    @contextlib.contextmanager
    def place(self, patience_s: float = 0.0) -> Iterator[Member]:
        """Waits to be admitted; the place is held while the block lasts.

        Args:
            patience_s: Longest delay of a push although there is a place (group commit), and longest time in all that
                it waits for the pushes admitted with it.
        """
        grouping = self._grouping
        member = Member(patience_s if grouping else 0.0)
        with self._moved:
            self._line.append(member)
            if grouping:
                grouping.arrived(time.monotonic())
            self._look()
            while member._group is None:
                left = None if self._since is None else self._since + self._delay_s(patience_s) - time.monotonic()
                if left is not None and left <= 0:
                    self._let_in()
                else:
                    self._moved.wait(left)
            watched = grouping.processors.watched if grouping and grouping.is_worthwhile(patience_s) else nullcontext
        try:
            with watched():
                yield member
        finally:
            member.leave()
            with self._moved:
                self._num_inside -= 1
                if grouping:
                    grouping.ended(member.worker)
                self._look()

    def _delay_s(self, patience_s: float) -> float:
        return self._grouping.delay_s(patience_s) if self._grouping else 0.0

    def _look(self) -> None:
        """Admits queued calls or starts their delay; called when a place becomes free or a call is queued."""
        if not self._line or self._num_inside == self._most:
            return
        if not self._num_inside and len(self._line) > 1:
            self._let_in()
        elif self._since is None:
            self._since = time.monotonic()
            self._moved.notify_all()

    def _let_in(self) -> None:
        group = _Group()
        while self._line and self._num_inside < self._most:
            member = self._line.popleft()
            member._group = group
            group.members.append(member)
            self._num_inside += 1
        self._since = None
        self._moved.notify_all()


def _behind(group: _Group, position: int) -> list[Member]:
    return [member for member in group.members if member._position < position]
