"""Publications: the vector as it was at some version, encoded once and served to every worker that asks.

A pull of the live vector is encoded for one worker. A publication is shared: the shard makes a new one when somebody
asks and enough pushes have come since the last, and everybody gets the same bytes until then. It costs as many
versions of staleness at most, which the versions say and the staleness counters include.

A publication p is a bfloat16 vector. The next one is made from the live vector w, block by block:

    d = int8(w - p)         or int4; block-scaled, `downpour.ps.kernels.quantize`
    p' = bfloat16(p + d)    `downpour.ps.kernels.advance`

and a worker that has p receives d, half or a quarter of the bytes of p', and computes the same p', bit for bit. What
rounding left out of d is in w - p' and so in the next difference: errors never add up. A worker without p (it has just
come, or missed a publication, or its shard has restarted) receives p' itself.

Statistics travel as float32 with either. Numbers of publications begin at random, so that one from before a restart of
the shard is not mistaken for one of this process.

Threads: any may call `latest`. One makes a publication while the others are served the one before.
"""

from __future__ import annotations

import itertools
import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.http2 import Message
from downpour.ps import kernels

if TYPE_CHECKING:
    from downpour.ps.shard import Shard

# Elements of a message of differences: 2 MB, as one of bfloat16 has. A multiple of a block.
_ELEMENTS: dict[int, int] = {codec.INT8: 2 * codec.CHUNK_ELEMENTS, codec.INT4: 4 * codec.CHUNK_ELEMENTS}

_PIECE = 1 << 16  # elements that are worked on at a time, which fit a core's cache; whole blocks


@dataclass(frozen=True)
class Publication:
    """One publication.

    Attributes:
        header: Its version and its number.
        trained: [num_trained] bfloat16 bits.
        rest: Statistics and frozen values.
        differences: What leads to it from the publication numbered one less, as messages; empty for the first.
    """

    header: pb.PullHeader
    trained: np.ndarray
    rest: Sequence[codec.Outgoing]
    differences: Sequence[Message]

    def messages(self, known: int) -> Iterable[Message]:
        """What a worker that has the publication `known` must receive; 0 for none."""
        if known == self.header.publication:
            return _encoded([], self.header)
        if self.differences and known == self.header.publication - 1:
            return self.differences
        # Not kept as messages: few workers need it, and it would take as much memory again.
        trained = (
            codec.Outgoing(start, stop - start, codec.BFLOAT16, self.trained[start:stop])
            for start, stop in codec.split(0, self.trained.size)
        )
        return _encoded(itertools.chain(trained, self.rest), self.header)


class Publisher:
    """Makes a shard's publications.

    Args:
        shard: The shard.
        differences: Codec of differences, INT8 or INT4.
    """

    def __init__(self, shard: Shard, differences: int) -> None:
        self._shard = shard
        self._codec = differences
        self._making = threading.Lock()
        self._latest: Publication | None = None
        self._number = secrets.randbits(62) + 1

    def latest(self, every: int) -> Publication:
        """A publication that fewer than `every` pushes have followed, or the one before while that is made."""
        latest = self._latest
        if latest is None or self._shard.version >= latest.header.version + every:
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
        shard, before = self._shard, self._latest
        self._number += 1
        header = pb.PullHeader(version=shard.version, publication=self._number)
        trained = np.empty(shard.num_trained, np.uint16)
        differences: list[codec.Outgoing] = []
        if before is None:
            for start, stop in shard.cut(0, shard.num_trained):
                shard.read(start, stop, trained[start:stop])
        else:
            step = _ELEMENTS[self._codec]
            for start in range(0, shard.num_trained, step):
                part = slice(start, min(start + step, shard.num_trained))
                differences.append(self._advance(start, before.trained[part], trained[part]))
        statistics = self._read(shard.num_trained, shard.num_pushed, codec.FLOAT32)
        frozen = self._read(shard.num_pushed, shard.size, codec.BFLOAT16)
        messages = list(_encoded([*differences, *statistics], header)) if differences else []
        return Publication(header, trained, [*statistics, *frozen], messages)

    def _read(self, start: int, stop: int, wire: int) -> list[codec.Outgoing]:
        """[start, stop) of the live vector."""
        values = np.empty(stop - start, codec.WIRE_DTYPES[wire])
        cut = list(self._shard.cut(start, stop))
        for a, b in cut:
            self._shard.read(a, b, values[a - start : b - start])
        return [codec.Outgoing(a, b - a, wire, values[a - start : b - start]) for a, b in cut]

    def _advance(self, first: int, before: np.ndarray, after: np.ndarray) -> codec.Outgoing:
        """The difference that leads from one publication of [first, first + n) to the next, which it makes."""
        payload, scales, q = codec.new_blocks(self._codec, before.size)
        quantize = kernels.quantize if self._codec == codec.INT8 else kernels.quantize4
        difference = np.empty(_PIECE, np.float32)
        bytes_per_piece = codec.blocks_bytes(self._codec, _PIECE) - 4 * codec.num_blocks(_PIECE)
        for number, start in enumerate(range(0, before.size, _PIECE)):
            stop = min(start + _PIECE, before.size)
            for a, b in self._shard.cut(first + start, first + stop):
                mine = slice(a - first, b - first)
                into = difference[a - first - start : b - first - start]
                with self._shard.unchanged(a):
                    kernels.difference(self._shard.arena.parameters[a:b], before[mine], into)
            blocks = scales[start // codec.BLOCK : codec.num_blocks(stop)]
            part = q[number * bytes_per_piece : (number + 1) * bytes_per_piece]
            quantize(difference[: stop - start], blocks, part)
            kernels.advance(self._codec, before[start:stop], blocks, part, after[start:stop])
        return codec.Outgoing(first, before.size, self._codec, payload)


def _encoded(chunks: Iterable[codec.Outgoing], header: pb.PullHeader) -> Iterator[Message]:
    """Messages of a stream; one of the header alone if there is nothing else."""
    first: pb.PullHeader | None = header
    for chunk in chunks:
        yield chunk.encode(first)
        first = None
    if first:
        yield codec.chunk_parts(0, codec.FLOAT32, np.empty(0, np.float32), first)
