"""Rows of gradients most of whose rows are zero, as an embedding table's are: a push carries only the others.

The cut into chunks is that of a dense push. A chunk goes as runs of elements where that takes fewer bytes, else dense,
and a shard applies both alike: rows that are not named have the gradient zero, and momentum and decays act on them as
Keras' dense update does. The gradient of a whole table is never held. In INT8 runs stay in the wire dtype, unrounded;
what rounding left of their elements before remains until the chunk is next pushed in INT8.

No sockets, no TensorFlow. Threads: any; a packer is used for one push at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import types

from downpour.compiled import declared
from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.numerics import convert
from downpour.proto.numerics.sparse import Runs
from downpour.ps.layout import TRAINED, Layout, Range, Variable
from downpour.worker.exchange.packing import Packer


@dataclass(frozen=True)
class Rows:
    """The rows of a variable's gradient along axis 0 that may differ from zero; made by `summed`.

    Attributes:
        indices: [R] int64, ascending, each once.
        values: [R, *shape[1:]] in the wire dtype (bfloat16 as uint16 bits).
    """

    indices: np.ndarray
    values: np.ndarray


def summed(variable: Variable, indices: np.ndarray, values: np.ndarray, wire: pb.Codec) -> Rows:
    """Sums the rows that are named more than once, in the order in which they come, and rounds the sums.

    The bits are those of the dense gradient: `tf.convert_to_tensor` sums `tf.IndexedSlices` in the same order.

    Args:
        variable: The variable as in the layout; trained, not factored.
        indices: [n] integers from 0 to shape[0] - 1, in any order.
        values: [n, *shape[1:]] float32.
        wire: Codec of the wire dtype, a value of `pb.Codec`.

    Raises:
        ValueError: The variable cannot be pushed as rows, shapes or types differ from these, or an index is out of
            range.
    """
    if variable.kind != TRAINED or not variable.shape:
        raise ValueError(f"{variable.name} {list(variable.shape)} is {variable.kind}; rows are of trained variables")
    if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(f"{variable.name}: indices are {indices.dtype} {list(indices.shape)}; give [n] integers")
    expected = (indices.size, *variable.shape[1:])
    if values.shape != expected or values.dtype != np.float32:
        raise ValueError(
            f"{variable.name}: rows are {values.dtype} {list(values.shape)}; give float32 {list(expected)}"
        )
    if indices.size and not 0 <= indices.min() <= indices.max() < variable.shape[0]:
        reach = f"from {indices.min()} to {indices.max()}"
        raise ValueError(f"{variable.name} has {variable.shape[0]} rows, and the indices reach {reach}")
    once, places = np.unique(indices.astype(np.int64), return_inverse=True)
    sums = np.zeros((once.size, int(np.prod(expected[1:]))), np.float32)
    _add_rows()(places.reshape(-1), np.ascontiguousarray(values).reshape(indices.size, sums.shape[1]), sums)
    rounded = sums
    if wire != codec.FLOAT32:
        rounded = np.empty(sums.shape, codec.WIRE_DTYPES[wire])
        convert.to_wire(sums.reshape(-1), rounded.reshape(-1))
    return Rows(once, rounded.reshape(once.size, *expected[1:]))


def dense_ranges(layout: Layout, shard: int, tables: Collection[int]) -> list[Range]:
    """The ranges whose elements `Gradients.trained` has for a shard, in order, if `tables` are pushed as rows.

    Args:
        layout: The job's.
        shard: Index of the shard.
        tables: Numbers of the variables that are pushed as rows, in `Layout.variables`.
    """
    return [r for r in _trained_ranges(layout, shard) if r.variable not in tables]


class RowPacker:
    """Cuts one shard's part of pushes in which some variables' gradients are rows.

    Args:
        layout: The job's.
        shard: Index of the shard.
        packer: Cuts and rounds everything else.
    """

    def __init__(self, layout: Layout, shard: int, packer: Packer) -> None:
        self._layout, self._shard, self._packer = layout, shard, packer
        self._tables: frozenset[int] | None = None  # of the last push
        self._segments = list[list[_Segment]]()  # of each chunk, for these tables
        self._num_dense = 0

    def pack(
        self,
        gradient: np.ndarray,
        differences: np.ndarray,
        factors: Sequence[tuple[np.ndarray, np.ndarray]],
        rows: Mapping[int, Rows],
        base: np.ndarray | None = None,
    ) -> list[codec.Outgoing]:
        """Returns the chunks of one push.

        Args:
            gradient: The elements of `dense_ranges`, in the wire dtype.
            differences: As `Packer.pack` takes them.
            factors: As `Packer.pack` takes them.
            rows: Each table's, by its number in `Layout.variables`; also those of other shards.
            base: Must be None; see below.

        Raises:
            ValueError: There is a base, or the gradient has another size.
        """
        names = ", ".join(self._layout.variables[number].name for number in rows)
        if base is not None:
            raise ValueError(f"staleness: Compensate needs every element of a gradient; push {names} dense")
        tables = frozenset(rows)
        if self._tables != tables:
            self._tables = tables
            segments = list(_segments(self._layout, self._shard, tables))
            self._segments = [[s for s in segments if s.start < end and at < s.stop] for at, end in self._packer.chunks]
            self._num_dense = sum(s.stop - s.start for s in segments if not s.table)
        if gradient.size != self._num_dense:
            raise ValueError(
                f"shard {self._shard}: {gradient.size} dense elements beside the rows of {names}; {self._num_dense} "
                "are due"
            )
        ranges = {s.start: s.table for of_chunk in self._segments for s in of_chunk if s.table}
        placed = {start: self._placed(r, rows) for start, r in ranges.items()}
        chunks = self._packer.factored(factors)
        for (at, end), segments in zip(self._packer.chunks, self._segments, strict=True):
            chunks.append(self._chunk(at, end, gradient, [placed.get(s.start, s) for s in segments]))
        return chunks + self._packer.statistics(differences)

    def _placed(self, r: Range, rows: Mapping[int, Rows]) -> _Placed:
        """The rows of one range."""
        of_table = rows[r.variable]
        assert of_table.values.dtype == codec.WIRE_DTYPES[self._packer.wire]
        indices, values, width = of_table.indices, of_table.values, r.size // self._layout.shape(r)[0]
        if r.axis == 0:
            first, last = np.searchsorted(indices, [r.begin, r.stop])
            indices, values = indices[first:last] - r.begin, values[first:last]
        else:
            values = values[(slice(None),) * r.axis + (slice(r.begin, r.stop),)]
        return _Placed(r.offset + indices * width, width, np.ascontiguousarray(values).reshape(-1))

    def _chunk(self, at: int, end: int, gradient: np.ndarray, parts: list[_Segment | _Placed]) -> codec.Outgoing:
        """The chunk [at, end), made of some parts in the order of their elements."""
        pieces = [part.within(at, end, gradient) for part in parts]
        values = pieces[0].values if len(pieces) == 1 else np.concatenate([piece.values for piece in pieces])
        if not any(isinstance(part, _Placed) for part in parts):
            return self._packer.dense(at, values)
        starts, stops = (np.concatenate(ends) - at for ends in ([p.starts for p in pieces], [p.stops for p in pieces]))
        runs = Runs(starts, stops).merged()
        encoded = runs.encoded()
        if values.nbytes + encoded.nbytes < self._packer.dense_bytes(end - at):
            return codec.Outgoing(at, end - at, self._packer.wire, values, runs=encoded)
        dense = np.empty(end - at, values.dtype)
        runs.make_dense(values, 0, dense)
        return self._packer.dense(at, dense)


class _Piece(NamedTuple):
    """Runs [starts, stops) of the shard's vector and their values, one after another."""

    starts: np.ndarray
    stops: np.ndarray
    values: np.ndarray


