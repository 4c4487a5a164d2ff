"""What a push becomes: its chunks, what INT8 rounds off, and that nothing of it is lost in the long run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from downpour.proto import codec
from downpour.ps.apply.sources import Quantized
from downpour.ps.layout import FACTORED, STATISTIC, Slicing, Variable, lay_out
from downpour.ps.policy.rules import SGD
from downpour.ps.policy.schedules import Constant
from downpour.worker.exchange.exchange import Exchanger, Gradients
from downpour.worker.exchange.packing import Packer
from tests.chunks import encode_chunk
from tests.worker.cluster import initialize

SIZE = 3 * codec.BLOCK + 17
LAYOUT = lay_out([Variable("w", (SIZE,)), Variable("m", (5,), STATISTIC)], 1)
NO_DIFFERENCES = np.zeros(5, np.float32)


def decoded(chunk: codec.Outgoing) -> np.ndarray:
    """As a shard reads it."""
    out = np.empty(chunk.count, np.float32)
    Quantized(codec.decode_chunk(b"".join(chunk.encode(None)))).decode((chunk.start, chunk.start + chunk.count), out)
    return out


@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-30, 1e-6, 1.0, 1e20]))
def test_rounding_is_within_half_a_step_of_its_block(seed: int, scale: float) -> None:
    gradient = (np.random.default_rng(seed).standard_normal(SIZE) * scale).astype(np.float32)
    packer = Packer(LAYOUT, 0, codec.FLOAT32, codec.INT8)
    quantized, statistics = packer.pack(gradient, NO_DIFFERENCES, [])
    assert (quantized.codec, statistics.codec) == (codec.INT8, codec.FLOAT32)
    for start in range(0, SIZE, codec.BLOCK):
        block = slice(start, start + codec.BLOCK)
        step = np.abs(gradient[block]).max() / 127
        assert np.abs(decoded(quantized)[block] - gradient[block]).max() <= 0.501 * step


def test_what_is_rounded_off_comes_with_later_pushes() -> None:
    rng = np.random.default_rng(0)
    packer = Packer(LAYOUT, 0, codec.FLOAT32, codec.INT8)
    sent, meant = np.zeros(SIZE, np.float64), np.zeros(SIZE, np.float64)
    for _ in range(200):
        gradient = rng.standard_normal(SIZE).astype(np.float32) * 0.1 + np.float32(1e-3)
        meant += gradient
        sent += decoded(packer.pack(gradient, NO_DIFFERENCES, [])[0])
    # Without feedback 200 rounding errors would add up, and a drift of 1e-3 is below a step of 0.4 / 127.
    assert np.abs(sent - meant).max() < 0.01
    assert np.abs(meant).max() > 0.2


@pytest.mark.parametrize("wire", [codec.FLOAT32, codec.BFLOAT16])
def test_zeros_and_bfloat16(wire: Any) -> None:
    packer = Packer(LAYOUT, 0, wire, codec.INT8)
    values = np.zeros(SIZE, codec.WIRE_DTYPES[wire])
    assert (decoded(packer.pack(values, NO_DIFFERENCES, [])[0]) == 0).all()
    values[3] = np.float32(-2).view(np.uint32) >> 16 if wire == codec.BFLOAT16 else -2
    out = decoded(packer.pack(values, NO_DIFFERENCES, [])[0])
    assert out[3] == -2 and np.count_nonzero(out) == 1


@pytest.mark.parametrize("wire", [codec.FLOAT32, codec.BFLOAT16])
def test_factors_are_sent_as_they_are_one_after_the_other(wire: Any) -> None:
    layout = lay_out([Variable("head/kernel", (6, 10), FACTORED), Variable("w", (SIZE,))], 2, [Slicing("head/*", 4)])
    [group], rng = layout.factored(1), np.random.default_rng(0)
    x, d = (rng.integers(0, 100, (3, columns)).astype(codec.WIRE_DTYPES[wire]) for columns in (6, group.num_outputs))
    gradient = np.zeros(layout.num_trained(1) - group.size, codec.WIRE_DTYPES[wire])
    chunk, *_ = Packer(layout, 1, wire, wire).pack(gradient, NO_DIFFERENCES[:0], [(x, d)])
    assert chunk.num_bytes == x.nbytes + d.nbytes
    parts = chunk.encode(None)
    assert all(any(np.shares_memory(np.asarray(part), each) for part in parts[1:]) for each in (x, d)), "not copied"
    both = np.concatenate([x.ravel(), d.ravel()])
    assert b"".join(parts) == encode_chunk(group.start, wire, both, rows=3, count=group.size)
    for sent, meant in zip(codec.decode_chunk(b"".join(parts)).factors(6), (x, d), strict=True):
        np.testing.assert_array_equal(sent, meant)


def test_training_in_int8_ends_where_float32_does(served: Any) -> None:
    """Least distance to a target, from many small steps, by two workers through a real shard."""
    target = np.random.default_rng(5).standard_normal(SIZE).astype(np.float32)
    ends, sizes = [], []
    for push in (codec.FLOAT32, codec.INT8):
        addresses = served.start(1)
        initialize(addresses, LAYOUT, [np.zeros(SIZE, np.float32), NO_DIFFERENCES], SGD(), Constant(0.1))
        exchanges = [
            Exchanger(addresses, LAYOUT, wire=codec.FLOAT32, worker=i, incarnation=1, give_up_after_s=30, push=push)
            for i in range(2)
        ]
        answers = [exchange.start().result() for exchange in exchanges]
        for _ in range(60):
            for i, exchange in enumerate(exchanges):
                pulled = answers[i].parameters
                assert pulled is not None
                gradient = Gradients([pulled.trained[0] - target], [NO_DIFFERENCES], list(pulled.versions))
                answers[i] = exchange.start(gradient).result()
        sizes.append(answers[0].bytes_pushed)
        assert answers[0].parameters is not None
        ends.append(answers[0].parameters.trained[0].copy())
        for exchange in exchanges:
            exchange.close()
    for end in ends:
        assert np.abs(end - target).max() < 1e-3
    assert sizes[1] < 0.3 * sizes[0]
