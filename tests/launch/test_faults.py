"""What the fault table promises, with real processes: a chief, a shard's memory, everything."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from downpour.launch.observe import status
from downpour.launch.roles import topology
from downpour.proto import parameter_server_pb2 as pb
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint.storage import Folder
from downpour.ps.layout import Variable, lay_out
from downpour.ps.policy.named import to_message
from downpour.ps.policy.rules import SGD
from downpour.ps.policy.schedules import Constant
from downpour.worker.exchange.clients import ShardClient
from tests.conftest import SmallDisk, wait_until
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
                yield (images, labels), batches.position

        return Batches(gated(), batches.counts)


def job():
    here = Path(__file__).parent
    data = Gated(here.parent / "images", 5, resize=10, crop=8, gate=here / "gate")
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


@pytest.mark.slow  # tests/worker/test_job.py lets workers in, tests/worker/chief/test_admission.py restarts a chief
def test_a_chief_that_is_killed_while_workers_wait_knows_who_was_let_in(
    started: list[jobs.LocalJob], tmp_path: Path
) -> None:
    (tmp_path / "slow").touch()
    more = "--set=num_steps=450", "--set=cluster.num_workers=6", "--set=pace=Async(ramp=100)", "--noevaluator"
    job = start(started, tmp_path, jobs.PACED, *more)
    jobs.Watcher(job).wait_for_step(1)

    def states() -> tuple[int, Counter[str]]:
        found = status.of_folder(job.run_dir)
        return found.get("step") or 0, Counter(worker["state"] for worker in found.get("workers", ()))

    job.wait(lambda: states()[1] == {"running": 4, "waiting": 2}, "four workers that train and two that wait")
    job.role("chief").kill()
    job.wait(lambda: "[chief] ended with signal SIGKILL; restart 1 of 3" in job.stderr, "the chief's end")
    job.wait(lambda: states()[1].total() == 6, "the chief's return")
    before, seen = states()
    assert seen["running"] <= 4 + states()[0] // 100 and before < 200, seen
    (tmp_path / "slow").unlink()
    assert job.end() == 0, job.stderr
    assert "4 of 6 workers train at first, and one more is let in after every 100 pushes" in job.stderr
    result = job.result()
    assert result["pushes_acknowledged"] == result["pushes_applied_min"] == result["pushes_applied_max"]
    assert result["records_repeated"] == 0 and all(result["worker_steps"][str(index)]["steps"] for index in range(6))


@pytest.mark.slow  # tests/launch/roles/test_ending.py takes the memory of all away, tests/worker/test_faults.py of one
def test_a_shard_that_loses_its_memory_comes_back_from_a_checkpoint_and_the_loss_is_told(
    started: list[jobs.LocalJob], tmp_path: Path
) -> None:
    job = start(started, tmp_path, jobs.PACED, "--set=num_steps=300", "--noevaluator")
    watcher = jobs.Watcher(job)
    watcher.wait_for_step(55)
    checkpoints = Folder(job.run_dir / "checkpoints")
    job.wait(lambda: checkpoint.complete(checkpoints), "a checkpoint")
    (tmp_path / "slow").touch()

    def between_checkpoints() -> bool:
        newest = int(checkpoint.complete(checkpoints)[-1].removeprefix("step-"))
        return newest + 8 <= watcher.progress().step <= newest + 20  # of 50

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


@pytest.mark.slow
def test_resume_equals_continue(started: list[jobs.LocalJob], tmp_path: Path) -> None:
    """Everything is killed after a checkpoint; the same numbers come out. Then it goes on with other shards."""
    jobs.write_images(tmp_path / "images", num_train=90, num_heldout=10)
    straight = start(started, tmp_path / "straight", GATED, "--noevaluator")
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
    arguments = ("--resume", "--set=num_steps=210", "--set=cluster.num_ps=3")
    wider = start(started, tmp_path / "killed", GATED, *arguments)
    assert wider.end() == 0, wider.stderr
    result = wider.result()
    assert (result["resumed_from"], result["global_steps"], result["num_ps"]) == (200, 210, 3)
    history = [json.loads(line) for line in (wider.run_dir / "history.jsonl").read_text().splitlines()]
    scored = [entry["step"] for entry in history if entry["kind"] == "score"]
    assert {200, 210} <= set(scored), "the evaluator goes on with any number of shards"


def test_resume_with_nothing_to_resume_is_refused_before_anything_starts(
    started: list[jobs.LocalJob], tmp_path: Path
) -> None:
    job = start(started, tmp_path, "", "--resume")
    assert job.end() == 2
    assert "has no complete checkpoint; give the folder of a run that has written one" in job.the_error()


def resume_command(job: jobs.LocalJob) -> list[str]:
    """Out of the launcher's last lines, for the same arena parent and interpreter."""
    line = next(line for line in reversed(job.stderr.splitlines()) if "continue with: " in line)
    words = shlex.split(line.partition("continue with: ")[2])
    assert words[:3] == ["python", "-m", "downpour.launch.local"] and words[-1] == "--resume", words
    return words[3:]


