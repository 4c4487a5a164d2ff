"""Fixtures of more than one folder: real shards, as processes or in this one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from downpour.ps.service.server import ShardServer

# An example may take long on a busy machine; tests have a timeout of their own.
settings.register_profile("downpour", deadline=None)
settings.load_profile("downpour")

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
_LEAN = str(Path(__file__).with_name("lean"))
os.environ["PYTHONPATH"] = os.pathsep.join([_LEAN, *filter(None, [os.environ.get("PYTHONPATH")])])

DEADLINE_S = 60.0


@pytest.hookimpl(tryfirst=True)  # before xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts tests of real processes first: a long one that began last would leave the other pytest processes idle.

    Tests that share a fixture of their module are of one group, so that no other process makes the fixture once more.
    """
    items.sort(key=lambda item: item.get_closest_marker("process") is None)
    for item in items:
        if _shares(item) and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


def _shares(item: pytest.Item) -> bool:
    """Whether a test uses a fixture of its module."""
    known = getattr(item, "_fixtureinfo", None)
    return known is not None and any(
        definitions[-1].scope == "module" for definitions in known.name2fixturedefs.values() if definitions
    )


def wait_until(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Polls until a condition holds; fails the test when it does not in time."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {deadline_s:.0f} s"
        time.sleep(0.02)


class ShardProcesses:
    """Starts shards exactly as production does, and ends them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, num_shards: int) -> list[str]:
        """Starts empty shards, in place of any before, and returns their addresses."""
        self.stop()
        self.processes.clear()
        for arena in self._folder.glob("*.arena"):
            arena.unlink()
        files = [self._start(i, 0) for i in range(num_shards)]
        return [f"127.0.0.1:{self._port(file)}" for file in files]

    def kill_and_restart(self, index: int, address: str) -> None:
        """SIGKILLs a shard and starts it again on its arena and port."""
        self.processes[index].kill()
        self.processes[index].wait()
        self._start(index, int(address.rpartition(":")[2]))

    def _start(self, index: int, port: int) -> Path:
        port_file = self._folder / f"shard-{index}.port"
        port_file.unlink(missing_ok=True)
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "downpour.launch.ps", f"--index={index}", f"--port={port}", "--host=127.0.0.1"),
                *(f"--arena={self._folder / f'shard-{index}.arena'}", f"--port_file={port_file}"),
                f"--die_with_parent={os.getpid()}",
            ]
        )
        self.processes[index:] = [process, *self.processes[index + 1 :]]
        return port_file

    def _port(self, file: Path) -> int:
        wait_until(file.exists, f"{file.name} of a starting shard")
        return int(file.read_text())

    def stop(self) -> None:
        """SIGTERM, and every shard must end by itself with exit code 0."""
        running = [process for process in self.processes if process.poll() is None]
        for process in running:
            process.terminate()
        codes = [process.wait(DEADLINE_S) for process in running]
        assert codes == [0] * len(codes)


@pytest.fixture
def shards(tmp_path: Path) -> Iterator[ShardProcesses]:
    """Real shard processes, stopped after the test."""
    processes = ShardProcesses(tmp_path)
    try:
        yield processes
    finally:
        processes.stop()


class ServedShards:
    """The shards of `ShardProcesses`, the same servers on loopback, in this process: each starts a second sooner."""

    def __init__(self) -> None:
        self._servers: list[ShardServer] = []

    def start(self, num_shards: int) -> list[str]:
        """Starts empty shards, in place of any before, and returns their addresses."""
        from downpour.ps.service.server import ShardServer

        self.stop()
        self._servers = [ShardServer(i) for i in range(num_shards)]
        return [f"127.0.0.1:{server.port}" for server in self._servers]

    def stop(self) -> None:
        """Lets open calls finish for a moment."""
        for server in self._servers:
            server.stop(1.0)
        self._servers = []


@pytest.fixture
def served() -> Iterator[ServedShards]:
    """Shards for tests that need what a shard answers, and not that it is a process; stopped after the test."""
    shards = ServedShards()
    try:
        yield shards
    finally:
        shards.stop()


class SmallDisk:
    """A file system of 4 MB or more in memory, which a test fills and makes room on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self) -> None:
        """Leaves no room at all."""
        with self._ballast.open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)) == size:
                        pass

    def make_room(self) -> None:
        """Takes the ballast away."""
        self._ballast.unlink()


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[SmallDisk]:
    """A small disk, of the size of the fixture's parameter, by default `4m`; needs root."""
    path = tmp_path / "disk"
    path.mkdir()
    options = f"size={getattr(request, 'param', '4m')}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a file system can be mounted by root only")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)
