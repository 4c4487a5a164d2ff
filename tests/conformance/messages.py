"""h2spec's http2/8.1 to 8.2 and its HPACK part: malformed requests, and header blocks that cannot be decoded."""

from __future__ import annotations

from hpack.hpack import encode_integer

from tests.conformance import expect
from tests.conformance.cases import ECHO, REQUEST, case, changed, request, without
from tests.conformance.wire import END_HEADERS, HEADER_TABLE_SIZE, PUSH_PROMISE, Fields, Peer, data, frame

_MALFORMED = [
    (
        "8.1.2/1",
        "a field name with uppercase letters",
        [*REQUEST, ("X-TEST", "ok")],
        "8.2.1: A field name MUST NOT contain characters in the range 0x41-0x5a.",
    ),
    (
        "8.1.2.1/1",
        "an unknown pseudo-header field",
        [*REQUEST[:4], (":test", "ok"), *REQUEST[4:]],
        "8.3: Endpoints MUST treat a request that contains undefined or invalid pseudo-header fields as malformed.",
    ),
    (
        "8.1.2.1/2",
        "a response's pseudo-header field",
        [*REQUEST[:4], (":status", "200"), *REQUEST[4:]],
        "8.3: Pseudo-header fields defined for responses MUST NOT appear in requests.",
    ),
    (
        "8.1.2.1/4",
        "a pseudo-header field after a regular one",
        [("x-test", "ok"), *REQUEST],
        "8.3: All pseudo-header fields MUST appear in a field block before all regular field lines.",
    ),
    (
        "8.1.2.2/1",
        "a connection-specific field",
        [*REQUEST, ("connection", "keep-alive")],
        "8.2.2: Any message containing connection-specific header fields MUST be treated as malformed.",
    ),
    (
        "8.1.2.2/2",
        "te with another value than trailers",
        changed("te", "trailers, deflate"),
        "8.2.2: The TE header field MUST NOT contain any value other than `trailers`.",
    ),
    ("8.1.2.3/1", "an empty :path", changed(":path", ""), "8.3.1: :path MUST NOT be empty for http or https URIs."),
    ("8.1.2.3/2", "no :method", without(":method"), "8.3.1: All requests MUST include exactly one valid :method."),
    ("8.1.2.3/3", "no :scheme", without(":scheme"), "8.3.1: All requests MUST include exactly one valid :scheme."),
    ("8.1.2.3/4", "no :path", without(":path"), "8.3.1: All requests MUST include exactly one valid :path."),
    *(
        (
            f"8.1.2.3/{number}",
            f"{name} twice",
            [*REQUEST[:4], (name, dict(REQUEST)[name]), *REQUEST[4:]],
            "8.3: The same pseudo-header field name MUST NOT appear more than once in a field block.",
        )
        for number, name in enumerate((":method", ":scheme", ":path"), 5)
    ),
]


def _register(section: str, title: str, fields: Fields, sentence: str) -> None:
    def malformed(peer: Peer) -> None:
        peer.send(peer.headers(1, fields, end=True))
        expect.stream_error(peer, 1, expect.PROTOCOL)

    malformed.__doc__ = f"{sentence} 8.1.1: malformed requests MUST be treated as a stream error PROTOCOL_ERROR."
    case(f"http2/{section}", title)(malformed)


for _arguments in _MALFORMED:
    _register(*_arguments)


@case("http2/8.1/1", "a second HEADERS without END_STREAM")
def second_headers(peer: Peer) -> None:
    """8.1: HEADERS without END_STREAM after the one that opens a request MUST be treated as malformed."""
    peer.send(peer.headers(1, request()), data(1, b"test"), peer.headers(1, [("x-test", "ok")]))
    expect.stream_error(peer, 1, expect.PROTOCOL)


@case("http2/8.1.2.1/3", "a pseudo-header field in trailers")
def pseudo_in_trailers(peer: Peer) -> None:
    """8.1: Pseudo-header fields MUST NOT appear in trailers; 8.3: such a request is malformed."""
    peer.send(peer.headers(1, request()), data(1, b"test"), peer.headers(1, [(":method", "POST")]))
    expect.stream_error(peer, 1, expect.PROTOCOL)


