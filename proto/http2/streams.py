"""The streams of one HTTP/2 connection, seen from one side, without I/O: states, windows, errors (RFC 9113, 5 to 8).

`downpour.proto.http2.endpoint` reads the frames and asks here what they mean. What is to be sent because of it is in
`outgoing`. Errors of a stream are answered here; errors of the connection are raised.

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

_MAX_ANSWERS = 1000  # that wait because the peer does not read
_MAX_CLOSED = 100  # streams that are remembered

# A peer may send so many frames without data at once and a second, one for so many bytes that it was sent, and some for
# each call that has come to its end: grpcio opens windows twice for a small one.
_BUDGET, _BUDGET_PER_S, _BYTES_A_FRAME, _FRAMES_A_CALL = 1000.0, 50.0, 1024, 4.0
REFUSAL_COST = 10.0  # of a stream that is refused or fails, in such frames


class Ended(Exception):
    """A stream has ended: one side reset it, or the connection is gone."""


class Event(enum.Enum):
    """What has happened to a stream."""

    BEGUN = enum.auto()  # a request's header fields have come
    CHANGED = enum.auto()  # messages, the end, trailers, an error


@dataclass(frozen=True)
class Limits:
    """What this side lets the other do.

    Attributes:
        initial_window: Bytes of a new stream that may be sent.
        wanted_window: Bytes of a stream that may be sent, or have come and wait, once its messages are wanted.
        max_streams: That the peer may have open at one time.
    """

    initial_window: int
    wanted_window: int
    max_streams: int = 0


@dataclass(eq=False)
class Stream:
    """The state of one HTTP/2 stream, which is one call.

    Attributes:
        number: Of the stream.
        window: Bytes that may be sent.
        inbox: What comes.
        headers: That came last; the trailers, once the call has ended.
        has_headers: Whether any have come.
        is_whole: The peer has sent everything.
        reset: Why the stream cannot go on; None if it can.
        is_reset_by_peer: Whether the peer ended it.
        is_answered: Whether the end of the answer goes out now; the peer may begin another stream instead.
        announced: Bytes of messages that `content-length` says are still to come; None if it says nothing.
        deadline: Until when anybody waits for it, a moment of `time.monotonic()`.
        began_at: When it began, a moment of the clock.
        heard_at: When it began, or DATA of it came last.
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
    """The streams of one connection, their windows and the frames that answer what comes.

    Args:
        buffers: For messages that come.
        limits: Of the peer.
        is_server: Which side this is.
        clock: Seconds; `time.monotonic` but in tests.

    Attributes:
        open: By number: that have begun and that nobody has forgotten.
        last: The number of the one that was begun last.
        window: Bytes that may be sent, of all together.
        max_frame: Bytes of a frame that may be sent.
        outgoing: Frames to be sent, in this order.
        events: What has happened; emptied by whoever reads them.
        budget: Of frames without data.
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
        self._initial_window = DEFAULT_WINDOW  # of a new stream, to be sent
        self._received = 0  # bytes of DATA for which the connection's window has not been given back
        self._my_window = DEFAULT_WINDOW  # of the connection, for the peer, without them
        self._closed: OrderedDict[int, bool] = OrderedDict()  # number: whether what still comes of it is no error

    # What this side does.

    def begin(self, place: Place | None) -> Stream:
        """A call of this side, whose messages are wanted from the beginning."""
        self.last += 1 if self.last == 0 else 2
        stream = self._add(self.last, place)
        stream.inbox.want()
        return stream

    def open_window(self) -> None:
        """The connection's window is as large as may be from now on: memory is bounded by the streams'."""
        self.answer(frames.window_update(0, MAX_WINDOW - DEFAULT_WINDOW))
        self._my_window = MAX_WINDOW

    def want(self, stream: Stream) -> None:
        """Begins to take a stream's messages."""
        stream.inbox.want()
        self.grant(stream)

    def grant(self, stream: Stream) -> None:
        """Lets the peer send more of a stream when there is room for half a window."""
        inbox = stream.inbox
        if inbox.is_wanted and inbox.error is None and not stream.is_whole and not stream.is_answered:
            more = self._limits.wanted_window - inbox.window - inbox.held
            if more >= self._limits.wanted_window // 2:
                inbox.window += more
                self.answer(frames.window_update(stream.number, more))

    def take_window(self, stream: Stream, wanted: int) -> int:
        """How many bytes of a stream may be sent now, at most `wanted`; they count as sent.

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
        """The call is over; what still comes of it is thrown away."""
        if stream.is_answered:
            self.budget.earn(_FRAMES_A_CALL)
        if self.open.pop(stream.number, None) is not None:
            is_over = stream.is_reset_by_peer or (stream.is_whole and stream.reset is None)
            self._remember(stream.number, is_late_allowed=not is_over)
        stream.reset = stream.reset or Ended("the call is over")
        stream.inbox.clear()

    def fail(self, stream: Stream, code: ErrorCode, reason: str) -> None:
        """Ends a stream because of what the peer has sent."""
        stream.reset = stream.reset or Ended(f"{reason} ({code.name})")
        self.events.append((Event.CHANGED, stream))
        self._answer_reset(stream.number, code, reason)

    def answer(self, frame: bytes) -> None:
        """A small frame is to be sent."""
        if len(self.outgoing) >= _MAX_ANSWERS:
            raise ProtocolError("the peer sends without reading", ErrorCode.ENHANCE_YOUR_CALM)
        self.outgoing.append(frame)

    # What the peer does.

    def check_begun(self, number: int, name: str) -> None:
        """Raises `ProtocolError` for a frame on a stream that has not begun."""
        if number % 2 == 0 or number > self.last:
            raise ProtocolError(f"{name} on stream {number}, which has not begun")

    def on_data(self, number: int, length: int) -> Stream | None:
        """The stream that DATA of so many bytes, padding included, is for; None if nobody wants it."""
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
        """So many bytes of DATA are messages."""
        if stream.announced is not None:
            stream.announced -= num_bytes
            if stream.announced < 0:
                self.fail(stream, ErrorCode.PROTOCOL_ERROR, "more DATA than content-length")

    def on_end(self, stream: Stream) -> None:
        """The peer sends no more of a stream."""
        if stream.announced and stream.reset is None:
            self.fail(stream, ErrorCode.PROTOCOL_ERROR, "less DATA than content-length")
            return
        stream.is_whole = True
        self.events.append((Event.CHANGED, stream))

    def on_headers(self, number: int, pairs: Fields, *, ends: bool, is_dependent: bool) -> None:
        """Header fields of a request, a response or trailers.

        Args:
            number: Of the stream.
            pairs: The fields.
            ends: Whether the peer sends no more of the stream.
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
        """The peer ends a stream."""
        stream = self.open.get(number)
        if stream is not None:
            stream.is_reset_by_peer = True
            stream.reset = stream.reset or Ended(f"the peer reset the stream ({frames.code_name(code)})")
            self.events.append((Event.CHANGED, stream))
        elif number in self._closed:
            self._closed[number] = False

    def on_window_update(self, number: int, more: int) -> None:
        """The peer takes so many bytes more of a stream, or with number 0 of all."""
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
        """The peer changes the window of every stream."""
        more = value - self._initial_window
        if value > MAX_WINDOW or any(stream.window + more > MAX_WINDOW for stream in self.open.values()):
            raise ProtocolError(f"INITIAL_WINDOW_SIZE of {value}", ErrorCode.FLOW_CONTROL_ERROR)
        for stream in self.open.values():
            stream.window += more
        self._initial_window = value

    def on_goaway(self, last: int, code: int) -> None:
        """The peer looks at no streams of this side beyond `last`."""
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
        """A response, or trailers."""
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
                    return  # of no interest; the response follows
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
        """Ends a stream that is not open."""
        self._remember(number, is_late_allowed=True)
        self._answer_reset(number, code, reason)

    def _answer_reset(self, number: int, code: ErrorCode, reason: str) -> None:
        self.answer(frames.reset(number, code))
        self.budget.spend(REFUSAL_COST, reason)

    def _is_late_allowed(self, number: int, stream: Stream | None) -> bool:
        """Whether the peer may not have known yet that a stream has ended."""
        if stream is not None:
            return not stream.is_reset_by_peer
        return self._closed.get(number, False)

    def _remember(self, number: int, *, is_late_allowed: bool) -> None:
        self._closed[number] = is_late_allowed
        if len(self._closed) > _MAX_CLOSED:
            self._closed.popitem(last=False)
