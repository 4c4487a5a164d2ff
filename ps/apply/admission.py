"""Which calls a shard takes at a time, and which pushes go together: group commit, as databases have it.

A shard takes a few pushes and a few pulls at a time; the others stand in line. Gradients that wait for the same
elements at the same moment are applied in one pass over memory (`downpour.ps.apply.regions`), but by themselves they
hardly ever do: where processors are short, pushes wait for one of those instead, and each crosses memory alone. So
where pushes have of late waited for a processor for longer than they had one, and those of other workers come often
enough, a push waits for company before it is let in, and goes on from chunk to chunk together with those it came in
with. Where processors are free nobody waits for company.

Threads: the one that serves a call is its member's; any may be in line.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

_SCHEDSTAT = "/proc/thread-self/schedstat"  # nanoseconds on a processor, and ready but without one
_REMEMBERED = 7 / 8  # of what was known of processors, when another push has ended
_ARRIVALS = 8  # of pushes that are remembered


@dataclass(eq=False)
class _Group:
    """Pushes that were let in together, without those that have left or were left behind."""

    members: list[Member] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)


@dataclass(eq=False)
class Member:
    """A call in line, then in a group.

    Attributes:
        patience_s: How long a push still waits for others.
        worker: Whose push it is, once that is known.
    """

    patience_s: float
    worker: int | None = None
    _position: int = 0
    _group: _Group | None = None

    def meet(self, position: int) -> None:
        """The push has brought all elements before `position`; returns when the other members have, too.

        Those for which it has no more patience are left behind, and go on alone.
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
        """Nobody waits for this push any longer, nor it for anybody."""
        if self._group is None:
            return
        with self._group.changed:
            if self in self._group.members:
                self._group.members.remove(self)
                self._group.changed.notify_all()


class Processors:
    """Whether threads wait for processors, as Linux counts it; elsewhere nobody seems to."""

    def __init__(self) -> None:
        self._ran = self._waited = 0.0  # nanoseconds, of late

    @property
    def are_short(self) -> bool:
        """Whether what was watched of late has waited for a processor for longer than it had one."""
        return self._waited > self._ran

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Counts what the calling thread does meanwhile."""
        ran, waited = _schedstat()
        yield
        ran_now, waited_now = _schedstat()
        # Not guarded: where two threads come at once a push may be forgotten.
        self._ran = _REMEMBERED * self._ran + ran_now - ran
        self._waited = _REMEMBERED * self._waited + waited_now - waited


class Admission:
    """Lets a few calls in at a time, first come, first served.

    Args:
        most: How many may be inside.
        processors: Whether they are short; by default as this process's calls find them.
    """

    def __init__(self, most: int, processors: Processors | None = None) -> None:
        self._most = most
        self._processors = processors or Processors()
        self._moved = threading.Condition()
        # Guarded by `_moved`.
        self._line = deque[Member]()
        self._num_inside = 0
        self._since: float | None = None  # when there was both a place and somebody in line
        self._last_two = deque[int](maxlen=2)  # workers that have pushed
        self._arrivals = deque[float](maxlen=_ARRIVALS)

    @contextlib.contextmanager
    def place(self, patience_s: float = 0.0) -> Iterator[Member]:
        """Waits for a place, which is held while the block lasts.

        Args:
            patience_s: How long a push may wait for others although there is a place, and how long in all for those
                that it came in with.
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
        """Whether pushes of several workers come often enough to wait for the next."""
        if len(set(self._last_two)) < 2 or len(self._arrivals) < _ARRIVALS:
            return False
        return (self._arrivals[-1] - self._arrivals[0]) / (_ARRIVALS - 1) <= 2 * patience_s

    def _gather_s(self, patience_s: float) -> float:
        return patience_s if self._processors.are_short and self._comes_company(patience_s) else 0.0

    def _look(self) -> None:
        """A place has become free, or somebody stands in line."""
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
