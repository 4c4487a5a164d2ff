"""h2spec's http2/6.1 to 7: every frame's own rules."""

from __future__ import annotations

from tests.conformance import expect
from tests.conformance.cases import case, echo, request
from tests.conformance.wire import (
    ACK,
    DATA,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE,
    MAX_WINDOW,
    PADDED,
    PING,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Peer,
    data,
    frame,
    goaway,
    literal,
    ping,
    priority,
    reset,
    settings,
    window_update,
)

_MORE = literal("x-test", "ok")


@case("http2/6.1/1", "DATA on stream 0")
def data_on_0(peer: Peer) -> None:
    """6.1: DATA on stream 0x00 MUST be answered with a connection error PROTOCOL_ERROR."""
    peer.send(data(0, b"test", end=True))
    expect.connection_error(peer, expect.PROTOCOL)


@case("http2/6.1/2", "DATA on a stream that takes none")
def data_not_open(peer: Peer) -> None:
    """6.1: DATA on a stream not open or half-closed (local) MUST be answered with a stream error STREAM_CLOSED."""
    peer.send(peer.headers(1, request(), end=True), data(1, b"test", end=True))
    expect.stream_error(peer, 1, expect.CLOSED)


@case("http2/6.1/3", "DATA with more padding than payload")
def data_padding(peer: Peer) -> None:
    """6.1: If the padding is the length of the payload or greater, it MUST be a connection error PROTOCOL_ERROR."""
    peer.send(peer.headers(1, [*request(), ("content-length", "4")]))
    peer.send(frame(DATA, END_STREAM | PADDED, 1, b"\x06test"))
    expect.connection_error(peer, expect.PROTOCOL)


@case("http2/6.2/1", "HEADERS, then PRIORITY before END_HEADERS")
def priority_before_end(peer: Peer) -> None:
    """6.2: HEADERS without END_HEADERS MUST be followed by CONTINUATION; else PROTOCOL_ERROR."""
    peer.send(peer.headers(1, request(), end_headers=False), priority(1), peer.continuation(1, _MORE))
    expect.connection_error(peer, expect.PROTOCOL)


@case("http2/6.2/2", "HEADERS, then another stream's before END_HEADERS")
def headers_before_end(peer: Peer) -> None:
    """6.2: HEADERS without END_HEADERS MUST be followed by CONTINUATION for the same stream; else PROTOCOL_ERROR."""
    peer.send(peer.headers(1, request(), end_headers=False), peer.headers(3, request(), end=True))
    peer.send(peer.continuation(1, _MORE))
    expect.connection_error(peer, expect.PROTOCOL)


@case("http2/6.2/3", "HEADERS on stream 0")
def headers_on_0(peer: Peer) -> None:
    """6.2: HEADERS on stream 0x00 MUST be answered with a connection error PROTOCOL_ERROR."""
    peer.send(peer.headers(0, request(), end=True))
    expect.connection_error(peer, expect.PROTOCOL)


@case("http2/6.2/4", "HEADERS with more padding than payload")
def headers_padding(peer: Peer) -> None:
    """6.2: Padding that exceeds the size remaining for the field block fragment MUST be a PROTOCOL_ERROR."""
    block = peer.encode(request())
    peer.send(frame(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, bytes([len(block) + 2]) + block))
    expect.stream_error(peer, 1, expect.PROTOCOL)


@case("http2/6.3/1", "PRIORITY on stream 0")
def priority_on_0(peer: Peer) -> None:
    """6.3: PRIORITY on stream 0x00 MUST be answered with a connection error PROTOCOL_ERROR."""
    peer.send(priority(0))
    expect.connection_error(peer, expect.PROTOCOL)


@case("http2/6.3/2", "PRIORITY of 4 octets")
def priority_size(peer: Peer) -> None:
    """6.3: PRIORITY with a length other than 5 octets MUST be a stream error FRAME_SIZE_ERROR."""
    peer.send(peer.headers(1, request(), end=True), frame(PRIORITY, 0, 1, b"\x80\x00\x00\x01"))
    expect.stream_error(peer, 1, expect.FRAME_SIZE)


@case("http2/6.4/1", "RST_STREAM on stream 0")
def reset_on_0(peer: Peer) -> None:
    """6.4: RST_STREAM on stream 0x00 MUST be a connection error PROTOCOL_ERROR."""
    peer.send(reset(0, expect.CANCEL))
    expect.connection_error(peer, expect.PROTOCOL)


