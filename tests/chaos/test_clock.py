"""The clock that is set from outside: read by Python's code, not by gRPC's, and seen to be read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CLOCK = Path(__file__).with_name("clock")
# The same clock as this code reads it and as a module of grpc's would, in seconds from the true one.
CODE = """
import os, time
true = os.stat(os.open(os.environ["CHAOS_CLOCKS"] + "/now", os.O_CREAT | os.O_WRONLY)).st_mtime
theirs = {"__name__": "grpc._channel", "time": time}
exec("now = time.time()", theirs)
print(round(time.time() - true), round(time.time_ns() / 1e9 - true), round(theirs["now"] - true))
"""


def read(folder: Path, *role: str) -> list[int]:
    environment = os.environ | {"PYTHONPATH": str(CLOCK), "CHAOS_CLOCKS": str(folder)}
    command = [sys.executable, "-c", CODE, *role]
    return [int(word) for word in subprocess.check_output(command, env=environment, text=True, timeout=60).split()]


@pytest.mark.parametrize("ahead", ["3600.0", "-7200.0"])
def test_a_process_reads_the_clock_that_is_set_for_it(tmp_path: Path, ahead: str) -> None:
    (tmp_path / "worker-3").write_text(ahead)
    assert read(tmp_path, "downpour.launch.worker", "--index=3") == pytest.approx([float(ahead)] * 2 + [0], abs=2)
    assert (tmp_path / "worker-3.seen").read_text() == ahead


def test_other_processes_keep_theirs(tmp_path: Path) -> None:
    (tmp_path / "worker-3").write_text("3600")
    assert read(tmp_path, "downpour.launch.worker", "--index=4") == pytest.approx([0, 0, 0], abs=2)
    assert read(tmp_path) == pytest.approx([0, 0, 0], abs=2)
    assert not (tmp_path / "worker-3.seen").exists()
