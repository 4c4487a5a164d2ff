"""Pulls as differences: a publication that all workers share, and the changes since it.

A pull of the live vector w costs two bytes a parameter in bfloat16. A worker that holds a publication p, the vector as
it was some pushes ago, needs only the difference:

    d = int8(w - p)         or int4; block-scaled, `downpour.proto.numerics.convert.quantize`
    bfloat16(p + d)         `downpour.proto.numerics.convert.advance`

which is half or a quarter of the bytes, and as fresh as a live pull. p is known exactly, so the rounding error of d
does not carry over to the next pull: errors never add up. The farther w has moved from p, the coarser d is, so a new
publication is made after some pushes, from the last one and block by block in the same way:

    p' = bfloat16(p + int8(w - p))

and a worker that has p receives that difference, which is encoded once for all workers, and computes the same p', bit
for bit. A worker without p (it has just started, or missed a publication, or its shard restarted) receives p' itself.

Statistics are sent as float32 with every pull. Numbers of publications begin at random, so that one from before a
restart of the shard is not mistaken for one of this process.

Threads: any may call. One makes a publication while the others are served the previous one.
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
from downpour.proto.rpc.calls import Last
from downpour.ps.layout.chunks import DIFFERENCE_ELEMENTS, chunks_of_differences, chunks_of_values
from downpour.ps.shard.vector import Vector

_WITH_STATUS = 1 << 18  # elements of a last chunk, at most, that is sent with the status, when others may pull already
_PIECE = 1 << 16  # elements encoded at a time, which fit a core's cache; whole blocks


@dataclass(frozen=True)
class Publication:
    """One publication of the trained part of the vector.

    Attributes:
        header: Its version and its number.
        trained: [num_trained] bfloat16 bits.
        differences: Messages that lead to it from the publication numbered one less; empty for the first.
    """

    header: pb.PullHeader
    trained: np.ndarray
    differences: Sequence[Message]

    def messages(self, known: int) -> Iterable[Message]:
        """Messages from which a worker with the publication `known`, 0 for none, obtains this one."""
        if known == self.header.publication:
            return ()
        if self.differences and known == self.header.publication - 1:
            return self.differences
        # Encoded anew for each worker: few need it, and keeping the messages would take as much memory again.
        return _encoded(
            (
                codec.Outgoing(start, stop - start, codec.BFLOAT16, self.trained[start:stop])
                for start, stop in chunks_of_values(self.trained.size)
            ),
            self.header,
        )


class Publisher:
    """Makes a shard's publications, and differences to them.

    Args:
        vector: The shard's vector.
        differences: Codec of differences, INT8 or INT4.
    """

    def __init__(self, vector: Vector, differences: int) -> None:
        self._vector = vector
        self._codec = differences
        self._making = threading.Lock()
        self._latest: Publication | None = None
        self._number = secrets.randbits(62) + 1

    def pull(self, every: int, known: int) -> Iterator[Message]:
        """The messages of a pull by a worker that has the publication `known`; each is valid until the next is taken.

        Args:
            every: Number of pushes after which a new publication is made.
            known: Number of the worker's publication; 0 for none.
        """
        publication = self.latest(every)
        number = publication.header.publication
        yield from publication.messages(known)
        header: pb.PullHeader | None = pb.PullHeader(version=self._vector.version, publication=number, live=True)
        longest = min(DIFFERENCE_ELEMENTS[self._codec], self._vector.num_trained)
        room = codec.new_blocks(self._codec, longest)
        for start, stop in self._cut():
            blocks = room if stop - start == longest else codec.new_blocks(self._codec, stop - start)
            self._differ(start, publication.trained[start:stop], blocks)
            yield codec.chunk_parts(start, self._codec, blocks[0], header, count=stop - start)
            header = None
        is_new = known not in (number, number - 1)  # frozen values do not change
        stop = self._vector.size if is_new else self._vector.num_pushed
        yield from live(self._vector, codec.BFLOAT16, self._vector.num_trained, stop, header)

    def latest(self, every: int) -> Publication:
        """A publication followed by fewer than `every` pushes, or the previous one while another thread makes it."""
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
        return chunks_of_differences(self._codec, self._vector.num_trained)

    def _differ(
        self,
        first: int,
        before: np.ndarray,
        blocks: tuple[np.ndarray, np.ndarray, np.ndarray],
        after: np.ndarray | None = None,
    ) -> None:
        """Encodes the difference of the live vector from a publication, elements [first, first + n).

        Args:
            first: First element.
            before: [n] bfloat16 bits of the publication.
            blocks: From `codec.new_blocks`, to be filled.
            after: Receives [n] bfloat16 bits of the publication that the difference leads to.
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
                    convert.difference(self._vector.values(a, b), before[mine], into)
            its_scales = scales[start // codec.BLOCK : codec.num_blocks(stop)]
            part = q[number * bytes_per_piece : (number + 1) * bytes_per_piece]
            quantize(difference[: stop - start], its_scales, part)
            if after is not None:
                convert.advance(self._codec, before[start:stop], its_scales, part, after[start:stop])


def live(vector: Vector, wire: int, start: int, stop: int, header: pb.PullHeader | None) -> Iterator[Message]:
    """The current elements [start, stop), as messages; their values may be shared with those of other pulls.

    Args:
        vector: The shard's vector.
        wire: Codec of all elements but statistics.
        start: First element; a part of the vector (trained, statistics, frozen) begins there.
        stop: One past the last; a part ends there.
        header: Header of the first message; with a header there is a message even without elements.
    """
    trained, pushed = vector.num_trained, vector.num_pushed
    for part_wire, begin, end in ((wire, 0, trained), (codec.FLOAT32, trained, pushed), (wire, pushed, vector.size)):
        for a, b in vector.cut(max(begin, start), min(end, stop)):
            parts = codec.chunk_parts(a, part_wire, vector.encoded(a, b, part_wire), header)
            yield Last(parts) if b == stop and b - a <= _WITH_STATUS else parts
            header = None
    if header:
        yield only(header)


def _encoded(chunks: Iterable[codec.Outgoing], header: pb.PullHeader) -> Iterator[Message]:
    """Messages of some chunks, the first with the header; there is one even without chunks."""
    first: pb.PullHeader | None = header
    for chunk in chunks:
        yield chunk.encode(first)
        first = None
    if first:
        yield only(first)


def only(header: pb.PullHeader) -> Message:
    """A message without elements."""
    return codec.chunk_parts(0, codec.FLOAT32, np.empty(0, np.float32), header)
