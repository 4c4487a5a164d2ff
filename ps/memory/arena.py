"""A shard's memory: its numbers, counters and ledger in one memory-mapped file.

A process that dies leaves the file as it was; the next one maps it, undoes interrupted changes
(`downpour.ps.memory.undo`), and continues. The file is locked while it is mapped, so a second process on the same arena
is refused. Without a path the memory is anonymous.

    offset 0     header    magic, size and checksum of it and the specification, marks "complete" and "closed"; 1 page
    4096         the ShardSpecification as protobuf
    ...          counters  one record, and that of the rate behind it; zeros before this version
    ...          rounds    one record a chunk
    ...          ledger    one record a worker
    ...          undo log  a few records
    ...          vectors   parameters, each optimizer slot, the average, the sum of a round; float32, each on a page
                           boundary
    ...          elements saved by the undo log

The mark "complete" is written last when an arena is created, so a half-created one counts as empty. Nothing is flushed
to the disk before the arena is closed: if the machine went down meanwhile, which its boot id shows, the file may hold
anything, and counts as empty, too. The shard then needs a checkpoint.
Threads: none of its own; `downpour.ps.shard.shard` guards every access.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import logging

from downpour.proto import parameter_server_pb2 as pb
from downpour.ps.layout import Layout, from_canonical
from downpour.ps.layout.chunks import PIECE_ELEMENTS
from downpour.ps.memory.ledger import COUNTERS, LEDGER_ENTRY, NUM_WORKERS, RATE
from downpour.ps.memory.mapping import lock_and_map, reserve, unlock, use_huge_pages
from downpour.ps.memory.undo import RECORD, UndoLog
from downpour.ps.policy import pace, rules, staleness
from downpour.ps.policy.named import from_message
from downpour.ps.policy.pace import ROUND, Async, Means, Sync
from downpour.ps.testing.points import reach

_PAGE = 4096
_MAGIC = b"DOWNPOUR ARENA 5"
_MARK = 0x4D41524B  # value of a mark that is set; 0 if it is not

_HEADER = np.dtype(
    [
        ("magic", "S16"),
        ("specification_bytes", "<u4"),
        ("crc", "<u4"),  # of everything before it, and of the specification
        ("complete", "<u4"),
        ("closed", "<u4"),  # everything is on the disk, and nothing has been mapped since
        ("boot", "S40"),  # boot id of the machine when it was mapped last
    ]
)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Steps at a time: the pushes received at a time, and one for others. Sums change whole regions, one at a time.
_NUM_STEPS = 4


class Arena:
    """The mapped memory of one shard.

    Attributes:
        specification: The specification that the chief sent.
        layout: The layout inside the specification.
        counters_record: [1] COUNTERS.
        counters: The record in it.
        rate_record: [1] RATE.
        ledger: [NUM_WORKERS] LEDGER_ENTRY, indexed by worker.
        vectors: [n] float32 each, by name: `parameters`, `slot.NAME` for each slot of the rule, `slot.average` if the
            job keeps an average, `sum` of the gradients of an update where several make one.
        parameters: The shard's vector, one of `vectors`.
        slots: The vectors of the slots, in the order of the rule's `slots`.
        average: The vector of the average, or None; initialised by `start_average`.
        sum: The vector of the sum; empty where each gradient is an update.
        chunks: (start, stop) of the chunks that a push is cut into.
        rounds: One `downpour.ps.policy.pace.ROUND` a chunk.
        records: The four records that a checkpoint holds beside the vectors, by name.
        undo: The undo log.
    """

    def __init__(self, memory: mmap.mmap, specification: pb.ShardSpecification, file_descriptor: int | None) -> None:
        self.specification = specification
        self.layout = from_canonical(specification.layout)
        self._memory = memory
        self._file_descriptor = file_descriptor  # holds the lock for as long as the process lives
        self.chunks = self.layout.chunks(specification.shard)
        names = vector_names(specification)
        offsets = _Offsets(specification, self.layout, len(names))
        self.counters_record = np.frombuffer(memory, COUNTERS, 1, offsets.counters)
        self.counters = self.counters_record[0]
        self.rate_record = np.frombuffer(memory, RATE, 1, offsets.counters + COUNTERS.itemsize)
        self.ledger = np.frombuffer(memory, LEDGER_ENTRY, NUM_WORKERS, offsets.ledger)
        self.rounds = np.frombuffer(memory, ROUND, len(self.chunks), offsets.rounds)
        self.records = {"counters": self.counters_record, "rate": self.rate_record, "ledger": self.ledger}
        self.records["rounds"] = self.rounds
        size = self.layout.size(specification.shard)
        vectors = np.ndarray((len(names), size), "<f4", memory, offsets.vectors[0], (offsets.stride, 4))
        self.vectors = dict(zip(names, vectors, strict=True))
        self._offsets = dict(zip(names, offsets.vectors, strict=True))
        self.parameters = vectors[0]
        self.slots = list(vectors[1 : 1 + _num_slots(specification)])
        self.average = self.vectors.get("slot.average")
        self.sum = self.vectors.get("sum", np.empty(0, np.float32))
        saved = np.frombuffer(memory, "<f4", offsets.num_saved, offsets.saved)
        saved = saved.reshape(offsets.num_steps, len(names) * offsets.longest_step)
        records = np.frombuffer(memory, RECORD, 1 + offsets.num_steps, offsets.undo)
        self.undo = UndoLog(records, saved, vectors, self.counters_record, self.ledger, self.rounds)

    @property
    def num_bytes(self) -> int:
        """Size of the mapping in bytes."""
        return len(self._memory)

    @classmethod
    def create(cls, path: Path | None, specification: pb.ShardSpecification, *, hollow: bool = False) -> Arena:
        """Creates an arena with slots at their initial values and parameters at zero, not yet marked complete.

        Args:
            path: File of the arena; None for anonymous memory.
            specification: The specification that the chief sent.
            hollow: Leave all vectors to `write`; nothing may access them before that.

        Raises:
            ValueError: The file is mapped by another process, or there is no room for it.
        """
        offsets = _Offsets(specification, from_canonical(specification.layout), len(vector_names(specification)))
        if path:
            memory, descriptor = lock_and_map(path, offsets.total, empty=True)
            use_huge_pages(memory, descriptor)
            reserve(descriptor, path, 0, offsets.vectors[0] if hollow else offsets.total)
            reserve(descriptor, path, offsets.saved, offsets.total)
        else:
            memory, descriptor = mmap.mmap(-1, offsets.total), None
        reach("arena.reserved")
        body = specification.SerializeToString()
        memory[_PAGE : _PAGE + len(body)] = body
        header = np.frombuffer(memory, _HEADER, 1)
        header["magic"], header["specification_bytes"] = _MAGIC, len(body)
        header["crc"], header["boot"] = _crc(body), _boot_id()
        reach("arena.described")
        arena = cls(memory, specification, descriptor)
        if not hollow:
            values = from_message(rules.BY_NAME, specification.rule).slots.values()
            for slot, value in zip(arena.slots, values, strict=True):
                slot[:] = value
            reach("arena.slots")
        return arena

    @classmethod
    def open(cls, path: Path, shard: int | None = None) -> Arena | None:
        """Maps a complete arena again and undoes interrupted changes; None when there is no such arena.

        Args:
            path: File of the arena.
            shard: Index of the shard that it must belong to; None for any.

        Raises:
            ValueError: The file is mapped by another process, is not an arena of this version or of this shard, or its
                header is damaged.
        """
        if not path.exists() or path.stat().st_size == 0:
            return None
        if path.stat().st_size < _PAGE:
            raise ValueError(f"{path} is not an arena of this version of Downpour; remove it or give another --arena")
        memory, descriptor = lock_and_map(path, path.stat().st_size, empty=False)
        reserve(descriptor, path, 0, len(memory), made_now=False)  # takes no room: all of it was reserved when made
        header = np.frombuffer(memory, _HEADER, 1)[0]
        if header["magic"] == b"" or (header["magic"] == _MAGIC and not header["complete"]):
            unlock(descriptor)  # creation was interrupted: counts as empty
            return None
        body = memory[_PAGE : _PAGE + int(header["specification_bytes"])]
        if header["magic"] != _MAGIC:
            unlock(descriptor)
            raise ValueError(f"{path} is not an arena of this version of Downpour; remove it or give another --arena")
        if _crc(body) != header["crc"] or header["complete"] != _MARK or header["closed"] not in (0, _MARK):
            unlock(descriptor)
            raise ValueError(
                f"the header of the arena {path} is damaged; remove it or give another --arena, and the chief fills "
                "the shard from the newest checkpoint"
            )
        specification = pb.ShardSpecification.FromString(body)
        if shard not in (None, specification.shard):
            unlock(descriptor)
            raise ValueError(
                f"the arena {path} is of shard {specification.shard}, and this is shard {shard}; give every shard its "
                "own --arena"
            )
        if not header["closed"] and header["boot"] != _boot_id():
            unlock(descriptor)
            logging.warning("the machine stopped while the arena %s was in use; its contents are discarded", path)
            return None
        layout = from_canonical(specification.layout)
        if len(memory) < _Offsets(specification, layout, len(vector_names(specification))).total:
            unlock(descriptor)
            raise ValueError(f"the arena {path} is cut off at {len(memory):,} bytes; remove it or give another --arena")
        header["closed"], header["boot"] = 0, _boot_id()
        memory.flush(0, _PAGE)  # before any change: on the disk the file must no longer be marked closed
        reach("arena.reopened")
        arena = cls(memory, specification, descriptor)
        undone = arena.undo.recover()
        if undone:
            logging.info("undid %d changes that the previous process had not completed", undone)
        return arena

    def write(self, name: str, at: int, content: np.ndarray) -> None:
        """Writes [n] uint8 into a vector, `at` bytes from its beginning.

        It writes to the file, not the mapping: without huge pages, small pages are allocated as they are written,
        instead of being reserved, cleared and mapped one by one before. That takes half as long.

        Raises:
            ValueError: There is no room.
        """
        if self._file_descriptor is None:
            self.vectors[name].view(np.uint8)[at : at + content.size] = content
            return
        try:
            written = os.pwrite(self._file_descriptor, content.data, self._offsets[name] + at)
        except OSError as error:
            raise ValueError(f"no room for the arena of {self.num_bytes:,} bytes: {error.strerror}") from None
        if written < content.size:
            raise ValueError(f"no room for the arena of {self.num_bytes:,} bytes: {name} was written in part")

    def start_average(self) -> None:
        """Sets the average, if there is one, to the present parameters."""
        if self.average is not None:
            self.average[:] = self.parameters
            reach("arena.averaged")

    def mark_complete(self) -> None:
        """Marks the arena complete, so that `open` continues from it."""
        np.frombuffer(self._memory, _HEADER, 1)["complete"] = _MARK
        reach("arena.complete")

    @contextlib.contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Closes a new arena if the block fails to fill it, so that its creation can be retried."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Flushes everything to the file's disk and releases the lock; the vectors must not change any longer.

        They stay mapped while anything refers to them.
        """
        if self._file_descriptor is not None:
            try:
                self._memory.flush()
                reach("arena.flushed")
                np.frombuffer(self._memory, _HEADER, 1)["closed"] = _MARK
                self._memory.flush(0, _PAGE)
                reach("arena.closed")
            finally:
                unlock(self._file_descriptor)
                self._file_descriptor = None


