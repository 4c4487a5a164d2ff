"""A gRPC server for messages of megabytes, over `downpour.proto.http2.connection`.

It accepts the handlers of grpcio's server and calls them in the same way. A stream of requests without a deserializer
yields views of a reused buffer, each valid until the next; a method without a serializer returns the parts of a
message, each of them bytes.

Threads: one accepts (`downpour.proto.rpc.acceptor`), one reads for each connection from which a call has been admitted,
a pool runs the calls. There are at most 2,048 + `num_threads` + 2; fewer where descriptors are few (`max_connections`).
"""

from __future__ import annotations

import contextlib
import queue
import resource
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from absl import logging

from downpour.proto.http2 import tcp_info
from downpour.proto.http2.assembly import Buffers
from downpour.proto.http2.sockets import host_and_port
from downpour.proto.rpc.acceptor import Acceptor
from downpour.proto.rpc.call_times import CallTimes
from downpour.proto.rpc.server_connection import ServerConnection
from downpour.proto.security.config import PLAIN, Security
from downpour.proto.security.gate import Gate

CALLS_PER_THREAD = 8  # running or queued; more are refused, and retried by their callers
_MAX_CONNECTIONS = 2048  # from which calls have been admitted
_MAX_STRANGERS, _MAX_STRANGERS_OVER_TLS = 256, 128  # of 30 KB each, and of 110 KB
_SPARE_FILES = 512  # of the process, beside those: unauthenticated connections, the arena, checkpoints
_FREE_BUFFERS = 12  # of all sizes
_BACKLOG = 512
_THREAD_IDLE_S = 10.0  # between checks for surplus threads of the pool
_END_S = 2.0  # for the threads of connections to end after these were shut down


@dataclass(frozen=True)
class _Details:
    """The fields of `grpc.HandlerCallDetails`."""

    method: str
    invocation_metadata: tuple[tuple[str, str], ...] = ()


