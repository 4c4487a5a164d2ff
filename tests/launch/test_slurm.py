"""docs/slurm.sbatch, run as Slurm runs it: with stand-ins for scontrol and srun whose nodes are network namespaces.

The stand-ins know what the script asks of Slurm and nothing more: the nodes of each group of a heterogeneous job, and
tasks that are started on them with SLURM_PROCID and SLURM_LOCALID.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.benchmarks import hosts
from tests.launch import jobs
from tests.launch.test_ssh import make_certificates

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs/slurm.sbatch"

SCONTROL = """#!{python}
import json, sys

assert sys.argv[1:3] == ["show", "hostnames"], sys.argv
print("\\n".join(json.load(open({nodes!r}))[sys.argv[3]]))
"""

# A node is its name and what runs a command on it. Options of several words are not used by the script.
SRUN = """#!{python}
import json, os, signal, subprocess, sys

options = [word for word in sys.argv[1:] if word.startswith("--")]
command = sys.argv[1 + len(options):]
assert sys.argv[1:] == options + command, "options come first"
options = dict(option.lstrip("-").partition("=")[::2] for option in options)
nodes = json.load(open({nodes!r}))[os.environ["SLURM_JOB_NODELIST_HET_GROUP_" + options["het-group"]]]
on_node = int(options.get("ntasks-per-node", 1))
tasks = []
for node in nodes[: int(options.get("nodes", len(nodes)))]:
    for task in range(on_node):
        more = {{"SLURM_PROCID": str(len(tasks)), "SLURM_LOCALID": str(task), "SLURMD_NODENAME": node}}
        prefix = json.load(open({prefixes!r})).get(node, [])
        tasks.append(subprocess.Popen([*prefix, *command], env=os.environ | more))
signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
with open({steps!r}, "a") as file:
    print(json.dumps([options, command, len(tasks)]), file=file)
sys.exit(max(task.wait() for task in tasks))
"""


class Slurm:
    """The stand-ins, and what a batch script finds in its environment.

    Args:
        folder: For the programs.
        groups: Nodes of each group, each with what runs a command there.
    """

    def __init__(self, folder: Path, groups: Sequence[Mapping[str, Sequence[str]]]) -> None:
        self._steps = folder / "steps.jsonl"
        lists = [f"{'abc'[number]}[1-{len(nodes)}]" for number, nodes in enumerate(groups)]
        files = {name: folder / f"{name}.json" for name in ("nodes", "prefixes")}
        files["nodes"].write_text(json.dumps(dict(zip(lists, map(list, groups), strict=True))))
        files["prefixes"].write_text(json.dumps({node: list(p) for nodes in groups for node, p in nodes.items()}))
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        values = {name: str(path) for name, path in files.items()} | {"python": sys.executable}
        for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
            (bin_folder / name).write_text(text.format(**values, steps=str(self._steps)))
            (bin_folder / name).chmod(0o755)
        downpour = bin_folder / "downpour"
        downpour.write_text(f'#!/bin/sh\nexec {sys.executable} -m downpour.launch.cli "$@"\n')
        downpour.chmod(0o755)
        self.bin = bin_folder
        self.environment = dict(os.environ) | {
            "PATH": f"{bin_folder}:{os.environ['PATH']}", "SLURM_JOB_ID": str(os.getpid()),
            **{f"SLURM_JOB_NODELIST_HET_GROUP_{number}": name for number, name in enumerate(lists)},
        }  # fmt: skip

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(SCRIPT), *arguments], env=self.environment | environment, cwd=ROOT,
            capture_output=True, text=True, check=False, timeout=240,
        )  # fmt: skip

    def steps(self) -> dict[str, int]:
        """Tasks of each step by its command's last word."""
        return {command[-1]: tasks for _, command, tasks in map(json.loads, self._steps.read_text().splitlines())}


def commands(tmp_path: Path, groups: Sequence[Sequence[str]], **environment: str) -> list[str]:
    """What the script runs: each command line with its node, where `downpour` only says how it was called."""
    slurm = Slurm(tmp_path, [{node: () for node in nodes} for nodes in groups])
    calls = tmp_path / "calls"
    (slurm.bin / "downpour").write_text(f'#!/bin/sh\necho "$SLURMD_NODENAME: $*" >> {calls}\n')
    done = slurm.run("--set=seed=3", RECIPE="quickstart", RUN_DIR="/shared/run", **environment)
    assert done.returncode == 0, done.stderr
    return sorted(calls.read_text().splitlines())


