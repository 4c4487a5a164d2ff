"""For tests that start real processes: fixtures that are functions, and waits with a deadline."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

WaitFor = Callable[..., None]
RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def wait_for() -> WaitFor:
    """`wait_for(predicate, timeout_s=60)`: returns once it is true, fails when that takes too long."""

    def wait(predicate: Callable[[], object], timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not predicate():
            assert time.monotonic() < deadline, f"not true after {timeout_s} s"
            time.sleep(0.01)

    return wait


@pytest.fixture
def run_python() -> RunPython:
    """`run_python(code, *arguments, **environment)`: runs it to its end."""

    def run(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=120, env=os.environ | environment, check=False
        )

    return run


@pytest.fixture
def is_alive() -> Callable[[int], bool]:
    """Whether a process exists and is more than a zombie that its parent has yet to reap."""

    def alive(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return alive


@pytest.fixture
def group_members(is_alive: Callable[[int], bool]) -> Callable[[int], list[int]]:
    """Process ids of the living members of a process group."""

    def members(group: int) -> list[int]:
        found = []
        for pid in psutil.pids():
            try:
                if os.getpgid(pid) == group and is_alive(pid):
                    found.append(pid)
            except ProcessLookupError:
                continue
        return found

    return members


@pytest.fixture
def read_pids(wait_for: WaitFor) -> Callable[[Path, int], list[int]]:
    """Waits until `count` programs have written a `.pid` file into a folder; their process ids."""

    def read(folder: Path, count: int) -> list[int]:
        wait_for(lambda: len([path for path in folder.glob("*.pid") if path.read_text()]) >= count)
        return [int(path.read_text()) for path in sorted(folder.glob("*.pid"))]

    return read
