"""Plays a case to a server over a connection of its own, in plain text or TLS, and looks how the connection ends.

Threads: any may play; each case is played by one.
"""

from __future__ import annotations

import contextlib
import enum
import select
import socket
import ssl
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.fuzz import frames as h2
from tests.fuzz.mutate import CLOSE, HALF_CLOSE, RESET, Case, flipped

END_S = 20.0  # after which the server must have ended a connection that its peer has half closed
CONTROL_S = 20.0  # within which a control is answered
_QUIET_S = 0.1  # after which no more answers are expected of a case that is no control
_READ_BYTES = 1 << 16
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class End(enum.Enum):
    """How a connection ended."""

    BY_SERVER = "by the server"  # orderly or not
    BY_FUZZER = "by the fuzzer"
    UNANSWERED = "unanswered"  # the server left it open
    REFUSED = "refused"  # no connection could be made


@dataclass(frozen=True)
class Played:
    """What came of a case.

    Attributes:
        end: Of the connection.
        answer: What the server said, decrypted.
        error: What was wrong with the connection, for the report.
        seconds: From the beginning to the end.
    """

    end: End
    answer: bytes = b""
    error: str = ""
    seconds: float = 0.0


class _Plain:
    """Bytes go as they are."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def seal(self, data: bytes) -> bytes:
        return data

    def open(self, data: bytes) -> bytes:
        return data


class _Tls(_Plain):
    """TLS between two buffers, so that records can be cut and changed like everything else."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(connection)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out)
        while not self._shake_hands():
            connection.sendall(self._out.read())
            data = connection.recv(_READ_BYTES)
            if not data:
                raise ConnectionError("closed in the handshake")
            self._in.write(data)
        connection.sendall(self._out.read())

    def seal(self, data: bytes) -> bytes:
        self._tls.write(data)
        return self._out.read()

    def open(self, data: bytes) -> bytes:
        self._in.write(data)
        found = b""
        with contextlib.suppress(ssl.SSLError):  # no more for now, or an alert before the end
            while more := self._tls.read(_READ_BYTES):
                found += more
        return found

    def _shake_hands(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True


def contexts(certificates: Path | None) -> dict[str, ssl.SSLContext]:
    """By role; empty for plain text."""
    made = {}
    for folder in sorted(certificates.iterdir()) if certificates else ():
        if (folder / "tls.key").exists():
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False  # certificates name roles, no hosts
            context.load_verify_locations(folder / "ca.crt")
            context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
            context.set_alpn_protocols(["h2"])
            made[folder.name] = context
    return made


def play(case: Case, port: int, tls: dict[str, ssl.SSLContext]) -> Played:
    """Sends the pieces, ends the connection as the case says, and waits for the server to end it, too."""
    begin = time.monotonic()
    return replace(_play(case, port, tls), seconds=time.monotonic() - begin)


def _play(case: Case, port: int, tls: dict[str, ssl.SSLContext]) -> Played:
    try:
        connection = socket.create_connection(("127.0.0.1", port), timeout=END_S)
    except OSError as error:
        return Played(End.REFUSED, error=repr(error))
    with connection:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line = _Tls(connection, tls[case.session.role]) if tls else _Plain(connection)
            pieces = [line.seal(piece) for piece in case.pieces if piece]
        except OSError as error:
            return Played(End.REFUSED, error=repr(error))
        if case.flips is not None and pieces:
            pieces = flipped(case.flips, pieces)
        return _Exchange(line, case, pieces).run()


class _Exchange:
    """One connection from its first piece to its end."""

    def __init__(self, line: _Plain, case: Case, pieces: Sequence[bytes]) -> None:
        self._line, self._case = line, case
        self._left = list(reversed(pieces))
        self._answer = bytearray()
        self._num_wanted = len(case.session.statuses)
        line.connection.setblocking(False)

    def run(self) -> Played:
        try:
            is_over = not self._send()
            if not is_over and self._case.ending in (CLOSE, RESET):
                self._leave()
                return Played(End.BY_FUZZER, bytes(self._answer))
            if not is_over and self._case.ending != HALF_CLOSE:
                is_over = not self._await_answers()
            if not is_over:
                self._line.connection.shutdown(socket.SHUT_WR)
                is_over = not self._read(END_S, until_quiet=False)
        except OSError as error:  # a reset, or bytes that came after the server had closed
            return Played(End.BY_SERVER, bytes(self._answer), repr(error))
        return Played(End.BY_SERVER if is_over else End.UNANSWERED, bytes(self._answer))

    def _send(self) -> bool:
        """All pieces, reading meanwhile; false when the server has ended the connection."""
        end = time.monotonic() + END_S
        while self._left:
            events = self._wait(select.POLLIN | select.POLLOUT, end)
            if events & ~select.POLLOUT and not self._take():
                return False
            if events & select.POLLOUT:
                sent = self._line.connection.send(self._left[-1])
                self._left[-1] = self._left[-1][sent:]
                if not self._left[-1]:
                    self._left.pop()
            if not events:
                self._left.clear()  # it does not read: the half close will show whether it ends
        return True

    def _await_answers(self) -> bool:
        if self._case.is_control:
            return self._read(CONTROL_S, until_quiet=True)
        return self._read(_QUIET_S, until_quiet=True)

    def _read(self, at_most_s: float, *, until_quiet: bool) -> bool:
        """Until nothing comes for so long, or all streams are answered; false when the server ends the connection."""
        while not until_quiet or self._num_ended() < self._num_wanted:
            if not self._wait(select.POLLIN, time.monotonic() + at_most_s):
                return True
            if not self._take():
                return False
        return True

    def _take(self) -> bool:
        data = self._line.connection.recv(_READ_BYTES)
        self._answer += self._line.open(data) if data else b""
        return bool(data)

    def _num_ended(self) -> int:
        return len({f.stream for f in h2.parse(bytes(self._answer)) if _ends_stream(f)})

    def _wait(self, events: int, end: float) -> int:
        poll = select.poll()
        poll.register(self._line.connection, events)
        found = poll.poll(max(0.0, end - time.monotonic()) * 1000)
        return found[0][1] if found else 0

    def _leave(self) -> None:
        if self._case.ending == RESET:
            self._line.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)


def _ends_stream(frame: h2.Frame) -> bool:
    if frame.kind in (h2.HEADERS, h2.DATA):
        return frame.flags & h2.END_STREAM != 0
    return frame.kind == h2.RST_STREAM
