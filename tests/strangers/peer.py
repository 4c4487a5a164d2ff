"""One connection of a stranger, which follows a script and never blocks."""

from __future__ import annotations

import collections
import contextlib
import itertools
import selectors
import socket
import ssl
from collections.abc import Sequence

from tests.strangers import wire
from tests.strangers.attacks import Script

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

_PIECE_BYTES = 1 << 16  # sent or read at once
_NOT_YET = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_CLOSES_AT_ONCE = b"\1\0\0\0\0\0\0\0"  # SO_LINGER of 0 s: a port can be used again


class Peer:
    """One connection, which has not begun to connect.

    Args:
        script: What it sends.
        context: Of its handshake; None for plain text.
        counts: Gets what happens, by name.

    Attributes:
        fd: Its descriptor, as long as it is open.
        wanted: Events that it waits for.
    """

    def __init__(self, script: Script, context: ssl.SSLContext | None, counts: collections.Counter[str]) -> None:
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _CLOSES_AT_ONCE)
        self.fd = self._socket.fileno()
        self.wanted = WRITE
        self._script, self._counts = script, counts
        self._context = context if script.has_tls else None
        self._reader = wire.Reader(counts)
        self._is_connected = self._is_secure = False
        self._turn = 0
        self._frames: Sequence[bytes] = ()  # under way
        self._out = memoryview(b"")  # what is left to send of them

    def connect(self, address: tuple[str, int]) -> None:
        """Begins to connect.

        Raises:
            OSError: It cannot: there is no port left, for example.
        """
        with contextlib.suppress(BlockingIOError):
            self._socket.connect(address)

    def go_on(self, events: int) -> bool:
        """Does what can be done now, and sets `wanted`; false when the script says to leave.

        Raises:
            OSError: The server has closed the connection.
        """
        if not self._is_connected:
            self._begin()
        elif self._is_secure and events & READ:
            self._read()
        if not self._is_secure and not self._shake_hands():
            return True
        is_sent = self._send()
        if is_sent and self._script.leaves:
            return False
        is_flood = self._script.again is not None and not self._script.every_s
        if is_sent and is_flood:
            self._load_next()  # and sends it when it is its turn again
        self.wanted = (READ if self._script.reads else 0) | (WRITE if is_flood or not is_sent else 0)
        return True

    def is_ready_for_more(self) -> bool:
        """Whether everything so far is sent; then the next burst is taken up."""
        if self._out or not self._is_secure:
            return False
        self._load_next()
        return True

    def close(self) -> None:
        """Ends the connection."""
        self._count_frames()
        self._socket.close()

    def _begin(self) -> None:
        error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, "not connected")
        self._counts["connections"] += 1
        self._is_connected, self._is_secure = True, self._context is None
        if self._context:
            self._socket = self._context.wrap_socket(self._socket, do_handshake_on_connect=False)
        greeting = [wire.PREFACE, wire.frame(wire.SETTINGS, 0, 0)] if self._script.has_preface else []
        self._load([*greeting, *self._script.opening])

    def _shake_hands(self) -> bool:
        assert isinstance(self._socket, ssl.SSLSocket)
        try:
            self._socket.do_handshake()
        except ssl.SSLWantReadError:
            self.wanted = READ
        except ssl.SSLWantWriteError:
            self.wanted = WRITE
        else:
            self._counts["handshakes"] += 1
            self._is_secure = True
        return self._is_secure

    def _read(self) -> None:
        with contextlib.suppress(*_NOT_YET):
            while data := self._socket.recv(_PIECE_BYTES):
                self._reader.feed(data)
            raise ConnectionResetError("closed by the server")

    def _load_next(self) -> None:
        assert self._script.again
        self._load(self._script.again(self._turn))
        self._turn += 1

    def _load(self, frames: Sequence[bytes]) -> None:
        self._out, self._frames = memoryview(b"".join(frames)), frames

    def _send(self) -> bool:
        """Whether everything is sent."""
        while self._out:
            try:
                sent = self._socket.send(self._out[:_PIECE_BYTES])
            except _NOT_YET:
                return False
            self._counts["bytes"] += sent
            self._out = self._out[sent:]
        self._count_frames()
        return True

    def _count_frames(self) -> None:
        """Counts those of which the beginning has been sent."""
        has_sent = sum(map(len, self._frames)) - len(self._out)
        starts = itertools.accumulate(map(len, self._frames[:-1]), initial=0)
        self._counts["frames"] += sum(start < has_sent for start in starts) if self._out else len(self._frames)
        self._frames = ()
