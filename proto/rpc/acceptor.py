"""Accepts connections, and serves the unauthenticated ones: those from which no call has been admitted yet.

One thread reads from all of them without waiting for any, so each costs a few kilobytes and no thread. Their number is
limited: where there is no room, the oldest of the address with the most of them is closed, once it is a second old. A
new one that has sent as much as a client begins with takes the place of one that has not, and one that has sent less is
closed if others wait behind it in the kernel's queue: they may be thousands.
After a burst all of them together get a part of one processor, reduced by the cost of admitted connections that were
ended for what they sent: their peers may reconnect. `downpour.proto.rpc.strangers` has what each of them may do.

Threads: one of its own; any may call `stop` and `charge`.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator

from absl import logging

from downpour.proto.http2.frames import ProtocolError
from downpour.proto.rpc import strangers
from downpour.proto.rpc.credit import Credit
from downpour.proto.rpc.entrance import Entrance
from downpour.proto.rpc.server_connection import ServerConnection
from downpour.proto.rpc.strangers import Stranger, Strangers
from downpour.proto.security.gate import Gate

_GRACE_S = 1.0  # minimum age of a connection that is closed to make room for another

_TICK_S = 0.25  # between checks of deadlines
_LOOK_AFTER_S = 1.0  # between checks of admitted connections
_ACCEPTED_AT_ONCE = 64
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Acceptor:
    """Accepts connections and serves unauthenticated ones from `start` until `stop`.

    Args:
        listener: The listening socket, which is closed at the end.
        connect: Makes a connection from a socket; raises `OSError` if that has ended.
        admit: Takes over a connection whose first call has been admitted; false if there is no room for it.
        look_after: Called every second, to check admitted connections.
        gate: Counts connections.
        most: Limit of unauthenticated connections.
    """

    def __init__(
        self,
        listener: socket.socket,
        connect: Callable[[socket.socket], ServerConnection],
        admit: Callable[[ServerConnection], bool],
        look_after: Callable[[], None],
        gate: Gate,
        most: int,
    ) -> None:
        self._connect, self._admit, self._look_after = connect, admit, look_after
        self._gate, self._most = gate, most
        self._selector = selectors.DefaultSelector()
        self._entrance = Entrance(listener, self._selector)
        self._wake, self._woken = socket.socketpair()
        self._is_stopping = False
        self._credit = Credit()
        self._thread = threading.Thread(target=self._run, name="accept", daemon=True)
        # Used by the thread only.
        self._strangers = Strangers()
        self._unfinished: set[Stranger] = set()  # that may have more to do even if no bytes arrive

    def start(self) -> None:
        """Starts the thread."""
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread.start()

    def stop(self) -> None:
        """Stops accepting; returns when all unauthenticated connections have ended."""
        self._is_stopping = True
        self._wake.send(b"x")
        self._thread.join()
        self._wake.close()
        self._woken.close()  # only now: the thread may have ended by itself before it was woken

    def charge(self, seconds: float) -> None:
        """Reduces the processor time left to unauthenticated connections."""
        self._credit.charge(seconds)

    def _run(self) -> None:
        looked_at = tick_at = time.monotonic()
        while not self._is_stopping:
            self._serve()
            now = time.monotonic()
            if now - tick_at >= _TICK_S:
                tick_at = now
                self._tick(now)
            if now - looked_at >= _LOOK_AFTER_S:
                looked_at = now
                self._look_after()
            self._rest()
        for stranger in list(self._strangers):
            self._end(stranger)
        self._selector.close()
        self._entrance.close()

    def _serve(self) -> None:
        """Serves each connection that is ready once, the cheapest so far first, while there is credit."""
        wait_s = _TICK_S if self._strangers or self._entrance.is_paused else _LOOK_AFTER_S
        ready, self._unfinished = self._unfinished, set()
        comes = self._entrance.has_kept_one
        for key, _ in self._selector.select(0.0 if ready or comes else wait_s):
            comes |= key.data is self._entrance
            if isinstance(key.data, Stranger):
                ready.add(key.data)
        if comes and self._credit.has_some():
            self._accept()
        present = [stranger for stranger in ready if stranger in self._strangers]  # others were closed for room
        for stranger in sorted(present, key=lambda one: one.used_s):
            if not self._credit.has_some() or not self._go_on(stranger):
                self._unfinished.add(stranger)

    def _accept(self) -> None:
        """Accepts waiting connections, a few at a time."""
        began_s = time.thread_time()
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                raw = self._entrance.accept()
            except OSError as error:
                if error.errno in _NO_ROOM and not self._make_room(0.0):
                    self._entrance.pause()
                break
            if len(self._strangers) < self._most or self._make_room(_GRACE_S) or self._make_room_of_mute(raw):
                self._take(raw)
            elif not strangers.has_sent_enough(raw) and self._entrance.has_more():
                self._gate.connection_began()
                self._gate.connection_dropped()
                raw.close()
            else:
                self._entrance.pause(raw)
                break
        self._credit.spend(time.thread_time() - began_s)

    def _take(self, raw: socket.socket) -> None:
        self._gate.connection_began()
        began_s = time.thread_time()
        try:
            connection = self._connect(raw)
        except Exception as error:  # it has ended already, as a rule
            logging.debug("a connection could not be taken: %r", error)
            raw.close()
            return
        finally:
            cost_s = time.thread_time() - began_s
        stranger = Stranger(connection, time.monotonic(), cost_s)
        self._strangers.add(stranger)
        self._selector.register(connection, selectors.EVENT_READ, stranger)

    def _make_room(self, grace_s: float) -> bool:
        """Closes the oldest connection of the address with the most, if `grace_s` old; returns whether it did."""
        oldest = self._strangers.in_the_way()
        if oldest is None or oldest.came_at > time.monotonic() - grace_s:
            return False
        self._gate.connection_dropped()
        self._end(oldest)
        return True

    def _make_room_of_mute(self, raw: socket.socket) -> bool:
        """Closes a connection that has sent less than a client begins with for one that has sent that."""
        if not strangers.has_sent_enough(raw) or (mute := self._strangers.mute()) is None:
            return False
        self._gate.connection_dropped()
        self._end(mute)
        return True

    def _go_on(self, stranger: Stranger) -> bool:
        """Handles bytes from an unauthenticated connection; returns whether all is done that can be done now."""
        connection = stranger.connection
        try:
            with self._charged(stranger):
                stranger.advance()
        except BlockingIOError:
            return True
        except Exception as error:  # no input of one peer may stop the service of the others
            self._turn_away(stranger, error)
            return True
        if not connection.is_admitted:
            return False
        self._forget(stranger)
        connection.cost_s = stranger.used_s
        if self._admit(connection):
            self._credit.give_back(stranger.used_s)  # admitted connections are not charged
        return True

    def _turn_away(self, stranger: Stranger, error: Exception) -> None:
        """Ends an unauthenticated connection because of what it has sent, or because its peer has ended it."""
        logging.debug("connection of %s: %s", stranger.connection.peer, error)
        if isinstance(error, ProtocolError):
            self._gate.connection_malformed()
        elif not isinstance(error, OSError):
            logging.log_every_n_seconds(logging.ERROR, "an unauthenticated connection failed: %r", 60, error)
        if not stranger.turn_away(error, time.monotonic()):
            self._end(stranger)

    def _tick(self, now: float) -> None:
        """Closes connections whose deadline has passed; resumes accepting."""
        self._entrance.resume(now)
        for stranger in self._strangers.overdue(now):
            if not stranger.is_leaving:
                self._gate.connection_dropped()
            self._end(stranger)

    def _end(self, stranger: Stranger) -> None:
        self._forget(stranger)
        stranger.connection.close(OSError("the connection made no call"))

    def _forget(self, stranger: Stranger) -> None:
        self._selector.unregister(stranger.connection)
        self._strangers.remove(stranger)

    @contextlib.contextmanager
    def _charged(self, stranger: Stranger) -> Iterator[None]:
        """Charges the processor time of the `with` block to an unauthenticated connection."""
        began_s = time.thread_time()
        try:
            yield
        finally:
            cost_s = time.thread_time() - began_s
            stranger.used_s += cost_s
            self._credit.spend(cost_s)

    def _rest(self) -> None:
        """Waits if unauthenticated connections have used more than their part of a processor."""
        if wait_s := self._credit.wait_s():
            with selectors.DefaultSelector() as waiting:
                waiting.register(self._woken, selectors.EVENT_READ)
                waiting.select(min(_LOOK_AFTER_S, wait_s))
