"""What RFC 9113 says of connections, frames and streams beyond h2spec's cases. Numbers are RFC 9113's sections."""

from __future__ import annotations

import uuid

from tests.conformance import expect
from tests.conformance.cases import REQUEST, SERVICE, case, echo, echoes, request
from tests.conformance.wire import (
    CONTINUATION,
    DATA,
    DEFAULT_FRAME,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    MAX_WINDOW,
    PADDED,
    PREFACE,
    PRIORITY_FLAG,
    WINDOW_UPDATE,
    Peer,
    data,
    frame,
    goaway,
    message,
    ping,
    reset,
    settings,
    window_update,
)

_QUIET_S = 0.2  # after which a server that had something to say would have said it


@case("rfc9113/3.4", "HTTP/1.1", greeting=False)
def http_1(peer: Peer) -> None:
    """3.4: Servers MUST treat an invalid connection preface as a connection error."""
    peer.send(b"GET / HTTP/1.1\r\nHost: conformance\r\nAccept: */*\r\n\r\n")
    expect.closed(peer)


@case("rfc9113/3.4", "a preface without SETTINGS", greeting=False)
def preface_without_settings(peer: Peer) -> None:
    """3.4: The preface MUST be followed by SETTINGS; invalid ones are a connection error PROTOCOL_ERROR."""
    peer.send(PREFACE, ping())
    expect.connection_error(peer, expect.PROTOCOL)


@case("rfc9113/3.4", "a preface and a call, octet by octet", greeting=False)
def octet_by_octet(peer: Peer) -> None:
    """4: Frames are a sequence of octets; how TCP splits them means nothing."""
    everything = PREFACE + settings() + peer.headers(1, request()) + data(1, message(b"echo"), end=True)
    for octet in everything:
        peer.send(bytes([octet]))
    expect.answered(peer, 1, b"echo")


@case("rfc9113/3.4", "a preface and a call at once", greeting=False)
def at_once(peer: Peer) -> None:
    """3.4: Clients are permitted to send additional frames immediately after the client connection preface."""
    peer.send(PREFACE, settings(), peer.headers(1, request()), data(1, message(b"echo"), end=True))
    expect.answered(peer, 1, b"echo")


@case("rfc9113/4.1", "unknown frames on open and idle streams")
def unknown_on_streams(peer: Peer) -> None:
    """4.1, 5.5: Frames of unknown types MUST be ignored and discarded, whatever their stream."""
    peer.send(peer.headers(1, request()), frame(0xFA, 0xFF, 1, b"x" * 100), frame(0xFB, 0, 7))
    peer.send(data(1, message(b"echo"), end=True))
    expect.answered(peer, 1, b"echo")


@case("rfc9113/4.1", "undefined flags of HEADERS and DATA")
def undefined_flags(peer: Peer) -> None:
    """4.1: Flags that have no defined semantics for a particular frame type MUST be ignored."""
    peer.send(frame(HEADERS, END_HEADERS | 0xC2, 1, peer.encode(request())))
    peer.send(frame(DATA, END_STREAM | 0xF6, 1, message(b"echo")))
    expect.answered(peer, 1, b"echo")


def _frames_of_answer(peer: Peer, largest: int) -> None:
    path = f"{SERVICE}/Sizes"
    peer.send(window_update(0, 1 << 20), settings((INITIAL_WINDOW_SIZE, 1 << 20)))
    peer.send(peer.headers(1, request(path)), data(1, message(b"100000"), end=True))
    expect.answered(peer, 1, bytes(100_000))
    sizes = [event.length for event in peer.seen if event.kind == "DATA"]
    if max(sizes) > largest:
        raise expect.Mismatch(f"DATA of at most {largest} octets", f"{max(sizes)} octets")


@case("rfc9113/4.2", "the server's frames are at most 2^14 octets")
def default_frame(peer: Peer) -> None:
    """4.2: The size of a frame payload is limited by what a receiver advertises, 2^14 octets at first."""
    _frames_of_answer(peer, DEFAULT_FRAME)


