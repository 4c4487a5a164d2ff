"""A gRPC channel for messages of megabytes, over `downpour.proto.http2.connection`.

A connection carries one call at a time, and the thread that makes the call reads and sends itself, so a call costs no
thread and no hand-over. Concurrent calls use separate connections, which are kept for later calls.

A stream of answers yields views of a reused buffer, each valid until the next answer.

Threads: any may call.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from downpour.proto.http2 import headers
from downpour.proto.http2.assembly import Buffers, PlaceMessage, Unreadable
from downpour.proto.http2.connection import Connection, Message
from downpour.proto.http2.frames import MAX_WINDOW, ProtocolError
from downpour.proto.http2.headers import Headers
from downpour.proto.http2.sockets import Deadline, PlainSocket, Socket
from downpour.proto.http2.stream import Ended, Limits, Stream
from downpour.proto.rpc.call_error import CallError, check, check_http, mapped
from downpour.proto.security.config import PLAIN, Security
from downpour.proto.security.tls import server_name

_CONNECT_AGAIN_S = 0.05
_KEEP_IDLE_S = 60.0  # a connection idle for longer is closed when another one becomes idle
_LONGEST_S = 365 * 86400.0
_BUFFERS = Buffers(12)  # of the process: for its concurrent calls, of all sizes

Serializer = Callable[[Any], Any]


class Channel:
    """Calls to one server, each with the job's token.

    When this process's certificates have been renewed, later calls use new connections: the old ones would not pass a
    handshake again.

    Args:
        address: `host:port`.
        security: Security settings of this process.
        role: Role of the server, which its certificate must name.
    """

    def __init__(self, address: str, security: Security = PLAIN, role: str = "ps") -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host.strip("[]"), port
        self._authority = address
        self._security = security
        self._role = role
        self._lock = threading.Lock()
        # Guarded by `_lock`.
        self._is_closed = False
        self._idle: list[_Connection] = []  # by time of last use; the latest is the next to be used
        self._busy: set[_Connection] = set()

    def unary_unary(
        self,
        path: str,
        request_serializer: Serializer,
        response_deserializer: Serializer,
        _registered_method: bool = False,  # generated stubs pass it
    ) -> Callable[..., Any]:
        """Returns a method with one request and one answer; arguments as those of `grpc.Channel`."""

        def call(request: Any, timeout: float | None = None, wait_for_ready: bool = False) -> Any:
            requests = [[request_serializer(request)]]
            return _only(self._call(path, requests, timeout, response_deserializer, wait_for_ready))

        return call

    def stream_unary(self, path: str, read: Serializer) -> Callable[..., Any]:
        """Returns a method with many requests and one answer; a request is sent when the next one is available."""

        def call(requests: Iterable[Message], timeout: float | None = None) -> Any:
            return _only(self._call(path, requests, timeout, read))

        return call

    def unary_stream(self, path: str, write: Serializer) -> Callable[..., Iterator[memoryview | None]]:
        """Returns a method with one request and many answers, as views; None for an answer that `place` has placed."""

        def call(
            request: Any, timeout: float | None = None, place: PlaceMessage | None = None
        ) -> Iterator[memoryview | None]:
            return self._call(path, [[write(request)]], timeout, lambda view: view, place=place)

        return call

    def stream_stream(self, path: str) -> Callable[..., Iterator[memoryview | None]]:
        """Returns a method whose answers follow its requests; both as those of the two methods above.

        It returns when all requests have been sent: one thread may then send others to other servers.
        """

        def call(
            requests: Iterable[Message], timeout: float | None = None, place: PlaceMessage | None = None
        ) -> Iterator[memoryview | None]:
            answers = self._call(path, requests, timeout, lambda view: view, place=place, announces=True)
            next(answers)
            return answers

        return call

    def close(self) -> None:
        """Ends the connections, and with them the open calls."""
        with self._lock:
            self._is_closed = True
            for connection in (*self._idle, *self._busy):
                connection.shut_down()
            for connection in self._idle:
                connection.close()
            self._idle.clear()

    def _call(
        self,
        path: str,
        requests: Iterable[Message],
        timeout: float | None,
        read: Serializer,
        wait: bool = False,
        place: PlaceMessage | None = None,
        announces: bool = False,
    ) -> Iterator[Any]:
        """Makes one call; its connection is reused if the call was completed. `announces`: yields None first."""
        end = time.monotonic() + min(_LONGEST_S if timeout is None else timeout, _LONGEST_S)
        connection = self._take(end, wait)
        is_over = False
        try:
            with mapped():
                connection.set_deadline(end)
                stream = connection.begin(self._headers(path, timeout), _carried(requests), place)
                if announces:
                    yield None
                while got := connection.next_message(stream):
                    buffer, view = got
                    if buffer is None:
                        yield None
                        continue
                    try:
                        yield _read(read, view)
                    finally:
                        _BUFFERS.give_back(buffer)
                trailers = connection.finish(stream)
                is_over = True
            check(trailers)
        except _OfCaller as carrier:
            raise carrier.args[0] from None
        finally:
            self._give_back(connection, is_over)

    def _headers(self, path: str, timeout: float | None) -> Headers:
        limit = () if timeout is None else (("grpc-timeout", f"{max(1, min(99999999, int(timeout * 1000)))}m"),)
        return (
            (":method", "POST"),
            (":scheme", "https" if self._security.certificates else "http"),
            (":path", path),
            (":authority", self._authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *limit,
            *(self._security.metadata or ()),
        )

    def _take(self, end: float, wait: bool) -> _Connection:
        """Returns an idle connection, or a new one."""
        number = self._security.certificates.latest()[0] if self._security.certificates else 0
        while True:
            with self._lock:
                if self._is_closed:
                    raise CallError(grpc.StatusCode.CANCELLED, "the channel is closed")
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                break
            if connection.number == number and connection.is_usable():
                break
            connection.close()
        connection = connection or self._connect(number, end, wait)
        with self._lock:
            if self._is_closed:  # while it connected
                connection.close()
                raise CallError(grpc.StatusCode.CANCELLED, "the channel is closed")
            self._busy.add(connection)
        return connection

    def _give_back(self, connection: _Connection, is_over: bool) -> None:
        connection.used_s = time.monotonic()
        left = []
        with self._lock:
            self._busy.discard(connection)
            if is_over and not self._is_closed:
                self._idle.append(connection)
            else:
                left.append(connection)
            while self._idle and connection.used_s - self._idle[0].used_s > _KEEP_IDLE_S:
                left.append(self._idle.pop(0))
        for each in left:
            each.shut_down()
            each.close()

    def _connect(self, number: int, end: float, wait: bool) -> _Connection:
        while True:
            try:
                with mapped():
                    return self._connect_once(number, end)
            except CallError as error:
                left = end - time.monotonic()
                if not wait or error.code() is not grpc.StatusCode.UNAVAILABLE or left <= 0:
                    raise
                time.sleep(min(_CONNECT_AGAIN_S, left))

    def _connect_once(self, number: int, end: float) -> _Connection:
        try:
            raw = socket.create_connection((self._host, int(self._port)), max(0.001, end - time.monotonic()))
        except TimeoutError:
            raise Deadline("no connection within the deadline") from None
        try:
            raw.setblocking(True)
            plain = PlainSocket(raw)
            plain.set_deadline(end)
            secure: Socket = plain
            if certificates := self._security.certificates:
                tls = certificates.over_tls(plain, server_name(self._role, certificates.job))
                tls.shake_hands()
                secure = tls
            connection = _Connection(secure, number)
            connection.greet()
        except BaseException:
            raw.close()
            raise
        return connection


class _Connection(Connection):
    """The client's side of one connection, used by one thread at a time."""

    def __init__(self, secure: Socket, number: int) -> None:
        # Bytes are only read when they are wanted, so TCP limits the peer.
        super().__init__(secure, _BUFFERS, Limits(MAX_WINDOW, MAX_WINDOW), is_server=False)
        self.number = number
        self.used_s = 0.0

    def begin(self, fields: Headers, requests: Iterable[Message], place: PlaceMessage | None) -> Stream:
        """Sends a call with all its requests, unless the server answers before the last is sent."""
        with self.lock:
            stream = self.streams.begin(place)
        before = headers.write(stream.number, fields, end=False)
        try:
            for message, is_last in _with_last(requests):
                self.send_message(stream, message, before, end=is_last)
                before = b""
            if before:  # no requests
                self.send(headers.write(stream.number, fields, end=True))
        except Ended:
            if not stream.is_whole:
                raise
        return stream

    def next_message(self, stream: Stream) -> tuple[bytearray | None, memoryview] | None:
        """See `Connection`."""
        try:
            return super().next_message(stream)
        except (Ended, Unreadable):
            check_http(stream.headers)  # the answer may not be gRPC's
            raise

    def finish(self, stream: Stream) -> Headers:
        """Closes the stream of a call that has ended; returns its trailers."""
        self.forget(stream)
        return stream.headers

    def read(self) -> None:
        """See `Connection`."""
        try:
            super().read()
        except ProtocolError as error:
            self.say_goodbye(error.code)
            raise

    def wait(self, stream: Stream, is_due: Callable[[], bool]) -> None:
        """See `Connection`: the waiting thread reads."""
        while not is_due() and not stream.is_whole:
            self.changed.release()
            try:
                self.read()
            finally:
                self.changed.acquire()
        if stream.is_whole and stream.reset is None:
            stream.reset = Ended("the server has answered")

    def is_usable(self) -> bool:
        """Whether another call may be made; reads what has arrived since the last."""
        try:
            if not self._socket.is_quiet():
                self._socket.set_deadline(time.monotonic() + 1.0)
                while not self._socket.is_quiet():
                    self.read()
        except OSError:
            return False
        return not self._endpoint.is_going_away and self.streams.last < MAX_WINDOW - 4

    def set_deadline(self, at: float) -> None:
        """Sets the deadline of every later operation on this connection, a moment of `time.monotonic()`."""
        self._socket.set_deadline(at)

    def shut_down(self) -> None:
        """Ends the connection; from any thread."""
        self._socket.shut_down()

    def close(self) -> None:
        """Closes the descriptor; by the thread that uses the connection."""
        self._socket.close()


class _OfCaller(Exception):
    """Carries an error of the caller's own requests past `mapped`: it says nothing about the connection."""


def _carried(requests: Iterable[Message]) -> Iterator[Message]:
    try:
        yield from requests
    except OSError as error:
        raise _OfCaller(error) from None


def _read(read: Serializer, view: memoryview) -> Any:
    try:
        return read(view.toreadonly())
    except DecodeError:
        raise CallError(grpc.StatusCode.INTERNAL, "the answer is no message of its method") from None


def _only(answers: Iterator[Any]) -> Any:
    found = list(itertools.islice(answers, 2))
    if len(found) != 1:
        raise CallError(grpc.StatusCode.INTERNAL, "no answer was received, or several, where one was expected")
    return found[0]


def _with_last(requests: Iterable[Message]) -> Iterator[tuple[Message, bool]]:
    """Yields each request and whether it is the last."""
    waiting = list[Message]()
    for request in requests:
        if waiting:
            yield waiting.pop(), False
        waiting.append(request)
    if waiting:
        yield waiting.pop(), True
