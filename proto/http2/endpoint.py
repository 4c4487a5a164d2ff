"""HTTP/2's rules (RFC 9113) for one side of one connection, without I/O: which frame may come, and who handles it.

The caller writes received bytes to `Endpoint.room`, in pieces of any size, and `Endpoint.received` returns the events
they cause; messages go directly to the buffers of their stream. Connection errors are raised as `ProtocolError`; no
input raises anything else.

| module        | owns                                                                |
|---------------|---------------------------------------------------------------------|
| endpoint      | the order of frames, and DATA                                       |
| header_blocks | HEADERS and CONTINUATION                                            |
| settings      | SETTINGS                                                            |
| control       | the other frames                                                    |
| streams       | the streams' states                                                 |
| windows       | flow control                                                        |
| outgoing      | the frames to be sent in answer, and the budget for unpaid ones     |

Threads: none of its own. The thread that reads the connection calls `room` and `received`, any other the rest; all
calls but `room` are made under the connection's lock.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from downpour.proto.http2 import frames
from downpour.proto.http2.assembly import Buffers
from downpour.proto.http2.control import USELESS_BYTES_A_FRAME, ControlFrames
from downpour.proto.http2.frames import (
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    NAMES,
    PING,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ErrorCode,
    ProtocolError,
)
from downpour.proto.http2.header_blocks import HeaderBlocks
from downpour.proto.http2.outgoing import Outgoing
from downpour.proto.http2.settings import Settings
from downpour.proto.http2.stream import Event, Limits, Stream
from downpour.proto.http2.streams import Streams
from downpour.proto.http2.windows import Windows

_OF_STREAMS = frozenset({DATA, HEADERS, PRIORITY, RST_STREAM, CONTINUATION})
_OF_CONNECTIONS = frozenset({SETTINGS, PING, GOAWAY})
_LENGTHS = {RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}

_SCRATCH = memoryview(bytearray(1 << 16))  # for discarded bytes, shared by all connections


class Part(Protocol):
    """Handles some kinds of frames, the payload of which is read as one part."""

    def check(self, kind: int, length: int, flags: int, number: int) -> int | None:
        """Checks a frame by its header, before its payload is read.

        Returns:
            Bytes of the payload that `handle` gets, the rest being discarded; None if it is not called.

        Raises:
            ProtocolError: The peer violates HTTP/2.
        """

    def handle(self, kind: int, data: memoryview, flags: int, number: int) -> None:
        """Handles a frame that `check` has let pass; raises `ProtocolError` if it violates HTTP/2."""


class Endpoint:
    """One side of a connection.

    Args:
        buffers: Buffers for received messages.
        limits: Limits for the peer.
        is_server: Whether this side is the server.
        clock: Returns seconds; `time.monotonic` except in tests.

    Attributes:
        outgoing: Frames to be sent.
        windows: Flow-control windows.
        streams: Streams of the connection.
        settings: SETTINGS of both sides.
        reading: The stream whose DATA frame is being read; None between such frames.
    """

    def __init__(
        self, buffers: Buffers, limits: Limits, *, is_server: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._is_server = is_server
        self.outgoing = Outgoing(clock)
        self.windows = Windows(limits, self.outgoing)
        self.streams = Streams(buffers, limits, self.windows, self.outgoing, is_server=is_server, clock=clock)
        self.settings = Settings(limits, self.streams, self.windows, self.outgoing, is_server=is_server)
        self._blocks = HeaderBlocks(self.streams, self.outgoing, is_server=is_server)
        self._control = ControlFrames(self.streams, self.windows, self.outgoing)
        self.reading: Stream | None = None
        self._head = memoryview(bytearray(frames.HEAD_BYTES))
        # Bytes left of a DATA frame or a discarded one, and its padding; 0 while a part of known length is read.
        self._unread = self._padding = 0
        self._ends = self._is_wanted = False
        self._expect_head()
        if is_server:
            self._expect(len(frames.PREFACE), Endpoint._on_preface)

    @property
    def is_going_away(self) -> bool:
        """Whether the peer accepts no new calls."""
        return self._control.is_going_away

    def goaway(self, code: ErrorCode) -> bytes:
        """Encodes this side's last frame: the last stream it has processed, and why the connection ends."""
        return frames.goaway(self.streams.last if self._is_server else 0, code)

    def room(self) -> memoryview:
        """Returns where to write the next bytes; never empty. Call `received` before calling it again."""
        if not self._unread:
            return self._room[self._filled :]
        stream = self.reading
        self._is_wanted = stream is not None and stream.reset is None and stream.inbox.error is None
        if stream is not None and self._is_wanted:
            return stream.inbox.room(self._unread)
        return _SCRATCH[: self._unread]

    def received(self, count: int) -> Sequence[tuple[Event, Stream]]:
        """Handles `count` bytes written to `room`, at least one; returns the events they cause.

        Raises:
            ProtocolError: The peer violates HTTP/2, and the connection cannot continue.
        """
        if self._unread:
            self._took(count)
        else:
            self._filled += count
            if self._filled < len(self._room):
                return ()
            self._then(self, self._room)
        if not self.streams.events:
            return ()
        events, self.streams.events = self.streams.events, []
        return events

    def _expect(self, length: int, then: Callable[[Endpoint, memoryview], None]) -> None:
        """Reads the next `length` bytes as one part, then calls `then` with this endpoint and them."""
        # No bound method: it would be a cycle, which only the garbage collector ends, after thousands of connections.
        self._room, self._filled, self._then = memoryview(bytearray(length)), 0, then
        if not length:
            then(self, self._room)

    def _expect_head(self) -> None:
        self._room, self._filled, self._then = self._head, 0, Endpoint._on_head

    def _skip(self, length: int) -> None:
        """Discards the next `length` bytes."""
        self._unread, self._padding, self.reading = length, 0, None
        self._expect_head()

    # Frames by their headers.

    def _on_preface(self, data: memoryview) -> None:
        if data != frames.PREFACE:
            raise ProtocolError("the connection does not begin as HTTP/2")
        self._expect_head()

    def _on_head(self, data: memoryview) -> None:
        length, kind, flags, number = frames.read_head(data)
        name = NAMES[kind] if kind < len(NAMES) else f"a frame of kind {kind}"
        if length > self.settings.max_frame:
            raise ProtocolError(f"{name} of {length} bytes", ErrorCode.FRAME_SIZE_ERROR)
        unfinished = self._blocks.unfinished
        if unfinished and (kind != CONTINUATION or number != unfinished):
            raise ProtocolError(f"{name} where CONTINUATION of stream {unfinished} is due")
        if not self.settings.is_greeted and (kind != SETTINGS or flags & frames.ACK):
            raise ProtocolError(f"{name} where the first SETTINGS are expected")
        if kind >= len(NAMES):
            self.outgoing.budget.spend(1 + length / USELESS_BYTES_A_FRAME, name)
            self._skip(length)
            return
        if (kind in _OF_STREAMS and not number) or (kind in _OF_CONNECTIONS and number):
            raise ProtocolError(f"{name} on stream {number}")
        if length != _LENGTHS.get(kind, length):
            raise ProtocolError(f"{name} of {length} bytes", ErrorCode.FRAME_SIZE_ERROR)
        if kind == DATA:
            self._on_data(length, flags, number)
        else:
            self._read_part(self._part(kind), kind, length, flags, number)

    def _part(self, kind: int) -> Part:
        if kind in (HEADERS, CONTINUATION):
            return self._blocks
        return self.settings if kind == SETTINGS else self._control

    def _read_part(self, part: Part, kind: int, length: int, flags: int, number: int) -> None:
        """Reads the payload of a frame other than DATA."""
        wanted = part.check(kind, length, flags, number)
        if wanted is None:
            self._skip(length)
        else:
            rest = length - wanted
            then = functools.partial(Endpoint._end_part, part=part, kind=kind, flags=flags, number=number, rest=rest)
            self._expect(wanted, then)

    def _end_part(self, data: memoryview, *, part: Part, kind: int, flags: int, number: int, rest: int) -> None:
        self._skip(rest)
        part.handle(kind, data, flags, number)

    # DATA.

    def _on_data(self, length: int, flags: int, number: int) -> None:
        self.reading = self.streams.on_data(number, length)
        self._ends = bool(flags & frames.END_STREAM)
        if not flags & frames.PADDED:
            self._read_messages(length, 0)
        elif length:
            self._expect(1, lambda self, data: self._read_messages(length - 1, data[0]))
        else:
            raise ProtocolError("DATA without the length of its padding", ErrorCode.FRAME_SIZE_ERROR)

    def _read_messages(self, length: int, padding: int) -> None:
        """Reads the rest of a DATA frame: messages and padding."""
        if padding > length:
            raise ProtocolError("more padding than there is DATA")
        self._expect_head()
        self._unread, self._padding = length - padding, padding
        if not self._unread and not self._ends:
            self.outgoing.budget.spend(1, "empty DATA")
        if self.reading is not None:
            self.streams.on_messages(self.reading, length - padding)
        if not self._unread:
            self._end_messages()

    def _took(self, count: int) -> None:
        self._unread -= count
        stream = self.reading
        if stream is not None and self._is_wanted:
            if stream.inbox.took(count) or not stream.inbox.is_wanted:
                self.streams.events.append((Event.CHANGED, stream))
        if not self._unread:
            self._end_messages()

    def _end_messages(self) -> None:
        stream, self.reading = self.reading, None
        self._unread, self._padding = self._padding, 0
        if stream is not None and self._ends:
            self.streams.on_end(stream)
