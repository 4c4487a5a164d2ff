"""Unauthenticated connections, those from which no call has been admitted: what each may do, and which have to go.

Each may send a few kilobytes and has a deadline for its handshake, and one for its first call. They are counted per
address, so that one address cannot take the room of all others.

Threads: the acceptor's.
"""

from __future__ import annotations

import collections
import itertools
import socket
from collections.abc import Iterator

from downpour.proto.http2.frames import ErrorCode, ProtocolError
from downpour.proto.rpc.server_connection import ServerConnection

HANDSHAKE_S = 5.0  # until a connection must have presented its certificate and begun HTTP/2
FIRST_CALL_S = 10.0  # until a connection must have made a call that is admitted
STRANGER_BYTES = 1 << 14  # of HTTP/2, before a call is admitted
_STEPS = 64  # parts of frames that are read at a time
_FAREWELL_S = 1.0  # for a peer to read why its connection ends
_FIRST_FLIGHT_BYTES = 64  # a client begins with more: a TLS handshake, or preface, SETTINGS and WINDOW_UPDATE
_LOOKED_AT = 16  # for one that makes room
_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT


def has_sent_enough(raw: socket.socket) -> bool:
    """Whether the unread bytes of an accepted connection can be what a client begins with."""
    try:
        return len(raw.recv(_FIRST_FLIGHT_BYTES, _PEEK)) >= _FIRST_FLIGHT_BYTES
    except OSError:
        return False


class Stranger:
    """One unauthenticated connection.

    Args:
        connection: The connection.
        came_at: When it was accepted.
        used_s: Processor seconds that it has used.

    Attributes:
        connection: As above.
        came_at: As above.
        used_s: As above.
        is_leaving: Whether it was sent the reason why it ends, and may still read that.
    """

    def __init__(self, connection: ServerConnection, came_at: float, used_s: float) -> None:
        self.connection, self.came_at, self.used_s = connection, came_at, used_s
        self.is_leaving = False
        self._until = came_at + FIRST_CALL_S
        self._has_greeted = False
        self._num_bytes = 0  # received

    def advance(self) -> None:
        """Handles what has arrived, without waiting, until a call is admitted.

        Raises:
            BlockingIOError: No more progress is possible now.
            OSError: The connection has ended, or must be ended.
        """
        connection = self.connection
        if self.is_leaving:
            connection.drain(STRANGER_BYTES)
            return
        if not self._has_greeted:
            connection.shake_hands()
            connection.greet()  # also if the peer uses another protocol, so that it can detect that
            self._has_greeted = True
        for _ in range(_STEPS):
            if connection.is_admitted:
                return
            try:
                self._num_bytes += connection.read_some()
            except OSError as error:
                if not connection.is_admitted:
                    raise
                connection.failure = error  # the reader thread must end it, and wait for its call
            if self._num_bytes > STRANGER_BYTES and not connection.is_admitted:
                raise ProtocolError("too many bytes before a call is admitted", ErrorCode.ENHANCE_YOUR_CALM)

    def turn_away(self, error: Exception, now: float) -> bool:
        """Sends the peer the reason why it is refused; returns whether it needs time to read that."""
        if not self.connection.turn_away(error):
            return False
        self.is_leaving = True
        self._until = now + _FAREWELL_S
        return True

    @property
    def is_mute(self) -> bool:
        """Whether it has sent less than a client begins with."""
        connection = self.connection
        num_bytes = self._num_bytes + (connection.tls.num_shaken if connection.tls else 0)
        return num_bytes < _FIRST_FLIGHT_BYTES and not has_sent_enough(connection.raw)

    def is_overdue(self, now: float) -> bool:
        """Whether one of its deadlines has passed."""
        is_mute = not self.connection.has_begun and now >= self.came_at + HANDSHAKE_S
        return is_mute or now >= self._until


class Strangers:
    """All unauthenticated connections of a server, in the order in which they were accepted."""

    def __init__(self) -> None:
        self._all: dict[Stranger, None] = {}
        self._per_address: collections.Counter[str] = collections.Counter()

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Stranger]:
        return iter(self._all)

    def __contains__(self, stranger: Stranger) -> bool:
        return stranger in self._all

    def add(self, stranger: Stranger) -> None:
        """Adds one that was accepted last."""
        self._all[stranger] = None
        self._per_address[stranger.connection.address] += 1

    def remove(self, stranger: Stranger) -> None:
        """Removes one that is admitted or ended."""
        del self._all[stranger]
        address = stranger.connection.address
        self._per_address[address] -= 1
        if self._per_address[address] <= 0:
            del self._per_address[address]

    def in_the_way(self) -> Stranger | None:
        """Returns the oldest of the address with the most, which is the first to make room; None if there is none."""
        return next(self._of_busiest_address(), None)

    def mute(self) -> Stranger | None:
        """Returns one of the oldest of that address that has sent less than a client begins with; None if none has."""
        oldest = itertools.islice(self._of_busiest_address(), _LOOKED_AT)
        return next((stranger for stranger in oldest if stranger.is_mute), None)

    def _of_busiest_address(self) -> Iterator[Stranger]:
        for address, _ in self._per_address.most_common(1):
            yield from (stranger for stranger in self._all if stranger.connection.address == address)

    def overdue(self, now: float) -> list[Stranger]:
        """Returns those whose deadline has passed."""
        return [stranger for stranger in self._all if stranger.is_overdue(now)]