@case("http2/6.4/2", "RST_STREAM on an idle stream")
def reset_idle(peer: Peer) -> None:
    """6.4: RST_STREAM on an idle stream MUST be a connection error PROTOCOL_ERROR."""
    peer.send(reset(1, expect.CANCEL))
    expect.connection_error(peer, expect.PROTOCOL)


@case("http2/6.4/3", "RST_STREAM of 3 octets")
def reset_size(peer: Peer) -> None:
    """6.4: RST_STREAM with a length other than 4 octets MUST be a connection error FRAME_SIZE_ERROR."""
    peer.send(peer.headers(1, request(), end=True), frame(RST_STREAM, 0, 1, bytes(3)))
    expect.connection_error(peer, expect.FRAME_SIZE)


@case("http2/6.5/1", "SETTINGS ACK with a payload")
def ack_with_payload(peer: Peer) -> None:
    """6.5: SETTINGS with ACK and a length other than 0 MUST be a connection error FRAME_SIZE_ERROR."""
    peer.send(frame(SETTINGS, ACK, 0, b"\x00"))
    expect.connection_error(peer, expect.FRAME_SIZE)


@case("http2/6.5/2", "SETTINGS on a stream")
def settings_on_stream(peer: Peer) -> None:
    """6.5: SETTINGS on a stream other than 0x00 MUST be answered with a connection error PROTOCOL_ERROR."""
    peer.send(frame(SETTINGS, 0, 1, b"\x00\x03\x00\x00\x00\x64"))
    expect.connection_error(peer, expect.PROTOCOL)


@case("http2/6.5/3", "SETTINGS of 3 octets")
def settings_size(peer: Peer) -> None:
    """6.5: SETTINGS with a length other than a multiple of 6 MUST be FRAME_SIZE_ERROR; badly formed: PROTOCOL_ERROR."""
    peer.send(frame(SETTINGS, 0, 0, b"\x00\x03\x00"))
    expect.connection_error(peer, expect.PROTOCOL, expect.FRAME_SIZE)


for _number, (_title, _identifier, _value, _code) in enumerate(
    [
        ("ENABLE_PUSH of 2", ENABLE_PUSH, 2, expect.PROTOCOL),
        ("INITIAL_WINDOW_SIZE of 2^31", INITIAL_WINDOW_SIZE, 1 << 31, expect.FLOW_CONTROL),
        ("MAX_FRAME_SIZE of 2^14 - 1", MAX_FRAME_SIZE, (1 << 14) - 1, expect.PROTOCOL),
        ("MAX_FRAME_SIZE of 2^24", MAX_FRAME_SIZE, 1 << 24, expect.PROTOCOL),
    ],
    1,
):

    @case(f"http2/6.5.2/{_number}", f"SETTINGS_{_title}")
    def setting_out_of_range(peer: Peer, pair: tuple[int, int] = (_identifier, _value), code: int = _code) -> None:
        """6.5.2: Values outside the range MUST be treated as a connection error of the setting's type."""
        peer.send(settings(pair))
        expect.connection_error(peer, code)


@case("http2/6.5.2/5", "an unknown setting")
def unknown_setting(peer: Peer) -> None:
    """6.5.2: An endpoint that receives SETTINGS with an unknown identifier MUST ignore that setting."""
    peer.send(settings((0xFF, 1)), ping(bytes(8)))
    expect.ping_ack(peer, bytes(8))


@case("http2/6.5.3/1", "a setting's last value counts")
def settings_in_order(peer: Peer) -> None:
    """6.5.3: The values in the SETTINGS frame MUST be processed in the order they appear."""
    peer.send(settings((INITIAL_WINDOW_SIZE, 100), (INITIAL_WINDOW_SIZE, 1)))
    expect.settings_ack(peer)
    echo(peer, 1)
    expect.some_data(peer, 1, 1)


@case("http2/6.5.3/2", "SETTINGS is acknowledged")
def settings_acknowledged(peer: Peer) -> None:
    """6.5.3: The recipient MUST immediately emit a SETTINGS frame with the ACK flag set."""
    peer.send(settings((ENABLE_PUSH, 0)))
    expect.settings_ack(peer)


@case("http2/6.7/1", "PING is acknowledged")
def ping_acknowledged(peer: Peer) -> None:
    """6.7: Receivers MUST send a PING frame with the ACK flag in response, with an identical payload."""
    peer.send(ping(b"identic."))
    expect.ping_ack(peer, b"identic.")