@case("http2/8.1.2.6/1", "content-length is not DATA's length")
def content_length(peer: Peer) -> None:
    """8.1.1: A request is malformed if content-length does not equal the sum of the DATA frame payload lengths."""
    peer.send(peer.headers(1, [*request(), ("content-length", "1")]), data(1, b"test", end=True))
    expect.stream_error(peer, 1, expect.PROTOCOL)


@case("http2/8.1.2.6/2", "content-length is not the length of several DATA")
def content_length_of_several(peer: Peer) -> None:
    """8.1.1: A request is malformed if content-length does not equal the sum of the DATA frame payload lengths."""
    peer.send(peer.headers(1, [*request(), ("content-length", "1")]), data(1, b"test"), data(1, b"test", end=True))
    expect.stream_error(peer, 1, expect.PROTOCOL)


@case("http2/8.2/1", "PUSH_PROMISE")
def push(peer: Peer) -> None:
    """8.4: A client cannot push: servers MUST treat PUSH_PROMISE as a connection error PROTOCOL_ERROR."""
    peer.send(frame(PUSH_PROMISE, END_HEADERS, 1, b"\x00\x00\x00\x03" + peer.encode(request())))
    expect.connection_error(peer, expect.PROTOCOL)


_BLOCKS = [
    ("2.3.3/1", "an indexed field beyond both tables", b"\xfe", "2.3.3: Greater indices MUST be a decoding error."),
    (
        "2.3.3/2",
        "a literal field whose name is indexed beyond both tables",
        b"\x0f\x6f\x04test",
        "2.3.3: Indices strictly greater than the sum of the lengths of both tables MUST be a decoding error.",
    ),
    (
        "4.2/1",
        "a dynamic table size update after a field",
        b"\x21",
        "4.2: This dynamic table size update MUST occur at the beginning of the header block.",
    ),
    (
        "5.2/1",
        "Huffman padding of more than 7 bits",
        b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff",
        "5.2: A padding strictly longer than 7 bits MUST be treated as a decoding error.",
    ),
    (
        "5.2/2",
        "Huffman padding of zeros",
        b"\x00\x85\xf2\xb2\x4a\x84\xff\x83\x49\x50\x90",
        "5.2: A padding not corresponding to the most significant bits of EOS MUST be a decoding error.",
    ),
    (
        "5.2/3",
        "EOS within a Huffman string",
        b"\x00\x85\xf2\xb2\x4a\x84\xff\x87\xff\xff\xff\xfd\x25\x42\x7f",
        "5.2: A Huffman-encoded string literal containing the EOS symbol MUST be treated as a decoding error.",
    ),
    ("6.1/1", "an indexed field of index 0", b"\x80", "6.1: The index value of 0 MUST be treated as a decoding error."),
]


def _register_block(section: str, title: str, after: bytes, sentence: str) -> None:
    def undecodable(peer: Peer) -> None:
        peer.send(peer.headers_of(1, peer.encode(request(ECHO)) + after, end=True))
        expect.connection_error(peer, expect.COMPRESSION)

    undecodable.__doc__ = f"RFC 7541, {sentence} RFC 9113, 4.3: a connection error COMPRESSION_ERROR."
    case(f"hpack/{section}", title)(undecodable)


for _block in _BLOCKS:
    _register_block(*_block)


@case("hpack/6.3/1", "a dynamic table above SETTINGS_HEADER_TABLE_SIZE")
def table_too_large(peer: Peer) -> None:
    """RFC 7541, 6.3: A size that exceeds the limit of SETTINGS_HEADER_TABLE_SIZE MUST be a decoding error."""
    update = encode_integer(peer.settings.get(HEADER_TABLE_SIZE, 4096) + 1, 5)
    update[0] |= 0x20
    peer.send(peer.headers_of(1, bytes(update) + peer.encode(request()), end=True))
    expect.connection_error(peer, expect.COMPRESSION)
