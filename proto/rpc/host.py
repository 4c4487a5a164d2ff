"""The interface of the server that its connections use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from downpour.proto.http2.assembly import Buffers
from downpour.proto.rpc.call_times import CallTimes
from downpour.proto.security.gate import Gate


class Host(Protocol):
    """The server, as one of its connections sees it.

    Attributes:
        buffers: For messages.
        gate: Admits and counts calls.
        times: Counts calls by method and status.
        is_stopping: Whether new calls are refused.
    """

    buffers: Buffers
    gate: Gate
    times: CallTimes

    @property
    def is_stopping(self) -> bool:
        """See above."""

    def find(self, method: str) -> Any:
        """Returns the handler of a method; None if there is none."""

    def run(self, job: Callable[[], None]) -> bool:
        """Queues a job for the pool; returns False if too many are queued, or the server stops."""

    def charge(self, seconds: float) -> None:
        """Deducts the cost of a connection that was ended for what it sent from the credit of unauthenticated ones."""
