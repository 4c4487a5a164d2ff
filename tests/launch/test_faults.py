"""What the fault table promises, with real processes: a chief, a shard's memory, everything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from downpour.ps import checkpoint
from downpour.ps.storage import Folder
from tests.launch import jobs

pytestmark = pytest.mark.process

# One worker, the same numbers every time; batches behind the first hundred come once a file is there.
GATED = """
import time
from pathlib import Path


@dataclass(frozen=True)
class Gated(ImageRecords):
    gate: Path = Path()

    def training(self, *, batch_size, seed, leases):
        batches = super().training(batch_size=batch_size, seed=seed, leases=leases)

        def gated():
            for number, (images, labels) in enumerate(batches):
                while number >= 100 and not self.gate.exists():
                    time.sleep(0.05)
                yield images, labels, batches.position

        return Batches(gated(), batches.counts)


def job():
    here = Path(__file__).parent
    data = Gated(here.parent / "images", resize=10, crop=8, gate=here / "gate")
    cluster = Cluster(num_ps=2, num_workers=1, threads_per_worker=1)
    exchange = Exchange(codec="float32", overlap=False)
    return tiny(data=data, num_steps=200, checkpoint_every_steps=100, cluster=cluster, exchange=exchange)
"""


@pytest.fixture
def started() -> Iterator[list[jobs.LocalJob]]:
    """Launchers that are killed after the test."""
    started: list[jobs.LocalJob] = []
    yield started
    for job in started:
        job.kill()


def start(started: list[jobs.LocalJob], folder: Path, recipe: str, *arguments: str) -> jobs.LocalJob:
    folder.mkdir(exist_ok=True)
    started.append(jobs.LocalJob(jobs.write_recipe(folder, recipe), folder, *arguments))
    return started[-1]


@pytest.mark.slow  # tests/chaos kills one in less time
def test_a_chief_that_is_killed_goes_on_and_no_record_is_lost_or_repeated(
    started: list[jobs.LocalJob], tmp_path: Path
) -> None:
    job = start(started, tmp_path, jobs.PACED, "--set=num_steps=300")
    watcher = jobs.Watcher(job)
    watcher.wait_for_step(50)
    (tmp_path / "slow").touch()
    before = watcher.progress().step
    job.role("chief").kill()
    job.wait(lambda: "[chief] ended with signal SIGKILL; restart 1 of 3" in job.stderr, "the chief's end")
    watcher.wait_for_step(before + 5)
    watcher.close()
    (tmp_path / "slow").unlink()
    assert job.end() == 0, job.stderr
    result = job.result()
    assert result["pushes_acknowledged"] == result["pushes_applied_min"] == result["pushes_applied_max"]
    assert result["epochs"] * (1 << 20) == pytest.approx(4 * result["pushes_acknowledged"], abs=1 << 7)
    assert result["records_repeated"] == 0 and result["updates_lost"] == {}
    assert job.stderr.count("ended with") == 1, "nothing else had to start anew"
    steps = [json.loads(line)["step"] for line in (job.run_dir / "history.jsonl").read_text().splitlines()]
    assert min(steps) <= before, "the history of the first chief is kept"
    assert not job.left_behind()


def test_a_shard_that_loses_its_memory_comes_back_from_a_checkpoint_and_the_loss_is_told(
    started: list[jobs.LocalJob], tmp_path: Path
) -> None:
    job = start(started, tmp_path, jobs.PACED, "--set=num_steps=300")
    watcher = jobs.Watcher(job)
    watcher.wait_for_step(55)
    checkpoints = Folder(job.run_dir / "checkpoints")
    job.wait(lambda: checkpoint.complete(checkpoints), "a checkpoint")
    (tmp_path / "slow").touch()

    def between_checkpoints() -> bool:
        newest = int(checkpoint.complete(checkpoints)[-1].removeprefix("step-"))
        return newest + 8 <= watcher.progress().step <= newest + 30  # of 50

    job.wait(between_checkpoints, "some steps since a checkpoint")
    next(job.scratch.glob("*/shard-1.arena")).unlink()
    job.role("ps/1").kill()
    job.wait(lambda: "shard 1 lost its memory: back at version" in job.stderr, "the shard's return")
    watcher.wait_for_step(watcher.progress().step + 5)
    watcher.close()
    (tmp_path / "slow").unlink()
    assert job.end() == 0, job.stderr
    result = job.result()
    lost = result["updates_lost"]["1"]
    assert list(result["updates_lost"]) == ["1"] and lost > 0
    # What the other shard has counted and this one has not. A push that was under way counts on one of them.
    assert abs(result["pushes_applied_max"] - result["pushes_applied_min"] - lost) <= 2, result
    assert not job.left_behind()


def vectors(job: jobs.LocalJob) -> dict[str, list[np.ndarray]]:
    """Of the last checkpoint: by name, one array a variable."""
    saved = checkpoint.load(checkpoint.to_resume(Folder(job.run_dir / "checkpoints")))
    files = [saved.open(shard) for shard in range(saved.layout.num_shards)]
    return {
        name: saved.layout.gather([file.vector(name) for file in files]) for name in ("parameters", "slot.momentum")
    }


def test_resume_equals_continue(started: list[jobs.LocalJob], tmp_path: Path) -> None:
    """Everything is killed after a checkpoint; the same numbers come out. Then it goes on with other shards."""
    jobs.write_images(tmp_path / "images", num_train=90, num_heldout=10)
    straight = start(started, tmp_path / "straight", GATED)
    (tmp_path / "straight" / "gate").touch()
    killed = start(started, tmp_path / "killed", GATED)
    folder = Folder(killed.run_dir / "checkpoints")
    killed.wait(lambda: checkpoint.complete(folder) == ["step-0000000100"], "the checkpoint")
    roles = psutil.Process(killed.process.pid).children(recursive=True)
    killed.process.kill()
    for role in roles:
        role.kill()
    psutil.wait_procs([*roles, psutil.Process(killed.process.pid)] if killed.process.poll() is None else roles, 30)
    (tmp_path / "killed" / "gate").touch()
    resumed = start(started, tmp_path / "killed", GATED, "--resume")
    assert straight.end() == 0, straight.stderr
    assert resumed.end() == 0, resumed.stderr
    result = resumed.result()
    assert (result["resumed_from"], result["global_steps"], result["pushes_acknowledged"]) == (100, 200, 200)
    assert result["epochs"] == straight.result()["epochs"] == pytest.approx(800 / 90, abs=1e-3)
    expected = vectors(straight)
    for name, values in vectors(resumed).items():
        for a, b in zip(values, expected[name], strict=True):
            np.testing.assert_array_equal(a, b)
    arguments = ("--resume", "--set=num_steps=210", "--set=cluster.num_ps=3", "--noevaluator")
    wider = start(started, tmp_path / "killed", GATED, *arguments)
    assert wider.end() == 0, wider.stderr
    assert (wider.result()["resumed_from"], wider.result()["global_steps"]) == (200, 210)


def test_resume_with_nothing_to_resume_is_refused_before_anything_starts(
    started: list[jobs.LocalJob], tmp_path: Path
) -> None:
    job = start(started, tmp_path, "", "--resume")
    assert job.end() == 2
    assert "has no complete checkpoint; give the folder of a run that has written one" in job.the_error()
