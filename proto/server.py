"""A gRPC server for messages of megabytes, over `downpour.proto.http2`.

It takes the handlers that grpcio's server takes and calls them in the same way. What a stream of requests without a
deserializer gives is a view of a buffer that is used again, good until the next; what a method without a serializer
answers is the parts of a message, each of them bytes.

Threads: one accepts and keeps connections that have said nothing yet; one a connection reads; a pool runs the calls.
"""

from __future__ import annotations

import collections
import contextlib
import selectors
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from absl import logging

from downpour.proto import http2
from downpour.proto.http2 import Buffers, Connection, Ended, Headers, Stream, TooLarge
from downpour.proto.security import PLAIN, Gate, Security
from downpour.proto.sockets import Deadline, PlainSocket, Socket, TlsSocket
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
_CONTENT = (("content-type", "application/grpc"),)
_BEGIN: Headers = ((":status", "200"), *_CONTENT)
_UNITS_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_MAX_MESSAGE_CHARACTERS = 4096  # of an error


class BrokenOff(grpc.RpcError):  # type: ignore[misc]  # grpc has no types
    """What a call raises when its own requests end in the middle."""


class _Aborted(Exception):
    """A call ends with a status."""


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
        self._most_connections = max_connections()
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="call")
        self.buffers = Buffers(_FREE_BUFFERS)
        self._changed = threading.Condition()
        # Guarded by `_changed`.
        self._connections: set[_Connection] = set()
        self._num_calls = 0
        self._stopping: threading.Event | None = None
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host.strip("[]"), port), family=family, backlog=_BACKLOG)
        except (OSError, OverflowError):
            raise cannot_listen(host, port) from None
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._wake, self._woken = socket.socketpair()
        threading.Thread(target=self._accept, name="accept", daemon=True).start()

    def stop(self, grace_s: float | None) -> threading.Event:
        """Refuses new calls and returns at once; the event is set when open ones have ended, at most so much later."""
        with self._changed:
            if self._stopping is None:
                self._stopping = threading.Event()
                threading.Thread(target=self._stop, args=(grace_s or 0.0,), name="stop", daemon=True).start()
            return self._stopping

    def begins(self) -> bool:
        """A call begins; false if there are too many, or the server stops."""
        with self._changed:
            if self._num_calls >= self._most_calls or self._stopping:
                return False
            self._num_calls += 1
            return True

    def ended(self) -> None:
        """A call that `begins` has let in is over."""
        with self._changed:
            self._num_calls -= 1
            self._changed.notify_all()

    @property
    def is_stopping(self) -> bool:
        """Whether new calls are refused."""
        return self._stopping is not None

    def submit(self, run: Callable[[], None]) -> None:
        """Has a thread of the pool run a call."""
        self._pool.submit(run)

    def bound(self, method: str) -> Any:
        """The handler of a method, which lets the call through the gate first; None if there is none."""
        if method not in self._bound:
            found = self._interceptor.intercept_service(self._handler.service, _Details(method))
            if found is None:
                return None
            self._bound[method] = found
        return self._bound[method]

    def _stop(self, grace_s: float) -> None:
        assert self._stopping is not None
        end = time.monotonic() + grace_s
        self._wake.send(b"x")
        with self._changed:
            for connection in list(self._connections):
                connection.go_away()
            self._changed.wait_for(lambda: not self._num_calls, max(0.0, end - time.monotonic()))
            for connection in list(self._connections):
                connection.shut_down()
            self._changed.wait_for(lambda: not self._num_calls and not self._connections, 1.0)
        self._pool.shutdown(wait=False)
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
        for raw in (*silent, self._listener, self._wake, self._woken):
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
        connection = _Connection(self, raw)
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


