"""Floods of frames that cost their sender next to nothing.

RFC 9113, 10.5: an endpoint SHOULD track the use of these features and set limits on their use, and MAY treat activity
that is suspicious as a connection error ENHANCE_YOUR_CALM. Our server promises to; grpcio's is not asked. Each flood
begins after a call that has been answered, so that it comes from a peer whom the server knows.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.conformance import expect
from tests.conformance.cases import REQUEST, SERVICE, case, echoes, request
from tests.conformance.wire import (
    ENABLE_PUSH,
    END_HEADERS,
    HEADERS,
    INITIAL_WINDOW_SIZE,
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

_BLOCK = b"".join(literal(*field) for field in REQUEST)  # leaves the dynamic table as it is
_OPEN = 3  # a stream that is open, if a flood needs one


def _begin(peer: Peer) -> None:
    echoes(peer, 1)
    peer.send(peer.headers(_OPEN, request(f"{SERVICE}/Chat")))


def _opened(number: int, *after: bytes) -> bytes:
    """A new stream's HEADERS, and what ends it."""
    return frame(HEADERS, END_HEADERS, 5 + 2 * number, _BLOCK) + b"".join(after)


_FLOODS: list[tuple[str, str, Callable[[int], bytes]]] = [
    ("PING", "10.5: PING frames can be abused to cause a peer to expend processing time.", lambda _: ping()),
    ("SETTINGS", "10.5: SETTINGS frames can be abused likewise.", lambda _: settings((ENABLE_PUSH, 0))),
    (
        "SETTINGS that change every window",
        "10.5: changing SETTINGS_INITIAL_WINDOW_SIZE makes the peer adjust every stream.",
        lambda number: settings((INITIAL_WINDOW_SIZE, 65535 - number % 2)),
    ),
    ("PRIORITY", "10.5: PRIORITY frames can be abused likewise.", lambda number: priority(2 * number + 1)),
    ("empty DATA", "10.5: a large number of small or empty frames can be abused.", lambda _: data(_OPEN, b"")),
    (
        "DATA of padding only",
        "10.5: a large number of small or empty frames can be abused.",
        lambda _: data(_OPEN, b"", padding=0),
    ),
    (
        "HEADERS and RST_STREAM (CVE-2023-44487)",
        "10.5: opening and resetting streams without limit costs the peer more than the sender.",
        lambda number: _opened(number, reset(5 + 2 * number, expect.CANCEL)),
    ),
    (
        "HEADERS and a frame that resets them (CVE-2025-8671)",
        "10.5: as above, where the server is made to reset streams.",
        lambda number: _opened(number, window_update(5 + 2 * number, 0)),
    ),
]


def _register(title: str, sentence: str, piece: Callable[[int], bytes]) -> None:
    def flood(peer: Peer) -> None:
        _begin(peer)
        expect.calm(peer, piece)

    flood.__doc__ = sentence
    case("calm/10.5", title, promise=True)(flood)


for _arguments in _FLOODS:
    _register(*_arguments)


def _block_without_end(peer: Peer, piece: bytes) -> None:
    """HEADERS, then CONTINUATION without end."""
    _begin(peer)
    peer.send(peer.headers_of(5, _BLOCK, end_headers=False))
    for _ in range(2000):
        if not peer.send(peer.continuation(5, piece, end_headers=False) * 20):
            break
        if peer.next_event(0.0).kind != "silence":
            break
    expect.connection_error(peer, expect.CALM, expect.PROTOCOL, expect.COMPRESSION, expect.INTERNAL)


@case("calm/10.5.1", "empty CONTINUATION without end", promise=True)
def empty_continuations(peer: Peer) -> None:
    """10.5: small or empty frames can be abused; a header block of them never ends. Any error code will do."""
    _block_without_end(peer, b"")


@case("calm/10.5.1", "CONTINUATION of fields without end", promise=True)
def endless_fields(peer: Peer) -> None:
    """10.5.1: A large field block can cause a server to commit a large amount of state. Any error code will do."""
    _block_without_end(peer, literal("x-more", "v" * 1000))


@case("calm/10.5.1", "a block that grows a thousandfold when it is decoded", promise=True)
def bomb(peer: Peer) -> None:
    """RFC 7541, 7.3; 10.5.1: a limit on decoded fields; the server may answer 431, reset the stream or close."""
    _begin(peer)
    peer.send(peer.headers_of(5, _BLOCK + literal("x-bomb", "v" * 4000, pattern=0x40) + bytes([0x80 | 62]) * 4000))

    def refuses(kind: str, status: str, code: int) -> bool:
        return kind == "closed" or status == "431" or (kind in ("GOAWAY", "RST_STREAM") and code != expect.NO_ERROR)

    for event in peer.events():
        if refuses(event.kind, dict(event.fields).get(":status", ""), event.code):
            return
    raise expect.Mismatch(":status 431, a stream error or a connection error", str(event))
