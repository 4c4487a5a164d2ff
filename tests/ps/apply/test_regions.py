"""Gradients that wait for one another are applied together, with the bits of one after another; factors likewise."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import MalformedChunk, NonFinite
from downpour.ps.layout import FACTORED, STATISTIC, Layout, Slicing, Variable, lay_out
from downpour.ps.layout.chunks import PIECE_ELEMENTS
from downpour.ps.policy.rules import SGD, KerasAdam, Momentum, RMSProp, Rule
from downpour.ps.shard.shard import Shard
from tests.chunks import encode_chunk
from tests.ps.pushing import new_shard

INPUTS, OUTPUTS = 300, 700
SIZE = INPUTS * OUTPUTS + PIECE_ELEMENTS + 11 + 3
DENSE = lay_out([Variable("k", (INPUTS, OUTPUTS), weight_decay=1e-3), Variable("b", (PIECE_ELEMENTS + 11,)),
              Variable("m", (3,), STATISTIC)], 1, [Slicing("k", 4)])  # fmt: skip
FACTOR = lay_out([replace(v, kind=FACTORED) if v.name == "k" else v for v in DENSE.variables], 1, [Slicing("k", 4)])
RULES = [SGD(), Momentum(), RMSProp(), KerasAdam()]
WIRES = [codec.FLOAT32, codec.BFLOAT16]


def start_values() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(SIZE, np.float32)


def to_wire(values: np.ndarray, wire: int) -> np.ndarray:
    if wire == codec.FLOAT32:
        return values
    return (values.reshape(-1).view(np.uint32) >> 16).astype(np.uint16).reshape(values.shape)


def of_wire(values: np.ndarray, wire: int) -> np.ndarray:
    return values if wire == codec.FLOAT32 else (values.astype(np.uint32) << 16).view(np.float32)


def messages(worker: int, wire: int, *, factored: bool, rows: int = 6) -> tuple[pb.PushHeader, list[bytes]]:
    """One worker's push, as `ShardClient.push` cuts it."""
    rng = np.random.default_rng(worker)
    x = to_wire(rng.standard_normal((rows, INPUTS), np.float32), wire)
    d = to_wire(rng.standard_normal((rows, OUTPUTS), np.float32), wire)
    rest = to_wire(rng.standard_normal(PIECE_ELEMENTS + 11, np.float32), wire)
    statistics = rng.standard_normal(3).astype(np.float32)
    num_kernel = INPUTS * OUTPUTS
    header = pb.PushHeader(worker=worker, incarnation=1, sequence=1)
    chunks = []
    if factored:
        [group] = FACTOR.factored(0)
        both = np.concatenate([x.ravel(), d.ravel()])
        chunks.append(encode_chunk(0, wire, both, rows=rows, count=group.size))
        chunks.append(encode_chunk(num_kernel, wire, rest))
    else:
        kernel = of_wire(x, wire).T @ of_wire(d, wire)
        ranges = sorted((r for r in DENSE.ranges if r.variable == 0), key=lambda r: r.offset)
        gradient = np.concatenate([kernel[:, r.begin : r.stop].ravel() for r in ranges] + [of_wire(rest, wire)])
        for begin, end in codec.split(0, gradient.size):
            chunks.append(encode_chunk(begin, codec.FLOAT32, gradient[begin:end]))
    chunks.append(encode_chunk(num_kernel + rest.size, codec.FLOAT32, statistics))
    return header, chunks


def push(shard: Shard, header: pb.PushHeader, chunks: list[bytes]) -> pb.PushReply:
    opened = shard.begin(header)
    for chunk in chunks:
        shard.apply(opened, codec.decode_chunk(chunk))
    return shard.finish(opened)


def state(shard: Shard) -> list[np.ndarray]:
    return [vector.copy() for vector in shard.arena.vectors.values()]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@settings(max_examples=8)
@given(num_workers=st.integers(2, 5), wire=st.sampled_from(WIRES))
def test_queued_pushes_have_the_bits_of_one_after_another(rule: Rule, num_workers: int, wire: int) -> None:
    pushes = [messages(worker, wire, factored=True) for worker in range(num_workers)]
    alone = new_shard(FACTOR, start_values(), rule)
    together = new_shard(FACTOR, start_values(), rule)
    opened = [(alone.begin(header), together.begin(header)) for header, _ in pushes]  # so that steps and rates agree
    for chunk_number in range(len(pushes[0][1])):
        chunks = [codec.decode_chunk(chunks[chunk_number]) for _, chunks in pushes]
        for (first, _), chunk in zip(opened, chunks, strict=True):
            alone.apply(first, chunk)
        queue_all(together, [second for _, second in opened], chunks)
    for first, second in opened:
        assert alone.finish(first).version == together.finish(second).version
    for a, b in zip(state(alone), state(together), strict=True):
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


