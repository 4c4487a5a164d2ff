"""How roles end at SIGTERM, and how workers come and go, with real processes."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from downpour.proto.chief_pb2 import ProgressReply
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint.storage import Folder
from tests.launch import jobs
from tests.launch.fleet import Fleet

pytestmark = pytest.mark.process

NUM_RECORDS = 1 << 20  # of the generated images
StartFleet = Callable[..., Fleet]


@pytest.fixture
def new_fleet(tmp_path: Path) -> Iterator[StartFleet]:
    """`new_fleet(num_ps, *overrides)`: a job whose workers take 0.3 s a step as long as `slow` is there."""
    made: list[Fleet] = []

    def new(num_ps: int, *overrides: str) -> Fleet:
        (tmp_path / "slow").touch()
        recipe = jobs.write_recipe(tmp_path, jobs.PACED)
        made.append(Fleet(tmp_path, recipe, num_ps, "checkpoint_every_steps=100000", *overrides))
        return made[-1]

    yield new
    for fleet in made:
        fleet.close()


def checkpoints(fleet: Fleet) -> list[checkpoint.Checkpoint]:
    folder = fleet.run_dir / "checkpoints"
    return [checkpoint.load(folder / name) for name in checkpoint.complete(Folder(folder))]


def end_well(fleet: Fleet, tmp_path: Path, *workers: str) -> None:
    """Lets the job finish; the workers, the chief and every shard must end with 0."""
    (tmp_path / "slow").unlink()
    codes = {name: fleet.end(name) for name in (*workers, "chief", *fleet.shards())}
    assert set(codes.values()) == {0}, (codes, fleet.tail("chief"))


@pytest.mark.slow
def test_a_shard_that_is_taken_away_leaves_a_checkpoint_and_continues_from_it(
    new_fleet: StartFleet, tmp_path: Path
) -> None:
    fleet = new_fleet(2, "num_steps=150")
    fleet.start_all("worker/0", "worker/1")
    fleet.wait_for_step(10)
    assert not checkpoints(fleet)
    fleet.send("ps/1")
    assert fleet.end("ps/1", 20) == 143
    assert fleet.logged("ps/1", "stopping; a checkpoint was written")
    (saved,) = checkpoints(fleet)
    assert saved.step >= 10
    fleet.arena("ps/1").unlink()  # the machine is gone
    fleet.start("ps/1")
    back = f"shard 1 lost its memory: back at version {saved.shards[1].version} from"
    fleet.wait(lambda: fleet.logged("chief", back), "the shard's return")
    fleet.wait_for_step(fleet.progress().step + 5)
    end_well(fleet, tmp_path, "worker/0", "worker/1")
    summary = fleet.summary()
    assert list(summary["updates_lost"]) == ["1"]
    # What was pushed while the checkpoint was written, and until the shard had closed: less than two seconds of it.
    assert 0 <= summary["updates_lost"]["1"] <= 20
    count = fleet.count(["ps/0"], ["worker/0", "worker/1"], [summary["pushes_applied_max"]])
    assert not count.lost and not count.doubled and count.acknowledged >= 140
    assert summary["pushes_applied_max"] - summary["pushes_applied_min"] == summary["updates_lost"]["1"]


def test_all_shards_are_taken_away_at_once_and_one_checkpoint_serves_them(
    new_fleet: StartFleet, tmp_path: Path
) -> None:
    fleet = new_fleet(3, "num_steps=100")
    fleet.start_all("worker/0", "worker/1")
    fleet.wait_for_step(10)
    for name in fleet.shards():
        fleet.send(name)
    assert [fleet.end(name, 20) for name in fleet.shards()] == [143] * 3
    (saved,) = checkpoints(fleet)
    for name in fleet.shards():
        assert fleet.logged(name, "stopping; a checkpoint was written")
        fleet.arena(name).unlink()
        fleet.start(name)
    fleet.wait_for_step(saved.step + 20)
    end_well(fleet, tmp_path, "worker/0", "worker/1")
    lost = fleet.summary()["updates_lost"]
    assert all(0 <= updates <= 20 for updates in lost.values()), lost
    assert fleet.summary()["global_steps"] >= 100
    assert fleet.logged("chief", f"done: {fleet.summary()['global_steps']} steps, loss ")


@pytest.mark.slow
def test_a_whole_job_is_taken_away_and_another_number_of_shards_goes_on_from_that_moment(
    new_fleet: StartFleet, tmp_path: Path
) -> None:
    fleet = new_fleet(2, "num_steps=100")
    fleet.start_all("worker/0", "worker/1")
    fleet.wait_for_step(10)
    everybody = ["chief", *fleet.shards(), "worker/0", "worker/1"]
    for name in everybody:
        fleet.send(name)
    assert {name: fleet.end(name, 25) for name in everybody} == dict.fromkeys(everybody, 143)
    (saved,) = checkpoints(fleet)
    for name in fleet.shards():
        assert fleet.logged(name, "stopping; a checkpoint was written"), fleet.tail(name)
        fleet.arena(name).unlink()
    fleet = new_fleet(3, "num_steps=100")
    for name in (*fleet.shards(), "worker/0", "worker/1"):
        fleet.start(name)
    fleet.start("chief", resume=True)
    end_well(fleet, tmp_path, "worker/0", "worker/1")
    summary = fleet.summary()
    assert summary["resumed_from"] == saved.step and summary["num_ps"] == 3 and summary["global_steps"] >= 100


@pytest.mark.slow
def test_a_shard_does_not_wait_for_ever_and_a_second_signal_ends_it_at_once(new_fleet: StartFleet) -> None:
    fleet = new_fleet(2)
    fleet.start("ps/0", grace_s=2)
    fleet.start("ps/1", grace_s=600)
    fleet.start("chief")
    fleet.start("worker/0")
    fleet.wait_for_step(2)
    fleet.send("chief", signal.SIGKILL)
    fleet.end("chief")
    for name in fleet.shards():
        fleet.send(name)
    assert fleet.end("ps/0", 15) == 143
    assert fleet.logged("ps/0", "stopping without a checkpoint: the chief wrote none within 2 s")
    fleet.send("ps/1")
    assert fleet.end("ps/1", 5) == 143


def test_an_empty_shard_has_nothing_to_wait_for(new_fleet: StartFleet) -> None:
    fleet = new_fleet(1)
    fleet.start("ps/0", grace_s=600)
    fleet.wait(lambda: fleet.logged("ps/0", "listens on"), "the shard")
    fleet.send("ps/0")
    assert fleet.end("ps/0", 10) == 143


@pytest.mark.slow
def test_a_chief_that_is_told_to_end_has_its_journal_written(new_fleet: StartFleet, tmp_path: Path) -> None:
    fleet = new_fleet(1, "num_steps=100")
    fleet.start_all("worker/0", "worker/1")
    fleet.wait_for_step(10)
    told = time.time()
    fleet.send("chief")
    assert fleet.end("chief", 10) == 143
    assert fleet.journal()["written_at"] >= told
    fleet.start("chief")
    fleet.wait_for_step(20)
    end_well(fleet, tmp_path, "worker/0", "worker/1")
    summary = fleet.summary()
    assert summary["pushes_acknowledged"] == summary["pushes_applied_min"] == summary["pushes_applied_max"]
    assert summary["records_repeated"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("pace", ["Async()", "Bounded(lead=2)"])
def test_workers_come_and_go_and_nothing_is_lost_or_counted_twice(
    new_fleet: StartFleet, tmp_path: Path, pace: str
) -> None:
    """Two workers, a third in the middle, and two of them go; nobody waits until a lease has run out."""
    fleet = new_fleet(2, "num_steps=150", "cluster.max_workers=3", "cluster.lease_s=100", f"pace={pace}")
    fleet.start_all("worker/0", "worker/1")
    fleet.wait_for_step(10)
    fleet.start("worker/3")
    assert fleet.end("worker/3") == 2
    assert fleet.logged("worker/3", "the job takes 3 workers; give 0 to 2, or start every role with")
    fleet.start("worker/2")
    fleet.wait(lambda: fleet.logged("worker/2", "acknowledged"), "the third worker's first push")
    for name in ("worker/0", "worker/2"):
        begin = time.monotonic()
        fleet.send(name)
        assert fleet.end(name, 90) == 143
        took = time.monotonic() - begin
        assert fleet.logged(name, "stopping; the chief has its leases back"), fleet.tail(name)
        assert took < 60, took
        fleet.wait(lambda i=name[-1]: not fleet.journal()["coordinator"]["leases"]["holders"][i]["leases"], "its lease")
        fleet.wait_for_step(fleet.progress().step + 6, 60)
    end_well(fleet, tmp_path, "worker/1")
    summary = fleet.summary()
    assert summary["pushes_acknowledged"] == summary["pushes_applied_min"] == summary["pushes_applied_max"]
    count = fleet.count(fleet.shards(), [f"worker/{i}" for i in range(3)], [summary["pushes_applied_min"]] * 2)
    assert not count.lost and not count.doubled and count.acknowledged == summary["pushes_acknowledged"]
    assert summary["epochs"] * NUM_RECORDS == pytest.approx(4 * summary["pushes_acknowledged"], abs=1 << 7)
    assert 0 < summary["records_repeated"] <= 2 * 2 * 16, "two leases of each that went, at most"


@pytest.mark.slow
def test_a_worker_that_comes_late_ends_and_the_evaluator_scores_the_last_checkpoint(
    new_fleet: StartFleet, tmp_path: Path
) -> None:
    fleet = new_fleet(1, "num_steps=40", "exchange.give_up_after_s=4")
    for name in ("ps/0", "worker/0", "worker/1", "evaluator"):
        fleet.start(name)
    fleet.start("chief", evaluator=True)
    fleet.wait_for_step(5)
    fleet.send("evaluator", signal.SIGSTOP)
    (tmp_path / "slow").unlink()
    assert [fleet.end(f"worker/{i}") for i in range(2)] == [0, 0]
    fleet.wait(lambda: fleet.progress().state == ProgressReply.STATE_SCORING, "the end of training")
    fleet.start("worker/1")
    assert fleet.end("worker/1") == 0
    assert fleet.logged("worker/1", "of 40, so this worker ends")
    fleet.send("evaluator", signal.SIGCONT)
    assert [fleet.end(name) for name in ("chief", "ps/0", "evaluator")] == [0, 0, 0]
    assert fleet.summary()["map_at_100"] >= 0
    fleet.start("worker/0")
    assert fleet.end("worker/0", 60) == 69, "the chief is gone, too"
    assert fleet.logged("worker/0", "did not answer for")


def test_an_evaluator_ends_when_it_is_told_to(new_fleet: StartFleet) -> None:
    fleet = new_fleet(1)
    fleet.start("evaluator")
    fleet.wait(lambda: fleet.log("evaluator").exists(), "its start")
    fleet.start("chief")
    fleet.wait(lambda: fleet.logged("evaluator", "still waiting for") or fleet.progress(), "the chief")
    fleet.send("evaluator")
    assert fleet.end("evaluator", 10) == 143
