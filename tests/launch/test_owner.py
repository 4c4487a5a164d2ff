"""Other processes than those of a job are kept out of it, with real processes: chiefs, launchers, workers, clocks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from downpour.launch.roles import topology
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint.storage import Folder
from downpour.ps.layout import Variable, lay_out
from downpour.ps.policy.rules import SGD
from downpour.ps.policy.schedules import Constant
from tests.conftest import ShardProcesses
from tests.launch import fleet as fleets
from tests.launch import jobs
from tests.launch.fleet import Fleet
from tests.worker.cluster import initialize

pytestmark = pytest.mark.process

_SAME = ("cluster.num_ps=2", "num_steps=600", "checkpoint_every_steps=10")
# A clock that is an hour behind, in a process that finds this file.
_BEHIND = """
import time
now_ns = time.time_ns  # not time.time, of which grpc makes deadlines that the real clock ends
time.time_ns = lambda: now_ns() - 3600 * 10**9
"""


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """Two shards, whose workers take 0.3 s a step as long as `slow` is there."""
    (tmp_path / "slow").touch()
    fleet = Fleet(tmp_path, jobs.write_recipe(tmp_path, jobs.PACED), 2, *_SAME[1:])
    yield fleet
    fleet.close()


def local(run_dir: Path, recipe: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "downpour.launch.local",
        f"--recipe={recipe}",
        f"--run_dir={run_dir}",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow  # tests/worker/chief/test_owner.py has the same without processes
def test_others_are_kept_out_of_a_running_job_and_a_worker_with_a_late_clock_is_let_in(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.start_all("worker/0", "worker/1")
    fleet.wait_for_step(12)
    chief = fleet._processes["chief"].pid
    refused = {
        "chief": ({"port": 0}, rf"belongs to the chief of job \w{{16}} on .*, process {chief}, since"),
        "another chief": ({"port": 0, "run_dir": tmp_path / "other"}, r"parameters of job \w{16}, and .* of no job"),
        "worker/1": ({"set": [*_SAME, "seed=5"]}, "worker 1 runs another job: seed is 5 there and 0 in the chief"),
        "evaluator": ({"set": [*_SAME, "batch_size=9"]}, "the evaluator runs another job: batch_size is 9"),
    }
    fleet.send("chief", signal.SIGSTOP)
    more, message = refused.pop("chief")
    assert re.search(message, refusal(fleet, tmp_path, "chief", more))
    found = local(fleet.run_dir, tmp_path / "tiny.py", "--resume")
    assert found.returncode == 2 and re.search(message, found.stderr), found.stderr
    fleet.send("chief", signal.SIGCONT)
    for name, (more, message) in refused.items():
        assert re.search(message, refusal(fleet, tmp_path, name.removeprefix("another "), more)), name
    (tmp_path / "behind").mkdir()
    (tmp_path / "behind" / "sitecustomize.py").write_text(_BEHIND)
    fleet.send("worker/0", signal.SIGKILL)
    fleet.end("worker/0")
    fleet.send("chief", signal.SIGKILL)
    fleet.end("chief")
    (fleet.run_dir / "journal.json").unlink()
    fleet.start("chief", overwrite=True)  # it goes on, and removes nothing
    paths = os.pathsep.join([str(tmp_path / "behind"), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setitem(fleets._ENVIRONMENT, "PYTHONPATH", paths)
    fleet.wait(lambda: fleet.logged("chief", "already; training continues"), "the chief's return")
    fleet.start("worker/0")
    (tmp_path / "slow").unlink()
    codes = {name: fleet.end(name) for name in ("worker/0", "chief", *fleet.shards())}
    assert set(codes.values()) == {0}, (codes, fleet.tail("chief"), fleet.tail("worker/0"))
    assert len(checkpoint.complete(Folder(fleet.run_dir / "checkpoints"))) == 3
    again = local(fleet.run_dir, tmp_path / "tiny.py")
    assert again.returncode == 2 and "continue it by --resume, remove it by --overwrite, or give" in again.stderr
    assert (
        "--overwrite removes the run that --resume continues"
        in local(fleet.run_dir, tmp_path / "tiny.py", "--resume", "--overwrite").stderr
    )


def refusal(fleet: Fleet, folder: Path, name: str, more: dict[str, topology.FlagValue]) -> str:
    """The message of one more process of a role, which must end with 2."""
    role, _, index = name.partition("/")
    values: dict[str, topology.FlagValue] = {"host": "127.0.0.1", "evaluator": False} if role == "chief" else {}
    values |= fleet._job | {"ps": ",".join(fleet._address(f"ps/{i}") for i in range(2))}
    values |= {"chief": fleet._address("chief")} if role != "chief" else {}
    command = topology.command(role, int(index or 0), values | more)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    return done.stderr.splitlines()[-1]


def test_swapped_arenas_are_refused(shards: ShardProcesses, tmp_path: Path) -> None:
    """Two shards of the same size."""
    layout = lay_out([Variable("a", (100,)), Variable("b", (100,))], 2)
    initialize(shards.start(2), layout, [np.zeros(100, np.float32)] * 2, SGD(), Constant(1.0))
    shards.stop()
    arenas = [tmp_path / f"shard-{i}.arena" for i in range(2)]
    command = topology.command("ps", 0, {"host": "127.0.0.1", "arena": arenas[1]})
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"the arena {arenas[1]} is of shard 1, and this is shard 0; give every shard its own" in done.stderr
