"""What a peer may ask for that costs it nothing and us something: a leaky bucket. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable

from downpour.proto.http2.frames import ErrorCode, ProtocolError


class Budget:
    """Frames without data, such as PING, SETTINGS and RST_STREAM, are paid for out of this.

    Args:
        most: What there is in the beginning, and at most.
        per_s: What comes back in a second.
        clock: Seconds; `time.monotonic` but in tests.
    """

    def __init__(self, most: float, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._per_s, self._clock = most, per_s, clock
        self._left, self._at = most, clock()

    def spend(self, cost: float, what: str) -> None:
        """Pays for a frame.

        Raises:
            ProtocolError: There is not enough left.
        """
        if cost > self._left:
            now = self._clock()
            self._left, self._at = min(self._most, self._left + self._per_s * (now - self._at)), now
        if cost > self._left:
            raise ProtocolError(f"too many frames without data, lastly {what}", ErrorCode.ENHANCE_YOUR_CALM)
        self._left -= cost

    def earn(self, amount: float) -> None:
        """The peer does something of use, whose answers it may acknowledge."""
        self._left = min(self._most, self._left + amount)
