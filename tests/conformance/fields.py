"""What RFC 9113 says of requests' fields and content beyond h2spec's cases. Numbers are RFC 9113's sections."""

from __future__ import annotations

from tests.conformance import expect
from tests.conformance.cases import REQUEST, case, changed, echo, request, without
from tests.conformance.wire import END_HEADERS, MAX_HEADER_LIST_SIZE, PUSH_PROMISE, Fields, Peer, data, frame, message

_FIELD = "8.2.1: a request whose field {} MUST be treated as malformed."
_SPECIFIC = "8.2.2: Any message containing connection-specific header fields MUST be treated as malformed."
_PSEUDO = [pair for pair in REQUEST if pair[0].startswith(":")]
_REGULAR = [pair for pair in REQUEST if not pair[0].startswith(":")]

_MALFORMED: list[tuple[str, str, Fields, str]] = [
    *(
        ("8.2.1", f"a field value with {title}", [*REQUEST, ("x-test", value)], _FIELD.format("value " + sentence))
        for title, value, sentence in (
            ("NUL", b"a\x00b", "contains 0x00"),
            ("CR", b"a\rb", "contains 0x0d"),
            ("LF", b"a\nb", "contains 0x0a"),
            ("a space before it", b" ok", "starts with 0x20"),
            ("a space after it", b"ok ", "ends with 0x20"),
            ("a tab before it", b"\tok", "starts with 0x09"),
            ("a tab after it", b"ok\t", "ends with 0x09"),
        )
    ),
    *(
        ("8.2.1", f"a field name with {title}", [*REQUEST, (name, "ok")], _FIELD.format("name contains " + octets))
        for title, name, octets in (
            ("a space", b"x test", "0x00-0x20"),
            ("NUL", b"x\x00test", "0x00-0x20"),
            ("LF", b"x\ntest", "0x00-0x20"),
            ("an uppercase letter", b"x-tesT", "0x41-0x5a"),
            ("DEL", b"x\x7ftest", "0x7f-0xff"),
            ("an octet above 0x7f", b"x\xfftest", "0x7f-0xff"),
            ("a colon within", b"x:test", "a colon beyond its first character"),
        )
    ),
    *(
        ("8.2.2", name, [*REQUEST, (name, value)], _SPECIFIC)
        for name, value in (
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
        )
    ),
    (
        "8.3",
        ":authority twice",
        [*_PSEUDO, (":authority", "conformance"), *_REGULAR],
        "8.3: The same pseudo-header field name MUST NOT appear more than once in a field block.",
    ),
    (
        "8.3",
        "a pseudo-header field after content-type",
        [*REQUEST[:3], *_REGULAR, REQUEST[3]],
        "8.3: All pseudo-header fields MUST appear in a field block before all regular field lines.",
    ),
    (
        "8.3",
        ":protocol",
        [*_PSEUDO, (":protocol", "websocket"), *_REGULAR],
        "8.3: Undefined pseudo-header fields make a request malformed (:protocol needs RFC 8441's setting).",
    ),
    (
        "8.5",
        "CONNECT with :scheme and :path",
        changed(":method", "CONNECT"),
        "8.5: A CONNECT request with :scheme or :path is malformed.",
    ),
    (
        "8.1.1",
        "content-length without content",
        [*REQUEST, ("content-length", "5")],
        "8.1.1: A request is malformed if content-length does not equal the sum of the DATA frame payload lengths.",
    ),
    (
        "8.1.1",
        "content-length that is no number",
        [*REQUEST, ("content-length", "five")],
        "8.1.1, RFC 9110, 8.6: an invalid content-length cannot equal the sum of the DATA frame payload lengths.",
    ),
    (
        "8.1.1",
        "two content-lengths",
        [*REQUEST, ("content-length", "0"), ("content-length", "7")],
        "8.1.1, RFC 9110, 8.6: one of them does not equal the sum of the DATA frame payload lengths.",
    ),
]


def _register(section: str, title: str, fields: Fields, sentence: str) -> None:
    def malformed(peer: Peer) -> None:
        peer.send(peer.headers(1, fields, end=True))
        expect.malformed(peer, 1)

    malformed.__doc__ = sentence
    case(f"rfc9113/{section}", title)(malformed)


for _arguments in _MALFORMED:
    _register(*_arguments)