@case("rfc9113/4.2", "the server's frames are at most what the client says")
def advertised_frame(peer: Peer) -> None:
    """4.2: The size of a frame payload is limited by the maximum that a receiver advertises."""
    peer.send(settings((MAX_FRAME_SIZE, 20_000)))
    expect.settings_ack(peer)
    _frames_of_answer(peer, 20_000)


@case("rfc9113/4.2", "PRIORITY flag without room for a priority")
def short_headers(peer: Peer) -> None:
    """4.2: A frame too small for mandatory data is FRAME_SIZE_ERROR; of one with a field block, of the connection."""
    peer.send(frame(HEADERS, END_HEADERS | END_STREAM | PRIORITY_FLAG, 1, b"\x00\x00"))
    expect.connection_error(peer, expect.FRAME_SIZE, expect.PROTOCOL)


@case("rfc9113/4.2", "GOAWAY of 4 octets")
def short_goaway(peer: Peer) -> None:
    """4.2: A frame too small for mandatory data is FRAME_SIZE_ERROR; with stream 0, of the connection."""
    peer.send(frame(GOAWAY, 0, 0, bytes(4)))
    expect.connection_error(peer, expect.FRAME_SIZE)


@case("rfc9113/4.3", "the field block of a refused request changes the table")
def block_of_malformed(peer: Peer) -> None:
    """4.3: A receiver MUST decompress field blocks even if they are to be discarded, since the table is shared."""
    peer.send(peer.headers(1, [*REQUEST, ("connection", "keep-alive"), ("x-added", "kept")], end=True))
    echo(peer, 3, [*request(f"{SERVICE}/Fields"), ("x-added", "kept")])
    for event in peer.events():
        if event.kind == "closed" or (event.kind == "GOAWAY" and event.code == expect.PROTOCOL):
            return  # a connection error instead, which 5.4.1 permits
        if event.stream == 3 and event.kind == "DATA" and event.payload:
            if event.payload == message(b"x-added=kept"):
                return
            break
    raise expect.Mismatch("x-added=kept", str(event))


@case("rfc9113/5.1", "WINDOW_UPDATE and RST_STREAM after the answer")
def late_frames(peer: Peer) -> None:
    """5.1: An endpoint that sends END_STREAM might receive WINDOW_UPDATE or RST_STREAM before the peer sees it."""
    echoes(peer, 1)
    peer.send(window_update(1, 100), reset(1, expect.CANCEL), ping())
    expect.ping_ack(peer, b"conforms")
    echoes(peer, 3)


@case("rfc9113/5.1", "streams that are skipped")
def skipped_streams(peer: Peer) -> None:
    """5.1.1: The first use of a new stream identifier closes the idle ones below: none need be used."""
    for stream in (1, 9, 101, MAX_WINDOW):
        echoes(peer, stream)


@case("rfc9113/5.4.1", "GOAWAY names the last stream")
def last_stream(peer: Peer) -> None:
    """6.8: GOAWAY contains the last stream that the sender might have taken some action on."""
    echoes(peer, 1)
    echoes(peer, 3)
    peer.send(frame(WINDOW_UPDATE, 0, 0, bytes(4)))
    for event in peer.events():  # a server may also close without a word
        if event.kind == "GOAWAY" and event.last != 3:
            raise expect.Mismatch("GOAWAY with last stream 3", f"last stream {event.last}")
        if event.kind == "silence":
            raise expect.Mismatch("GOAWAY, or the connection closed", str(event))


@case("rfc9113/6.1", "PADDED without a pad length")
def padded_empty(peer: Peer) -> None:
    """4.2: FRAME_SIZE_ERROR if too small for mandatory data; 6.1: too much padding is PROTOCOL_ERROR."""
    peer.send(peer.headers(1, request()), frame(DATA, PADDED, 1))
    expect.stream_error(peer, 1, expect.FRAME_SIZE, expect.PROTOCOL)


