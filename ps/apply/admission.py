"""Admission queue: limits the calls in progress, and groups concurrent pushes (group commit, as in databases).

A shard admits a few pushes and a few pulls at a time; other calls queue. Gradients that are queued for the same
elements at the same moment are applied in one pass over memory (`downpour.ps.apply.regions`), but without grouping
that is rare: where processors are short, pushes wait for a processor instead, and each crosses memory alone. So where
recent pushes waited for a processor longer than they ran on one, and pushes of several workers arrive often enough, a
push is delayed before it is admitted, and proceeds chunk by chunk in step with the pushes admitted with it. Where
processors are free, no push is delayed.

Threads: the thread that serves a call uses the call's member; any number may queue.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

_SCHEDSTAT = "/proc/thread-self/schedstat"  # nanoseconds on a processor, and runnable without one
_REMEMBERED = 7 / 8  # weight kept by earlier times when another push has ended
_ARRIVALS = 8  # arrival times kept, from which the rate of calls is computed


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


class Processors:
    """Measures whether threads wait for processors, by Linux's schedstat; elsewhere it reports no waiting."""

    def __init__(self) -> None:
        self._ran = self._waited = 0.0  # nanoseconds, exponentially decayed

    @property
    def are_short(self) -> bool:
        """Whether threads watched recently waited for a processor longer than they ran on one."""
        return self._waited > self._ran

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Measures the calling thread while the block lasts."""
        ran, waited = _schedstat()
        yield
        ran_now, waited_now = _schedstat()
        # Deliberately not locked: if two threads update at once, the times of one push may be lost.
        self._ran = _REMEMBERED * self._ran + ran_now - ran
        self._waited = _REMEMBERED * self._waited + waited_now - waited


class Admission:
    """Admits a limited number of calls at a time, first come, first served.

    Args:
        most: Most calls admitted at a time.
        processors: Measures whether processors are short; by default from the calls admitted here.
    """

    def __init__(self, most: int, processors: Processors | None = None) -> None:
        self._most = most
        self._processors = processors or Processors()
        self._moved = threading.Condition()
        # Guarded by `_moved`.
        self._line = deque[Member]()
        self._num_inside = 0
        self._since: float | None = None  # when there were first both a free place and a queued call
        self._last_two = deque[int](maxlen=2)  # workers of the last two pushes that ended
        self._arrivals = deque[float](maxlen=_ARRIVALS)

    @contextlib.contextmanager
    def place(self, patience_s: float = 0.0) -> Iterator[Member]:
        """Waits to be admitted; the place is held while the block lasts.

        Args:
            patience_s: Longest delay of a push although there is a place (group commit), and longest time in all that
                it waits for the pushes admitted with it.
        """
        member = Member(patience_s)
        with self._moved:
            self._line.append(member)
            self._arrivals.append(time.monotonic())
            self._look()
            while member._group is None:
                left = None if self._since is None else self._since + self._gather_s(patience_s) - time.monotonic()
                if left is not None and left <= 0:
                    self._let_in()
                else:
                    self._moved.wait(left)
            is_watched = self._comes_company(patience_s)
        try:
            with self._processors.watched() if is_watched else contextlib.nullcontext():
                yield member
        finally:
            member.leave()
            with self._moved:
                self._num_inside -= 1
                if member.worker is not None:
                    self._last_two.append(member.worker)
                self._look()

    def _comes_company(self, patience_s: float) -> bool:
        """Whether pushes of several workers arrive often enough to wait for the next."""
        if len(set(self._last_two)) < 2 or len(self._arrivals) < _ARRIVALS:
            return False
        return (self._arrivals[-1] - self._arrivals[0]) / (_ARRIVALS - 1) <= 2 * patience_s

    def _gather_s(self, patience_s: float) -> float:
        return patience_s if self._processors.are_short and self._comes_company(patience_s) else 0.0

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


def _schedstat() -> tuple[int, int]:
    try:
        descriptor = os.open(_SCHEDSTAT, os.O_RDONLY)
    except OSError:
        return 0, 0
    try:
        ran, waited, _ = os.read(descriptor, 100).split()
    finally:
        os.close(descriptor)
    return int(ran), int(waited)
