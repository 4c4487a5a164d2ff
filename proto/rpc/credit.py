"""How much processor time strangers may use: a burst, then a part of one processor.

Threads: `charge` is for any, the rest for the one that serves strangers.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable

BURST_S, SHARE = 0.5, 0.05  # processor seconds at once, and in a second
MAX_DEBT_S = 0.15  # that members may cause, so that nobody waits longer than a few seconds for them


class Credit:
    """Processor time that is left to strangers.

    Args:
        clock: Seconds; `time.monotonic` but in tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left_s, self._at = BURST_S, clock()
        self._charges = collections.deque[float]()

    def charge(self, seconds: float) -> None:
        """A member has used so much before it was ended for what it sent; it may come again as a stranger."""
        self._charges.append(seconds)

    def spend(self, seconds: float) -> None:
        """A stranger has used so much."""
        self._left_s -= seconds

    def give_back(self, seconds: float) -> None:
        """Who has used so much is a member."""
        self._left_s += seconds

    def has_some(self) -> bool:
        """Whether strangers may be served."""
        while self._charges:
            left_s = self._left_s - self._charges.popleft()
            self._left_s = min(self._left_s, max(left_s, -MAX_DEBT_S))
        return self._left_s >= 0

    def wait_s(self) -> float:
        """Seconds until strangers may be served again; 0 if they may now. Adds what has come since the last time."""
        now = self._clock()
        self._left_s = min(BURST_S, self._left_s + SHARE * (now - self._at))
        self._at = now
        return 0.0 if self.has_some() else -self._left_s / SHARE
