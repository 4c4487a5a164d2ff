"""The hand-written codec against the generated class, both ways, and against bytes that are no chunk."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import MalformedChunk
from tests.chunks import encode_chunk

UINT32, UINT64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
NUMBERS = st.builds(pb.Numbers, values=st.lists(st.floats(), max_size=3))
NAMED = st.builds(pb.Named, name=st.text(max_size=9), parameters=st.dictionaries(st.text(max_size=5), NUMBERS))
HEADERS = st.one_of(
    st.none(),
    st.builds(pb.PullHeader, version=UINT64),
    st.builds(
        pb.PushHeader,
        fingerprint=st.binary(max_size=40),
        worker=UINT32,
        incarnation=UINT64,
        sequence=UINT64,
        base_version=UINT64,
    ),
    st.builds(pb.ShardSpecification, shard=UINT32, fingerprint=st.binary(max_size=40), layout=st.text(), rule=NAMED),
)
NAMES = {pb.PullHeader: "pull", pb.PushHeader: "push", pb.ShardSpecification: "initialize"}


def generated(start: int, wire: int, values: np.ndarray, header: Any) -> pb.Chunk:
    chunk = pb.Chunk(start=start, count=values.size, payload=values.tobytes())
    chunk.codec = wire  # type: ignore[assignment]
    if header is not None:
        getattr(chunk, NAMES[type(header)]).CopyFrom(header)
    return chunk


@given(start=UINT64, values=st.lists(UINT32, max_size=300), wire=st.sampled_from([1, 2]), header=HEADERS)
def test_what_we_encode_the_generated_class_reads(start: int, values: list[int], wire: int, header: Any) -> None:
    array = np.array(values, np.uint32).view(codec.WIRE_DTYPES[wire])
    message = encode_chunk(start, wire, array, header)
    assert pb.Chunk.FromString(message) == generated(start, wire, array, header)


@given(start=UINT64, values=st.lists(UINT32, max_size=300), wire=st.sampled_from([1, 2]), header=HEADERS)
def test_what_the_generated_class_encodes_we_read(start: int, values: list[int], wire: int, header: Any) -> None:
    array = np.array(values, np.uint32).view(codec.WIRE_DTYPES[wire])
    chunk = codec.decode_chunk(generated(start, wire, array, header).SerializeToString())
    assert (chunk.start, chunk.count, chunk.codec, chunk.header) == (start, array.size, wire, header)
    assert chunk.values().tobytes() == array.tobytes()


@given(values=st.lists(UINT32, min_size=1, max_size=50), wire=st.sampled_from([1, 2]))
def test_a_base_travels_beside_the_payload(values: list[int], wire: int) -> None:
    array = np.array(values, np.uint32).view(codec.WIRE_DTYPES[wire])
    message = encode_chunk(3, wire, array, None, array[::-1].copy())
    theirs = generated(3, wire, array, None)
    theirs.base = array[::-1].tobytes()
    assert pb.Chunk.FromString(message) == theirs
    assert codec.decode_chunk(message).base_values().tobytes() == theirs.base


@given(
    rows=st.integers(1, 4), num_inputs=st.integers(1, 5), num_outputs=st.integers(1, 5), wire=st.sampled_from([1, 2])
)
def test_factors_travel_as_two_matrices(rows: int, num_inputs: int, num_outputs: int, wire: int) -> None:
    both = np.arange(rows * (num_inputs + num_outputs)).astype(codec.WIRE_DTYPES[wire])
    message = encode_chunk(7, wire, both, rows=rows, count=num_inputs * num_outputs)
    theirs = generated(7, wire, both, None)
    theirs.count, theirs.rows = num_inputs * num_outputs, rows
    assert pb.Chunk.FromString(message) == theirs
    x, d = codec.decode_chunk(message).factors(num_inputs)
    assert (x.shape, d.shape) == ((rows, num_inputs), (rows, num_outputs))
    assert [*x.ravel(), *d.ravel()] == both.tolist()


@given(lengths=st.lists(st.integers(1, 5), max_size=6), gap=st.integers(0, 3), wire=st.sampled_from([1, 2]))
def test_runs_travel_beside_their_values(lengths: list[int], gap: int, wire: int) -> None:
    """No runs at all are told from a dense chunk."""
    stops = np.cumsum(np.array(lengths, np.int64) + gap)
    runs = np.stack([stops - np.array(lengths, np.int64), lengths], 1).astype("<u4")
    values = np.arange(sum(lengths)).astype(codec.WIRE_DTYPES[wire])
    chunk = codec.Outgoing(7, 99, wire, values, runs=runs)
    message = b"".join(chunk.encode(None))
    theirs = generated(7, wire, values, None)
    theirs.count, theirs.runs = 99, runs.tobytes()
    assert pb.Chunk.FromString(message) == theirs and theirs.HasField("runs")
    assert chunk.num_bytes == values.nbytes + runs.nbytes
    read = codec.decode_chunk(theirs.SerializeToString())
    assert (read.start, read.count) == (7, 99)
    starts, ends, payload = read.sparse()
    assert [*starts] == [*runs[:, 0]] and [*ends] == [*stops] and payload.tobytes() == values.tobytes()


def test_a_message_without_runs_has_none() -> None:
    message = encode_chunk(3, codec.FLOAT32, np.ones(4, np.float32))
    assert codec.decode_chunk(message).runs is None and not pb.Chunk.FromString(message).HasField("runs")


def test_the_payload_is_a_view_of_the_message() -> None:
    message = encode_chunk(0, codec.FLOAT32, np.arange(1000, dtype=np.float32))
    assert codec.decode_chunk(message).payload.obj is message


@settings(max_examples=200)
@given(cut=st.integers(0, 100), flips=st.lists(st.tuples(st.integers(0, 99), st.integers(1, 255)), max_size=4))
def test_mutated_messages_decode_as_protobuf_says_or_are_refused(cut: int, flips: list[tuple[int, int]]) -> None:
    header = pb.PushHeader(fingerprint=b"f" * 8, worker=3, incarnation=9, sequence=1)
    mutated = bytearray(encode_chunk(7, codec.FLOAT32, np.arange(10, dtype=np.float32), header))
    for position, flip in flips:
        mutated[position % len(mutated)] ^= flip
    message = bytes(mutated[: max(0, len(mutated) - cut)])
    try:
        chunk = codec.decode_chunk(message)
    except MalformedChunk:
        return
    try:
        theirs = pb.Chunk.FromString(message)
    except DecodeError:
        return  # protobuf checks more of unknown fields than we need
    assert (chunk.start, chunk.count, bytes(chunk.payload)) == (theirs.start, theirs.count, theirs.payload)


def test_unknown_fields_are_skipped() -> None:
    known = encode_chunk(5, codec.BFLOAT16, np.arange(3, dtype=np.uint16))
    varint, fixed64, blob, fixed32 = b"\x98\x06\x01", b"\x99\x06" + bytes(8), b"\x9a\x06\x02ab", b"\x9d\x06" + bytes(4)
    chunk = codec.decode_chunk(varint + fixed64 + known + blob + fixed32)
    assert (chunk.start, chunk.count) == (5, 3)


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (codec.Chunk(0, 2, 9, memoryview(bytes(8))), "codec 9"),
        (codec.Chunk(0, 2, codec.FLOAT32, memoryview(bytes(7))), "7 bytes for 2 elements of 4"),
    ],
)
def test_values_of_a_wrong_chunk(chunk: codec.Chunk, message: str) -> None:
    with pytest.raises(MalformedChunk, match=message):
        chunk.values()


def test_split_covers_everything_once() -> None:
    stop = 2 * codec.CHUNK_ELEMENTS + 5
    runs = list(codec.split(3, stop))
    assert runs[0][0] == 3 and runs[-1][1] == stop
    assert all(a[1] == b[0] for a, b in itertools.pairwise(runs))
    assert max(b - a for a, b in runs) == codec.CHUNK_ELEMENTS
