"""Cuts a gradient into the chunks of a push, and rounds it to the push codec. No sockets, no TensorFlow.

In INT8 the rounding error of each push is kept and added to the next gradient (error feedback: Seide et al. 2014;
Karimireddy et al. 2019, arXiv 1901.09847), so that over many pushes nothing is lost. Factors and statistics are not
rounded again. The last rounding errors of a worker that stops are lost.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.numerics import convert
from downpour.ps.layout import Layout


class Packer:
    """Cuts one shard's part of every push, and keeps the rounding errors.

    Args:
        layout: The job's.
        shard: Index of the shard.
        wire: Codec of the gradients given to `pack`.
        push: Codec in which they are pushed: `wire`, or INT8.

    Attributes:
        wire: As given.
        chunks: [start, stop) of the chunks of elements that are trained and not factored.
    """

    def __init__(self, layout: Layout, shard: int, wire: pb.Codec, push: pb.Codec) -> None:
        self._groups = layout.factored(shard)
        self._num_factored = layout.num_factored(shard)
        self.wire = wire
        self._num_trained = layout.num_trained(shard)
        size = self._num_trained - self._num_factored
        # Of the trained elements that are not factored; statistics come last.
        self.chunks = [(a, b) for a, b in layout.chunks(shard) if self._num_factored <= a < self._num_trained]
        self._left = np.zeros(size, np.float32) if push == codec.INT8 else None
        self._wide = np.empty(min(size, codec.CHUNK_ELEMENTS) if push == codec.INT8 else 0, np.float32)

    def pack(
        self,
        gradient: np.ndarray,
        differences: np.ndarray,
        factors: Sequence[tuple[np.ndarray, np.ndarray]],
        base: np.ndarray | None = None,
    ) -> list[codec.Outgoing]:
        """Returns the chunks of one push.

        Args:
            gradient: [num_trained - num_factored] in the wire dtype.
            differences: [num_pushed - num_trained] float32, of statistics.
            factors: For each factored variable x [rows, inputs] and d [rows, outputs], in the wire dtype.
            base: Parameters that the gradient was computed from, in the same order and dtype, to be sent along.
        """
        chunks = self.factored(factors)
        for at, end in self.chunks:
            start, stop = at - self._num_factored, end - self._num_factored
            chunks.append(self.dense(at, gradient[start:stop], None if base is None else base[start:stop]))
        return chunks + self.statistics(differences)

    def factored(self, factors: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[codec.Outgoing]:
        """Returns the chunks of factored variables; see `pack`."""
        chunks = []
        for group, both in zip(self._groups, factors, strict=True):
            chunks.append(codec.Outgoing(group.start, group.size, self.wire, both, rows=len(both[0])))
        return chunks

    def dense(self, start: int, gradient: np.ndarray, base: np.ndarray | None = None) -> codec.Outgoing:
        """Returns one of `chunks`, rounded to the push codec; see `pack`."""
        if self._left is None:
            return codec.Outgoing(start, gradient.size, self.wire, gradient, base)
        left = self._left[start - self._num_factored :][: gradient.size]
        return codec.Outgoing(start, gradient.size, codec.INT8, self._rounded(gradient, left))

    def dense_bytes(self, count: int) -> int:
        """Returns the bytes of a chunk of `count` elements in the push codec."""
        if self._left is None:
            return count * codec.WIRE_DTYPES[self.wire].itemsize
        return codec.blocks_bytes(codec.INT8, count)

    def statistics(self, differences: np.ndarray) -> list[codec.Outgoing]:
        """Returns the chunks of statistics; see `pack`."""
        return [
            codec.Outgoing(self._num_trained + start, stop - start, codec.FLOAT32, differences[start:stop])
            for start, stop in codec.split(0, differences.size)
        ]

    def _rounded(self, gradient: np.ndarray, left: np.ndarray) -> np.ndarray:
        """Returns the gradient plus the rounding error `left`, in INT8; `left` is then the new rounding error."""
        wide = self._wide[: gradient.size]
        convert.to_float32(gradient, wide)
        left += wide
        payload, scales, q = codec.new_blocks(codec.INT8, left.size)
        convert.quantize(left, scales, q)
        return payload