def queue_all(shard: Shard, opened: list, chunks: list[codec.Chunk]) -> None:
    """Holds the region until every push waits for it, in order, then lets one thread apply all."""
    region = shard.vector.region_at(chunks[0].start)
    with ThreadPoolExecutor(len(chunks)) as pool:
        with region.lock:
            futures = []
            for number, (push_, chunk) in enumerate(zip(opened, chunks, strict=True), 1):
                futures.append(pool.submit(shard.apply, push_, chunk))
                while len(region.waiting) < number:
                    assert not futures[-1].done() or futures[-1].result()
        for future in futures:
            future.result()


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_factors_equal_the_dense_gradient(rule: Rule, wire: int) -> None:
    by_factors, dense = new_shard(FACTOR, start_values(), rule), new_shard(DENSE, start_values(), rule)
    for worker in range(3):
        push(by_factors, *messages(worker, wire, factored=True))
        push(dense, *messages(worker, wire, factored=False))
    mine, theirs = (layout_values(s, layout) for s, layout in ((by_factors, FACTOR), (dense, DENSE)))
    for a, b in zip(mine, theirs, strict=True):
        # The products are summed in another order; RMSProp and Adam divide by what may be nearly nothing.
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


def layout_values(shard: Shard, layout: Layout) -> list[np.ndarray]:
    return layout.gather([shard.arena.parameters])


def test_a_push_that_comes_twice_at_once_is_applied_once() -> None:
    once, twice = new_shard(DENSE, start_values(), SGD()), new_shard(DENSE, start_values(), SGD())
    header, chunks = messages(0, codec.FLOAT32, factored=False)
    push(once, header, chunks)
    opened = [twice.begin(header), twice.begin(header)]
    for chunk in map(codec.decode_chunk, chunks):
        queue_all(twice, opened, [chunk, chunk])
    assert sorted(twice.finish(p).repeated for p in opened) == [False, True]
    np.testing.assert_array_equal(once.arena.parameters, twice.arena.parameters)
    assert twice.version == 1


def test_factors_where_they_do_not_belong_are_refused_and_change_nothing() -> None:
    shard = new_shard(FACTOR, start_values(), SGD())
    before = state(shard)
    [group] = FACTOR.factored(0)
    both = np.zeros(2 * (INPUTS + OUTPUTS), np.float32)
    bad = [
        encode_chunk(0, codec.FLOAT32, both, rows=2, count=group.size - INPUTS),
        encode_chunk(0, codec.FLOAT32, both, rows=3, count=group.size),
        encode_chunk(0, codec.FLOAT32, both[:-1], rows=2, count=group.size),
        encode_chunk(group.size, codec.FLOAT32, both, rows=2, count=700),
    ]
    for number, chunk in enumerate(bad, 1):
        opened = shard.begin(pb.PushHeader(worker=0, incarnation=1, sequence=number))
        opened.position = codec.decode_chunk(chunk).start
        with pytest.raises(MalformedChunk):
            shard.apply(opened, codec.decode_chunk(chunk))
    both[5] = np.nan
    opened = shard.begin(pb.PushHeader(worker=0, incarnation=1, sequence=9))
    with pytest.raises(NonFinite, match="the first in k"):
        shard.apply(opened, codec.decode_chunk(encode_chunk(0, codec.FLOAT32, both, rows=2, count=group.size)))
    for a, b in zip(before, state(shard), strict=True):
        np.testing.assert_array_equal(a, b)


def test_pulls_and_snapshots_go_on_beside_many_pushes() -> None:
    shard = new_shard(DENSE, np.zeros(SIZE, np.float32), SGD())
    stop = threading.Event()

    def read() -> int:
        reads = 0
        while not stop.is_set():
            for start, end in shard.vector.cut(0, shard.vector.size):
                shard.vector.read(start, end, np.empty(end - start, np.uint16))
            with shard.snapshot() as snapshot:
                moments = {float(piece[0]) for piece in snapshot.pieces()}
            # Every push moves every trained element by the same amount, region by region.
            assert len(moments) <= 3
            reads += 1
        return reads

    def work(worker: int) -> None:
        for sequence in range(1, 6):
            opened = shard.begin(pb.PushHeader(worker=worker, incarnation=1, sequence=sequence))
            for start, end in codec.split(0, SIZE - 3):
                ones = np.ones(end - start, np.float32)
                shard.apply(opened, codec.decode_chunk(encode_chunk(start, codec.FLOAT32, ones)))
            differences = encode_chunk(SIZE - 3, codec.FLOAT32, np.zeros(3, np.float32))
            shard.apply(opened, codec.decode_chunk(differences))
            shard.finish(opened)

    with ThreadPoolExecutor(5) as pool:
        reader = pool.submit(read)
        for future in [pool.submit(work, worker) for worker in range(4)]:
            future.result()
        stop.set()
        assert reader.result() > 0
    assert shard.version == 20
