"""HTTP/2 (RFC 9113) as gRPC uses it, made for messages of megabytes: one connection, seen from either side.

A message is received straight into a buffer that is used again, and sent from where it lies: the kernel's copies are
the only ones. gRPC's own Python layer copies every message three times when it comes and once when it goes, and hands
each one through four threads; at the paper's shape that was most of what a step cost (BUILD_NOTES.md, "The exchange").
`downpour.proto.server` and `downpour.proto.client` make gRPC of this; any other gRPC implementation understands them.

Header blocks are sent as plain literals, so that they depend on nothing that was sent before; those that come are read
by the package hpack.

Threads: one reads frames; any may send, one at a time. What a reader has to answer it queues for whoever sends, so that
a peer that does not read never keeps us from reading.
"""

from __future__ import annotations

import functools
import itertools
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import hpack

from downpour.proto.sockets import Buffer, Socket

# The largest messages are chunks: 2^20 elements of float32 with the base they were computed from are 8 MB, a
# specification with the layout of ten thousand variables 2 MB, and factors are only sent up to `MAX_FACTORS_BYTES`.
MAX_MESSAGE_BYTES = 16 << 20
MAX_FACTORS_BYTES = 12 << 20

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _HAS_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_INITIAL_WINDOW_SIZE, _MAX_CONCURRENT_STREAMS, _MAX_FRAME_SIZE, _MAX_HEADER_LIST_SIZE = 4, 3, 5, 6
NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, REFUSED_STREAM, CANCEL = 0x0, 0x1, 0x3, 0x7, 0x8

DEFAULT_WINDOW = (1 << 16) - 1  # bytes that a stream may be sent before it asks for more
MAX_WINDOW = (1 << 31) - 1
_DEFAULT_FRAME = 1 << 14
_LARGEST_FRAME = (1 << 24) - 1  # that HTTP/2 can name: a chunk in one frame instead of 128
_LARGEST_CONTROL_FRAME = 1 << 16
_MAX_HEADER_BYTES = 1 << 16
_MAX_QUEUED = 1000  # answers to what a peer sends without reading ours
_FRAME_HEAD = struct.Struct(">HBBBI")
_HEADER_ROOM = 1 << 12  # of a buffer, beyond the power of two that a chunk's payload is
_PREFIX_BYTES = 5  # of a gRPC message: is it compressed, and its length

Headers = Sequence[tuple[str, str]]
Message = Sequence[Buffer]  # in parts


class ProtocolError(OSError):
    """The peer does not speak HTTP/2 as it must; the connection cannot go on."""


class TooLarge(Exception):
    """A message is longer than may be, or of a kind that nobody asked for; only its stream cannot go on."""


class Ended(Exception):
    """A stream has ended: the peer reset it, or the connection is gone."""


