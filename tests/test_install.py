"""What an installed wheel can do: a shard, without TensorFlow anywhere."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
import venv
from pathlib import Path

import numpy as np
import pytest

from downpour import DISTRIBUTION, __version__, how_to_install
from downpour.launch.local.cluster import kernels_command
from downpour.ps.layout import Variable, lay_out
from downpour.ps.policy.rules import SGD
from downpour.ps.policy.schedules import Constant
from tests.conftest import wait_until
from tests.worker.cluster import initialize

ROOT = Path(__file__).parents[1]
READY_WITHIN = 4.0  # times what its libraries take to be imported; two to three was measured; TensorFlow adds eight


@pytest.fixture(autouse=True)
def no_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python finds what is installed, and nothing else."""
    monkeypatch.delenv("PYTHONPATH", raising=False)


@pytest.mark.process
def test_a_shard_runs_from_a_wheel_in_a_venv_without_tensorflow(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "build", "--wheel", f"--outdir={tmp_path}", str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"{DISTRIBUTION.replace('-', '_')}-{__version__}-py3-none-any.whl"
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet", "--no-compile"]
    pip += ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, str(wheel)], check=True)
    assert subprocess.run([python, "-c", "import tensorflow"], capture_output=True, check=False).returncode != 0
    # As launchers do: otherwise the first start of all compiles the rule's loops.
    subprocess.run([python, *kernels_command(SGD())[1:]], cwd=tmp_path, check=True)
    imports, starts = [], []
    for i in range(3):
        imports.append(_import_libraries(python))
        starts.append(_start_and_end(python, tmp_path / f"port-{i}"))
    print(f"seconds until a shard is ready: {starts}; until its libraries are imported: {imports}")
    assert min(starts) < READY_WITHIN * min(imports), (starts, imports)
    _check_the_advice_of_a_message(python, pip, tmp_path)


def _check_the_advice_of_a_message(python: Path, pip: list[str], folder: Path) -> None:
    """A command that needs an extra names what installs it, beside what is there and without an index that has us."""
    certs = [str(python.with_name("downpour")), "certs", "--job=mine", f"--out={folder / 'certs'}"]
    refused = subprocess.run(certs, capture_output=True, text=True, check=False)
    advice = how_to_install("tls")
    assert refused.returncode == 2 and advice in refused.stderr, refused.stderr
    subprocess.run([*pip, *shlex.split(advice)[2:]], check=True)
    assert subprocess.run(certs, check=False).returncode == 0


@pytest.mark.slow
def test_what_make_quickstart_installs_is_enough(tmp_path: Path) -> None:
    """Really installed, a gigabyte; tests/test_readme.py has the same in links, and trains in it."""
    environment = tmp_path / "venv"
    subprocess.run(["make", f"VENV={environment}", str(environment / "quickstart")], cwd=ROOT, check=True, timeout=1800)
    program = str(environment / "bin" / "downpour")
    for line in (
        "prepare openmoji --out=data/openmoji",
        "layout --recipe=quickstart",
        "certs --job=quickstart --out=certs",
        "plan --recipe=quickstart --seconds_per_step=1 --measure_s=0.1",
    ):
        subprocess.run([program, *line.split()], cwd=tmp_path, check=True, timeout=600)


def _import_libraries(python: Path) -> float:
    """Seconds that an interpreter takes to import what a shard's process consists of."""
    begin = time.monotonic()
    subprocess.run([python, "-c", "import grpc, google.protobuf, numpy, numba"], check=True)
    return time.monotonic() - begin


def _start_and_end(python: Path, port_file: Path) -> float:
    """Seconds from the start of a shard's process until it is ready; then it is told to end."""
    command = [python, "-m", "downpour.launch.ps", "--index=0", "--host=127.0.0.1", f"--port_file={port_file}"]
    begin = time.monotonic()
    shard = subprocess.Popen(command, cwd=port_file.parent)
    try:
        wait_until(lambda: port_file.exists() or shard.poll() is not None, "the shard's port")
        layout = lay_out([Variable("w", (5,))], 1)
        initialize([f"127.0.0.1:{port_file.read_text().strip()}"], layout, [np.ones(5)], SGD(), Constant(0.1))
        return time.monotonic() - begin
    finally:
        shard.terminate()
        assert shard.wait(120) == 0
