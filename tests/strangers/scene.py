"""A shard process, two workers that train through it, and a stranger: each a process of its own."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import DownpourError
from downpour.ps.policy.named import to_message
from downpour.ps.policy.pace import Async
from downpour.ps.policy.rules import SGD
from downpour.ps.policy.schedules import Constant
from downpour.ps.policy.staleness import Keep
from downpour.worker.exchange.clients import ShardClient
from downpour.worker.exchange.pulled import Pulled
from tests.benchmarks.processes import Processes, wait_for_file
from tests.strangers.attacks import Attack
from tests.strangers.training import LAYOUT, LEARNING_RATE, NUM_ELEMENTS
from tests.strangers.ways import Guard, Way

NUM_WORKERS = 2
_START_S, _ANSWER_S, _ASK_S = 60.0, 60.0, 10.0


@dataclass(frozen=True)
class Training:
    """What the workers did, all together.

    Attributes:
        ends: [num_steps] when steps ended, by `time.monotonic()`, in order.
        seconds: [num_steps] how long each took.
        errors: What workers ended with.
        applied: Pushes that the shard has counted.
        is_exact: Whether the shard holds what that many pushes make, everywhere.
    """

    ends: np.ndarray
    seconds: np.ndarray
    errors: list[str]
    applied: int
    is_exact: bool

    def between(self, begin: float, end: float) -> np.ndarray:
        """Which steps ended in that time."""
        found: np.ndarray = (self.ends >= begin) & (self.ends < end)
        return found


class Scene:
    """Everything of one guarded shard. Made by `opened`."""

    def __init__(self, folder: Path, guard: Guard, processes: Processes) -> None:
        self.guard = guard
        self._folder = folder
        guard.prepare(folder)
        port_file, shard_flags = folder / "port", guard.flags(folder)
        command = [
            *(sys.executable, "-m", "downpour.launch.ps", "--index=0", "--host=127.0.0.1", f"--port_file={port_file}"),
            *(f"--arena={folder / 'arena'}", f"--die_with_parent={os.getpid()}", *shard_flags),
        ]
        self._shard = processes.start("shard", command)
        self._port = int(wait_for_file(port_file, self._shard))
        self.shard = psutil.Process(self._shard.pid)
        self._chief = self.client("chief")
        self._initialize()
        self._workers = [
            processes.start(f"worker-{i}", self._command("training", f"--worker_index={i}", *self._asked()))
            for i in range(NUM_WORKERS)
        ]
        self._stranger = processes.start("stranger", self._command("attacker"))
        for child in (*self._workers, self._stranger):
            child.read(_START_S)

    def client(self, role: str, give_up_after_s: float = 30.0) -> ShardClient:
        """Of a process of the job."""
        mine = self.guard.security(self._folder, role)
        return ShardClient(0, f"127.0.0.1:{self._port}", LAYOUT, give_up_after_s, mine)

    def is_running(self) -> bool:
        """Whether the shard has not ended."""
        return self._shard.running

    def num_log_lines(self) -> int:
        """That the shard has written."""
        return len((self._folder / "shard.log").read_bytes().splitlines())

    def attack(self, attack: Attack, way: Way, at_most: int | None = None) -> None:
        """Has the stranger begin, with at most so many connections; at once, when this returns."""
        self._stranger.write(json.dumps({"attack": attack.name, "way": way.name, "at_most": at_most}))
        assert self._stranger.read(_ANSWER_S) == "on"

    def done(self) -> dict[str, float]:
        """What the stranger has done since it began."""
        return self._ask("look")

    def rest(self) -> dict[str, float]:
        """Has the stranger end; what it has done since it began."""
        return self._ask("off")

    def end_training(self) -> Training:
        """Ends the workers, and asks the shard what it has of them."""
        for worker in self._workers:
            worker.write("end")
        done = [json.loads(worker.read(_ANSWER_S)) for worker in self._workers]
        ends, seconds = (np.concatenate([one[key] for one in done]) for key in ("ends", "seconds"))
        order = np.argsort(ends)
        errors = [one["error"] for one in done if one["error"]]
        try:
            applied, is_exact = self._held()
        except DownpourError as error:
            applied, is_exact = 0, False
            errors.append(f"the shard cannot be asked: {error}")
        return Training(ends[order], seconds[order], errors, applied, is_exact)

    def _ask(self, what: str) -> dict[str, float]:
        self._stranger.write(what)
        done: dict[str, float] = json.loads(self._stranger.read(_ANSWER_S))
        return done

    def _held(self) -> tuple[int, bool]:
        pulled, observer = Pulled(LAYOUT, 0, codec.FLOAT32), self.client("worker", _ASK_S)
        observer.pull(pb.PullRequest(fingerprint=LAYOUT.fingerprint, codec=codec.FLOAT32), pulled)
        observer.close()
        pushes = self._chief.status().pushes
        return pushes, bool((pulled.latest.trained == -pushes * LEARNING_RATE).all())

    def _initialize(self) -> None:
        told = pb.ShardSpecification(
            fingerprint=LAYOUT.fingerprint,
            layout=LAYOUT.canonical,
            rule=to_message(SGD()),
            schedule=to_message(Constant(LEARNING_RATE)),
            pace=to_message(Async()),
            staleness=to_message(Keep()),
            num_workers=NUM_WORKERS,
        )
        self._chief.initialize(told, np.zeros(NUM_ELEMENTS, np.float32))

    def _command(self, module: str, *flags: str) -> list[str]:
        return [
            *(sys.executable, "-m", f"tests.strangers.{module}", f"--shard_port={self._port}"),
            *(f"--folder={self._folder}", f"--die_with_parent={os.getpid()}", *flags),
        ]

    def _asked(self) -> list[str]:
        return [f"--with_tls={self.guard.tls}", f"--with_token={self.guard.token}"]


@contextlib.contextmanager
def opened(folder: Path, guard: Guard) -> Iterator[Scene]:
    """Starts everything, and ends it.

    Args:
        folder: An empty one.
        guard: Of the shard.
    """
    with Processes(folder) as processes:
        yield Scene(folder, guard, processes)


def newcomer(scene: Scene, give_up_after_s: float) -> float:
    """Seconds until a new client of the job has an answer from the shard; infinite if it gives up."""
    begin = time.monotonic()
    client = scene.client("worker", give_up_after_s)
    try:
        client.status()
    except DownpourError:
        return math.inf
    finally:
        client.close()
    return time.monotonic() - begin
