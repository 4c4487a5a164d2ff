"""The ledger of pushes: makes each push count exactly once, however often it is sent.

A push is named by (worker, incarnation, sequence). For each worker the ledger keeps the last one and how many
elements of it are in the parameters, so an interrupted push continues where it stopped. No locks of its own: the
shard's lock guards it.
"""

from __future__ import annotations

import enum

import numpy as np

from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import TooManyWorkers, WorkerSuperseded
from downpour.ps.testing.points import reach

NUM_WORKERS = 1024
STALENESS_BUCKETS = 256

# A shard's counters, as stored in the arena and in checkpoints. All fields are 8 bytes, so that an array of such
# records is an array of integers, too.
COUNTERS = np.dtype(
    [
        ("version", "<u8"),  # updates applied
        ("pushes", "<u8"),  # acknowledged, dropped ones included
        ("dropped", "<u8"),  # pushes of which some or all was not applied
        ("refused", "<u8"),  # pushes with non-finite numbers
        ("repeated", "<u8"),  # pushes received again after they had been applied
        ("staleness", "<u8", (STALENESS_BUCKETS,)),  # histogram; the last bucket holds all above
    ]
)
# What the schedule's rate is multiplied by, written whole before its number, which counts changes; 0 before the first.
RATE = np.dtype([("factor", "<f8"), ("version", "<u8"), ("number", "<u8")])
# The last push of each worker. `applied` elements of it are in the parameters; it counts once `complete` is set.
LEDGER_ENTRY = np.dtype(
    [
        ("incarnation", "<u8"),
        ("sequence", "<u8"),
        ("applied", "<u8"),
        ("staleness", "<u8"),
        ("complete", "<u8"),
        ("dropped", "<u8"),
        ("pushes", "<u8"),  # complete ones, of all incarnations
    ]
)
_ENTRY_WORDS = LEDGER_ENTRY.itemsize // 8
_INCARNATION, _SEQUENCE, _APPLIED, _STALENESS, _COMPLETE, _DROPPED, _PUSHES = range(_ENTRY_WORDS)


class PushState(enum.Enum):
    """The state in the ledger of a push that begins."""

    NEW = enum.auto()
    BROKEN = enum.auto()  # received before, but not completed
    COMPLETE = enum.auto()  # nothing of it may be applied again


class Ledger:
    """The last push of every worker, over [NUM_WORKERS] LEDGER_ENTRY, indexed by worker."""

    def __init__(self, entries: np.ndarray) -> None:
        self._num_workers = len(entries)
        # The same memory as integers: numpy's records are slow, and some of this is done for every piece.
        self._words = entries.view("<u8").data

    def state(self, push: pb.PushHeader) -> PushState:
        """Returns the recorded state of a push that arrives.

        Raises:
            WorkerSuperseded: A newer incarnation of the worker has pushed.
            TooManyWorkers: There is no room for the worker's index.
        """
        if push.worker >= self._num_workers:
            raise TooManyWorkers(f"worker index {push.worker}; shards have room for {self._num_workers} workers")
        at = push.worker * _ENTRY_WORDS
        incarnation, sequence = self._words[at + _INCARNATION], self._words[at + _SEQUENCE]
        if push.incarnation < incarnation:
            raise WorkerSuperseded(
                f"worker {push.worker} incarnation {push.incarnation} pushes after incarnation {incarnation} "
                "of the same index did; give every running worker its own --index"
            )
        if (push.incarnation, push.sequence) > (incarnation, sequence):
            return PushState.NEW
        return PushState.COMPLETE if push.sequence < sequence or self._words[at + _COMPLETE] else PushState.BROKEN

    def begin(self, push: pb.PushHeader) -> None:
        """Replaces the worker's last push by a new one."""
        words, at = self._words, push.worker * _ENTRY_WORDS
        words[at + _COMPLETE] = 0
        reach("ledger.reopened")
        words[at + _APPLIED] = words[at + _DROPPED] = 0
        words[at + _INCARNATION] = push.incarnation
        reach("ledger.incarnation")
        words[at + _SEQUENCE] = push.sequence

    def applied(self, push: pb.PushHeader) -> int:
        """Number of elements of the push that are in the parameters.

        Raises:
            WorkerSuperseded: The worker has begun a later push meanwhile; this one is obsolete.
        """
        if not self._is_last(push):
            raise WorkerSuperseded(f"worker {push.worker} has begun a later push than {push.sequence}")
        return self._words[push.worker * _ENTRY_WORDS + _APPLIED]

    def advance(self, push: pb.PushHeader, applied: int) -> None:
        """Records that the first `applied` elements of the push are in the parameters; no effect if it was replaced."""
        if self._is_last(push):
            self._words[push.worker * _ENTRY_WORDS + _APPLIED] = applied

    def drop(self, push: pb.PushHeader) -> None:
        """Records that some or all of the push is not applied; no effect if it was replaced."""
        if self._is_last(push):
            self._words[push.worker * _ENTRY_WORDS + _DROPPED] = 1

    def is_dropped(self, push: pb.PushHeader) -> bool:
        """Whether `drop` was called for the worker's last push."""
        return bool(self._words[push.worker * _ENTRY_WORDS + _DROPPED])

    def complete(self, push: pb.PushHeader, staleness: int) -> None:
        """Marks the push as complete, and counts it."""
        words, at = self._words, push.worker * _ENTRY_WORDS
        words[at + _STALENESS] = staleness
        words[at + _PUSHES] += 1
        reach("ledger.counted")
        words[at + _COMPLETE] = 1

    def is_complete(self, push: pb.PushHeader) -> bool:
        """Whether this push, or a later one of the same incarnation, is complete.

        Raises:
            WorkerSuperseded: A newer incarnation of the worker has pushed.
        """
        words, at = self._words, push.worker * _ENTRY_WORDS
        if words[at + _INCARNATION] > push.incarnation:
            raise WorkerSuperseded(f"a newer incarnation of worker {push.worker} has pushed since")
        return bool(push.sequence < words[at + _SEQUENCE] or words[at + _COMPLETE])

    def staleness(self, push: pb.PushHeader) -> int:
        """Staleness recorded for the worker's last complete push."""
        return self._words[push.worker * _ENTRY_WORDS + _STALENESS]

    def _is_last(self, push: pb.PushHeader) -> bool:
        at = push.worker * _ENTRY_WORDS
        mine = self._words[at + _INCARNATION], self._words[at + _SEQUENCE]
        return mine == (push.incarnation, push.sequence)
