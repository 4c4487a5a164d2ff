"""What h2spec calls generic: a correct client's frames are accepted. Numbers are h2spec's."""

from __future__ import annotations

from itertools import product

from tests.conformance import expect
from tests.conformance.cases import case, changed, request
from tests.conformance.wire import (
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PADDED,
    PREFACE,
    PRIORITY_FLAG,
    Peer,
    data,
    frame,
    goaway,
    literal,
    message,
    ping,
    priority,
    reset,
    settings,
    window_update,
)

_USER_AGENT = 58  # in the static table


def _call(peer: Peer, stream: int = 1) -> None:
    """A call without a message: the answer is a status."""
    peer.send(peer.headers(stream, request(), end=True))


def _waiting_answer(peer: Peer) -> None:
    """A call whose answer has one byte of DATA that may not be sent yet."""
    peer.send(settings((INITIAL_WINDOW_SIZE, 0)))
    peer.send(peer.headers(1, request()), data(1, message(b"echo"), end=True))


@case("generic/1/1", "the server's first frame is SETTINGS", greeting=False)
def first_frame(peer: Peer) -> None:
    """3.4: The server connection preface consists of a SETTINGS frame that MUST be the first frame the server sends."""
    peer.send(PREFACE, settings((INITIAL_WINDOW_SIZE, 65535)))
    event = peer.next_event()
    if event.kind != "SETTINGS" or event.ack:
        raise expect.Mismatch("SETTINGS", str(event))


@case("generic/2/1", "PRIORITY on an idle stream")
def priority_idle(peer: Peer) -> None:
    """6.3: The PRIORITY frame can be sent on a stream in any state."""
    peer.send(priority(1), ping())
    expect.ping_ack(peer, b"conforms")


@case("generic/2/2", "WINDOW_UPDATE on a half-closed (remote) stream")
def window_update_half_closed(peer: Peer) -> None:
    """5.1: In half-closed (remote) WINDOW_UPDATE, PRIORITY and RST_STREAM may be received."""
    _waiting_answer(peer)
    peer.send(window_update(1, 1))
    expect.some_data(peer, 1, 1)


@case("generic/2/3", "PRIORITY on a half-closed (remote) stream")
def priority_half_closed(peer: Peer) -> None:
    """5.1: In half-closed (remote) WINDOW_UPDATE, PRIORITY and RST_STREAM may be received."""
    _waiting_answer(peer)
    peer.send(priority(1), window_update(1, 1))
    expect.some_data(peer, 1, 1)


@case("generic/2/4", "RST_STREAM on a half-closed (remote) stream")
def reset_half_closed(peer: Peer) -> None:
    """5.1: In half-closed (remote) WINDOW_UPDATE, PRIORITY and RST_STREAM may be received."""
    _call(peer)
    peer.send(reset(1, expect.CANCEL), ping())
    expect.ping_ack(peer, b"conforms")


@case("generic/2/5", "PRIORITY on a closed stream")
def priority_closed(peer: Peer) -> None:
    """6.3: The PRIORITY frame can be sent on a stream in any state, including closed."""
    _call(peer)
    expect.stream_closed(peer, 1)
    peer.send(priority(1), ping())
    expect.ping_ack(peer, b"conforms")


@case("generic/3.1/1", "DATA")
def one_data(peer: Peer) -> None:
    """6.1: DATA carries a request's content. (`test` is no gRPC message, which a status answers.)"""
    peer.send(peer.headers(1, request()), data(1, b"test", end=True))
    expect.headers(peer, 1)


@case("generic/3.1/2", "several DATA")
def several_data(peer: Peer) -> None:
    """6.1: One or more DATA frames carry a request's content."""
    peer.send(peer.headers(1, request()), data(1, b"test"), data(1, b"test", end=True))
    expect.headers(peer, 1)


@case("generic/3.1/3", "padded DATA")
def padded_data(peer: Peer) -> None:
    """6.1: DATA frames MAY also contain padding."""
    peer.send(peer.headers(1, request()), data(1, b"test", end=True, padding=6))
    expect.headers(peer, 1)


@case("generic/3.2/1", "HEADERS")
def one_headers(peer: Peer) -> None:
    """6.2: HEADERS opens a stream."""
    _call(peer)
    expect.headers(peer, 1)


@case("generic/3.2/2", "padded HEADERS")
def padded_headers(peer: Peer) -> None:
    """6.2: The HEADERS frame can include padding."""
    block = b"\x08" + peer.encode(request()) + bytes(8)
    peer.send(frame(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, block))
    expect.headers(peer, 1)


@case("generic/3.2/3", "HEADERS with priority")
def headers_with_priority(peer: Peer) -> None:
    """6.2: The PRIORITY flag says that the five octets of a priority are present, which are to be ignored."""
    block = bytes(4) + b"\xff" + peer.encode(request())
    peer.send(frame(HEADERS, END_STREAM | END_HEADERS | PRIORITY_FLAG, 1, block))
    expect.headers(peer, 1)


for _number, (_title, _sent) in enumerate(
    [
        ("with weight 1", priority(1, weight=0)),
        ("with weight 256", priority(1, weight=255)),
        ("with a dependency", priority(3, depends_on=1, weight=0)),
        ("that is exclusive", priority(1, weight=0, exclusive=True)),
        ("for a higher idle stream, then HEADERS of a lower one", priority(3)),
    ],
    1,
):

    @case(f"generic/3.3/{_number}", f"PRIORITY {_title}")
    def priority_then_call(peer: Peer, sent: bytes = _sent) -> None:
        """6.3: The PRIORITY frame can be sent on a stream in any state; 5.3.2: it is deprecated, so it does nothing."""
        peer.send(sent)
        _call(peer)
        expect.headers(peer, 1)


