"""The small frames that one side of an HTTP/2 connection has to send, no I/O: their queue, and what limits it.

Most of them answer received frames. A peer that makes this side answer and does not read, or that causes answers
without calls, is ended.

Threads: any, under the connection's lock; the thread that sends takes frames from the queue without it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from downpour.proto.http2 import frames
from downpour.proto.http2.budget import Budget
from downpour.proto.http2.frames import ErrorCode, ProtocolError

_MAX_QUEUED = 1000  # because the peer does not read

# Frames without data that a peer may send at once and per second, plus one for each `_BYTES_A_FRAME` bytes sent to it
# and some for each call that has ended: grpcio updates windows twice for a small one.
_BUDGET, _BUDGET_PER_S, _BYTES_A_FRAME, _FRAMES_A_CALL = 1000.0, 50.0, 1024, 4.0
REFUSAL_COST = 10.0  # of a refused or failed stream, in such frames


class Outgoing:
    """Frames to be sent, and the peer's budget for frames without data.

    Args:
        clock: Returns seconds; `time.monotonic` except in tests.

    Attributes:
        frames: The encoded frames, in the order in which they are sent.
        budget: Budget for frames without data.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.frames: deque[bytes] = deque()
        self.budget = Budget(_BUDGET, _BUDGET_PER_S, clock)

    def add(self, frame: bytes) -> None:
        """Queues a small frame; raises `ProtocolError` if too many are queued."""
        if len(self.frames) >= _MAX_QUEUED:
            raise ProtocolError("the peer sends without reading", ErrorCode.ENHANCE_YOUR_CALM)
        self.frames.append(frame)

    def add_reset(self, number: int, code: ErrorCode, reason: str) -> None:
        """Queues RST_STREAM because of an error of the peer, at the cost of a refusal."""
        self.add(frames.reset(number, code))
        self.budget.spend(REFUSAL_COST, reason)

    def sent_data(self, num_bytes: int) -> None:
        """Refills the budget after DATA that the peer may acknowledge."""
        self.budget.earn(num_bytes / _BYTES_A_FRAME)

    def answered_call(self) -> None:
        """Refills the budget after a call that has been answered."""
        self.budget.earn(_FRAMES_A_CALL)
