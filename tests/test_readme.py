"""Every command that README.md shows is accepted: its targets, subcommands, flags, keys and recipes exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from downpour.launch import cli, recipe
from downpour.launch.job import Job
from downpour.model.data import ImageRecords
from downpour.model.labels import LABELS_FILE, LabelTree

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"^```\w*\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
    if line.startswith(("downpour ", "make "))
]


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """The console script, in a folder of its own."""
    command = [sys.executable, "-m", "downpour.launch.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def value(flag: str, arguments: list[str]) -> str:
    """Of a flag that must be given once."""
    (found,) = (argument.removeprefix(f"--{flag}=") for argument in arguments if argument.startswith(f"--{flag}="))
    return found


def check(command: str, folder: Path) -> None:
    """Asserts that a command is accepted. `layout` runs; the others are stopped where their work would begin."""
    program, name, *arguments = shlex.split(command)
    if program == "make":
        check_make([name, *arguments])
    elif name == "local":
        # What is checked after flags, recipe and overrides.
        result = run([name, *arguments, "--arena_parent=/missing"], folder)
        assert result.stderr.startswith("[local] error: folder /missing is missing"), result.stderr
    elif name == "prepare":
        (folder / value("out", arguments) / "in the way").mkdir(parents=True)
        result = run([name, *arguments], folder)
        assert f"{value('out', arguments)} exists and is not a prepared data set" in result.stderr, result.stderr
    elif name == "plan":
        result = run([name, *arguments, "--measure_s=0"], folder)
        assert result.stderr.startswith("[plan] error: --measure_s=0; give"), result.stderr
    elif name == "ssh":
        (folder / value("hosts", arguments)).write_text("a chief ps worker\n")
        result = run([name, *arguments, "--via=ssh"], folder)
        assert result.stderr.startswith("[ssh] error: --via=ssh has no {}"), result.stderr
    elif name == "certs":
        assert run([name, *arguments], folder).returncode == 0
        assert (folder / value("out", arguments) / "worker" / "tls.key").exists()
    elif name == "export":
        result = run([name, *arguments], folder)
        assert f"{value('checkpoint', arguments)} is not a complete checkpoint and holds none" in result.stderr
    else:
        assert name == "layout", f"say here how to check {command!r}"
        check_layout(arguments, folder)


def check_make(targets: list[str]) -> None:
    known = re.findall(r"^([a-z_]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(targets) <= set(known), targets


def check_layout(arguments: list[str], folder: Path) -> None:
    """One row a shard; of the data, a model's layout needs no more than the number of labels."""
    job = recipe.load(value("recipe", arguments))
    if isinstance(job.data, ImageRecords):
        (folder / job.data.folder).mkdir(parents=True)
        tree = LabelTree(tuple(f"label {i}" for i in range(60)), (-1,) * 60)
        tree.save(folder / job.data.folder / LABELS_FILE)
    result = run(["layout", *arguments], folder)
    assert result.returncode == 0, result.stderr
    shards = re.findall(r"^ *(\d+) ", result.stdout, re.MULTILINE)
    assert shards == [str(i) for i in range(job.cluster.num_ps)], result.stdout


def test_the_commands_are_found() -> None:
    assert {command.split()[0] for command in COMMANDS} == {"downpour", "make"}
    assert {command.split()[1] for command in COMMANDS} >= {"quickstart", "test", "local", "layout", "prepare"}


def test_subcommands_named_in_the_text_exist() -> None:
    named = {name for names in re.findall(r"`downpour ([a-z|]+)", README) for name in names.split("|")}
    assert "worker" in named
    assert named <= set(re.findall(r"^  ([a-z]+) ", cli.usage(), re.MULTILINE))


def named_values(text: str) -> set[tuple[str, str]]:
    """Field and class, out of a table's rows such as "| `rule` | `SGD`, `Momentum` |"."""
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE)
    return {(field, name) for field, cell in rows for name in re.findall(r"`([A-Z]\w*)", cell)}


def test_classes_named_in_the_text_can_be_chosen() -> None:
    assert ("rule", "RMSProp") in named_values(README)
    unknown = {(field, name) for field, name in named_values(README) if name not in Job.CHOICES.get(field, {})}
    assert not unknown


def test_the_quickstart_has_17_shards() -> None:
    assert recipe.load("quickstart").cluster.num_ps == 17


@pytest.mark.process
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_accepted(command: str, tmp_path: Path) -> None:
    check(command, tmp_path)


@pytest.mark.process
@pytest.mark.parametrize(
    "command",
    [
        "make quikstart",
        "downpour lokal --recipe=quickstart",
        "downpour local --recipe=quikstart",
        "downpour local --recipe=quickstart --set=cluster.nmu_ps=11",
        "downpour local --recipe=quickstart --set=cluster.num_ps=eleven",
        "downpour local --recipe=quickstart --shards=11",
        "downpour prepare imagenet --out=data/imagenet",
        "downpour prepare openmoji --out=data/openmoji --size=36",
        "downpour export --checkpoint=runs/quickstart --recipe=quickstart --outt=quickstart.keras",
        "downpour layout --recipe=quickstart --set=cluster.nmu_ps=11",
        "downpour certs --job=Quickstart --out=certs",
        "downpour plan --recipe=quickstart --seconds_per_stpe=2",
        "downpour ssh --hosts=hosts.txt --recipe=quikstart",
    ],
)
def test_a_wrong_command_is_noticed(command: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check(command, tmp_path)
