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

import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.ps import kernels

if TYPE_CHECKING:
    from downpour.ps.shard import Shard

# Elements of a message of differences: 2 MB, as one of bfloat16 has. A multiple of a block.
_ELEMENTS: dict[int, int] = {codec.INT8: 2 * codec.CHUNK_ELEMENTS, codec.INT4: 4 * codec.CHUNK_ELEMENTS}

_PIECE = 1 << 16  # elements that are worked on at a time, which fit a core's cache; whole blocks


@dataclass(frozen=True)
class Publication:
    """One publication, as messages.

    Attributes:
        header: Its version and its number.
        whole: All of the vector.
        differences: What leads to it from the publication numbered one less; empty for the first.
    """

    header: pb.PullHeader
    whole: Sequence[bytes]
    differences: Sequence[bytes]

    def messages(self, known: int) -> Sequence[bytes]:
        """What a worker that has the publication `known` must receive; 0 for none."""
        if known == self.header.publication:
            return [_encode([], self.header)[0]]
        if self.differences and known == self.header.publication - 1:
            return self.differences
        return self.whole


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
        self._published: np.ndarray | None = None  # [num_trained] bfloat16 bits
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
        shard = self._shard
        self._number += 1
        header = pb.PullHeader(version=shard.version, publication=self._number)
        differences: list[codec.Outgoing] = []
        if self._published is None:
            self._published = np.empty(shard.num_trained, np.uint16)
            for start, stop in shard.cut(0, shard.num_trained):
                self._published[start:stop] = shard.read(start, stop, codec.BFLOAT16)
        else:
            step = _ELEMENTS[self._codec]
            starts = range(0, shard.num_trained, step)
            differences = [self._advance(start, min(start + step, shard.num_trained)) for start in starts]
        trained = [
            codec.Outgoing(start, stop - start, codec.BFLOAT16, self._published[start:stop])
            for start, stop in codec.split(0, shard.num_trained)
        ]
        statistics = self._read(shard.num_trained, shard.num_pushed, codec.FLOAT32)
        frozen = self._read(shard.num_pushed, shard.size, codec.BFLOAT16)
        return Publication(
            header,
            _encode([*trained, *statistics, *frozen], header),
            _encode([*differences, *statistics], header) if differences else [],
        )

    def _read(self, start: int, stop: int, wire: int) -> list[codec.Outgoing]:
        """[start, stop) of the live vector."""
        cut = self._shard.cut(start, stop)
        return [codec.Outgoing(a, b - a, wire, self._shard.read(a, b, wire)) for a, b in cut]

    def _advance(self, start: int, stop: int) -> codec.Outgoing:
        """Makes [start, stop) the next publication, and gives the difference that leads to it."""
        assert self._published is not None
        payload, scales, q = codec.new_blocks(self._codec, stop - start)
        quantize = kernels.quantize if self._codec == codec.INT8 else kernels.quantize4
        difference = np.empty(_PIECE, np.float32)
        for begin in range(start, stop, _PIECE):
            end = min(begin + _PIECE, stop)
            published = self._published[begin:end]
            for a, b in self._shard.cut(begin, end):
                into = difference[a - begin : b - begin]
                with self._shard.unchanged(a):
                    kernels.difference(self._shard.arena.parameters[a:b], self._published[a:b], into)
            first, num = (begin - start) // codec.BLOCK, codec.num_blocks(end - begin)
            at = codec.blocks_bytes(self._codec, begin - start) - 4 * first
            part = scales[first : first + num], q[at : at + codec.blocks_bytes(self._codec, end - begin) - 4 * num]
            quantize(difference[: end - begin], *part)
            kernels.advance(self._codec, published, *part, published)
        return codec.Outgoing(start, stop - start, self._codec, payload)


def _encode(chunks: Sequence[codec.Outgoing], header: pb.PullHeader) -> list[bytes]:
    """Messages of a stream; one of the header alone if there is nothing else."""
    if not chunks:
        return [codec.encode_chunk(0, codec.FLOAT32, np.empty(0, np.float32), header)]
    return [chunk.encode(None if number else header) for number, chunk in enumerate(chunks)]
