"""Limits the processor time of unauthenticated connections: a burst, then a part of one processor.

Threads: any may call `charge`; the thread that serves unauthenticated connections calls the rest.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable

BURST_S, SHARE = 0.5, 0.05  # processor seconds at once, and per second
MAX_DEBT_S = 0.15  # that admitted connections may cause: it delays unauthenticated ones by a few seconds at most


class Credit:
    """Processor time left to unauthenticated connections.

    Args:
        clock: Returns seconds; `time.monotonic` except in tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left_s, self._at = BURST_S, clock()
        self._charges = collections.deque[float]()

    def charge(self, seconds: float) -> None:
        """Charges the cost of an admitted connection that was ended for what it sent: its peer may reconnect."""
        self._charges.append(seconds)

    def spend(self, seconds: float) -> None:
        """Deducts the time used by an unauthenticated connection."""
        self._left_s -= seconds

    def give_back(self, seconds: float) -> None:
        """Refunds the time of a connection that has been admitted."""
        self._left_s += seconds

    def has_some(self) -> bool:
        """Whether unauthenticated connections may be served."""
        while self._charges:
            left_s = self._left_s - self._charges.popleft()
            self._left_s = min(self._left_s, max(left_s, -MAX_DEBT_S))
        return self._left_s >= 0

    def wait_s(self) -> float:
        """Refills the credit; returns the seconds until unauthenticated connections may be served; 0 means now."""
        now = self._clock()
        self._left_s = min(BURST_S, self._left_s + SHARE * (now - self._at))
        self._at = now
        return 0.0 if self.has_some() else -self._left_s / SHARE
