"""Whole runs with real roles, started and stopped from Python: no flags, no signals, no process left."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from downpour.launch.local import Checkpoints, LocalRun, RunConfig, Stopped, start
from downpour.launch.local.progress import PlainDisplay
from downpour.proto.chief_pb2 import ProgressReply
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint.storage import Folder
from tests.conftest import wait_until
from tests.launch import jobs

pytestmark = pytest.mark.process

SMALL = ("cluster.num_ps=2", "cluster.num_workers=1")

# A thread starts the run and ends at once; another one waits for the run.
SCRIPT = """
import signal, sys, threading
from pathlib import Path

import psutil
from absl import flags
from downpour.launch.local import RunConfig, start

recipe, folder = Path(sys.argv[1]), Path(sys.argv[2])
before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
config = RunConfig(recipe, ("cluster.num_ps=2", "cluster.num_workers=1", "num_steps=20"), run_dir=folder / "run",
                   evaluator=False, arena_parent=folder)
runs = []
starter = threading.Thread(target=lambda: runs.append(start(config)))
starter.start()
starter.join()
(run,) = runs
assert run.running
summary = run.wait(240)
assert not run.running and summary["global_steps"] >= 20, summary
assert not psutil.Process().children(), "processes are left"
assert before == {number: signal.getsignal(number) for number in before}
assert not flags.FLAGS.is_parsed() and "run_dir" not in flags.FLAGS
assert not {"tensorflow", "keras"} & set(sys.modules)
print("all is well")
"""

# Ends in one way or another while the run goes on.
ENDS = """
import sys, threading, time
from pathlib import Path
from downpour.launch.local import RunConfig, start

recipe, folder, how = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
more = ["num_steps=100000"] if how == "wait" else []
config = RunConfig(recipe, ("cluster.num_ps=2", *more), run_dir=folder / "run", arena_parent=folder)
logs = [folder / "run" / "logs" / f"ps-{i}.log" for i in range(2)]

def wait_for_shards():
    while not all(log.exists() and "listens on" in log.read_text() for log in logs):
        time.sleep(0.05)
    (folder / "started").touch()

if how == "block":
    with start(config) as run:
        wait_for_shards()
        raise KeyError("in the block")
run = start(config)
wait_for_shards()
if how == "error":
    raise KeyError("outside any block")
if how == "wait":
    run.wait()