class Buffers:
    """Buffers for messages, used again and again; memory never grows beyond what was in use at one time.

    Args:
        most: Free buffers that are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._free: list[bytearray] = []

    def take(self, num_bytes: int) -> bytearray:
        """One of at least so many bytes."""
        size = (1 << max(14, (num_bytes - 1 - _HEADER_ROOM).bit_length())) + _HEADER_ROOM
        with self._lock:
            for i in range(len(self._free) - 1, -1, -1):  # the latest is the one in the cache
                if len(self._free[i]) == size:
                    return self._free.pop(i)
        return bytearray(size)

    def give_back(self, buffer: bytearray) -> None:
        """Nobody uses it any more."""
        with self._lock:
            self._free.append(buffer)
            if len(self._free) > self._most:
                del self._free[0]


@dataclass(eq=False)
class Stream:
    """One call, seen from one side. Guarded by its connection's `changed`, but for what only the reader touches.

    Attributes:
        number: Of the stream.
        window: Bytes that may be sent.
        headers: That came last; the trailers, once the call has ended.
        wanted: Whether somebody waits for messages; before that they stay as they came, at most a window of them.
        arrived: Whole messages that nobody has taken, with the bytes they took of the window.
        is_whole: The peer has sent everything.
        reset: Why the stream cannot go on; None if it can.
        deadline: Until when anybody waits for it, a moment of `time.monotonic()`.
    """

    number: int
    window: int
    headers: Headers = ()
    wanted: bool = False
    arrived: deque[tuple[bytearray, int]] = field(default_factory=deque)
    is_whole: bool = False
    reset: Exception | None = None
    deadline: float | None = None
    spilled: bytearray = field(default_factory=bytearray)
    # Of the message that is coming in: its length and kind, then itself. Only the reader's.
    prefix: bytearray = field(default_factory=lambda: bytearray(_PREFIX_BYTES))
    message: bytearray | None = None
    length: int = 0
    filled: int = 0
    received: int = 0  # bytes for which the peer's window has not been given back


class Connection:
    """Frames, flow control and header compression of one connection.

    Args:
        socket: Its bytes.
        buffers: For messages that come in.
        is_server: Which side this is.
        max_streams: Calls that the peer may have open at a time.
        initial_window: Bytes of a stream that the peer may send before it is asked for more.
    """

    def __init__(
        self, socket: Socket, buffers: Buffers, *, is_server: bool, max_streams: int = 0, initial_window: int
    ) -> None:
        self._socket = socket
        self._buffers = buffers
        self._is_server = is_server
        self._initial_window = initial_window
        self.changed = threading.Condition(threading.Lock())
        # Guarded by `changed`.
        self.streams: dict[int, Stream] = {}
        self.broken: Exception | None = None
        self.is_going_away = False  # the peer takes no new calls
        self._window = DEFAULT_WINDOW  # of all streams together, to be sent
        self._stream_window = DEFAULT_WINDOW  # of a new stream
        self._max_frame = _DEFAULT_FRAME
        self._sending = threading.Lock()  # held while frames go out; never waited for by the reader
        self._queued: deque[bytes] = deque()  # small frames for whoever sends next
        # The reader's alone.
        self._decoder = hpack.Decoder(max_header_list_size=_MAX_HEADER_BYTES)
        self._known_blocks: dict[bytes, Headers] = {}
        self._head = memoryview(bytearray(9))
        self._left_of_frame = 0  # bytes of DATA that have not been read
        self._received = 0  # bytes of DATA for which the peer's window has not been given back
        settings = [(_INITIAL_WINDOW_SIZE, initial_window), (_MAX_FRAME_SIZE, _LARGEST_FRAME)]
        settings += [(_MAX_CONCURRENT_STREAMS, max_streams)] if max_streams else []
        settings += [(_MAX_HEADER_LIST_SIZE, _MAX_HEADER_BYTES)]
        greeting = b"" if is_server else PREFACE
        greeting += frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *setting) for setting in settings))
        greeting += frame(WINDOW_UPDATE, 0, 0, (MAX_WINDOW - DEFAULT_WINDOW).to_bytes(4, "big"))
        self._greeting = greeting

    # Sending.

    def greet(self) -> None:
        """Sends what a connection begins with."""
        self.send(self._greeting)

    def send(self, *buffers: Buffer) -> None:
        """Sends frames as they are."""
        with self._sending:
            self._socket.send([*self._take_queued(), *buffers])
        self._flush()

    def queue(self, data: bytes) -> None:
        """Sends small frames without ever waiting: now if nobody sends, else after what is being sent."""
        if len(self._queued) > _MAX_QUEUED:
            raise ProtocolError("the peer sends without reading")
        self._queued.append(data)
        self._flush()

    def send_message(self, stream: Stream, message: Message, before: bytes = b"", *, end: bool = False) -> None:
        """Sends one gRPC message.

        Args:
            stream: Of the call.
            message: Its parts, bytes all of them.
            before: Frames that go first, in the same breath.
            end: Whether it is the last one.

        Raises:
            Ended: The stream has ended meanwhile.
            OSError: The connection has.
            TooLarge: It is longer than may be.
        """
        views = [memoryview(part) for part in message]
        length = sum(map(len, views))
        views.insert(0, memoryview(b"\0" + length.to_bytes(4, "big")))
        if length > MAX_MESSAGE_BYTES:
            raise TooLarge(f"Sent message larger than max ({length} vs. {MAX_MESSAGE_BYTES})")
        length += _PREFIX_BYTES
        while True:
            count = self._take_window(stream, length)
            length -= count
            is_last = end and not length
            head = frame_head(count, DATA, _END_STREAM if is_last else 0, stream.number)
            if not length:
                self.send(before, head, *views)
                return
            now, views = _cut(views, count)
            self.send(before, head, *now)
            before = b""

    def send_headers(self, stream: Stream, headers: Headers, *, end: bool) -> None:
        """Sends a block of headers, or the trailers."""
        self.send(headers_frame(stream.number, headers, end=end))

    def wait(self, stream: Stream, is_due: Callable[[], bool]) -> None:
        """Returns when a condition on what is guarded by `changed` holds, which is held then as before.

        Raises:
            OSError: The connection broke, or the stream's deadline has passed.
        """
        raise NotImplementedError

    def _take_window(self, stream: Stream, wanted: int) -> int:
        """How many bytes may be sent now, at most `wanted`; waits for one at least."""
        with self.changed:
            self.wait(stream, lambda: stream.reset is not None or (stream.window > 0 and self._window > 0))
            if stream.reset is not None:
                raise stream.reset
            count = min(wanted, stream.window, self._window, self._max_frame)
            stream.window -= count
            self._window -= count
            return count

    def _take_queued(self) -> Iterable[bytes]:
        while self._queued:
            yield self._queued.popleft()

    def _flush(self) -> None:
        while self._queued and self._sending.acquire(blocking=False):
            try:
                if frames := list(self._take_queued()):
                    self._socket.send(frames)
            finally:
                self._sending.release()

    # Receiving.

    def read_frame(self) -> None:
        """Reads one frame and does what it asks for.

        Raises:
            ProtocolError: It makes no sense.
            OSError: The connection broke.
        """
        self._socket.read_into(self._head)
        high, low, kind, flags, number = _FRAME_HEAD.unpack(self._head)
        length, number = high << 8 | low, number & MAX_WINDOW
        if kind == DATA:
            self._on_data(number, flags, length)
            return
        if length > _LARGEST_CONTROL_FRAME:
            raise ProtocolError(f"a frame of kind {kind} with {length} bytes")
        payload = self._read(length)
        if kind == HEADERS:
            self._on_headers(number, flags, payload)
        elif kind == SETTINGS:
            self._on_settings(flags, payload)
        elif kind == WINDOW_UPDATE:
            self._on_window_update(number, payload)
        elif kind == PING:
            if not flags & _ACK:
                self.queue(frame(PING, _ACK, 0, payload))
        elif kind == RST_STREAM:
            self._on_reset(number, payload)
        elif kind == GOAWAY:
            with self.changed:
                self.is_going_away = True
        elif kind in (PUSH_PROMISE, CONTINUATION):
            raise ProtocolError(f"a frame of kind {kind} where none may be")

    def break_off(self, reason: Exception) -> None:
        """The connection has ended, for every stream, too."""
        with self.changed:
            self.broken = self.broken or reason
            for stream in self.streams.values():
                stream.reset = stream.reset or Ended(str(reason))
            self.changed.notify_all()

    def want(self, stream: Stream) -> None:
        """Begins to take a stream's messages.

        From now on the peer may send as it likes: what comes is read from the connection only when the message before
        has been taken, so TCP holds the peer back, and a call takes two buffers at a time.
        """
        with self.changed:
            if stream.wanted:
                return
            stream.wanted = True
            try:
                self._feed(stream, memoryview(stream.spilled))
            except TooLarge as error:
                stream.reset = error
            stream.spilled = bytearray()
            is_whole = stream.is_whole
        if not is_whole:
            self._open_window(stream.number, MAX_WINDOW - self._initial_window)

    def next_message(self, stream: Stream) -> tuple[bytearray, memoryview] | None:
        """The next message of a wanted stream, in a buffer to be given back; None when there are no more.

        Raises:
            TooLarge: It is longer than may be.
            Ended: The stream has ended in the middle.
            OSError: The connection has.
        """
        with self.changed:
            self.wait(stream, lambda: bool(stream.arrived or stream.is_whole or stream.reset))
            if not stream.arrived:
                if stream.reset is not None and (not stream.is_whole or isinstance(stream.reset, TooLarge)):
                    raise stream.reset
                if stream.filled or stream.message is not None:
                    raise Ended("the stream ended inside a message")
                return None
            buffer, length = stream.arrived.popleft()
            self.changed.notify_all()
        return buffer, memoryview(buffer)[:length]

    def forget(self, stream: Stream) -> None:
        """The call is over; what still comes of it is thrown away."""
        with self.changed:
            self.streams.pop(stream.number, None)
            stream.reset = stream.reset or Ended("the call is over")
            while stream.arrived:
                self._buffers.give_back(stream.arrived.popleft()[0])

    def on_request(self, stream: Stream) -> None:
        """A peer has begun a call, of which `headers` are known; on the server's side."""
        raise NotImplementedError

    def _open_window(self, number: int, num_bytes: int) -> None:
        self.queue(frame(WINDOW_UPDATE, 0, number, num_bytes.to_bytes(4, "big")))

    def _read(self, length: int) -> bytes:
        payload = bytearray(length)
        self._socket.read_into(memoryview(payload))
        return bytes(payload)

    def _on_data(self, number: int, flags: int, length: int) -> None:
        self._received += length
        if self._received > MAX_WINDOW // 4:
            self._open_window(0, self._received)
            self._received = 0
        padding = 0
        if flags & _PADDED:
            padding = self._read(1)[0]
            length -= 1 + padding
            if length < 0:
                raise ProtocolError("more padding than there is")
        with self.changed:
            stream = self.streams.get(number)
            if stream is not None and stream.reset is not None:
                stream = None
            wanted = stream is not None and stream.wanted
        try:
            if stream is not None and wanted:
                self._read_messages(stream, length)
                length = 0
            elif stream is not None:
                self._spill(stream, length)
                length = 0
        except TooLarge as error:
            assert stream is not None
            length = self._left_of_frame
            with self.changed:
                stream.reset = error
                self.changed.notify_all()
        self._skip(length + padding)
        if flags & _END_STREAM and stream is not None:
            with self.changed:
                stream.is_whole = True
                self.changed.notify_all()

    def _read_messages(self, stream: Stream, length: int) -> None:
        """Reads so much of a wanted stream straight to where it belongs."""
        stream.received += length
        if stream.received > MAX_WINDOW // 4:
            self._open_window(stream.number, stream.received)
            stream.received = 0
        while length:
            if stream.arrived:
                with self.changed:
                    self.changed.wait_for(lambda: not stream.arrived or stream.reset is not None)
            room = self._room(stream)
            count = min(length, len(room))
            self._socket.read_into(room[:count])
            length -= count
            self._left_of_frame = length
            if self._advance(stream, count):
                with self.changed:
                    self._deliver(stream)

    def _spill(self, stream: Stream, length: int) -> None:
        if length > self._initial_window:
            raise ProtocolError("more than the window of a stream")
        data = self._read(length)
        self._left_of_frame = 0
        with self.changed:
            if stream.wanted:  # meanwhile
                self._feed(stream, memoryview(data))
            elif len(stream.spilled) + length > self._initial_window:
                raise ProtocolError("more than the window of a stream")
            else:
                stream.spilled += data

    def _feed(self, stream: Stream, data: memoryview) -> None:
        """Takes what has been read already; `changed` is held."""
        while data:
            room = self._room(stream)
            count = min(len(data), len(room))
            room[:count] = data[:count]
            data = data[count:]
            if self._advance(stream, count):
                self._deliver(stream)

    def _room(self, stream: Stream) -> memoryview:
        """Where the next bytes of a stream belong."""
        if stream.message is None:
            return memoryview(stream.prefix)[stream.filled :]
        return memoryview(stream.message)[stream.filled : stream.length]

    def _advance(self, stream: Stream, count: int) -> bool:
        """So many bytes have come; returns whether they complete a message."""
        stream.filled += count
        if stream.message is None and stream.filled == _PREFIX_BYTES:
            stream.length = int.from_bytes(stream.prefix[1:], "big")
            if stream.length > MAX_MESSAGE_BYTES:
                raise TooLarge(f"Received message larger than max ({stream.length} vs. {MAX_MESSAGE_BYTES})")
            if stream.prefix[0]:
                raise TooLarge("compressed messages are not taken")
            stream.message = self._buffers.take(stream.length)
            stream.filled = 0
        return stream.message is not None and stream.filled == stream.length

    def _deliver(self, stream: Stream) -> None:
        """The message that came in is whole; `changed` is held."""
        assert stream.message is not None
        stream.arrived.append((stream.message, stream.length))
        stream.message, stream.filled = None, 0
        self.changed.notify_all()

    def _skip(self, length: int) -> None:
        while length:
            count = min(length, 1 << 16)
            self._read(count)
            length -= count

    def _on_headers(self, number: int, flags: int, payload: bytes) -> None:
        is_last = bool(flags & _END_STREAM)
        if flags & _PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        if flags & _HAS_PRIORITY:
            payload = payload[5:]
        while not flags & _END_HEADERS:
            self._socket.read_into(self._head)
            high, low, kind, flags, same = _FRAME_HEAD.unpack(self._head)
            length = high << 8 | low
            if kind != CONTINUATION or same & MAX_WINDOW != number or len(payload) + length > _MAX_HEADER_BYTES:
                raise ProtocolError("headers that do not end")
            payload += self._read(length)
        headers = self._decode(payload)
        with self.changed:
            stream = self.streams.get(number)
            if stream is not None:
                stream.headers = headers
                stream.is_whole = stream.is_whole or is_last
                self.changed.notify_all()
                return
            if not self._is_server:
                return  # of a call that is over
            if not number % 2:
                raise ProtocolError(f"a call with the number {number}")
            stream = Stream(number, self._stream_window, headers, is_whole=is_last)
            self.streams[number] = stream
        self.on_request(stream)

    def _decode(self, block: bytes) -> Headers:
        """Reads a block of headers. One that leaves the tables empty means the same every time."""
        if block in self._known_blocks and not self._decoder.header_table.dynamic_entries:
            return self._known_blocks[block]
        try:
            headers = [(_text(name), _text(value)) for name, value in self._decoder.decode(block)]
        except hpack.HPACKError as error:
            raise ProtocolError(f"headers that cannot be read: {error}") from None
        if not self._decoder.header_table.dynamic_entries and len(self._known_blocks) < 100:
            self._known_blocks[block] = headers
        return headers

    def _on_settings(self, flags: int, payload: bytes) -> None:
        if flags & _ACK:
            return
        if len(payload) % 6:
            raise ProtocolError("settings that cannot be read")
        with self.changed:
            for setting, value in struct.iter_unpack(">HI", payload):
                if setting == _INITIAL_WINDOW_SIZE:
                    for stream in self.streams.values():
                        stream.window += value - self._stream_window
                    self._stream_window = value
                elif setting == _MAX_FRAME_SIZE:
                    if not _DEFAULT_FRAME <= value <= _LARGEST_FRAME:
                        raise ProtocolError(f"frames of {value} bytes")
                    self._max_frame = value
            self.changed.notify_all()
        self.queue(frame(SETTINGS, _ACK, 0, b""))

    def _on_window_update(self, number: int, payload: bytes) -> None:
        more = int.from_bytes(payload, "big") & MAX_WINDOW
        with self.changed:
            if number == 0:
                self._window += more
            elif number in self.streams:
                self.streams[number].window += more
            self.changed.notify_all()

    def _on_reset(self, number: int, payload: bytes) -> None:
        code = int.from_bytes(payload, "big")
        with self.changed:
            stream = self.streams.get(number)
            if stream is not None and stream.reset is None:
                stream.reset = Ended(f"the peer reset the stream (error {code})")
            self.changed.notify_all()


