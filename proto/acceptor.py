"""Accepts connections, and serves strangers: those from which no call has been admitted yet.

One thread reads what they say without waiting for any of them, so a stranger costs a few kilobytes and no thread. There
are at most `MOST_STRANGERS`: where there is no room, the oldest of the address with the most of them makes it, once it
has had a second. Each has a deadline for its handshake, and one for its first call. After a burst all of them together
get a part of one processor.

Threads: one of its own; `stop` is for any.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import selectors
import socket
import threading
import time
from collections.abc import Callable

from absl import logging

from downpour.proto.frames import ProtocolError
from downpour.proto.security import Gate
from downpour.proto.server_connection import ServerConnection

MOST_STRANGERS = 256
HANDSHAKE_S = 5.0  # until a connection must have shown its certificate, and said that it speaks HTTP/2
FIRST_CALL_S = 10.0  # until a connection must have made a call that is admitted
_GRACE_S = 1.0  # that a stranger has before it makes room for another
_FAREWELL_S = 1.0  # in which a stranger may read why its connection ends

# Processor seconds that strangers may use at once, and in a second.
_BURST_S, _SHARE = 2.0, 0.05

_TICK_S = 0.25  # between looks at deadlines
_LOOK_AFTER_S = 1.0  # between looks at connections that have been admitted
_PAUSE_S = 0.1  # without accepting, where there is no room
_ACCEPTED_AT_ONCE = 64
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Acceptor:
    """Accepts and serves strangers from `start` until `stop`.

    Args:
        listener: The listening socket, which is closed at the end.
        connect: Makes a connection of a socket; raises `OSError` if that has ended.
        admit: Takes over a connection whose first call has been admitted.
        look_after: Is called every second, to look at connections that have been admitted.
        gate: Counts.
    """

    def __init__(
        self,
        listener: socket.socket,
        connect: Callable[[socket.socket], ServerConnection],
        admit: Callable[[ServerConnection], None],
        look_after: Callable[[], None],
        gate: Gate,
    ) -> None:
        self._listener, self._connect, self._admit, self._look_after = listener, connect, admit, look_after
        self._gate = gate
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="accept", daemon=True)
        # The thread's own.
        self._until: dict[ServerConnection, float] = {}  # strangers in the order in which they came: when they end
        self._farewells: set[ServerConnection] = set()  # of them, those that have been told to go
        self._per_address: collections.Counter[str] = collections.Counter()
        self._accepts_at: float | None = None  # when it goes on accepting; None if it does
        self._credit_s, self._credit_at, self._used_s = _BURST_S, time.monotonic(), 0.0

    def start(self) -> None:
        """Begins."""
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread.start()

    def stop(self) -> None:
        """Takes nobody any more; returns when strangers' connections have ended."""
        self._is_stopping = True
        self._wake.send(b"x")
        self._thread.join()
        self._wake.close()
        self._woken.close()  # only now: the thread may have ended by itself before it was woken

    def _run(self) -> None:
        looked_at = tick_at = time.monotonic()
        while not self._is_stopping:
            for key, _ in self._selector.select(_TICK_S if self._until or self._accepts_at else _LOOK_AFTER_S):
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, ServerConnection):
                    self._advance(key.fileobj)
            now = time.monotonic()
            if now - tick_at >= _TICK_S:
                tick_at = now
                self._tick(now)
            if now - looked_at >= _LOOK_AFTER_S:
                looked_at = now
                self._look_after()
            self._rest()
        for connection in list(self._until):
            self._end(connection)
        self._selector.close()
        self._listener.close()

    def _accept(self) -> None:
        """Takes connections that wait, a few at a time."""
        for _ in range(_ACCEPTED_AT_ONCE):
            if len(self._until) >= MOST_STRANGERS and not self._make_room(_GRACE_S):
                self._pause()
                return
            try:
                raw, _ = self._listener.accept()
            except OSError as error:
                if error.errno in _NO_ROOM and not self._make_room(0.0):
                    self._pause()
                return
            self._take(raw)

    def _take(self, raw: socket.socket) -> None:
        self._gate.connection_began()
        try:
            connection = self._connect(raw)
        except OSError:  # it has ended already
            raw.close()
            return
        self._until[connection] = time.monotonic() + FIRST_CALL_S
        self._per_address[connection.address] += 1
        self._selector.register(connection, selectors.EVENT_READ)

    def _make_room(self, grace_s: float) -> bool:
        """Ends the oldest stranger of the address with the most of them, if it has been there for so long."""
        if not self._until:
            return False
        [(address, _)] = self._per_address.most_common(1)
        oldest = next(connection for connection in self._until if connection.address == address)
        if self._until[oldest] - FIRST_CALL_S > time.monotonic() - grace_s and oldest not in self._farewells:
            return False
        self._gate.connection_dropped()
        self._end(oldest)
        return True

    def _pause(self) -> None:
        if self._accepts_at is None:
            self._selector.unregister(self._listener)
        self._accepts_at = time.monotonic() + _PAUSE_S

    def _advance(self, connection: ServerConnection) -> None:
        """Something has come from a stranger."""
        if connection in self._farewells:
            if connection.drain():
                self._end(connection)
            return
        try:
            connection.advance()
        except BlockingIOError:
            return
        except OSError as error:
            logging.debug("connection of %s: %s", connection.peer, error)
            if isinstance(error, ProtocolError):
                self._gate.connection_malformed()
            if not connection.is_admitted and connection.turn_away(error):
                self._farewells.add(connection)
                self._until[connection] = time.monotonic() + _FAREWELL_S
            else:
                self._end(connection)
            return
        self._forget(connection)
        self._admit(connection)

    def _tick(self, now: float) -> None:
        """Ends those whose time is up."""
        if self._accepts_at is not None and now >= self._accepts_at:
            self._accepts_at = None
            self._selector.register(self._listener, selectors.EVENT_READ)
        for connection, until in list(self._until.items()):
            late_s = 0.0 if connection.has_begun or connection in self._farewells else FIRST_CALL_S - HANDSHAKE_S
            if now >= until - late_s:
                if connection not in self._farewells:
                    self._gate.connection_dropped()
                self._end(connection)

    def _end(self, connection: ServerConnection) -> None:
        self._forget(connection)
        connection.close(OSError("the connection made no call"))

    def _forget(self, connection: ServerConnection) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(connection)
        self._until.pop(connection, None)
        self._farewells.discard(connection)
        self._per_address[connection.address] -= 1
        if self._per_address[connection.address] <= 0:
            del self._per_address[connection.address]

    def _rest(self) -> None:
        """Waits if strangers have had more than their part of a processor."""
        now, used_s = time.monotonic(), time.thread_time()
        self._credit_s += _SHARE * (now - self._credit_at) - (used_s - self._used_s)
        self._credit_s, self._credit_at, self._used_s = min(_BURST_S, self._credit_s), now, used_s
        if self._credit_s < 0:
            with selectors.DefaultSelector() as waiting:
                waiting.register(self._woken, selectors.EVENT_READ)
                waiting.select(min(_LOOK_AFTER_S, -self._credit_s / _SHARE))
