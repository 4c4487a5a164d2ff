"""Pulls as differences: the publication arrives bit for bit, the live vector as near as its codec can tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import MalformedChunk
from downpour.proto.http2.assembly import Assembler, Buffers
from downpour.proto.http2.connection import Message
from downpour.proto.numerics import convert, loops
from downpour.ps.layout import FROZEN, STATISTIC, Variable, chunks, lay_out
from downpour.ps.policy.pace import Async, Mode, Sync
from downpour.ps.policy.rules import SGD
from downpour.ps.policy.schedules import Constant
from downpour.ps.service.servicer import Servicer
from downpour.ps.shard.publication import Publisher, live
from downpour.ps.shard.shard import Shard
from downpour.worker.exchange.exchange import Exchanger, Gradients
from downpour.worker.exchange.pulled import Pulled
from tests.chunks import encode_chunk
from tests.ps.pushing import new_shard, push
from tests.worker.cluster import initialize

NUM_TRAINED = 3 * codec.BLOCK + 17
LAYOUT = lay_out(
    [Variable("w", (NUM_TRAINED,)), Variable("m", (5,), STATISTIC), Variable("f", (9,), FROZEN)],
    1,
)
NUM_PUSHED = NUM_TRAINED + 5


@pytest.fixture
def shard() -> Shard:
    return new_shard(LAYOUT, np.random.default_rng(0).standard_normal(LAYOUT.size(0)).astype(np.float32), SGD())


def pushes(shard: Shard, scale: float = 0.1) -> Iterator[int]:
    """One random push after another; gives their numbers."""
    rng = np.random.default_rng(1)
    for sequence in range(1, 1000):
        push(shard, sequence, rng.standard_normal(NUM_PUSHED).astype(np.float32) * np.float32(scale))
        yield sequence


def pulled(keep: bool = False) -> Pulled:
    into = Pulled(LAYOUT, 0, codec.BFLOAT16, differences=True)
    if keep:
        into.keep()
    return into


def receive(into: Pulled, messages: Iterable[Message]) -> list[bool]:
    """As a connection brings them, in small pieces; whether each was placed, and not copied."""
    return [arrive(into, b"".join(message)) for message in messages]


def arrive(into: Pulled, message: bytes) -> bool:
    assembler, left = Assembler(Buffers(2), into.place), memoryview(b"\0" + len(message).to_bytes(4, "big") + message)
    whole = None
    while left:
        room = assembler.room()
        count = min(len(room), len(left), 300)
        room[:count], left = left[:count], left[count:]
        whole = assembler.took(count)
    assert whole is not None
    buffer, length = whole
    if buffer is not None:
        into.receive(codec.decode_chunk(memoryview(buffer)[:length]))
    return buffer is None


def follow(into: Pulled, publisher: Publisher, every: int = 1) -> None:
    """One pull."""
    receive(into, publisher.pull(every, into.begin()))
    into.end()


def wide(bits: np.ndarray) -> np.ndarray:
    out = np.empty(bits.size, np.float32)
    convert.widen(bits, out)
    return out


LEVELS = {codec.INT8: 127, codec.INT4: 7}


def check_follows(into: Pulled, publisher: Publisher, shard: Shard) -> None:
    """It has the latest publication, and of the live vector what its codec can tell."""
    published = publisher._latest
    assert published and into._publication == published.header.publication
    np.testing.assert_array_equal(into._published, published.trained)
    assert into.version == shard.version
    live = shard.arena.parameters
    difference, error = (live[:NUM_TRAINED] - wide(vector) for vector in (published.trained, into.latest.trained))
    for start in range(0, NUM_TRAINED, codec.BLOCK):
        block = slice(start, start + codec.BLOCK)
        half_a_step = 0.501 * np.abs(difference[block]).max() / LEVELS[publisher._codec]
        assert (np.abs(error[block]) <= half_a_step + np.abs(live[:NUM_TRAINED][block]) * 2.0**-8).all()
    np.testing.assert_array_equal(into.latest.statistics, live[NUM_TRAINED:NUM_PUSHED])
    np.testing.assert_array_equal(wide(into.latest.frozen), wide(_frozen(live)))


def _frozen(live: np.ndarray) -> np.ndarray:
    out = np.empty(LAYOUT.size(0) - NUM_PUSHED, np.uint16)
    convert.narrow(live[NUM_PUSHED:], out)
    return out


@pytest.mark.parametrize(  # every pair of values
    ("differences", "keep", "num_messages"),
    [(codec.INT8, False, 1), (codec.INT8, True, 2), (codec.INT4, False, 2), (codec.INT4, True, 1)],
)
def test_a_follower_is_as_fresh_as_a_live_pull(
    shard: Shard, monkeypatch: pytest.MonkeyPatch, keep: bool, differences: int, num_messages: int
) -> None:
    """200 pushes, so errors that added up would show."""
    if num_messages == 2:
        monkeypatch.setitem(chunks.DIFFERENCE_ELEMENTS, differences, 2 * codec.BLOCK)
    publisher, into = shard.publishers[differences], pulled(keep)
    follow(into, publisher)
    for sequence in pushes(shard):
        before = into.latest.trained
        copy = before.copy()
        follow(into, publisher, every=3)
        check_follows(into, publisher, shard)
        if keep:
            np.testing.assert_array_equal(before, copy)  # somebody may still compute with it
        if sequence == 200:
            break


@given(seed=st.integers(0, 1000), size=st.integers(1, 700), scale=st.sampled_from([0.0, 1e-30, 1e-6, 1.0, 1e20]))
def test_int4_rounds_to_the_nearest_of_fifteen(seed: int, size: int, scale: float) -> None:
    x = (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)
    payload, scales, q = codec.new_blocks(codec.INT4, size)
    convert.quantize4(x.copy(), scales, q)
    out = np.empty(size, np.uint16)
    chunk = codec.decode_chunk(encode_chunk(0, codec.INT4, payload, count=size))
    convert.advance(codec.INT4, np.zeros(size, np.uint16), *chunk.blocks(), out)
    for start in range(0, size, codec.BLOCK):
        block = slice(start, start + codec.BLOCK)
        largest = np.abs(x[block]).max()
        assert np.abs(wide(out)[block] - x[block]).max() <= 0.501 * largest / 7 + largest * 2.0**-8
        assert np.unique(wide(out)[block]).size <= 15


@pytest.mark.parametrize(("differences", "size"), [(codec.INT8, 1.1), (codec.INT4, 0.75)])
def test_what_is_pulled_is_no_more_than_what_is_missing(shard: Shard, differences: int, size: float) -> None:
    publisher, into = shard.publishers[differences], pulled()
    sizes = []
    for sequence in pushes(shard):
        follow(into, publisher, every=2)
        sizes.append(into.num_bytes)
        if sequence == 4:
            break
    whole, known, both, still_known = sizes
    assert known == still_known < size * NUM_TRAINED
    statistics = 4 * (NUM_PUSHED - NUM_TRAINED)
    assert both == 2 * known - statistics, "the difference between two publications, and that to the second"
    assert whole == 2 * NUM_TRAINED + known + 2 * (LAYOUT.size(0) - NUM_PUSHED)


def test_a_follower_that_missed_a_publication_or_whose_shard_restarted_pulls_everything(shard: Shard) -> None:
    publisher, into = shard.publishers[codec.INT8], pulled()
    numbers = pushes(shard)
    follow(into, publisher)
    whole = into.num_bytes
    for _ in range(2):
        next(numbers)
        publisher.latest(1)
    follow(into, publisher)
    assert into.num_bytes == whole
    check_follows(into, publisher, shard)
    next(numbers)
    follow(into, restarted := Publisher(shard.vector, codec.INT8))
    assert into.num_bytes == whole
    check_follows(into, restarted, shard)


def test_a_pull_that_breaks_while_it_receives_a_publication_is_followed_by_a_whole_one(shard: Shard) -> None:
    publisher, into = shard.publishers[codec.INT8], pulled()
    follow(into, publisher)
    next(pushes(shard))
    messages = [list(map(bytes, message)) for message in publisher.pull(1, into.begin())]
    assert codec.decode_chunk(b"".join(messages[0])).codec == codec.INT8
    receive(into, messages[:1])
    with pytest.raises(MalformedChunk, match="was received without differences from it"):
        into.end()
    assert into.begin() == 0  # what it has is half of one publication and half of another
    follow(into, publisher)
    check_follows(into, publisher, shard)


def test_a_pull_that_breaks_afterwards_keeps_the_publication(shard: Shard) -> None:
    publisher, into = shard.publishers[codec.INT8], pulled()
    follow(into, publisher)
    number = into._publication
    next(pushes(shard))
    messages = [list(map(bytes, message)) for message in publisher.pull(1, into.begin())]
    receive(into, messages[:2])
    with pytest.raises(MalformedChunk, match="785 of 799 elements were received"):
        into.end()
    assert into.begin() == number + 1
    follow(into, publisher)
    check_follows(into, publisher, shard)


def test_a_first_pull_that_breaks_begins_anew(shard: Shard) -> None:
    """Who has the publication is not sent what never changes again."""
    publisher, into = shard.publishers[codec.INT8], pulled()
    messages = [list(map(bytes, message)) for message in publisher.pull(1, into.begin())]
    receive(into, messages[:-1])
    with pytest.raises(MalformedChunk, match="790 of 799 elements were received"):
        into.end()
    assert into.begin() == 0
    follow(into, publisher)
    check_follows(into, publisher, shard)


def test_nobody_waits_while_a_publication_is_made(shard: Shard) -> None:
    publisher = shard.publishers[codec.INT8]
    first = publisher.latest(1)
    next(pushes(shard))
    with publisher._making:
        assert publisher.latest(1) is first
    assert publisher.latest(1).header.version == 1


PUBLICATION = pb.PullHeader(version=1, publication=7)
LIVE = pb.PullHeader(version=1, publication=7, live=True)
DIFFERENCES = np.zeros(4 + 14, np.uint8)


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (encode_chunk(0, codec.INT8, DIFFERENCES, count=14), "there is no publication that they refer to"),
        (encode_chunk(0, codec.INT8, DIFFERENCES, PUBLICATION, count=14), "there is no publication that they refer to"),
        (
            encode_chunk(0, codec.INT8, DIFFERENCES, LIVE, count=14),
            "publication 7 were received, but not the publication",
        ),
        (encode_chunk(3, codec.BFLOAT16, np.zeros(4, np.uint16)), "a chunk at 3 was received where 0 was expected"),
        (
            encode_chunk(0, codec.BFLOAT16, np.zeros(2000, np.uint16)),
            "2000 elements was received where 785 were expected",
        ),
        (
            encode_chunk(0, codec.BFLOAT16, np.zeros(790, np.uint16), PUBLICATION),
            "790 elements was received where 785 were",
        ),
    ],
)
def test_what_does_not_fit_is_refused(chunk: bytes, message: str) -> None:
    into = pulled()
    into.begin()
    with pytest.raises(MalformedChunk, match=message):
        arrive(into, chunk)


def test_a_part_that_begins_in_the_middle_is_refused() -> None:
    into = pulled()
    into.begin()
    arrive(into, encode_chunk(0, codec.BFLOAT16, np.zeros(100, np.uint16), PUBLICATION))
    for header, message in (
        (LIVE, "but not the publication"),
        (pb.PullHeader(version=2), "was received where element 100 was expected"),
    ):
        with pytest.raises(MalformedChunk, match=message):
            arrive(into, encode_chunk(0, codec.BFLOAT16, np.zeros(100, np.uint16), header))


@pytest.mark.parametrize("header", [PUBLICATION, LIVE])
def test_publications_that_nobody_asked_for_are_refused(header: pb.PullHeader) -> None:
    into = Pulled(LAYOUT, 0, codec.BFLOAT16)
    into.begin()
    with pytest.raises(MalformedChunk, match="publication 7"):
        arrive(into, encode_chunk(0, codec.BFLOAT16, np.zeros(100, np.uint16), header))
    arrive(into, encode_chunk(0, codec.BFLOAT16, np.zeros(NUM_TRAINED, np.uint16), pb.PullHeader(version=1)))
    with pytest.raises(MalformedChunk, match="publication 0 were received, but not"):
        arrive(into, encode_chunk(0, codec.INT8, DIFFERENCES, pb.PullHeader(version=1, live=True), count=14))


def test_a_shard_without_trained_parameters_has_publications_all_the_same() -> None:
    layout = lay_out([Variable("m", (5,), STATISTIC)], 1)
    shard = new_shard(layout, np.arange(5, dtype=np.float32), SGD())
    into = Pulled(layout, 0, codec.BFLOAT16, differences=True)
    for _ in range(2):
        follow(into, shard.publishers[codec.INT4])
        np.testing.assert_array_equal(into.latest.statistics, np.arange(5))


@pytest.mark.parametrize("wire", [codec.FLOAT32, codec.BFLOAT16])
def test_what_need_not_be_decoded_arrives_in_its_place(wire: int) -> None:
    layout = lay_out([Variable("w", (400,)), Variable("m", (100,), STATISTIC), Variable("f", (200,), FROZEN)], 1)
    values = np.random.default_rng(2).standard_normal(700).astype(np.float32)
    into = Pulled(layout, 0, wire)
    into.begin()
    messages = [
        list(map(bytes, parts))
        for parts in live(new_shard(layout, values, SGD()).vector, wire, 0, 700, pb.PullHeader(version=1))
    ]
    assert receive(into, messages) == [True, True, True]
    into.end()
    bits = np.empty(700, codec.WIRE_DTYPES[wire])
    convert.to_wire(values, bits)
    np.testing.assert_array_equal(into.latest.trained, bits[:400])
    np.testing.assert_array_equal(into.latest.statistics, values[400:500])
    np.testing.assert_array_equal(into.latest.frozen, bits[500:])
    assert into.num_bytes == bits[:600].nbytes + values[:100].nbytes


@pytest.mark.parametrize(
    "chunk",
    [
        pytest.param(encode_chunk(0, codec.FLOAT32, np.zeros(100, np.float32)), id="another type"),
        pytest.param(encode_chunk(0, codec.BFLOAT16, np.zeros(100, np.uint16), count=99), id="another length"),
        pytest.param(encode_chunk(0, codec.BFLOAT16, np.zeros(100, np.uint16), rows=1), id="more after it"),
        pytest.param(encode_chunk(9, codec.BFLOAT16, np.zeros(100, np.uint16)), id="another place"),
        pytest.param(bytes(200), id="no chunk"),
    ],
)
def test_what_must_be_looked_at_gets_no_place(chunk: bytes) -> None:
    into = pulled()
    into.begin()
    before = into.latest.trained.copy()
    assert into.place(memoryview(chunk)[:128], len(chunk)) is None
    np.testing.assert_array_equal(into.latest.trained, before)


def test_only_bfloat16_is_published(shard: Shard) -> None:
    served = Servicer(0, None)
    served._shard = shard
    request = pb.PullRequest(fingerprint=LAYOUT.fingerprint, codec=codec.FLOAT32, publish_every=1)
    with pytest.raises(MalformedChunk, match="publications are bfloat16"):
        next(served.pull(request, None))  # type: ignore[arg-type]


@pytest.mark.parametrize("differences", [codec.INT8, codec.INT4])
@pytest.mark.parametrize(("pace", "num_updates", "joined"), [(Async(), 120, True), (Sync(2), 60, False)])
def test_training_from_differences_comes_to_its_target(
    served: Any, pace: Mode, num_updates: int, joined: bool, differences: pb.Codec
) -> None:
    """From many small steps, by two workers through a real shard."""
    target = np.random.default_rng(5).standard_normal(NUM_TRAINED).astype(np.float32)
    addresses, statistics = served.start(1), np.zeros(5, np.float32)
    values = [np.zeros(NUM_TRAINED, np.float32), statistics, np.ones(9, np.float32)]
    initialize(addresses, LAYOUT, values, SGD(), Constant(0.1), pace=pace, num_workers=2)
    told: dict[str, Any] = {"wire": codec.BFLOAT16, "publish_every": 8, "differences": differences}
    told["joined"] = joined
    exchanges = [Exchanger(addresses, LAYOUT, worker=i, incarnation=1, give_up_after_s=30, **told) for i in range(2)]
    answers = [exchange.start().result() for exchange in exchanges]
    for _ in range(60):
        begun = []
        for exchange, answer in zip(exchanges, answers, strict=True):
            got = answer.parameters
            assert got is not None
            np.testing.assert_array_equal(wide(got.frozen[0]), 1)
            gradient = np.empty(NUM_TRAINED, np.uint16)
            convert.narrow(wide(got.trained[0]) - target, gradient)
            begun.append(exchange.start(Gradients([gradient], [statistics], list(got.versions))))
        answers = [future.result() for future in begun]
    last = answers[0].parameters
    assert last is not None
    assert np.abs(wide(last.trained[0]) - target).max() < 2e-2  # bfloat16 of numbers below 4
    assert max(*answers[0].versions, *answers[1].versions) == num_updates
    for exchange in exchanges:
        exchange.close()


@pytest.mark.process
@pytest.mark.parametrize(
    ("options", "needed"),
    [({}, False), ({"push": codec.INT8}, True), ({"publish_every": 1, "differences": codec.INT4}, True)],
)
def test_a_worker_loads_the_loops_of_its_codecs_before_its_first_step(
    shards: Any, options: dict[str, Any], *, needed: bool
) -> None:
    """Else the first differences wait for them, in every process of a fleet at once."""
    addresses = shards.start(1)
    initialize(addresses, LAYOUT, [np.zeros(NUM_TRAINED), np.zeros(5), np.zeros(9)], SGD(), Constant(0.1))
    told = {"wire": codec.BFLOAT16, "worker": 0, "incarnation": 1, "give_up_after_s": 30, **options}
    exchange = Exchanger(addresses, LAYOUT, **told)
    for loop in (loops.advance, loops.quantize):
        loop.cache_clear()  # type: ignore[attr-defined]
    exchange.connect()
    assert [loop.cache_info().currsize for loop in (loops.advance, loops.quantize)] == [needed] * 2  # type: ignore[attr-defined]
    exchange.close()
