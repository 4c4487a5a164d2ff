"""HTTP/2 (RFC 9113) as gRPC uses it, made for messages of megabytes: one connection, seen from either side.

A message is received straight into a buffer that is used again, and sent from where it lies: the kernel's copies are
the only ones. grpcio copies every message three times when it comes and once when it goes, and hands it through several
threads; at the paper's shape that was a third of what a step cost (BUILD_NOTES.md, "The exchange").
`downpour.proto.server` and `downpour.proto.client` make gRPC of this, which any other gRPC implementation understands.

Threads: one reads frames; any may send, one at a time. What the reader has to answer it leaves to whoever is sending,
so it does not wait for a peer that does not read.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from downpour.proto import frames
from downpour.proto.assembly import PREFIX_BYTES, Assembler, Buffers, Place, TooLarge, check_length
from downpour.proto.frames import DEFAULT_WINDOW, MAX_WINDOW, Headers, ProtocolError
from downpour.proto.sockets import Buffer, Socket

_LARGEST_CONTROL_FRAME = 1 << 16
_MAX_QUEUED = 1000  # answers to what a peer sends without reading ours
_MAX_ARRIVED = 1000  # messages of one frame
_GIVE_BACK_BYTES = MAX_WINDOW // 4  # how much of a window is used before it is opened again

Message = Sequence[Buffer]  # in parts


class Ended(Exception):
    """A stream has ended: the peer reset it, or the connection is gone."""


@dataclass(eq=False)
class Stream:
    """One call, seen from one side. Guarded by its connection's `lock`, but for what is the reader's.

    Attributes:
        number: Of the stream.
        window: Bytes that may be sent.
        incoming: Puts its messages together; the reader's, once they are wanted.
        headers: That came last; the trailers, once the call has ended.
        wanted: Whether somebody takes messages.
        spilled: What has come before that, at most a window.
        arrived: Whole messages that nobody has taken, with their lengths; no message if it has been placed.
        is_whole: The peer has sent everything.
        reset: Why the stream cannot go on; None if it can.
        deadline: Until when anybody waits for it, a moment of `time.monotonic()`.
        received: Bytes for which the peer's window has not been given back; the reader's.
    """

    number: int
    window: int
    incoming: Assembler
    headers: Headers = ()
    wanted: bool = False
    spilled: bytearray = field(default_factory=bytearray)
    arrived: deque[tuple[bytearray | None, int]] = field(default_factory=deque)
    is_whole: bool = False
    reset: Exception | None = None
    deadline: float | None = None
    received: int = 0


class Connection:
    """Frames, flow control and messages of one connection.

    Args:
        socket: Its bytes.
        buffers: For messages that come in.
        is_server: Which side this is.
        initial_window: Bytes of a stream that the peer may send before they are wanted.
        max_streams: Calls that the peer may have open at a time.
    """

    def __init__(
        self, socket: Socket, buffers: Buffers, *, is_server: bool, initial_window: int, max_streams: int = 0
    ) -> None:
        self._socket = socket
        self._buffers = buffers
        self._is_server = is_server
        self._initial_window = initial_window
        self._max_streams = max_streams
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        # Guarded by `lock`.
        self.streams: dict[int, Stream] = {}
        self.is_going_away = False  # the peer takes no new calls
        self._window = DEFAULT_WINDOW  # of all streams together, to be sent
        self._stream_window = DEFAULT_WINDOW  # of a new stream
        self._max_frame = frames.DEFAULT_FRAME
        self._sending = threading.Lock()  # held while frames go out
        self._queued: deque[bytes] = deque()  # small frames for whoever sends next
        # The reader's alone.
        self._header_reader = frames.HeaderReader()
        self._head = memoryview(bytearray(frames.HEAD_BYTES))
        self._unread = 0  # bytes of the frame that is being read
        self._received = 0  # bytes for which the peer's window has not been given back
        self._latest = 0  # stream that the peer began last

    # Sending.

    def greet(self) -> None:
        """Sends what a connection begins with."""
        values = {frames.INITIAL_WINDOW_SIZE: self._initial_window, frames.MAX_FRAME_SIZE: frames.LARGEST_FRAME}
        values[frames.MAX_HEADER_LIST_SIZE] = frames.MAX_HEADER_BYTES
        if self._max_streams:
            values[frames.MAX_CONCURRENT_STREAMS] = self._max_streams
        more = frames.window_update(0, MAX_WINDOW - DEFAULT_WINDOW)
        self.send(b"" if self._is_server else frames.PREFACE, frames.settings(values), more)

    def send(self, *buffers: Buffer) -> None:
        """Sends frames as they are."""
        with self._sending:
            self._socket.send([*self._take_queued(), *buffers])
        self._flush()

    def queue(self, data: bytes) -> None:
        """Sends small frames: now if nobody sends, else after what is being sent."""
        if len(self._queued) > _MAX_QUEUED:
            raise ProtocolError("the peer sends without reading")
        self._queued.append(data)
        self._flush()

    def send_message(
        self, stream: Stream, message: Message, before: bytes = b"", after: bytes = b"", *, end: bool = False
    ) -> None:
        """Sends one gRPC message.

        Args:
            stream: Of the call.
            message: Its parts, all of them buffers of bytes.
            before: Frames that go first, in the same breath.
            after: Likewise, last.
            end: Whether it is the last one.

        Raises:
            Ended: The stream has ended meanwhile.
            OSError: The connection has.
            TooLarge: It is longer than may be.
        """
        left = sum(map(len, message))
        check_length(left)
        parts = [b"\0" + left.to_bytes(PREFIX_BYTES - 1, "big"), *message]
        left += PREFIX_BYTES
        if before and min(stream.window, self._window) <= 0:  # the peer opens windows of streams that it knows
            self.send(before)
            before = b""
        while left:
            count = self._take_window(stream, left)
            left -= count
            flags = frames.END_STREAM if end and not left else 0
            now, parts = _cut(parts, count) if left else (parts, [])
            self.send(before + frames.head(count, frames.DATA, flags, stream.number), *now, b"" if left else after)
            before = b""

    def wait(self, stream: Stream, is_due: Callable[[], bool]) -> None:
        """Returns when a condition on what is guarded by `lock` holds, which is held then as before.

        Raises:
            OSError: The connection broke, or the stream's deadline has passed.
        """
        raise NotImplementedError

    def notify(self) -> None:
        """What is guarded by `lock`, which is held, has changed; whoever waits looks again."""
        self.changed.notify_all()

    def _take_window(self, stream: Stream, wanted: int) -> int:
        """How many bytes may be sent now, at most `wanted`; waits for one at least."""
        with self.lock:
            if stream.window <= 0 or self._window <= 0:
                self.wait(stream, lambda: stream.reset is not None or (stream.window > 0 and self._window > 0))
            if stream.reset is not None:
                raise stream.reset
            count = min(wanted, stream.window, self._window, self._max_frame)
            stream.window -= count
            self._window -= count
            return count

    def _take_queued(self) -> list[bytes]:
        taken = []
        while self._queued:
            taken.append(self._queued.popleft())
        return taken

    def _flush(self) -> None:
        # Whoever holds the lock comes here after giving it up, so nothing is left behind.
        while self._queued and self._sending.acquire(blocking=False):
            try:
                if taken := self._take_queued():
                    self._socket.send(taken)
            finally:
                self._sending.release()

    # Receiving.

    def want(self, stream: Stream) -> None:
        """Begins to take a stream's messages.

        From now on the peer may send as it likes: what comes is read from the connection only when the message before
        has been taken, so TCP holds the peer back, and a call takes two buffers at a time.
        """
        with self.lock:
            stream.wanted = True
            try:
                self._feed(stream, memoryview(stream.spilled))
            except TooLarge as error:
                stream.reset = error
            stream.spilled = bytearray()
            is_whole = stream.is_whole
        if not is_whole:
            self.queue(frames.window_update(stream.number, MAX_WINDOW - self._initial_window))

    def next_message(self, stream: Stream) -> tuple[bytearray | None, memoryview] | None:
        """The next message of a wanted stream, in a buffer to be given back; None when there are no more.

        There is no buffer where the message is in its place already.

        Raises:
            TooLarge: It is longer than may be.
            Ended: The stream has ended in the middle.
            OSError: The connection has.
        """
        with self.lock:
            if not stream.arrived:
                self.wait(stream, lambda: bool(stream.arrived or stream.is_whole or stream.reset))
            if stream.arrived:
                buffer, length = stream.arrived.popleft()
                self.notify()
                return buffer, memoryview(buffer or b"")[:length]
            if stream.reset is not None and (not stream.is_whole or isinstance(stream.reset, TooLarge)):
                raise stream.reset
            if stream.incoming.is_inside:
                raise Ended("the stream ended inside a message")
            return None

    def forget(self, stream: Stream) -> None:
        """The call is over; what still comes of it is thrown away."""
        with self.lock:
            self.streams.pop(stream.number, None)
            stream.reset = stream.reset or Ended("the call is over")
            while stream.arrived:
                if buffer := stream.arrived.popleft()[0]:
                    self._buffers.give_back(buffer)
            self.notify()

    def break_off(self, reason: Exception) -> None:
        """The connection has ended, and with it every stream."""
        with self.lock:
            for stream in self.streams.values():
                stream.reset = stream.reset or Ended(str(reason))
            self.notify()

    def on_request(self, stream: Stream) -> None:
        """A peer has begun a call, of which `headers` are known; on the server's side."""
        raise NotImplementedError

    def read_frame(self) -> None:
        """Reads one frame and does what it asks for.

        Raises:
            ProtocolError: It makes no sense.
            OSError: The connection broke.
        """
        self._socket.read_into(self._head)
        length, kind, flags, number = frames.read_head(self._head)
        if kind == frames.DATA:
            self._on_data(number, flags, length)
            return
        if length > _LARGEST_CONTROL_FRAME:
            raise ProtocolError(f"a frame of kind {kind} with {length} bytes")
        payload = self._read(length)
        if kind == frames.HEADERS:
            self._on_headers(number, flags, payload)
        elif kind == frames.SETTINGS:
            if not flags & frames.ACK:
                self._on_settings(payload)
        elif kind == frames.WINDOW_UPDATE:
            self._on_window_update(number, payload)
        elif kind == frames.PING:
            if not flags & frames.ACK:
                self.queue(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif kind == frames.RST_STREAM:
            self._on_reset(number, payload)
        elif kind == frames.GOAWAY:
            with self.lock:
                self.is_going_away = True
        elif kind in (frames.PUSH_PROMISE, frames.CONTINUATION):
            raise ProtocolError(f"a frame of kind {kind} where none may be")

    def _read(self, length: int) -> bytes:
        payload = bytearray(length)
        self._socket.read_into(memoryview(payload))
        return bytes(payload)

    def _on_data(self, number: int, flags: int, length: int) -> None:
        self._received += length
        if self._received > _GIVE_BACK_BYTES:
            self.queue(frames.window_update(0, self._received))
            self._received = 0
        padding = self._read(1)[0] if flags & frames.PADDED and length else 0
        self._unread = length - padding - bool(flags & frames.PADDED)
        if self._unread < 0:
            raise ProtocolError("more padding than there is")
        with self.lock:
            stream = self.streams.get(number)
            if stream is not None and stream.reset is not None:
                stream = None
            # Looked at under the lock: whoever sets it feeds what was spilled before giving the lock up.
            wanted = stream is not None and stream.wanted
        if stream is not None:
            try:
                self._read_messages(stream) if wanted else self._spill(stream)
            except TooLarge as error:
                with self.lock:
                    stream.reset = error
                    self.notify()
        for count in [1 << 16] * (self._unread >> 16) + [self._unread & 0xFFFF]:  # of a stream that is over
            self._read(count)
        self._read(padding)
        if flags & frames.END_STREAM and stream is not None:
            with self.lock:
                stream.is_whole = True
                self.notify()

    def _read_messages(self, stream: Stream) -> None:
        """Reads the rest of a frame straight to where it belongs."""
        stream.received += self._unread
        if stream.received > _GIVE_BACK_BYTES:
            self.queue(frames.window_update(stream.number, stream.received))
            stream.received = 0
        while self._unread:
            if stream.arrived and self._is_server:
                with self.lock:
                    self.changed.wait_for(lambda: not stream.arrived or stream.reset is not None)
            elif len(stream.arrived) > _MAX_ARRIVED:  # a client has nobody who could take them meanwhile
                raise ProtocolError("too many messages in one frame")
            room = stream.incoming.room()
            count = min(self._unread, len(room))
            self._socket.read_into(room[:count])
            self._unread -= count
            if whole := stream.incoming.took(count):
                with self.lock:
                    stream.arrived.append(whole)
                    self.notify()

    def _spill(self, stream: Stream) -> None:
        """Keeps the rest of a frame that nobody wants yet."""
        if self._unread > self._initial_window:
            raise ProtocolError("more than the window of a stream")
        data = self._read(self._unread)
        self._unread = 0
        with self.lock:
            if stream.wanted:  # meanwhile
                self._feed(stream, memoryview(data))
            elif len(stream.spilled) + len(data) > self._initial_window:
                raise ProtocolError("more than the window of a stream")
            else:
                stream.spilled += data

    def _feed(self, stream: Stream, data: memoryview) -> None:
        """Takes what has been read already; `changed` is held."""
        while data:
            room = stream.incoming.room()
            count = min(len(data), len(room))
            room[:count] = data[:count]
            data = data[count:]
            if whole := stream.incoming.took(count):
                stream.arrived.append(whole)
                self.notify()

    def _on_headers(self, number: int, flags: int, payload: bytes) -> None:
        is_last = bool(flags & frames.END_STREAM)
        if flags & frames.PADDED and payload:
            payload = payload[1 : len(payload) - payload[0]]
        if flags & frames.HAS_PRIORITY:
            payload = payload[5:]
        while not flags & frames.END_HEADERS:
            self._socket.read_into(self._head)
            length, kind, flags, same = frames.read_head(self._head)
            if kind != frames.CONTINUATION or same != number or len(payload) + length > frames.MAX_HEADER_BYTES:
                raise ProtocolError("headers that do not end")
            payload += self._read(length)
        headers = self._header_reader.read(payload)
        with self.lock:
            stream = self.streams.get(number)
            if stream is not None:
                stream.headers = headers
                stream.is_whole = stream.is_whole or is_last
                self.notify()
                return
            if not self._is_server or number <= self._latest:
                return  # of a call that is over
            if not number % 2:
                raise ProtocolError(f"a call with the number {number}")
            self._latest = number
            stream = self._new_stream(number)
            stream.headers, stream.is_whole = headers, is_last
        self.on_request(stream)

    def _new_stream(self, number: int, place: Place | None = None) -> Stream:
        """Called with `changed` held."""
        stream = self.streams[number] = Stream(number, self._stream_window, Assembler(self._buffers, place))
        return stream

    def _on_settings(self, payload: bytes) -> None:
        with self.lock:
            for setting, value in frames.read_settings(payload):
                if setting == frames.INITIAL_WINDOW_SIZE:
                    for stream in self.streams.values():
                        stream.window += value - self._stream_window
                    self._stream_window = value
                elif setting == frames.MAX_FRAME_SIZE:
                    if not frames.DEFAULT_FRAME <= value <= frames.LARGEST_FRAME:
                        raise ProtocolError(f"frames of {value} bytes")
                    self._max_frame = value
            self.notify()
        self.queue(frames.frame(frames.SETTINGS, frames.ACK, 0, b""))

    def _on_window_update(self, number: int, payload: bytes) -> None:
        more = int.from_bytes(payload, "big") & MAX_WINDOW
        with self.lock:
            if number == 0:
                self._window += more
            elif number in self.streams:
                self.streams[number].window += more
            self.notify()

    def _on_reset(self, number: int, payload: bytes) -> None:
        code = int.from_bytes(payload, "big")
        with self.lock:
            stream = self.streams.get(number)
            if stream is not None and stream.reset is None:
                stream.reset = Ended(f"the peer reset the stream (error {code})")
            self.notify()


def _cut(parts: Sequence[Buffer], count: int) -> tuple[list[Buffer], list[Buffer]]:
    """The first `count` bytes of some buffers, and the rest."""
    ends = list(itertools.accumulate(map(len, parts)))
    i = next(i for i, end in enumerate(ends) if end >= count)
    part, inside = memoryview(parts[i]), count - (ends[i] - len(parts[i]))
    return [*parts[:i], part[:inside]], [part[inside:], *parts[i + 1 :]]
