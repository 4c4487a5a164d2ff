"""The rules of HTTP/2, without a connection: bytes in, answers out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from downpour.proto.http2 import frames, headers
from downpour.proto.http2.assembly import Buffers
from downpour.proto.http2.endpoint import Endpoint
from downpour.proto.http2.frames import DEFAULT_WINDOW, MAX_WINDOW, ErrorCode, ProtocolError, frame
from downpour.proto.http2.stream import Event, Limits, Stream
from tests.proto.http2.test_connection import GREETING, REQUEST, message

LIMITS = Limits(DEFAULT_WINDOW, 1 << 22, max_streams=4)
OPEN = headers.write(1, REQUEST, end=False)
WHOLE = headers.write(1, REQUEST, end=True)


@dataclass
class Side:
    """A server's side, fed with bytes."""

    now: float = 0.0
    begun: list[Stream] = field(default_factory=list)
    is_server: bool = True
    is_open: bool = True  # as wide as a connection's window is

    def __post_init__(self) -> None:
        self.endpoint = Endpoint(Buffers(4), LIMITS, is_server=self.is_server, clock=lambda: self.now)
        if self.is_open:
            self.endpoint.windows.open()

    def greet(self) -> None:
        """As a client does, from which a call has been admitted."""
        self.endpoint.settings.take_large_frames()
        self.feed(GREETING + 2 * frame(frames.SETTINGS, frames.ACK, 0, b""))
        self.outgoing()

    def feed(self, data: bytes, pieces: Sequence[int] = ()) -> None:
        """In pieces of these sizes, then as they fit."""
        left, sizes = memoryview(data), iter(pieces)
        while left:
            room = self.endpoint.room()
            assert len(room)
            count = min(len(room), len(left), next(sizes, len(left)))
            room[:count], left = left[:count], left[count:]
            for event, stream in self.endpoint.received(count):
                if event is Event.BEGUN:
                    self.begun.append(stream)

    def outgoing(self) -> bytes:
        out = b"".join(self.endpoint.outgoing.frames)
        self.endpoint.outgoing.frames.clear()
        return out


def reply(data: bytes) -> bytes:
    """What a server answers to frames after the greeting."""
    side = Side()
    side.greet()
    side.feed(data)
    return side.outgoing()


ANY_FRAME = st.builds(
    frame,
    st.integers(0, 11),
    st.integers(0, 255),
    st.sampled_from([0, 1, 2, 3, 5, 7, MAX_WINDOW]),
    st.binary(max_size=80),
)
KNOWN_FRAMES = st.sampled_from(
    [
        OPEN,
        WHOLE,
        headers.write(3, REQUEST, end=False),
        frame(frames.DATA, 0, 1, message(b"abc")),
        frame(frames.DATA, frames.END_STREAM, 1, b""),
        frame(frames.DATA, frames.PADDED, 3, b"\x03" + message(b"d") + bytes(3)),
        frame(frames.RST_STREAM, 0, 1, bytes(4)),
        frames.window_update(1, 5),
        frames.settings({frames.INITIAL_WINDOW_SIZE: 7}),
        frame(frames.HEADERS, 0, 5, b""),
        frame(frames.CONTINUATION, frames.END_HEADERS, 5, b"\x82"),
        frames.goaway(0, 0),
    ]
)
TALK = st.lists(ANY_FRAME | KNOWN_FRAMES | st.binary(max_size=20), max_size=20).map(b"".join)


@settings(max_examples=600)
@given(TALK, st.booleans(), st.booleans(), st.lists(st.integers(1, 40), max_size=50))
@example(headers.write(1, REQUEST, end=False)[:-1] + b"\xff", True, True, [])
def test_whatever_comes_in_any_pieces_is_answered_or_a_protocol_error(
    data: bytes, begins: bool, is_server: bool, pieces: list[int]
) -> None:
    outcomes = []
    for sizes in ([], pieces):
        side = Side(is_server=is_server)
        if not is_server:
            side.endpoint.streams.begin(None)
        greeting = GREETING if is_server else frames.settings({})
        try:
            side.feed((greeting if begins else b"") + data, sizes)
            code = None
        except ProtocolError as error:
            code = error.code
        streams = side.endpoint.streams
        outcomes.append((code, side.outgoing(), [(s.number, s.is_whole, s.headers) for s in side.begun], streams.last))
        assert len(streams.open) <= LIMITS.max_streams
        assert all(0 <= stream.inbox.held <= DEFAULT_WINDOW for stream in streams.open.values())
    assert outcomes[0] == outcomes[1]


