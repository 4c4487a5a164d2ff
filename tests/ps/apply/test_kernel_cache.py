"""Where numba can write no cache: a read-only installation, a read-only home."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from downpour.ps.layout import Variable, lay_out
from downpour.ps.policy.rules import RMSProp
from downpour.ps.policy.schedules import Constant
from tests.conftest import wait_until
from tests.worker.cluster import initialize

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[3]
# Root may write where the mode says no, unless it gives that up.
POWERLESS = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
NONE = "numba can write no cache"

Start = Callable[[Path], "subprocess.Popen[str]"]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A copy of what a shard needs, without anything compiled, that nobody may write to."""
    if POWERLESS and not shutil.which("setpriv"):
        pytest.skip("no setpriv, and root may write everywhere")
    folder = tmp_path / "installed"
    for name in ("proto", "ps", "launch", "worker", "model"):
        shutil.copytree(ROOT / name, folder / "downpour" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (ROOT / "src" / "downpour").glob("*.py"):
        shutil.copy(path, folder / "downpour")
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode & 0o555)
    return folder


def start(installed: Path, temporary: Path, home: Path) -> tuple[subprocess.Popen[str], Path]:
    """A shard without a place for numba's cache, and the file with its port."""
    home.mkdir(exist_ok=True)
    home.chmod(0o555)
    port_file = temporary / f"port-{len(list(temporary.glob('port-*')))}"
    command = [*POWERLESS, sys.executable, "-m", "downpour.launch.ps", "--index=0", "--host=127.0.0.1"]
    command.append(f"--port_file={port_file}")
    environment = {"PYTHONPATH": str(installed), "HOME": str(home), "TMPDIR": str(temporary), "NUMBA_CACHE_DIR": ""}
    shard = subprocess.Popen(command, cwd=home, env=os.environ | environment, stderr=subprocess.PIPE, text=True)
    return shard, port_file


def serve_once(shard: subprocess.Popen[str], port_file: Path) -> str:
    """Has a shard become ready, and ends it; what it wrote."""
    try:
        wait_until(lambda: port_file.exists() or shard.poll() is not None, "the shard's port")
        assert shard.poll() is None, shard.communicate()
        layout = lay_out([Variable("w", (5,))], 1)
        initialize([f"127.0.0.1:{port_file.read_text().strip()}"], layout, [np.ones(5)], RMSProp(0.9), Constant(0.1))
    finally:
        shard.terminate()
        _, log = shard.communicate(timeout=60)
    assert shard.returncode == 0, log
    return log


def test_a_shard_keeps_its_loops_in_the_temporary_folder_and_says_so_once(installed: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    log = serve_once(*start(installed, temporary, tmp_path / "home"))
    folder = temporary / f"downpour-kernels-{os.getuid()}"
    assert log.count(NONE) == 1 and str(folder) in log, log
    compiled = {path: path.stat().st_mtime_ns for path in folder.rglob("*.nbc")}
    assert compiled
    serve_once(*start(installed, temporary, tmp_path / "home"))  # it compiles nothing
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.nbc")} == compiled


def test_a_folder_that_others_may_write_is_not_trusted(installed: Path, tmp_path: Path) -> None:
    """What is in it would be run."""
    temporary = tmp_path / "temporary"
    folder = temporary / f"downpour-kernels-{os.getuid()}"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    log = serve_once(*start(installed, temporary, tmp_path / "home"))
    assert log.count(NONE) == 1 and "so this process compiles its loops itself" in log, log
    assert not list(folder.iterdir())
