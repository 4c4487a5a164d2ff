"""A shard's numbers without sockets: exactly once, versions, staleness, refusals, and what the arena keeps."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import MalformedChunk, NonFinite, TooManyWorkers, WorkerSuperseded
from downpour.ps.layout import STATISTIC, Variable, lay_out
from downpour.ps.memory.arena import Arena
from downpour.ps.memory.ledger import NUM_WORKERS
from downpour.ps.policy.named import to_message
from downpour.ps.policy.rules import SGD, RMSProp
from downpour.ps.policy.schedules import Constant, StaircaseExponential
from downpour.ps.shard.shard import Shard
from tests.chunks import encode_chunk

LAYOUT = lay_out([Variable("w", (10, 4), weight_decay=0.5), Variable("b", (4,)), Variable("mean", (6,), STATISTIC)], 1)
SIZE = LAYOUT.size(0)


def specification(rule: Any = None, schedule: Any = None) -> pb.ShardSpecification:
    return pb.ShardSpecification(
        fingerprint=LAYOUT.fingerprint,
        layout=LAYOUT.canonical,
        rule=to_message(rule or SGD()),
        schedule=to_message(schedule or Constant(1.0)),
    )


def new_shard(path: Path | None = None, rule: Any = None, schedule: Any = None) -> Shard:
    arena = Arena.create(path, specification(rule, schedule))
    arena.mark_complete()
    return Shard(arena)


def header(sequence: int = 1, worker: int = 0, incarnation: int = 1, base_version: int = 0) -> pb.PushHeader:
    return pb.PushHeader(worker=worker, incarnation=incarnation, sequence=sequence, base_version=base_version)


def chunks(values: np.ndarray, cuts: tuple[int, ...] = (20,)) -> Iterator[codec.Chunk]:
    for start, stop in zip((0, *cuts), (*cuts, values.size), strict=True):
        yield codec.decode_chunk(encode_chunk(start, codec.FLOAT32, values[start:stop]))


def send(shard: Shard, name: pb.PushHeader, values: np.ndarray, cuts: tuple[int, ...] = (20,)) -> pb.PushReply:
    push = shard.begin(name)
    for chunk in chunks(values, cuts):
        shard.apply(push, chunk)
    return shard.finish(push)


ONES = np.ones(SIZE, np.float32)


def test_a_push_updates_decays_adds_and_counts() -> None:
    shard = new_shard()
    shard.arena.parameters[:] = 2.0
    reply = send(shard, header(), ONES)
    w, b, mean = shard.arena.parameters[:40], shard.arena.parameters[40:44], shard.arena.parameters[44:]
    assert (w == 2 - (1 + 0.5 * 2)).all(), "rate 1, gradient 1 + weight decay 0.5 * 2"
    assert (b == 2 - 1).all()
    assert (mean == 2 + 1).all(), "statistics are added"
    assert (reply.version, reply.staleness, reply.repeated) == (1, 0, False)


def test_a_push_sent_again_is_applied_once() -> None:
    shard = new_shard()
    send(shard, header(), ONES)
    once = shard.arena.parameters.copy()
    assert send(shard, header(), ONES).repeated
    np.testing.assert_array_equal(shard.arena.parameters, once)
    assert (shard.version, shard.status().pushes_repeated) == (1, 1)
    assert send(shard, header(2), ONES).version == 2


@given(broken_after=st.integers(0, SIZE), cuts=st.lists(st.integers(1, SIZE - 1), unique=True, max_size=4).map(sorted))
def test_a_push_that_broke_anywhere_continues_where_it_stopped(broken_after: int, cuts: list[int]) -> None:
    straight, broken = new_shard(rule=RMSProp()), new_shard(rule=RMSProp())
    values = np.arange(SIZE, dtype=np.float32)
    send(straight, header(), values)
    push = broken.begin(header())
    for chunk in chunks(values, tuple(cuts)):
        if chunk.start + chunk.count > broken_after:
            break
        broken.apply(push, chunk)
    assert broken.version == 0
    assert not send(broken, header(), values, (7,)).repeated, "cut differently, too"
    np.testing.assert_array_equal(straight.arena.parameters, broken.arena.parameters)
    for a, b in zip(straight.arena.slots, broken.arena.slots, strict=True):
        np.testing.assert_array_equal(a, b)


def test_two_streams_of_one_push_apply_it_once() -> None:
    """A worker that gave up on a call may send again while the shard still reads the first stream."""
    shard = new_shard()
    first, second = shard.begin(header()), shard.begin(header())
    for a, b in zip(chunks(ONES), chunks(ONES), strict=True):
        shard.apply(first, a)
        shard.apply(second, b)
    assert not shard.finish(first).repeated
    assert shard.finish(second).repeated
    np.testing.assert_array_equal(shard.arena.parameters[40:44], -ONES[:4])
    assert shard.version == 1


def test_staleness_is_pushes_between_pull_and_push() -> None:
    shard = new_shard()
    for worker in range(3):
        send(shard, header(worker=worker), ONES)
    assert send(shard, header(2, base_version=1), ONES).staleness == 2
    histogram = shard.status().staleness_histogram
    assert list(histogram[:4]) == [1, 1, 2, 0]


def test_the_newest_incarnation_shuts_out_older_ones() -> None:
    shard = new_shard()
    send(shard, header(5, incarnation=1), ONES)
    assert not send(shard, header(1, incarnation=2), ONES).repeated
    with pytest.raises(WorkerSuperseded, match="worker 0 incarnation 1 pushes after incarnation 2"):
        shard.begin(header(6, incarnation=1))


def test_a_leftover_stream_of_an_earlier_push_is_refused() -> None:
    shard = new_shard()
    old = shard.begin(header(1))
    send(shard, header(2), ONES)
    before = shard.arena.parameters.copy()
    with pytest.raises(WorkerSuperseded, match="begun a later push"):
        shard.apply(old, next(chunks(ONES)))
    np.testing.assert_array_equal(shard.arena.parameters, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_numbers_are_refused_counted_and_named(bad: float) -> None:
    shard = new_shard()
    values = ONES.copy()
    values[42] = bad
    push = shard.begin(header())
    first, second = chunks(values)
    shard.apply(push, first)
    before = shard.arena.parameters.copy()
    with pytest.raises(NonFinite, match="push 1 of worker 0 has 1 numbers that are not finite, the first in b"):
        shard.apply(push, second)
    np.testing.assert_array_equal(shard.arena.parameters, before)
    assert (shard.version, shard.status().pushes_refused) == (0, 1)


def test_chunks_out_of_place_are_refused_and_change_nothing() -> None:
    shard = new_shard()
    for start, count in ((1, 3), (0, SIZE + 1), (0, 0)):
        push = shard.begin(header())
        chunk = codec.Chunk(start, count, codec.FLOAT32, memoryview(bytes(4 * count)))
        with pytest.raises(MalformedChunk):
            shard.apply(push, chunk)
    push = shard.begin(header())
    shard.apply(push, next(chunks(ONES)))
    with pytest.raises(MalformedChunk, match=f"ended after 20 of {SIZE}"):
        shard.finish(push)
    assert shard.version == 0


def test_a_worker_index_beyond_the_ledger_is_refused() -> None:
    with pytest.raises(TooManyWorkers, match=f"room for {NUM_WORKERS} workers"):
        new_shard().begin(header(worker=NUM_WORKERS))


def test_the_schedule_reads_the_version() -> None:
    shard = new_shard(schedule=StaircaseExponential(1.0, 0.5, 2))
    for sequence in range(1, 5):
        send(shard, header(sequence), ONES)
    assert shard.arena.parameters[40] == -(1 + 1 + 0.5 + 0.5)


def test_reading_bfloat16_and_float32() -> None:
    shard = new_shard()
    shard.arena.parameters[:] = 1.00390625  # between two bfloat16 numbers
    whole, half = np.empty(3, np.float32), np.empty(3, np.uint16)
    shard.vector.read(2, 5, whole)
    shard.vector.read(2, 5, half)
    np.testing.assert_array_equal(whole, shard.arena.parameters[2:5])
    assert (half == 0x3F80).all()


def test_an_arena_opened_again_continues(tmp_path: Path) -> None:
    path = tmp_path / "arena"
    shard = new_shard(path, RMSProp())
    send(shard, header(base_version=0), ONES)
    values, slots, ledger = shard.arena.parameters.copy(), [s.copy() for s in shard.arena.slots], header()
    shard.arena.close()
    arena = Arena.open(path)
    assert arena is not None
    again = Shard(arena)
    np.testing.assert_array_equal(again.arena.parameters, values)
    for mine, theirs in zip(again.arena.slots, slots, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert again.version == 1
    assert send(again, ledger, ONES).repeated, "the ledger is in the arena"


def test_an_arena_in_use_is_refused(tmp_path: Path) -> None:
    shard = new_shard(tmp_path / "arena")
    for use in (lambda: Arena.open(tmp_path / "arena"), lambda: new_shard(tmp_path / "arena")):
        with pytest.raises(ValueError, match="belongs to a running shard"):
            use()
    assert shard.version == 0


def test_an_unfinished_arena_counts_as_none_and_a_foreign_file_is_refused(tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    Arena.create(unfinished, specification()).close()
    assert Arena.open(unfinished) is None
    assert Arena.open(tmp_path / "missing") is None
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"something else entirely" * 1000)
    with pytest.raises(ValueError, match="is not an arena"):
        Arena.open(foreign)
    assert foreign.read_bytes().startswith(b"something else")


def test_a_changed_rate_holds_from_the_next_push_and_after_a_restart(tmp_path: Path) -> None:
    schedule = StaircaseExponential(1.0, 0.5, 2)
    shard = new_shard(tmp_path / "arena", schedule=schedule)
    assert shard.status().rate == pb.Rate(factor=1.0)
    shard.arena.parameters[:] = 0.0
    b = shard.arena.parameters[40:44]
    send(shard, header(1), ONES)
    begun = shard.begin(header(2))
    assert shard.set_rate(3, 0.25) == pb.Rate(number=3, factor=0.25, version=1)
    for chunk in chunks(ONES):
        shard.apply(begun, chunk)
    shard.finish(begun)
    assert (b == -1 - 1).all(), "a push that has begun keeps its rate"
    send(shard, header(3), ONES)
    assert (b == -2 - 0.5 * 0.25).all()
    for stale in ((3, 0.9), (2, 0.9), (0, 0.9)):
        assert shard.set_rate(*stale) == pb.Rate(number=3, factor=0.25, version=1), "repeated, or overtaken"
    left = tmp_path / "left"
    shutil.copy(tmp_path / "arena", left)  # as the death of its process would leave it
    arena = Arena.open(left)
    assert arena is not None
    again = Shard(arena)
    assert again.status().rate == shard.status().rate
    send(again, header(4), ONES)
    assert (again.arena.parameters[40:44] == -2.125 - 0.5 * 0.25).all()
    assert again.set_rate(4, 1e-3) == pb.Rate(number=4, factor=1e-3, version=4)


def test_counters_of_a_process_begin_with_it(tmp_path: Path) -> None:
    shard = new_shard(tmp_path / "arena")
    for number in range(3):
        send(shard, header(number + 1), ONES)
    left = tmp_path / "left"
    shutil.copy(tmp_path / "arena", left)
    arena = Arena.open(left)
    assert arena is not None
    again = Shard(arena)
    send(again, header(4), ONES)
    total, own = again.status(), again.status(since_start=True)
    assert (total.pushes, sum(total.staleness_histogram)) == (4, 4)
    assert (own.pushes, sum(own.staleness_histogram), own.version) == (1, 1, 4)
    assert shard.status(since_start=True).pushes == 3


def test_a_rate_that_was_half_written_is_told_again(tmp_path: Path) -> None:
    """The factor comes before its number, which the chief compares with its own."""
    shard = new_shard(tmp_path / "arena")
    shard.arena.rate_record["factor"] = 0.5
    left = tmp_path / "left"
    shutil.copy(tmp_path / "arena", left)
    arena = Arena.open(left)
    assert arena is not None
    again = Shard(arena)
    assert again.status().rate.number == 0 and again.status().rate.factor == 1.0
    assert again.set_rate(1, 0.5).factor == 0.5
