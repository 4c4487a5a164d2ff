"""HTTP/2 as gRPC uses it, made for messages of megabytes: one connection, seen from either side.

A message is received straight into a buffer that is used again, and sent from where it lies: the kernel's copies are
the only ones. grpcio copies every message three times when it comes and once when it goes, and hands it through several
threads; at the paper's shape that was a third of what a step cost (docs/exchange.md).
`downpour.proto.http2.endpoint` has the rules; this adds the socket, the lock and the waiting.
`downpour.proto.rpc.server` and `downpour.proto.rpc.client` make gRPC of it, which any other gRPC implementation
understands.

Threads: one reads; any may send, one at a time. What the reader has to answer it leaves to whoever is sending. It does
not wait for whoever takes the messages: a stream's window holds its sender back.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Sequence

from downpour.proto.http2.assembly import PREFIX_BYTES, Buffers, check_length
from downpour.proto.http2.endpoint import Endpoint
from downpour.proto.http2.frames import DATA, END_STREAM, ErrorCode, head
from downpour.proto.http2.sockets import Buffer, Socket
from downpour.proto.http2.streams import Ended, Event, Limits, Stream

Message = Sequence[Buffer]  # in parts


class Connection:
    """Frames, flow control and messages of one connection.

    Args:
        socket: Its bytes.
        buffers: For messages that come in.
        limits: Of the peer.
        is_server: Which side this is.
    """

    def __init__(self, socket: Socket, buffers: Buffers, limits: Limits, *, is_server: bool) -> None:
        self._socket = socket
        self._buffers = buffers
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self._endpoint = Endpoint(buffers, limits, is_server=is_server)  # guarded by `lock`
        self.streams = self._endpoint.streams  # likewise
        self._sending = threading.Lock()  # held while frames go out

    # Sending.

    def greet(self) -> None:
        """Sends what a connection begins with."""
        with self.lock:
            self.streams.answer(self._endpoint.greeting())
            self.streams.open_window()
        self.flush()

    def send(self, *buffers: Buffer) -> None:
        """Sends frames as they are, after what waits."""
        with self._sending:
            self._send([*self._take_waiting(), *buffers])
        self.flush()

    def flush(self) -> None:
        """Sends the small frames that wait: now if nobody sends, else after what is being sent."""
        # Whoever holds the lock comes here after giving it up, so nothing is left behind.
        while self.streams.outgoing and self._sending.acquire(blocking=False):
            try:
                if waiting := self._take_waiting():
                    self._send(waiting)
            finally:
                self._sending.release()

    def send_message(
        self, stream: Stream, message: Message, before: bytes = b"", after: bytes = b"", *, end: bool = False
    ) -> None:
        """Sends one gRPC message.

        Args:
            stream: Of the call.
            message: Its parts, all of them buffers of bytes.
            before: Frames that go first, in the same breath.
            after: Likewise, last; they end the answer.
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
        if before and min(stream.window, self.streams.window) <= 0:  # the peer opens windows of streams that it knows
            self.send(before)
            before = b""
        while left:
            count = self._take_window(stream, left)
            left -= count
            flags = END_STREAM if end and not left else 0
            now, parts = _cut(parts, count) if left else (parts, [])
            stream.is_answered = bool(after) and not left
            self.send(before + head(count, DATA, flags, stream.number), *now, b"" if left else after)
            before = b""

    def wait(self, stream: Stream, is_due: Callable[[], bool]) -> None:
        """Returns when a condition on what is guarded by `lock` holds, which is held then as before.

        Raises:
            OSError: The connection broke, or the stream's deadline has passed.
        """
        raise NotImplementedError

    def _send(self, buffers: list[Buffer]) -> None:
        try:
            self._socket.send(buffers)
        except OSError:
            self._socket.shut_down()  # perhaps in the middle of a frame: nothing can follow
            raise

    def _take_window(self, stream: Stream, wanted: int) -> int:
        """How many bytes may be sent now, at most `wanted`; waits for one at least."""
        with self.lock:
            while not (count := self.streams.take_window(stream, wanted)):
                self.wait(stream, lambda: stream.reset is not None or min(stream.window, self.streams.window) > 0)
            return count

    def _take_waiting(self) -> list[Buffer]:
        taken, outgoing = list[Buffer](), self.streams.outgoing
        while outgoing:
            taken.append(outgoing.popleft())
        return taken

    # Receiving.

    def want(self, stream: Stream) -> None:
        """Begins to take a stream's messages: from now on the peer may send a larger window ahead."""
        with self.lock:
            self.streams.want(stream)
        self.flush()

    def next_message(self, stream: Stream) -> tuple[bytearray | None, memoryview] | None:
        """The next message of a wanted stream, in a buffer to be given back; None when there are no more.

        There is no buffer where the message is in its place already.

        Raises:
            Unreadable: It is longer than may be, or compressed.
            Ended: The stream has ended in the middle.
            OSError: The connection has.
        """
        with self.lock:
            while (got := stream.inbox.take()) is None:
                if stream.inbox.error is not None:
                    raise stream.inbox.error
                if stream.reset is not None and not stream.is_whole:
                    raise stream.reset
                if stream.is_whole:
                    if stream.inbox.is_inside:
                        raise Ended("the stream ended inside a message")
                    return None
                self.wait(stream, lambda: stream.inbox.has_next or stream.is_whole or stream.reset is not None)
            self.streams.grant(stream)
        self.flush()
        return got[0], memoryview(got[0] or b"")[: got[1]]

    def forget(self, stream: Stream) -> None:
        """The call is over; what still comes of it is thrown away."""
        with self.lock:
            self.streams.forget(stream)
            self.changed.notify_all()

    def break_off(self, reason: Exception) -> None:
        """The connection has ended, and with it every stream."""
        with self.lock:
            for stream in self.streams.open.values():
                stream.reset = stream.reset or Ended(str(reason))
            self.changed.notify_all()

    def read(self) -> None:
        """Waits for the next bytes and does what they ask for.

        Raises:
            ProtocolError: They make no sense.
            OSError: The connection broke.
        """
        room = self._endpoint.room()
        self._socket.read_into(room)
        with self.lock:
            events = self._endpoint.received(len(room))
            while not events and self._socket.read_ahead(room := self._endpoint.room()):
                events = self._endpoint.received(len(room))
        self._after(events)

    def read_some(self) -> int:
        """The same for what has come already, on a socket that does not block; how many bytes that were.

        Raises:
            BlockingIOError: There are none.
        """
        count = self._socket.read_some(self._endpoint.room())
        with self.lock:
            events = self._endpoint.received(count)
        self._after(events)
        return count

    def _after(self, events: Sequence[tuple[Event, Stream]]) -> None:
        """Does what follows from what has come."""
        if events or self._endpoint.reading is None:  # else it is in the middle of a message
            with self.lock:
                self.changed.notify_all()
        for event, stream in events:
            self.on_event(event, stream)
        if self.streams.outgoing:
            self.flush()

    def on_event(self, event: Event, stream: Stream) -> None:
        """Something has happened to a stream; on the server's side calls begin so."""

    def say_goodbye(self, code: ErrorCode) -> None:
        """Tells the peer why the connection ends, if it still listens."""
        with self.lock:
            last = self._endpoint.goaway(code)
        with contextlib.suppress(OSError):
            self.send(last)


def _cut(parts: Sequence[Buffer], count: int) -> tuple[list[Buffer], list[Buffer]]:
    """The first `count` bytes of some buffers, and the rest."""
    ends = list(itertools.accumulate(map(len, parts)))
    i = next(i for i, end in enumerate(ends) if end >= count)
    part, inside = memoryview(parts[i]), count - (ends[i] - len(parts[i]))
    return [*parts[:i], part[:inside]], [part[inside:], *parts[i + 1 :]]