def go_on(started: list[jobs.LocalJob], job: jobs.LocalJob, words: list[str]) -> jobs.LocalJob:
    """Runs a command that the launcher has printed; what `LocalJob` adds itself is left out."""
    own = ("--recipe=", "--run_dir=", "--arena_parent=")
    words = [word for word in words if not word.startswith(own)]
    started.append(jobs.LocalJob(job.run_dir.parent / "tiny.py", job.run_dir.parent, *words))
    return started[-1]


INTERRUPTED = "--set=num_steps=120", "--set=checkpoint_every_steps=1000", "--set=cluster.num_workers=1", "--noevaluator"


def interrupted(started: list[jobs.LocalJob], tmp_path: Path) -> tuple[jobs.LocalJob, int]:
    """A job that was ended by one Ctrl-C, and the step that its last line names."""
    (tmp_path / "slow").touch()
    job = start(started, tmp_path, jobs.PACED, *INTERRUPTED)
    watcher = jobs.Watcher(job)
    watcher.wait_for_step(4)
    watcher.close()
    job.process.send_signal(signal.SIGINT)
    assert job.end() == 130
    assert "the chief writes a checkpoint" in job.stderr and "Traceback" not in job.stderr
    (name,) = checkpoint.complete(Folder(job.run_dir / "checkpoints"))
    return job, int(name.removeprefix("step-"))


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(started: list[jobs.LocalJob], tmp_path: Path) -> None:
    job, step = interrupted(started, tmp_path)
    assert step >= 4
    assert f"the checkpoint of step {step} is in {job.run_dir}; continue with: " in job.stderr.splitlines()[-1]
    assert f"--run_dir={job.run_dir}" in resume_command(job)
    assert not job.left_behind()


@pytest.mark.slow
def test_the_command_that_is_printed_after_ctrl_c_goes_on(started: list[jobs.LocalJob], tmp_path: Path) -> None:
    job, step = interrupted(started, tmp_path)
    (tmp_path / "slow").unlink()
    resumed = go_on(started, job, resume_command(job))
    assert resumed.end() == 0, resumed.stderr
    result = resumed.result()
    assert result["resumed_from"] == step and result["global_steps"] >= 120


@pytest.mark.slow
def test_a_second_ctrl_c_waits_for_no_checkpoint(started: list[jobs.LocalJob], tmp_path: Path) -> None:
    (tmp_path / "slow").touch()
    job = start(started, tmp_path, jobs.PACED, "--set=num_steps=120", "--set=checkpoint_every_steps=1000")
    watcher = jobs.Watcher(job)
    watcher.wait_for_step(4)
    watcher.close()
    time.sleep(1.5)  # the launcher looks once a second, and the chief will not tell it
    job.role("chief").suspend()
    job.process.send_signal(signal.SIGINT)
    job.wait(lambda: "a second Ctrl-C ends everything at once" in job.stderr, "the first signal's effect")
    job.process.send_signal(signal.SIGINT)
    assert job.end(25) == 130, "10 s for the chief, which must be killed"
    assert job.stderr.splitlines()[-1].endswith("no checkpoint was written")
    assert not job.left_behind()


@pytest.mark.slow
def test_a_shard_that_cannot_be_kept_alive_loses_nothing(started: list[jobs.LocalJob], tmp_path: Path) -> None:
    (tmp_path / "slow").touch()
    job = start(started, tmp_path, jobs.PACED, "--set=num_steps=60", "--set=checkpoint_every_steps=1000")
    watcher = jobs.Watcher(job)
    watcher.wait_for_step(4)
    for number in (1, 2, 3):
        job.role("ps/1").kill()
        job.wait(lambda n=number: f"restart {n} of 3" in job.stderr, "its restart")  # type: ignore[misc]
        watcher.wait_for_step(watcher.progress().step + 2)
    watcher.close()
    job.role("ps/1").kill()
    assert job.end() == 1
    assert "ps/1 crashed 4 times" in job.the_error()
    (tmp_path / "slow").unlink()
    resumed = go_on(started, job, resume_command(job))
    assert resumed.end() == 0, resumed.stderr
    result = resumed.result()
    assert result["updates_lost"] == {} and result["resumed_from"] is None
    assert result["pushes_applied_max"] - result["pushes_applied_min"] <= 2
    assert not resumed.left_behind()


