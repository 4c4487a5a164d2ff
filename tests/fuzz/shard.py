"""The shard process under test: how it is started, what it holds, whether it is well."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import psutil

from downpour.launch import certs
from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.security.certificates import Certificates
from downpour.proto.security.config import Security
from downpour.ps.layout import FACTORED, FROZEN, STATISTIC, Slicing, Variable, lay_out
from downpour.ps.memory.arena import Arena
from downpour.ps.policy.named import to_message
from downpour.ps.policy.pace import Async
from downpour.ps.policy.rules import SGD
from downpour.ps.policy.schedules import Constant
from downpour.ps.policy.staleness import Keep
from downpour.worker.exchange.clients import ShardClient
from tests.certificates import TOKEN

JOB_ID = "fuzzed"
FUZZER, NUM_FUZZERS = 100, 256  # worker numbers of the fuzzer's mutated pushes
CONTROLS, NUM_CONTROLS = 400, 512  # of those that it sends as they are
CONTROL_INCARNATION = 1 << 62  # of the latter, beyond what mutations of others make by chance
ANSWER_S = 5.0  # within which a shard in use must say how it is
_START_S = 60.0
_MB = 1 << 20
_INPUTS, _ROWS = 24, 3

LAYOUT = lay_out(
    [
        Variable("kernel", (_INPUTS, 40), FACTORED),
        Variable("bias", (1500,)),
        Variable("mean", (60,), STATISTIC),
        Variable("fixed", (100,), FROZEN),
    ],
    1,
    [Slicing("kernel", 2)],
)
NUM_TRAINED, NUM_PUSHED = LAYOUT.num_trained(0), LAYOUT.num_pushed(0)


def specification() -> pb.ShardSpecification:
    """Of the shard."""
    return pb.ShardSpecification(
        fingerprint=LAYOUT.fingerprint,
        layout=LAYOUT.canonical,
        rule=to_message(SGD()),
        schedule=to_message(Constant(0.1)),
        pace=to_message(Async()),
        staleness=to_message(Keep()),
        num_workers=4,
        job_id=JOB_ID,
    )


def factors(wire: pb.Codec) -> codec.Outgoing:
    """The first chunk of a push, x and d of the kernel's gradient; bfloat16 where the codec has no factors."""
    [group] = LAYOUT.factored(0)
    wire = wire if wire in codec.WIRE_DTYPES else codec.BFLOAT16
    values = np.zeros(_ROWS * (_INPUTS + group.num_outputs), codec.WIRE_DTYPES[wire])
    return codec.Outgoing(group.start, group.size, wire, values, rows=_ROWS)


@dataclass(frozen=True)
class Vitals:
    """What the process holds."""

    rss_mb: float
    num_threads: int
    num_files: int


@dataclass(frozen=True)
class Books:
    """What a shard that has ended had counted.

    Attributes:
        exit_code: Of the process.
        version: Updates applied.
        pushes: Acknowledged.
        staleness: Sum of the histogram.
        of_worker: Complete pushes by worker; those without any are left out.
    """

    exit_code: int
    version: int
    pushes: int
    staleness: int
    of_worker: dict[int, int]


class FuzzedShard:
    """One shard process that asks for a token, with or without TLS, and holds parameters; a context manager.

    Args:
        folder: Empty; of arena, log and certificates.
        tls: Whether connections are encrypted.

    Attributes:
        port: The shard listens on.
        certificates: Folder with one folder a role, or None.
    """

    def __init__(self, folder: Path, tls: bool) -> None:
        self._arena, self._log = folder / "arena", folder / "log"
        self.certificates = folder / "certs" if tls else None
        token_file, port_file = folder / "token", folder / "port"
        token_file.write_text(TOKEN + "\n")
        more = []
        if self.certificates:
            certs.make("fuzzed", self.certificates)
            more = [f"--tls={self.certificates / 'ps'}"]
        command = [
            *(sys.executable, "-m", "downpour.launch.ps", "--index=0", "--host=127.0.0.1", f"--arena={self._arena}"),
            *(f"--port_file={port_file}", f"--token_file={token_file}", f"--die_with_parent={os.getpid()}", *more),
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stderr=log, stdout=log)
        end = time.monotonic() + _START_S
        while not port_file.exists():
            assert self.is_alive and time.monotonic() < end, f"the shard does not start:\n{self.log()[-2000:]}"
            time.sleep(0.02)
        self.port = int(port_file.read_text())
        self._chief = self.client("chief")
        self._chief.initialize(specification(), np.zeros(LAYOUT.size(0), np.float32))

    def __enter__(self) -> FuzzedShard:
        return self

    def __exit__(self, *error: object) -> None:
        self._chief.close()
        self._process.kill()
        self._process.wait()

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def has_ended(self, within_s: float) -> bool:
        """Whether the process ends so soon."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(within_s)
        return not self.is_alive

    def security(self, role: str) -> Security:
        """Of a process of the job."""
        return Security(Certificates(self.certificates / role, role) if self.certificates else None, TOKEN)

    def client(self, role: str, give_up_after_s: float = 30.0) -> ShardClient:
        """Of a process of the job."""
        return ShardClient(0, f"127.0.0.1:{self.port}", LAYOUT, give_up_after_s, self.security(role), JOB_ID)

    def answers(self) -> bool:
        """Whether it says within `ANSWER_S` how it is, to a connection of its own."""
        with contextlib.closing(self.client("chief")) as client, contextlib.suppress(grpc.RpcError):
            return client.look(ANSWER_S) is not None
        return False

    def vitals(self) -> Vitals:
        """Of this moment.

        Raises:
            psutil.NoSuchProcess: It has ended.
        """
        process = psutil.Process(self._process.pid)
        return Vitals(process.memory_info().rss / _MB, process.num_threads(), process.num_fds())

    def settle(self, num_files: int, within_s: float) -> Vitals:
        """What it holds once it has closed all but so many files, or after so many seconds."""
        end = time.monotonic() + within_s
        while (vitals := self.vitals()).num_files > num_files and time.monotonic() < end:
            time.sleep(0.05)
        return vitals

    def log(self) -> str:
        """What it has written."""
        return self._log.read_text(errors="replace")

    def tracebacks(self) -> list[str]:
        """The last line of each traceback in the log, with where it was raised, numbers taken out."""
        found = re.findall(r"Traceback \(most recent call last\):\n((?:[ \t].*\n|\n)*)(.*)", self.log())
        return [f"{_place(frames)}: {re.sub(r'[0-9]+', 'N', last)[:150]}" for frames, last in found]

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()

    def stop(self) -> Books:
        """Ends it with SIGTERM and reads its arena."""
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(_START_S)
        arena = Arena.open(self._arena, 0)
        assert arena is not None, "the shard left no arena"
        counters, pushes = arena.counters, arena.ledger["pushes"]
        of_worker = {int(worker): int(pushes[worker]) for worker in np.flatnonzero(pushes)}
        return Books(
            code, int(counters["version"]), int(counters["pushes"]), int(counters["staleness"].sum()), of_worker
        )


def _place(frames: str) -> str:
    """File and function of a traceback's last frame."""
    found = re.findall(r'File ".*?([^/"]+/[^/"]+)", line \d+, in (\S+)', frames)
    return " in ".join(found[-1]) if found else "nowhere"
