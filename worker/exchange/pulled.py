"""One shard's parameters as a worker holds them, filled by pulls. No sockets, no TensorFlow."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import MalformedChunk
from downpour.proto.numerics import convert
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
    """Result of pulls from one shard, whole or as differences to a publication (`downpour.ps.shard.publication`).

    Args:
        layout: The job's.
        shard: Index of the shard.
        wire: Codec of the trained and the frozen part.
        differences: Whether pulls are differences; the publication is then kept, too.

    Attributes:
        version: Version of `latest`.
        num_bytes: Bytes received for it.
        pushed: Answer to the push in the same call, and when it was received, a moment of `time.monotonic()`; None
            without one.
    """

    def __init__(self, layout: Layout, shard: int, wire: pb.Codec, *, differences: bool = False) -> None:
        self._dtype = dtype = codec.WIRE_DTYPES[wire]
        self._num_trained, self._num_pushed = layout.num_trained(shard), layout.num_pushed(shard)
        self._size = layout.size(shard)
        self._sets = [self._vectors()]
        self.version = 0
        self.num_bytes = 0
        self.pushed: tuple[pb.PushReply, float] | None = None
        self._is_filled = False  # whether a whole pull has ended
        self._differences = differences
        self._published = np.empty(self._num_trained if differences else 0, dtype)
        self._publication = 0  # number of the publication held; 0 for none or a part
        self._base = 0  # that number when the pull began
        self._header = pb.PullHeader()  # of the part being received
        self._position = 0  # elements of that part received

    @property
    def latest(self) -> Vectors:
        """Result of the last whole pull."""
        return self._sets[0]

    def keep(self) -> None:
        """From now on `latest` stays as it is while the next pull is received, which takes twice the memory."""
        if len(self._sets) == 1:
            self._sets.append(self._vectors())

    def begin(self) -> int:
        """Begins a pull, perhaps after one that broke; returns the publication that differences may refer to."""
        self._base = self._publication if self._is_filled else 0
        self._position, self.num_bytes, self._header, self.pushed = 0, 0, pb.PullHeader(), None
        return self._base

    def place(self, beginning: memoryview, num_bytes: int) -> memoryview | None:
        """Returns where to receive the rest of a chunk whose beginning has arrived, so that it is not copied.

        None if the chunk must be decoded by `receive`.
        """
        try:
            chunk = codec.decode_chunk(beginning, num_bytes)
            target, _ = self._target(chunk)
        except MalformedChunk:  # `receive` raises it
            return None
        room = target.view(np.uint8).data
        first = len(chunk.payload)
        if codec.WIRE_DTYPES.get(chunk.codec) != target.dtype or len(room) - first != num_bytes - len(beginning):
            return None
        self._took(chunk, len(room))
        room[:first] = chunk.payload
        return room[first:]

    def receive(self, chunk: codec.Chunk) -> None:
        """Decodes the next chunk to its place.

        Raises:
            MalformedChunk: It is not the next one, or cannot be decoded.
        """
        target, base = self._target(chunk)
        if chunk.codec not in codec.WIRE_DTYPES and base is None:
            raise MalformedChunk(
                f"a chunk at {chunk.start} holds differences, and there is no publication that they refer to"
            )
        self._took(chunk, chunk.payload.nbytes)
        if base is None or chunk.codec in codec.WIRE_DTYPES:
            target[:] = chunk.values()
        else:
            convert.advance(chunk.codec, base, *chunk.blocks(), target)

    def end(self) -> None:
        """Ends the pull; `latest` is then its result.

        Raises:
            MalformedChunk: The pull was incomplete.
        """
        if self._header.publication and not self._header.live:
            raise MalformedChunk(f"publication {self._header.publication} was received without differences from it")
        if self._base and self._position == self._num_pushed:  # frozen values do not change
            self._sets[-1].frozen[:] = self.latest.frozen
        elif self._position != self._size:
            raise MalformedChunk(f"{self._position} of {self._size} elements were received")
        self._sets.reverse()
        self._is_filled = True
        self.version = self._header.version

    def _vectors(self) -> Vectors:
        return Vectors(
            np.empty(self._num_trained, self._dtype),
            np.empty(self._num_pushed - self._num_trained, np.float32),
            np.empty(self._size - self._num_pushed, self._dtype),
        )

    def _target(self, chunk: codec.Chunk) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns where the next chunk's elements belong, and what its differences refer to; None if to nothing."""
        header, position = self._part(chunk)
        if chunk.start != position:
            raise MalformedChunk(f"a chunk at {chunk.start} was received where {position} was expected")
        start, into, part = chunk.start, self._sets[-1], self._sets[-1].trained  # a chunk lies within one part
        if header.publication and not header.live:
            part = self._published
        else:
            for following in (into.statistics, into.frozen):
                if start >= part.size:
                    start, part = start - part.size, following
        stop = start + chunk.count
        if stop > part.size:
            raise MalformedChunk(
                f"a chunk of {chunk.count} elements was received where {part.size - start} were expected"
            )
        follows = header.live or (self._base and header.publication == self._base + 1)
        has_base = follows and (part is into.trained or part is self._published)
        return part[start:stop], self._published[start:stop] if has_base else None

    def _part(self, chunk: codec.Chunk) -> tuple[pb.PullHeader, int]:
        """Returns the header of the part that a chunk belongs to, and how many of its elements were received."""
        header = chunk.header
        if not isinstance(header, pb.PullHeader) or header == self._header:
            return self._header, self._position
        has_come = header.publication == self._header.publication and self._position == self._num_trained
        is_due = self._differences and (has_come or header.publication == self._base > 0)
        if header.live and not is_due:
            raise MalformedChunk(
                f"differences from publication {header.publication} were received, but not the publication"
            )
        if not header.live and (self._position or (header.publication and not self._differences)):
            raise MalformedChunk(
                f"publication {header.publication} was received where element {self._position} was expected"
            )
        return header, 0

    def _took(self, chunk: codec.Chunk, num_bytes: int) -> None:
        """Counts a chunk that is about to be written to its place."""
        self._header, self._position = self._part(chunk)
        if self.pushed is None and self._header.HasField("pushed"):
            self.pushed = self._header.pushed, time.monotonic()
        # While a publication is received, the buffer holds parts of two.
        self._publication = self._header.publication if self._header.live else 0
        self._position += chunk.count
        self.num_bytes += num_bytes