@case("http2/6.7/2", "PING ACK is not acknowledged")
def ack_not_acknowledged(peer: Peer) -> None:
    """6.7: An endpoint MUST NOT respond to PING frames containing the ACK flag."""
    peer.send(ping(b"invalid.", ack=True), ping(b"expected"))
    expect.ping_ack(peer, b"expected")


@case("http2/6.7/3", "PING on a stream")
def ping_on_stream(peer: Peer) -> None:
    """6.7: PING on a stream other than 0x00 MUST be answered with a connection error PROTOCOL_ERROR."""
    peer.send(frame(PING, 0, 1, bytes(8)))
    expect.connection_error(peer, expect.PROTOCOL)


@case("http2/6.7/4", "PING of 6 octets")
def ping_size(peer: Peer) -> None:
    """6.7: PING with a length other than 8 MUST be a connection error FRAME_SIZE_ERROR."""
    peer.send(frame(PING, 0, 0, bytes(6)))
    expect.connection_error(peer, expect.FRAME_SIZE)


@case("http2/6.8/1", "GOAWAY on a stream")
def goaway_on_stream(peer: Peer) -> None:
    """6.8: GOAWAY on a stream other than 0x00 MUST be a connection error PROTOCOL_ERROR."""
    peer.send(frame(GOAWAY, 0, 1, bytes(8)))
    expect.connection_error(peer, expect.PROTOCOL)


@case("http2/6.9/1", "WINDOW_UPDATE of 0 for the connection")
def zero_increment(peer: Peer) -> None:
    """6.9: Errors on the connection flow-control window MUST be treated as a connection error; 0: PROTOCOL_ERROR."""
    peer.send(window_update(0, 0))
    expect.connection_error(peer, expect.PROTOCOL)


@case("http2/6.9/2", "WINDOW_UPDATE of 0 for a stream")
def zero_increment_of_stream(peer: Peer) -> None:
    """6.9: A receiver MUST treat an increment of 0 as a stream error PROTOCOL_ERROR."""
    peer.send(peer.headers(1, request()), window_update(1, 0))
    expect.stream_error(peer, 1, expect.PROTOCOL)


@case("http2/6.9/3", "WINDOW_UPDATE of 3 octets")
def window_update_size(peer: Peer) -> None:
    """6.9: WINDOW_UPDATE with a length other than 4 octets MUST be a connection error FRAME_SIZE_ERROR."""
    peer.send(frame(WINDOW_UPDATE, 0, 0, b"\x00\x00\x01"))
    expect.connection_error(peer, expect.FRAME_SIZE)


@case("http2/6.9.1/1", "DATA within a window of 1")
def window_of_1(peer: Peer) -> None:
    """6.9.1: The sender MUST NOT send a flow-controlled frame that exceeds the space available in either window."""
    peer.send(settings((INITIAL_WINDOW_SIZE, 1)))
    expect.settings_ack(peer)
    echo(peer, 1)
    expect.some_data(peer, 1, 1)


@case("http2/6.9.1/2", "the connection's window above 2^31 - 1")
def window_overflow(peer: Peer) -> None:
    """6.9.1: A window above 2^31-1: for the connection, a GOAWAY frame with FLOW_CONTROL_ERROR is sent."""
    peer.send(window_update(0, MAX_WINDOW), window_update(0, MAX_WINDOW))
    expect.goaway(peer, expect.FLOW_CONTROL)


@case("http2/6.9.1/3", "a stream's window above 2^31 - 1")
def window_overflow_of_stream(peer: Peer) -> None:
    """6.9.1: A window above 2^31-1: for streams, the sender sends a RST_STREAM with FLOW_CONTROL_ERROR."""
    peer.send(peer.headers(1, request()), window_update(1, MAX_WINDOW), window_update(1, MAX_WINDOW))
    expect.stream_error(peer, 1, expect.FLOW_CONTROL)


@case("http2/6.9.2/1", "INITIAL_WINDOW_SIZE changes an open stream's window")
def window_of_open_stream(peer: Peer) -> None:
    """6.9.2: A receiver MUST adjust the size of all stream windows by the difference between new and old value."""
    peer.send(settings((INITIAL_WINDOW_SIZE, 0)))
    expect.settings_ack(peer)
    echo(peer, 1)
    peer.send(settings((INITIAL_WINDOW_SIZE, 1)))
    expect.some_data(peer, 1, 1)