class _Connection:
    """One connection from accepting to closing."""

    def __init__(self, server: Server, raw: socket.socket) -> None:
        raw.setblocking(True)
        self._server = server
        self._plain = PlainSocket(raw)
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
                over_tls = TlsSocket(self._plain, security.certificates.context(is_server=True), None)
                self.names, secure = over_tls.names, over_tls
            connection = _Http2(self._server, self, secure)
            connection.greet()  # also for those who speak something else, so that they can tell
            preface = memoryview(bytearray(len(http2.PREFACE)))
            secure.read_into(preface)
            if preface != http2.PREFACE:
                return
            self._plain.set_deadline(None)
            self._http2 = connection
            if self._server.is_stopping:
                self.go_away()
            while True:
                connection.read_frame()
        except (OSError, ssl.SSLError) as error:  # it has ended, or is none of ours
            if self._http2:
                self._http2.break_off(error)
        finally:
            self._plain.shut_down()
            if self._http2:
                self._http2.settle()
            self._plain.close()

    def go_away(self) -> None:
        """Tells the peer to begin no more calls."""
        if self._http2:
            with contextlib.suppress(OSError):
                self._http2.queue(http2.frame(http2.GOAWAY, 0, 0, http2.MAX_WINDOW.to_bytes(4, "big") + bytes(4)))

    def shut_down(self) -> None:
        """Ends it at once."""
        self._plain.shut_down()


