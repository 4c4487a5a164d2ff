"""What RFC 7541 says beyond h2spec's cases. Numbers are RFC 7541's sections."""

from __future__ import annotations

from tests.conformance import expect
from tests.conformance.cases import REQUEST, SERVICE, case, request
from tests.conformance.wire import HEADER_TABLE_SIZE, Peer, data, literal, message, settings

_FIELDS = f"{SERVICE}/Fields"
_BLOCK = b"".join(literal(*field) for field in request(_FIELDS))  # leaves the dynamic table as it is
_NEWEST = 0x80 | 62  # the dynamic table's first entry


def _fields(peer: Peer, stream: int, block: bytes, *expected: str) -> None:
    """A call with this header block, whose `x-` fields the server must have read."""
    peer.send(peer.headers_of(stream, block), data(stream, message(b""), end=True))
    expect.answered(peer, stream, "\n".join(expected).encode())


@case("rfc7541/2.3.3", "an entry of the dynamic table is used by a later block")
def used_later(peer: Peer) -> None:
    """2.3.2: The dynamic table consists of header fields maintained first-in, first-out over blocks."""
    _fields(
        peer,
        1,
        _BLOCK + literal("x-first", "1", pattern=0x40) + literal("x-second", "2", pattern=0x40),
        "x-first=1",
        "x-second=2",
    )
    _fields(peer, 3, _BLOCK + bytes([_NEWEST + 1, _NEWEST]), "x-first=1", "x-second=2")


@case("rfc7541/2.3.3", "a dynamic entry's name with another value")
def name_of_entry(peer: Peer) -> None:
    """6.2.1: If the header field name matches an entry, it can be represented by the index of that entry."""
    _fields(peer, 1, _BLOCK + literal("x-named", "1", pattern=0x40), "x-named=1")
    _fields(peer, 3, _BLOCK + literal(62, "2", pattern=0x40, bits=6), "x-named=2")
    _fields(peer, 5, _BLOCK + bytes([_NEWEST, _NEWEST + 1]), "x-named=2", "x-named=1")


@case("rfc7541/4.4", "the oldest entries are evicted")
def eviction(peer: Peer) -> None:
    """4.4: Before a new entry is added, entries are evicted from the end until it fits, of 32 octets more each."""
    first = literal("x-a", "a" * 2000, pattern=0x40) + literal("x-b", "b" * 2000, pattern=0x40)
    _fields(peer, 1, _BLOCK + first, "x-a=" + "a" * 2000, "x-b=" + "b" * 2000)
    _fields(peer, 3, _BLOCK + literal("x-c", "c", pattern=0x40) + bytes([_NEWEST + 1]), "x-c=c", "x-b=" + "b" * 2000)
    peer.send(peer.headers_of(5, _BLOCK + bytes([_NEWEST + 2]), end=True))
    expect.connection_error(peer, expect.COMPRESSION)


@case("rfc7541/4.3", "a table of size 0 forgets its entries")
def emptied(peer: Peer) -> None:
    """4.3: Whenever the maximum size is reduced, entries are evicted; 2.3.3: an index beyond is a decoding error."""
    _fields(peer, 1, _BLOCK + literal("x-gone", "1", pattern=0x40), "x-gone=1")
    _fields(peer, 3, b"\x20" + _BLOCK)
    peer.send(peer.headers_of(5, _BLOCK + bytes([_NEWEST]), end=True))
    expect.connection_error(peer, expect.COMPRESSION)


@case("rfc7541/4.4", "an entry larger than the table empties it")
def too_large_entry(peer: Peer) -> None:
    """4.4: An attempt to add an entry larger than the maximum size empties the table; it is not an error."""
    _fields(peer, 1, _BLOCK + literal("x-kept", "1", pattern=0x40), "x-kept=1")
    _fields(peer, 3, _BLOCK + literal("x-large", "v" * 5000, pattern=0x40), "x-large=" + "v" * 5000)
    peer.send(peer.headers_of(5, _BLOCK + bytes([_NEWEST]), end=True))
    expect.connection_error(peer, expect.COMPRESSION)


@case("rfc7541/5.2", "Huffman strings of every octet that a field may have")
def huffman(peer: Peer) -> None:
    """5.2, appendix B: every symbol has a code."""
    value = bytes(range(0x21, 0x7F)).decode()
    _fields(peer, 1, _BLOCK + literal("x-all", value, huffman=True), f"x-all={value}")


@case("rfc7541/6.2", "a block split over CONTINUATION frames of one octet")
def one_octet_each(peer: Peer) -> None:
    """RFC 9113, 4.3: A field block is the concatenation of its fragments, wherever they are split."""
    block = _BLOCK + literal("x-split", "1", huffman=True)
    peer.send(peer.headers_of(1, block[:-9], end_headers=False))
    peer.send(*(peer.continuation(1, block[i : i + 1], end_headers=False) for i in range(len(block) - 9, len(block))))
    peer.send(peer.continuation(1, b""), data(1, message(b""), end=True))
    expect.answered(peer, 1, b"x-split=1")


@case("rfc7541/4.2", "the server's table shrinks to SETTINGS_HEADER_TABLE_SIZE")
def shrunk(peer: Peer) -> None:
    """4.2: A change MUST be signaled in the next block; RFC 9113, 4.3.1: a block without is a COMPRESSION_ERROR."""
    peer.send(settings((HEADER_TABLE_SIZE, 0)))
    expect.settings_ack(peer)
    peer.decoder.max_allowed_table_size = 0  # hpack raises if a block does not begin with the update
    for stream in (1, 3):
        peer.send(peer.headers(stream, REQUEST), data(stream, message(b"echo"), end=True))
        expect.answered(peer, stream, b"echo")


for _section, _title, _after in (
    ("5.1", "an index of more than 32 bits", b"\xff" + b"\xff" * 9 + b"\x7f"),
    ("5.1", "an index that does not end", b"\xff\x80"),
    ("5.2", "a string longer than its block", b"\x00\x06x-test\x7fshort"),
    ("5.2", "a name without a value", b"\x00\x06x-test"),
    ("6.3", "a dynamic table size of more than 32 bits", b"\x3f" + b"\xff" * 9 + b"\x7f"),
):

    @case(f"rfc7541/{_section}", _title)
    def undecodable(peer: Peer, after: bytes = _after) -> None:
        """5.1, 5.2: what cannot be decoded MUST be a decoding error; RFC 9113, 4.3: COMPRESSION_ERROR."""
        peer.send(peer.headers_of(1, after if after[0] == 0x3F else _BLOCK + after, end=True))
        expect.connection_error(peer, expect.COMPRESSION)
