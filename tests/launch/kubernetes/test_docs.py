"""What docs/kubernetes.md shows is there: folders, build arguments, fields. tests/test_readme.py runs its commands."""

from __future__ import annotations

import json
import re
from pathlib import Path

from downpour.launch.job import recipe
from downpour.launch.kubernetes import jobs
from tests.launch.kubernetes import schemas_of
from tests.launch.kubernetes.dockerfile import instructions
from tests.launch.kubernetes.manifests import build, deployment_of, find, job_of, write_all

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "kubernetes.md").read_text()


def test_folders_that_are_applied_build(tmp_path: Path) -> None:
    out = write_all(deployment_of(job_of(tmp_path)), tmp_path / "deploy")
    named = set(re.findall(r"-k deploy/([a-z/-]+)", PAGE))
    assert {"base", "base/jobs", "overlays/spot", "jobset", "tfjob"} <= named
    for folder in named:
        assert build(out / folder)
    assert all((out / name).exists() for name in re.findall(r"`((?:base|overlays|jobset|tfjob)[a-z/-]*)/?`", PAGE))
    assert (out / "restart.sh").exists()


def test_build_arguments_and_targets_exist() -> None:
    found = instructions((ROOT / "Dockerfile").read_text())
    arguments = {rest.partition("=")[0] for word, rest in found if word == "ARG"}
    targets = {rest.rpartition(" ")[2] for word, rest in found if word == "FROM"}
    assert {"ACCELERATOR", "EXTRAS"} <= set(re.findall(r"--build-arg=([A-Z]+)", PAGE)) <= arguments
    assert {"shard", "worker"} == set(re.findall(r"--target=(\w+)", PAGE)) <= targets


def test_workers_are_scaled_by_fields_that_exist(tmp_path: Path) -> None:
    """Of the page, and of the comment in the manifest."""
    job = find(build(write_all(deployment_of(job_of(tmp_path)), tmp_path / "out") / "base"), "Job", "tiny-worker")
    for text in (PAGE, jobs.HEADS["worker"]):
        (patch,) = re.findall(r"--type=merge --patch='(.*)'", text)
        spec = json.loads(patch.replace("N", "4"))["spec"]
        assert spec == {"completions": 4, "parallelism": 4}
        schemas_of.check({**job, "spec": job["spec"] | spec})


def test_the_papers_numbers() -> None:
    cluster = recipe.load("jft300m").cluster
    assert (cluster.num_ps, cluster.num_workers) == (17, 50)
    assert "17 shards and 50 workers" in PAGE and "downpour kubernetes --recipe=jft300m --gpus_per_worker=1 " in PAGE
