"""HTTP/2's rules (RFC 9113) for one side of one connection, without I/O: the order of frames, and the answers to them.

The caller writes received bytes to `Endpoint.room`, in pieces of any size, and `Endpoint.received` returns the events
they cause; messages go directly to the buffers of their stream. `downpour.proto.http2.streams` has the rules of
streams. Connection errors are raised as `ProtocolError`; no input raises anything else.

Threads: none of its own. The thread that reads the connection calls `room` and `received`, any other the rest; all
calls but `room` are made under the connection's lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from downpour.proto.http2 import frames
from downpour.proto.http2.assembly import Buffers
from downpour.proto.http2.frames import (
    DATA,
    HEADERS,
    MAX_WINDOW,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    ErrorCode,
    ProtocolError,
)
from downpour.proto.http2.headers import HeaderReader
from downpour.proto.http2.streams import Event, Limits, Stream, Streams

_NAMES = "DATA HEADERS PRIORITY RST_STREAM SETTINGS PUSH_PROMISE PING GOAWAY WINDOW_UPDATE CONTINUATION".split()
_OF_STREAMS = frozenset({DATA, HEADERS, PRIORITY, RST_STREAM, frames.CONTINUATION})
_OF_CONNECTIONS = frozenset({SETTINGS, frames.PING, frames.GOAWAY})
_LENGTHS = {RST_STREAM: 4, frames.PING: 8, frames.WINDOW_UPDATE: 4}

_PRIORITY_BYTES = 5
_MAX_SETTINGS = 64
_MAX_PADDING = 256
_USELESS_BYTES_A_FRAME = 64  # of a frame of an unknown kind, which count as a frame without data
_SCRATCH = memoryview(bytearray(1 << 16))  # for discarded bytes, shared by all connections


@dataclass
class _Block:
    """A block of header fields that is being received.

    Attributes:
        number: Identifier of its stream.
        ends: Whether the peer's side of the stream ends with it.
        is_dependent: Whether the stream's priority depends on itself.
        data: The bytes received so far.
    """

    number: int
    ends: bool
    is_dependent: bool
    data: bytearray


class Endpoint:
    """One side of a connection.

    Args:
        buffers: Buffers for received messages.
        limits: Limits for the peer.
        is_server: Whether this side is the server.
        clock: Returns seconds; `time.monotonic` except in tests.

    Attributes:
        streams: Streams of the connection.
        is_greeted: Whether the peer has sent its first SETTINGS.
        is_going_away: Whether the peer accepts no new calls.
        reading: The stream whose DATA frame is being read; None between such frames.
    """

    def __init__(
        self, buffers: Buffers, limits: Limits, *, is_server: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits, self._is_server = limits, is_server
        self.streams = Streams(buffers, limits, is_server=is_server, clock=clock)
        self.is_greeted = self.is_going_away = False
        self.reading: Stream | None = None
        self._max_frame = frames.DEFAULT_FRAME  # that is accepted
        self._takes_large = False  # once the peer has acknowledged it
        self._num_acknowledged = 0  # SETTINGS frames of this side
        self._headers = HeaderReader()
        self._block: _Block | None = None
        self._head = memoryview(bytearray(frames.HEAD_BYTES))
        # Bytes left of a DATA frame or a discarded one, and its padding; 0 while a part of known length is read.
        self._unread = self._padding = 0
        self._ends = self._is_wanted = False
        self._expect_head()
        if is_server:
            self._expect(len(frames.PREFACE), self._on_preface)

    def greeting(self) -> bytes:
        """Encodes the first bytes of this side."""
        values = {
            frames.INITIAL_WINDOW_SIZE: self._limits.initial_window,
            frames.MAX_HEADER_LIST_SIZE: frames.MAX_HEADER_BYTES,
        }
        if self._is_server:
            return frames.settings({**values, frames.MAX_CONCURRENT_STREAMS: self._limits.max_streams})
        self._max_frame = values[frames.MAX_FRAME_SIZE] = frames.MAX_FRAME_BYTES
        return frames.PREFACE + frames.settings({**values, frames.ENABLE_PUSH: 0})

    def take_large_frames(self) -> None:
        """Allows the peer frames of megabytes, once it has acknowledged the setting; for a server, once."""
        self.streams.answer(frames.settings({frames.MAX_FRAME_SIZE: frames.MAX_FRAME_BYTES}))
        self._takes_large = True

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
            self._then(self._room)
        if not self.streams.events:
            return ()
        events, self.streams.events = self.streams.events, []
        return events

    def _expect(self, length: int, then: Callable[[memoryview], None]) -> None:
        """Reads the next `length` bytes as one part, then calls `then`."""
        self._room, self._filled, self._then = memoryview(bytearray(length)), 0, then
        if not length:
            then(self._room)

    def _expect_head(self) -> None:
        self._room, self._filled, self._then = self._head, 0, self._on_head

    def _skip(self, length: int) -> None:
        """Discards the next `length` bytes."""
        self._unread, self._padding, self.reading = length, 0, None
        self._expect_head()

    def _on_preface(self, data: memoryview) -> None:
        if data != frames.PREFACE:
            raise ProtocolError("the connection does not begin as HTTP/2")
        self._expect_head()

    def _on_head(self, data: memoryview) -> None:
        length, kind, flags, number = frames.read_head(data)
        name = _NAMES[kind] if kind < len(_NAMES) else f"a frame of kind {kind}"
        if length > self._max_frame:
            raise ProtocolError(f"{name} of {length} bytes", ErrorCode.FRAME_SIZE_ERROR)
        if self._block and (kind != frames.CONTINUATION or number != self._block.number):
            raise ProtocolError(f"{name} where CONTINUATION of stream {self._block.number} is due")
        if not self.is_greeted and (kind != SETTINGS or flags & frames.ACK):
            raise ProtocolError(f"{name} where the first SETTINGS are due")
        if kind >= len(_NAMES):
            self.streams.budget.spend(1 + length / _USELESS_BYTES_A_FRAME, name)
            self._skip(length)
            return
        if (kind in _OF_STREAMS and not number) or (kind in _OF_CONNECTIONS and number):
            raise ProtocolError(f"{name} on stream {number}")
        if length != _LENGTHS.get(kind, length):
            raise ProtocolError(f"{name} of {length} bytes", ErrorCode.FRAME_SIZE_ERROR)
        _HEADS[kind](self, length, flags, number)

    # DATA.

    def _data(self, length: int, flags: int, number: int) -> None:
        self.reading = self.streams.on_data(number, length)
        self._ends = bool(flags & frames.END_STREAM)
        if not flags & frames.PADDED:
            self._read_messages(length, 0)
        elif length:
            self._expect(1, lambda data: self._read_messages(length - 1, data[0]))
        else:
            raise ProtocolError("DATA without the length of its padding", ErrorCode.FRAME_SIZE_ERROR)

    def _read_messages(self, length: int, padding: int) -> None:
        """Reads the rest of a DATA frame: messages and padding."""
        if padding > length:
            raise ProtocolError("more padding than there is DATA")
        self._expect_head()
        self._unread, self._padding = length - padding, padding
        if not self._unread and not self._ends:
            self.streams.budget.spend(1, "empty DATA")
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

    # Header fields.

    def _fields(self, length: int, flags: int, number: int) -> None:
        if number % 2 == 0:
            raise ProtocolError(f"HEADERS on stream {number}")
        if not self._is_server:
            self.streams.check_begun(number, "HEADERS")
        if length > frames.MAX_HEADER_BYTES + _MAX_PADDING:
            raise ProtocolError(f"HEADERS of {length} bytes", ErrorCode.ENHANCE_YOUR_CALM)
        self._expect(length, lambda data: self._on_fields(data, flags, number))

    def _on_fields(self, data: memoryview, flags: int, number: int) -> None:
        is_padded, has_priority = bool(flags & frames.PADDED), bool(flags & frames.HAS_PRIORITY)
        start = is_padded + _PRIORITY_BYTES * has_priority
        if len(data) < start:
            raise ProtocolError("HEADERS that are too short", ErrorCode.FRAME_SIZE_ERROR)
        stop = len(data) - (data[0] if is_padded else 0)
        if stop < start:
            raise ProtocolError("more padding than there are HEADERS")
        is_dependent = has_priority and _dependency(data[start - _PRIORITY_BYTES :]) == number
        self._block = _Block(number, bool(flags & frames.END_STREAM), is_dependent, bytearray(data[start:stop]))
        self._end_block(flags)

    def _continuation(self, length: int, flags: int, number: int) -> None:
        if self._block is None:
            raise ProtocolError("CONTINUATION where none is due")
        self.streams.budget.spend(1, "CONTINUATION")
        if len(self._block.data) + length > frames.MAX_HEADER_BYTES:
            raise ProtocolError("header fields that do not end", ErrorCode.ENHANCE_YOUR_CALM)
        self._expect(length, lambda data: self._on_continuation(data, flags))

    def _on_continuation(self, data: memoryview, flags: int) -> None:
        assert self._block is not None
        self._block.data += data
        self._end_block(flags)

    def _end_block(self, flags: int) -> None:
        self._expect_head()
        if not flags & frames.END_HEADERS:
            return
        assert self._block is not None
        block, self._block = self._block, None
        pairs = self._headers.read(bytes(block.data))  # also for a closed stream: the next block may refer to them
        self.streams.on_headers(block.number, pairs, ends=block.ends, is_dependent=block.is_dependent)

    # Control frames.

    def _priority(self, length: int, flags: int, number: int) -> None:
        self.streams.budget.spend(1, "PRIORITY")
        if length == _PRIORITY_BYTES:
            self._expect(length, lambda data: self._on_priority(data, number))
        else:
            self._skip(length)
            self._fail(number, ErrorCode.FRAME_SIZE_ERROR, f"PRIORITY of {length} bytes")

    def _on_priority(self, data: memoryview, number: int) -> None:
        self._expect_head()
        if _dependency(data) == number:  # priorities are otherwise ignored (RFC 9113)
            self._fail(number, ErrorCode.PROTOCOL_ERROR, "a stream that depends on itself")

    def _fail(self, number: int, code: ErrorCode, reason: str) -> None:
        """Resets a stream; where it is not open, the error is one of the connection."""
        stream = self.streams.open.get(number)
        if stream is None:
            raise ProtocolError(reason, code)
        self.streams.fail(stream, code, reason)

    def _reset(self, length: int, flags: int, number: int) -> None:
        self.streams.check_begun(number, "RST_STREAM")
        self.streams.budget.spend(1, "RST_STREAM")
        self._expect(length, lambda data: self._on_reset(data, number))

    def _on_reset(self, data: memoryview, number: int) -> None:
        self._expect_head()
        self.streams.on_reset(number, int.from_bytes(data, "big"))

    def _settings(self, length: int, flags: int, number: int) -> None:
        if (flags & frames.ACK and length) or not frames.is_whole_settings(length):
            raise ProtocolError(f"SETTINGS of {length} bytes", ErrorCode.FRAME_SIZE_ERROR)
        self.streams.budget.spend(1, "SETTINGS")
        if length > 6 * _MAX_SETTINGS:
            raise ProtocolError(f"SETTINGS of {length} bytes", ErrorCode.ENHANCE_YOUR_CALM)
        if flags & frames.ACK:
            self._num_acknowledged += 1
            if self._takes_large and self._num_acknowledged > 1:  # the first one is for the greeting
                self._max_frame = frames.MAX_FRAME_BYTES
            self._expect_head()
        else:
            self._expect(length, self._on_settings)

    def _on_settings(self, data: memoryview) -> None:
        self._expect_head()
        for setting, value in frames.read_settings(bytes(data)):
            if setting == frames.ENABLE_PUSH and value not in ((0, 1) if self._is_server else (0,)):
                raise ProtocolError(f"ENABLE_PUSH of {value}")
            if setting == frames.INITIAL_WINDOW_SIZE:
                self.streams.on_initial_window(value)
            elif setting == frames.MAX_FRAME_SIZE:
                if not frames.DEFAULT_FRAME <= value <= frames.LARGEST_FRAME:
                    raise ProtocolError(f"MAX_FRAME_SIZE of {value}")
                self.streams.max_frame = value
        self.is_greeted = True
        self.streams.answer(frames.frame(SETTINGS, frames.ACK, 0, b""))

    def _push(self, length: int, flags: int, number: int) -> None:
        raise ProtocolError("PUSH_PROMISE, which nobody may send us")

    def _ping(self, length: int, flags: int, number: int) -> None:
        self.streams.budget.spend(1, "PING")
        self._expect(length, lambda data: self._on_ping(bytes(data), flags))

    def _on_ping(self, data: bytes, flags: int) -> None:
        self._expect_head()
        if not flags & frames.ACK:
            self.streams.answer(frames.frame(frames.PING, frames.ACK, 0, data))

    def _goaway(self, length: int, flags: int, number: int) -> None:
        if length < 8:
            raise ProtocolError(f"GOAWAY of {length} bytes", ErrorCode.FRAME_SIZE_ERROR)
        self.streams.budget.spend(1 + length / _USELESS_BYTES_A_FRAME, "GOAWAY")
        self._expect(8, lambda data: self._on_goaway(data, length - 8))

    def _on_goaway(self, data: memoryview, rest: int) -> None:
        self._skip(rest)
        self.is_going_away = True
        self.streams.on_goaway(int.from_bytes(data[:4], "big") & MAX_WINDOW, int.from_bytes(data[4:], "big"))

    def _window_update(self, length: int, flags: int, number: int) -> None:
        if number:
            self.streams.check_begun(number, "WINDOW_UPDATE")
        self.streams.budget.spend(1, "WINDOW_UPDATE")
        self._expect(length, lambda data: self._on_window_update(data, number))

    def _on_window_update(self, data: memoryview, number: int) -> None:
        self._expect_head()
        self.streams.on_window_update(number, int.from_bytes(data, "big") & MAX_WINDOW)


def _dependency(data: memoryview) -> int:
    """Returns the stream that a priority depends on."""
    return int.from_bytes(data[:4], "big") & MAX_WINDOW


# Methods that read the rest of a frame, by its kind.
_HEADS: tuple[Callable[[Endpoint, int, int, int], None], ...] = (
    Endpoint._data,
    Endpoint._fields,
    Endpoint._priority,
    Endpoint._reset,
    Endpoint._settings,
    Endpoint._push,
    Endpoint._ping,
    Endpoint._goaway,
    Endpoint._window_update,
    Endpoint._continuation,
)
