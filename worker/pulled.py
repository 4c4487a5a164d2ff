"""One shard's parameters as a worker holds them, filled by pulls. No sockets, no TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import MalformedChunk
from downpour.ps import kernels
from downpour.ps.layout import Layout


@dataclass(frozen=True)
class Vectors:
    """A shard's vector in its three parts.

    Attributes:
        trained: [num_trained] in the wire dtype (bfloat16 as uint16 bits).
        statistics: [num_pushed - num_trained] float32.
        frozen: [size - num_pushed] in the wire dtype.
    """

    trained: np.ndarray
    statistics: np.ndarray
    frozen: np.ndarray


class Pulled:
    """What pulls of one shard gave, whole or as differences to a publication (`downpour.ps.publication`).

    Args:
        layout: The job's.
        shard: Index of the shard.
        wire: Codec of the trained and the frozen part.
        keep: Whether `latest` stays as it is while the next pull comes in, which takes twice the memory.

    Attributes:
        version: Of `latest`.
        num_bytes: Received for it.
    """

    def __init__(self, layout: Layout, shard: int, wire: pb.Codec, *, keep: bool) -> None:
        dtype, num_trained, num_pushed = codec.WIRE_DTYPES[wire], layout.num_trained(shard), layout.num_pushed(shard)
        self._size, self._num_pushed = layout.size(shard), num_pushed
        self._sets = [
            Vectors(
                np.empty(num_trained, dtype),
                np.empty(num_pushed - num_trained, np.float32),
                np.empty(self._size - num_pushed, dtype),
            )
            for _ in range(1 + keep)
        ]
        self.version = 0
        self.num_bytes = 0
        self._publication = 0  # that `latest` is; 0 for none
        self._position = 0
        self._header = pb.PullHeader()
        self._base = 0  # publication that differences are to

    @property
    def latest(self) -> Vectors:
        """What the last whole pull gave."""
        return self._sets[0]

    def begin(self) -> int:
        """A pull begins, perhaps after one that broke. Returns the publication that it may give differences to."""
        self._base, self._position, self.num_bytes = self._publication, 0, 0
        self._header = pb.PullHeader()
        if len(self._sets) == 1:
            self._publication = 0  # for as long as it is half of one and half of another
        return self._base

    def place(self, beginning: memoryview, num_bytes: int) -> memoryview | None:
        """Where the rest of a chunk belongs, of which only the beginning has come: chunks need not be copied then.

        None if the chunk must be decoded; `receive` takes it.
        """
        try:
            chunk = codec.decode_chunk(beginning, num_bytes)
            target, _ = self._target(chunk)
        except MalformedChunk:  # `receive` says why
            return None
        room = target.view(np.uint8).data
        first = len(chunk.payload)
        if codec.WIRE_DTYPES.get(chunk.codec) != target.dtype or len(room) - first != num_bytes - len(beginning):
            return None
        self._took(chunk, len(room))
        room[:first] = chunk.payload
        return room[first:]

    def receive(self, chunk: codec.Chunk) -> None:
        """Takes the next chunk.

        Raises:
            MalformedChunk: It is not the next one, or not readable.
        """
        target, base = self._target(chunk)
        if chunk.codec in codec.WIRE_DTYPES:
            target[:] = chunk.values()
        elif base is not None:
            kernels.advance(chunk.codec, base, *chunk.blocks(), target)
        else:
            raise MalformedChunk(f"a chunk at {chunk.start} holds differences to nothing")
        self._took(chunk, chunk.payload.nbytes)

    def _target(self, chunk: codec.Chunk) -> tuple[np.ndarray, np.ndarray | None]:
        """Where the next chunk's elements belong, and what differences are to, if they may be."""
        if chunk.start != self._position:
            raise MalformedChunk(f"a chunk at {chunk.start} came where {self._position} was due")
        start, into, part = chunk.start, self._sets[-1], self._sets[-1].trained  # a chunk lies within one part
        for following in (into.statistics, into.frozen):
            if start >= part.size:
                start, part = start - part.size, following
        stop = start + chunk.count
        if stop > part.size:
            raise MalformedChunk(f"a chunk of {chunk.count} elements came where {part.size - start} were due")
        has_base = part is into.trained and self._base
        return part[start:stop], self.latest.trained[start:stop] if has_base else None

    def _took(self, chunk: codec.Chunk, num_bytes: int) -> None:
        if isinstance(chunk.header, pb.PullHeader):
            self._header = chunk.header
        self._position += chunk.count
        self.num_bytes += num_bytes

    def end(self) -> None:
        """The pull is over; `latest` is what it gave.

        Raises:
            MalformedChunk: It did not give everything.
        """
        is_known = bool(self._base) and self._header.publication == self._base
        is_next = bool(self._base) and self._header.publication == self._base + 1
        if self._position == self._size or (is_next and self._position == self._num_pushed):
            if self._position < self._size:  # frozen values do not change, so nobody sends differences of them
                self._sets[-1].frozen[:] = self.latest.frozen
            self._sets.reverse()
        elif not (is_known and self._position == 0):
            raise MalformedChunk(f"{self._position} of {self._size} elements came")
        self.version, self._publication = self._header.version, self._header.publication