def test_addresses_come_from_the_groups_nodes(tmp_path: Path) -> None:
    found = commands(
        tmp_path,
        [["cpu1", "cpu2"], ["gpu1", "gpu2", "gpu3"], ["login1"]],
        SHARDS_PER_NODE="2",
        PORT="3000",
        CHIEF_FLAGS="--resume_if_any",
    )
    arena = f"/dev/shm/downpour-{os.getpid()}"
    places = [("cpu1", 3000), ("cpu1", 3001), ("cpu2", 3000), ("cpu2", 3001)]
    shards = [
        f"{node}: ps --index={index} --port={port} --chief=login1:3002 --arena={arena}-{index}"
        for index, (node, port) in enumerate(places)
    ]
    job = (
        "--recipe=quickstart --run_dir=/shared/run --ps=cpu1:3000,cpu1:3001,cpu2:3000,cpu2:3001 --chief=login1:3002 "
        "--set=seed=3 --set=cluster.num_ps=4 --set=cluster.num_workers=3"
    )
    workers = [f"gpu{index + 1}: worker --index={index} {job}" for index in range(3)]
    others = [
        f"login1: chief --port=3002 --stop_shards --job_id=slurm-{os.getpid()} {job} --resume_if_any",
        f"login1: evaluator {job}",
    ]
    assert found == sorted([*shards, *workers, *others])


def test_certificates_go_to_every_role(tmp_path: Path) -> None:
    found = commands(tmp_path, [["a"], ["b"], ["c"]], TLS="/certs", TOKEN_FILE="/token")
    for call in found:
        role = call.split()[1]
        assert call.endswith(f"--tls=/certs/{role} --token_file=/token"), call
        assert "plain_text" not in call


def test_plain_text_is_asked_for_by_name(tmp_path: Path) -> None:
    found = commands(tmp_path, [["a"], ["b"], ["c"]], PLAIN_TEXT="yes")
    servers = {call.split()[1] for call in found if "--listen_in_plain_text_on_the_network" in call}
    assert servers == {"ps", "chief"}


@pytest.mark.parametrize(("codes", "calls"), [("1 69 0", 3), ("2", 1), ("143", 1), ("1 1 1 1 1", 4)])
def test_what_crashes_is_started_again(tmp_path: Path, codes: str, calls: int) -> None:
    """The chief ends with one code after another; other roles end at once."""
    slurm = Slurm(tmp_path, [{"a": ()}, {"b": ()}, {"c": ()}])
    (tmp_path / "codes").write_text("\n".join(codes.split()) + "\n")
    (slurm.bin / "downpour").write_text(f"""#!/bin/sh
[ "$1" = chief ] || exit 0
echo >> {tmp_path}/called
exit "$(sed -n "$(wc -l < {tmp_path}/called)p" {tmp_path}/codes)"
""")
    (slurm.bin / "sleep").write_text("#!/bin/sh\n")
    (slurm.bin / "sleep").chmod(0o755)
    done = slurm.run(RECIPE="r", RUN_DIR="/run")
    assert (tmp_path / "called").read_text().count("\n") == calls, done.stderr
    assert done.returncode == int(codes.split()[calls - 1])


def test_the_resources_that_are_asked_for_are_the_papers() -> None:
    text = SCRIPT.read_text()
    groups = [re.findall(r"--nodes=(\d+)", part) for part in text.partition("set -eu")[0].split("#SBATCH hetjob")]
    assert groups == [["17"], ["50"], ["1"]]


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.xdist_group("hosts")
def test_a_job_trains_on_five_nodes_and_ends(tmp_path: Path) -> None:
    reason = hosts.obstacle()
    if reason:
        pytest.skip(reason)
    tls, token = (flag.partition("=")[2] for flag in make_certificates(tmp_path))
    recipe, run_dir = jobs.write_recipe(tmp_path), tmp_path / "run"
    with hosts.network(5, 0, 1000) as network:
        nodes = [{host.address: host.prefix for host in some}
                 for some in (network.shards[:2], network.shards[2:4], network.shards[4:])]  # fmt: skip
        slurm = Slurm(tmp_path, nodes)
        done = slurm.run(
            RECIPE=str(recipe), RUN_DIR=str(run_dir), TLS=tls, TOKEN_FILE=token, SHARDS_PER_NODE="2",
            ARENA=str(tmp_path / "arena"),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        for host in network.shards:
            left = subprocess.run(["ip", "netns", "pids", host.prefix[-1]], capture_output=True, text=True, check=True)
            assert not left.stdout, f"still running on {host.address}: {done.stderr}"
    assert slurm.steps() == {"shard": 4, "worker": 2, "chief": 1, "evaluator": 1}
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["num_ps"], summary["num_workers"]) == (4, 2)
    assert summary["pushes_applied_min"] == summary["pushes_applied_max"] >= 40
    assert not list(tmp_path.glob("arena*")), "arenas of a job that is over are removed"
    assert "ended with" not in done.stderr