def vector_names(specification: pb.ShardSpecification) -> list[str]:
    """Names of a shard's vectors, in their order."""
    slots = [f"slot.{slot}" for slot in from_message(rules.BY_NAME, specification.rule).slots]
    average = ["slot.average"] * specification.HasField("average")
    return ["parameters", *slots, *average, *["sum"] * _has_sum(specification)]


def bytes_needed(specification: pb.ShardSpecification) -> int:
    """Size of a shard's arena in bytes."""
    return _Offsets(specification, from_canonical(specification.layout), len(vector_names(specification))).total


class _Offsets:
    """Byte offsets of the parts of an arena, and the sizes of its undo log."""

    def __init__(self, specification: pb.ShardSpecification, layout: Layout, num_vectors: int) -> None:
        chunks = layout.chunks(specification.shard)
        size = layout.size(specification.shard)
        self.num_steps, self.longest_step = _NUM_STEPS, min(PIECE_ELEMENTS, size)
        for group in layout.factored(specification.shard):  # of which a step is whole rows
            self.longest_step = max(self.longest_step, *(r.size // group.num_inputs for r in group.ranges))
        for start, stop in layout.uncut(specification.shard):
            self.longest_step = max(self.longest_step, stop - start)
        if _has_sum(specification):
            self.num_steps, self.longest_step = 1, max((stop - start for start, stop in chunks), default=0)
        self.counters = _page_up(_PAGE + specification.ByteSize())
        self.rounds = self.counters + _page_up(COUNTERS.itemsize + RATE.itemsize)
        self.ledger = self.rounds + _page_up(ROUND.itemsize * len(chunks))
        self.undo = self.ledger + _page_up(LEDGER_ENTRY.itemsize * NUM_WORKERS)
        first = self.undo + _page_up(RECORD.itemsize * (1 + self.num_steps))
        self.stride = _page_up(4 * size)
        self.vectors = [first + i * self.stride for i in range(num_vectors)]
        self.saved = first + num_vectors * self.stride
        self.num_saved = self.num_steps * num_vectors * self.longest_step
        self.total = self.saved + _page_up(4 * self.num_saved)


def means(specification: pb.ShardSpecification) -> Means:
    """Returns how many pushes make each update, but under the pace `Sync`."""
    mode = from_message(pace.BY_NAME, specification.pace) if specification.HasField("pace") else Async()
    if not specification.HasField("staleness"):
        return Means(1, mode)
    return Means(staleness.gradients_of(from_message(staleness.BY_NAME, specification.staleness)), mode)


def _has_sum(specification: pb.ShardSpecification) -> bool:
    return specification.pace.name == Sync.__name__ or not means(specification).are_single


def _num_slots(specification: pb.ShardSpecification) -> int:
    return len(from_message(rules.BY_NAME, specification.rule).slots)


def _boot_id() -> bytes:
    """The machine's boot id, new after every start; empty where the system has none."""
    try:
        return _BOOT_ID.read_bytes().strip()
    except OSError:
        return b""


def _crc(specification: bytes) -> int:
    """Checksum of the constant part of a header, and of the specification."""
    return zlib.crc32(_MAGIC + len(specification).to_bytes(4, "little") + specification)


def _page_up(num_bytes: int) -> int:
    return -(-num_bytes // _PAGE) * _PAGE