class _Segment(NamedTuple):
    """Elements [start, stop) of the shard's vector: a range of a table, or from `position` on in the dense gradient."""

    start: int
    stop: int
    position: int
    table: Range | None

    def within(self, at: int, end: int, gradient: np.ndarray) -> _Piece:
        """The part of a dense segment in [at, end), which it meets."""
        begin, stop = max(at, self.start), min(end, self.stop)
        first = self.position + begin - self.start
        return _Piece(np.array([begin]), np.array([stop]), gradient[first : first + stop - begin])


class _Placed(NamedTuple):
    """Rows of one range: [n] ascending first elements in the shard's vector, elements of a row, values [n * width]."""

    starts: np.ndarray
    width: int
    values: np.ndarray

    def within(self, at: int, end: int, gradient: np.ndarray) -> _Piece:
        """The rows in [at, end), those at its borders in part."""
        first, last = np.searchsorted(self.starts, [at - self.width + 1, end])
        starts = np.maximum(self.starts[first:last], at)
        stops = np.minimum(self.starts[first:last] + self.width, end)
        begin = first * self.width + (int(starts[0] - self.starts[first]) if starts.size else 0)
        return _Piece(starts, stops, self.values[begin : begin + int((stops - starts).sum())])


def _trained_ranges(layout: Layout, shard: int) -> list[Range]:
    return [r for r in layout.by_shard[shard] if layout.variables[r.variable].kind == TRAINED and r.size]


def _segments(layout: Layout, shard: int, tables: Collection[int]) -> Iterator[_Segment]:
    """The trained, unfactored part of a shard's vector: ranges of tables, and what lies between them."""
    position, dense = 0, None
    for r in _trained_ranges(layout, shard):
        if r.variable in tables:
            if dense:
                yield dense
            dense = None
            yield _Segment(r.offset, r.offset + r.size, position, r)
        else:
            start, first = (dense.start, dense.position) if dense else (r.offset, position)
            dense = _Segment(start, r.offset + r.size, first, None)
            position += r.size
    if dense:
        yield dense


@declared(
    types.int64[::1],
    types.Array(types.float32, 2, "C", readonly=True),
    types.float32[:, ::1],
)
def _add_rows(places, values, sums):  # type: ignore[no-untyped-def]
    """Adds each row of `values` [n, width] to the row of `sums` at its place, one after another."""
    for i in range(places.size):
        place, row = sums[places[i]], values[i]
        for j in range(row.size):
            place[j] += row[j]
