"""Stream states, flow-control windows and errors of one side of an HTTP/2 connection, no I/O (RFC 9113, 5 to 8).

`downpour.proto.http2.endpoint` parses the frames and calls this module for their effect on streams. Frames to be sent
are queued in `outgoing`. Stream errors are answered here; connection errors are raised.

Threads: any, under the connection's lock.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from downpour.proto.http2 import frames, headers
from downpour.proto.http2.assembly import Assembler, Buffers, Inbox, Place
from downpour.proto.http2.budget import Budget
from downpour.proto.http2.frames import DEFAULT_WINDOW, MAX_WINDOW, ErrorCode, ProtocolError
from downpour.proto.http2.headers import Fields, Malformed

_MAX_ANSWERS = 1000  # queued because the peer does not read
_MAX_CLOSED = 100  # closed streams that are remembered

# Frames without data that a peer may send at once and per second, plus one for each `_BYTES_A_FRAME` bytes sent to it
# and some for each call that has ended: grpcio updates windows twice for a small one.
_BUDGET, _BUDGET_PER_S, _BYTES_A_FRAME, _FRAMES_A_CALL = 1000.0, 50.0, 1024, 4.0
REFUSAL_COST = 10.0  # of a refused or failed stream, in such frames


class Ended(Exception):
    """A stream has ended: one side reset it, or the connection is lost."""


class Event(enum.Enum):
    """What happened to a stream."""

    BEGUN = enum.auto()  # a request's header fields were received
    CHANGED = enum.auto()  # messages, the end of the stream, trailers or an error


@dataclass(frozen=True)
class Limits:
    """Limits that this side sets for the peer.

    Attributes:
        initial_window: Flow-control window of a new stream, in bytes.
        wanted_window: Window once the stream's messages are wanted, in bytes in flight or received but not taken.
        max_streams: Streams that the peer may have open at one time.
    """

    initial_window: int
    wanted_window: int
    max_streams: int = 0


@dataclass(eq=False)
class Stream:
    """The state of one HTTP/2 stream, which is one call.

    Attributes:
        number: Stream identifier.
        window: Bytes that may be sent.
        inbox: Received messages.
        headers: Header fields received last; the trailers, once the call has ended.
        has_headers: Whether any header fields were received.
        is_whole: Whether the peer has ended its side of the stream.
        reset: Why the stream cannot continue; None if it can.
        is_reset_by_peer: Whether the peer reset it.
        is_answered: Whether the end of the answer is being sent; the peer may begin another stream instead.
        announced: Bytes of messages still due by `content-length`; None without that field.
        deadline: Until when operations may wait for it, a moment of `time.monotonic()`; None for no limit.
        began_at: When it began, a moment of the clock.
        heard_at: When it began or last received DATA.
    """

    number: int
    window: int
    inbox: Inbox
    headers: Fields = ()
    has_headers: bool = False
    is_whole: bool = False
    reset: Ended | None = None
    is_reset_by_peer: bool = False
    is_answered: bool = False
    announced: int | None = None
    deadline: float | None = None
    began_at: float = 0.0
    heard_at: float = 0.0


class Streams:
    """The streams of one connection, their windows, and the frames sent in answer to received ones.

    Args:
        buffers: Buffers for received messages.
        limits: Limits for the peer.
        is_server: Whether this side is the server.
        clock: Returns seconds; `time.monotonic` except in tests.

    Attributes:
        open: Streams that have begun and for which `forget` was not called, by number.
        last: Number of the stream begun last.
        window: Bytes that may be sent on all streams together.
        max_frame: Maximum payload of a sent frame, in bytes.
        outgoing: Frames to be sent, in this order.
        events: Events since the reader emptied it.
        budget: Budget for frames without data.
    """

    def __init__(self, buffers: Buffers, limits: Limits, *, is_server: bool, clock: Callable[[], float]) -> None:
        self._buffers, self._limits, self._is_server, self._clock = buffers, limits, is_server, clock
        self.open: dict[int, Stream] = {}
        self.last = 0
        self.window = DEFAULT_WINDOW
        self.max_frame = frames.DEFAULT_FRAME
        self.outgoing: deque[bytes] = deque()
        self.events: list[tuple[Event, Stream]] = []
        self.budget = Budget(_BUDGET, _BUDGET_PER_S, clock)
        self._initial_window = DEFAULT_WINDOW  # send window of a new stream
        self._received = 0  # bytes of DATA not yet returned to the peer by WINDOW_UPDATE of the connection
        self._my_window = DEFAULT_WINDOW  # receive window of the connection, before they are deducted
        self._closed: OrderedDict[int, bool] = OrderedDict()  # number: whether late frames are allowed

    # Operations of this side.

    def begin(self, place: Place | None) -> Stream:
        """Begins a stream for a call of this side, whose messages are wanted from the beginning."""
        self.last += 1 if self.last == 0 else 2
        stream = self._add(self.last, place)
        stream.inbox.want()
        return stream

    def open_window(self) -> None:
        """Sets the connection's receive window to the maximum: the streams' windows bound memory."""
        self.answer(frames.window_update(0, MAX_WINDOW - DEFAULT_WINDOW))
        self._my_window = MAX_WINDOW

    def want(self, stream: Stream) -> None:
        """Starts to take a stream's messages, which enlarges its window."""
        stream.inbox.want()
        self.grant(stream)

    def grant(self, stream: Stream) -> None:
        """Sends WINDOW_UPDATE for a stream if at least half a window is free."""
        inbox = stream.inbox
        if inbox.is_wanted and inbox.error is None and not stream.is_whole and not stream.is_answered:
            more = self._limits.wanted_window - inbox.window - inbox.held
            if more >= self._limits.wanted_window // 2:
                inbox.window += more
                self.answer(frames.window_update(stream.number, more))

    def take_window(self, stream: Stream, wanted: int) -> int:
        """Deducts at most `wanted` bytes from a stream's send windows; returns how many may be sent now.

        Raises:
            Ended: The stream has ended.
        """
        if stream.reset is not None:
            raise stream.reset
        count = max(0, min(wanted, stream.window, self.window, self.max_frame))
        stream.window -= count
        self.window -= count
        self.budget.earn(count / _BYTES_A_FRAME)
        return count

    def forget(self, stream: Stream) -> None:
        """Closes the stream of a finished call; frames that still arrive on it are discarded."""
        if stream.is_answered:
            self.budget.earn(_FRAMES_A_CALL)
        if self.open.pop(stream.number, None) is not None:
            is_over = stream.is_reset_by_peer or (stream.is_whole and stream.reset is None)
            self._remember(stream.number, is_late_allowed=not is_over)
        stream.reset = stream.reset or Ended("the call is over")
        stream.inbox.clear()

    def fail(self, stream: Stream, code: ErrorCode, reason: str) -> None:
        """Resets a stream because of an error of the peer."""
        stream.reset = stream.reset or Ended(f"{reason} ({code.name})")
        self.events.append((Event.CHANGED, stream))
        self._answer_reset(stream.number, code, reason)

    def answer(self, frame: bytes) -> None:
        """Queues a small frame; raises `ProtocolError` if too many are queued."""
        if len(self.outgoing) >= _MAX_ANSWERS:
            raise ProtocolError("the peer sends without reading", ErrorCode.ENHANCE_YOUR_CALM)
        self.outgoing.append(frame)

    # Frames from the peer.

    def check_begun(self, number: int, name: str) -> None:
        """Raises `ProtocolError` for a frame on a stream that has not begun."""
        if number % 2 == 0 or number > self.last:
            raise ProtocolError(f"{name} on stream {number}, which has not begun")

    def on_data(self, number: int, length: int) -> Stream | None:
        """Counts `length` bytes of DATA, padding included; returns their stream, None if they are to be discarded."""
        self.check_begun(number, "DATA")
        self._received += length
        if self._received > self._my_window:
            raise ProtocolError("more DATA than the connection's window", ErrorCode.FLOW_CONTROL_ERROR)
        if self._received > self._my_window // 4:
            self.answer(frames.window_update(0, self._received))
            self._received = 0
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
            self.grant(stream)
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
            self.budget.spend(1, "HEADERS on a stream that has ended")
        else:
            raise ProtocolError("HEADERS on a stream that has ended", ErrorCode.STREAM_CLOSED)

    def on_reset(self, number: int, code: int) -> None:
        """Handles RST_STREAM."""
        stream = self.open.get(number)
        if stream is not None:
            stream.is_reset_by_peer = True
            stream.reset = stream.reset or Ended(f"the peer reset the stream ({frames.code_name(code)})")
            self.events.append((Event.CHANGED, stream))
        elif number in self._closed:
            self._closed[number] = False

    def on_window_update(self, number: int, more: int) -> None:
        """Handles WINDOW_UPDATE by `more` bytes; number 0 is the connection."""
        stream = self.open.get(number)
        before = stream.window if stream is not None else self.window
        code = None
        if not more or before + more > MAX_WINDOW:
            code = ErrorCode.FLOW_CONTROL_ERROR if more else ErrorCode.PROTOCOL_ERROR
        if number == 0:
            if code is not None:
                raise ProtocolError(f"WINDOW_UPDATE by {more}", code)
            self.window += more
        elif stream is not None and stream.reset is None:
            if code is None:
                stream.window += more
            else:
                self.fail(stream, code, f"WINDOW_UPDATE by {more}")

    def on_initial_window(self, value: int) -> None:
        """Handles INITIAL_WINDOW_SIZE, which changes the send window of every stream."""
        more = value - self._initial_window
        if value > MAX_WINDOW or any(stream.window + more > MAX_WINDOW for stream in self.open.values()):
            raise ProtocolError(f"INITIAL_WINDOW_SIZE of {value}", ErrorCode.FLOW_CONTROL_ERROR)
        for stream in self.open.values():
            stream.window += more
        self._initial_window = value

    def on_goaway(self, last: int, code: int) -> None:
        """Handles GOAWAY: the peer does not process this side's streams beyond `last`."""
        for stream in self.open.values():
            if not self._is_server and stream.number > last and stream.reset is None:
                stream.reset = Ended(f"the peer goes away and has not looked at the call ({frames.code_name(code)})")
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
        if self._num_unanswered() >= self._limits.max_streams or len(self.open) >= 2 * self._limits.max_streams:
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

    def _add(self, number: int, place: Place | None) -> Stream:
        inbox = Inbox(Assembler(self._buffers, place), self._limits.initial_window)
        now = self._clock()
        stream = self.open[number] = Stream(number, self._initial_window, inbox, began_at=now, heard_at=now)
        return stream

    def _num_unanswered(self) -> int:
        return sum(not stream.is_answered for stream in self.open.values())

    def _refuse(self, number: int, code: ErrorCode, reason: str) -> None:
        """Resets a stream that is not open."""
        self._remember(number, is_late_allowed=True)
        self._answer_reset(number, code, reason)

    def _answer_reset(self, number: int, code: ErrorCode, reason: str) -> None:
        self.answer(frames.reset(number, code))
        self.budget.spend(REFUSAL_COST, reason)

    def _is_late_allowed(self, number: int, stream: Stream | None) -> bool:
        """Whether the peer may have sent a frame before it received notice that the stream had ended."""
        if stream is not None:
            return not stream.is_reset_by_peer
        return self._closed.get(number, False)

    def _remember(self, number: int, *, is_late_allowed: bool) -> None:
        self._closed[number] = is_late_allowed
        if len(self._closed) > _MAX_CLOSED:
            self._closed.popitem(last=False)
