"""Rows of tables become chunks as the dense gradient does, in fewer bytes; and real shards end alike either way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.ps.apply.sources import source_of
from downpour.ps.layout import FACTORED, FROZEN, STATISTIC, Layout, Slicing, Variable, lay_out
from downpour.ps.policy.rules import RMSProp
from downpour.ps.policy.schedules import Constant
from downpour.worker.exchange.clients import ShardClient
from downpour.worker.exchange.exchange import Exchanger, Gradients
from downpour.worker.exchange.packing import Packer
from downpour.worker.exchange.rows import RowPacker, summed
from tests.rows import WIRES, both_ways, decoded, packed, to_wire
from tests.worker.cluster import initialize

ALL_WIRES = pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)
TABLE = Variable("t", (50, 3))


def vector_of(chunks: list[codec.Outgoing], layout: Layout, shard: int) -> np.ndarray:
    """What a shard reads in the chunks of one push, which must follow each other."""
    groups = {group.start: group for group in layout.factored(shard)}
    out = np.full(layout.num_pushed(shard), np.nan, np.float32)
    position = 0
    for chunk in chunks:
        assert chunk.start == position
        position += chunk.count
        source_of(decoded(chunk), groups).decode((chunk.start, position), out[chunk.start : position])
    assert position == out.size
    return out


@given(
    seed=st.integers(0, 99),
    axis=st.integers(0, 2),
    num_slices=st.integers(1, 4),
    chunk=st.integers(5, 90),
    num_rows=st.integers(0, 40),
    wire=st.sampled_from(list(WIRES.values())),
)
def test_chunks_are_those_of_the_dense_gradient_or_smaller(
    seed: int, axis: int, num_slices: int, chunk: int, num_rows: int, wire: pb.Codec
) -> None:
    """Tables cut along any axis; chunks that begin and end within rows, and hold parts of several variables."""
    variables = [
        *(Variable("a", (7,)), Variable("t", (30, 4, 4)), Variable("k", (4, 5), FACTORED), Variable("v", (9,))),
        *(Variable("u", (25, 3), weight_decay=0.1), Variable("m", (6,), STATISTIC), Variable("f", (3,), FROZEN)),
    ]
    layout = lay_out(variables, 2, [Slicing("t", num_slices, axis)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "CHUNK_ELEMENTS", chunk)
        by_rows, dense = both_ways(layout, ("t", "u", "v"), seed, wire, num_rows)
        for shard in range(2):
            mine, theirs = (packed(layout, shard, way, wire) for way in (by_rows, dense))
            assert all(a.num_bytes <= b.num_bytes for a, b in zip(mine, theirs, strict=True))
            a, b = (vector_of(chunks, layout, shard) for chunks in (mine, theirs))
            np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


def test_few_rows_go_as_runs_and_many_dense() -> None:
    layout = lay_out([Variable("t", (1000, 64))], 1)
    sizes = {}
    for num_rows in (0, 1, 10, 100_000):
        [chunk] = packed(layout, 0, both_ways(layout, ["t"], 0, codec.BFLOAT16, num_rows)[0], codec.BFLOAT16)
        sizes[num_rows] = chunk.num_bytes, None if chunk.runs is None else len(chunk.runs)
    assert sizes[0] == (0, 0) and sizes[1] == (64 * 2 + 8, 1)
    assert sizes[10][0] <= 10 * (64 * 2 + 8) and sizes[100_000] == (1000 * 64 * 2, None)


def test_neighbouring_rows_and_dense_variables_share_a_run() -> None:
    layout = lay_out([Variable("a", (5,)), TABLE, Variable("v", (7,))], 1)
    rows = summed(TABLE, np.array([4, 0, 3, 49]), np.ones((4, 3), np.float32), codec.FLOAT32)
    gradients = Gradients([np.ones(12, np.float32)], [np.empty(0, np.float32)], [0], factors=[[]], rows={1: rows})
    [chunk] = packed(layout, 0, gradients, codec.FLOAT32)
    assert chunk.runs is not None and chunk.runs.tolist() == [[0, 8], [14, 6], [152, 10]]


@ALL_WIRES
def test_rows_are_summed_with_the_bits_of_tensorflow(wire: pb.Codec) -> None:
    rng = np.random.default_rng(0)
    indices = np.minimum(rng.geometric(0.1, 5000) - 1, 49)  # some rows hundreds of times
    values = (rng.standard_normal((5000, 3)) * 10.0 ** rng.integers(-6, 6, (5000, 1))).astype(np.float32)
    rows = summed(TABLE, indices, values, wire)
    dense = tf.convert_to_tensor(tf.IndexedSlices(values, indices, (50, 3))).numpy()
    mine = np.zeros((50, 3), codec.WIRE_DTYPES[wire])
    mine[rows.indices] = rows.values
    np.testing.assert_array_equal(mine.reshape(-1), to_wire(dense, wire))
    assert (np.diff(rows.indices) > 0).all()


WRONG: dict[str, tuple[Variable, Any, Any, str]] = {
    "too high": (TABLE, np.array([3, 50]), np.ones((2, 3), np.float32), "t has 50 rows, .* reach from 3 to 50"),
    "negative": (TABLE, np.array([-1]), np.ones((1, 3), np.float32), "t has 50 rows, .* reach from -1 to -1"),
    "no integers": (TABLE, np.array([1.0]), np.ones((1, 3), np.float32), "t: indices are float64"),
    "another width": (TABLE, np.array([1]), np.ones((1, 4), np.float32), r"t: rows are float32 \[1, 4\]"),
    "another length": (TABLE, np.array([1]), np.ones((2, 3), np.float32), r"give float32 \[1, 3\]"),
    "another type": (TABLE, np.array([1]), np.ones((1, 3)), "t: rows are float64"),
    "statistic": (Variable("m", (5,), STATISTIC), np.array([1]), np.ones(1, np.float32), "m .* is statistic"),
    "scalar": (Variable("s", ()), np.array([0]), np.ones(1, np.float32), r"s \[\] is trained; rows are of"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_rows_are_refused_by_name(kind: str) -> None:
    variable, indices, values, message = WRONG[kind]
    with pytest.raises(ValueError, match=message):
        summed(variable, indices, values, codec.FLOAT32)


def test_a_gradient_of_another_size_and_delay_compensation_are_refused() -> None:
    layout = lay_out([TABLE, Variable("a", (5,))], 1)
    by_rows, dense = both_ways(layout, ["t"], 0, codec.FLOAT32)
    wrong = Gradients(dense.trained, by_rows.statistics, [0], factors=[[]], rows=by_rows.rows)
    with pytest.raises(ValueError, match="shard 0: 155 dense elements beside the rows of t; 5 are due"):
        packed(layout, 0, wrong, codec.FLOAT32)
    exchange = Exchanger(
        ["127.0.0.1:1"], layout, wire=codec.FLOAT32, worker=0, incarnation=1, give_up_after_s=1, send_base=True
    )
    based = Gradients(by_rows.trained, by_rows.statistics, [0], dense.trained, by_rows.factors, by_rows.rows)
    with pytest.raises(ValueError, match="Compensate needs every element of a gradient; push t dense"):
        exchange.start(based, pull=False).result()
    exchange.close()


def test_in_int8_runs_stay_in_the_wire_dtype_and_nothing_is_lost() -> None:
    """One chunk is of the table alone; the other ones hold other variables, too, and what rounding leaves of them."""
    layout = lay_out([Variable("t", (40, 64)), Variable("w", (3000,))], 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "CHUNK_ELEMENTS", 1024)
        packer = RowPacker(layout, 0, Packer(layout, 0, codec.FLOAT32, codec.INT8))
        sent, meant, codecs = np.zeros(5560), np.zeros(5560), list[set[int]]()
        for seed in range(200):
            by_rows, dense = both_ways(layout, ["t"], seed, codec.FLOAT32, 3)
            chunks = packer.pack(by_rows.trained[0], by_rows.statistics[0], [], by_rows.rows or {})
            assert all((c.codec == codec.INT8) == (c.runs is None) for c in chunks)
            codecs.append({c.codec for c in chunks})
            sent += vector_of(chunks, layout, 0)
            meant += dense.trained[0]
    assert codecs[0] == {codec.FLOAT32, codec.INT8}
    assert 0 < np.abs(sent - meant).max() < 0.05


VARIABLES = [
    Variable("head", (16, 40), FACTORED),
    Variable("rows", (3000, 16), weight_decay=1e-3),
    Variable("columns", (500, 30)),
    Variable("w", (200, 10)),
    Variable("m", (4,), STATISTIC),
]


@pytest.mark.process
@pytest.mark.parametrize(
    "wire", [codec.BFLOAT16, pytest.param(codec.FLOAT32, marks=pytest.mark.slow)], ids=["bfloat16", "float32"]
)
def test_real_shards_end_with_the_same_state_either_way(shards: Any, wire: pb.Codec, tmp_path: Path) -> None:
    """Parameters, slots, counters and ledger, in checkpoints; a shard is killed in between, with rows as without."""
    layout = lay_out(VARIABLES, 3, [Slicing("head", 3), Slicing("rows", 3, 0), Slicing("columns", 3, 1)])
    rng = np.random.default_rng(3)
    values = [rng.standard_normal(v.shape, np.float32) for v in VARIABLES]
    files, sizes = [], []
    for way in range(2):
        addresses = shards.start(3)
        initialize(addresses, layout, values, RMSProp(momentum=0.9), Constant(0.01))
        exchange = Exchanger(addresses, layout, wire=wire, worker=0, incarnation=1, give_up_after_s=60)
        exchange.connect()
        versions = [0, 0, 0]
        for number in range(6):
            gradients = both_ways(layout, ["rows", "columns"], number, wire)[way]
            gradients.versions[:] = versions  # type: ignore[index]
            answer = exchange.start(gradients, pull=False).result()
            versions = answer.versions
            assert answer.acknowledged and not answer.dropped and answer.staleness == 0
            if number == 2:
                shards.kill_and_restart(1, addresses[1])
        sizes.append(answer.bytes_pushed)
        folder = tmp_path / str(way)
        folder.mkdir()
        for i, address in enumerate(addresses):
            client = ShardClient(i, address, layout, 60)
            file = client.write_checkpoint(str(folder)).file
            files.append((way, (folder / file).read_bytes()))
            client.close()
        exchange.close()
    assert sizes[0] < 0.4 * sizes[1]
    assert [content for way, content in files if way == 0] == [content for way, content in files if way == 1]