class _Http2(Connection):
    """The server's side: every call in a thread of the pool."""

    def __init__(self, server: Server, owner: _Connection, secure: Socket) -> None:
        super().__init__(
            secure, server.buffers, is_server=True, max_streams=MAX_STREAMS, initial_window=http2.DEFAULT_WINDOW
        )
        self._server = server
        self._owner = owner

    def wait(self, stream: Stream, is_due: Callable[[], bool]) -> None:
        """See `Connection`: the reader brings what is waited for."""
        left = None if stream.deadline is None else stream.deadline - time.monotonic()
        if not self.changed.wait_for(is_due, left):
            raise Deadline("the call's deadline has passed")

    def on_request(self, stream: Stream) -> None:
        """See `Connection`."""
        with self.changed:
            num_open = len(self.streams)
        if num_open > MAX_STREAMS or self._server.is_stopping:
            self.forget(stream)
            self.queue(http2.frame(http2.RST_STREAM, 0, stream.number, http2.REFUSED_STREAM.to_bytes(4, "big")))
        elif not self._server.begins():
            self.forget(stream)
            refusal = _trailers(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls are open", ())
            self.queue(http2.headers_frame(stream.number, (*_BEGIN, *refusal), end=True))
        else:
            call = _Call(self._server, self, stream, self._owner)
            self._server.submit(call.run)

    def settle(self) -> None:
        """Waits for the calls that the connection's end has ended, so that nobody sends into a closed descriptor."""
        with self.changed:
            self.changed.wait_for(lambda: not self.streams)

    def forget(self, stream: Stream) -> None:
        """See `Connection`."""
        super().forget(stream)
        with self.changed:
            self.changed.notify_all()


class _Call:
    """One call; what a servicer sees of it is what `grpc.ServicerContext` has."""

    def __init__(self, server: Server, connection: _Http2, stream: Stream, owner: _Connection) -> None:
        headers = dict(stream.headers)
        self._server = server
        self._connection = connection
        self._stream = stream
        self._owner = owner
        self._method = headers.get(":path", "")
        self._metadata = tuple((key, value) for key, value in stream.headers if not key.startswith(":"))
        self._trailing: tuple[tuple[str, str], ...] = ()
        self._status = grpc.StatusCode.OK
        self._words = ""
        self._sent = False  # anything
        stream.deadline = _deadline(headers.get("grpc-timeout"))

    def run(self) -> None:
        """Runs the call to its end."""
        try:
            self._run()
        except _Aborted:
            pass
        except TooLarge as error:
            self._status, self._words = grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)
        except (grpc.RpcError, Ended, OSError):
            if self._status is grpc.StatusCode.OK:
                self._status, self._words = grpc.StatusCode.CANCELLED, "the call was broken off"
        except Exception as error:  # whatever it is, the caller must hear of it, as from grpcio's server
            logging.exception("%s failed", self._method)
            self._status, self._words = grpc.StatusCode.UNKNOWN, f"{type(error).__name__}: {error}"
        finally:
            try:
                self._finish()
            finally:
                self._connection.forget(self._stream)
                self._server.ended()

    def _run(self) -> None:
        handler = self._server.bound(self._method)
        if handler is None:
            self.abort(grpc.StatusCode.UNIMPLEMENTED, f"there is no method {self._method[:100]}")
        read = handler.request_deserializer or (lambda message: message)
        write = handler.response_serializer
        messages = self._messages(read)
        request = messages if handler.request_streaming else self._only(messages)
        if handler.response_streaming:
            for answer in (handler.unary_stream or handler.stream_stream)(request, self):
                self._send([write(answer)] if write else answer)
        else:
            self._send([write((handler.unary_unary or handler.stream_unary)(request, self))])
        messages.close()

    def _messages(self, read: Callable[[Any], Any]) -> Generator[Any, None, None]:
        """The caller's messages; each is good until the next is asked for."""
        self._connection.want(self._stream)
        while True:
            try:
                got = self._connection.next_message(self._stream)
            except (Ended, OSError, TooLarge) as error:
                if isinstance(error, TooLarge):
                    self._status, self._words = grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)
                raise BrokenOff(str(error)) from None
            if got is None:
                return
            buffer, view = got
            try:
                yield read(view.toreadonly())
            finally:
                self._server.buffers.give_back(buffer)

    def _only(self, messages: Iterator[Any]) -> Any:
        for message in messages:
            return message
        self.abort(grpc.StatusCode.UNIMPLEMENTED, "the call carries no request")

    def _send(self, message: http2.Message) -> None:
        before = b"" if self._sent else http2.headers_frame(self._stream.number, _BEGIN, end=False)
        self._sent = True
        self._connection.send_message(self._stream, message, before)

    def _finish(self) -> None:
        """Sends the status."""
        trailers = _trailers(self._status, self._words, self._trailing)
        frames = http2.headers_frame(self._stream.number, trailers if self._sent else (*_BEGIN, *trailers), end=True)
        if not self._stream.is_whole:  # nobody reads the rest
            frames += http2.frame(http2.RST_STREAM, 0, self._stream.number, http2.NO_ERROR.to_bytes(4, "big"))
        if self._stream.reset is None or isinstance(self._stream.reset, TooLarge):
            with contextlib.suppress(OSError):  # the caller has gone
                self._connection.send(frames)

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        """See `grpc.ServicerContext`."""
        self._status, self._words = code, details
        raise _Aborted

    def set_trailing_metadata(self, metadata: tuple[tuple[str, str], ...]) -> None:
        """See `grpc.ServicerContext`."""
        self._trailing = metadata

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """See `grpc.ServicerContext`."""
        return self._metadata

    def time_remaining(self) -> float | None:
        """See `grpc.ServicerContext`."""
        deadline = self._stream.deadline
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    def peer(self) -> str:
        """See `grpc.ServicerContext`."""
        return self._owner.peer

    def auth_context(self) -> dict[str, list[bytes]]:
        """See `grpc.ServicerContext`."""
        return {"peer_dns": [name.encode() for name in self._owner.names]}


def _trailers(status: grpc.StatusCode, words: str, metadata: Headers) -> Headers:
    number = ("grpc-status", str(status.value[0]))
    if status is grpc.StatusCode.OK:
        return (number, *metadata)
    message = urllib.parse.quote(words[:_MAX_MESSAGE_CHARACTERS], safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}")
    return (number, ("grpc-message", message), *metadata)


def _deadline(timeout: str | None) -> float | None:
    """The moment that a `grpc-timeout` names."""
    if not timeout:
        return None
    number, unit = timeout[:-1], timeout[-1]
    if not number.isascii() or not number.isdigit() or len(number) > 8 or unit not in _UNITS_S:
        return None
    return time.monotonic() + int(number) * _UNITS_S[unit]
