"""Gradients of chunks, decoded piece by piece; a piece fits a core's cache together with the state it updates.

Pure; no locks. Pieces depend only on the layout, so a gradient's bits depend neither on the worker that pushes it nor
on the number of pushes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from downpour.proto import codec
from downpour.proto.errors import MalformedChunk
from downpour.proto.numerics import convert
from downpour.proto.numerics.sparse import Runs
from downpour.ps.layout import Factored

Piece = tuple[int, int]


class Source(Protocol):
    """The gradient of one chunk.

    Attributes:
        start: First element of the chunk.
        needs_room: Whether `gradient` writes to its `room`.
    """

    start: int
    needs_room: bool = True

    def num_non_finite(self) -> int:
        """How many values of the payload are NaN or infinite."""
        ...

    def first_non_finite(self) -> int:
        """The first element whose value is NaN or infinite; the chunk's first where the payload holds no elements."""
        return self.start

    def decode(self, piece: Piece, out: np.ndarray) -> None:
        """Writes the gradient of [start, stop) of the shard's vector into `out` [stop - start] float32."""
        ...

    def gradient(self, piece: Piece, room: np.ndarray) -> np.ndarray:
        """Returns a piece's gradient for an update rule: decoded into `room`, or a view of the payload if bfloat16."""
        self.decode(piece, room)
        return room


class Dense(Source):
    """A chunk that holds the gradient itself.

    Raises:
        MalformedChunk: See `Chunk.values`.
    """

    def __init__(self, chunk: codec.Chunk) -> None:
        self.start = chunk.start
        self._values = chunk.values()
        self.needs_room = self._values.dtype != np.uint16

    def num_non_finite(self) -> int:
        """See `Source.num_non_finite`."""
        return convert.num_non_finite(self._values)

    def first_non_finite(self) -> int:
        """See `Source.first_non_finite`."""
        return self.start + _first_non_finite(self._values)

    def decode(self, piece: Piece, out: np.ndarray) -> None:
        """See `Source.decode`."""
        convert.to_float32(self._part(piece), out)

    def gradient(self, piece: Piece, room: np.ndarray) -> np.ndarray:
        """See `Source.gradient`."""
        return super().gradient(piece, room) if self.needs_room else self._part(piece)

    def _part(self, piece: Piece) -> np.ndarray:
        start, stop = piece
        return self._values[start - self.start : stop - self.start]


class Sparse(Source):
    """A chunk that holds some runs of elements; its other elements are zero.

    Raises:
        MalformedChunk: See `Chunk.sparse`.
    """

    def __init__(self, chunk: codec.Chunk) -> None:
        self.start = chunk.start
        starts, stops, self._payload = chunk.sparse()
        self._runs, self._values = Runs(starts, stops), _float32(self._payload)

    def num_non_finite(self) -> int:
        """See `Source.num_non_finite`."""
        return convert.num_non_finite(self._payload)

    def first_non_finite(self) -> int:
        """See `Source.first_non_finite`."""
        value, runs = _first_non_finite(self._payload), self._runs
        run = np.searchsorted(runs.firsts, value, "right") - 1
        return self.start + int(runs.starts[run] + value - runs.firsts[run])

    def decode(self, piece: Piece, out: np.ndarray) -> None:
        """See `Source.decode`."""
        self._runs.make_dense(self._values, piece[0] - self.start, out)


class Quantized(Source):
    """A chunk that holds the gradient in INT8.

    Raises:
        MalformedChunk: See `Chunk.blocks`.
    """

    def __init__(self, chunk: codec.Chunk) -> None:
        self.start = chunk.start
        self._scales, self._q = chunk.blocks()

    def num_non_finite(self) -> int:
        """See `Source.num_non_finite`; counts scales only, since an int8 is always finite."""
        return convert.num_non_finite(self._scales)

    def decode(self, piece: Piece, out: np.ndarray) -> None:
        """See `Source.decode`."""
        convert.dequantize(self._scales, self._q, piece[0] - self.start, out)


