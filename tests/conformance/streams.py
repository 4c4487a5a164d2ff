"""h2spec's http2/3.5 to 5.5: the preface, frames' sizes, header blocks, streams' states, errors, extensions."""

from __future__ import annotations

from tests.conformance import expect
from tests.conformance.cases import case, request
from tests.conformance.wire import (
    DEFAULT_FRAME,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    PING,
    PREFACE,
    PRIORITY_FLAG,
    Peer,
    data,
    frame,
    literal,
    ping,
    priority,
    reset,
    settings,
    window_update,
)

_UNKNOWN = frame(0x16, 0, 0, bytes(8))


@case("http2/3.5/1", "the client's preface", greeting=False)
def client_preface(peer: Peer) -> None:
    """3.4: The server connection preface MUST be the first frame the server sends."""
    peer.send(PREFACE, settings((INITIAL_WINDOW_SIZE, 65535)))
    event = peer.next_event()
    if event.kind != "SETTINGS" or event.ack:
        raise expect.Mismatch("SETTINGS", str(event))


@case("http2/3.5/2", "an invalid preface", greeting=False)
def invalid_preface(peer: Peer) -> None:
    """3.4: Servers MUST treat an invalid connection preface as a connection error of type PROTOCOL_ERROR."""
    peer.send(b"INVALID CONNECTION PREFACE\r\n\r\n")
    expect.closed(peer)


@case("http2/4.1/1", "a frame of unknown type")
def unknown_type(peer: Peer) -> None:
    """4.1: Implementations MUST ignore and discard frames of unknown types."""
    peer.send(_UNKNOWN, ping(bytes(8)))
    expect.ping_ack(peer, bytes(8))


@case("http2/4.1/2", "undefined flags")
def undefined_flags(peer: Peer) -> None:
    """4.1: Flags that have no defined semantics for a particular frame type MUST be ignored."""
    peer.send(frame(PING, 0x16, 0, b"12345678"))
    expect.ping_ack(peer, b"12345678")


@case("http2/4.1/3", "the reserved bit")
def reserved_bit(peer: Peer) -> None:
    """4.1: Reserved: the bit MUST be ignored when receiving."""
    peer.send(frame(PING, 0x16, 1 << 31, b"12345678"))
    expect.ping_ack(peer, b"12345678")


@case("http2/4.2/1", "DATA of 2^14 octets")
def largest_frame_of_all(peer: Peer) -> None:
    """4.2: All implementations MUST be capable of receiving frames up to 2^14 octets."""
    peer.send(peer.headers(1, request()), data(1, b"x" * DEFAULT_FRAME, end=True))
    expect.headers(peer, 1)


def _most_octets(peer: Peer) -> int:
    """Of a frame's payload; one more is an error."""
    most = peer.settings.get(MAX_FRAME_SIZE, DEFAULT_FRAME)
    if most == (1 << 24) - 1:
        raise expect.Skipped("the server takes the largest frame that there can be")
    return most


@case("http2/4.2/2", "DATA above SETTINGS_MAX_FRAME_SIZE")
def data_too_large(peer: Peer) -> None:
    """4.2: An endpoint MUST send FRAME_SIZE_ERROR if a frame exceeds SETTINGS_MAX_FRAME_SIZE."""
    peer.send(peer.headers(1, request()), data(1, b"x" * (_most_octets(peer) + 1), end=True))
    expect.stream_error(peer, 1, expect.FRAME_SIZE)


@case("http2/4.2/3", "HEADERS above SETTINGS_MAX_FRAME_SIZE")
def headers_too_large(peer: Peer) -> None:
    """4.2: A frame size error in a frame that carries a field block MUST be treated as a connection error."""
    block = peer.encode(request()) + literal("x-long", "x" * _most_octets(peer))
    peer.send(peer.headers_of(1, block[: _most_octets(peer) + 1], end=True))
    expect.connection_error(peer, expect.FRAME_SIZE)


@case("http2/4.3/1", "a header block that is none")
def invalid_block(peer: Peer) -> None:
    """4.3: A decoding error in a field block MUST be treated as a connection error of type COMPRESSION_ERROR."""
    peer.send(peer.headers_of(1, b"\x40", end=True))
    expect.connection_error(peer, expect.COMPRESSION)


@case("http2/4.3/2", "PRIORITY within a header block")
def priority_in_block(peer: Peer) -> None:
    """4.3: Field blocks MUST be transmitted as a contiguous sequence of frames with no interleaved frames."""
    peer.send(peer.headers(1, request(), end_headers=False), priority(1), peer.continuation(1, _dummy_block(peer)))
    expect.connection_error(peer, expect.PROTOCOL)