@case("http2/6.9.2/2", "a window that becomes negative")
def negative_window(peer: Peer) -> None:
    """6.9.2: A sender MUST track the negative window and MUST NOT send until it becomes positive."""
    peer.send(settings((INITIAL_WINDOW_SIZE, 3)))
    expect.settings_ack(peer)
    echo(peer, 1)
    expect.some_data(peer, 1, 3)
    peer.send(settings((INITIAL_WINDOW_SIZE, 2)))
    expect.settings_ack(peer)
    peer.send(window_update(1, 2))
    expect.some_data(peer, 1, 1)


@case("http2/6.9.2/3", "INITIAL_WINDOW_SIZE above 2^31 - 1")
def initial_window_overflow(peer: Peer) -> None:
    """6.9.2: A change that causes any window to exceed the maximum MUST be a connection error FLOW_CONTROL_ERROR."""
    peer.send(settings((INITIAL_WINDOW_SIZE, 1 << 31)))
    expect.connection_error(peer, expect.FLOW_CONTROL)


@case("http2/6.10/1", "several CONTINUATION")
def continuations(peer: Peer) -> None:
    """6.10: Any number of CONTINUATION frames can be sent as long as the preceding one is without END_HEADERS."""
    peer.send(peer.headers(1, request(), end=True, end_headers=False))
    peer.send(peer.continuation(1, _MORE, end_headers=False), peer.continuation(1, _MORE))
    expect.headers(peer, 1)


@case("http2/6.10/2", "CONTINUATION, then DATA before END_HEADERS")
def data_before_end_headers(peer: Peer) -> None:
    """6.10: A CONTINUATION without END_HEADERS MUST be followed by another; else PROTOCOL_ERROR."""
    peer.send(peer.headers(1, request(), end_headers=False), peer.continuation(1, _MORE, end_headers=False))
    peer.send(data(1, b"test", end=True))
    expect.connection_error(peer, expect.PROTOCOL)


@case("http2/6.10/3", "CONTINUATION on stream 0")
def continuation_on_0(peer: Peer) -> None:
    """6.10: CONTINUATION on stream 0x00 MUST be answered with a connection error PROTOCOL_ERROR."""
    peer.send(peer.headers(1, request(), end=True, end_headers=False), peer.continuation(0, _MORE))
    expect.connection_error(peer, expect.PROTOCOL)


@case("http2/6.10/4", "CONTINUATION after HEADERS with END_HEADERS")
def continuation_after_headers(peer: Peer) -> None:
    """6.10: CONTINUATION MUST be preceded by a frame without END_HEADERS; else a connection error PROTOCOL_ERROR."""
    peer.send(peer.headers(1, request(), end=True), peer.continuation(1, _MORE))
    expect.connection_error(peer, expect.PROTOCOL)


@case("http2/6.10/5", "CONTINUATION after CONTINUATION with END_HEADERS")
def continuation_after_continuation(peer: Peer) -> None:
    """6.10: CONTINUATION MUST be preceded by a frame without END_HEADERS; else a connection error PROTOCOL_ERROR."""
    peer.send(peer.headers(1, request(), end=True, end_headers=False))
    peer.send(peer.continuation(1, _MORE), peer.continuation(1, _MORE))
    expect.connection_error(peer, expect.PROTOCOL)


@case("http2/6.10/6", "CONTINUATION after DATA")
def continuation_after_data(peer: Peer) -> None:
    """6.10: CONTINUATION MUST be preceded by HEADERS, PUSH_PROMISE or CONTINUATION; else PROTOCOL_ERROR."""
    peer.send(peer.headers(1, request(), end_headers=False), data(1, b"test", end=True))
    peer.send(peer.continuation(1, _MORE, end_headers=False), peer.continuation(1, _MORE))
    expect.connection_error(peer, expect.PROTOCOL)


@case("http2/7/1", "GOAWAY with an unknown code")
def unknown_code(peer: Peer) -> None:
    """7: Unknown or unsupported error codes MUST NOT trigger any special behavior."""
    peer.send(goaway(0xFF), ping())
    expect.ping_ack_or_closed(peer, b"conforms")


@case("http2/7/2", "RST_STREAM with an unknown code")
def unknown_code_of_stream(peer: Peer) -> None:
    """7: Unknown or unsupported error codes MUST NOT trigger any special behavior."""
    peer.send(peer.headers(1, request()), reset(1, 0xFF), ping())
    expect.ping_ack(peer, b"conforms")