class Server:
    """Serves handlers until `stop`.

    Args:
        handler: The methods.
        host: Address to listen on.
        port: Port to listen on; 0 lets the kernel choose.
        num_threads: Calls that may run at once; more are queued.
        security: Security settings of this process.
        gate: Admits and counts calls; a new one by default.

    Attributes:
        port: The port it listens on.
        buffers: For messages.
        gate: The gate in use.
        times: How long calls took.

    Raises:
        ValueError: The address cannot be bound, or this security does not allow it.
    """

    def __init__(
        self,
        handler: grpc.GenericRpcHandler,
        host: str,
        port: int,
        num_threads: int,
        security: Security = PLAIN,
        gate: Gate | None = None,
    ) -> None:
        security.check_host(host)
        tcp_info.is_usable()  # its check waits, and connections need the result
        self._handler = handler
        self._security = security
        self.gate = gate or Gate(security)
        self.times = CallTimes()
        self._found: dict[str, Any] = {}
        self._most_jobs = CALLS_PER_THREAD * num_threads
        self._most_threads = num_threads
        self._most_connections = max_connections()
        self._jobs = queue.SimpleQueue[Callable[[], None] | None]()  # for the pool; None ends a thread
        self.buffers = Buffers(_FREE_BUFFERS)
        self._changed = threading.Condition()
        # Guarded by `_changed`.
        self._connections: set[ServerConnection] = set()  # from which a call has been admitted
        self._num_jobs = self._num_threads = 0
        self._most_lately, self._most_until = 0, 0.0  # peak of concurrent jobs, for each a thread; counted until then
        self._stopping: threading.Event | None = None
        try:
            listener = _listen(host.strip("[]"), port)
        except (OSError, OverflowError):
            raise ValueError(
                f"cannot listen on {host_and_port(host, port)}: the port is taken or the host is not this machine's; "
                "give another --port (0 lets the kernel choose)"
            ) from None
        self.port: int = listener.getsockname()[1]
        most = max_strangers(with_tls=security.certificates is not None)
        self._acceptor = Acceptor(listener, self._connect, self._admit, self._look_after, self.gate, most)
        self._acceptor.start()

    def stop(self, grace_s: float | None) -> threading.Event:
        """Refuses new calls and returns at once; sets the event when open ones have ended, at most `grace_s` later."""
        with self._changed:
            if self._stopping is None:
                self._stopping = threading.Event()
                threading.Thread(target=self._stop, args=(grace_s or 0.0,), name="stop", daemon=True).start()
            return self._stopping

    @property
    def is_stopping(self) -> bool:
        """Whether new calls are refused."""
        return self._stopping is not None

    def find(self, method: str) -> Any:
        """Returns the handler of a method; None if there is none."""
        if method not in self._found:
            found = self._handler.service(_Details(method))
            if found is None:
                return None
            self._found[method] = found
        return self._found[method]

    def run(self, job: Callable[[], None]) -> bool:
        """Queues a job for the pool; returns False if too many are queued, or the server stops."""
        with self._changed:
            if self._num_jobs >= self._most_jobs or self._stopping:
                return False
            if self._num_threads < min(self._num_jobs + 1, self._most_threads) and not self._add_thread():
                return False
            self._num_jobs += 1
            self._most_lately = max(self._most_lately, min(self._num_jobs, self._most_threads))
        self._jobs.put(job)
        return True

    def charge(self, seconds: float) -> None:
        """Deducts the cost of a connection that was ended for what it sent from the credit of unauthenticated ones."""
        self._acceptor.charge(seconds)

    def _add_thread(self) -> bool:
        """Starts a thread; returns whether the pool has one at least. Called with the lock held."""
        try:
            threading.Thread(target=self._work, name="call", daemon=True).start()
        except RuntimeError as error:  # the machine has none left
            logging.log_every_n_seconds(logging.WARNING, "no more threads for calls: %s", 60, error)
            return self._num_threads > 0
        self._num_threads += 1
        return True

    def _work(self) -> None:
        while job := self._jobs.get():
            try:
                job()
            except Exception:  # the thread runs other calls, too
                logging.exception("a call could not be ended")
            with self._changed:
                self._num_jobs -= 1
                self._changed.notify_all()

    def _end_threads(self, now: float) -> None:
        """Ends the threads of the pool that have been surplus for a while."""
        with self._changed:
            if now < self._most_until:
                return
            for _ in range(self._num_threads - self._most_lately):
                self._num_threads -= 1
                self._jobs.put(None)
            self._most_lately, self._most_until = self._num_jobs, now + _THREAD_IDLE_S

    def _stop(self, grace_s: float) -> None:
        assert self._stopping is not None
        end = time.monotonic() + grace_s
        self._acceptor.stop()
        with contextlib.suppress(RuntimeError):  # the machine has no threads left
            # In a thread of its own, since sending blocks if a peer does not read.
            threading.Thread(target=self._go_away, name="goodbye", daemon=True).start()
        with self._changed:
            self._changed.wait_for(lambda: not self._num_jobs, max(0.0, end - time.monotonic()))
        for connection in self._members():
            connection.shut_down()
        with self._changed:
            self._changed.wait_for(lambda: not self._num_jobs and not self._connections, _END_S)
        with self._changed:
            for _ in range(self._num_threads):
                self._jobs.put(None)
        self._stopping.set()

    def _go_away(self) -> None:
        for connection in self._members():
            connection.go_away()

    def _members(self) -> list[ServerConnection]:
        with self._changed:
            return list(self._connections)

    def _connect(self, raw: socket.socket) -> ServerConnection:
        return ServerConnection(self, raw, self._security)

    def _admit(self, connection: ServerConnection) -> bool:
        """Starts a connection's thread, if there is room; returns whether there is."""
        with self._changed:
            has_room = len(self._connections) < self._most_connections
            if has_room:
                self._connections.add(connection)
        if has_room:
            try:
                threading.Thread(target=self._read, args=(connection,), name="read", daemon=True).start()
                return True
            except RuntimeError as error:  # the machine has none left
                logging.log_every_n_seconds(logging.WARNING, "no more threads for connections: %s", 60, error)
        self.gate.connection_dropped()
        connection.close(OSError("the server has no room for the connection"))  # none of its calls runs yet
        self._forget(connection)
        return False

    def _read(self, connection: ServerConnection) -> None:
        try:
            connection.run()
        finally:
            self._forget(connection)

    def _forget(self, connection: ServerConnection) -> None:
        with self._changed:
            self._connections.discard(connection)
            self._changed.notify_all()

    def _look_after(self) -> None:
        self.gate.log()
        now = time.monotonic()
        self._end_threads(now)
        for connection in self._members():
            connection.look_after(now)


def max_connections() -> int:
    """Returns the limit of admitted connections; the process needs some descriptors for other things."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(64, min(_MAX_CONNECTIONS, files - _SPARE_FILES))


def max_strangers(*, with_tls: bool) -> int:
    """Returns the limit of unauthenticated connections, which may take some megabytes together."""
    most = _MAX_STRANGERS_OVER_TLS if with_tls else _MAX_STRANGERS
    return max(16, min(most, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))


def handler_of(register: Callable[[Any], None]) -> grpc.GenericRpcHandler:
    """Returns the handler that generated code, `add_..._to_server` of some servicer, adds to a server."""
    found: list[grpc.GenericRpcHandler] = []

    class Registry:
        def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
            found.extend(handlers)

        def add_registered_method_handlers(self, service: str, methods: Any) -> None:
            """Ignored: they are the same handlers."""

    register(Registry())
    [handler] = found
    return handler


def _listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket; it listens on IPv4 and IPv6 if the host stands for every address."""
    if host in ("0.0.0.0", "::") and socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # IPv6 may be switched off
            return socket.create_server(("::", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)