def test_what_a_peer_can_pin_is_bounded() -> None:
    """By windows for messages, by their length for header fields, by the number of answers that wait."""
    side = Side()
    side.feed(GREETING)
    with pytest.raises(ProtocolError):
        for number in range(1, 100_001, 2):
            side.feed(headers.write(number, REQUEST, end=False))
            side.feed(frame(frames.DATA, 0, number, bytes(1 << 14)))
    streams = side.endpoint.streams
    held = sum(len(stream.inbox._spilled) for stream in streams.open.values())
    assert held <= LIMITS.max_streams * DEFAULT_WINDOW
    assert len(side.endpoint.outgoing.frames) <= 1000 and len(streams._closed) <= 100
    assert sum(len(block) for block, _ in side.endpoint._blocks._reader._known) < 1 << 15


ERRORS_OF_THE_CONNECTION = {
    "DATA on stream 0": (frame(frames.DATA, 0, 0, b"x"), ErrorCode.PROTOCOL_ERROR),
    "DATA before HEADERS": (frame(frames.DATA, 0, 1, b"x"), ErrorCode.PROTOCOL_ERROR),
    "DATA that is all padding and more": (OPEN + frame(frames.DATA, 8, 1, b"\x05abc"), ErrorCode.PROTOCOL_ERROR),
    "padding without a length": (OPEN + frame(frames.DATA, 8, 1, b""), ErrorCode.FRAME_SIZE_ERROR),
    "a frame that is too long": (OPEN + frames.head(1 << 23, frames.DATA, 0, 1), ErrorCode.FRAME_SIZE_ERROR),
    "HEADERS on stream 0": (frame(frames.HEADERS, 4, 0, b""), ErrorCode.PROTOCOL_ERROR),
    "HEADERS on an even stream": (headers.write(2, REQUEST, end=True), ErrorCode.PROTOCOL_ERROR),
    "an earlier stream": (headers.write(5, REQUEST, end=True) + WHOLE, ErrorCode.PROTOCOL_ERROR),
    "HEADERS after the end": (WHOLE + WHOLE, ErrorCode.STREAM_CLOSED),
    "HEADERS with a priority cut off": (frame(frames.HEADERS, 0x24, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
    "HEADERS with too much padding": (frame(frames.HEADERS, 0xC, 1, b"\x09\x82"), ErrorCode.PROTOCOL_ERROR),
    "a block that cannot be decoded": (frame(frames.HEADERS, 4, 1, b"\xff\xff"), ErrorCode.COMPRESSION_ERROR),
    "HEADERS that are too long": (frames.head(1 << 15, frames.HEADERS, 0, 1), ErrorCode.ENHANCE_YOUR_CALM),
    "PING inside a block": (frame(frames.HEADERS, 0, 1, b"") + frame(6, 0, 0, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "CONTINUATION alone": (frame(frames.CONTINUATION, 4, 1, b""), ErrorCode.PROTOCOL_ERROR),
    "CONTINUATION of another": (
        frame(frames.HEADERS, 0, 1, b"") + frame(frames.CONTINUATION, 4, 3, b""),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "RST_STREAM before HEADERS": (frames.reset(1, 0), ErrorCode.PROTOCOL_ERROR),
    "RST_STREAM of 3 bytes": (OPEN + frame(frames.RST_STREAM, 0, 1, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
    "SETTINGS on a stream": (frame(frames.SETTINGS, 0, 1, b""), ErrorCode.PROTOCOL_ERROR),
    "SETTINGS of 5 bytes": (frame(frames.SETTINGS, 0, 0, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
    "SETTINGS acknowledged with contents": (frame(frames.SETTINGS, 1, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
    "ENABLE_PUSH of 2": (frames.settings({frames.ENABLE_PUSH: 2}), ErrorCode.PROTOCOL_ERROR),
    "a window of 2^31": (frames.settings({frames.INITIAL_WINDOW_SIZE: 1 << 31}), ErrorCode.FLOW_CONTROL_ERROR),
    "frames of 100 bytes": (frames.settings({frames.MAX_FRAME_SIZE: 100}), ErrorCode.PROTOCOL_ERROR),
    "frames of 2^24 bytes": (frames.settings({frames.MAX_FRAME_SIZE: 1 << 24}), ErrorCode.PROTOCOL_ERROR),
    "a stream's window that overflows": (
        OPEN + frames.window_update(1, 100) + frames.settings({frames.INITIAL_WINDOW_SIZE: MAX_WINDOW}),
        ErrorCode.FLOW_CONTROL_ERROR,
    ),
    "PUSH_PROMISE": (OPEN + frame(frames.PUSH_PROMISE, 4, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    "PING on a stream": (frame(frames.PING, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "PING of 7 bytes": (frame(frames.PING, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
    "GOAWAY on a stream": (frame(frames.GOAWAY, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "GOAWAY of 7 bytes": (frame(frames.GOAWAY, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
    "WINDOW_UPDATE by 0": (frames.window_update(0, 0), ErrorCode.PROTOCOL_ERROR),
    "WINDOW_UPDATE too far": (frames.window_update(0, MAX_WINDOW), ErrorCode.FLOW_CONTROL_ERROR),
    "WINDOW_UPDATE of 3 bytes": (frame(frames.WINDOW_UPDATE, 0, 0, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
    "WINDOW_UPDATE before HEADERS": (frames.window_update(1, 1), ErrorCode.PROTOCOL_ERROR),
    "PRIORITY of 4 bytes": (frame(frames.PRIORITY, 0, 3, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
    "PINGs": (frame(frames.PING, 0, 0, bytes(8)) * 1001, ErrorCode.ENHANCE_YOUR_CALM),
    "SETTINGS again and again": (frames.settings({}) * 1001, ErrorCode.ENHANCE_YOUR_CALM),
    "empty DATA": (OPEN + frame(frames.DATA, 0, 1, b"") * 1001, ErrorCode.ENHANCE_YOUR_CALM),
    "empty CONTINUATION": (
        frame(frames.HEADERS, 0, 1, b"") + frame(frames.CONTINUATION, 0, 1, b"") * 1001,
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "PRIORITY": (frame(frames.PRIORITY, 0, 3, bytes(5)) * 1001, ErrorCode.ENHANCE_YOUR_CALM),
    "frames that nobody knows": (frame(99, 0, 0, bytes(640)) * 101, ErrorCode.ENHANCE_YOUR_CALM),
    "streams that are reset at once": (
        b"".join(headers.write(n, REQUEST, end=True) + frames.reset(n, 8) for n in range(1, 2003, 2)),
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "streams that are refused": (
        b"".join(headers.write(n, [(":method", "POST")], end=True) for n in range(1, 205, 2)),
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
}


@pytest.mark.parametrize("name", ERRORS_OF_THE_CONNECTION)
def test_an_error_of_the_connection_has_its_code(name: str) -> None:
    data, code = ERRORS_OF_THE_CONNECTION[name]
    with pytest.raises(ProtocolError) as caught:
        reply(data)
    assert caught.value.code is code


def request(*fields: tuple[str, str], without: str = "", end: bool = True) -> bytes:
    return headers.write(1, [*(pair for pair in REQUEST if pair[0] != without), *fields], end=end)


ERRORS_OF_A_STREAM = {
    "DATA after the end": (WHOLE + frame(frames.DATA, 0, 1, b"x"), ErrorCode.STREAM_CLOSED),
    "DATA after RST_STREAM": (OPEN + frames.reset(1, 8) + frame(0, 0, 1, b"x"), ErrorCode.STREAM_CLOSED),
    "more than the window": (OPEN + frame(frames.DATA, 0, 1, bytes(1 << 16)), ErrorCode.FLOW_CONTROL_ERROR),
    "trailers that do not end": (OPEN + headers.write(1, [("a", "b")], end=False), ErrorCode.PROTOCOL_ERROR),
    "pseudo-header fields in trailers": (OPEN + headers.write(1, REQUEST[:1], end=True), ErrorCode.PROTOCOL_ERROR),
    "WINDOW_UPDATE by 0": (OPEN + frames.window_update(1, 0), ErrorCode.PROTOCOL_ERROR),
    "WINDOW_UPDATE too far": (OPEN + frames.window_update(1, MAX_WINDOW), ErrorCode.FLOW_CONTROL_ERROR),
    "PRIORITY of 4 bytes": (OPEN + frame(frames.PRIORITY, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
    "PRIORITY of itself": (OPEN + frame(frames.PRIORITY, 0, 1, b"\0\0\0\1\0"), ErrorCode.PROTOCOL_ERROR),
    "no method": (request(without=":method"), ErrorCode.PROTOCOL_ERROR),
    "no path": (request(without=":path"), ErrorCode.PROTOCOL_ERROR),
    "no scheme": (request(without=":scheme"), ErrorCode.PROTOCOL_ERROR),
    "an empty path": (request((":path", ""), without=":path"), ErrorCode.PROTOCOL_ERROR),
    "a field twice": (request((":path", "/b")), ErrorCode.PROTOCOL_ERROR),
    "a field of a response": (request((":status", "200")), ErrorCode.PROTOCOL_ERROR),
    "a pseudo-header field too late": (request(("a", "b"), (":authority", "c")), ErrorCode.PROTOCOL_ERROR),
    "capitals": (request(("Name", "b")), ErrorCode.PROTOCOL_ERROR),
    "a blank in a name": (request(("na me", "b")), ErrorCode.PROTOCOL_ERROR),
    "a line break in a value": (request(("a", "b\r\nc")), ErrorCode.PROTOCOL_ERROR),
    "a blank before a value": (request(("a", " b")), ErrorCode.PROTOCOL_ERROR),
    "connection": (request(("connection", "close")), ErrorCode.PROTOCOL_ERROR),
    "te": (request(("te", "gzip")), ErrorCode.PROTOCOL_ERROR),
    "less than announced": (
        request(("content-length", "5"), end=False) + frame(frames.DATA, 1, 1, b"abc"),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "more than announced": (
        request(("content-length", "2"), end=False) + frame(frames.DATA, 1, 1, b"abc"),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "nothing of what was announced": (request(("content-length", "2")), ErrorCode.PROTOCOL_ERROR),
    "a length that is none": (request(("content-length", "two")), ErrorCode.PROTOCOL_ERROR),
}


@pytest.mark.parametrize("name", ERRORS_OF_A_STREAM)
def test_an_error_of_a_stream_leaves_the_connection_to_others(name: str) -> None:
    data, code = ERRORS_OF_A_STREAM[name]
    side = Side()
    side.greet()
    side.feed(data)
    assert side.outgoing() == frames.reset(1, code)
    side.feed(headers.write(3, REQUEST, end=True))
    assert side.begun[-1].number == 3 and side.begun[-1].reset is None


def test_too_many_streams_are_refused_until_one_is_over() -> None:
    side = Side()
    side.feed(GREETING + b"".join(headers.write(n, REQUEST, end=True) for n in range(1, 9, 2)))
    side.outgoing()
    side.feed(headers.write(9, REQUEST, end=True))
    assert side.outgoing() == frames.reset(9, ErrorCode.REFUSED_STREAM)
    side.endpoint.streams.forget(side.begun[0])
    side.feed(headers.write(11, REQUEST, end=True))
    assert side.begun[-1].number == 11


def test_what_comes_late_of_a_call_that_we_ended_is_no_error() -> None:
    side = Side()
    side.feed(GREETING + OPEN)
    side.outgoing()
    side.endpoint.streams.forget(side.begun[0])
    side.feed(frame(frames.DATA, 0, 1, b"late") + frames.window_update(1, 5) + headers.write(1, [("a", "b")], end=True))
    assert side.outgoing() == b""


def test_the_connections_window_counts_padding_and_what_nobody_wants() -> None:
    side = Side()
    side.greet()
    side.feed(OPEN)
    side.endpoint.streams.forget(side.begun[0])
    padded = frame(frames.DATA, frames.PADDED, 1, b"\xff" + bytes(255))
    wide = frame(frames.DATA, 0, 1, bytes(frames.MAX_FRAME_BYTES))
    while not (out := side.outgoing()):
        side.feed(padded + wide)
    assert out[:9] == frames.window_update(0, 1)[:9]
    assert int.from_bytes(out[9:13], "big") > MAX_WINDOW // 4
    unopened = Side(is_open=False)
    unopened.greet()
    unopened.feed(OPEN)
    with pytest.raises(ProtocolError) as caught:
        unopened.feed(frame(frames.DATA, 0, 1, bytes(DEFAULT_WINDOW + 1)))
    assert caught.value.code is ErrorCode.FLOW_CONTROL_ERROR


def test_a_budget_comes_back_with_time_and_with_what_is_sent() -> None:
    side, pings = Side(), frame(frames.PING, 0, 0, bytes(8)) * 900
    side.feed(GREETING + OPEN)
    for _ in range(3):
        side.feed(pings)
        side.outgoing()
        side.now += 20.0
    side.feed(frames.settings({frames.INITIAL_WINDOW_SIZE: MAX_WINDOW}) + frames.window_update(0, 1 << 30))
    for _ in range(3):
        side.outgoing()
        side.feed(pings)
        side.endpoint.windows.take(side.begun[0], 1 << 20)
        for _ in range(70):
            side.endpoint.windows.take(side.begun[0], 1 << 14)


def test_frames_are_small_until_a_call_is_admitted_and_the_peer_knows() -> None:
    wide = frame(frames.DATA, 0, 1, bytes(frames.DEFAULT_FRAME + 1))
    known = frame(frames.SETTINGS, frames.ACK, 0, b"")
    for acknowledged, is_admitted, is_taken in ((2, True, True), (1, True, False), (9, False, False)):
        side = Side()
        side.feed(GREETING + OPEN)
        if is_admitted:
            side.endpoint.settings.take_large_frames()
        side.feed(acknowledged * known)
        if is_taken:
            side.feed(wide)
            continue
        with pytest.raises(ProtocolError) as caught:
            side.feed(wide)
        assert caught.value.code is ErrorCode.FRAME_SIZE_ERROR


def test_whoever_calls_again_and_again_may_open_windows_each_time() -> None:
    """grpcio does so twice for a small call."""
    side = Side()
    side.greet()
    for number in range(1, 6001, 2):
        side.feed(headers.write(number, REQUEST, end=True))
        side.feed(2 * frames.window_update(0, 5))
        side.begun[-1].is_answered = True
        side.endpoint.streams.forget(side.begun[-1])
    with pytest.raises(ProtocolError, match="too many frames"):
        side.feed(1001 * frames.window_update(0, 5))


def test_calls_that_are_cancelled_before_their_answer_cost_as_refused_ones() -> None:
    side, numbers = Side(), iter(range(1, 10_000, 2))
    side.greet()

    def cancel(calls: int) -> None:
        for number in itertools.islice(numbers, calls):
            side.feed(headers.write(number, REQUEST, end=False) + frames.reset(number, 8))
            side.endpoint.streams.forget(side.begun[-1])

    cancel(80)
    side.now += 10.0
    cancel(50)  # that many again
    with pytest.raises(ProtocolError, match="a cancelled call") as caught:
        cancel(50)
    assert caught.value.code is ErrorCode.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n123456", frames.PREFACE + frame(frames.PING, 0, 0, bytes(8))])
def test_a_connection_that_does_not_begin_as_it_must_ends(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Side().feed(data)


def test_a_goaway_names_the_last_stream() -> None:
    side = Side()
    side.feed(GREETING + OPEN + headers.write(7, REQUEST, end=True))
    assert side.endpoint.goaway(ErrorCode.NO_ERROR) == frames.goaway(7, 0)
