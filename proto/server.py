"""A gRPC server for messages of megabytes, over `downpour.proto.http2`.

It takes the handlers that grpcio's server takes and calls them in the same way. What a stream of requests without a
deserializer gives is a view of a buffer that is used again, good until the next; what a method without a serializer
answers is the parts of a message, each of them bytes.

Threads: one accepts and keeps connections that have said nothing yet; one a connection reads; a pool runs the calls.
"""

from __future__ import annotations

import collections
import contextlib
import math
import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from absl import logging

from downpour.proto import calls, frames
from downpour.proto.assembly import Buffers
from downpour.proto.http2 import Connection, Stream
from downpour.proto.security import PLAIN, Gate, Security
from downpour.proto.sockets import Closed, Deadline, PlainSocket, Socket
from downpour.proto.transport import (
    CALLS_PER_THREAD,
    HANDSHAKE_S,
    MAX_STREAMS,
    ErrorInterceptor,
    cannot_listen,
    max_connections,
)

_FREE_BUFFERS = 12  # of all sizes
_BACKLOG = 512
_STALL_S = 10.0  # without a byte that a caller takes, or sends while it is waited for, after which it counts as gone


@dataclass(frozen=True)
class _Details:
    """What `grpc.HandlerCallDetails` has."""

    method: str
    invocation_metadata: tuple[tuple[str, str], ...] = ()