@pytest.mark.slow  # tests/worker/test_faults.py has the chief's part
@pytest.mark.parametrize("small_disk", ["8m"], indirect=True)
def test_what_the_last_checkpoint_cannot_take_stays_in_the_shards_and_is_gone_on_with(
    started: list[jobs.LocalJob], tmp_path: Path, small_disk: SmallDisk
) -> None:
    (tmp_path / "slow").touch()
    where = f"--checkpoint_dir={small_disk.path / 'checkpoints'}"
    job = start(started, tmp_path, jobs.PACED, "--set=num_steps=60", "--set=checkpoint_every_steps=1000", where)
    watcher = jobs.Watcher(job)
    watcher.wait_for_step(4)
    watcher.close()
    small_disk.fill()
    (tmp_path / "slow").unlink()
    assert job.end() == 74, job.stderr
    (kept,) = job.scratch.iterdir()
    assert "the last checkpoint, of step" in job.the_error() and "No space left on device" in job.the_error()
    assert f"in the shards' memory, kept in {kept}" in job.stderr
    assert not Folder(small_disk.path / "checkpoints").names(), "nothing torn stays"
    command = resume_command(job)
    other = go_on(started, job, [*command, "--set=cluster.num_ps=3"])
    assert other.end() == 2
    assert f"{kept} is the memory of 2 shards" in other.the_error()
    small_disk.make_room()
    resumed = go_on(started, job, command)
    assert resumed.end() == 0, resumed.stderr
    result = resumed.result()
    assert result["pushes_acknowledged"] == result["pushes_applied_min"] == result["pushes_applied_max"] >= 60
    assert result["updates_lost"] == {} and "map_at_100" in result
    assert checkpoint.complete(Folder(small_disk.path / "checkpoints"))
    assert not resumed.left_behind()


def test_a_shard_is_started_again_where_no_room_is_left(small_disk: SmallDisk, tmp_path: Path) -> None:
    """Its port file is there, and its arena has its room."""
    arena, port_file = small_disk.path / "shard-0.arena", small_disk.path / "ps-0.port"
    layout = lay_out([Variable("w", (1000,))], 1)
    told = pb.ShardSpecification(
        layout=layout.canonical,
        fingerprint=layout.fingerprint,
        rule=to_message(SGD()),
        schedule=to_message(Constant(1)),
    )
    port, versions = 0, []
    for _ in range(2):
        flags = {"host": "127.0.0.1", "port": port, "port_file": port_file, "arena": arena}
        with subprocess.Popen(topology.command("ps", 0, flags), stderr=subprocess.PIPE, text=True) as process:
            try:
                wait_until(lambda: port_file.exists() or process.poll() is not None, "the shard")
                port = int(port_file.read_text())
                client = ShardClient(0, f"127.0.0.1:{port}", layout, 30.0)
                versions.append(client.initialize(told, np.ones(1000, np.float32)).kept)
                client.close()
                small_disk.fill()
            finally:
                process.kill()
                _, err = process.communicate()
    assert versions == [False, True], err
    assert "Traceback" not in err
    port_file.unlink()
    small_disk.fill()
    flags |= {"port_file": small_disk.path / "another.port", "port": 0}
    ended = subprocess.run(topology.command("ps", 0, flags), capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "cannot be written: No space left on device; make room or give another" in ended.stderr


@pytest.mark.slow  # tests/worker/test_faults.py has the chief's part
def test_a_chief_that_is_killed_without_a_journal_has_its_workers_start_anew(
    started: list[jobs.LocalJob], tmp_path: Path
) -> None:
    job = start(started, tmp_path, jobs.PACED, "--set=num_steps=300")
    watcher = jobs.Watcher(job)
    watcher.wait_for_step(60)
    job.wait(lambda: checkpoint.complete(Folder(job.run_dir / "checkpoints")), "a checkpoint")
    (tmp_path / "slow").touch()
    chief = job.role("chief")
    chief.suspend()
    (job.run_dir / "journal.json").write_text("")
    chief.kill()
    job.wait(lambda: "there is no journal of this job" in job.stderr, "the next chief")
    job.wait(lambda: "ended with exit code 69; restart 1 of 3" in job.stderr, "the workers' new start")
    (tmp_path / "slow").unlink()
    assert job.end() == 0, job.stderr
    result = job.result()
    assert result["global_steps"] >= 300 and result["updates_lost"] == {} and result["records_repeated"] > 0
    watcher.close()


@pytest.mark.slow  # tests/worker/chief/test_run_folder.py has the folder's part
@pytest.mark.parametrize("small_disk", ["8m"], indirect=True)
def test_a_run_folder_that_is_full_ends_nothing_before_the_summary(
    started: list[jobs.LocalJob], tmp_path: Path, small_disk: SmallDisk
) -> None:
    (tmp_path / "slow").touch()
    recipe = jobs.write_recipe(tmp_path, jobs.PACED)
    where = f"--checkpoint_dir={tmp_path / 'checkpoints'}"
    started.append(jobs.LocalJob(recipe, tmp_path, where, "--set=num_steps=60", f"--run_dir={small_disk.path / 'run'}"))
    job = started[-1]
    job.run_dir = small_disk.path / "run"
    watcher = jobs.Watcher(job)
    watcher.wait_for_step(4)
    watcher.close()
    small_disk.fill()
    (tmp_path / "slow").unlink()
    assert job.end() == 2, job.stderr
    assert f"the disk of {job.run_dir} is full" in job.the_error()
    assert "restart" not in job.stderr
    names = checkpoint.complete(Folder(tmp_path / "checkpoints"))
    assert int(names[-1].removeprefix("step-")) >= 60
    assert not job.left_behind()