@case("generic/3.4/1", "RST_STREAM")
def reset_open(peer: Peer) -> None:
    """6.4: RST_STREAM allows for immediate termination of a stream."""
    peer.send(peer.headers(1, request()), reset(1, expect.CANCEL), ping())
    expect.ping_ack_or_closed(peer, b"conforms")


@case("generic/3.5/1", "SETTINGS")
def all_settings(peer: Peer) -> None:
    """6.5.3: The recipient MUST emit a SETTINGS frame with the ACK flag."""
    peer.send(settings((1, 4096), (2, 1), (3, 100), (4, 65535), (5, 16384), (6, 100)))
    expect.settings_ack(peer)


@case("generic/3.7/1", "PING")
def one_ping(peer: Peer) -> None:
    """6.7: Receivers MUST send a PING frame with the ACK flag in response, with an identical payload."""
    peer.send(ping())
    expect.ping_ack(peer, b"conforms")


@case("generic/3.8/1", "GOAWAY")
def one_goaway(peer: Peer) -> None:
    """6.8: GOAWAY is accepted; the receiver may close once it has no streams."""
    peer.send(goaway(expect.NO_ERROR, b"conformance"), ping())
    expect.ping_ack_or_closed(peer, b"conforms")


@case("generic/3.9/1", "WINDOW_UPDATE of the connection")
def window_of_connection(peer: Peer) -> None:
    """6.9: Flow control operates on each stream and on the connection."""
    peer.send(window_update(0, 1), ping())
    expect.ping_ack(peer, b"conforms")


@case("generic/3.9/2", "WINDOW_UPDATE of a stream")
def window_of_stream(peer: Peer) -> None:
    """6.9: WINDOW_UPDATE can be sent by a peer that has sent a frame with END_STREAM."""
    _call(peer)
    peer.send(window_update(1, 1))
    expect.headers(peer, 1)


@case("generic/3.10/1", "CONTINUATION")
def one_continuation(peer: Peer) -> None:
    """6.10: Any number of CONTINUATION frames can be sent after HEADERS without END_HEADERS."""
    block = peer.encode(request())
    peer.send(peer.headers_of(1, block[:5], end=True, end_headers=False), peer.continuation(1, block[5:]))
    expect.headers(peer, 1)


@case("generic/3.10/2", "several CONTINUATION")
def several_continuations(peer: Peer) -> None:
    """6.10: Any number of CONTINUATION frames can be sent after HEADERS without END_HEADERS."""
    block = peer.encode(request())
    peer.send(peer.headers_of(1, block[:5], end=True, end_headers=False))
    peer.send(peer.continuation(1, block[5:10], end_headers=False), peer.continuation(1, block[10:]))
    expect.headers(peer, 1)


for _number, _method in enumerate(("GET", "HEAD"), 1):

    @case(f"generic/4/{_number}", f"a {_method} request")
    def request_without_content(peer: Peer, method: str = _method) -> None:
        """8.1: A server sends an HTTP response on the same stream as the request. (gRPC refuses other methods.)"""
        peer.send(peer.headers(1, changed(":method", method), end=True))
        expect.headers(peer, 1)


@case("generic/4/3", "a POST request")
def post(peer: Peer) -> None:
    """8.1: A server sends an HTTP response on the same stream as the request."""
    peer.send(peer.headers(1, request()), data(1, b"test", end=True))
    expect.headers(peer, 1)


@case("generic/4/4", "a POST request with trailers")
def post_with_trailers(peer: Peer) -> None:
    """8.1: A message may end with one HEADERS frame that carries trailers."""
    peer.send(peer.headers(1, [*request(), ("trailer", "x-test")]))
    peer.send(data(1, b"test"), peer.headers(1, [("x-test", "ok")], end=True))
    expect.headers(peer, 1)


@case("generic/5/1", "an indexed field")
def indexed(peer: Peer) -> None:
    """RFC 7541, 6.1: An indexed header field identifies an entry in either table."""
    peer.send(peer.headers_of(1, peer.encode(request()) + bytes([0x80 | _USER_AGENT]), end=True))
    expect.headers(peer, 1)


_PATTERNS = {"with incremental indexing": (0x40, 6), "without indexing": (0x00, 4), "never indexed": (0x10, 4)}
for _number, ((_how, (_pattern, _bits)), _name, _huffman) in enumerate(
    product(_PATTERNS.items(), (_USER_AGENT, "x-test"), (False, True)), 2
):
    _title = f"{_how}, {'an indexed' if _name == _USER_AGENT else 'a new'} name{', Huffman' if _huffman else ''}"
    _field = literal(_name, "conformance", pattern=_pattern, bits=_bits, huffman=_huffman)

    @case(f"generic/5/{_number}", f"a literal field {_title}")
    def literal_field(peer: Peer, field: bytes = _field) -> None:
        """RFC 7541, 6.2: a literal header field results in appending a header field to the decoded header list."""
        peer.send(peer.headers_of(1, peer.encode(request()) + field, end=True))
        expect.headers(peer, 1)


for _number, (_title, _update) in enumerate(
    [("a dynamic table size update", b"\x3f\x61"), ("two dynamic table size updates", b"\x3f\x61\x3f\xe1\x1f")], 14
):

    @case(f"generic/5/{_number}", _title)
    def table_size_update(peer: Peer, update: bytes = _update) -> None:
        """RFC 7541, 4.2: at most two updates at the beginning of a header block change the table's size."""
        peer.send(peer.headers_of(1, update + b"".join(literal(*field) for field in request()), end=True))
        expect.headers(peer, 1)
