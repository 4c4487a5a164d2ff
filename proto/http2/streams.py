"""The streams of one side of an HTTP/2 connection: how they begin, change and end, no I/O (RFC 9113, 5 and 8.1).

`downpour.proto.http2.endpoint` and the parts of it parse the frames and call this module for their effect on streams.
Stream errors are answered here; connection errors are raised.

Threads: any, under the connection's lock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from downpour.proto.http2 import frames, headers
from downpour.proto.http2.assembly import Assembler, Buffers, Inbox, PlaceMessage
from downpour.proto.http2.frames import ErrorCode, ProtocolError
from downpour.proto.http2.headers import Fields, Malformed
from downpour.proto.http2.outgoing import REFUSAL_COST, Outgoing
from downpour.proto.http2.stream import Ended, Event, Limits, Stream
from downpour.proto.http2.windows import Windows

_MAX_CLOSED = 100  # closed streams that are remembered


class Streams:
    """The streams of one connection.

    Args:
        buffers: Buffers for received messages.
        limits: Limits for the peer.
        windows: Flow-control windows of the connection.
        outgoing: Queue for answers.
        is_server: Whether this side is the server.
        clock: Returns seconds; `time.monotonic` except in tests.

    Attributes:
        open: Streams that have begun and for which `forget` was not called, by number.
        last: Number of the stream begun last.
        events: Events since the reader emptied it.
    """

    def __init__(
        self,
        buffers: Buffers,
        limits: Limits,
        windows: Windows,
        outgoing: Outgoing,
        *,
        is_server: bool,
        clock: Callable[[], float],
    ) -> None:
        self._buffers, self._limits, self._is_server, self._clock = buffers, limits, is_server, clock
        self._windows, self._outgoing = windows, outgoing
        self.open: dict[int, Stream] = {}
        self.last = 0
        self.events: list[tuple[Event, Stream]] = []
        self._closed = _Closed()

    # Operations of this side.

    def begin(self, place: PlaceMessage | None) -> Stream:
        """Begins a stream for a call of this side, whose messages are wanted from the beginning."""
        self.last += 1 if self.last == 0 else 2
        stream = self._add(self.last, place)
        stream.inbox.want()
        return stream

    def forget(self, stream: Stream) -> None:
        """Closes the stream of a finished call; frames that still arrive on it are discarded."""
        if stream.is_answered:
            self._outgoing.answered_call()
        if self.open.pop(stream.number, None) is not None:
            is_over = stream.is_reset_by_peer or (stream.is_whole and stream.reset is None)
            self._closed.add(stream.number, is_late_allowed=not is_over)
        stream.reset = stream.reset or Ended("the call is over")
        stream.inbox.clear()

    def fail(self, stream: Stream, code: ErrorCode, reason: str) -> None:
        """Resets a stream because of an error of the peer."""
        stream.reset = stream.reset or Ended(f"{reason} ({code.name})")
        self.events.append((Event.CHANGED, stream))
        self._outgoing.add_reset(stream.number, code, reason)

    # Frames from the peer.

    def check_begun(self, number: int, name: str) -> None:
        """Raises `ProtocolError` for a frame on a stream that has not begun."""
        if number % 2 == 0 or number > self.last:
            raise ProtocolError(f"{name} on stream {number}, which has not begun")

    def on_data(self, number: int, length: int) -> Stream | None:
        """Counts `length` bytes of DATA, padding included; returns their stream, None if they are to be discarded."""
        self.check_begun(number, "DATA")
        self._windows.received(length)
        stream = self.open.get(number)
        if stream is None or stream.reset is not None:
            if not self._is_late_allowed(number, stream):
                self._refuse(number, ErrorCode.STREAM_CLOSED, "DATA on a stream that has ended")
        elif stream.is_whole:
            self.fail(stream, ErrorCode.STREAM_CLOSED, "DATA after the end of the stream")
        elif length > stream.inbox.window:
            self.fail(stream, ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the stream's window")
        else:
            stream.inbox.window -= length
            stream.heard_at = self._clock()
            self._windows.grant(stream)
            return stream
        return None

    def on_messages(self, stream: Stream, num_bytes: int) -> None:
        """Deducts received message bytes from what `content-length` announced."""
        if stream.announced is not None:
            stream.announced -= num_bytes
            if stream.announced < 0:
                self.fail(stream, ErrorCode.PROTOCOL_ERROR, "more DATA than content-length")

    def on_end(self, stream: Stream) -> None:
        """Handles the end of the peer's side of a stream."""
        if stream.announced and stream.reset is None:
            self.fail(stream, ErrorCode.PROTOCOL_ERROR, "less DATA than content-length")
            return
        stream.is_whole = True
        self.events.append((Event.CHANGED, stream))

    def on_headers(self, number: int, pairs: Fields, *, ends: bool, is_dependent: bool) -> None:
        """Handles header fields of a request, a response or trailers.

        Args:
            number: Stream identifier.
            pairs: The fields.
            ends: Whether the peer's side of the stream ends with them.
            is_dependent: Whether the stream's priority depends on itself.
        """
        stream = self.open.get(number)
        if self._is_server and number > self.last:
            self._begin_request(number, pairs, ends, is_dependent)
        elif stream is not None and stream.reset is None:
            self._more_headers(stream, pairs, ends)
        elif stream is None and number not in self._closed:
            raise ProtocolError(f"HEADERS on stream {number} after those of stream {self.last}")
        elif self._is_late_allowed(number, stream):
            self._outgoing.budget.spend(1, "HEADERS on a stream that has ended")
        else:
            raise ProtocolError("HEADERS on a stream that has ended", ErrorCode.STREAM_CLOSED)

    def on_reset(self, number: int, code: int) -> None:
        """Handles RST_STREAM."""
        stream = self.open.get(number)
        if stream is not None:
            if self._is_server and not stream.is_answered and stream.reset is None:
                self._outgoing.budget.spend(REFUSAL_COST, "a cancelled call")
            stream.is_reset_by_peer = True
            stream.reset = stream.reset or Ended(f"the peer reset the stream ({frames.code_name(code)})")
            self.events.append((Event.CHANGED, stream))
        else:
            self._closed.was_reset(number)

    def on_goaway(self, last: int, code: int) -> None:
        """Handles GOAWAY: the peer does not process this side's streams beyond `last`."""
        for stream in self.open.values():
            if not self._is_server and stream.number > last and stream.reset is None:
                stream.reset = Ended(
                    f"the peer closes the connection and has not processed the call ({frames.code_name(code)})"
                )
                self.events.append((Event.CHANGED, stream))

    def _begin_request(self, number: int, pairs: Fields, ends: bool, is_dependent: bool) -> None:
        self.last = number
        try:
            announced = headers.check_request(pairs)
            if announced and ends:
                raise Malformed("less DATA than content-length")
            if is_dependent:
                raise Malformed("a stream that depends on itself")
        except Malformed as error:
            self._refuse(number, ErrorCode.PROTOCOL_ERROR, str(error))
            return
        num_unanswered = sum(not stream.is_answered for stream in self.open.values())
        if num_unanswered >= self._limits.max_streams or len(self.open) >= 2 * self._limits.max_streams:
            self._refuse(number, ErrorCode.REFUSED_STREAM, "too many streams")
            return
        stream = self._add(number, None)
        stream.headers, stream.has_headers, stream.is_whole, stream.announced = pairs, True, ends, announced
        self.events.append((Event.BEGUN, stream))

    def _more_headers(self, stream: Stream, pairs: Fields, ends: bool) -> None:
        """Handles a response or trailers."""
        if stream.is_whole:
            raise ProtocolError("HEADERS after the end of the stream", ErrorCode.STREAM_CLOSED)
        try:
            if stream.has_headers:
                headers.check_trailers(pairs)
                if not ends:
                    raise Malformed("trailers that do not end their stream")
            else:
                headers.check_response(pairs)
                if dict(pairs)[":status"].startswith("1") and not ends:
                    return  # an interim response; the final one follows
        except Malformed as error:
            self.fail(stream, ErrorCode.PROTOCOL_ERROR, str(error))
            return
        stream.headers, stream.has_headers = pairs, True
        if ends:
            self.on_end(stream)

    def _add(self, number: int, place: PlaceMessage | None) -> Stream:
        inbox = Inbox(Assembler(self._buffers, place), self._limits.initial_window)
        now = self._clock()
        stream = self.open[number] = Stream(number, self._windows.initial_send, inbox, began_at=now, heard_at=now)
        return stream

    def _refuse(self, number: int, code: ErrorCode, reason: str) -> None:
        """Resets a stream that is not open."""
        self._closed.add(number, is_late_allowed=True)
        self._outgoing.add_reset(number, code, reason)

    def _is_late_allowed(self, number: int, stream: Stream | None) -> bool:
        """Whether the peer may have sent a frame before it received notice that the stream had ended."""
        return self._closed.is_late_allowed(number) if stream is None else not stream.is_reset_by_peer


class _Closed:
    """The streams closed last, and whether late frames are allowed on them."""

    def __init__(self) -> None:
        self._is_late_allowed: OrderedDict[int, bool] = OrderedDict()  # by number

    def __contains__(self, number: int) -> bool:
        return number in self._is_late_allowed

    def __len__(self) -> int:
        return len(self._is_late_allowed)

    def add(self, number: int, *, is_late_allowed: bool) -> None:
        self._is_late_allowed[number] = is_late_allowed
        if len(self._is_late_allowed) > _MAX_CLOSED:
            self._is_late_allowed.popitem(last=False)

    def was_reset(self, number: int) -> None:
        """Records that the peer has reset a stream, so that nothing may follow."""
        if number in self._is_late_allowed:
            self._is_late_allowed[number] = False

    def is_late_allowed(self, number: int) -> bool:
        return self._is_late_allowed.get(number, False)
