"""A checkpoint comes back onto any number of shards, and what is not its own is refused."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import LayoutMismatch
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint import restore
from downpour.ps.layout import FROZEN, STATISTIC, Layout, Slicing, Variable, lay_out
from downpour.ps.memory.arena import Arena
from downpour.ps.policy.averages import Polyak
from downpour.ps.policy.named import to_message
from downpour.ps.policy.pace import Async, Sync
from downpour.ps.policy.rules import SGD, KerasAdam, RMSProp, Rule
from downpour.ps.policy.schedules import Constant
from downpour.ps.policy.staleness import Keep, Lookahead, Treatment
from downpour.ps.shard.shard import Shard
from tests.ps.checkpoint.saving import save_shards

VARIABLES = [
    Variable("conv", (3, 3, 4, 6), weight_decay=0.1),
    Variable("head", (12, 29)),
    Variable("bias", (29,)),
    Variable("scale", ()),
    Variable("mean", (6,), STATISTIC),
    Variable("stem", (5, 2), FROZEN),
]
RULE = RMSProp(momentum=0.9)
KEEP, MEANS = Keep(), Lookahead(gradients=3)


def layout(num_shards: int, num_slices: int = 5, axis: int = -1) -> Layout:
    return lay_out(VARIABLES, num_shards, [Slicing("head", num_slices, axis), Slicing("bias", num_slices)])


def told(
    of: Layout, shard: int, rule: Rule = RULE, average: Any = None, treatment: Treatment = KEEP, ramp: int = 0
) -> pb.ShardSpecification:
    return pb.ShardSpecification(
        shard=shard,
        fingerprint=of.fingerprint,
        layout=of.canonical,
        rule=to_message(rule),
        schedule=to_message(Constant(0.1)),
        average=None if average is None else to_message(average),
        pace=to_message(Async(ramp)),
        staleness=to_message(treatment),
    )


def filled(of: Layout, seed: int = 0, **more: Any) -> list[Arena]:
    rng = np.random.default_rng(seed)
    made = [Arena.create(None, told(of, shard, **more)) for shard in range(of.num_shards)]
    for one in made:
        for vector in one.vectors.values():
            vector[:] = rng.random(vector.size)
        one.counters["version"], one.counters["pushes"] = 7, 9
        one.ledger[3]["incarnation"], one.ledger[3]["sequence"], one.ledger[3]["complete"] = 5, 9, 1
        one.mark_complete()
    return made


def written(folder: Path, made: list[Arena]) -> checkpoint.Checkpoint:
    return save_shards(folder, [Shard(one) for one in made])


def restored(saved: checkpoint.Checkpoint, of: Layout, with_slots: bool = True, **more: Any) -> list[Arena]:
    """Each in a file, as shards have it, closed and opened again."""
    folder = Path(tempfile.mkdtemp(dir=saved.directory))
    made = []
    for shard in range(of.num_shards):
        path = folder / str(shard)
        one = restore.arena_of(path, told(of, shard, **more), saved, with_slots=with_slots)
        one.mark_complete()
        one.close()
        opened = Arena.open(path)
        assert opened is not None
        made.append(opened)
    return made


def values(made: list[Arena], name: str) -> list[np.ndarray]:
    return made[0].layout.gather([one.vectors[name] for one in made])


@settings(max_examples=8)
@example(counts=[7], slices=[(1, 0)] * 3)  # more shards than slices: some have no values
@given(
    counts=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    slices=st.lists(st.tuples(st.integers(1, 12), st.sampled_from([0, 1])), min_size=3, max_size=3),
)
def test_onto_any_number_of_shards_and_back(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], slices: list[tuple[int, int]]
) -> None:
    """Also where a variable is cut otherwise, even along another axis."""
    folder = tmp_path_factory.mktemp("checkpoints")
    first = made = filled(layout(5), average=Polyak(0.5))
    for number, (num_shards, (num_slices, axis)) in enumerate([*zip(counts, slices, strict=False), (5, (5, -1))]):
        saved = written(folder / str(number), made)
        of = lay_out(VARIABLES, num_shards, [Slicing("head", num_slices, axis), Slicing("bias", num_slices)])
        made = restored(saved, of, average=Polyak(0.5))
        for name in first[0].vectors:
            for a, b in zip(values(first, name), values(made, name), strict=True):
                np.testing.assert_array_equal(a, b)
    for a, b in zip(first, made, strict=True):
        for name, vector in a.vectors.items():
            assert vector.tobytes() == b.vectors[name].tobytes()
        assert b.counters["version"] == 7
        assert b.ledger[3]["complete"] == 1 and b.ledger[3]["sequence"] == 9


def test_onto_the_same_shards_everything_is_as_it_was(tmp_path: Path) -> None:
    made = filled(layout(3))
    made[1].ledger[2]["applied"], made[1].ledger[2]["incarnation"] = 4, 8
    made[2].rate_record[0] = (0.25, 5, 3)
    again = restored(written(tmp_path, made), layout(3))
    for a, b in zip(made, again, strict=True):
        assert (a.counters, a.ledger.tobytes()) == (b.counters, b.ledger.tobytes())
        assert a.rate_record == b.rate_record


def test_onto_other_shards_the_last_change_of_the_rate_holds(tmp_path: Path) -> None:
    made = filled(layout(3))
    for one, rate in zip(made, [(0.25, 5, 3), (0.125, 6, 4), (0.25, 4, 3)], strict=True):
        one.rate_record[0] = rate
    saved = written(tmp_path, made)
    assert [one.rate_record[0].item() for one in restored(saved, layout(2))] == [(0.125, 6, 4)] * 2
    assert restored(saved, layout(3), with_slots=False)[0].rate_record[0].item() == (0.0, 0, 0), "a new job's"


def test_without_slots_only_the_parameters_come_back(tmp_path: Path) -> None:
    made = filled(layout(3))
    for of in (layout(3), layout(2)):
        again = restored(written(tmp_path, made), of, with_slots=False, rule=KerasAdam(), average=Polyak(0.5))
        for a, b, c in zip(
            values(made, "parameters"), values(again, "parameters"), values(again, "slot.average"), strict=True
        ):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(a, c)
        assert all(not one.slots[0].any() and not one.counters["version"] for one in again)


def test_a_checkpoint_of_another_model_is_refused_with_its_first_differences(tmp_path: Path) -> None:
    saved = written(tmp_path, filled(layout(2)))
    other = [Variable("conv", (3, 3, 4, 7)), Variable("new", (2,)), *VARIABLES[2:]]
    with pytest.raises(LayoutMismatch) as refusal:
        restore.check(saved, other)
    assert "3 variables differ: conv is [3, 3, 4, 7] here, [3, 3, 4, 6] there; new is [2] here, missing there; " in str(
        refusal.value
    )
    assert "head is missing here, [12, 29] there" in str(refusal.value)


@pytest.mark.parametrize("num_shards", [2, 3])
def test_a_rule_whose_slots_are_not_there_is_refused(tmp_path: Path, num_shards: int) -> None:
    saved = written(tmp_path, filled(layout(2), rule=SGD()))
    with pytest.raises(
        ValueError, match=r"has no slot\.ms, since its job had the rule SGD; resume with that rule, or "
    ):
        restored(saved, layout(num_shards))


@pytest.mark.parametrize("num_shards", [2, 3])
def test_an_average_that_is_not_there_is_refused(tmp_path: Path, num_shards: int) -> None:
    saved = written(tmp_path, filled(layout(2)))
    with pytest.raises(ValueError, match=r"since its job kept no average of the parameters; resume without `average`"):
        restored(saved, layout(num_shards), average=Polyak(0.5))


def test_a_sum_goes_on_where_it_can_and_its_loss_is_told_where_it_cannot(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = filled(layout(2), treatment=MEANS)
    for one in made:
        one.rounds["round"], one.rounds["count"] = 2, 1
    saved = written(tmp_path, made)
    for a, b in zip(made, restored(saved, layout(2), treatment=MEANS), strict=True):
        assert a.sum.any() and a.sum.tobytes() == b.sum.tobytes() and a.rounds.tobytes() == b.rounds.tobytes()
    assert not caplog.text
    for num_shards, treatment in ((3, MEANS), (2, KEEP)):
        caplog.clear()
        again = restored(saved, layout(num_shards), treatment=treatment)
        assert f"1 gradients that {tmp_path} had summed towards the next update are lost" in caplog.text
        if treatment == MEANS:
            assert all(not one.sum.any() and set(one.rounds.tolist()) == {(2, 0)} for one in again), "7 // 3 updates"


def test_a_sum_begins_where_a_checkpoint_has_none(tmp_path: Path) -> None:
    """As when a job goes on with more workers than it had."""
    saved = written(tmp_path, filled(layout(2)))
    for ramp, number in ((0, 2), (50, 7)):  # while few workers are let in, each push is an update
        for one in restored(saved, layout(2), treatment=MEANS, ramp=ramp):
            assert not one.sum.any() and set(one.rounds.tolist()) == {(number, 0)}
            assert one.counters["version"] == 7


def test_a_sum_that_is_not_there_is_refused(tmp_path: Path) -> None:
    saved = written(tmp_path, filled(layout(2)))
    specification = told(layout(2), 0)
    specification.pace.CopyFrom(to_message(Sync(2)))
    with pytest.raises(ValueError, match=rf"has no sum, since its job had the pace Async.*--init_from={tmp_path}$"):
        restore.arena_of(None, specification, saved, with_slots=True)
