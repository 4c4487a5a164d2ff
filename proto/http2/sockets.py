"""A connection's bytes: read exactly, sent whole, closed from any thread. `proto.security.tls_socket` encrypts them.

Threads: one reads and one sends at a time; `close` and `shut_down` are for any.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

Buffer = bytes | bytearray | memoryview

_SMALL = 1 << 12
_MAX_BUFFERS = 512  # of one sendmsg; the kernel's limit is 1024
_LATE_S = 0.05  # how much later than at its deadline the kernel may give up, so that it need not be told for every call
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)

_LAST_DATA_RECEIVED = struct.Struct("@52xI")  # of the kernel's struct tcp_info, the beginning; in milliseconds

# A peer that has lost its power is noticed after about so long, by a thread that reads as by one that sends.
_DEAD_AFTER_S = 30


def host_and_port(host: str, port: int) -> str:
    """`host:port`, of an IPv6 address `[host]:port`, whether it was given in brackets or not."""
    host = host.strip("[]")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Deadline(OSError):
    """The peer took longer than may be."""


class Closed(OSError):
    """The connection has ended."""


class Socket(Protocol):
    """What `downpour.proto.http2.connection` needs of a connection."""

    def read_into(self, view: memoryview) -> None:
        """Fills a view of bytes.

        Raises:
            Deadline: It took too long.
            Closed: The connection ended first.
            OSError: It broke.
        """
        ...

    def read_some(self, view: memoryview) -> int:
        """Reads what there is, at least a byte and at most what fits; for a socket that does not block.

        Raises:
            BlockingIOError: There is nothing.
            Closed: The connection ended.
            OSError: It broke.
        """
        ...

    def read_ahead(self, view: memoryview) -> bool:
        """Fills a view if what belongs there has been read from the kernel already; whether it has."""
        ...

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Sends all of some buffers of bytes; raises as `read_into`, and `Closed` where it may not wait and must."""
        ...

    def set_deadline(self, at: float | None) -> None:
        """Until when reading and sending may take, a moment of `time.monotonic()`; None for ever."""
        ...

    def is_quiet(self) -> bool:
        """Whether the connection is open and nothing has come that was not read."""
        ...

    def shut_down(self) -> None:
        """Ends the connection at once, for whoever reads or sends, too."""
        ...

    def close(self) -> None:
        """Gives the descriptor back; nobody reads or sends any more."""
        ...