@case("rfc9113/6.1", "DATA of padding only")
def only_padding(peer: Peer) -> None:
    """6.1: DATA frames MAY also contain padding; a frame can be all of it."""
    peer.send(peer.headers(1, request()), data(1, b"", padding=255), data(1, message(b"echo"), end=True, padding=0))
    expect.answered(peer, 1, b"echo")


@case("rfc9113/6.1", "an empty DATA ends a request")
def empty_data(peer: Peer) -> None:
    """6.1: END_STREAM may be set on a DATA frame without a payload."""
    peer.send(peer.headers(1, request()), data(1, message(b"echo")), data(1, b"", end=True))
    expect.answered(peer, 1, b"echo")


@case("rfc9113/6.1", "padding is given back to the window")
def padding_given_back(peer: Peer) -> None:
    """6.1: The entire DATA frame payload is included in flow control, including Pad Length and Padding."""
    peer.send(peer.headers(1, request(f"{SERVICE}/Take")))
    payload, padding, num_messages = message(bytes(251)), 255, 20_000
    octets = len(payload) + padding + 1
    for _ in range(num_messages):
        while peer.window(1) < octets:
            if peer.next_event().kind in ("silence", "closed"):
                raise expect.Mismatch("WINDOW_UPDATE for what has been read", f"a window of {peer.window(1)} octets")
        peer.used(1, octets)
        peer.send(data(1, payload, padding=padding))
    peer.send(data(1, b"", end=True))
    expect.answered(peer, 1, b"%d in %d" % (251 * num_messages, num_messages))


@case("rfc9113/5.1", "DATA in flight when the server resets its stream")
def data_in_flight(peer: Peer) -> None:
    """5.1: An endpoint that sends RST_STREAM MUST minimally process and then discard frames sent before it came."""
    peer.send(peer.headers(1, request(f"{SERVICE}/Nothing")))
    expect.stream_closed(peer, 1)
    peer.send(*(data(1, b"x" * 100) for _ in range(10)), peer.headers(1, [("x-test", "ok")], end=True))
    echoes(peer, 3)


def _most_streams(peer: Peer) -> int:
    if (most := peer.settings.get(MAX_CONCURRENT_STREAMS, 1 << 31)) > 1000:
        raise expect.Skipped("the server announces no limit")
    return most


@case("rfc9113/5.1.2", "a stream no longer counts once its answer has ended")
def places(peer: Peer) -> None:
    """5.1.2: Streams that are open or half-closed count; one on which both sides have sent END_STREAM is closed."""
    most = _most_streams(peer)
    peer.send(*(peer.headers(2 * number + 1, request()) for number in range(most)))
    for number in range(200):
        peer.send(data(2 * number + 1, message(b"echo"), end=True))
        expect.answered(peer, 2 * number + 1, b"echo")
        if refused := [event for event in peer.seen if event.kind == "RST_STREAM"]:
            raise expect.Mismatch(f"never more than {most} open streams", str(refused[0]))
        peer.send(peer.headers(2 * (most + number) + 1, request()))


@case("rfc9113/5.1.2", "frames in flight of a stream that is refused")
def refused_in_flight(peer: Peer) -> None:
    """4.3: its field block changes the table all the same; 5.1: its frames in flight MUST be discarded."""
    most = _most_streams(peer)
    peer.send(*(peer.headers(2 * number + 1, request()) for number in range(most)))
    refused = 2 * most + 1
    peer.send(peer.headers(refused, [*REQUEST, ("x-added", "kept")]), data(refused, message(b"echo")))
    expect.until(
        peer, f"RST_STREAM on {refused}", lambda event: (event.kind, event.stream) == ("RST_STREAM", refused) or None
    )
    peer.send(data(refused, b"", end=True), data(1, message(b"echo"), end=True))
    expect.answered(peer, 1, b"echo")
    echo(peer, refused + 2, [*request(f"{SERVICE}/Fields"), ("x-added", "kept")])
    expect.answered(peer, refused + 2, b"x-added=kept")


