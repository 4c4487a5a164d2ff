"""The undo log of an arena: what makes each step of an update happen wholly or not at all.

A process can die between any two instructions, and what it had stored until then is in the arena. So before anything
is changed, it is copied into a record of the log, and the record is armed; when the change is whole, the record is
disarmed, by one aligned store. Whoever maps the arena next writes back what an armed record holds. Two kinds of change:

    a step          elements [start, stop) of some vectors, how far the pushes in question have come (ledger), and
                    under the pace `Sync` the round of the chunk
    bookkeeping     all counters and one worker's ledger entry: a push begins, or is complete and counted

A push is many steps. One that is cut off by the death of the process is undone; the ledger then says where its push
stands, to the element, the worker sends the push again, and the rest is applied: each element once.

Stores of a process that was killed are not lost, since the kernel keeps the pages; those of a machine that lost power
may be, in any order, so an arena that was not closed is only continued under the boot of the machine it was written
under (`downpour.ps.arena`).

Order: a step is armed with the shard's lock held, and bookkeeping happens within one hold of that lock. So where both
are armed bookkeeping began later, and is undone first.

Threads: any may take steps, as many at a time as there are records; others wait. Two steps never touch the same
elements at a time: regions are locked (`downpour.ps.regions`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

import numpy as np

from downpour.proto.errors import NotReady
from downpour.ps.ledger import COUNTERS, LEDGER_ENTRY
from downpour.ps.pace import ROUND
from downpour.ps.points import reach

MAX_WORKERS = 16  # whose pushes one step applies

RECORD = np.dtype(
    [
        ("armed", "<u8"),
        ("start", "<u8"),
        ("stop", "<u8"),
        ("vectors", "<u8"),  # a bit for each vector whose elements were saved
        ("has_round", "<u8"),
        ("chunk", "<u8"),
        ("round", ROUND),
        ("has_counters", "<u8"),
        ("counters", COUNTERS),
        ("num_workers", "<u8"),
        ("workers", "<u8", (MAX_WORKERS,)),
        ("entries", LEDGER_ENTRY, (MAX_WORKERS,)),
    ]
)
# Where its fields lie, in words of 8 bytes, which all of them are made of.
_AT = {name: at // 8 for name, (_, at, *_) in RECORD.fields.items()}  # type: ignore[union-attr]
_ARMED, _START, _STOP = _AT["armed"], _AT["start"], _AT["stop"]
_NUM_WORKERS, _WORKERS, _ENTRIES = _AT["num_workers"], _AT["workers"], _AT["entries"]
_VECTORS, _HAS_ROUND, _HAS_COUNTERS, _COUNTERS = _AT["vectors"], _AT["has_round"], _AT["has_counters"], _AT["counters"]
_ENTRY_WORDS, _COUNTER_WORDS = LEDGER_ENTRY.itemsize // 8, COUNTERS.itemsize // 8


class UndoLog:
    """The log over one arena's memory.

    Args:
        records: [1 + n] RECORD: one for bookkeeping, n for steps.
        saved: [n, number of vectors, longest step] float32.
        vectors: [number of vectors, size] float32, the arena's.
        counters: [1] COUNTERS.
        ledger: LEDGER_ENTRY, indexed by worker.
        rounds: One ROUND a chunk.

    Attributes:
        closed: No change may begin any longer.
    """

    def __init__(
        self,
        records: np.ndarray,
        saved: np.ndarray,
        vectors: np.ndarray,
        counters: np.ndarray,
        ledger: np.ndarray,
        rounds: np.ndarray,
    ) -> None:
        self._records, self._saved, self._vectors = records, saved, vectors
        self._counters, self._ledger, self._rounds = counters, ledger, rounds
        self.closed = False  # guarded by the shard's lock
        # The same memory as integers: steps are taken hundreds of times a push, and numpy's records are slow.
        self._words = [records[i : i + 1].view("<u8").data for i in range(len(records))]
        self._ledger_words, self._counter_words = ledger.view("<u8").data, counters.view("<u8").data
        self._free = list(range(1, len(records)))  # records that nobody uses; the last one used is in the cache
        self._num_free = threading.Semaphore(len(self._free))

    def recover(self) -> int:
        """Undoes what was cut off; returns how many changes that were."""
        armed = [number for number in range(len(self._records)) if self._records[number]["armed"]]
        for number in armed:  # bookkeeping, number 0, first
            self._undo(number)
        return len(armed)

    def steps(self, lock: threading.Lock, vectors: slice) -> Steps:
        """For steps one after another, while a block lasts.

        Args:
            lock: The shard's; not held.
            vectors: Numbers of those that the steps change.
        """
        return Steps(self, lock, vectors)

    @contextlib.contextmanager
    def bookkeeping(self, worker: int) -> Iterator[None]:
        """What the block does to all counters and a worker's entry happens wholly or not at all; the lock is held."""
        self._refuse_if_closed()
        words = self._words[0]
        words[_VECTORS], words[_HAS_ROUND], words[_HAS_COUNTERS] = 0, 0, 1
        words[_COUNTERS : _COUNTERS + _COUNTER_WORDS] = self._counter_words
        words[_NUM_WORKERS], words[_WORKERS] = 1, worker
        of = worker * _ENTRY_WORDS
        words[_ENTRIES : _ENTRIES + _ENTRY_WORDS] = self._ledger_words[of : of + _ENTRY_WORDS]
        reach("bookkeeping.described")
        words[_ARMED] = 1
        reach("bookkeeping.armed")
        try:
            yield
            reach("bookkeeping.changed")
        except BaseException:
            self._undo(0)
            raise
        words[_ARMED] = 0
        reach("bookkeeping.disarmed")

    def _refuse_if_closed(self) -> None:
        if self.closed:
            raise NotReady("the shard is stopping")

    def _undo(self, number: int) -> None:
        """Writes back what a record holds; may be cut off itself and done again."""
        record = self._records[number]
        start, stop = int(record["start"]), int(record["stop"])
        for i in _bits(int(record["vectors"])):
            self._vectors[i][start:stop] = self._saved[number - 1][i, : stop - start]
            reach("undo.vector")
        reach("undo.vectors")
        if record["has_round"]:
            self._rounds[int(record["chunk"])] = record["round"]
            reach("undo.round")
        if record["has_counters"]:
            self._counters[0] = record["counters"]
            reach("undo.counters")
        for worker, before in zip(record["workers"], record["entries"][: int(record["num_workers"])], strict=False):
            entry = self._ledger[int(worker)]
            # A step leaves alone the entry of a push that another has replaced since.
            same = entry["incarnation"] == before["incarnation"] and entry["sequence"] == before["sequence"]
            if same or record["has_counters"]:
                self._ledger[int(worker)] = before
        reach("undo.ledger")
        record["armed"] = 0
        reach("undo.disarmed")


