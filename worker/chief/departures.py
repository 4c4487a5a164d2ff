"""Shards that are about to stop, and the checkpoint that each of them waits for. Pure: no clock, no I/O, no threads.

A shard that is to stop sends a request several times a second, and serves until it may stop. The chief gathers
requests of other shards for a moment (a whole pool of machines may be preempted), writes one checkpoint for all of
them, and admits them together: a stopped shard could not write its part of a checkpoint that another waits for.
All times are seconds of one monotonic clock; `downpour.worker.chief.chief` holds a lock around every call.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_GATHER_S = 0.5  # from the first request to the checkpoint
_FORGET_S = 5.0  # a shard without a request for so long has stopped


@dataclass
class _Request:
    incarnation: int
    asked_s: float
    heard_s: float
    served: bool = False
    told: bool = False


@dataclass
class Departures:
    """Requests of shards to stop. One is unserved until a checkpoint that began after it has been written."""

    _requests: dict[int, _Request] = field(default_factory=dict)  # by shard
    _writing: list[_Request] = field(default_factory=list)

    def ask(self, shard: int, incarnation: int, now_s: float) -> bool:
        """Records a shard's request to stop; returns whether it may: no request is unserved any longer."""
        known = self._requests.get(shard)
        if known is None or known.incarnation != incarnation:
            known = self._requests[shard] = _Request(incarnation, now_s, now_s)
        known.heard_s = now_s
        known.told = not self._unserved(now_s)
        return known.told

    def waiting(self, now_s: float) -> bool:
        """Whether a shard that is about to stop has not yet received the answer that it may."""
        return any(not r.told and now_s - r.heard_s <= _FORGET_S for r in self._requests.values())

    def due(self, now_s: float) -> bool:
        """Whether to begin a checkpoint."""
        unserved = self._unserved(now_s)
        return bool(unserved) and now_s - min(request.asked_s for request in unserved) >= _GATHER_S

    def begin(self, now_s: float) -> None:
        """Records that a checkpoint begins."""
        self._writing = self._unserved(now_s)

    def end(self) -> None:
        """Records that the checkpoint has been written; not called for one that fails."""
        for request in self._writing:
            request.served = True
        self._writing = []

    def _unserved(self, now_s: float) -> list[_Request]:
        return [r for r in self._requests.values() if not r.served and now_s - r.heard_s <= _FORGET_S]