@case("rfc9113/5", "streams whose frames alternate")
def alternating(peer: Peer) -> None:
    """5: A connection contains multiple concurrently open streams, with either endpoint interleaving frames."""
    streams = range(1, 41, 2)
    payloads = {stream: message(b"%05d" % stream * 100) for stream in streams}
    peer.send(*(peer.headers(stream, request()) for stream in streams))
    for i in range(0, len(payloads[1]), 100):
        peer.send(*(data(stream, payloads[stream][i : i + 100]) for stream in streams))
    peer.send(*(data(stream, b"", end=True) for stream in reversed(streams)))
    answers: dict[int, bytes] = dict.fromkeys(streams, b"")
    missing = set(streams)
    while missing:
        event = expect.until(peer, "answers on 20 streams", lambda event: event.stream in answers or None)
        answers[event.stream] += event.payload
        missing -= {event.stream} if event.end else set()
    if answers != payloads:
        raise expect.Mismatch("each stream's own message", "others")


@case("rfc9113/6.7", "PING while answers wait for the window")
def ping_while_blocked(peer: Peer) -> None:
    """6.7: PING responses SHOULD be given higher priority than any other frame; 5.2.1: only DATA is flow-controlled."""
    peer.send(settings((INITIAL_WINDOW_SIZE, 0)))
    echo(peer, 1)
    expect.headers(peer, 1)
    peer.send(ping())
    expect.ping_ack(peer, b"conforms")


@case("rfc9113/6.5.3", "each SETTINGS is acknowledged")
def each_acknowledged(peer: Peer) -> None:
    """6.5.3: The recipient MUST immediately emit a SETTINGS frame with the ACK flag, for each that it receives."""
    peer.send(*(settings((INITIAL_WINDOW_SIZE, DEFAULT_WINDOW + number)) for number in range(5)))
    for _ in range(5):
        expect.settings_ack(peer)
    echoes(peer, 1)


@case("rfc9113/6.7", "twenty PINGs in a row", promise=True)
def pings_in_a_row(peer: Peer) -> None:
    """6.7: Receivers MUST send a PING frame with ACK in response: as many as keepalive may need are no flood."""
    peer.send(*(ping(b"number%02d" % number) for number in range(20)))
    for number in range(20):
        expect.ping_ack(peer, b"number%02d" % number)


@case("rfc9113/6.10", "HEADERS without a fragment, then CONTINUATION with undefined flags")
def empty_fragment(peer: Peer) -> None:
    """6.2: a fragment may be empty; 4.1: flags that a frame type does not define MUST be ignored."""
    peer.send(peer.headers_of(1, b"", end_headers=False))
    peer.send(frame(CONTINUATION, END_HEADERS | END_STREAM | PADDED, 1, peer.encode(request())))
    peer.send(data(1, message(b"echo"), end=True))
    expect.answered(peer, 1, b"echo")


@case("rfc9113/6.8", "GOAWAY received: open streams end")
def goaway_received(peer: Peer) -> None:
    """6.8: GOAWAY allows to stop accepting streams while still finishing those previously established."""
    peer.send(peer.headers(1, request()), goaway(expect.NO_ERROR), data(1, message(b"echo"), end=True))
    expect.answered(peer, 1, b"echo")


