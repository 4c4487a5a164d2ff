"""The processes of a job, each started and ended by the test itself, with the commands that production runs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from downpour.launch.roles import topology
from downpour.proto.chief_pb2 import ProgressReply
from downpour.worker.exchange.clients import ChiefClient
from tests.chaos import counting

START_S = 120.0
_HOST = "127.0.0.1"
_ENVIRONMENT = os.environ | {"PYTHONUNBUFFERED": "1"}


class Fleet:
    """Shards that ask the chief when they end, a chief that ends them, workers and an evaluator.

    Args:
        folder: Of arenas, logs and the run.
        recipe: A recipe file.
        num_ps: Shards.
        overrides: Of the recipe.
    """

    def __init__(self, folder: Path, recipe: Path, num_ps: int, *overrides: str) -> None:
        self._folder, self._num_ps = folder, num_ps
        self.run_dir = folder / "run"
        names = [*(f"ps/{i}" for i in range(num_ps)), "chief"]
        self._ports = dict(zip(names, free_ports(len(names)), strict=True))
        self._job = {"recipe": recipe, "set": [f"cluster.num_ps={num_ps}", *overrides], "run_dir": self.run_dir}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._client: ChiefClient | None = None

    def start(self, name: str, **more: topology.FlagValue) -> None:
        """Starts `ps/0`, `chief`, `worker/1` or `evaluator`, again if it has ended; its log goes on."""
        role, _, index = name.partition("/")
        values: dict[str, topology.FlagValue] = {"verbosity": 1, "die_with_parent": os.getpid()}
        if role in ("ps", "chief"):
            values |= {"host": _HOST, "port": self._ports[name]}
        if role == "ps":
            values |= {"arena": self.arena(name), "chief": self._address("chief")}
        else:
            values |= self._job | {"ps": ",".join(self._address(f"ps/{i}") for i in range(self._num_ps))}
        if role == "chief":
            values |= {"stop_shards": True, "evaluator": False}
        elif role != "ps":
            values |= {"chief": self._address("chief")}
        with self.log(name).open("ab") as log:
            command = topology.command(role, int(index or 0), values | more)
            self._processes[name] = subprocess.Popen(command, stdout=log, stderr=log, env=_ENVIRONMENT)

    def start_all(self, *names: str) -> None:
        """Shards, chief, and the others that are named."""
        for name in (*self.shards(), "chief", *names):
            self.start(name)

    def shards(self) -> list[str]:
        """Their names."""
        return [f"ps/{i}" for i in range(self._num_ps)]

    def send(self, name: str, number: int = signal.SIGTERM) -> None:
        """Signals a process."""
        self._processes[name].send_signal(number)

    def end(self, name: str, timeout_s: float = START_S) -> int:
        """Waits for the end of a process; its exit code."""
        try:
            return self._processes[name].wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{name} did not end within {timeout_s:.0f} s:\n{self.tail(name)}") from None

    def arena(self, name: str) -> Path:
        """Of a shard."""
        return self._folder / f"{name.replace('/', '-')}.arena"

    def log(self, name: str) -> Path:
        """What a process has written, and those before it."""
        return self._folder / f"{name.replace('/', '-')}.log"

    def tail(self, name: str) -> str:
        """The end of its log."""
        return "\n".join(self.log(name).read_text(errors="replace").splitlines()[-20:])

    def logged(self, name: str, text: str) -> bool:
        """Whether a log has a text."""
        return text in self.log(name).read_text(errors="replace")

    def progress(self) -> ProgressReply:
        """The chief's answer."""
        self._client = self._client or ChiefClient(self._address("chief"), START_S)
        return self._client.progress()

    def journal(self) -> dict[str, Any]:
        """The chief's."""
        found: dict[str, Any] = json.loads((self.run_dir / "journal.json").read_text())
        return found

    def wait(self, condition: Callable[[], object], what: str, timeout_s: float = START_S) -> None:
        """Waits for a condition; fails when it does not come in time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            logs = "\n".join(f"--- {name}\n{self.tail(name)}" for name in self._processes)
            assert time.monotonic() < deadline, f"{what} did not come within {timeout_s:.0f} s:\n{logs}"
            time.sleep(0.05)

    def wait_for_step(self, step: int, timeout_s: float = START_S) -> None:
        """Waits until the job has trained so far."""
        self.wait(lambda: self.progress().step >= step, f"step {step}", timeout_s)

    def summary(self) -> dict[str, Any]:
        """Of a job that is done."""
        found: dict[str, Any] = json.loads((self.run_dir / "summary.json").read_text())
        return found

    def count(self, shards: list[str], workers: list[str], pushes: list[int]) -> counting.Count:
        """Compares what workers were told with what shards have counted; see `tests.chaos.counting`."""
        told = [counting.read_worker(self.log(name).read_text().splitlines()) for name in workers]
        have = [counting.read_shard(self.log(name).read_text().splitlines()) for name in shards]
        return counting.count(told, have, pushes)

    def close(self) -> None:
        """Kills what still runs."""
        if self._client is not None:
            self._client.close()
        for process in self._processes.values():
            process.kill()
            process.wait()

    def _address(self, name: str) -> str:
        return f"{_HOST}:{self._ports[name]}"


def free_ports(number: int) -> list[int]:
    """Different ones that are free now; shards and chief must know each other's before either listens."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind((_HOST, 0))
        return [one.getsockname()[1] for one in sockets]


def first_of_free_ports(number: int) -> int:
    """The first of so many free ports in a row, as `--metrics_port` of a local run takes them."""
    for first in range(20_000, 30_000, 32):
        try:
            for port in range(first, first + number):
                socket.create_server((_HOST, port)).close()
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")
