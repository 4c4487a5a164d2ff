"""Checkpoints, arenas and journals of earlier versions of the code are restored bit for bit.

`before/COMMIT-PACE.tar.xz` was written by the code of a commit: 05e38f6, and 1bc4fea, the last one before modules moved
to packages. Two shards of one tiny layout have taken eight pushes of two workers. The last push is incomplete, under
`async` an earlier one was dropped, under `sync` a round is not full.

    arena-0, arena-1     closed
    step-0000000004/     checkpoint of the same state
    journal.json         of a chief with two workers that hold leases
    expected.npz         vectors, counters, ledger and rounds of each shard as bytes, written with numpy
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint import restore
from downpour.ps.layout import Slicing, from_canonical, lay_out
from downpour.ps.memory.arena import Arena
from downpour.ps.shard.shard import Shard
from downpour.worker.chief.coordinator import Coordinator
from downpour.worker.chief.journal import Journal
from downpour.worker.chief.journal_state import JournalState
from downpour.worker.chief.leases import LeaseTable
from downpour.worker.chief.membership import Membership
from downpour.worker.chief.reactions import Reactions
from downpour.worker.chief.training_time import TrainingTime
from tests.chunks import encode_chunk

BEFORE = Path(__file__).parent / "before"
OLDEST, LAST = "05e38f6", "1bc4fea"
JOB_ID = "0123456789abcdef"
PACES = ["async", "sync"]


def unpack(commit: str, pace: str, folder: Path) -> Path:
    with tarfile.open(BEFORE / f"{commit}-{pace}.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    return folder


def bits(arena: Arena) -> dict[str, bytes]:
    records = {"counters": arena.counters_record, "ledger": arena.ledger, "rounds": arena.rounds}
    return {name: part.tobytes() for name, part in {**arena.vectors, **records}.items()}


def expected(folder: Path, shard: int) -> dict[str, bytes]:
    with np.load(folder / "expected.npz") as found:
        return {name.partition("/")[2]: found[name].tobytes() for name in found if name.startswith(f"{shard}/")}


def specification_of(saved: checkpoint.Checkpoint, shard: int) -> pb.ShardSpecification:
    """As the chief sends it to a shard that has lost its memory."""
    told = pb.ShardSpecification(shard=shard, layout=saved.layout.canonical)
    told.MergeFrom(saved.specification)
    return told


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize("commit", [OLDEST, LAST])
def test_a_checkpoint_is_restored_bit_for_bit(tmp_path: Path, commit: str, pace: str) -> None:
    folder = unpack(commit, pace, tmp_path)
    saved = checkpoint.load(folder / "step-0000000004")
    saved.verify()
    assert (saved.step, saved.specification.job_id, saved.layout.num_shards) == (4, JOB_ID, 2)
    for shard in range(2):
        arena = restore.arena_of(tmp_path / f"new-{shard}", specification_of(saved, shard), saved, with_slots=True)
        assert bits(arena) == expected(folder, shard)
        Shard(arena)


@pytest.mark.parametrize("commit", [OLDEST, LAST])
def test_a_checkpoint_is_restored_onto_another_number_of_shards(tmp_path: Path, commit: str) -> None:
    folder = unpack(commit, "async", tmp_path)
    saved = checkpoint.load(folder / "step-0000000004")
    other = lay_out(saved.layout.variables, 3, [Slicing("head/*", 2)])
    told = [specification_of(saved, shard) for shard in range(3)]
    for specification in told:
        specification.layout, specification.fingerprint = other.canonical, other.fingerprint
    arenas = [restore.arena_of(None, specification, saved, with_slots=True) for specification in told]
    for name in arenas[0].vectors:
        before = [np.frombuffer(expected(folder, shard)[name], np.float32) for shard in range(2)]
        after = other.gather([arena.vectors[name] for arena in arenas])
        for old, new in zip(saved.layout.gather(before), after, strict=True):
            np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("pace", PACES)
def test_an_arena_is_continued_bit_for_bit(tmp_path: Path, pace: str) -> None:
    folder = unpack(LAST, pace, tmp_path)
    for index in range(2):
        arena = Arena.open(folder / f"arena-{index}", index)
        assert arena is not None
        assert arena.specification.job_id == JOB_ID
        assert bits(arena) == expected(folder, index)
        shard = Shard(arena)
        before = shard.status()
        assert before.rate == pb.Rate(factor=1.0)
        layout = from_canonical(arena.specification.layout)
        push = shard.begin(pb.PushHeader(worker=1, incarnation=2, sequence=4, base_version=shard.version))
        for start, stop in layout.chunks(index):
            message = encode_chunk(start, codec.FLOAT32, np.ones(stop - start, np.float32))
            shard.apply(push, codec.decode_chunk(message))
        reply = shard.finish(push)
        assert not reply.repeated and shard.status().pushes == before.pushes + 1 == 8
        shard.close()


@pytest.mark.parametrize("pace", PACES)
def test_an_arena_of_an_older_format_is_refused(tmp_path: Path, pace: str) -> None:
    """Its undo log is another one; its shard is filled from a checkpoint."""
    folder = unpack(OLDEST, pace, tmp_path)
    with pytest.raises(ValueError, match=r"arena-0 is not an arena of this version of Downpour; remove it or give an"):
        Arena.open(folder / "arena-0", 0)


@pytest.mark.parametrize("commit", [OLDEST, LAST])
def test_a_journal_is_continued(tmp_path: Path, commit: str) -> None:
    journal = Journal(unpack(commit, "async", tmp_path) / "journal.json").read(JOB_ID)
    assert journal is not None
    known = JournalState(Coordinator(20, 4, LeaseTable(100, 10), Membership(2, 30.0), TrainingTime(1000.0)))
    known.load(journal, now_s=100.0)
    assert known.coordinator.step == 4 and known.checkpoint is not None and known.checkpoint.step == 4
    again = known.state(now_s=100.0)
    assert again.pop("reactions") == Reactions().state(), "it knew of no callbacks"
    assert again.pop("offered") == again.pop("held") == [], "nor of several evaluators"
    assert again["coordinator"].pop("stopped") is None and again["coordinator"].pop("epochs") == []
    assert without_times(again) == without_times({key: journal[key] for key in again})
    saved = checkpoint.load(tmp_path / "step-0000000004")
    resumed = JournalState(Coordinator(20, 4, LeaseTable(100, 10), Membership(2, 30.0), TrainingTime(1000.0)))
    resumed.resume(saved, now_s=100.0)
    assert resumed.coordinator.step == 4 == resumed.resumed_from
    # What the workers had not finished is granted again, first.
    assert resumed.coordinator.lease(0, 9, 0, 101.0).start == 7


def without_times(state: Mapping[str, Any]) -> dict[str, Any]:
    coordinator = {key: value for key, value in state["coordinator"].items() if key != "train_s"}
    return {**state, "coordinator": coordinator}
