"""Flow control of one HTTP/2 connection and its streams, no I/O (RFC 9113, sections 5.2 and 6.9).

A sender needs room in two windows, the stream's and the connection's. This side keeps the connection's receive window
at the maximum, so the streams' windows bound what a peer may send.

Threads: any, under the connection's lock.
"""

from __future__ import annotations

from collections.abc import Collection

from downpour.proto.http2 import frames
from downpour.proto.http2.frames import DEFAULT_WINDOW, MAX_WINDOW, ErrorCode, ProtocolError
from downpour.proto.http2.outgoing import Outgoing
from downpour.proto.http2.stream import Limits, Stream


class Windows:
    """Flow-control windows in both directions.

    Args:
        limits: Limits for the peer.
        outgoing: Queue for WINDOW_UPDATE.

    Attributes:
        send: Bytes that may be sent on all streams together.
        initial_send: Bytes that may be sent on a new stream.
        max_frame: Maximum payload of a sent frame, in bytes.
    """

    def __init__(self, limits: Limits, outgoing: Outgoing) -> None:
        self._limits, self._outgoing = limits, outgoing
        self.send = self.initial_send = DEFAULT_WINDOW
        self.max_frame = frames.DEFAULT_FRAME
        self._receive = DEFAULT_WINDOW  # receive window of the connection, before `_received` is deducted
        self._received = 0  # bytes of DATA not yet returned to the peer by WINDOW_UPDATE of the connection

    # What the peer may send.

    def open(self) -> None:
        """Sets the connection's receive window to the maximum: the streams' windows bound memory."""
        self._outgoing.add(frames.window_update(0, MAX_WINDOW - DEFAULT_WINDOW))
        self._receive = MAX_WINDOW

    def received(self, num_bytes: int) -> None:
        """Deducts received DATA from the connection's window, and sends WINDOW_UPDATE when a quarter is used.

        Raises:
            ProtocolError: The peer has sent more than the window.
        """
        self._received += num_bytes
        if self._received > self._receive:
            raise ProtocolError("more DATA than the connection's window", ErrorCode.FLOW_CONTROL_ERROR)
        if self._received > self._receive // 4:
            self._outgoing.add(frames.window_update(0, self._received))
            self._received = 0

    def grant(self, stream: Stream) -> None:
        """Sends WINDOW_UPDATE for a stream if at least half a window is free."""
        inbox = stream.inbox
        if inbox.is_wanted and inbox.error is None and not stream.is_whole and not stream.is_answered:
            more = self._limits.wanted_window - inbox.window - inbox.held
            if more >= self._limits.wanted_window // 2:
                inbox.window += more
                self._outgoing.add(frames.window_update(stream.number, more))

    # What this side may send.

    def take(self, stream: Stream, wanted: int) -> int:
        """Deducts at most `wanted` bytes from the windows; returns how many may be sent on a stream now.

        Raises:
            Ended: The stream has ended.
        """
        if stream.reset is not None:
            raise stream.reset
        count = max(0, min(wanted, stream.window, self.send, self.max_frame))
        stream.window -= count
        self.send -= count
        self._outgoing.sent_data(count)
        return count

    def enlarge(self, more: int) -> None:
        """Handles WINDOW_UPDATE of the connection by `more` bytes; raises `ProtocolError` if it is invalid."""
        if (code := _error_in_update(self.send, more)) is not None:
            raise ProtocolError(f"WINDOW_UPDATE by {more}", code)
        self.send += more

    def enlarge_stream(self, stream: Stream, more: int) -> ErrorCode | None:
        """Handles WINDOW_UPDATE of a stream; returns the error for which the stream must be reset, None if valid."""
        code = _error_in_update(stream.window, more)
        if code is None:
            stream.window += more
        return code

    def set_initial(self, value: int, streams: Collection[Stream]) -> None:
        """Handles INITIAL_WINDOW_SIZE, which changes the send window of every stream.

        Raises:
            ProtocolError: The value, or a window that results, exceeds the maximum.
        """
        more = value - self.initial_send
        if value > MAX_WINDOW or any(stream.window + more > MAX_WINDOW for stream in streams):
            raise ProtocolError(f"INITIAL_WINDOW_SIZE of {value}", ErrorCode.FLOW_CONTROL_ERROR)
        for stream in streams:
            stream.window += more
        self.initial_send = value


def _error_in_update(window: int, more: int) -> ErrorCode | None:
    """Returns why a send window cannot be enlarged by `more` bytes; None if it can."""
    if not more:
        return ErrorCode.PROTOCOL_ERROR
    return ErrorCode.FLOW_CONTROL_ERROR if window + more > MAX_WINDOW else None
