"""A shard's memory: its numbers, counters and ledger in one memory-mapped file.

A process that dies leaves the file as it was; the next one maps it and continues. The file is locked while it
is mapped, so a second process on the same arena is refused. Without a path the memory is anonymous.

    offset 0     header    magic, sizes, checksum of the specification, "complete" mark; 1 page
    4096         the ShardSpecification as protobuf
    ...          counters  one record
    ...          rounds    one record a chunk
    ...          ledger    one record a worker
    ...          vectors   parameters, each optimizer slot, the average, the sum of a round; float32, each on a page
                           boundary

The mark is written last when an arena is created, so a half-created one counts as empty.
Threads: none of its own; `downpour.ps.shard` guards every access.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import zlib
from pathlib import Path

import numpy as np

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.ps import rules
from downpour.ps.layout import Layout, from_canonical
from downpour.ps.named import from_message
from downpour.ps.pace import ROUND, Sync

NUM_WORKERS = 1024
STALENESS_BUCKETS = 256

_PAGE = 4096
_MAGIC = b"DOWNPOUR ARENA 2"

_HEADER = np.dtype(
    [("magic", "S16"), ("specification_bytes", "<u4"), ("specification_crc", "<u4"), ("complete", "<u4")]
)
COUNTERS = np.dtype(
    [
        ("version", "<u8"),  # updates applied
        ("pushes", "<u8"),  # acknowledged, dropped ones included
        ("dropped", "<u8"),  # pushes of which some or all was not applied
        ("refused", "<u8"),  # pushes with non-finite numbers
        ("repeated", "<u8"),  # pushes that came again after they had been applied
        ("staleness", "<u8", (STALENESS_BUCKETS,)),  # histogram; the last bucket holds all above
    ]
)
# The last push of each worker. `applied` elements of it are in the parameters; it counts once `complete` is set.
LEDGER_ENTRY = np.dtype(
    [
        ("incarnation", "<u8"),
        ("sequence", "<u8"),
        ("applied", "<u8"),
        ("staleness", "<u8"),
        ("complete", "<u4"),
        ("dropped", "<u4"),
    ]
)


class Arena:
    """The mapped memory of one shard.

    Attributes:
        specification: What the chief initialised it with.
        layout: The layout inside the specification.
        counters: One COUNTERS record.
        ledger: [NUM_WORKERS] LEDGER_ENTRY, indexed by worker.
        parameters: [n] float32, the shard's vector.
        slots: One [n] float32 for each optimizer slot, in the order of the rule's `slots`.
        average: [n] float32, the average of the parameters if the job keeps one; it starts as `start_average` says.
        chunks: (start, stop) of the chunks that a push is cut into.
        rounds: One `downpour.ps.pace.ROUND` a chunk.
        sum: [n] float32, gradients of the round under the pace `Sync`; empty under others.
    """

    def __init__(self, memory: mmap.mmap, specification: pb.ShardSpecification, file_descriptor: int | None) -> None:
        self.specification = specification
        self.layout = from_canonical(specification.layout)
        self._memory = memory
        self._file_descriptor = file_descriptor  # holds the lock for as long as the process lives
        places = _places(specification, self.layout)
        self.counters = np.frombuffer(memory, COUNTERS, 1, places.counters)[0]
        self.ledger = np.frombuffer(memory, LEDGER_ENTRY, NUM_WORKERS, places.ledger)
        self.chunks = _chunks(self.layout, specification.shard)
        self.rounds = np.frombuffer(memory, ROUND, len(self.chunks), places.rounds)
        size = self.layout.size(specification.shard)
        vectors = [np.frombuffer(memory, "<f4", size, at) for at in places.vectors]
        self.sum = vectors.pop() if _is_sync(specification) else np.empty(0, np.float32)
        self.average = vectors.pop() if specification.HasField("average") else None
        self.parameters, *self.slots = vectors

    @property
    def saved(self) -> list[np.ndarray]:
        """What a checkpoint holds: parameters, each slot, and the average if there is one."""
        return [self.parameters, *self.slots, *([] if self.average is None else [self.average])]

    @property
    def num_bytes(self) -> int:
        """Size of the mapping."""
        return len(self._memory)

    @classmethod
    def create(cls, path: Path | None, specification: pb.ShardSpecification) -> Arena:
        """Makes an arena, its slots at their initial values, its parameters zero and not yet `complete`.

        Raises:
            ValueError: The file is mapped by another process, or there is no room for it.
        """
        layout = from_canonical(specification.layout)
        places = _places(specification, layout)
        memory, descriptor = _map(path, places.total, empty=True) if path else (mmap.mmap(-1, places.total), None)
        body = specification.SerializeToString()
        memory[_PAGE : _PAGE + len(body)] = body
        header = np.frombuffer(memory, _HEADER, 1)
        header["magic"], header["specification_bytes"] = _MAGIC, len(body)
        header["specification_crc"] = zlib.crc32(body)
        arena = cls(memory, specification, descriptor)
        for slot, value in zip(
            arena.slots, from_message(rules.BY_NAME, specification.rule).slots.values(), strict=True
        ):
            slot[:] = value
        return arena

    @classmethod
    def open(cls, path: Path) -> Arena | None:
        """Maps a complete arena again; None when there is none.

        Raises:
            ValueError: The file is mapped by another process, or is not an arena of this version.
        """
        if not path.exists() or path.stat().st_size < _PAGE:
            return None
        memory, descriptor = _map(path, path.stat().st_size, empty=False)
        header = np.frombuffer(memory, _HEADER, 1)[0]
        if header["magic"] == b"" or (header["magic"] == _MAGIC and not header["complete"]):
            _unlock(descriptor)  # creation was interrupted: as good as none
            return None
        body = memory[_PAGE : _PAGE + int(header["specification_bytes"])]
        if header["magic"] != _MAGIC or zlib.crc32(body) != header["specification_crc"]:
            _unlock(descriptor)
            raise ValueError(f"{path} is not an arena of this version of Downpour; remove it or give another --arena")
        return cls(memory, pb.ShardSpecification.FromString(body), descriptor)

    def start_average(self) -> None:
        """The average, if there is one, begins at the present parameters."""
        if self.average is not None:
            self.average[:] = self.parameters

    def mark_complete(self) -> None:
        """From here on the file is worth continuing from."""
        np.frombuffer(self._memory, _HEADER, 1)["complete"] = 1

    def close(self) -> None:
        """Gives up the lock. The numbers stay mapped until nobody refers to them."""
        if self._file_descriptor is not None:
            _unlock(self._file_descriptor)
            self._file_descriptor = None


class _Places:
    """Byte offsets of the parts of an arena."""

    def __init__(self, specification_bytes: int, num_chunks: int, vector_bytes: int, num_vectors: int) -> None:
        self.counters = _page_up(_PAGE + specification_bytes)
        self.rounds = self.counters + _page_up(COUNTERS.itemsize)
        self.ledger = self.rounds + _page_up(ROUND.itemsize * num_chunks)
        first = self.ledger + _page_up(LEDGER_ENTRY.itemsize * NUM_WORKERS)
        stride = _page_up(vector_bytes)
        self.vectors = [first + i * stride for i in range(num_vectors)]
        self.total = first + num_vectors * stride


def _places(specification: pb.ShardSpecification, layout: Layout) -> _Places:
    rule = from_message(rules.BY_NAME, specification.rule)
    num_chunks = len(_chunks(layout, specification.shard))
    num_vectors = 1 + len(rule.slots) + specification.HasField("average") + _is_sync(specification)
    return _Places(specification.ByteSize(), num_chunks, 4 * layout.size(specification.shard), num_vectors)


def _chunks(layout: Layout, shard: int) -> list[tuple[int, int]]:
    """As workers cut a push: factored variables, the other trained ones, the statistics."""
    factored, trained, pushed = layout.num_factored(shard), layout.num_trained(shard), layout.num_pushed(shard)
    groups = [(group.start, group.start + group.size) for group in layout.factored(shard)]
    return [*groups, *codec.split(factored, trained), *codec.split(trained, pushed)]


def _is_sync(specification: pb.ShardSpecification) -> bool:
    return specification.pace.name == Sync.__name__


def _page_up(num_bytes: int) -> int:
    return -(-num_bytes // _PAGE) * _PAGE


def _map(path: Path, num_bytes: int, *, empty: bool) -> tuple[mmap.mmap, int]:
    """Locks and maps a file, which is emptied first or left as it is."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(f"the arena {path} belongs to a running shard; stop it or give another --arena") from None
    if empty:
        os.ftruncate(descriptor, 0)  # what an interrupted creation left
    try:
        # Reserve the blocks now: a full disk must be an error here, not a SIGBUS in the middle of an update.
        os.posix_fallocate(descriptor, 0, num_bytes)
    except OSError as error:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            path.unlink()
        raise ValueError(f"no room for the arena {path} of {num_bytes:,} bytes: {error.strerror}") from None
    return mmap.mmap(descriptor, num_bytes), descriptor


def _unlock(descriptor: int) -> None:
    """The mapping has a descriptor of its own, so closing this one would not give up the lock."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
