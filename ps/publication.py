"""Publications: the vector as it was at some version, encoded once and served to every worker that asks.

A pull of the live vector is encoded for one worker. A publication is shared: the shard makes a new one when somebody
asks and enough pushes have come since the last, and everybody gets the same bytes until then. It costs as many
versions of staleness at most, which the versions say and the staleness counters include.

A publication p is a bfloat16 vector. The next one is made from the live vector w, block by block:

    d = int8(w - p)         block-scaled, `downpour.ps.kernels.quantize`
    p' = bfloat16(p + d)    `downpour.ps.kernels.advance`

and a worker that has p receives d, half the bytes of p', and computes the same p', bit for bit. What rounding left out
of d is in w - p' and so in the next difference: errors never add up. A worker without p (it has just come, or missed a
publication, or its shard has restarted) receives p' itself.

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
            return [codec.encode_chunk(0, codec.FLOAT32, np.empty(0, np.float32), self.header)]
        if self.differences and known == self.header.publication - 1:
            return self.differences
        return self.whole


class Publisher:
    """Makes a shard's publications.

    Args:
        shard: The shard.
    """

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._making = threading.Lock()
        self._latest: Publication | None = None
        self._published: dict[int, np.ndarray] = {}  # by first element, views of the messages of `whole`
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
        first: pb.PullHeader | None = header
        whole: list[bytes] = []
        differences: list[bytes] = []
        is_first = not self._published
        for start, stop in shard.cut(0, shard.num_trained):
            if is_first:
                values = shard.read(start, stop, codec.BFLOAT16)
            else:
                values, payload = self._advance(start, stop)
                differences.append(codec.encode_chunk(start, codec.INT8, payload, first, count=stop - start))
            whole.append(codec.encode_chunk(start, codec.BFLOAT16, values, first))
            self._published[start] = codec.decode_chunk(whole[-1]).values()
            first = None
        for start, stop in shard.cut(shard.num_trained, shard.num_pushed):
            message = codec.encode_chunk(start, codec.FLOAT32, shard.read(start, stop, codec.FLOAT32), first)
            whole.append(message)
            differences.append(message)
            first = None
        for start, stop in shard.cut(shard.num_pushed, shard.size):
            whole.append(codec.encode_chunk(start, codec.BFLOAT16, shard.read(start, stop, codec.BFLOAT16), first))
            first = None
        if not whole:  # a shard without parameters has a version all the same
            whole.append(codec.encode_chunk(0, codec.FLOAT32, np.empty(0, np.float32), header))
        return Publication(header, whole, [] if is_first or not self._published else differences)

    def _advance(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The next publication of [start, stop), and the payload that leads to it."""
        before = self._published[start]
        num_scales = -(-before.size // codec.INT8_BLOCK)
        payload = np.empty(4 * num_scales + before.size, np.uint8)
        scales, q = payload[: 4 * num_scales].view(np.float32), payload[4 * num_scales :].view(np.int8)
        difference, after = np.empty(before.size, np.float32), np.empty(before.size, np.uint16)
        with self._shard.unchanged(start):
            kernels.difference(self._shard.arena.parameters[start:stop], before, difference)
        kernels.quantize(difference, scales, q)
        kernels.advance(before, scales, q, after)
        return after, payload
