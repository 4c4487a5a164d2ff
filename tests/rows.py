"""One push in two ways: tables as rows, and everything dense; factors and statistics are the same in both."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.numerics import convert
from downpour.ps.layout import STATISTIC, TRAINED, Layout
from downpour.worker.exchange.exchange import Gradients
from downpour.worker.exchange.packing import Packer
from downpour.worker.exchange.rows import RowPacker, dense_ranges, summed

WIRES = {"float32": codec.FLOAT32, "bfloat16": codec.BFLOAT16}


def to_wire(values: np.ndarray, wire: int) -> np.ndarray:
    out = np.empty(values.size, codec.WIRE_DTYPES[wire])
    convert.to_wire(np.ascontiguousarray(values, np.float32).reshape(-1), out)
    return out


def both_ways(
    layout: Layout, tables: Collection[str], seed: int, wire: pb.Codec, num_rows: int = 60
) -> tuple[Gradients, Gradients]:
    """A push of random numbers with its tables as rows, a quarter of them the same row, and the same push dense."""
    rng = np.random.default_rng(seed)
    rows, whole = {}, []
    for number, v in enumerate(layout.variables):
        whole.append(np.zeros(v.shape, np.float32))
        if v.name in tables:
            indices = rng.integers(0, v.shape[0], num_rows)
            indices[: num_rows // 4] = indices[:1]
            values = rng.standard_normal((num_rows, *v.shape[1:]), np.float32)
            for index, row in zip(indices, values, strict=True):
                whole[number][index] += row
            rows[number] = summed(v, indices, values, wire)
        elif v.kind in (TRAINED, STATISTIC):
            whole[number][...] = rng.standard_normal(v.shape, np.float32)
    dense, beside, statistics, factors = [], [], [], []
    for shard, vector in enumerate(layout.scatter(whole)):
        first, trained, pushed = layout.num_factored(shard), layout.num_trained(shard), layout.num_pushed(shard)
        dense.append(to_wire(vector[first:trained], wire))
        parts = [dense[-1][r.offset - first :][: r.size] for r in dense_ranges(layout, shard, rows)]
        beside.append(np.concatenate(parts) if parts else dense[-1][:0])
        statistics.append(vector[trained:pushed])
        sides = [(group.num_inputs, group.size // group.num_inputs) for group in layout.factored(shard)]
        drawn = [[rng.standard_normal((3, side), np.float32) for side in both] for both in sides]
        factors.append([(to_wire(x, wire).reshape(x.shape), to_wire(d, wire).reshape(d.shape)) for x, d in drawn])
    versions = [0] * layout.num_shards
    return (
        Gradients(beside, statistics, versions, factors=factors, rows=rows),
        Gradients(dense, statistics, versions, factors=factors),
    )


def packed(
    layout: Layout, shard: int, gradients: Gradients, wire: pb.Codec, push: pb.Codec | None = None
) -> list[codec.Outgoing]:
    """One shard's chunks, as `Exchange` sends them."""
    packer = Packer(layout, shard, wire, push or wire)
    assert gradients.factors is not None
    mine = gradients.trained[shard], gradients.statistics[shard], gradients.factors[shard]
    return RowPacker(layout, shard, packer).pack(*mine, gradients.rows) if gradients.rows else packer.pack(*mine)


def decoded(chunk: codec.Outgoing) -> codec.Chunk:
    """A chunk as a shard receives it, without a header."""
    return codec.decode_chunk(b"".join(chunk.encode(None)))
