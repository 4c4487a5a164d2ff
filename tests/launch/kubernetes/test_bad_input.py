"""What Kubernetes would refuse is refused before anything is written, in one line with exit code 2."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from downpour.launch.kubernetes import command, names
from tests.launch.jobs import write_recipe

IMAGE = "--image=registry.example/worker:1.0"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`downpour kubernetes` of the tiny recipe."""
    line = [sys.executable, "-m", "downpour.launch.cli", "kubernetes", *arguments]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no --image"),
        ([IMAGE, "--set=cluster.num_workers=0"], "cluster.num_workers is 0; give a whole number of at least 1"),
        ([IMAGE, "--gpus_per_worker=-1"], "gpus_per_worker"),
    ],
)
def test_the_command_refuses(tmp_path: Path, arguments: list[str], message: str) -> None:
    recipe = write_recipe(tmp_path)
    done = run(tmp_path, f"--recipe={recipe}", "--out=deploy", *arguments)
    assert done.returncode == 2, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if "error: " in line)
    assert message in line and "Traceback" not in done.stderr
    assert not (tmp_path / "deploy").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"overrides": ("cluster.num_ps=0",)}, "cluster.num_ps is 0"),
        ({"overrides": ("cluster.max_workers=1",)}, "cluster.max_workers"),
        ({"image": "registry.example:5000/worker"}, "has no tag"),
        ({"shard_image": "shard"}, "--shard_image=shard has no tag"),
        ({"name": "Not_A_Label"}, "must be a DNS label that begins with a letter"),
        ({"name": "a" * 41}, "at most 40 characters"),
        ({"namespace": "team_a"}, "--namespace=team_a is no DNS label"),
        ({"storage": "10 GB"}, "--storage=10 GB is no size"),
        ({"checkpoint_dir": "/mnt/run"}, "is no URL"),
        ({"data_claim": "pictures"}, "data is read from no folder"),
    ],
)
def test_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    values = {"recipe": str(write_recipe(tmp_path)), "out": tmp_path / "deploy", "image": "registry.example/worker:1.0"}
    with pytest.raises(ValueError, match=re.escape(message)):
        command.run(command.ManifestsConfig(**values | settings))  # type: ignore[arg-type]
    assert not (tmp_path / "deploy").exists()


@pytest.mark.process
def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "thesis.tex").write_text("mine")
    done = run(tmp_path, f"--recipe={write_recipe(tmp_path)}", IMAGE, "--out=deploy")
    assert done.returncode == 2 and "holds something else (thesis.tex)" in done.stderr
    assert [path.name for path in (tmp_path / "deploy").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", ["a", "quickstart", "a-1", "a" * 40])
def test_names_that_kubernetes_takes(name: str) -> None:
    names.check_job(name)


@pytest.mark.parametrize("name", ["", "-a", "a-", "1a", "A", "a_b", "a.b", "a b", "ä", "a\n", "a" * 41])
def test_names_that_it_refuses(name: str) -> None:
    with pytest.raises(ValueError, match="DNS label"):
        names.check_job(name)


def test_the_longest_name_leaves_room_for_a_pods() -> None:
    """A host's name ends at 63 characters; a JobSet's pods have the longest."""
    pod = f"{'a' * names.LONGEST_NAME}-evaluator-0-0-xxxxx"
    assert len(pod) <= 63
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", pod)


@pytest.mark.parametrize(
    "image",
    ["a:1", "a/b:1.0-gpu", "registry.example:5000/a/b:1", f"a@sha256:{'0' * 64}", f"r.example/a:1@sha256:{'a' * 64}",
     "localhost:5000/a_b:x"],
)  # fmt: skip
def test_images(image: str) -> None:
    names.check_image("image", image)


@pytest.mark.parametrize(
    "image", ["a", "a/b", "r.example:5000/a", "a:", "A:1", "a:1 2", "a@sha256:12", ":1", "a:-1", "a//b:1", "a:1\n"]
)
def test_no_images(image: str) -> None:
    with pytest.raises(ValueError, match=r"tag|no image's name"):
        names.check_image("image", image)


@pytest.mark.parametrize("size", ["10Gi", "1.5Ti", "500M", "1000"])
def test_sizes(size: str) -> None:
    names.check_quantity("storage", size)


@pytest.mark.parametrize("size", ["", "0", "0Gi", "10GB", "ten", "-1Gi", "10 Gi", "1Gi\n"])
def test_no_sizes(size: str) -> None:
    with pytest.raises(ValueError, match="no size"):
        names.check_quantity("storage", size)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "base").write_text("a file where a folder goes")
    with pytest.raises(ValueError, match="cannot be written"):
        command.write(tmp_path, {"base/jobs/shards.yaml": ""})
