"""Pulls as differences: a publication that all workers share, and what has come since it.

A pull of the live vector w costs two bytes a parameter in bfloat16. A worker that holds a publication p, the vector as
it was some pushes ago, needs only what differs from it:

    d = int8(w - p)         or int4; block-scaled, `downpour.proto.numerics.convert.quantize`
    bfloat16(p + d)         `downpour.proto.numerics.convert.advance`

which is half or a quarter of the bytes, and as fresh as a live pull. p is known exactly, so what rounding left out of d
is gone with the next pull: errors never add up. The farther w has moved from p, the coarser d is, so a new publication
is made after some pushes, from the last one and block by block in the same way:

    p' = bfloat16(p + int8(w - p))

and a worker that has p receives that difference, which is encoded once for all workers, and computes the same p', bit
for bit. A worker without p (it has just come, or missed a publication, or its shard has restarted) receives p' itself.

Statistics travel as float32 with every pull. Numbers of publications begin at random, so that one from before a restart
of the shard is not mistaken for one of this process.

Threads: any may call. One makes a publication while the others are served with the one before.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.http2.connection import Message
from downpour.proto.numerics import convert
from downpour.ps.shard.vector import Vector

# Elements of a message of differences: 2 MB, as one of bfloat16 has. A multiple of a block.
_ELEMENTS: dict[int, int] = {codec.INT8: 2 * codec.CHUNK_ELEMENTS, codec.INT4: 4 * codec.CHUNK_ELEMENTS}

_PIECE = 1 << 16  # elements that are worked on at a time, which fit a core's cache; whole blocks


@dataclass(frozen=True)
class Publication:
    """One publication, of the trained part.

    Attributes:
        header: Its version and its number.
        trained: [num_trained] bfloat16 bits.
        differences: What leads to it from the publication numbered one less, as messages; empty for the first.
    """

    header: pb.PullHeader
    trained: np.ndarray
    differences: Sequence[Message]

    def messages(self, known: int) -> Iterable[Message]:
        """What a worker that has the publication `known` must receive to have this one; 0 for none."""
        if known == self.header.publication:
            return ()
        if self.differences and known == self.header.publication - 1:
            return self.differences
        # Not kept as messages: few workers need it, and it would take as much memory again.
        return _encoded(
            (
                codec.Outgoing(start, stop - start, codec.BFLOAT16, self.trained[start:stop])
                for start, stop in codec.split(0, self.trained.size)
            ),
            self.header,
        )


class Publisher:
    """Makes a shard's publications, and differences to them.

    Args:
        vector: The shard's.
        differences: Codec of differences, INT8 or INT4.
    """

    def __init__(self, vector: Vector, differences: int) -> None:
        self._vector = vector
        self._codec = differences
        self._making = threading.Lock()
        self._latest: Publication | None = None
        self._number = secrets.randbits(62) + 1

    def pull(self, every: int, known: int) -> Iterator[Message]:
        """The messages of a pull by a worker that has the publication `known`; each is good until the next.

        Args:
            every: A new publication is made when so many pushes have come since the last.
            known: Number of a publication; 0 for none.
        """
        publication = self.latest(every)
        number = publication.header.publication
        yield from publication.messages(known)
        header: pb.PullHeader | None = pb.PullHeader(version=self._vector.version, publication=number, live=True)
        room = codec.new_blocks(self._codec, min(_ELEMENTS[self._codec], self._vector.num_trained))
        for start, stop in self._cut():
            blocks = room if stop - start == _ELEMENTS[self._codec] else codec.new_blocks(self._codec, stop - start)
            self._differ(start, publication.trained[start:stop], blocks)
            yield codec.chunk_parts(start, self._codec, blocks[0], header, count=stop - start)
            header = None
        is_new = known not in (number, number - 1)  # frozen values do not change
        stop = self._vector.size if is_new else self._vector.num_pushed
        yield from live(self._vector, codec.BFLOAT16, self._vector.num_trained, stop, header)

    def latest(self, every: int) -> Publication:
        """A publication that fewer than `every` pushes have followed, or the one before while that is made."""
        latest = self._latest
        if latest is None or self._vector.version >= latest.header.version + every:
            if self._making.acquire(blocking=latest is None):
                try:
                    if self._latest is latest:  # else another thread was faster
                        self._latest = self._make()
                finally:
                    self._making.release()
            latest = self._latest
            assert latest is not None
        return latest

    def _make(self) -> Publication:
        vector, before = self._vector, self._latest
        self._number += 1
        header = pb.PullHeader(version=vector.version, publication=self._number)
        trained = np.empty(vector.num_trained, np.uint16)
        if before is None:
            for start, stop in vector.cut(0, vector.num_trained):
                vector.read(start, stop, trained[start:stop])
            return Publication(header, trained, ())
        differences = []
        for start, stop in self._cut():
            blocks = codec.new_blocks(self._codec, stop - start)
            self._differ(start, before.trained[start:stop], blocks, trained[start:stop])
            differences.append(codec.Outgoing(start, stop - start, self._codec, blocks[0]))
        return Publication(header, trained, list(_encoded(differences, header)))

    def _cut(self) -> Iterator[tuple[int, int]]:
        """The trained part in messages of differences."""
        for start in range(0, self._vector.num_trained, _ELEMENTS[self._codec]):
            yield start, min(start + _ELEMENTS[self._codec], self._vector.num_trained)

    def _differ(
        self,
        first: int,
        before: np.ndarray,
        blocks: tuple[np.ndarray, np.ndarray, np.ndarray],
        after: np.ndarray | None = None,
    ) -> None:
        """Encodes how the live vector differs from a publication's [first, first + n).

        Args:
            first: Of the elements.
            before: [n] bfloat16 bits of the publication.
            blocks: As `codec.new_blocks` gives them, to be filled.
            after: Gets the publication that the difference leads to.
        """
        _, scales, q = blocks
        quantize = convert.quantize if self._codec == codec.INT8 else convert.quantize4
        difference = np.empty(_PIECE, np.float32)
        bytes_per_piece = codec.blocks_bytes(self._codec, _PIECE) - 4 * codec.num_blocks(_PIECE)
        for number, start in enumerate(range(0, before.size, _PIECE)):
            stop = min(start + _PIECE, before.size)
            for a, b in self._vector.cut(first + start, first + stop):
                mine = slice(a - first, b - first)
                into = difference[a - first - start : b - first - start]
                with self._vector.unchanged(a):
                    convert.difference(self._vector.parameters[a:b], before[mine], into)
            its_scales = scales[start // codec.BLOCK : codec.num_blocks(stop)]
            part = q[number * bytes_per_piece : (number + 1) * bytes_per_piece]
            quantize(difference[: stop - start], its_scales, part)
            if after is not None:
                convert.advance(self._codec, before[start:stop], its_scales, part, after[start:stop])


def live(vector: Vector, wire: int, start: int, stop: int, header: pb.PullHeader | None) -> Iterator[Message]:
    """Elements [start, stop) of the moment, as messages; their values may be shared with those of other pulls.

    Args:
        vector: The shard's.
        wire: Codec of all but statistics.
        start: Of the elements; the beginning of a part of the vector.
        stop: The end of one.
        header: For the first message, of which there is one even without elements.
    """
    trained, pushed = vector.num_trained, vector.num_pushed
    for part_wire, begin, end in ((wire, 0, trained), (codec.FLOAT32, trained, pushed), (wire, pushed, vector.size)):
        for a, b in vector.cut(max(begin, start), min(end, stop)):
            yield codec.chunk_parts(a, part_wire, vector.encoded(a, b, part_wire), header)
            header = None
    if header:
        yield _only(header)


def _encoded(chunks: Iterable[codec.Outgoing], header: pb.PullHeader) -> Iterator[Message]:
    """Messages, of which the first carries the header; there is one even without chunks."""
    first: pb.PullHeader | None = header
    for chunk in chunks:
        yield chunk.encode(first)
        first = None
    if first:
        yield _only(first)


def _only(header: pb.PullHeader) -> Message:
    return codec.chunk_parts(0, codec.FLOAT32, np.empty(0, np.float32), header)
