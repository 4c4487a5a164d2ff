"""Hand-written encoder and decoder of the `Chunk` message, which do not copy its payload.

`chunk_parts` writes exactly what the generated class would; `decode_chunk` accepts whatever that class accepts, in any
field order, and returns the payload as a view of the message. Pure functions; no threads, no TensorFlow.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, Message

from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import MalformedChunk

FLOAT32 = pb.CODEC_FLOAT32
BFLOAT16 = pb.CODEC_BFLOAT16
FLOAT16 = pb.CODEC_FLOAT16
INT8 = pb.CODEC_INT8
INT4 = pb.CODEC_INT4
CODECS: dict[str, pb.Codec] = {"float32": FLOAT32, "bfloat16": BFLOAT16, "float16": FLOAT16}  # of whole vectors
BLOCK_CODECS: dict[str, pb.Codec] = {"int8": INT8, "int4": INT4}
BLOCK = 256  # elements that share a scale, in INT8 and INT4

# bfloat16 is sent and stored as its 16 bits: numpy has no bfloat16 type.
WIRE_DTYPES: dict[int, np.dtype[Any]] = {FLOAT32: np.dtype("<f4"), BFLOAT16: np.dtype("<u2"), FLOAT16: np.dtype("<f2")}

# 2 MB of bfloat16: smaller chunks cost context switches, larger ones cache misses (docs/benchmarks.md).
CHUNK_ELEMENTS = 1 << 20

_HEADERS: dict[int, tuple[str, type[Message]]] = {
    pb.Chunk.INITIALIZE_FIELD_NUMBER: ("initialize", pb.ShardSpecification),
    pb.Chunk.PULL_FIELD_NUMBER: ("pull", pb.PullHeader),
    pb.Chunk.PUSH_FIELD_NUMBER: ("push", pb.PushHeader),
}
_HEADER_FIELDS = {kind: number for number, (_, kind) in _HEADERS.items()}
_NOTHING = memoryview(b"")
_RUN_BYTES = 8
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Chunk:
    """One decoded chunk.

    Attributes:
        start: Index of the first element in the shard's vector.
        count: Number of elements.
        codec: Encoding of the payload; a value of `pb.Codec`.
        payload: The encoded elements, a view of the received message.
        header: The header message, in the first chunk of a stream.
        base: A second payload: what the gradient was computed from, if the job compensates delays.
        rows: Not 0 if the payload holds factors: the rows of each.
        runs: Not None if the payload holds some runs of elements and all others are zero: where the runs are.
    """

    start: int
    count: int
    codec: int
    payload: memoryview
    header: Message | None = None
    base: memoryview = _NOTHING
    rows: int = 0
    runs: memoryview | None = None

    def values(self) -> np.ndarray:
        """Returns the payload as `count` elements of the codec's wire dtype, not copied.

        Raises:
            MalformedChunk: Unknown codec, or a payload that is not `count` elements long.
        """
        return self._elements(self.payload, self.count)

    def base_values(self) -> np.ndarray:
        """Returns `base` like `values`, and raises the same error."""
        return self._elements(self.base, self.count)

    def factors(self, num_inputs: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the factors X [rows, num_inputs] and d [rows, count / num_inputs], not copied.

        Raises:
            MalformedChunk: Unknown codec, or a payload of another length.
        """
        num_outputs = self.count // num_inputs
        both = self._elements(self.payload, self.rows * (num_inputs + num_outputs))
        x, d = both[: self.rows * num_inputs], both[self.rows * num_inputs :]
        return x.reshape(self.rows, num_inputs), d.reshape(self.rows, num_outputs)

    def sparse(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns where runs begin and end, [n] int64 counted from `start`, and the values of all of them, not copied.

        Raises:
            MalformedChunk: Runs are empty, out of order, overlapping or out of the chunk; an unknown codec, or a
                payload of another length.
        """
        runs = _NOTHING if self.runs is None else self.runs
        if runs.nbytes % _RUN_BYTES or runs.nbytes > _RUN_BYTES * self.count:
            raise MalformedChunk(
                f"chunk at {self.start} has {runs.nbytes} bytes of runs for {self.count} elements; "
                f"{_RUN_BYTES} are one run, which has at least one element"
            )
        starts, lengths = (np.frombuffer(runs, "<u4")[column::2].astype(np.int64) for column in (0, 1))
        stops = starts + lengths
        least = np.concatenate([[0], stops[:-1]]) if stops.size else stops  # where each run may begin
        if wrong := np.flatnonzero((lengths == 0) | (starts < least) | (stops > self.count)).tolist():
            start, stop = starts[wrong[0]], stops[wrong[0]]
            raise MalformedChunk(
                f"chunk at {self.start}: its run {wrong[0]} of {stops.size} is [{start}, {stop}); runs are not empty, "
                f"ascend, do not overlap, and end within {self.count} elements"
            )
        return starts, stops, self._elements(self.payload, int(lengths.sum()))

    def blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns scales [ceil(count / BLOCK)] float32 and elements' bytes as int8, of INT8 or INT4, not copied.

        Raises:
            MalformedChunk: Another codec, or a payload of another length.
        """
        num_scales = num_blocks(self.count)
        if self.codec not in (INT8, INT4) or self.payload.nbytes != blocks_bytes(self.codec, self.count):
            raise MalformedChunk(
                f"chunk at {self.start} has {self.payload.nbytes} bytes for {self.count} elements of codec {self.codec}"
            )
        return np.frombuffer(self.payload, "<f4", num_scales), np.frombuffer(self.payload, np.int8, -1, 4 * num_scales)

    def _elements(self, data: memoryview, count: int) -> np.ndarray:
        dtype = WIRE_DTYPES.get(self.codec)
        if dtype is None:
            raise MalformedChunk(f"chunk at {self.start} has codec {self.codec}; known are {sorted(WIRE_DTYPES)}")
        if data.nbytes != count * dtype.itemsize:
            raise MalformedChunk(
                f"chunk at {self.start} has {data.nbytes} bytes for {count} elements of {dtype.itemsize}"
            )
        return np.frombuffer(data, dtype)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One chunk, encoded each time it is sent, so that a push can be sent again.

    Attributes:
        start: Index of the first element in the shard's vector.
        count: Number of elements.
        codec: Encoding of `values`; a value of `pb.Codec`.
        values: The payload: an array of any type, or the arrays that it consists of.
        base: What the gradient was computed from, in the same codec.
        rows: If `values` are factors, the rows of each.
        runs: If `values` are some runs of elements, [n, 2] uint32: each run's first element and length.
    """

    start: int
    count: int
    codec: int
    values: np.ndarray | Sequence[np.ndarray]
    base: np.ndarray | None = None
    rows: int = 0
    runs: np.ndarray | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of `values`, `base` and `runs`."""
        parts = (*_arrays(self.values), self.base, self.runs)
        return sum(part.nbytes for part in parts if part is not None)

    def encode(self, header: Message | None) -> list[Any]:
        """Returns the parts of the encoded message; the first chunk of a stream carries a header."""
        return chunk_parts(
            self.start, self.codec, self.values, header, self.base, rows=self.rows, count=self.count, runs=self.runs
        )


def num_blocks(count: int) -> int:
    """Returns how many scales `count` elements have in INT8 or INT4."""
    return -(-count // BLOCK)


def blocks_bytes(codec: int, count: int) -> int:
    """Returns the size in bytes of the payload of `count` elements in INT8 or INT4."""
    return 4 * num_blocks(count) + (count if codec == INT8 else num_blocks(count) * BLOCK // 2)


def new_blocks(codec: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Allocates a payload of `count` elements in INT8 or INT4; returns it, and views of its scales and elements."""
    payload = np.empty(blocks_bytes(codec, count), np.uint8)
    first = 4 * num_blocks(count)
    return payload, payload[:first].view(np.float32), payload[first:].view(np.int8)


def split(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Cuts [start, stop) into runs of at most CHUNK_ELEMENTS."""
    for begin in range(start, stop, CHUNK_ELEMENTS):
        yield begin, min(begin + CHUNK_ELEMENTS, stop)


def chunk_parts(
    start: int,
    codec: int,
    values: np.ndarray | Sequence[np.ndarray],
    header: Message | None = None,
    base: np.ndarray | None = None,
    *,
    rows: int = 0,
    count: int | None = None,
    runs: np.ndarray | None = None,
) -> list[Any]:
    """Encodes one chunk as the parts of a message: short ones, and views of `values` and `base`, not copied.

    Args:
        start: Index of the first element in the shard's vector.
        codec: A value of `pb.Codec`.
        values: The elements in that codec's wire dtype, contiguous; or several such arrays, sent one after another.
        header: The header message, in the first chunk of a stream.
        base: What the gradient in `values` was computed from, in the same dtype, contiguous.
        rows: If `values` are factors, the rows of each.
        count: If `values` are factors or runs, the number of elements they stand for.
        runs: If `values` are some runs of elements, [n, 2] uint32: each run's first element and length.
    """
    parts: list[Any] = []
    if header is not None:
        body = header.SerializeToString()
        parts.append(_varint(_HEADER_FIELDS[type(header)] << 3 | _BYTES) + _varint(len(body)) + body)
    arrays = _arrays(values)
    size, num_bytes = sum(array.size for array in arrays), sum(array.nbytes for array in arrays)
    parts.append(_before_payload(start, size if count is None else count, codec, num_bytes))
    parts += [array.reshape(-1).view(np.uint8).data for array in arrays if array.nbytes]
    if base is not None and base.nbytes:
        parts += [_varint(8 << 3 | _BYTES) + _varint(base.nbytes), base.view(np.uint8).data]
    if rows:
        parts.append(_varint(9 << 3 | _VARINT) + _varint(rows))
    if runs is not None:
        parts.append(_varint(10 << 3 | _BYTES) + _varint(runs.nbytes))
        if runs.nbytes:
            parts.append(runs.reshape(-1).view(np.uint8).data)
    return parts


def _arrays(values: np.ndarray | Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    return (values,) if isinstance(values, np.ndarray) else values


@functools.lru_cache(maxsize=1024)  # every step sends the same chunks
def _before_payload(start: int, count: int, codec: int, num_bytes: int) -> bytes:
    fields = ((4, start), (5, count), (6, codec))  # proto3 leaves zeros out
    out = b"".join(_varint(number << 3 | _VARINT) + _varint(value) for number, value in fields if value)
    return out + _varint(7 << 3 | _BYTES) + _varint(num_bytes) if num_bytes else out


def decode_chunk(message: bytes | memoryview, num_bytes: int | None = None) -> Chunk:
    """Decodes a chunk; unknown fields are skipped, as protobuf demands.

    Args:
        message: The encoded bytes, or a prefix of them.
        num_bytes: Length of the whole message. If `message` is shorter, its last field must be the cut payload.

    Raises:
        MalformedChunk: The bytes are not a `Chunk`.
    """
    view = memoryview(message)
    missing = 0 if num_bytes is None else num_bytes - len(view)
    numbers = {4: 0, 5: 0, 6: 0, 9: 0}
    payloads: dict[int, memoryview | None] = {7: _NOTHING, 8: _NOTHING, 10: None}
    header: Message | None = None
    position = 0
    end = len(view)
    while position < end:
        tag = view[position]
        position += 1
        if tag > 0x7F:
            tag, position = _read_varint(view, position - 1)
        field, wire_type = tag >> 3, tag & 7
        if field == 0:
            raise MalformedChunk("field number 0")
        if field in numbers and wire_type == _VARINT:
            numbers[field], position = _read_varint(view, position)
        elif field in payloads and wire_type == _BYTES:
            payloads[field], position = _read_bytes(view, position, missing)
        elif field in _HEADERS and wire_type == _BYTES:
            body, position = _read_bytes(view, position)
            header = _read_header(field, body, header)
        else:
            position = _skip(view, position, wire_type)
    count, codec, rows = (numbers[field] & 0xFFFFFFFF for field in (5, 6, 9))
    return Chunk(numbers[4], count, codec, payloads[7] or _NOTHING, header, payloads[8] or _NOTHING, rows, payloads[10])


def _read_header(field: int, body: memoryview, previous: Message | None) -> Message:
    """Parses a header field: repeated occurrences merge; another field of the oneof replaces it."""
    kind = _HEADERS[field][1]
    header = previous if isinstance(previous, kind) else kind()
    try:
        header.MergeFromString(bytes(body))
    except DecodeError as error:
        raise MalformedChunk(f"its {_HEADERS[field][0]} header does not parse: {error}") from None
    return header


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(view: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(view):
            raise MalformedChunk("the message ends inside a number")
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
    raise MalformedChunk("a number has more than ten bytes")


def _read_bytes(view: memoryview, position: int, missing: int = 0) -> tuple[memoryview, int]:
    length, position = _read_varint(view, position)
    if missing and length == len(view) - position + missing:  # the field extends to the end of the message
        return view[position:], len(view)
    if length > len(view) - position:
        raise MalformedChunk(f"a field of {length} bytes, of which {len(view) - position} are there")
    return view[position : position + length], position + length


def _skip(view: memoryview, position: int, wire_type: int) -> int:
    if wire_type == _VARINT:
        return _read_varint(view, position)[1]
    if wire_type == _BYTES:
        return _read_bytes(view, position)[1]
    if wire_type not in (_FIXED64, _FIXED32):
        raise MalformedChunk(f"wire type {wire_type} is not known")
    position += 8 if wire_type == _FIXED64 else 4
    if position > len(view):
        raise MalformedChunk("the message ends inside a fixed-width field")
    return position
