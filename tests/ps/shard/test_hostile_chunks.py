"""Streams that are cut off or changed on the way: refused with our error, and what was refused changes no number."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import CheckpointFailed, DownpourError, MalformedChunk
from downpour.ps.layout import FACTORED, STATISTIC, Slicing, Variable, lay_out
from downpour.ps.policy.named import to_message
from downpour.ps.policy.rules import SGD
from downpour.ps.policy.schedules import Constant
from downpour.ps.service.servicer import Servicer
from tests.chunks import encode_chunk
from tests.ps.checkpoint.saving import save_shards
from tests.ps.pushing import new_shard

LAYOUT = lay_out(
    [Variable("k", (6, 8), FACTORED), Variable("b", (20,)), Variable("m", (3,), STATISTIC)], 1, [Slicing("k", 2)]
)
SIZE = LAYOUT.size(0)
FACTORS, REST = 48, 20


def servicer() -> Servicer:
    served = Servicer(0, None)
    served._shard = new_shard(LAYOUT, np.ones(SIZE, np.float32), SGD())
    return served


def sparse_message(*runs: tuple[int, int]) -> bytes:
    """What follows the factors, as runs of ones."""
    pairs = np.array(runs, "<u4").reshape(-1, 2)
    return encode_chunk(FACTORS, codec.FLOAT32, np.ones(pairs[:, 1].sum(), np.float32), count=REST, runs=pairs)


def push_messages(incarnation: int = 1, *, sparse: bool = False) -> list[bytes]:
    """A whole, valid push."""
    wire, dtype = codec.FLOAT32, np.float32
    header = pb.PushHeader(fingerprint=LAYOUT.fingerprint, worker=3, incarnation=incarnation, sequence=1)
    return [
        encode_chunk(0, wire, np.ones(2 * (6 + 8), dtype), header, rows=2, count=FACTORS),
        sparse_message((2, 3), (9, 4)) if sparse else encode_chunk(FACTORS, wire, np.ones(REST, dtype)),
        encode_chunk(FACTORS + REST, codec.FLOAT32, np.ones(3, np.float32)),
    ]


def send(served: Servicer, messages: Sequence[bytes]) -> DownpourError | None:
    """Pushes; the error of ours that the call ended with, if it did. Any other exception fails the test."""
    try:
        served.push(iter(messages), None)  # type: ignore[arg-type]
    except DownpourError as error:
        return error
    return None


def numbers(served: Servicer) -> np.ndarray:
    assert served._shard is not None
    return served._shard.arena.parameters.copy()


def check_untouched(served: Servicer, before: np.ndarray, num_good: int) -> None:
    """Only the elements of the first messages, which were good, may have changed; and the shard still works.

    It works for the worker's last incarnation: a changed header may well have named a later one than the first.
    """
    ends = [0, FACTORS, FACTORS + REST, SIZE]
    np.testing.assert_array_equal(numbers(served)[ends[num_good] :], before[ends[num_good] :])
    assert send(served, push_messages(incarnation=2**64 - 1)) is None


def cuts(messages: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Every byte offset of the first two messages."""
    for number, message in enumerate(messages[:2]):
        for length in range(len(message)):
            yield number, length


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_a_stream_cut_at_every_byte_of_its_first_two_messages(sparse: bool) -> None:
    served = servicer()
    messages = push_messages(sparse=sparse)
    for number, length in cuts(messages):
        served = servicer()
        before = numbers(served)
        error = send(served, [*messages[:number], messages[number][:length]])
        assert error is not None, (number, length)
        check_untouched(served, before, number)


def initial_messages() -> list[bytes]:
    """Of a chief that gives a shard its values."""
    told = pb.ShardSpecification(
        fingerprint=LAYOUT.fingerprint,
        layout=LAYOUT.canonical,
        rule=to_message(SGD()),
        schedule=to_message(Constant(0.1)),
    )
    ones = np.ones(SIZE, np.float32)
    return [encode_chunk(0, codec.FLOAT32, ones[:9], told), encode_chunk(9, codec.FLOAT32, ones[9:])]


@pytest.mark.parametrize("cut", [1, 60, None])
def test_initial_values_that_were_cut_off_can_be_sent_again(tmp_path: Path, cut: int | None) -> None:
    """The arena's file is let go of."""
    served = Servicer(0, tmp_path / "arena")
    first, second = initial_messages()
    broken = [first] if cut is None else [first, second[:cut]]
    with pytest.raises(MalformedChunk):
        served.initialize(iter(broken), None)  # type: ignore[arg-type]
    served.initialize(iter([first, second]), None)  # type: ignore[arg-type]
    assert served._shard is not None and served._shard.arena.parameters.sum() == SIZE
    served.close()


