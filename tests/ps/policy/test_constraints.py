"""Constraints on the shards, against Keras's own, and what must hold however variables and pushes are cut."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import MalformedChunk
from downpour.ps.checkpoint import restore
from downpour.ps.layout import FACTORED, FROZEN, STATISTIC, Layout, Slicing, Variable, from_canonical, lay_out
from downpour.ps.layout.chunks import PIECE_ELEMENTS, pieces_of_range, runs
from downpour.ps.policy.averages import Mean, Polyak
from downpour.ps.policy.constraints import Constraint, MaxNorm, MinMaxNorm, NonNeg, UnitNorm
from downpour.ps.policy.pace import Sync
from downpour.ps.policy.rules import SGD, KerasRMSProp, RMSProp, Rule
from downpour.ps.policy.schedules import Constant
from downpour.ps.shard.shard import Shard
from downpour.worker.exchange.packing import Packer
from tests.chunks import encode_chunk
from tests.ps.checkpoint.saving import save_shards
from tests.ps.pushing import new_shard

RATE, EPSILON = 0.3, 1e-7
# Shape, axes as Keras has them, and from 0.
SHAPES = [((6, 5), 0, (0,)), ((6, 5), -1, (1,)), ((3, 3, 4, 5), [0, 1, 2], (0, 1, 2)), ((7,), 0, (0,))]


def both(axis: Any, axes: tuple[int, ...]) -> list[tuple[Constraint, keras.constraints.Constraint]]:
    return [
        (NonNeg(), keras.constraints.NonNeg()),
        (MaxNorm(0.9, axes), keras.constraints.MaxNorm(0.9, axis)),
        (UnitNorm(axes), keras.constraints.UnitNorm(axis)),
        (MinMaxNorm(0.5, 1.5, 0.25, axes), keras.constraints.MinMaxNorm(0.5, 1.5, 0.25, axis)),
    ]


CASES = [
    pytest.param(shape, mine, theirs, id=f"{type(mine).__name__}-{shape}-{axis}")
    for shape, axis, axes in SHAPES
    for mine, theirs in both(axis, axes)
]
LAYOUT = lay_out(
    [
        Variable("n", (6, 9), constraint=MaxNorm(0.9, (0,))),
        Variable("u", (9, 6), weight_decay=0.1, constraint=UnitNorm((1,))),
        Variable("p", (31,), constraint=NonNeg()),
        Variable("free", (11,)),
        Variable("m", (4,), STATISTIC),
        Variable("f", (3,), FROZEN),
    ],
    1,
)


def random(size: Any, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size, np.float32)


def push(shard: Shard, sequence: int, gradient: np.ndarray, *, worker: int = 0) -> pb.PushReply:
    """All that a push covers, cut as workers cut it."""
    opened = shard.begin(pb.PushHeader(worker=worker, incarnation=1, sequence=sequence, base_version=shard.version))
    for start, stop in shard.arena.chunks:
        shard.apply(opened, codec.decode_chunk(encode_chunk(start, codec.FLOAT32, gradient[start:stop])))
    return shard.finish(opened)


def trained(layout: Layout, num_pushes: int, rule: Rule | None = None, **more: Any) -> Shard:
    shard = new_shard(layout, random(layout.size(0)), rule or RMSProp(), Constant(0.1), **more)
    for number in range(1, num_pushes + 1):
        push(shard, number, random(layout.num_pushed(0), number))
    return shard


def values_of(shard: Shard, vector: np.ndarray | None = None) -> dict[str, np.ndarray]:
    layout = shard.arena.layout
    values = layout.gather([shard.arena.parameters if vector is None else vector])
    return {v.name: value for v, value in zip(layout.variables, values, strict=True)}


@pytest.mark.parametrize("rule", ["SGD", "RMSprop", "decayed"])
@pytest.mark.parametrize(("shape", "mine", "theirs"), CASES)
def test_a_shard_trains_as_keras_does(
    shape: tuple[int, ...], mine: Constraint, theirs: keras.constraints.Constraint, rule: str
) -> None:
    """25 updates by `keras.optimizers`, weight decay included, to float32 rounding."""
    decay = 0.1 if rule == "decayed" else 0.0
    variable = keras.Variable(random(shape))
    variable.constraint = theirs
    free = keras.Variable(random((4,), 1))
    optimizer: keras.optimizers.Optimizer = (
        keras.optimizers.RMSprop(RATE, momentum=0.9)
        if rule == "RMSprop"
        else keras.optimizers.SGD(RATE, weight_decay=decay)
    )
    decayed = Variable("w", shape, decoupled_decay=decay, constraint=mine)
    layout = lay_out([decayed, Variable("free", (4,), decoupled_decay=decay)], 1)
    start = layout.scatter([variable.numpy(), free.numpy()])[0]
    shard = new_shard(layout, start, KerasRMSProp(momentum=0.9) if rule == "RMSprop" else SGD(), Constant(RATE))
    for step in range(1, 26):
        gradients = [random(shape, 2 * step), random((4,), 2 * step + 1)]
        optimizer.apply(gradients, [variable, free])
        push(shard, step, layout.scatter(gradients)[0])
        values = values_of(shard)
        np.testing.assert_allclose(values["w"], variable.numpy(), rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(values["free"], free.numpy(), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(("shape", "mine", "theirs"), CASES)
def test_the_formulas_are_those_of_keras(
    shape: tuple[int, ...], mine: Constraint, theirs: keras.constraints.Constraint
) -> None:
    for scale in (1e-30, 1e-4, 1.0, 1e30):  # norms of 0 and infinity
        w = random(shape) * np.float32(scale)
        expected = keras.ops.convert_to_numpy(theirs(keras.ops.convert_to_tensor(w)))
        mine.project(w)
        np.testing.assert_allclose(w, expected, rtol=1e-6)


def test_zeros_are_positive_wherever_they_lie() -> None:
    w = np.full(100, -0.0, np.float32)
    NonNeg().project(w)
    assert not np.signbit(w).any()


@pytest.mark.parametrize("kind", ["trained", FACTORED])
def test_slices_along_a_free_axis_equal_the_whole(kind: str) -> None:
    """To the bit: cut by the job, and cut by `plan` since a piece does not hold the whole."""
    small = Variable("w", (40, 30), constraint=MaxNorm(0.9, (0,)))
    large = Variable("w", (1000, 300), kind, constraint=MinMaxNorm(0.1, 0.9, 0.5, (0,)))
    for v, slicing in ((small, [Slicing("w", 7)]), (large, [])):
        layout = lay_out([v], 1, slicing)
        ranges = layout.by_shard[0]
        assert len(ranges) == 7 if slicing else len(ranges) == 3
        assert max(r.size for r in ranges) <= PIECE_ELEMENTS and {r.axis for r in ranges} == {1}
        shard = new_shard(layout, layout.scatter([random(v.shape)])[0], SGD(), Constant(0.1))
        whole = random(v.shape)
        for step in (1, 2, 3):
            gradient = random(v.shape, step)
            push(shard, step, layout.scatter([gradient])[0])
            whole -= np.float32(0.1) * gradient
            assert v.constraint
            v.constraint.project(whole)
        np.testing.assert_array_equal(values_of(shard)["w"], whole)


def test_factors_equal_the_dense_gradient() -> None:
    rows, inputs, outputs = 4, 60, 50
    results = []
    for kind in ("trained", FACTORED):
        layout = lay_out([Variable("w", (inputs, outputs), kind, constraint=MaxNorm(0.3, (0,)))], 1, [Slicing("w", 3)])
        shard = new_shard(layout, layout.scatter([random((inputs, outputs))])[0], SGD(), Constant(0.1))
        for step in range(1, 5):
            x, d = random((rows, inputs), step), random((rows, outputs), -step + 9)
            if kind == FACTORED:
                opened = shard.begin(pb.PushHeader(incarnation=1, sequence=step))
                payload = np.concatenate([x.ravel(), d.ravel()])
                chunk = encode_chunk(0, codec.FLOAT32, payload, rows=rows, count=inputs * outputs)
                shard.apply(opened, codec.decode_chunk(chunk))
                shard.finish(opened)
            else:
                push(shard, step, layout.scatter([x.T @ d])[0])
        results.append(values_of(shard)["w"])
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)
    assert np.linalg.norm(results[1], axis=0).max() <= 0.3 * (1 + 1e-6)


def test_what_a_push_is_made_of_ends_outside_of_norms() -> None:
    """A worker's chunks and a shard's regions are the same, and the first chunk is cut short before a norm."""
    norm = 3 * PIECE_ELEMENTS // 4
    layout = lay_out(
        [Variable("a", (codec.CHUNK_ELEMENTS - norm // 2,)), Variable("b", (norm,), constraint=MaxNorm(1.0, (0,))),
         Variable("c", (codec.CHUNK_ELEMENTS,))], 1,
    )  # fmt: skip
    first = codec.CHUNK_ELEMENTS - norm // 2
    assert layout.chunks(0) == [(0, first), (first, first + codec.CHUNK_ELEMENTS), *layout.chunks(0)[2:]]
    gradient = random(layout.num_trained(0), 1)
    for push_codec in (codec.FLOAT32, codec.INT8):
        shard = new_shard(layout, random(layout.size(0)), SGD(), Constant(0.1))
        assert [(region.start, region.stop) for region in shard.vector.regions] == layout.chunks(0)
        assert any(
            start <= first and first + norm <= stop for region in shard.vector.regions for start, stop in region.pieces
        )
        packed = Packer(layout, 0, codec.FLOAT32, push_codec).pack(gradient, np.empty(0, np.float32), [])
        assert [(chunk.start, chunk.start + chunk.count) for chunk in packed] == layout.chunks(0)
        opened = shard.begin(pb.PushHeader(incarnation=1, sequence=1))
        for chunk in packed:
            shard.apply(opened, codec.decode_chunk(b"".join(chunk.encode(None))))
        shard.finish(opened)
        values = values_of(shard)
        np.testing.assert_allclose(np.linalg.norm(values["b"]), 1, rtol=1e-5)
        assert np.linalg.norm(values["a"]) > 100


@given(
    borders=st.lists(st.integers(1, 200), max_size=12, unique=True).map(sorted),
    longest=st.integers(1, 40),
    start=st.integers(0, 20),
)
def test_runs_cover_everything_once_and_end_outside(borders: list[int], longest: int, start: int) -> None:
    uncut = [(start + a, start + b) for a, b in zip(borders[::2], borders[1::2], strict=False)]
    stop = start + 200
    cut = list(runs(start, stop, longest, uncut))
    assert [a for a, _ in cut] == [start, *(b for _, b in cut[:-1])] and cut[-1][1] == stop
    assert all(b - a <= longest or (a, b) in uncut for a, b in cut)
    assert not [b for _, b in cut for begin, end in uncut if begin < b < end]
    plain = list(runs(start, stop, longest))
    assert plain == [(a, min(a + longest, stop)) for a in range(start, stop, longest)]
    assert pieces_of_range(start, stop) == [(start, stop)]


def test_a_chunk_that_ends_within_a_norm_is_refused_and_the_push_goes_on() -> None:
    shard, undisturbed = trained(LAYOUT, 3), trained(LAYOUT, 4)
    gradient = random(LAYOUT.num_pushed(0), 4)
    [first, *_] = LAYOUT.uncut(0)
    before = shard.arena.parameters.copy()
    opened = shard.begin(pb.PushHeader(incarnation=1, sequence=4, base_version=3))
    with pytest.raises(MalformedChunk, match=r"ends within \[0, \d+\), whose constraint needs them at once"):
        shard.apply(opened, codec.decode_chunk(encode_chunk(0, codec.FLOAT32, gradient[: first[1] - 1])))
    np.testing.assert_array_equal(shard.arena.parameters, before)
    push(shard, 4, gradient)
    np.testing.assert_array_equal(shard.arena.parameters, undisturbed.arena.parameters)


def test_a_push_that_breaks_after_a_norm_is_resumed() -> None:
    shard, undisturbed = trained(LAYOUT, 3), trained(LAYOUT, 4)
    gradient = random(LAYOUT.num_pushed(0), 4)
    for _, stop in LAYOUT.uncut(0):
        broken = shard.begin(pb.PushHeader(incarnation=1, sequence=4, base_version=3))
        shard.apply(broken, codec.decode_chunk(encode_chunk(0, codec.FLOAT32, gradient[:stop])))
    push(shard, 4, gradient)
    for mine, theirs in zip(shard.arena.vectors.values(), undisturbed.arena.vectors.values(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_each_of_several_gradients_applied_together_is_followed_by_its_projection() -> None:
    together, alone = trained(LAYOUT, 3), trained(LAYOUT, 3)
    headers = [pb.PushHeader(worker=worker, incarnation=1, sequence=9, base_version=3) for worker in range(1, 5)]
    opened, apart = [together.begin(h) for h in headers], [alone.begin(h) for h in headers]
    for start, stop in LAYOUT.chunks(0):
        chunks = [
            codec.decode_chunk(encode_chunk(start, codec.FLOAT32, random(LAYOUT.num_pushed(0), worker)[start:stop]))
            for worker in range(1, 5)
        ]
        for one, chunk in zip(apart, chunks, strict=True):
            alone.apply(one, chunk)
        region = together.vector.region_at(start)
        with ThreadPoolExecutor(4) as pool:
            with region.lock:
                futures = []
                for one, chunk in zip(opened, chunks, strict=True):
                    futures.append(pool.submit(together.apply, one, chunk))
                    while len(region.waiting) < len(futures):
                        assert not futures[-1].done() or futures[-1].result()
            for future in futures:
                future.result()
    np.testing.assert_array_equal(together.arena.parameters, alone.arena.parameters)


def test_the_mean_of_a_round_is_projected_once() -> None:
    """Two workers under Sync: one update with the mean of their gradients, then the projection."""
    synchronous = trained(LAYOUT, 0, SGD(), pace=Sync(2), num_workers=2)
    one_by_one = trained(LAYOUT, 0, SGD())
    for sequence in (1, 2, 3):
        gradients = [random(LAYOUT.num_pushed(0), 10 * sequence + worker) for worker in range(2)]
        for worker, gradient in enumerate(gradients):
            push(synchronous, sequence, gradient, worker=worker)
        push(one_by_one, sequence, (gradients[0] + gradients[1]) / np.float32(2))
    assert synchronous.version == 3
    np.testing.assert_array_equal(synchronous.arena.parameters, one_by_one.arena.parameters)
    assert values_of(synchronous)["p"].min() == 0


@pytest.mark.parametrize("average", [Polyak(0.8), Mean(1)], ids=str)
def test_averages_are_of_projected_parameters(average: Any) -> None:
    versions = [trained(LAYOUT, count) for count in range(6)]
    expected = versions[0].arena.parameters.copy()
    for number, shard in enumerate(versions[1:], 1):
        expected += np.float32(average.weight(number)) * (shard.arena.parameters - expected)
    kept = trained(LAYOUT, 5, average=average)
    assert kept.arena.average is not None
    np.testing.assert_allclose(kept.arena.average, expected, rtol=1e-6, atol=1e-7)
    if isinstance(average, Mean):  # its initial parameters have no weight
        values = values_of(kept, kept.arena.average)
        assert values["p"].min() >= 0 and np.linalg.norm(values["n"], axis=0).max() <= 0.9 * (1 + 1e-6)


@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_checkpoint_goes_on_onto_any_number_of_shards(tmp_path: Path, num_shards: int) -> None:
    before = trained(LAYOUT, 4)
    saved = save_shards(tmp_path, [before])
    layout = lay_out(LAYOUT.variables, num_shards, [Slicing("n", 2), Slicing("u", 3, axis=0), Slicing("p", 4)])
    gradient = random(LAYOUT.num_pushed(0), 5)
    parts = layout.scatter(LAYOUT.gather([np.concatenate([gradient, np.zeros(3, np.float32)])]))
    vectors = []
    for number, part in enumerate(parts):
        specification = pb.ShardSpecification()
        specification.CopyFrom(before.arena.specification)
        specification.shard, specification.layout = number, layout.canonical
        specification.fingerprint = layout.fingerprint
        shard = Shard(restore.arena_of(None, specification, saved, with_slots=True))
        push(shard, 5, part)
        vectors.append(shard.arena.parameters)
    push(before, 5, gradient)
    for mine, theirs in zip(layout.gather(vectors), LAYOUT.gather([before.arena.parameters]), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_layouts_without_constraints_are_as_they_were() -> None:
    """Fingerprints of before there were constraints: arenas and checkpoints of then are still good."""
    variables = [
        Variable("k", (6, 8), FACTORED, 0.1), Variable("c", (3, 3, 2, 4), weight_decay=0.1),
        Variable("d", (5,), decoupled_decay=0.2, rate=0.5), Variable("s", ()),
        Variable("m", (4,), STATISTIC), Variable("f", (3,), FROZEN),
    ]  # fmt: skip
    layout = lay_out(variables, 3, [Slicing("k", 2)])
    assert layout.fingerprint.hex() == "42a3c3484726f85e67355bb338987bd6e9ef200b2886d2e6d0740c9166dfa781"
    assert not any(layout.uncut(shard) for shard in range(3))


def test_the_canonical_form_and_the_table_have_constraints() -> None:
    assert '["n",[6,9],"trained",0.0,0.0,1.0,["MaxNorm",0.9,[0],1e-07]]' in LAYOUT.canonical
    assert '["p",[31],"trained",0.0,0.0,1.0,["NonNeg"]]' in LAYOUT.canonical
    assert from_canonical(LAYOUT.canonical) == LAYOUT
    assert "constraint MaxNorm(max_value=0.9, axes=(0,), epsilon=1e-07): 1 variables, 54 para" in LAYOUT.table()
    others = [NonNeg(), MaxNorm(0.8, (0,)), MaxNorm(0.9, (1,)), MaxNorm(0.9, (0,), 1e-8), UnitNorm((0,)), None]
    changed = [lay_out([replace(LAYOUT.variables[0], constraint=other), *LAYOUT.variables[1:]], 1) for other in others]
    assert len({layout.fingerprint for layout in [LAYOUT, *changed]}) == 7
    with pytest.raises(ValueError, match="not the canonical form"):
        from_canonical(LAYOUT.canonical.replace("MaxNorm", "MaxNrom"))


@pytest.mark.parametrize(
    ("shape", "constraint", "slicing", "message"),
    [
        ((40, 30), MaxNorm(1.0, (0,)), [Slicing("w", 4, axis=0)],
         r"w \[40, 30\] is sliced along axis 0, over which its constraint MaxNorm.* sums; slice it along axis 1 or "
         "leave it whole, or set constraint=None"),
        ((40, 30), UnitNorm((0, 1)), [Slicing("w", 4)], "sums; leave it whole, or set constraint=None"),
        ((1000, 300), MaxNorm(1.0, (0, 1)), [],
         r"w \[1000, 300\]: its constraint MaxNorm.* needs slices of more elements than the 131,072 that a shard "
         "updates at a time; use a smaller layer or set constraint=None"),
        ((3, 4, 50_000), MaxNorm(1.0, (2,)), [], "needs slices of more elements"),
        ((4, 1000, 300), MaxNorm(1.0, (2,)), [Slicing("w", 2, axis=0)], "slice it along axis 1, use a smaller layer"),
        ((40, 30), MaxNorm(1.0, (2,)), [], r"w \[40, 30\] has no axis 2, over which its constraint MaxNorm.* sums"),
    ],
)  # fmt: skip
def test_what_cannot_be_cut_is_refused_by_name(
    shape: tuple[int, ...], constraint: Constraint, slicing: Sequence[Slicing], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        lay_out([Variable("w", shape, constraint=constraint)], 2, slicing)


def test_a_factored_matrix_has_its_norms_over_axis_0() -> None:
    with pytest.raises(ValueError, match=r"w is factored; its constraint UnitNorm.* sums over axis 1, so it cannot be"):
        lay_out([Variable("w", (4, 5), FACTORED, constraint=UnitNorm((1,)))], 1)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (MaxNorm, (-1.0, (0,)), "MaxNorm: max_value is -1.0; give a finite number of at least 0"),
        (MaxNorm, (float("inf"), (0,)), "MaxNorm: max_value is inf"),
        (UnitNorm, ((),), r"UnitNorm: axes is \(\); give one axis or more, from 0, in ascending order"),
        (UnitNorm, ((1, 0),), "axes"),
        (UnitNorm, ((-1,),), "axes"),
        (MinMaxNorm, (2.0, 1.0, 1.0, (0,)), "give a min_value of at most max_value"),
        (MinMaxNorm, (0.0, 1.0, 1.5, (0,)), "a rate of at most 1"),
    ],
)
def test_parameters_are_checked(kind: type, values: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(*values)
