"""A shard that is closed to strangers, a worker that pushes all the while, and sockets that say nothing."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from downpour.launch import certs
from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.security.config import Security
from downpour.ps.layout import Variable, lay_out
from downpour.ps.policy.named import to_message
from downpour.ps.policy.pace import Async
from downpour.ps.policy.rules import SGD
from downpour.ps.policy.schedules import Constant
from downpour.ps.policy.staleness import Keep
from downpour.worker.exchange.clients import ShardClient
from tests.certificates import JOB, TOKEN, security
from tests.conftest import wait_until

LAYOUT = lay_out([Variable("w", (1000,))], 1)
_ZEROS = np.zeros(1000, np.float32)


class GuardedShard:
    """One shard process with TLS and token, that holds parameters; a context manager.

    Attributes:
        certificates: Folder of the job's certificates, one folder a role in it.
        token_file: Of the job.
        port: The shard listens on.
        pid: Of its process.
    """

    def __init__(self, folder: Path) -> None:
        self.certificates, self.token_file, self._log = folder / "certs", folder / "token", folder / "log"
        certs.make(JOB, self.certificates)
        self.token_file.write_text(TOKEN + "\n")
        port_file = folder / "port"
        command = [
            *(sys.executable, "-m", "downpour.launch.ps", "--index=0", "--host=127.0.0.1", f"--port_file={port_file}"),
            *(f"--tls={self.certificates / 'ps'}", f"--token_file={self.token_file}", f"--arena={folder / 'arena'}"),
            f"--die_with_parent={os.getpid()}",
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stderr=log)
        wait_until(lambda: port_file.exists() or self._process.poll() is not None, "the shard's port")
        self.port, self.pid = int(port_file.read_text()), self._process.pid
        self._chief = self.client("chief")
        told = pb.ShardSpecification(
            fingerprint=LAYOUT.fingerprint,
            layout=LAYOUT.canonical,
            rule=to_message(SGD()),
            schedule=to_message(Constant(0.1)),
            pace=to_message(Async()),
            staleness=to_message(Keep()),
            num_workers=4,
        )
        self._chief.initialize(told, _ZEROS)

    def __enter__(self) -> GuardedShard:
        return self

    def __exit__(self, *error: object) -> None:
        self._chief.close()
        self._process.terminate()
        assert self._process.wait(120) == 0, self.log

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self._log.read_text()

    def security(self, role: str) -> Security:
        """Of a process of the job."""
        return security(self.certificates, role, self.token_file)

    def client(self, role: str, give_up_after_s: float = 30.0) -> ShardClient:
        """Of a process of the job."""
        return ShardClient(0, self.address, LAYOUT, give_up_after_s, self.security(role))

    def guests(self) -> pb.StatusReply.Guests:
        """Who has come."""
        return self._chief.status().guests

    def pushes(self) -> int:
        return self._chief.status().pushes


def push(client: ShardClient, sequence: int) -> pb.PushReply:
    """One push of worker 0."""
    header = pb.PushHeader(fingerprint=LAYOUT.fingerprint, worker=0, incarnation=1, sequence=sequence)
    return client.push(header, [codec.Outgoing(0, 1000, codec.FLOAT32, _ZEROS)])


class Pusher:
    """A worker that pushes from its start to its end; a context manager.

    Attributes:
        acknowledged: Pushes so far.
        longest_s: That one of them took.
    """

    def __init__(self, shard: GuardedShard) -> None:
        self.acknowledged, self.longest_s = 0, 0.0
        self._client = shard.client("worker")
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Pusher:
        self._thread.start()
        self.wait_for_more()
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.set()
        self._thread.join()
        self._client.close()

    def wait_for_more(self, number: int = 20) -> None:
        """Until so many more are acknowledged."""
        wanted = self.acknowledged + number
        wait_until(lambda: self.acknowledged >= wanted or not self._thread.is_alive(), "a push")
        assert self.acknowledged >= wanted, "the worker has ended"

    def _run(self) -> None:
        while not self._ending.is_set():
            begin = time.monotonic()
            push(self._client, self.acknowledged + 1)
            self.acknowledged += 1
            self.longest_s = max(self.longest_s, time.monotonic() - begin)


class SilentConnections:
    """Connections that say nothing; a context manager."""

    def __init__(self, port: int, number: int) -> None:
        _allow_files(number + 200)
        self._open = [socket.socket() for _ in range(number)]
        for one in self._open:
            one.setblocking(False)  # the server lets them in at its own pace
            one.connect_ex(("127.0.0.1", port))

    def __enter__(self) -> SilentConnections:
        return self

    def __exit__(self, *error: object) -> None:
        for one in self._open:
            one.close()

    def num_open(self) -> int:
        """Those that the server has not closed yet."""
        for one in list(self._open):
            try:
                ended = one.recv(1) == b""
            except BlockingIOError:
                continue
            except OSError:
                ended = True
            if ended:
                one.close()
                self._open.remove(one)
        return len(self._open)


def _allow_files(number: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < number:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
