"""Which shards may stop, and which checkpoints stay while a shard is refilled."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from downpour.proto import chief_pb2 as pb
from downpour.proto import parameter_server_pb2 as ps_pb
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint.manifest import Checkpoint
from downpour.ps.checkpoint.shard_file import ShardFile
from downpour.ps.layout import Variable, lay_out
from downpour.ps.policy.pace import Async
from downpour.ps.policy.rules import SGD
from downpour.ps.policy.schedules import Constant
from downpour.ps.policy.staleness import Keep
from downpour.worker.chief import departures
from downpour.worker.chief.checkpoints import Checkpoints
from downpour.worker.chief.events import Events
from downpour.worker.chief.healer import Healer
from downpour.worker.chief.run_folder import RunFolder
from downpour.worker.chief.scores import Scores
from downpour.worker.chief.settings import JobSettings
from downpour.worker.chief.shards import Loss
from downpour.worker.chief.state import JobState
from tests.ps.checkpoint.saving import save

LAYOUT = lay_out([Variable("a", (5,)), Variable("b", (4,))], 2)


def new_plan(run_dir: Path) -> JobSettings:
    return JobSettings(
        recipe="tiny", rule=SGD(), schedule=Constant(0.1), pace=Async(), treatment=Keep(), num_workers=1, lease_s=30.0,
        num_steps=100, checkpoint_every_steps=10, max_train_s=1e9, num_records=100, lease_records=10, facts={},
        checkpoint_dir=str(run_dir / "checkpoints"), keep_checkpoints=1,
    )  # fmt: skip


class FakeShards:
    """Two shards without sockets; their versions and pushes are set by the test."""

    job_id = ""
    addresses = ("a:1", "b:1")

    def __init__(self) -> None:
        self.pushes = [12, 10]
        self.refill: Any = None  # what the healer's `heal` does with `newest`

    def __len__(self) -> int:
        return 2

    def look(self) -> list[ps_pb.StatusReply | None]:
        return [ps_pb.StatusReply(ready=True, version=count, pushes=count) for count in self.pushes]

    def write_checkpoint(self, directory: str, step: int, progress: Mapping[str, Any]) -> Checkpoint:
        vectors = [{"parameters": np.full(LAYOUT.size(shard), step, np.float32)} for shard in range(2)]
        saved = save(directory, LAYOUT, vectors, step=step, progress=progress)
        files = [
            ShardFile(file.file, count, count, file.checksums)
            for file, count in zip(saved.shards, self.pushes, strict=True)
        ]
        return Checkpoint(saved.directory, step, LAYOUT, tuple(files))

    def heal(self, statuses: Any, seen: Sequence[int], newest: Any, values: Any) -> list[Loss]:
        if self.refill is not None:
            self.refill(newest)
        return []


class Job:
    def __init__(self, run_dir: Path) -> None:
        of_job = new_plan(run_dir)
        self.folder = RunFolder(run_dir, of_job.checkpoint_dir)
        self.state = JobState(of_job, self.folder.journal)
        self.shards = FakeShards()
        shards: Any = self.shards
        scores = Scores(of_job, self.state, self.folder, Events((), self.state))
        self.checkpoints = Checkpoints(of_job, self.state, self.folder, shards, scores)
        self.healer = Healer(shards, self.folder, self.state, list)

    @property
    def steps(self) -> list[int]:
        return [int(name.removeprefix("step-")) for name in checkpoint.complete(self.folder.checkpoints)]

    def ask(self) -> bool:
        """Whether the second shard may stop."""
        return self.state.departures.ask(1, 7, time.monotonic())


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(departures, "_GATHER_S", 0.0)
    return Job(tmp_path)


def test_a_shard_that_lagged_stops_with_a_checkpoint_of_its_own_pushes(job: Job) -> None:
    """The job's step, the highest version, is the same as at the checkpoint before."""
    job.state.coordinator.saw(12)
    job.checkpoints.write()
    job.shards.pushes[1] = 12
    assert not job.ask()
    job.checkpoints.write_for_departures()
    assert job.checkpoints._newest is not None
    assert [file.pushes for file in job.checkpoints._newest.shards] == [12, 12]
    assert job.ask()


def test_a_shard_whose_pushes_are_all_in_the_checkpoint_stops_at_once(job: Job) -> None:
    job.state.coordinator.saw(12)
    job.checkpoints.write()
    before = job.checkpoints._newest
    assert not job.ask()
    job.checkpoints.write_for_departures()
    assert job.checkpoints._newest is before and job.ask()


def test_a_restarted_chief_writes_one_before_a_shard_stops(job: Job) -> None:
    """It does not know what its predecessor's checkpoint holds of each shard."""
    job.state.coordinator.saw(12)
    job.state.journal_state.checkpoint = pb.NextCheckpointReply(directory="x", step=12)
    assert not job.ask()
    job.checkpoints.write_for_departures()
    assert job.steps == [12] and job.ask()


def test_a_second_checkpoint_of_a_step_leaves_one_and_no_other_files(job: Job) -> None:
    job.state.coordinator.saw(12)
    for _ in range(2):
        job.checkpoints.write()
    assert job.steps == [12]
    folder = Path(job.folder.checkpoint_dir(12))
    assert len(list(folder.iterdir())) == 3
    checkpoint.load(folder).verify()


def test_no_checkpoint_is_removed_while_a_shard_is_refilled_from_it(job: Job) -> None:
    job.state.coordinator.saw(12)
    job.checkpoints.write()
    refilled = []

    def refill(newest: Any) -> None:
        saved = newest(Checkpoint.verify)
        job.state.coordinator.saw(22)
        job.checkpoints.write()  # as the chief's main thread may, meanwhile
        saved.verify()
        refilled.append(saved.step)

    job.shards.refill = refill
    job.healer.look_after()
    assert refilled == [12] and job.steps == [12, 22]
    job.state.coordinator.saw(32)
    job.checkpoints.write()
    assert job.steps == [32]


def test_a_checkpoint_written_while_a_shard_is_refilled_is_offered_to_the_evaluator(job: Job) -> None:
    job.state.coordinator.saw(12)
    job.checkpoints.write()

    def refill(newest: Any) -> None:
        def check(saved: Checkpoint) -> None:
            job.state.coordinator.saw(22)
            job.checkpoints.write()

        assert newest(check).step == 12

    job.shards.refill = refill
    job.healer.look_after()
    assert job.state.journal_state.checkpoint is not None and job.state.journal_state.checkpoint.step == 22


def test_a_damaged_checkpoint_is_no_longer_offered_to_the_evaluator(job: Job) -> None:
    for step in (12, 22):
        job.state.coordinator.saw(step)
        with job.folder.kept():
            job.checkpoints.write()
    path = Path(job.folder.checkpoint_dir(22)) / "shard-00000-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    job.shards.refill = lambda newest: newest(Checkpoint.verify)
    job.healer.look_after()
    assert job.steps == [12]
    assert job.state.journal_state.checkpoint is not None and job.state.journal_state.checkpoint.step == 12
