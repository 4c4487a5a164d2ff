"""Tables pushed as rows: the bits of dense pushes, whatever is pushed beside them; refusals that change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import MalformedChunk, NonFinite
from downpour.ps.layout import FACTORED, STATISTIC, Slicing, Variable, lay_out
from downpour.ps.layout.chunks import PIECE_ELEMENTS
from downpour.ps.memory.arena import Arena
from downpour.ps.policy.named import to_message
from downpour.ps.policy.pace import Async, Sync
from downpour.ps.policy.rules import SGD, AdagradV2, Adam, KerasAdam, KerasMomentum, Momentum, RMSProp, Rule
from downpour.ps.policy.schedules import Constant
from downpour.ps.policy.staleness import Compensate, Divide, Drop, Keep
from downpour.ps.shard.shard import Shard
from downpour.worker.exchange.exchange import Gradients
from tests.chunks import encode_chunk
from tests.ps.apply.test_regions import queue_all, state
from tests.rows import WIRES, both_ways, decoded, packed

# More than one chunk of a table whose rows are cut at the border, and pieces that begin within a row.
LAYOUT = lay_out(
    [
        Variable("k", (300, 70), FACTORED),
        Variable("t", (160_000, 7), weight_decay=1e-3),
        Variable("small", (90, 5)),
        Variable("b", (PIECE_ELEMENTS + 11,)),
        Variable("m", (3,), STATISTIC),
    ],
    1,
    [Slicing("k", 4)],
)
TABLES = ("t", "small")
RULES = [SGD(), Momentum(), KerasMomentum(nesterov=True), RMSProp(momentum=0.9), Adam(), KerasAdam(), AdagradV2()]
ALL_WIRES = pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)


def new_shard(rule: Rule | None = None, pace: Any = None, treatment: Any = None) -> Shard:
    specification = pb.ShardSpecification(
        fingerprint=LAYOUT.fingerprint,
        layout=LAYOUT.canonical,
        rule=to_message(rule or RMSProp(momentum=0.9)),
        schedule=to_message(Constant(0.1)),
        pace=to_message(pace or Async()),
        staleness=to_message(treatment or Keep()),
        num_workers=2,
    )
    arena = Arena.create(None, specification)
    arena.parameters[:] = np.random.default_rng(0).standard_normal(arena.parameters.size, np.float32)
    arena.mark_complete()
    return Shard(arena)


def header(worker: int = 0, sequence: int = 1, base_version: int = 0) -> pb.PushHeader:
    return pb.PushHeader(worker=worker, incarnation=1, sequence=sequence, base_version=base_version)


def chunks_of(gradients: Gradients, wire: pb.Codec) -> list[codec.Chunk]:
    return [decoded(chunk) for chunk in packed(LAYOUT, 0, gradients, wire)]


def send(shard: Shard, name: pb.PushHeader, chunks: Sequence[codec.Chunk]) -> pb.PushReply:
    push = shard.begin(name)
    for chunk in chunks:
        shard.apply(push, chunk)
    return shard.finish(push)


def check_same(mine: Shard, theirs: Shard) -> None:
    for a, b in zip(state(mine), state(theirs), strict=True):
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))
    assert mine.arena.counters == theirs.arena.counters
    np.testing.assert_array_equal(mine.arena.ledger, theirs.arena.ledger)


@ALL_WIRES
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_rows_have_the_bits_of_the_dense_gradient(rule: Rule, wire: pb.Codec) -> None:
    by_rows, dense = new_shard(rule), new_shard(rule)
    for sequence in range(1, 4):
        mine, theirs = (chunks_of(way, wire) for way in both_ways(LAYOUT, TABLES, sequence, wire))
        assert [(c.start, c.count) for c in mine] == [(c.start, c.count) for c in theirs]
        assert any(c.runs is not None for c in mine) and not any(c.runs is not None for c in theirs)
        assert sum(c.payload.nbytes for c in mine) < 0.5 * sum(c.payload.nbytes for c in theirs)
        for shard, chunks in ((by_rows, mine), (dense, theirs)):
            assert send(shard, header(sequence=sequence), chunks).version == sequence
    check_same(by_rows, dense)


@pytest.mark.parametrize("treatment", [Divide(), Drop(0)], ids=["Divide", "Drop"])
def test_stale_rows_are_treated_as_dense_gradients(treatment: Any) -> None:
    by_rows, dense = new_shard(treatment=treatment), new_shard(treatment=treatment)
    for sequence, base in enumerate((0, 1, 0), 1):  # the last one is stale by 2
        for shard, way in zip((by_rows, dense), both_ways(LAYOUT, TABLES, sequence, codec.FLOAT32), strict=True):
            reply = send(shard, header(0, sequence, base), chunks_of(way, codec.FLOAT32))
            assert reply.dropped == (isinstance(treatment, Drop) and sequence == 3)
    check_same(by_rows, dense)


@ALL_WIRES
def test_a_round_sums_rows_and_dense_gradients(wire: pb.Codec) -> None:
    by_rows, dense = new_shard(pace=Sync(2)), new_shard(pace=Sync(2))
    for number in range(4):
        ways = both_ways(LAYOUT, TABLES, number, wire)
        for shard, way in zip((by_rows, dense), ways if number != 1 else ways[1:] * 2, strict=True):
            send(shard, header(number % 2, 1 + number // 2, number // 2), chunks_of(way, wire))
    assert by_rows.version == 2
    check_same(by_rows, dense)


@ALL_WIRES
def test_queued_rows_and_dense_gradients_have_the_bits_of_one_after_another(wire: pb.Codec) -> None:
    alone, together = new_shard(), new_shard()
    pushes = [chunks_of(both_ways(LAYOUT, TABLES, w, wire)[w % 2], wire) for w in range(4)]
    opened = [(alone.begin(header(w)), together.begin(header(w))) for w in range(4)]
    for number in range(len(pushes[0])):
        chunks = [push[number] for push in pushes]
        for (first, _), chunk in zip(opened, chunks, strict=True):
            alone.apply(first, chunk)
        queue_all(together, [second for _, second in opened], chunks)
    for first, second in opened:
        assert alone.finish(first).version == together.finish(second).version
    check_same(alone, together)


def test_a_repeated_push_is_applied_once() -> None:
    once, twice = new_shard(), new_shard()
    chunks = chunks_of(both_ways(LAYOUT, TABLES, 1, codec.FLOAT32)[0], codec.FLOAT32)
    send(once, header(), chunks)
    assert not send(twice, header(), chunks).repeated
    assert send(twice, header(), chunks).repeated
    twice.arena.counters["repeated"] = 0
    check_same(once, twice)


@pytest.mark.parametrize("again", [0, 1], ids=["rows", "dense"])
def test_a_push_that_broke_continues_where_it_stopped(again: int) -> None:
    """The rest may come in the other way, too."""
    ways = [chunks_of(way, codec.FLOAT32) for way in both_ways(LAYOUT, TABLES, 1, codec.FLOAT32)]
    straight = new_shard()
    send(straight, header(), ways[0])
    for broken_after in range(len(ways[0])):
        broken = new_shard()
        push = broken.begin(header())
        for chunk in ways[1 - again][:broken_after]:
            broken.apply(push, chunk)
        assert not send(broken, header(), ways[again]).repeated
        check_same(broken, straight)


def pairs(*runs: tuple[int, int]) -> np.ndarray:
    return np.array(runs, "<u4").reshape(-1, 2)


COUNT = 40
BAD: dict[str, tuple[Any, int, str]] = {
    "out of range": (pairs((38, 3)), 3, r"its run 0 of 1 is \[38, 41\); runs are not empty.*end within 40"),
    "beyond any range": (pairs((2**32 - 1, 2**32 - 1)), 3, "run 0 of 1"),
    "unsorted": (pairs((5, 2), (1, 2)), 4, r"run 1 of 2 is \[1, 3\)"),
    "duplicated": (pairs((5, 2), (5, 2)), 4, r"run 1 of 2 is \[5, 7\)"),
    "overlapping": (pairs((5, 2), (6, 2)), 4, r"run 1 of 2 is \[6, 8\)"),
    "empty run": (pairs((5, 2), (7, 0)), 2, r"run 1 of 2 is \[7, 7\)"),
    "too few values": (pairs((5, 2), (9, 2)), 3, "12 bytes for 4 elements"),
    "too many values": (pairs((5, 2)), 3, "12 bytes for 2 elements"),
    "values without runs": (pairs(), 3, "12 bytes for 0 elements"),
    "part of a run": (np.zeros(3, "<u4"), 0, "has 12 bytes of runs for 40 elements; 8 are one run"),
    "more runs than elements": (pairs(*[(0, 1)] * 41), 41, "has 328 bytes of runs for 40 elements"),
}


@pytest.mark.parametrize("kind", BAD)
def test_malformed_runs_are_refused_and_change_nothing(kind: str) -> None:
    runs, num_values, message = BAD[kind]
    shard, start = new_shard(), LAYOUT.num_factored(0)
    before = state(shard)
    push = shard.begin(header())
    push.position = start
    bad = encode_chunk(start, codec.FLOAT32, np.ones(num_values, np.float32), count=COUNT, runs=runs)
    with pytest.raises(MalformedChunk, match=message):
        shard.apply(push, codec.decode_chunk(bad))
    for a, b in zip(before, state(shard), strict=True):
        np.testing.assert_array_equal(a, b)
    good = encode_chunk(start, codec.FLOAT32, np.ones(4, np.float32), count=COUNT, runs=pairs((0, 2), (2, 1), (39, 1)))
    shard.apply(push, codec.decode_chunk(good))


def test_runs_in_an_integer_codec_and_beside_factors_are_refused() -> None:
    shard, ones = new_shard(), np.ones(2, np.float32)
    push = shard.begin(header())
    push.position = LAYOUT.num_factored(0)
    for wire, more, message in ((codec.INT8, {}, "has codec 3"), (codec.FLOAT32, {"rows": 1}, "both factors and runs")):
        bad = encode_chunk(push.position, wire, ones, count=COUNT, runs=pairs((5, 2)), **more)
        with pytest.raises(MalformedChunk, match=message):
            shard.apply(push, codec.decode_chunk(bad))


@ALL_WIRES
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_refused_and_named(bad: float, wire: pb.Codec) -> None:
    shard = new_shard()
    by_rows, _ = both_ways(LAYOUT, TABLES, 1, wire)
    assert by_rows.rows is not None
    values = by_rows.rows[2].values
    values[3, 2] = bad if wire == codec.FLOAT32 else np.float32(bad).view(np.uint32) >> 16
    chunks = chunks_of(by_rows, wire)
    push = shard.begin(header())
    with pytest.raises(NonFinite, match="push 1 of worker 0 has 1 numbers that are not finite, the first in small"):
        for chunk in chunks:
            before = state(shard)
            shard.apply(push, chunk)
    for a, b in zip(before, state(shard), strict=True):
        np.testing.assert_array_equal(a, b)
    assert shard.status().pushes_refused == 1


def test_rows_are_refused_where_delays_are_compensated() -> None:
    shard, ones = new_shard(treatment=Compensate(0.1)), np.ones(2, np.float32)
    push = shard.begin(header())
    push.position = LAYOUT.num_factored(0)
    chunk = encode_chunk(push.position, codec.FLOAT32, ones, count=COUNT, runs=pairs((5, 2)))
    with pytest.raises(MalformedChunk, match="the gradient of t is sparse; the treatment Compensate needs every"):
        shard.apply(push, codec.decode_chunk(chunk))