"""


@pytest.fixture
def left_behind(tmp_path: Path) -> Callable[[], list[object]]:
    """Returns processes that mention the test's folder in their command line, and folders of shards' memory."""

    def find() -> list[object]:
        named = [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])]
        return [*named, *tmp_path.glob("downpour-*"), *tmp_path.glob("kept-*")]

    return find


class Seen(PlainDisplay):
    """Keeps the newest step."""

    step = 0

    def show(self, reply: ProgressReply) -> None:
        super().show(reply)
        if reply.state == ProgressReply.STATE_TRAINING:
            self.step = reply.step


@pytest.fixture
def paced(tmp_path: Path) -> Iterator[Callable[..., tuple[LocalRun, Seen]]]:
    """`paced(**more)`: starts a run whose worker takes 0.3 s a step as long as `slow` is there."""
    (tmp_path / "slow").touch()
    recipe = jobs.write_recipe(tmp_path, jobs.PACED)
    runs: list[LocalRun] = []

    def begin(**more: Checkpoints) -> tuple[LocalRun, Seen]:
        seen = Seen(sys.stderr)
        config = RunConfig(
            recipe,
            (*SMALL, "num_steps=60", "checkpoint_every_steps=1000"),
            run_dir=tmp_path / "run",
            evaluator=False,
            arena_parent=tmp_path,
            **more,
        )
        runs.append(start(config, seen))
        return runs[-1], seen

    yield begin
    for run in runs:
        run.stop(save=False)


@pytest.mark.slow
def test_a_run_that_another_thread_started_trains_to_its_end(
    tmp_path: Path, left_behind: Callable[[], list[object]]
) -> None:
    command = [sys.executable, "-c", SCRIPT, str(jobs.write_recipe(tmp_path)), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert (done.returncode, done.stdout) == (0, "all is well\n"), done.stderr
    assert not left_behind()


@pytest.mark.slow
def test_a_stopped_run_leaves_a_checkpoint_and_continues_from_it(
    paced: Callable[..., tuple[LocalRun, Seen]], tmp_path: Path, left_behind: Callable[[], list[object]]
) -> None:
    run, seen = paced()
    wait_until(lambda: seen.step >= 4, "step 4", jobs.START_S)
    with pytest.raises(TimeoutError, match=r"the run in .*/run has not ended within 0\.1 s"):
        run.wait(0.1)
    with pytest.raises(ValueError, match="belongs to the"):
        paced(checkpoints=Checkpoints(resume="yes"))
    stopper = threading.Thread(target=run.stop)
    stopper.start()
    with pytest.raises(Stopped, match="stopped by the caller") as stopped:
        run.wait(60)
    stopper.join()
    run.stop()
    (name,) = checkpoint.complete(Folder(tmp_path / "run" / "checkpoints"))
    step = int(name.removeprefix("step-"))
    (note,) = stopped.value.__notes__
    assert note.startswith(
        f"the checkpoint of step {step} is in {tmp_path / 'run'}; continue with: the same configuration"
    )
    assert step >= 4 and not run.running and not left_behind()
    (tmp_path / "slow").unlink()
    again, _ = paced(checkpoints=Checkpoints(resume="yes"))
    summary = again.wait(240)
    assert summary["resumed_from"] == step and summary["global_steps"] >= 60
    assert not left_behind()


@pytest.mark.slow  # tests/launch/test_local.py has it with stand-ins, tests/launch/test_faults.py the checkpoint
def test_a_block_that_ends_after_a_signal_was_passed_on_keeps_the_checkpoint(
    paced: Callable[..., tuple[LocalRun, Seen]], tmp_path: Path, left_behind: Callable[[], list[object]]
) -> None:
    run, seen = paced()
    with run:
        wait_until(lambda: seen.step >= 2, "step 2", jobs.START_S)
        run.interrupt(signal.SIGTERM)
    with pytest.raises(Stopped):
        run.wait(0)
    assert checkpoint.complete(Folder(tmp_path / "run" / "checkpoints")) and not left_behind()
    with pytest.raises(ValueError, match="was started before"):
        run.start()


@pytest.mark.slow
def test_a_run_that_is_stopped_without_a_checkpoint_ends_at_once(
    paced: Callable[..., tuple[LocalRun, Seen]], tmp_path: Path, left_behind: Callable[[], list[object]]
) -> None:
    run, seen = paced()
    wait_until(lambda: seen.step >= 1, "step 1", jobs.START_S)
    run.stop(save=False)
    with pytest.raises(Stopped):
        run.wait(0)
    assert not checkpoint.complete(Folder(tmp_path / "run" / "checkpoints")) and not left_behind()


@pytest.mark.parametrize(
    ("how", "number", "code"),
    [
        ("error", None, 1),
        ("wait", signal.SIGINT, -signal.SIGINT),
        pytest.param("exit", None, 0, marks=pytest.mark.slow),
        pytest.param("block", None, 1, marks=pytest.mark.slow),
        pytest.param("wait", signal.SIGKILL, -signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_however_a_script_ends_no_process_is_left(
    tmp_path: Path, left_behind: Callable[[], list[object]], how: str, number: int | None, code: int
) -> None:
    command = [sys.executable, "-c", ENDS, str(jobs.write_recipe(tmp_path)), str(tmp_path), how]
    with (tmp_path / "stderr").open("wb") as err:
        # A shell's background commands ignore SIGINT, and so would the script.
        script = subprocess.Popen(command, stderr=err, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        if number is not None:
            wait_until((tmp_path / "started").exists, "the shards' start", jobs.START_S)
            script.send_signal(number)
        assert script.wait(jobs.START_S) == code, (tmp_path / "stderr").read_text()
        assert (tmp_path / "started").exists()
    finally:
        script.kill()
        script.wait()
    if number == signal.SIGKILL:  # the system ends them, and the next run removes the shards' memory
        wait_until(lambda: all(isinstance(one, Path) for one in left_behind()), "the end of all processes")
    else:
        assert not left_behind()


def test_what_is_refused_is_refused_before_anything_starts(tmp_path: Path) -> None:
    recipe = jobs.write_recipe(tmp_path)
    with pytest.raises(ValueError, match="unknown key 'nonsense'"):
        start(RunConfig(recipe, ("nonsense=3",), run_dir=tmp_path / "run"))
    with pytest.raises(ValueError, match="has no complete checkpoint"):
        start(RunConfig(recipe, run_dir=tmp_path / "run", checkpoints=Checkpoints(resume="yes")))
    with pytest.raises(ValueError, match="--overwrite removes the run that --resume continues"):
        Checkpoints(resume="yes", overwrite=True)
    assert not (tmp_path / "run").exists()