class Steps:
    """Steps that one thread takes one after another, with a record of the log for as long as its block lasts.

    Whatever the block does to what `begin` has named happens wholly, if it comes to `end`, or not at all.
    No context manager for each, no numpy records: hundreds of steps are taken a push.
    """

    __slots__ = ("_is_armed", "_lock", "_log", "_number", "_vectors", "_words")

    def __init__(self, log: UndoLog, lock: threading.Lock, vectors: slice) -> None:
        self._log, self._lock, self._vectors = log, lock, vectors

    def __enter__(self) -> Self:
        self._log._num_free.acquire()
        self._number, self._is_armed = self._log._free.pop(), False
        self._words = self._log._words[self._number]
        self._words[_VECTORS] = (1 << self._vectors.stop) - (1 << self._vectors.start)
        self._words[_HAS_COUNTERS] = 0
        return self

    def begin(self, start: int, stop: int, workers: Sequence[int], chunk: int | None = None) -> None:
        """Saves what a step may change.

        Args:
            start: First element that it changes.
            stop: One past the last; no more elements than the log has room for.
            workers: At most MAX_WORKERS whose ledger entries say how far their push is applied.
            chunk: Whose round the step changes, if it does.
        """
        log, words, vectors = self._log, self._words, self._vectors
        np.copyto(log._saved[self._number - 1, vectors, : stop - start], log._vectors[vectors, start:stop])
        reach("step.copied")
        words[_START], words[_STOP], words[_NUM_WORKERS] = start, stop, len(workers)
        with self._lock:
            log._refuse_if_closed()
            for i, worker in enumerate(workers):
                to, of = _ENTRIES + i * _ENTRY_WORDS, worker * _ENTRY_WORDS
                words[_WORKERS + i] = worker
                words[to : to + _ENTRY_WORDS] = log._ledger_words[of : of + _ENTRY_WORDS]
            words[_HAS_ROUND] = chunk is not None
            if chunk is not None:
                record = log._records[self._number]
                record["chunk"], record["round"] = chunk, log._rounds[chunk]
            reach("step.described")
            words[_ARMED] = 1
        self._is_armed = True
        reach("step.armed")

    def end(self) -> None:
        """The step is whole."""
        reach("step.changed")
        self._words[_ARMED] = 0
        self._is_armed = False
        reach("step.disarmed")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._is_armed:
                self._log._undo(self._number)
        finally:
            self._log._free.append(self._number)
            self._log._num_free.release()


def _bits(mask: int) -> list[int]:
    return [i for i in range(mask.bit_length()) if mask >> i & 1]