class PlainSocket:
    """A TCP connection.

    Args:
        raw: A connected socket.
        stall_s: How long a peer may not take a byte of what is sent, where there is no deadline; None for ever.
    """

    def __init__(self, raw: socket.socket, stall_s: float | None = None) -> None:
        self._raw = raw
        self._stall_s = stall_s
        # Small reads are served from what one larger one has brought.
        self._room = memoryview(bytearray(_SMALL))
        self._ahead = self._room[:0]
        self._is_blocking = True
        self._deadline: float | None = None
        self._told_s: float | None = None  # how long the kernel waits
        if stall_s is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(stall_s))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what is small is waited for
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", _DEAD_AFTER_S // 2),
            ("TCP_KEEPINTVL", 5),
            ("TCP_KEEPCNT", 3),
            ("TCP_USER_TIMEOUT", 1000 * _DEAD_AFTER_S),
        ):
            if hasattr(socket, name):  # some are Linux' own
                raw.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def read_into(self, view: memoryview) -> None:
        """See `Socket`."""
        while view:
            view = view[self.read_some(view) :]

    def read_some(self, view: memoryview) -> int:
        """See `Socket`; a socket that blocks waits for a byte, and for all of a large view."""
        if not self._ahead and len(view) < _SMALL:
            self._ahead = self._room[: self._receive(self._room, 0)]
        if not self._ahead:
            return self._receive(view, socket.MSG_WAITALL)
        count = min(len(view), len(self._ahead))
        view[:count] = self._ahead[:count]
        self._ahead = self._ahead[count:]
        return count

    def read_ahead(self, view: memoryview) -> bool:
        """See `Socket`."""
        if len(self._ahead) < len(view):
            return False
        view[:] = self._ahead[: len(view)]
        self._ahead = self._ahead[len(view) :]
        return True

    def read_now(self, view: memoryview) -> int:
        """Reads what there is, at least a byte; not to be mixed with the others, which read ahead."""
        return self._receive(view, 0)

    def set_blocking(self, is_blocking: bool) -> None:
        """Whether reading and sending wait; they do in the beginning."""
        self._is_blocking = is_blocking
        self._raw.setblocking(is_blocking)

    def send(self, buffers: Sequence[Buffer]) -> None:
        """See `Socket`."""
        rest = buffers
        while rest:
            try:
                count = self._waiting(self._raw.sendmsg, rest[:_MAX_BUFFERS])
            except BlockingIOError:
                raise Closed("the peer takes nothing") from None
            done = 0
            while done < len(rest) and count >= len(rest[done]):
                count -= len(rest[done])
                done += 1
            rest = rest[done:]
            if rest and count:
                rest = [memoryview(rest[0])[count:], *rest[1:]]

    def set_deadline(self, at: float | None) -> None:
        """See `Socket`."""
        if at is None and self._deadline is None:
            return
        self._deadline = at
        left = None if at is None else max(0.001, at - time.monotonic())
        if left and self._told_s and left / 2 <= self._told_s <= left + _LATE_S:
            return
        self._told_s = left
        for option, limit_s in ((socket.SO_RCVTIMEO, left), (socket.SO_SNDTIMEO, left or self._stall_s)):
            self._raw.setsockopt(socket.SOL_SOCKET, option, _timeval(limit_s))

    def is_quiet(self) -> bool:
        """See `Socket`."""
        if self._ahead:
            return False
        try:
            self._raw.recv(1, _PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def silent_s(self) -> float:
        """Seconds since the kernel received the last byte; 0 where only Linux could tell."""
        if sys.platform != "linux":
            return 0.0
        info = self._raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_RECEIVED.size)
        return float(_LAST_DATA_RECEIVED.unpack(info)[0] / 1000)

    def shut_down(self) -> None:
        """See `Socket`."""
        with contextlib.suppress(OSError):  # it has ended already
            self._raw.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """See `Socket`."""
        self._raw.close()

    def drain(self, num_bytes: int) -> None:
        """Reads what has come, for nobody, at most about so many bytes; for a socket that does not block.

        Raises:
            BlockingIOError: There is no more now.
            Closed: The connection ended.
        """
        while num_bytes > 0:
            num_bytes -= self.read_now(self._room)

    def end_sending(self) -> None:
        """Nothing more is sent; what was sent still arrives."""
        with contextlib.suppress(OSError):  # it has ended already
            self._raw.shutdown(socket.SHUT_WR)

    def fileno(self) -> int:
        """For `selectors`."""
        return self._raw.fileno()

    def _receive(self, view: memoryview, flags: int) -> int:
        count = self._waiting(self._raw.recv_into, view, len(view), flags)
        if not count:
            raise Closed("Socket closed")
        return count

    def _waiting(self, action: Any, *arguments: Any) -> int:
        """One system call, which the kernel ends at the deadline that it was told last."""
        while True:
            if self._deadline is not None and time.monotonic() >= self._deadline:
                raise Deadline("Deadline Exceeded")
            try:
                count: int = action(*arguments)
            except BlockingIOError:  # or the kernel's time is up, perhaps a little early
                if not self._is_blocking:
                    raise
                if self._deadline is None:
                    raise Closed(f"the peer has taken nothing for {self._stall_s} s") from None
                self.set_deadline(self._deadline)
                continue
            return count


def _timeval(limit_s: float | None) -> bytes:
    """For the kernel, whose zero is for ever."""
    return struct.pack("ll", int(limit_s or 0), int((limit_s or 0) % 1 * 1e6))
