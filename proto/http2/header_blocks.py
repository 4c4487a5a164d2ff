"""Blocks of header fields in HEADERS and CONTINUATION frames of one HTTP/2 connection, no I/O (RFC 9113, 6.2 and 6.10).

A block may be spread over several frames, between which no other frame may come. `downpour.proto.http2.headers` decodes
its fields.

Threads: the one that reads the connection, under its lock.
"""

from __future__ import annotations

from dataclasses import dataclass

from downpour.proto.http2 import frames
from downpour.proto.http2.frames import HEADERS, MAX_WINDOW, ErrorCode, ProtocolError
from downpour.proto.http2.headers import HeaderReader
from downpour.proto.http2.outgoing import Outgoing
from downpour.proto.http2.streams import Streams

PRIORITY_BYTES = 5
_MAX_PADDING = 256


@dataclass
class _Block:
    """A block that is being received.

    Attributes:
        ends: Whether the peer's side of the stream ends with it.
        is_dependent: Whether the stream's priority depends on itself.
        data: The bytes received so far.
    """

    ends: bool
    is_dependent: bool
    data: bytearray


class HeaderBlocks:
    """Assembles blocks of header fields and passes their fields to the streams.

    Args:
        streams: Streams of the connection.
        outgoing: Has the budget for frames without data.
        is_server: Whether this side is the server.

    Attributes:
        unfinished: Stream whose block continues, so that only CONTINUATION of it may follow; 0 for none.
    """

    def __init__(self, streams: Streams, outgoing: Outgoing, *, is_server: bool) -> None:
        self._streams, self._outgoing, self._is_server = streams, outgoing, is_server
        self._reader = HeaderReader()
        self._block: _Block | None = None
        self.unfinished = 0

    def check(self, kind: int, length: int, flags: int, number: int) -> int:
        """Checks the header of HEADERS or CONTINUATION; returns how many bytes of the payload `handle` gets."""
        if kind == HEADERS:
            self._check_headers(length, number)
        else:
            self._check_continuation(length)
        return length

    def handle(self, kind: int, data: memoryview, flags: int, number: int) -> None:
        """Handles the payload of HEADERS or CONTINUATION; the last one of a block passes its fields to the streams."""
        if kind == HEADERS:
            self._block = _begin(data, flags, number)
        else:
            assert self._block is not None
            self._block.data += data
        self.unfinished = number
        if flags & frames.END_HEADERS:
            block, self._block, self.unfinished = self._block, None, 0
            pairs = self._reader.read(bytes(block.data))  # also for a closed stream: the next block may refer to them
            self._streams.on_headers(number, pairs, ends=block.ends, is_dependent=block.is_dependent)

    def _check_headers(self, length: int, number: int) -> None:
        if number % 2 == 0:
            raise ProtocolError(f"HEADERS on stream {number}")
        if not self._is_server:
            self._streams.check_begun(number, "HEADERS")
        if length > frames.MAX_HEADER_BYTES + _MAX_PADDING:
            raise ProtocolError(f"HEADERS of {length} bytes", ErrorCode.ENHANCE_YOUR_CALM)

    def _check_continuation(self, length: int) -> None:
        if self._block is None:
            raise ProtocolError("CONTINUATION where none is expected")
        self._outgoing.budget.spend(1, "CONTINUATION")
        if len(self._block.data) + length > frames.MAX_HEADER_BYTES:
            raise ProtocolError("header fields that do not end", ErrorCode.ENHANCE_YOUR_CALM)


def dependency(priority: memoryview) -> int:
    """Returns the stream that a priority depends on."""
    return int.from_bytes(priority[:4], "big") & MAX_WINDOW


def _begin(data: memoryview, flags: int, number: int) -> _Block:
    """Returns the block that begins in the payload of HEADERS, without padding and priority."""
    is_padded, has_priority = bool(flags & frames.PADDED), bool(flags & frames.HAS_PRIORITY)
    start = is_padded + PRIORITY_BYTES * has_priority
    if len(data) < start:
        raise ProtocolError("HEADERS that are too short", ErrorCode.FRAME_SIZE_ERROR)
    stop = len(data) - (data[0] if is_padded else 0)
    if stop < start:
        raise ProtocolError("more padding than there are HEADERS")
    is_dependent = has_priority and dependency(data[start - PRIORITY_BYTES :]) == number
    return _Block(bool(flags & frames.END_STREAM), is_dependent, bytearray(data[start:stop]))