@case("rfc9113/6.9", "both windows are kept")
def both_windows(peer: Peer) -> None:
    """6.9.1: The sender MUST NOT send beyond either window: the connection's is what a second stream finds used."""
    path, half = f"{SERVICE}/Sizes", 40_000
    for stream in (1, 3):
        peer.send(peer.headers(stream, request(path)), data(stream, message(b"%d" % half), end=True))
    sent = 0
    while (event := peer.next_event(_QUIET_S if sent >= DEFAULT_WINDOW else None)).kind not in ("silence", "closed"):
        sent += event.length if event.kind == "DATA" else 0
    if sent != DEFAULT_WINDOW:
        raise expect.Mismatch(f"{DEFAULT_WINDOW} octets of DATA, then none", f"{sent} octets, {event}")
    peer.send(window_update(0, 2 * half))
    while len(ended := {event.stream for event in peer.seen if event.end}) < 2:
        if (event := peer.next_event()).kind in ("silence", "closed"):
            raise expect.Mismatch("the rest of both answers", f"the ends of streams {ended}, {event}")


@case("rfc9113/6.9.2", "a setting that moves a window above 2^31 - 1")
def settings_overflow(peer: Peer) -> None:
    """6.9.2: A change that causes any window to exceed the maximum MUST be a connection error FLOW_CONTROL_ERROR."""
    peer.send(peer.headers(1, request()), window_update(1, MAX_WINDOW - DEFAULT_WINDOW))
    peer.send(settings((INITIAL_WINDOW_SIZE, DEFAULT_WINDOW + 1)))
    expect.connection_error(peer, expect.FLOW_CONTROL)


@case("rfc9113/6.9.2", "a window of exactly 2^31 - 1")
def largest_window(peer: Peer) -> None:
    """6.9.1: A window may be 2^31-1 octets."""
    peer.send(window_update(0, MAX_WINDOW - DEFAULT_WINDOW), peer.headers(1, request()))
    peer.send(window_update(1, MAX_WINDOW - DEFAULT_WINDOW), data(1, message(b"echo"), end=True))
    expect.answered(peer, 1, b"echo")


def _deaf_call(peer: Peer) -> str:
    """A call that nobody reads until it is released, with as much of a message as its window takes; its name."""
    name = uuid.uuid4().hex
    peer.send(peer.headers(1, [*request(f"{SERVICE}/Deaf"), ("x-call", name)]), data(1, message(bytes(1 << 23))[:5]))
    peer.used(1, 5)
    while octets := min(peer.window(1), DEFAULT_FRAME):
        peer.send(data(1, bytes(octets)))
        peer.used(1, octets)
        while not peer.window(1) and peer.next_event(_QUIET_S).kind not in ("silence", "closed"):
            pass
    return name


@case("rfc9113/5.2", "a call that is not read does not hold up another", promise=True)
def back_pressure(peer: Peer) -> None:
    """5.2.1: Flow control keeps streams from interfering with each other; the window opens when the call is read."""
    name = _deaf_call(peer)
    echo(peer, 3, request(f"{SERVICE}/Release"), name.encode())
    expect.answered(peer, 3, b"")
    while not peer.window(1):
        if (event := peer.next_event()).kind in ("silence", "closed"):
            raise expect.Mismatch("WINDOW_UPDATE on stream 1", str(event))


@case("rfc9113/5.2", "a call whose answers wait for the window does not hold up another")
def blocked_answers(peer: Peer) -> None:
    """5.2.1: Flow control keeps streams from interfering with each other, also while one side's window is used up."""
    peer.send(settings((INITIAL_WINDOW_SIZE, 0)))
    peer.send(peer.headers(1, request(f"{SERVICE}/Chat")), data(1, message(b"1000") * 300))
    expect.headers(peer, 1)
    peer.send(data(1, message(b"1000") * 300))
    peer.send(peer.headers(3, request()), window_update(3, 100), data(3, message(b"echo"), end=True))
    expect.answered(peer, 3, b"echo")


@case("rfc9113/5.2", "DATA beyond a stream's window", promise=True)
def beyond_window(peer: Peer) -> None:
    """7: FLOW_CONTROL_ERROR: the endpoint detected that its peer violated the flow-control protocol."""
    _deaf_call(peer)
    peer.send(data(1, b"x" * DEFAULT_FRAME))
    expect.stream_error(peer, 1, expect.FLOW_CONTROL)
