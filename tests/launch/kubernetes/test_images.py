"""The Dockerfile: pinned, complete, and every RUN line executed in an empty Debian root."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from downpour.launch.kubernetes import names
from tests.channels import plain
from tests.conftest import wait_until
from tests.launch.kubernetes.dockerfile import Builder, instructions, why_not

ROOT = Path(__file__).parents[3]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
KEPT = os.environ.get("DOWNPOUR_IMAGE_ROOTS")  # a folder whose Debian root is used again by the next run
SCRATCH = Path(KEPT or "/var/tmp/downpour-images")


def test_images_are_pinned_and_not_roots() -> None:
    found = instructions(DOCKERFILE)
    (python,) = (rest for word, rest in found if word == "ARG" and rest.startswith("PYTHON="))
    assert re.fullmatch(r"PYTHON=python:3\.11\.\d+-slim-\w+", python)
    targets = DOCKERFILE.split("\nFROM ")
    for target in ("shard", "worker"):
        (text,) = (part for part in targets if re.match(rf"\S+ AS {target}\n", part))
        assert f"USER {names.USER}:{names.USER}" in text
    for _, rest in found:
        if "pip install" in rest:
            assert "--constraint=constraints.txt" in rest
    assert f"NUMBA_CACHE_DIR={names.BUILT_KERNELS}" in DOCKERFILE


def test_what_is_copied_is_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {source for word, rest in instructions(DOCKERFILE) if word == "COPY" and not rest.startswith("--from")
              for source in rest.split()[:-1]}  # fmt: skip
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    packages = {name.partition("/")[0] for name in tracked if "/" in name and name.endswith(".py")} - {
        "tests",
        ".ci",
        "docs",
    }
    assert packages <= copied, "a package is left out of the images"


@pytest.fixture(scope="module")
def builder() -> Iterator[Builder]:
    """Roots are made once for this module, and removed."""
    if why_not():
        pytest.skip(why_not())
    SCRATCH.mkdir(parents=True, exist_ok=True)
    remove_stages()
    try:
        yield Builder(DOCKERFILE, ROOT, SCRATCH)
    finally:
        remove_stages()
        if not KEPT:
            shutil.rmtree(SCRATCH)


def remove_stages() -> None:
    for path in SCRATCH.iterdir():
        if path.name != "debian":
            shutil.rmtree(path)


def size_mb(path: Path) -> float:
    return int(subprocess.run(["du", "-sm", path], capture_output=True, text=True, check=True).stdout.split()[0])


def health(address: str, service: str) -> int:
    with plain(address) as channel:
        try:
            stub = health_pb2_grpc.HealthStub(channel)
            return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=2).status
        except grpc.RpcError:
            return 0


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(1800)
def test_the_shard_image_starts_a_shard_and_has_no_tensorflow(builder: Builder, tmp_path: Path) -> None:
    """As its pod runs it: as nobody, its root read-only, with the compiled loops copied from the image."""
    stage = builder.build("shard")
    user = f"{names.USER}:{names.USER}"
    assert stage.user == user
    assert builder.run(stage, "id -u", user).strip() == str(names.USER)
    list_all = "import importlib.metadata as m; print(*(d.name.lower() for d in m.distributions()))"
    packages = set(builder.run(stage, f'python -c "{list_all}"', user).split())
    assert {"downpour-training", "grpcio", "numba", "cryptography"} <= packages
    assert not {name for name in packages if re.match("tensorflow|keras|torch|scipy|pandas|pip$", name)}
    print(f"shard: {size_mb(stage.root / 'opt/downpour')} MB of our own on top of the base, {len(packages)} packages")

    # An image's layers keep full seconds, by which numba knows what it compiled.
    loops = next((stage.root / "opt/downpour/venv").glob("lib/python3.*/site-packages/downpour/ps/apply/loops.py"))
    assert loops.stat().st_mtime_ns % 10**9 == 0

    arena, kernels, temporary = (tmp_path / name for name in ("arena", "kernels", "tmp"))
    for path in (arena, kernels, temporary):
        path.mkdir()
        os.chown(path, names.USER, names.USER)
    tmp_path.chmod(0o711)
    binds = {arena: names.ARENA, kernels: names.KERNELS, temporary: "/tmp"}
    stage.environment["NUMBA_CACHE_DIR"] = names.KERNELS
    builder.run(stage, f"cp -R {names.BUILT_KERNELS}/. {names.KERNELS}", user, binds)
    compiled = {path.name: path.stat().st_mtime_ns for path in kernels.rglob("*.nbc")}
    assert compiled
    # Nothing of it is compiled again, though the image's files have other owners and the process is another user.
    builder.run(stage, "python -m downpour.ps.apply.kernels", user, binds)
    assert {path.name: path.stat().st_mtime_ns for path in kernels.rglob("*.nbc")} == compiled

    port, health_port = 41222, 41224
    command = (
        f"python -m downpour.launch.ps --index=0 --host=127.0.0.1 --port={port} --health_port={health_port} "
        f"--arena={names.ARENA}/shard-0.arena"
    )
    begin = time.monotonic()
    shard = subprocess.Popen(builder.argv(stage, f"exec {command}", user, binds))
    try:
        address = f"127.0.0.1:{health_port}"
        wait_until(lambda: health(address, "") == health_pb2.HealthCheckResponse.SERVING, "the shard's health")
        print(f"shard: healthy {time.monotonic() - begin:.1f} s after its start")
        assert health(address, "ready") == health_pb2.HealthCheckResponse.NOT_SERVING  # nobody has filled it
    finally:
        shard.send_signal(signal.SIGTERM)
        assert shard.wait(120) == 0


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(3600)
def test_the_worker_image_has_tensorflow_and_the_roles(builder: Builder) -> None:
    stage = builder.build("worker")
    user = f"{names.USER}:{names.USER}"
    print(f"worker: {size_mb(stage.root / 'opt/downpour')} MB of our own on top of the base")
    assert "2.21" in builder.run(stage, "python -c 'import tensorflow; print(tensorflow.__version__)'", user)
    for role in ("worker", "chief", "evaluator"):
        assert "--recipe" in builder.run(stage, f"python -m downpour.launch.{role} --help", user)
    table = builder.run(stage, "cd /tmp && downpour layout --recipe=paper_shape", user)
    assert "imbalance" in table


@pytest.mark.slow
def test_an_unknown_accelerator_is_refused(builder: Builder) -> None:
    (run,) = (rest for word, rest in instructions(DOCKERFILE) if word == "RUN" and "ACCELERATOR" in rest)
    stage = builder.build("runtime")
    with pytest.raises(AssertionError, match="ACCELERATOR is tpu; give cpu or gpu"):
        builder.run(stage, f"ACCELERATOR=tpu; EXTRAS=tls; {run}")
