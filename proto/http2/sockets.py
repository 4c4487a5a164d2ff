"""A connection's bytes: exact reads, complete sends, close from any thread. `proto.security.tls_socket` encrypts them.

Threads: one reads and one sends at a time; any may call `close` and `shut_down`.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any, Protocol

from downpour.proto.http2 import tcp_info

Buffer = bytes | bytearray | memoryview

_SMALL = 1 << 12
_MAX_BUFFERS = 512  # of one sendmsg; the kernel's limit is 1024
_LATE_S = 0.05  # how long after its deadline the kernel may give up, so that it need not be set for every call
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)

# After about so long, reading and sending threads detect that a peer has lost its power.
_DEAD_AFTER_S = 30


def host_and_port(host: str, port: int) -> str:
    """Returns `host:port`, or `[host]:port` for an IPv6 address, whether it was given in brackets or not."""
    host = host.strip("[]")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Deadline(OSError):
    """An operation exceeded its deadline."""


class Closed(OSError):
    """The connection has ended."""


class Socket(Protocol):
    """The transport that `downpour.proto.http2.connection` needs."""

    def read_into(self, view: memoryview) -> None:
        """Reads exactly as many bytes as the view holds.

        Raises:
            Deadline: The deadline has passed.
            Closed: The connection ended first.
            OSError: The connection broke.
        """
        ...

    def read_some(self, view: memoryview) -> int:
        """Reads the available bytes, at least one and at most what fits; for a non-blocking socket.

        Raises:
            BlockingIOError: No byte is available.
            Closed: The connection ended.
            OSError: The connection broke.
        """
        ...

    def read_ahead(self, view: memoryview) -> bool:
        """Fills a view if all its bytes have been read from the kernel already; returns whether it did."""
        ...

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Sends all bytes of the buffers; raises as `read_into`, and `Closed` if a non-blocking send would wait."""
        ...

    def set_deadline(self, at: float | None) -> None:
        """Sets the deadline of every later read and send, a moment of `time.monotonic()`; None for none."""
        ...

    def is_quiet(self) -> bool:
        """Whether the connection is open and has no unread bytes."""
        ...

    def shut_down(self) -> None:
        """Ends the connection at once, also for threads that read or send."""
        ...

    def close(self) -> None:
        """Closes the descriptor; no thread may read or send any more."""
        ...


class PlainSocket:
    """A TCP connection.

    Args:
        raw: A connected socket.
        stall_s: Seconds without progress after which a send fails, where there is no deadline; None for no limit.
    """

    def __init__(self, raw: socket.socket, stall_s: float | None = None) -> None:
        self._raw = raw
        self._stall_s = stall_s
        # Small reads are served from one larger one.
        self._room = memoryview(bytearray(_SMALL))
        self._ahead = self._room[:0]
        self._is_blocking = True
        self._deadline: float | None = None
        self._told_s: float | None = None  # the kernel's timeout
        self._keeps_time = stall_s is not None and not tcp_info.is_usable()  # else the kernel knows `_heard_at`
        self._heard_at = time.monotonic()
        if stall_s is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(stall_s))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # the peer waits for small frames
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", _DEAD_AFTER_S // 2),
            ("TCP_KEEPINTVL", 5),
            ("TCP_KEEPCNT", 3),
            ("TCP_USER_TIMEOUT", 1000 * _DEAD_AFTER_S),
        ):
            if hasattr(socket, name):  # some exist on Linux only
                raw.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def read_into(self, view: memoryview) -> None:
        """See `Socket`."""
        while view:
            view = view[self.read_some(view) :]

    def read_some(self, view: memoryview) -> int:
        """See `Socket`; a blocking socket waits for a byte, and mostly for all of a large view."""
        if not self._ahead and len(view) < _SMALL:
            self._ahead = self._room[: self._receive(self._room, 0)]
        if not self._ahead:
            return self._receive(view, 0 if self._keeps_time else socket.MSG_WAITALL)
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
        """Reads the available bytes, at least one; not to be mixed with the other reads, which read ahead."""
        return self._receive(view, 0)

    def set_blocking(self, is_blocking: bool) -> None:
        """Sets whether reads and sends wait; at first they do."""
        self._is_blocking = is_blocking
        self._raw.setblocking(is_blocking)

    def send(self, buffers: Sequence[Buffer]) -> None:
        """See `Socket`."""
        rest = buffers
        while rest:
            try:
                count = self._waiting(self._raw.sendmsg, rest[:_MAX_BUFFERS])
            except BlockingIOError:
                raise Closed("the peer does not receive") from None
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
        """Seconds since the last byte was received, on a connection with `stall_s`."""
        return time.monotonic() - self._heard_at if self._keeps_time else tcp_info.silent_s(self._raw)

    def shut_down(self) -> None:
        """See `Socket`."""
        with contextlib.suppress(OSError):  # it has ended already
            self._raw.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """See `Socket`."""
        self._raw.close()

    def drain(self, num_bytes: int) -> None:
        """Reads and discards received bytes, about `num_bytes` at most; for a non-blocking socket.

        Raises:
            BlockingIOError: No more bytes are available now.
            Closed: The connection ended.
        """
        while num_bytes > 0:
            num_bytes -= self.read_now(self._room)

    def end_sending(self) -> None:
        """Ends the sending direction; bytes already sent still arrive."""
        with contextlib.suppress(OSError):  # it has ended already
            self._raw.shutdown(socket.SHUT_WR)

    def linger(self, within_s: float) -> None:
        """Ends the sending direction; reads and discards bytes for a while, or until the peer ends the connection.

        With unread bytes the kernel would drop what the peer should still read.
        """
        self.end_sending()
        self.set_deadline(time.monotonic() + within_s)
        with contextlib.suppress(OSError):
            while True:
                self.read_now(self._room)

    def fileno(self) -> int:
        """Returns the descriptor, for `selectors`."""
        return self._raw.fileno()

    def _receive(self, view: memoryview, flags: int) -> int:
        count = self._waiting(self._raw.recv_into, view, len(view), flags)
        if not count:
            raise Closed("Socket closed")
        if self._keeps_time:
            self._heard_at = time.monotonic()
        return count

    def _waiting(self, action: Any, *arguments: Any) -> int:
        """Makes one system call, which the kernel ends at the deadline set last."""
        while True:
            if self._deadline is not None and time.monotonic() >= self._deadline:
                raise Deadline("Deadline Exceeded")
            try:
                count: int = action(*arguments)
            except BlockingIOError:  # or the kernel's timeout has expired, perhaps a little early
                if not self._is_blocking:
                    raise
                if self._deadline is None:
                    raise Closed(f"the peer has received nothing for {self._stall_s} s") from None
                self.set_deadline(self._deadline)
                continue
            return count


def _timeval(limit_s: float | None) -> bytes:
    """Packs a `struct timeval` for the kernel, where zero means no timeout."""
    return struct.pack("ll", int(limit_s or 0), int((limit_s or 0) % 1 * 1e6))
