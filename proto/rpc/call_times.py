"""How long the calls of a server took, by method and status: gRPC's own server metrics.

The names, labels and bounds are those of gRPC proposal A66 (OpenTelemetry metrics): `grpc.server.call.started` and
`grpc.server.call.duration`, the time from the call's header fields to its status.

Threads: any; a lock guards the counts, and is taken twice a call.
"""

from __future__ import annotations

import bisect
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc

OTHER = "other"  # stands for methods that the server does not have, whose names a caller may invent

# Upper bounds of the histogram, seconds, from A66.
BOUNDS_S = (
    *(0, 0.00001, 0.00005, 0.0001, 0.0003, 0.0006, 0.0008, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008),
    *(0.01, 0.013, 0.016, 0.02, 0.025, 0.03, 0.04, 0.05, 0.065, 0.08),
    *(0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.65, 0.8, 1, 2, 5, 10, 20, 50, 100),
)


@dataclass
class Durations:
    """A histogram of durations.

    Attributes:
        counts: Calls that took at most each of `BOUNDS_S` and more than the one before; last, all longer ones.
        total_s: The sum of all durations.
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    total_s: float = 0.0

    def add(self, seconds: float) -> None:
        """Counts a call."""
        self.counts[bisect.bisect_left(BOUNDS_S, seconds)] += 1
        self.total_s += seconds


class CallTimes:
    """The calls of one server since it began."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Guarded by `_lock`.
        self._started = Counter[str]()
        self._ended: dict[tuple[str, str], Durations] = {}

    def began(self, method: str) -> None:
        """Counts a call that has begun.

        Args:
            method: `package.Service/Method`, or `OTHER`.
        """
        with self._lock:
            self._started[method] += 1

    def ended(self, method: str, status: grpc.StatusCode, seconds: float) -> None:
        """Counts a call that has ended, refused ones included."""
        with self._lock:
            self._ended.setdefault((method, status.name), Durations()).add(seconds)

    def started(self) -> Mapping[str, int]:
        """Returns the number of calls begun, by method."""
        with self._lock:
            return dict(self._started)

    def durations(self) -> Mapping[tuple[str, str], Durations]:
        """Returns a copy of the histogram of every (method, status) that a call has ended with."""
        with self._lock:
            return {key: Durations(list(found.counts), found.total_s) for key, found in self._ended.items()}