class Server:
    """Serves handlers until `stop`.

    Args:
        handler: The methods.
        host: Address to listen on.
        port: Port to listen on; 0 lets the kernel choose.
        num_threads: Calls that may run at once; more wait.
        security: Of this process.
        gate: What admits calls and counts.

    Attributes:
        port: The port it listens on.

    Raises:
        ValueError: The address cannot be bound, or not with this security.
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
        self._handler = handler
        self._security = security
        self._gate = gate or Gate(security)
        self._interceptor = ErrorInterceptor(self._gate)
        self._bound: dict[str, Any] = {}
        self._most_calls = CALLS_PER_THREAD * num_threads
        self._most_threads = num_threads
        self._most_connections = max_connections()
        self._waiting = queue.SimpleQueue[calls.Call | None]()  # for a thread; None ends one
        self.buffers = Buffers(_FREE_BUFFERS)
        self._changed = threading.Condition()
        # Guarded by `_changed`.
        self._connections: set[_Connection] = set()
        self._num_calls = self._num_threads = 0
        self._stopping: threading.Event | None = None
        try:
            self._listener = _listen(host.strip("[]"), port)
        except (OSError, OverflowError):
            raise cannot_listen(host, port) from None
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._wake, self._woken = socket.socketpair()
        self._accepting = threading.Thread(target=self._accept, name="accept", daemon=True)
        self._accepting.start()

    def stop(self, grace_s: float | None) -> threading.Event:
        """Refuses new calls and returns at once; the event is set when open ones have ended, at most so much later."""
        with self._changed:
            if self._stopping is None:
                self._stopping = threading.Event()
                threading.Thread(target=self._stop, args=(grace_s or 0.0,), name="stop", daemon=True).start()
            return self._stopping

    def run(self, call: calls.Call) -> bool:
        """Has a thread of the pool run a call; false if there are too many, or the server stops."""
        with self._changed:
            if self._num_calls >= self._most_calls or self._stopping:
                return False
            self._num_calls += 1
            if self._num_threads < min(self._num_calls, self._most_threads):
                self._num_threads += 1
                threading.Thread(target=self._work, name="call", daemon=True).start()
        self._waiting.put(call)
        return True

    @property
    def is_stopping(self) -> bool:
        """Whether new calls are refused."""
        return self._stopping is not None

    def bound(self, method: str) -> Any:
        """The handler of a method, which lets the call through the gate first; None if there is none."""
        if method not in self._bound:
            found = self._interceptor.intercept_service(self._handler.service, _Details(method))
            if found is None:
                return None
            self._bound[method] = found
        return self._bound[method]

    def _work(self) -> None:
        while call := self._waiting.get():
            try:
                call.run()
            except Exception:  # the thread is for others, too
                logging.exception("a call could not be ended")
            with self._changed:
                self._num_calls -= 1
                self._changed.notify_all()

    def _stop(self, grace_s: float) -> None:
        assert self._stopping is not None
        end = time.monotonic() + grace_s
        self._wake.send(b"x")
        self._accepting.join()
        self._wake.close()
        self._woken.close()  # only now: the other thread may have ended by itself before it was woken
        with self._changed:
            for connection in list(self._connections):
                connection.go_away()
            self._changed.wait_for(lambda: not self._num_calls, max(0.0, end - time.monotonic()))
            for connection in list(self._connections):
                connection.shut_down()
            self._changed.wait_for(lambda: not self._num_calls and not self._connections, 1.0)
        for _ in range(self._num_threads):
            self._waiting.put(None)
        self._stopping.set()

    def _accept(self) -> None:
        """Takes connections; gives one a thread when it has said something."""
        selector = selectors.DefaultSelector()
        selector.register(self._listener, selectors.EVENT_READ)
        selector.register(self._woken, selectors.EVENT_READ)
        silent: collections.OrderedDict[socket.socket, float] = collections.OrderedDict()  # until when each may be
        while not self._stopping:
            wait_s = max(0.0, next(iter(silent.values())) - time.monotonic()) if silent else None
            for key, _ in selector.select(wait_s):
                if key.fileobj is self._listener:
                    for raw in self._arrivals(len(silent)):
                        silent[raw] = time.monotonic() + HANDSHAKE_S
                        selector.register(raw, selectors.EVENT_READ)
                elif key.fileobj in silent:
                    raw = key.fileobj  # type: ignore[assignment]
                    selector.unregister(raw)
                    del silent[raw]
                    self._serve(raw)
            while silent and next(iter(silent.values())) <= time.monotonic():
                raw, _ = silent.popitem(last=False)
                selector.unregister(raw)
                raw.close()
        selector.close()
        for raw in (*silent, self._listener):
            raw.close()

    def _arrivals(self, num_silent: int) -> Iterator[socket.socket]:
        """Connections that wait to be accepted, a few at a time; those beyond what may be are closed."""
        for _ in range(_BACKLOG):
            try:
                raw, _ = self._listener.accept()
            except OSError:  # no more, or no descriptors
                return
            if len(self._connections) + num_silent >= self._most_connections:
                raw.close()
                continue
            num_silent += 1
            if self._security.certificates:
                self._gate.connection_began()
            yield raw

    def _serve(self, raw: socket.socket) -> None:
        try:
            connection = _Connection(self, raw)
        except OSError:  # it has ended already
            raw.close()
            return
        with self._changed:
            self._connections.add(connection)
        threading.Thread(target=self._read, args=(connection,), name="read", daemon=True).start()

    def _read(self, connection: _Connection) -> None:
        try:
            connection.run(self._security)
        finally:
            with self._changed:
                self._connections.discard(connection)
                self._changed.notify_all()


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens; on every address, whether of IPv4 or of IPv6, if the host says so."""
    if host in ("0.0.0.0", "::") and socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # IPv6 may be switched off
            return socket.create_server(("::", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


class _Connection:
    """One connection from accepting to closing."""

    def __init__(self, server: Server, raw: socket.socket) -> None:
        raw.setblocking(True)
        self._server = server
        self._plain = PlainSocket(raw, stall_s=_STALL_S)
        host, port = raw.getpeername()[:2]
        self.peer = f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
        self.names: list[str] = []
        self._http2: _Http2 | None = None

    def run(self, security: Security) -> None:
        """Reads until the end, in a thread of its own."""
        try:
            self._plain.set_deadline(time.monotonic() + HANDSHAKE_S)
            secure: Socket = self._plain
            if security.certificates:
                over_tls = security.certificates.over_tls(self._plain, None)
                self.names, secure = over_tls.names, over_tls
            connection = _Http2(self._server, self, secure)
            connection.greet()  # also for those who speak something else, so that they can tell
            preface = memoryview(bytearray(len(frames.PREFACE)))
            secure.read_into(preface)
            if preface != frames.PREFACE:
                return
            self._plain.set_deadline(None)
            self._http2 = connection
            if self._server.is_stopping:
                self.go_away()
            while True:
                connection.read_frame()
        except OSError as error:  # it has ended, or is none of ours
            logging.debug("connection of %s: %s", self.peer, error)
        finally:
            self._plain.shut_down()
            if self._http2:
                self._http2.break_off(Closed("Socket closed"))
                self._http2.settle()
            self._plain.close()

    def go_away(self) -> None:
        """Tells the peer to begin no more calls."""
        if self._http2:
            with contextlib.suppress(OSError):
                last = frames.MAX_WINDOW.to_bytes(4, "big")  # calls that are under way go on
                self._http2.queue(frames.frame(frames.GOAWAY, 0, 0, last + bytes(4)))

    def silent_s(self) -> float:
        """See `PlainSocket`."""
        return self._plain.silent_s()

    def shut_down(self) -> None:
        """Ends it at once."""
        self._plain.shut_down()


class _Http2(Connection):
    """The server's side: every call in a thread of the pool."""

    def __init__(self, server: Server, owner: _Connection, secure: Socket) -> None:
        super().__init__(
            secure, server.buffers, is_server=True, max_streams=MAX_STREAMS, initial_window=frames.DEFAULT_WINDOW
        )
        self._server = server
        self._owner = owner

    def wait(self, stream: Stream, is_due: Callable[[], bool]) -> None:
        """See `Connection`: the reader brings what is waited for, from a caller that still says something."""
        end = math.inf if stream.deadline is None else stream.deadline
        while not self.changed.wait_for(is_due, min(_STALL_S, end - time.monotonic())):
            if time.monotonic() >= end:
                raise Deadline("the call's deadline has passed")
            if self._owner.silent_s() >= _STALL_S:
                raise Closed(f"the caller has said nothing for {_STALL_S} s")

    def on_request(self, stream: Stream) -> None:
        """See `Connection`."""
        with self.lock:
            num_open = len(self.streams)
        headers = dict(stream.headers)
        handler = self._server.bound(headers.get(":path", ""))
        call = calls.Call(handler, headers, self, stream, self._owner, self._server.buffers)
        if num_open > MAX_STREAMS or self._server.is_stopping:
            self.forget(stream)
            self.queue(frames.reset(stream.number, frames.REFUSED_STREAM))
        elif not self._server.run(call):
            self.forget(stream)
            status = grpc.StatusCode.RESOURCE_EXHAUSTED
            self.queue(calls.answer(stream.number, status, "too many calls are open"))

    def settle(self) -> None:
        """Waits for the calls that the connection's end has ended, so that nobody sends into a closed descriptor."""
        with self.lock:
            self.changed.wait_for(lambda: not self.streams)