@case("http2/4.3/3", "another stream's HEADERS within a header block")
def headers_in_block(peer: Peer) -> None:
    """4.3: Field blocks MUST be transmitted as a contiguous sequence of frames with no interleaved frames."""
    peer.send(peer.headers(1, request(), end_headers=False), peer.headers(3, request(), end=True))
    peer.send(peer.continuation(1, _dummy_block(peer)))
    expect.connection_error(peer, expect.PROTOCOL)


def _dummy_block(peer: Peer) -> bytes:
    return peer.encode([("x-dummy0", "x" * 100)])


for _number, (_title, _sent) in enumerate(
    [
        ("DATA", data(1, b"test", end=True)),
        ("RST_STREAM", reset(1, expect.CANCEL)),
        ("WINDOW_UPDATE", window_update(1, 100)),
        ("CONTINUATION", frame(9, END_HEADERS, 1, literal("x-test", "ok"))),
    ],
    1,
):

    @case(f"http2/5.1/{_number}", f"idle: {_title}")
    def on_idle(peer: Peer, sent: bytes = _sent) -> None:
        """5.1: Any frame other than HEADERS or PRIORITY on an idle stream MUST be a connection error PROTOCOL_ERROR."""
        peer.send(sent)
        expect.connection_error(peer, expect.PROTOCOL)


@case("http2/5.1/5", "half-closed (remote): DATA")
def data_half_closed(peer: Peer) -> None:
    """5.1: On a half-closed (remote) stream, other frames MUST be answered with a stream error STREAM_CLOSED."""
    peer.send(peer.headers(1, request(), end=True), data(1, b"test", end=True))
    expect.stream_error(peer, 1, expect.CLOSED)


@case("http2/5.1/6", "half-closed (remote): HEADERS")
def headers_half_closed(peer: Peer) -> None:
    """5.1: On a half-closed (remote) stream, other frames MUST be answered with a stream error STREAM_CLOSED."""
    peer.send(peer.headers(1, request(), end=True), peer.headers(1, request(), end=True))
    expect.stream_error(peer, 1, expect.CLOSED, expect.PROTOCOL)


@case("http2/5.1/7", "half-closed (remote): CONTINUATION")
def continuation_half_closed(peer: Peer) -> None:
    """5.1, 6.10: CONTINUATION after END_HEADERS is a PROTOCOL_ERROR, on such a stream also STREAM_CLOSED."""
    peer.send(peer.headers(1, request(), end=True), peer.continuation(1, peer.encode(request())))
    expect.stream_error(peer, 1, expect.CLOSED, expect.PROTOCOL)


def _reset_stream(peer: Peer) -> None:
    peer.send(peer.headers(1, request()), reset(1, expect.CANCEL))


@case("http2/5.1/8", "closed by RST_STREAM: DATA")
def data_after_reset(peer: Peer) -> None:
    """RFC 7540, 5.1: Any frame other than PRIORITY after receiving RST_STREAM MUST be a stream error STREAM_CLOSED."""
    _reset_stream(peer)
    peer.send(data(1, b"test", end=True))
    expect.stream_error(peer, 1, expect.CLOSED)


@case("http2/5.1/9", "closed by RST_STREAM: HEADERS")
def headers_after_reset(peer: Peer) -> None:
    """RFC 7540, 5.1: as for DATA; 5.1.1: an identifier that is used again is a PROTOCOL_ERROR, too."""
    _reset_stream(peer)
    peer.send(peer.headers(1, request(), end=True))
    expect.stream_error(peer, 1, expect.CLOSED, expect.PROTOCOL)


@case("http2/5.1/10", "closed by RST_STREAM: CONTINUATION")
def continuation_after_reset(peer: Peer) -> None:
    """RFC 7540, 5.1: as for DATA; 6.10: CONTINUATION after END_HEADERS is a PROTOCOL_ERROR."""
    _reset_stream(peer)
    peer.send(peer.continuation(1, _dummy_block(peer)))
    expect.stream_error(peer, 1, expect.CLOSED, expect.PROTOCOL)


def _ended_stream(peer: Peer) -> None:
    peer.send(peer.headers(1, request(), end=True))
    expect.stream_closed(peer, 1)


@case("http2/5.1/11", "closed: DATA")
def data_after_end(peer: Peer) -> None:
    """RFC 7540, 5.1: Frames after END_STREAM MUST be treated as STREAM_CLOSED (RFC 9113: MAY; h2spec: MUST)."""
    _ended_stream(peer)
    peer.send(data(1, b"test", end=True))
    expect.stream_error(peer, 1, expect.CLOSED)


