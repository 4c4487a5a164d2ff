"""The calls of one server connection that have not ended: which wait, and when each goes to a thread of the pool.

A call is admitted or refused by its header fields. An admitted one waits until its first message has arrived, so that
a caller that sends nothing occupies no thread. Until a message has been decoded, and again after one that could not
be, one call runs at a time of those whose first message is whole, and one of those whose first message needs a larger
window: a caller of nonsense occupies two threads, and a long message holds up no short one.

Threads: the thread that reads the connection; pool threads when a call ends; the acceptor's thread expires late calls.
"""

from __future__ import annotations

import time
import weakref

import grpc

from downpour.proto.http2 import frames
from downpour.proto.http2.connection import Connection
from downpour.proto.http2.frames import DEFAULT_WINDOW, ErrorCode
from downpour.proto.http2.outgoing import REFUSAL_COST
from downpour.proto.http2.stream import Stream
from downpour.proto.rpc import calls
from downpour.proto.rpc.context import Caller
from downpour.proto.rpc.host import Host

FIRST_MESSAGE_S = 10.0  # for the first message of an admitted call to arrive
IDLE_S = 300.0  # without a call, after which a connection is ended


class Dispatcher:
    """Admits the calls of a connection and hands them to the pool.

    Args:
        host: The server.
        connection: The connection.
        caller: The peer that makes the calls.

    Attributes:
        is_open: Whether calls may go to the pool; at first they may not.
        makes_sense: Whether the last message was decoded, so that calls may run side by side.
        running: Streams whose calls were handed to the pool and have not ended.
        ending: Those of them that are about to end, and hold up no other.
    """

    def __init__(self, host: Host, connection: Connection, caller: Caller) -> None:
        self._host = host
        # They have this dispatcher: with a cycle only the garbage collector would free a connection, much later.
        self._weak_connection, self._weak_caller = weakref.ref(connection), weakref.ref(caller)
        # Guarded by the connection's lock.
        self._waiting: dict[int, calls.Call] = {}  # calls without their first message, by stream
        self.running: set[int] = set()
        self.ending: set[int] = set()
        self._long: set[int] = set()  # of `running`: those that were handed over with a part of their first message
        self.is_open = False
        self.makes_sense = False
        self._used_at = time.monotonic()

    @property
    def _connection(self) -> Connection:
        connection = self._weak_connection()
        assert connection is not None  # it calls the methods here
        return connection

    def begin(self, stream: Stream) -> bool:
        """Admits or refuses a call by its header fields; returns whether it is admitted.

        Raises:
            ProtocolError: Too many calls were refused.
        """
        host, connection, caller = self._host, self._connection, self._weak_caller()
        assert caller is not None
        call = calls.Call(host.find, host.gate, connection, stream, caller, host.buffers, host.times)
        if host.is_stopping:
            self._end(stream, b"", ErrorCode.REFUSED_STREAM)
        elif (refusal := call.refusal()) is not None:
            self._end(stream, refusal, ErrorCode.NO_ERROR)
            with connection.lock:
                connection.outgoing.budget.spend(REFUSAL_COST, "calls that are refused")
        else:
            with connection.lock:
                self._waiting[stream.number] = call
            return True
        return False

    def go_on(self, stream: Stream) -> None:
        """Hands a waiting call to the pool if it may run.

        Raises:
            ProtocolError: The pool has no room, and the peer does not read the answers to its calls.
        """
        if stream.number not in self._waiting:  # unlocked, as every received message leads here; checked below
            return
        connection = self._connection
        with connection.lock:
            if not self.is_open or not (stream.reset is not None or (_is_due(stream) and self._may_run(stream))):
                return
            call = self._waiting.pop(stream.number, None)
            if call is None:
                return
            self.running.add(stream.number)
            if not _has_first(stream):
                self._long.add(stream.number)
        if stream.reset is not None:
            self._host.gate.broke_off()
            connection.forget(stream)
        elif not self._host.run(call.run):
            words = "too many calls are open"
            last = calls.answer(stream.number, grpc.StatusCode.RESOURCE_EXHAUSTED, words)
            self._end(stream, last, ErrorCode.NO_ERROR)

    def go_on_with_all(self) -> bool:
        """Hands over calls that waited for another one to make sense or to end; returns whether any has waited."""
        with self._connection.lock:
            waiting = [self._connection.streams.open[number] for number in self._waiting]
        for stream in waiting:
            self.go_on(stream)
        return bool(waiting)

    def expire(self, now: float) -> list[int]:
        """Ends calls whose first message is late; returns the streams of those for which the pool has no room."""
        with self._connection.lock:
            late = [number for number in self._waiting if _is_late(self._connection.streams.open[number], now)]
            expired = {number: self._waiting.pop(number) for number in late}
            self.running.update(late)
        return [number for number, call in expired.items() if not self._host.run(call.expire)]

    def ended(self, stream: Stream) -> None:
        """Forgets a call that has ended."""
        self._used_at = time.monotonic()
        self.running.discard(stream.number)
        self.ending.discard(stream.number)
        self._long.discard(stream.number)

    def is_idle(self, now: float) -> bool:
        """Whether there has been no call for so long that the connection can be ended."""
        return not self._connection.streams.open and now - self._used_at > IDLE_S

    def drop_waiting(self) -> None:
        """Drops the calls that will not run because the connection has ended."""
        with self._connection.lock:
            waiting = list(self._waiting)
            self._waiting.clear()
        self.drop(waiting)

    def drop(self, numbers: list[int]) -> None:
        """Drops calls that will not run."""
        for number in numbers:
            self._host.gate.broke_off()
            self._connection.forget(self._connection.streams.open[number])

    def _may_run(self, stream: Stream) -> bool:
        """Whether no call like this one holds it up."""
        others = self.running - self.ending
        return self.makes_sense or not (others - self._long if _has_first(stream) else others & self._long)

    def _end(self, stream: Stream, last: bytes, code: ErrorCode) -> None:
        """Ends a call that has not run."""
        if not last or not stream.is_whole:
            last += frames.reset(stream.number, code)
        try:
            with self._connection.lock:
                self._connection.outgoing.add(last)
        finally:
            self._connection.forget(stream)


def _is_due(stream: Stream) -> bool:
    """Whether a call may run: its first message has arrived, or as much of it as its window allows."""
    return _has_first(stream) or stream.inbox.window < DEFAULT_WINDOW // 2


def _has_first(stream: Stream) -> bool:
    return stream.is_whole or stream.inbox.has_first


def _is_late(stream: Stream, now: float) -> bool:
    """Whether a call's first message, or its deadline, is overdue."""
    is_silent = now - stream.began_at > FIRST_MESSAGE_S and not _is_due(stream)
    return is_silent or (stream.deadline is not None and now > stream.deadline)
