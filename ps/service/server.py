"""A shard's process: binds, serves, stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.rpc.call_times import CallTimes
from downpour.proto.rpc.server import Server
from downpour.proto.security.config import PLAIN, Security
from downpour.proto.security.gate import Gate
from downpour.ps.service.servicer import Servicer

# A push and a pull of every worker of the reference fleet (50) may be open at once.
_NUM_THREADS = 128


class ShardServer:
    """Serves one shard from construction until `stop`.

    Args:
        index: Index of the shard.
        host: Address to listen on.
        port: Port to listen on; 0 lets the kernel choose.
        arena: File of the arena; None for anonymous memory.
        security: Security of this process.
        group_commit: Whether pushes may be delayed so that others are applied with them.
        clock: See `Servicer`.

    Attributes:
        port: The port it listens on.

    Raises:
        ValueError: The port is taken, or the arena cannot be used.

    Example:
        with ShardServer(index=0) as server:
            server.wait()
    """

    def __init__(
        self,
        index: int,
        host: str = "127.0.0.1",
        port: int = 0,
        arena: Path | None = None,
        security: Security = PLAIN,
        *,
        group_commit: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # A queue, since the server's own wait wakes up ten times a second; this one is safe in a signal handler.
        self._stopping: SimpleQueue[threading.Event] = SimpleQueue()
        gate = Gate(security)
        self._servicer = Servicer(index, arena, self.stop_soon, gate, group_commit=group_commit, clock=clock)
        self._server = Server(self._servicer.handler(), host, port, _NUM_THREADS, security, gate)
        self.port = self._server.port

    @property
    def ready(self) -> bool:
        """Whether the shard holds parameters."""
        return self._servicer.ready

    @property
    def times(self) -> CallTimes:
        """How long its calls took."""
        return self._server.times

    def status(self) -> pb.StatusReply:
        """The counters of this process: `ParameterServer.Status` also counts pushes of those before it."""
        return self._servicer.counted(since_start=True)

    def __enter__(self) -> ShardServer:
        """Returns the server, which is serving already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stops with a grace period."""
        self.stop()

    def stop(self, grace_s: float = 5.0) -> None:
        """Refuses new calls, lets open ones finish for `grace_s` seconds, then returns."""
        self.stop_soon(grace_s)
        self.wait()

    def stop_soon(self, grace_s: float = 5.0) -> None:
        """Begins to stop and returns at once, so a signal handler or a call may use it; `wait` then returns."""
        self._stopping.put(self._server.stop(grace_s))

    def wait(self) -> None:
        """Blocks until the server has stopped, then closes the shard's arena."""
        stopped = self._stopping.get()
        self._stopping.put(stopped)  # for other callers of `wait`
        stopped.wait()
        self._servicer.close()
