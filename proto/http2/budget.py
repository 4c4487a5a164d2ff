"""Limits frames that cost a peer nothing and this side processor time, by a leaky bucket. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable

from downpour.proto.http2.frames import ErrorCode, ProtocolError


class Budget:
    """Budget for frames without data, such as PING, SETTINGS and RST_STREAM.

    Args:
        most: Initial and maximum budget.
        per_s: Amount refilled per second.
        clock: Returns seconds; `time.monotonic` except in tests.
    """

    def __init__(self, most: float, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._per_s, self._clock = most, per_s, clock
        self._left, self._at = most, clock()

    def spend(self, cost: float, what: str) -> None:
        """Deducts the cost of a frame.

        Raises:
            ProtocolError: The budget is exhausted.
        """
        if cost > self._left:
            now = self._clock()
            self._left, self._at = min(self._most, self._left + self._per_s * (now - self._at)), now
        if cost > self._left:
            raise ProtocolError(f"too many frames without data, lastly {what}", ErrorCode.ENHANCE_YOUR_CALM)
        self._left -= cost

    def earn(self, amount: float) -> None:
        """Refills the budget after useful traffic, whose answers the peer may acknowledge."""
        self._left = min(self._most, self._left + amount)
