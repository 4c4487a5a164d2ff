"""The undo log of an arena: makes each change of the arena atomic.

A process can die between any two instructions, and what it had stored until then is in the arena. So the old values are
copied into a record of the log before they change; when the change is complete, one aligned store disarms the record.
The next process that maps the arena writes back the old values of an incomplete change. Two kinds of change:

    a step          elements of some vectors, one run of them after another, from the first on; how far the pushes in
                    question are applied (ledger), and under the pace `Sync` the round of the chunk
    bookkeeping     all counters and one worker's ledger entry: a push begins, or is complete and counted

A step's record has three words for its elements:

    saved_start     first element of the saved run
    saved_stop      one past its last
    position        all elements before this one are changed, and none after the saved run

A run [a, b) is saved while `saved_start` is not `position`, which is a; then `saved_start` becomes a, the elements
change, and `position` becomes b. So the run is undone where both are equal, and then all pushes of the step have been
applied exactly up to `position`. A run is a piece, or within the compiled loops some hundred elements, so that what is
saved of them stays in the first-level cache (`downpour.ps.apply.loops`).

A push takes many steps. A step interrupted by the death of the process ends at `position`; recovery records that in the
ledger, the worker retries the push, and the rest is applied: each element once.

Stores of a process that was killed are not lost, since the kernel keeps the pages; those of a machine that lost power
may be, in any order, so an arena that was not closed is only continued under the boot of the machine it was written
under (`downpour.ps.memory.arena`). For the same reason only the order of the stores within the program matters.

Order: a step is armed with the shard's lock held, and bookkeeping happens within one hold of that lock. So where both
are armed, bookkeeping began later, and is undone first.

Threads: any may take steps, as many at a time as there are records; others wait. Two steps never touch the same
elements at a time: regions are locked (`downpour.ps.apply.regions`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

import numpy as np

from downpour.proto.errors import NotReady
from downpour.ps.memory.ledger import COUNTERS, LEDGER_ENTRY
from downpour.ps.policy.pace import ROUND
from downpour.ps.testing.points import reach

MAX_WORKERS = 16  # most workers whose pushes one step applies

RECORD = np.dtype(
    [
        ("armed", "<u8"),
        ("saved_start", "<u8"),
        ("saved_stop", "<u8"),
        ("position", "<u8"),
        ("vectors", "<u8"),  # a bit for each vector whose elements are saved
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
# Offsets of its fields in words of 8 bytes; every field is whole words.
_AT = {name: at // 8 for name, (_, at, *_) in RECORD.fields.items()}  # type: ignore[union-attr]
_ARMED, _SAVED_START, _SAVED_STOP, _POSITION = (
    _AT[name] for name in ("armed", "saved_start", "saved_stop", "position")
)
_NUM_WORKERS, _WORKERS, _ENTRIES = _AT["num_workers"], _AT["workers"], _AT["entries"]
_VECTORS, _HAS_ROUND, _HAS_COUNTERS, _COUNTERS = _AT["vectors"], _AT["has_round"], _AT["has_counters"], _AT["counters"]
_ENTRY_WORDS, _COUNTER_WORDS = LEDGER_ENTRY.itemsize // 8, COUNTERS.itemsize // 8
_NOWHERE = (1 << 64) - 1  # no element


class UndoLog:
    """The log over one arena's memory.

    Args:
        records: [1 + n] RECORD: one for bookkeeping, n for steps.
        saved: [n, number of vectors * longest run] float32.
        vectors: [number of vectors, size] float32, the arena's.
        counters: [1] COUNTERS.
        ledger: LEDGER_ENTRY, indexed by worker.
        rounds: One ROUND a chunk.

    Attributes:
        closed: Whether new changes are refused.
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
        # The same memory as integers: numpy's records are slow.
        arrays = [records[i : i + 1].view("<u8") for i in range(len(records))]
        self._words = [array.data for array in arrays]
        self._progress = [array[_SAVED_START : _POSITION + 1] for array in arrays]
        self._ledger_words, self._counter_words = ledger.view("<u8").data, counters.view("<u8").data
        self._free = list(range(1, len(records)))  # unused records, as a stack: the last one used is in the cache
        self._num_free = threading.Semaphore(len(self._free))

    def recover(self) -> int:
        """Undoes interrupted changes; returns their number."""
        armed = [number for number in range(len(self._records)) if self._records[number]["armed"]]
        for number in armed:  # bookkeeping, number 0, first
            self._undo(number)
        return len(armed)

    def steps(self, lock: threading.Lock, vectors: slice) -> Steps:
        """A context manager for consecutive steps of one thread.

        Args:
            lock: The shard's lock, not held where the steps begin or end.
            vectors: Indices of the vectors that the steps change.
        """
        return Steps(self, lock, vectors)

    @contextlib.contextmanager
    def bookkeeping(self, worker: int) -> Iterator[None]:
        """Makes the block's changes of the counters and of a worker's entry atomic; the shard's lock is held."""
        self._refuse_if_closed()
        words = self._words[0]
        words[_HAS_ROUND], words[_HAS_COUNTERS] = 0, 1
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
        """Writes back what a record holds; if interrupted itself, it may be repeated."""
        record = self._records[number]
        start, stop, position = (int(record[name]) for name in ("saved_start", "saved_stop", "position"))
        if number and start == position:
            vectors = _bits(int(record["vectors"]))
            for i, saved in zip(vectors, self._rows(number, len(vectors), stop - start), strict=True):
                self._vectors[i][start:stop] = saved
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
            # A step does not restore the entry of a push that a later one has replaced.
            same = entry["incarnation"] == before["incarnation"] and entry["sequence"] == before["sequence"]
            if same or record["has_counters"]:
                self._ledger[int(worker)] = before
            if same and number and not record["has_round"]:
                entry["applied"] = position
        reach("undo.ledger")
        record["armed"] = 0
        reach("undo.disarmed")

    def _rows(self, number: int, num_vectors: int, size: int) -> np.ndarray:
        """The saved elements of a record of steps, [vectors, size]; one vector after another."""
        return self._saved[number - 1, : num_vectors * size].reshape(num_vectors, size)


