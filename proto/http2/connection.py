"""One HTTP/2 connection as gRPC uses it, on either side, made for messages of megabytes.

A message is received directly into a reused buffer, and sent from where it lies: the kernel's copies are the only ones.
grpcio copies every message three times when it is received and once when it is sent, and passes it through several
threads; at the paper's shape that was a third of what a step cost (docs/exchange.md).
`downpour.proto.http2.endpoint` has the rules; this module adds the socket, the lock and the waiting.
`downpour.proto.rpc.server` and `downpour.proto.rpc.client` implement gRPC on top, compatible with any other gRPC
implementation.

Threads: one reads; any may send, one at a time. The reader leaves its answers to the thread that is sending. It does
not wait for the consumer of the messages: a stream's flow-control window limits its sender.
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
from downpour.proto.http2.stream import Ended, Event, Limits, Stream

Message = Sequence[Buffer]  # its parts


class Connection:
    """Frames, flow control and messages of one connection.

    Args:
        socket: Reads and sends the connection's bytes.
        buffers: Buffers for received messages.
        limits: Limits for the peer.
        is_server: Whether this side is the server.
    """

    def __init__(self, socket: Socket, buffers: Buffers, limits: Limits, *, is_server: bool) -> None:
        self._socket = socket
        self._buffers = buffers
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self._endpoint = Endpoint(buffers, limits, is_server=is_server)  # guarded by `lock`
        self.streams = self._endpoint.streams  # guarded by `lock`
        self.outgoing = self._endpoint.outgoing  # guarded by `lock`, except that the sending thread takes frames
        self._windows = self._endpoint.windows  # guarded by `lock`
        self._sending = threading.Lock()  # held while frames are sent

    # Sending.

    def greet(self) -> None:
        """Sends the first frames of this side."""
        with self.lock:
            self.outgoing.add(self._endpoint.settings.greeting())
            self._windows.open()
        self.flush()

    def send(self, *buffers: Buffer) -> None:
        """Sends frames as they are, after the queued ones."""
        with self._sending:
            self._send([*self._take_waiting(), *buffers])
        self.flush()

    def flush(self) -> None:
        """Sends the queued small frames: now if no thread is sending, else after its frames."""
        # A thread that has released the lock calls this, so no frame stays queued.
        while self.outgoing.frames and self._sending.acquire(blocking=False):
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
            stream: Stream of the call.
            message: Its parts, all of them buffers of bytes.
            before: Frames sent first, together with the message's first bytes.
            after: Frames sent last, together with the message's last bytes; they end the answer.
            end: Whether the message is the stream's last one.

        Raises:
            Ended: The stream has ended.
            OSError: The connection has ended.
            TooLarge: The message exceeds the size limit.
        """
        left = sum(map(len, message))
        check_length(left)
        parts = [b"\0" + left.to_bytes(PREFIX_BYTES - 1, "big"), *message]
        left += PREFIX_BYTES
        if before and min(stream.window, self._windows.send) <= 0:  # the peer may only open the window after HEADERS
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
        """Waits until a condition on state guarded by `lock` holds; the lock is held before and after.

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
        """Waits until at least one byte may be sent; returns how many may be now, at most `wanted`."""
        with self.lock:
            while not (count := self._windows.take(stream, wanted)):
                self.wait(stream, lambda: stream.reset is not None or min(stream.window, self._windows.send) > 0)
            return count

    def _take_waiting(self) -> list[Buffer]:
        taken, frames = list[Buffer](), self.outgoing.frames
        while frames:
            taken.append(frames.popleft())
        return taken

    # Receiving.

    def want(self, stream: Stream) -> None:
        """Starts to take a stream's messages, which enlarges its flow-control window."""
        with self.lock:
            stream.inbox.want()
            self._windows.grant(stream)
        self.flush()

    def next_message(self, stream: Stream) -> tuple[bytearray | None, memoryview] | None:
        """Returns a wanted stream's next message, in a buffer to be given back; None after the last message.

        The buffer is None where the message was received in its place.

        Raises:
            Unreadable: The message exceeds the size limit or is compressed.
            Ended: The stream has ended early.
            OSError: The connection has ended.
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
            self._windows.grant(stream)
        self.flush()
        return got[0], memoryview(got[0] or b"")[: got[1]]

    def forget(self, stream: Stream) -> None:
        """Closes the stream of a finished call; frames that still arrive on it are discarded."""
        with self.lock:
            self.streams.forget(stream)
            self.changed.notify_all()

    def break_off(self, reason: Exception) -> None:
        """Ends every stream because the connection has ended."""
        with self.lock:
            for stream in self.streams.open.values():
                stream.reset = stream.reset or Ended(str(reason))
            self.changed.notify_all()

    def read(self) -> None:
        """Waits for the next bytes and handles them.

        Raises:
            ProtocolError: They violate HTTP/2.
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
        """Handles bytes that have arrived already, on a non-blocking socket; returns how many they were.

        Raises:
            BlockingIOError: There are none.
        """
        count = self._socket.read_some(self._endpoint.room())
        with self.lock:
            events = self._endpoint.received(count)
        self._after(events)
        return count

    def _after(self, events: Sequence[tuple[Event, Stream]]) -> None:
        """Notifies waiting threads and handles the events of received bytes."""
        if events or self._endpoint.reading is None:  # else a message is incomplete
            with self.lock:
                self.changed.notify_all()
        for event, stream in events:
            self.on_event(event, stream)
        if self.outgoing.frames:
            self.flush()

    def on_event(self, event: Event, stream: Stream) -> None:
        """Handles an event of a stream; the server begins calls here."""

    def say_goodbye(self, code: ErrorCode) -> None:
        """Sends GOAWAY with the reason why the connection ends, if the peer still receives it."""
        with self.lock:
            last = self._endpoint.goaway(code)
        with contextlib.suppress(OSError):
            self.send(last)


def _cut(parts: Sequence[Buffer], count: int) -> tuple[list[Buffer], list[Buffer]]:
    """Splits buffers into their first `count` bytes and the rest."""
    ends = list(itertools.accumulate(map(len, parts)))
    i = next(i for i, end in enumerate(ends) if end >= count)
    part, inside = memoryview(parts[i]), count - (ends[i] - len(parts[i]))
    return [*parts[:i], part[:inside]], [part[inside:], *parts[i + 1 :]]