for _section, _title, _fields in (
    ("8.2.2", "te: trailers is allowed", REQUEST),
    ("8.2.3", "several cookie fields", [*REQUEST, ("cookie", "a=b"), ("cookie", "c=d")]),
    ("8.2.1", "a field value that is empty", [*REQUEST, ("x-test", "")]),
    ("8.2.1", "spaces within a field value", [*REQUEST, ("x-test", "a b\tc")]),
    ("8.3.1", "no :authority", without(":authority")),
    ("8.3.1", "host in place of :authority", [*without(":authority"), ("host", "conformance")]),
    ("8.1.1", "content-length that is right", [*REQUEST, ("content-length", str(len(message(b"echo"))))]),
):

    @case(f"rfc9113/{_section}", f"{_title} (accepted)")
    def well_formed(peer: Peer, fields: Fields = _fields) -> None:
        """8.1: A server sends a response to a request that is not malformed."""
        echo(peer, 1, fields)
        expect.answered(peer, 1, b"echo")


@case("rfc9113/8.1.1", "content-length above DATA's length")
def content_too_short(peer: Peer) -> None:
    """8.1.1: A request is malformed if content-length does not equal the sum of the DATA frame payload lengths."""
    echo(peer, 1, [*REQUEST, ("content-length", "100")])
    expect.malformed(peer, 1)


@case("rfc9113/8.1", "trailers end a request")
def trailers(peer: Peer) -> None:
    """8.1: A message is one HEADERS frame, DATA frames, and optionally one HEADERS frame with trailers, END_STREAM."""
    peer.send(peer.headers(1, request()), data(1, message(b"echo")), peer.headers(1, [("x-test", "ok")], end=True))
    expect.answered(peer, 1, b"echo")


@case("rfc9113/8.1", "a pseudo-header field in trailers that end a request")
def pseudo_in_last_trailers(peer: Peer) -> None:
    """8.1: Trailers MUST NOT include pseudo-header fields; 8.3: a request with them is malformed."""
    peer.send(peer.headers(1, request()), data(1, b"test"), peer.headers(1, [(":path", "/")], end=True))
    expect.malformed(peer, 1)


@case("rfc9113/8.1", "DATA after trailers")
def data_after_trailers(peer: Peer) -> None:
    """5.1: On a half-closed (remote) stream, other frames MUST be answered with a stream error STREAM_CLOSED."""
    peer.send(peer.headers(1, request()), peer.headers(1, [("x-test", "ok")], end=True), data(1, b"test"))
    expect.stream_error(peer, 1, expect.CLOSED)


@case("rfc9113/8.4", "PUSH_PROMISE within an open stream")
def push_on_open_stream(peer: Peer) -> None:
    """8.4: A client cannot push: servers MUST treat PUSH_PROMISE as a connection error PROTOCOL_ERROR."""
    peer.send(peer.headers(1, request()))
    peer.send(frame(PUSH_PROMISE, END_HEADERS, 1, b"\x00\x00\x00\x02" + peer.encode(request())))
    expect.connection_error(peer, expect.PROTOCOL)


@case("rfc9113/8.1", "trailers in CONTINUATION")
def split_trailers(peer: Peer) -> None:
    """8.1: trailers are one HEADERS frame, followed by zero or more CONTINUATION frames."""
    peer.send(peer.headers(1, request()), data(1, message(b"echo")))
    peer.send(peer.headers(1, [("x-test", "ok")], end=True, end_headers=False))
    peer.send(peer.continuation(1, peer.encode([("x-more", "ok")])))
    expect.answered(peer, 1, b"echo")


@case("rfc9113/10.5.1", "fields of 8,000 octets (accepted)")
def many_fields(peer: Peer) -> None:
    """6.5.2: SETTINGS_MAX_HEADER_LIST_SIZE says what a server is prepared to accept; gRPC: 8 KB by default."""
    if peer.settings.get(MAX_HEADER_LIST_SIZE, 1 << 20) < 1 << 13:
        raise expect.Skipped("the server says that it takes less")
    echo(peer, 1, [*REQUEST, *((f"x-field{i}", "v" * 950) for i in range(7))])
    expect.answered(peer, 1, b"echo")


@case("rfc9113/5.4.2", "a malformed request does not end the connection", promise=True)
def after_stream_error(peer: Peer) -> None:
    """5.4.2: A stream error is an error related to a specific stream that does not affect other streams."""
    peer.send(peer.headers(1, request()))
    peer.send(peer.headers(3, [*REQUEST, ("connection", "close")], end=True))
    expect.stream_error(peer, 3, expect.PROTOCOL)
    peer.send(data(1, message(b"echo"), end=True))
    expect.answered(peer, 1, b"echo")
