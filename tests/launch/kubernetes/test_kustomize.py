"""Every folder builds, offline: as our own builder does it, and as kubectl does where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.launch.kubernetes.manifests import ALL_PATHS, Document, build, deployment_of, job_of, write_all

KUBECTL = shutil.which("kubectl")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    deployment = deployment_of(job_of(tmp_path), namespace="team-a", gpus_per_worker=1)
    return write_all(deployment, tmp_path / "out")


def by_name(documents: list[Document]) -> dict[tuple[str, str], Any]:
    named = {(document["kind"], document["metadata"]["name"]): document for document in documents}
    assert len(named) == len(documents), "two documents of one name"
    return named


def kubectl(folder: Path) -> subprocess.CompletedProcess[str]:
    """`kubectl kustomize`, with nowhere to reach a cluster or a repository."""
    assert KUBECTL
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "KUBECONFIG": "/dev/null"}
    return subprocess.run(
        [KUBECTL, "kustomize", str(folder)], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("path", [*ALL_PATHS, "base/jobs", "base/common", "monitoring"])
def test_a_folder_builds(out: Path, path: str) -> None:
    documents = by_name(build(out / path))
    assert documents
    assert {document["metadata"]["namespace"] for document in documents.values()} == {"team-a"}


@pytest.mark.process
@pytest.mark.skipif(KUBECTL is None, reason="there is no kubectl here; what a kustomization names was still checked")
@pytest.mark.parametrize("path", [*ALL_PATHS, "base/jobs", "base/common", "monitoring"])
def test_kubectl_builds_the_same(out: Path, path: str) -> None:
    done = kubectl(out / path)
    assert done.returncode == 0, done.stderr
    assert by_name([d for d in yaml.safe_load_all(done.stdout) if d]) == by_name(build(out / path))


@pytest.mark.process
@pytest.mark.skipif(KUBECTL is None, reason="there is no kubectl here")
def test_without_certificates_kubectl_says_what_is_missing(out: Path) -> None:
    (out / "base/certs/ps/tls.key").unlink()
    done = kubectl(out / "base")
    assert done.returncode != 0 and "ps/tls.key" in done.stderr
    with pytest.raises(FileNotFoundError):
        build(out / "base")


def test_every_file_belongs_to_a_folder_that_names_it(out: Path) -> None:
    for path in out.rglob("*.yaml"):
        if path.name != "kustomization.yaml":
            resources = yaml.safe_load((path.parent / "kustomization.yaml").read_text())["resources"]
            assert path.name in resources, path


def test_keys_stay_out_of_repositories(out: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(out)], check=True)
    command = ["git", "ls-files", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=out, capture_output=True, text=True, check=True).stdout.split()
    assert "base/certs/kustomization.yaml" in listed
    assert not [name for name in listed if name.endswith(("token", ".key", ".crt"))]


@pytest.mark.process
def test_restart_ends_the_shards_first_and_keeps_the_rest(out: Path, tmp_path: Path) -> None:
    """With a stand-in for kubectl that writes down what it is told."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "kubectl").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')
    (tools / "kubectl").chmod(0o755)
    subprocess.run([out / "restart.sh"], env={"PATH": f"{tools}:/usr/bin:/bin"}, check=True)
    first, second, third = (tmp_path / "told").read_text().splitlines()
    assert first.startswith("delete job tiny-ps --namespace=team-a") and "--cascade=foreground" in first
    assert second.startswith("delete --kustomize base/jobs") and third == "apply --kustomize base"
    assert {document["kind"] for document in build(out / "base/jobs")} == {"Job", "Service"}