class Factors(Source):
    """A chunk that holds x [rows, inputs] and d [rows, outputs]; its gradient is x^T d, cut along the outputs.

    Args:
        chunk: The chunk.
        group: The factored variable's ranges.

    Raises:
        MalformedChunk: See `Chunk.factors`.
    """

    def __init__(self, chunk: codec.Chunk, group: Factored) -> None:
        if (chunk.start, chunk.count) != (group.start, group.size):
            raise MalformedChunk(
                f"factors for [{chunk.start}, {chunk.start + chunk.count}), and no matrix has these elements"
            )
        x, d = self._payload = chunk.factors(group.num_inputs)
        self.start = group.start
        self._x = _float32(x)
        wide = _float32(d)
        widths = [r.size // group.num_inputs for r in group.ranges]
        begins = itertools.accumulate(widths, initial=0)
        self._d = {
            r.offset: np.ascontiguousarray(wide[:, begin : begin + width])
            for r, begin, width in zip(group.ranges, begins, widths, strict=False)
        }

    def num_non_finite(self) -> int:
        """See `Source.num_non_finite`; 1 for finite factors whose product might overflow."""
        count = sum(convert.num_non_finite(part.reshape(-1)) for part in self._payload)
        if not count and self._x.size and self._d:
            with np.errstate(over="ignore"):
                largest = _largest(self._x) * max(map(_largest, self._d.values())) * self._x.shape[1]
            return int(not np.isfinite(largest))
        return count

    def decode(self, piece: Piece, out: np.ndarray) -> None:
        """See `Source.decode`; a piece is whole rows of one range, as `pieces_of_factors` cuts them."""
        start, stop = piece
        offset = max(at for at in self._d if at <= start)
        d = self._d[offset]
        width = d.shape[1]
        x = self._x[:, (start - offset) // width : (stop - offset) // width]
        np.matmul(x.T, d, out=out.reshape(-1, width))


def source_of(chunk: codec.Chunk, groups: Mapping[int, Factored], uncut: Sequence[Piece] = ()) -> Source:
    """The source of a chunk.

    Args:
        chunk: The chunk.
        groups: The shard's factored variables by their first element.
        uncut: Ranges within which no chunk may end, since each is updated in one piece.

    Raises:
        MalformedChunk: The chunk is unreadable, has factors for an unfactored variable or beside runs, or ends within
            `uncut`.
    """
    stop = chunk.start + chunk.count
    for begin, end in uncut:
        if begin < stop < end:
            raise MalformedChunk(
                f"the chunk [{chunk.start}, {stop}) ends within [{begin}, {end}), whose constraint needs them at once; "
                "cut a push as `Layout.chunks` does"
            )
    if chunk.runs is not None:
        if chunk.rows:
            raise MalformedChunk(f"chunk at {chunk.start} has both factors and runs")
        return Sparse(chunk)
    if not chunk.rows:
        return Quantized(chunk) if chunk.codec == codec.INT8 else Dense(chunk)
    if chunk.start not in groups:
        raise MalformedChunk(f"chunk at {chunk.start} has factors; only factored variables may")
    return Factors(chunk, groups[chunk.start])


def _largest(values: np.ndarray) -> np.float32:
    """The largest absolute value, without an array of absolute values."""
    largest: np.float32 = np.maximum(values.max(), -values.min())
    return largest


def _float32(values: np.ndarray) -> np.ndarray:
    """A copy in float32, of the same shape."""
    out = np.empty(values.size, np.float32)
    convert.to_float32(values.reshape(-1), out)
    return out.reshape(values.shape)


def _first_non_finite(values: np.ndarray) -> int:
    """Index of the first NaN or infinite value, of which there is one."""
    return int(np.flatnonzero(~np.isfinite(_float32(values)))[0])
