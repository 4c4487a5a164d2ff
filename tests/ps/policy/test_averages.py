"""Averages on the shard: their values, what is saved, and what survives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downpour.proto import parameter_server_pb2 as pb
from downpour.ps.layout import FROZEN, STATISTIC, Variable, lay_out
from downpour.ps.memory.arena import Arena
from downpour.ps.policy.averages import BY_NAME, KerasPolyak, Mean, Polyak
from downpour.ps.policy.named import from_message, to_message
from downpour.ps.policy.rules import SGD, KerasAdam
from downpour.ps.policy.schedules import Constant
from downpour.ps.shard.shard import Shard
from tests.chunks import encode_chunk
from tests.ps.checkpoint.saving import save_shards
from tests.ps.pushing import new_shard, push

LAYOUT = lay_out(
    [Variable("w", (9, 3), weight_decay=0.1), Variable("m", (4,), STATISTIC), Variable("f", (5,), FROZEN)], 1
)
SIZE, PUSHED = LAYOUT.size(0), LAYOUT.num_pushed(0)
START = np.arange(SIZE, dtype=np.float32)


def trained(average: Any, num_pushes: int, seed: int = 0) -> tuple[Shard, list[np.ndarray]]:
    """A shard after some pushes, and the parameters of every version."""
    shard = new_shard(LAYOUT, START, KerasAdam(), Constant(0.1), average)
    rng = np.random.default_rng(seed)
    versions = [shard.arena.parameters.copy()]
    for number in range(1, num_pushes + 1):
        push(shard, number, rng.normal(size=PUSHED))
        versions.append(shard.arena.parameters.copy())
    return shard, versions


@settings(max_examples=20, deadline=None)
@given(decay=st.floats(0, 0.999), num_pushes=st.integers(0, 30), seed=st.integers(0, 1000))
def test_polyak_equals_tensorflows_moving_average(decay: float, num_pushes: int, seed: int) -> None:
    """To the bit, except that with decay 0 ours is exactly the parameters; trained, statistics and frozen alike."""
    import tensorflow as tf

    shard, versions = trained(Polyak(decay), num_pushes, seed)
    variable = tf.Variable(START)
    average = tf.train.ExponentialMovingAverage(decay)
    average.apply([variable])
    for values in versions[1:]:
        variable.assign(values)
        average.apply([variable])
    if decay == 0:
        np.testing.assert_array_equal(shard.arena.average, versions[-1])
    np.testing.assert_allclose(shard.arena.average, average.average(variable).numpy(), rtol=1e-6, atol=1e-6)


def test_keras_polyak_begins_with_the_first_version() -> None:
    """Against Keras' own: tests/launch/job/test_compiled.py."""
    shard, versions = trained(KerasPolyak(0.75), 3)
    expected = 0.75 * (0.75 * versions[1] + 0.25 * versions[2]) + 0.25 * versions[3]
    np.testing.assert_allclose(shard.arena.average, expected, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(start=st.integers(0, 20), num_pushes=st.integers(0, 60), seed=st.integers(0, 1000))
def test_mean_is_the_mean_of_the_versions_from_its_start_on(start: int, num_pushes: int, seed: int) -> None:
    """Within 1e-6 of the largest value of numpy's mean in float64."""
    shard, versions = trained(Mean(start), num_pushes, seed)
    since = versions[min(start, num_pushes) :]
    expected = np.mean(np.array(since, np.float64), axis=0)
    np.testing.assert_allclose(shard.arena.average, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_training_is_the_same_with_and_without() -> None:
    np.testing.assert_array_equal(trained(Mean(2), 9)[1], trained(None, 9)[1])
    assert trained(None, 1)[0].arena.average is None


def test_it_is_updated_chunk_by_chunk_only_where_the_push_has_come() -> None:
    from downpour.proto import codec

    shard = new_shard(LAYOUT, START, SGD(), Constant(1.0), Polyak(0.5))
    opened = shard.begin(pb.PushHeader(incarnation=1, sequence=1))
    shard.apply(opened, codec.decode_chunk(encode_chunk(0, codec.FLOAT32, np.ones(10, np.float32))))
    assert shard.arena.average is not None
    np.testing.assert_array_equal(shard.arena.average[10:], START[10:])
    assert (shard.arena.average[:10] != START[:10]).all()


def test_it_is_saved_as_a_slot_and_survives_in_the_arena(tmp_path: Path) -> None:
    specification = pb.ShardSpecification(
        fingerprint=LAYOUT.fingerprint, layout=LAYOUT.canonical, rule=to_message(KerasAdam()),
        schedule=to_message(Constant(0.1)), average=to_message(Polyak(0.9)),
    )  # fmt: skip
    arena = Arena.create(tmp_path / "arena", specification)
    arena.parameters[:] = START
    arena.start_average()
    arena.mark_complete()
    shard = Shard(arena)
    push(shard, 1, np.ones(PUSHED))
    assert arena.average is not None
    kept = arena.average.copy()
    saved = save_shards(tmp_path, [shard])
    np.testing.assert_array_equal(saved.parameters(average=True)[0], kept)
    np.testing.assert_array_equal(saved.parameters()[0], arena.parameters)
    assert (kept != arena.parameters)[:PUSHED].any()
    arena.close()
    again = Arena.open(tmp_path / "arena")
    assert again is not None and again.average is not None
    np.testing.assert_array_equal(again.average, kept)


def test_a_checkpoint_without_an_average_says_so(tmp_path: Path) -> None:
    shard, _ = trained(None, 1)
    saved = save_shards(tmp_path, [shard])
    with pytest.raises(ValueError, match=r"has no slot\.average; it has parameters"):
        saved.parameters(average=True)


@pytest.mark.parametrize("average", [Polyak(0.5), KerasPolyak(0.5), Mean(7)], ids=str)
def test_it_travels(average: Any) -> None:
    back = from_message(BY_NAME, to_message(average))
    assert back == average and repr(back) == repr(average)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Polyak(1.0), "Polyak: decay is 1.0; give a number from 0 up to, not including, 1"),
        (lambda: KerasPolyak(-0.5), "KerasPolyak: decay is -0.5"),
        (lambda: Mean(-1), "Mean: start is -1; give a whole number of at least 0"),
        (lambda: Mean(0.5), "Mean: start is 0.5"),
    ],
)
def test_refusals(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