class Steps:
    """Consecutive steps of one thread, with a record of the log while its block lasts.

    If the block fails, the changes that `begin` announced remain exactly up to one element.

    Attributes:
        saved: Room for the elements of a run, one vector after another, float32.
        progress: The record's saved_start, saved_stop and position.
    """

    __slots__ = ("_is_armed", "_lock", "_log", "_number", "_vectors", "_words", "progress", "saved")

    def __init__(self, log: UndoLog, lock: threading.Lock, vectors: slice) -> None:
        self._log, self._lock, self._vectors = log, lock, vectors

    def __enter__(self) -> Self:
        log = self._log
        log._num_free.acquire()
        self._number, self._is_armed = log._free.pop(), False
        self.saved, self.progress = log._saved[self._number - 1], log._progress[self._number]
        self._words = log._words[self._number]
        self._words[_VECTORS] = (1 << self._vectors.stop) - (1 << self._vectors.start)
        self._words[_HAS_COUNTERS] = 0
        return self

    def begin(self, position: int, workers: Sequence[int], chunk: int | None = None) -> None:
        """Begins a step, of which nothing is saved yet.

        Args:
            position: First element that it changes.
            workers: At most MAX_WORKERS workers, whose ledger entries say how far their pushes are applied.
            chunk: Chunk whose round the step changes, if any.
        """
        log, words = self._log, self._words
        words[_SAVED_START], words[_POSITION], words[_NUM_WORKERS] = _NOWHERE, position, len(workers)
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

    def save(self, start: int, stop: int) -> None:
        """Saves the run that changes next; `start` is the position. The run must fit the log's room."""
        size, vectors = stop - start, self._vectors
        rows = self._log._rows(self._number, vectors.stop - vectors.start, size)
        np.copyto(rows, self._log._vectors[vectors, start:stop])
        self._words[_SAVED_STOP] = stop
        reach("step.copied")
        self._words[_SAVED_START] = start
        reach("step.saved")

    def advance(self, position: int) -> None:
        """Records that all elements before `position` are changed."""
        reach("step.changed")
        self._words[_POSITION] = position
        reach("step.advanced")

    def end(self) -> None:
        """Ends the step, which is complete."""
        reach("step.changed")
        self._words[_ARMED] = 0
        self._is_armed = False
        reach("step.disarmed")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._is_armed:
                with self._lock:
                    self._log._undo(self._number)
        finally:
            self._log._free.append(self._number)
            self._log._num_free.release()


def _bits(mask: int) -> list[int]:
    return [i for i in range(mask.bit_length()) if mask >> i & 1]