def test_a_damaged_checkpoint_does_not_hold_the_arena(tmp_path: Path) -> None:
    saved = save_shards(tmp_path / "good", [new_shard(LAYOUT, np.ones(SIZE, np.float32), SGD())])
    shutil.copytree(tmp_path / "good", tmp_path / "bad")
    file = tmp_path / "bad" / saved.shards[0].file
    file.write_bytes(file.read_bytes()[:-4000])
    served = Servicer(0, tmp_path / "arena")
    request = pb.RestoreRequest(directory=str(tmp_path / "bad"))
    request.specification.CopyFrom(codec.decode_chunk(initial_messages()[0]).header)
    with pytest.raises(CheckpointFailed, match="is damaged"):
        served.restore(request, None)  # type: ignore[arg-type]
    request.directory = str(tmp_path / "good")
    served.restore(request, None)  # type: ignore[arg-type]
    assert served._shard is not None and served._shard.arena.parameters.sum() == SIZE
    served.close()


WHICH = pytest.mark.parametrize(("number", "sparse"), [(0, False), (1, False), (1, True)])


@WHICH
@settings(max_examples=500)
@given(data=st.data())
def test_hundreds_of_changed_messages(number: int, sparse: bool, data: st.DataObject) -> None:
    check_changed(number, sparse, data)


@pytest.mark.slow
@WHICH
@settings(max_examples=5000)
@given(data=st.data())
def test_thousands_of_changed_messages(number: int, sparse: bool, data: st.DataObject) -> None:
    check_changed(number, sparse, data)


def check_changed(number: int, sparse: bool, data: st.DataObject) -> None:
    """A push with one of its messages changed is refused and leaves the numbers alone."""
    messages = push_messages(sparse=sparse)
    message = bytearray(messages[number])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(message) - 1))
        match data.draw(st.sampled_from(["set", "insert", "remove", "swap"])):
            case "set":
                message[at] = data.draw(st.integers(0, 255))
            case "insert":
                message[at:at] = data.draw(st.binary(min_size=1, max_size=12))
            case "remove":
                del message[at : at + data.draw(st.integers(1, 8))]
            case "swap":
                message[at:] = message[at:][::-1]
        message = message or bytearray(b"\\0")
    served = servicer()
    before = numbers(served)
    error = send(served, [*messages[:number], bytes(message)])
    # A change may leave a valid chunk with other numbers; then the push lacks its end, and that is refused instead.
    if error is None:
        chunk = codec.decode_chunk(bytes(message))
        assert chunk.start + chunk.count == SIZE, "its count was changed, so that the push has its end"
        return
    if "ended after" not in str(error):
        check_untouched(served, before, number)
    assert np.isfinite(numbers(served)).all()


BAD: dict[str, tuple[int, Any]] = {
    "out of order": (1, encode_chunk(FACTORS + 1, codec.FLOAT32, np.ones(REST - 1, np.float32))),
    "overlapping": (1, encode_chunk(FACTORS - 4, codec.FLOAT32, np.ones(REST, np.float32))),
    "beyond the range": (2, encode_chunk(FACTORS + REST, codec.FLOAT32, np.ones(40, np.float32))),
    "unknown codec": (1, encode_chunk(FACTORS, 77, np.ones(REST, np.float32))),
    "wrong length": (1, encode_chunk(FACTORS, codec.BFLOAT16, np.ones(REST, np.float32))),
    "empty": (1, encode_chunk(FACTORS, codec.FLOAT32, np.ones(0, np.float32))),
    "not finite": (1, encode_chunk(FACTORS, codec.FLOAT32, np.full(REST, np.inf, np.float32))),
    "factors of the wrong matrix": (
        1,
        encode_chunk(FACTORS, codec.FLOAT32, np.ones(28, np.float32), rows=2, count=REST),
    ),
    "a run out of range": (1, sparse_message((0, 2), (REST - 1, 2))),
    "unsorted runs": (1, sparse_message((5, 2), (0, 2))),
    "duplicated runs": (1, sparse_message((5, 2), (5, 2))),
    "half of the factors": (0, replace(codec.decode_chunk(push_messages()[0]), count=24)),
}


@pytest.mark.parametrize("kind", BAD)
def test_each_kind_of_bad_chunk(kind: str) -> None:
    number, bad = BAD[kind]
    if isinstance(bad, codec.Chunk):
        bad = encode_chunk(bad.start, bad.codec, np.frombuffer(bad.payload, "<f4"), bad.header, rows=2, count=24)
    served = servicer()
    before = numbers(served)
    assert send(served, [*push_messages()[:number], bad]) is not None
    check_untouched(served, before, number)


def test_a_push_for_another_layout() -> None:
    served = servicer()
    header = pb.PushHeader(fingerprint=b"another", worker=0, incarnation=1, sequence=1)
    before = numbers(served)
    error = send(served, [encode_chunk(0, codec.FLOAT32, np.ones(4, np.float32), header)])
    assert error is not None and "start every role with the same recipe" in str(error)
    check_untouched(served, before, 0)


def test_a_stream_without_a_name() -> None:
    served = servicer()
    assert isinstance(send(served, []), MalformedChunk)
    assert isinstance(send(served, push_messages()[1:]), MalformedChunk)