def frame_head(length: int, kind: int, flags: int, number: int) -> bytes:
    """The nine bytes before a frame's payload."""
    return _FRAME_HEAD.pack(length >> 8, length & 0xFF, kind, flags, number)


def frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    """A small frame."""
    return frame_head(len(payload), kind, flags, number) + payload


def headers_frame(number: int, headers: Headers, *, end: bool) -> bytes:
    """A block of headers as one frame."""
    block = _block(tuple(headers))
    return frame(HEADERS, _END_HEADERS | (_END_STREAM if end else 0), number, block)


@functools.lru_cache(maxsize=256)
def _block(headers: tuple[tuple[str, str], ...]) -> bytes:
    """Literals that nobody must remember (RFC 7541, 6.2.2): no tables, no Huffman code."""
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in headers)


def _string(text: str) -> bytes:
    data = text.encode()
    length, out = len(data), bytearray()
    if length < 127:
        return bytes([length]) + data
    out.append(127)
    length -= 127
    while length > 127:
        out.append(length & 127 | 128)
        length >>= 7
    out.append(length)
    return bytes(out) + data


def _text(value: Any) -> str:
    return value if isinstance(value, str) else bytes(value).decode("latin-1")


def _cut(views: list[memoryview], count: int) -> tuple[list[memoryview], list[memoryview]]:
    """The first `count` bytes of some views, and the rest."""
    ends = list(itertools.accumulate(map(len, views)))
    i = next(i for i, end in enumerate(ends) if end >= count)
    inside = count - (ends[i] - len(views[i]))
    return [*views[:i], views[i][:inside]], [views[i][inside:], *views[i + 1 :]]