@case("http2/5.1/12", "closed: HEADERS")
def headers_after_end(peer: Peer) -> None:
    """RFC 7540, 5.1: a connection error STREAM_CLOSED; 5.1.1: an identifier that is used again is a PROTOCOL_ERROR."""
    _ended_stream(peer)
    peer.send(peer.headers(1, request(), end=True))
    expect.connection_error(peer, expect.CLOSED, expect.PROTOCOL)


@case("http2/5.1/13", "closed: CONTINUATION")
def continuation_after_end(peer: Peer) -> None:
    """RFC 7540, 5.1: a connection error STREAM_CLOSED; 6.10: CONTINUATION after END_HEADERS is a PROTOCOL_ERROR."""
    _ended_stream(peer)
    peer.send(peer.continuation(1, _dummy_block(peer)))
    expect.connection_error(peer, expect.CLOSED, expect.PROTOCOL)


@case("http2/5.1.1/1", "an even stream")
def even_stream(peer: Peer) -> None:
    """5.1.1: An endpoint that receives an unexpected stream identifier MUST respond with PROTOCOL_ERROR."""
    peer.send(peer.headers(2, request(), end=True))
    expect.connection_error(peer, expect.PROTOCOL)


@case("http2/5.1.1/2", "a stream below the one before")
def lower_stream(peer: Peer) -> None:
    """5.1.1: The identifier of a new stream MUST be greater than all streams that the endpoint has opened."""
    peer.send(peer.headers(5, request(), end=True), peer.headers(3, request(), end=True))
    expect.connection_error(peer, expect.PROTOCOL, expect.CLOSED)


@case("http2/5.1.2/1", "more streams than SETTINGS_MAX_CONCURRENT_STREAMS")
def too_many_streams(peer: Peer) -> None:
    """5.1.2: HEADERS beyond the advertised limit MUST be a stream error PROTOCOL_ERROR or REFUSED_STREAM."""
    most = peer.settings.get(MAX_CONCURRENT_STREAMS, 1 << 31)
    if most > 1000:
        raise expect.Skipped("the server announces no limit")
    for number in range(most + 1):  # none of which ends: the server awaits their messages
        peer.send(peer.headers(2 * number + 1, request()))
    expect.stream_error(peer, 2 * most + 1, expect.PROTOCOL, expect.REFUSED)


@case("http2/5.3.1/1", "HEADERS that depend on themselves")
def headers_depend_on_themselves(peer: Peer) -> None:
    """RFC 7540, 5.3.1: A stream cannot depend on itself; MUST be a stream error PROTOCOL_ERROR (not in RFC 9113)."""
    block = b"\x00\x00\x00\x01\xff" + peer.encode(request())
    peer.send(frame(HEADERS, END_STREAM | END_HEADERS | PRIORITY_FLAG, 1, block))
    expect.stream_error(peer, 1, expect.PROTOCOL)


@case("http2/5.3.1/2", "PRIORITY that depends on itself")
def priority_depends_on_itself(peer: Peer) -> None:
    """RFC 7540, 5.3.1: A stream cannot depend on itself; MUST be a stream error PROTOCOL_ERROR (not in RFC 9113)."""
    peer.send(priority(1, depends_on=1))
    expect.stream_error(peer, 1, expect.PROTOCOL)


@case("http2/5.4.1/1", "a connection error closes the connection")
def error_closes(peer: Peer) -> None:
    """5.4.1: After sending the GOAWAY frame for an error condition, the endpoint MUST close the TCP connection."""
    peer.send(frame(PING, 0, 3, bytes(8)))
    expect.closed(peer)


@case("http2/5.4.1/2", "a connection error is said")
def error_is_said(peer: Peer) -> None:
    """5.4.1: An endpoint that encounters a connection error SHOULD first send a GOAWAY frame."""
    peer.send(frame(PING, 0, 3, bytes(8)))
    expect.goaway(peer, expect.PROTOCOL)


@case("http2/5.5/1", "an extension frame")
def extension_frame(peer: Peer) -> None:
    """5.5: Implementations MUST ignore unknown or unsupported values in all extensible protocol elements."""
    peer.send(_UNKNOWN, ping(bytes(8)))
    expect.ping_ack(peer, bytes(8))


@case("http2/5.5/2", "an extension frame within a header block")
def extension_in_block(peer: Peer) -> None:
    """5.5: Extension frames in the middle of a field block MUST be a connection error PROTOCOL_ERROR."""
    peer.send(peer.headers(1, request(), end=True, end_headers=False), _UNKNOWN)
    expect.connection_error(peer, expect.PROTOCOL)
