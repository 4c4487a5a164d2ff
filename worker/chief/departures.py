"""Shards that are about to end, and the checkpoint that each of them waits for. Pure: no clock, no I/O, no threads.

A shard that has been told to end says so, several times a second, and goes on serving until it may go. The chief
gathers for a moment who else leaves (a whole pool of machines may be taken away), writes one checkpoint for all of
them, and lets them go together: one that had gone could not write its part of a checkpoint that another waits for.
All times are seconds of one monotonic clock; `downpour.worker.chief.chief` holds a lock around every call.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_GATHER_S = 0.5  # from the first request to the checkpoint
_FORGET_S = 5.0  # a shard that says nothing for so long has gone


@dataclass
class _Request:
    incarnation: int
    asked_s: float
    heard_s: float
    served: bool = False
    told: bool = False


@dataclass
class Departures:
    """Who leaves. A request is due until a checkpoint that began after it has been written."""

    _requests: dict[int, _Request] = field(default_factory=dict)  # by shard
    _writing: list[_Request] = field(default_factory=list)

    def ask(self, shard: int, incarnation: int, now_s: float) -> bool:
        """A shard leaves; returns whether it may go: nobody waits for a checkpoint any longer that needs it."""
        known = self._requests.get(shard)
        if known is None or known.incarnation != incarnation:
            known = self._requests[shard] = _Request(incarnation, now_s, now_s)
        known.heard_s = now_s
        known.told = not self._unserved(now_s)
        return known.told

    def waiting(self, now_s: float) -> bool:
        """Whether a shard that leaves has yet to be told that it may go."""
        return any(not r.told and now_s - r.heard_s <= _FORGET_S for r in self._requests.values())

    def due(self, now_s: float) -> bool:
        """Whether to begin a checkpoint."""
        unserved = self._unserved(now_s)
        return bool(unserved) and now_s - min(request.asked_s for request in unserved) >= _GATHER_S

    def begin(self, now_s: float) -> None:
        """A checkpoint begins."""
        self._writing = self._unserved(now_s)

    def end(self) -> None:
        """It has been written; one that fails is just not ended."""
        for request in self._writing:
            request.served = True
        self._writing = []

    def _unserved(self, now_s: float) -> list[_Request]:
        return [r for r in self._requests.values() if not r.served and now_s - r.heard_s <= _FORGET_S]
