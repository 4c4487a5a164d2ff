"""Fixtures: the image, and a cluster that is empty."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from downpour.launch.local.cluster import kernels_command
from downpour.ps.policy.rules import Momentum
from tests.kubelet.cluster import Cluster, cluster
from tests.kubelet.container import Image
from tests.kubelet.network import network


def _obstacle() -> str | None:
    """Why pods cannot be made here."""
    missing = [tool for tool in ("ip", "setpriv", "mount") if not shutil.which(tool)]
    if missing:
        return f"no {' and no '.join(missing)} on this machine; install iproute2 and util-linux"
    if os.geteuid() != 0:
        return "namespaces need root"
    try:
        with network() as made:
            name, _ = made.add()
            subprocess.run(
                ["ip", "netns", "exec", name, "unshare", "--mount", "--pid", "--fork", "true"],
                check=True,
                capture_output=True,
            )
    except (OSError, subprocess.CalledProcessError) as error:
        return f"this machine allows no namespaces: {error}"
    return None


@pytest.fixture(scope="session")
def image(request: pytest.FixtureRequest) -> Image:
    """What all containers run; its loops are compiled once: those of the tiny recipe, with slow tests all."""
    obstacle = _obstacle()
    if obstacle:
        pytest.skip(obstacle)
    assert request.config.cache is not None
    kernels = request.config.cache.mkdir("kubelet_kernels")
    made = Image(kernels)
    command = kernels_command(Momentum(0.9))
    if any(item.get_closest_marker("slow") for item in request.session.items):
        command = [sys.executable, "-m", "downpour.ps.apply.kernels"]  # as the Dockerfile says
    subprocess.run(command, check=True, capture_output=True, env=made.environment | {"NUMBA_CACHE_DIR": str(kernels)})
    return made


@pytest.fixture
def kubernetes(tmp_path: Path, image: Image) -> Iterator[Cluster]:
    """A cluster without anything."""
    with cluster(tmp_path / "node", image) as running:
        yield running
