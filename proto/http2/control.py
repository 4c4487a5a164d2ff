"""PRIORITY, RST_STREAM, PUSH_PROMISE, PING, GOAWAY and WINDOW_UPDATE of one HTTP/2 connection, no I/O (RFC 9113, 6).

Threads: the one that reads the connection, under its lock.
"""

from __future__ import annotations

from downpour.proto.http2 import frames
from downpour.proto.http2.frames import (
    GOAWAY,
    MAX_WINDOW,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    WINDOW_UPDATE,
    ErrorCode,
    ProtocolError,
)
from downpour.proto.http2.header_blocks import PRIORITY_BYTES, dependency
from downpour.proto.http2.outgoing import Outgoing
from downpour.proto.http2.streams import Streams
from downpour.proto.http2.windows import Windows

USELESS_BYTES_A_FRAME = 64  # of payload without a meaning, which count as a frame without data
_GOAWAY_BYTES = 8  # without the text for the log


class ControlFrames:
    """Checks these frames and applies them.

    Args:
        streams: Streams of the connection.
        windows: Flow-control windows of the connection.
        outgoing: Queue for answers.

    Attributes:
        is_going_away: Whether the peer accepts no new calls.
    """

    def __init__(self, streams: Streams, windows: Windows, outgoing: Outgoing) -> None:
        self._streams, self._windows, self._outgoing = streams, windows, outgoing
        self.is_going_away = False

    def check(self, kind: int, length: int, flags: int, number: int) -> int | None:
        """Checks the header of a frame; returns how many bytes of its payload `handle` gets, None to discard it."""
        name, budget = frames.NAMES[kind], self._outgoing.budget
        if kind == PUSH_PROMISE:
            raise ProtocolError("PUSH_PROMISE, which is disabled")
        if kind == RST_STREAM or (kind == WINDOW_UPDATE and number):
            self._streams.check_begun(number, name)
        if kind == GOAWAY:
            if length < _GOAWAY_BYTES:
                raise ProtocolError(f"GOAWAY of {length} bytes", ErrorCode.FRAME_SIZE_ERROR)
            budget.spend(1 + length / USELESS_BYTES_A_FRAME, name)
            return _GOAWAY_BYTES
        budget.spend(1, name)
        if kind == PRIORITY and length != PRIORITY_BYTES:
            self._fail(number, ErrorCode.FRAME_SIZE_ERROR, f"PRIORITY of {length} bytes")
            return None
        return length

    def handle(self, kind: int, data: memoryview, flags: int, number: int) -> None:
        """Handles the payload of a frame."""
        if kind == WINDOW_UPDATE:
            self._update_window(number, int.from_bytes(data, "big") & MAX_WINDOW)
        elif kind == PING:
            if not flags & frames.ACK:
                self._outgoing.add(frames.frame(PING, frames.ACK, 0, bytes(data)))
        elif kind == RST_STREAM:
            self._streams.on_reset(number, int.from_bytes(data, "big"))
        elif kind == GOAWAY:
            self.is_going_away = True
            self._streams.on_goaway(int.from_bytes(data[:4], "big") & MAX_WINDOW, int.from_bytes(data[4:], "big"))
        elif dependency(data) == number:  # priorities are otherwise ignored (RFC 9113)
            self._fail(number, ErrorCode.PROTOCOL_ERROR, "a stream that depends on itself")

    def _update_window(self, number: int, more: int) -> None:
        if number == 0:
            self._windows.enlarge(more)
            return
        stream = self._streams.open.get(number)
        if stream is not None and stream.reset is None:
            if (code := self._windows.enlarge_stream(stream, more)) is not None:
                self._streams.fail(stream, code, f"WINDOW_UPDATE by {more}")

    def _fail(self, number: int, code: ErrorCode, reason: str) -> None:
        """Resets a stream; where it is not open, the error is one of the connection."""
        stream = self._streams.open.get(number)
        if stream is None:
            raise ProtocolError(reason, code)
        self._streams.fail(stream, code, reason)
