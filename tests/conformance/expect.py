"""What a conformance case may see after it has sent its frames, as h2spec verifies it.

Each function reads events until one decides, and raises `Mismatch` if it is the wrong one. Where RFC 9113 says
"connection error of type X" these accept: GOAWAY with X, or the connection's end (5.4.1: GOAWAY is a SHOULD). Stricter
than h2spec in two points: a GOAWAY with another error code fails even if the connection is closed after it, and a
RST_STREAM must name the case's stream.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.conformance.wire import CODES, Event, Peer, code_name, message

NO_ERROR, PROTOCOL, INTERNAL, FLOW_CONTROL, _, CLOSED, FRAME_SIZE, REFUSED, CANCEL, COMPRESSION, _, CALM = range(12)
assert CODES[CALM] == "ENHANCE_YOUR_CALM"


class Mismatch(Exception):
    """A case failed.

    Attributes:
        expected: What had to come.
        came: What came.
    """

    def __init__(self, expected: str, came: str) -> None:
        super().__init__(f"expected {expected}; came: {came}")
        self.expected, self.came = expected, came


class Skipped(Exception):
    """A case does not apply to this server."""


def until(peer: Peer, expected: str, decide: Callable[[Event], bool | None]) -> Event:
    """Reads until `decide` says true or false; the connection's end and silence are false if it does not know."""
    came: list[str] = []
    for event in peer.events():
        verdict = decide(event)
        if verdict:
            return event
        if event.kind not in ("SETTINGS", "WINDOW_UPDATE", "PING"):
            came.append(str(event))
        if verdict is False:
            break
    raise Mismatch(expected, ", ".join(came[-4:]))


def _names(codes: tuple[int, ...]) -> str:
    return " or ".join(map(code_name, codes))


def connection_error(peer: Peer, *codes: int) -> None:
    """A connection error (5.4.1) with one of these codes."""

    def decide(event: Event) -> bool | None:
        if event.kind == "GOAWAY" and event.code != NO_ERROR:
            return event.code in codes
        return True if event.kind == "closed" else None

    until(peer, f"GOAWAY {_names(codes)}, or the connection closed", decide)


def stream_error(peer: Peer, stream: int, *codes: int) -> None:
    """A stream error (5.4.2) with one of these codes, or a connection error instead, which 5.4.1 permits."""

    def decide(event: Event) -> bool | None:
        if event.kind == "RST_STREAM" and event.stream == stream and event.code != NO_ERROR:
            return event.code in codes
        if event.kind == "GOAWAY" and event.code != NO_ERROR:
            return event.code in codes
        return True if event.kind == "closed" else None

    until(peer, f"RST_STREAM or GOAWAY {_names(codes)}, or the connection closed", decide)


def malformed(peer: Peer, stream: int) -> None:
    """A malformed request's end: a stream error PROTOCOL_ERROR, before which a server may answer 4xx (8.1.1)."""

    def decide(event: Event) -> bool | None:
        if event.kind in ("RST_STREAM", "GOAWAY") and event.code != NO_ERROR:
            return event.code == PROTOCOL
        if event.kind == "HEADERS" and event.stream == stream:
            return True if dict(event.fields).get(":status", "").startswith("4") else None
        return True if event.kind == "closed" else None

    until(peer, "RST_STREAM or GOAWAY PROTOCOL_ERROR, :status 4xx, or the connection closed", decide)


def goaway(peer: Peer, code: int) -> Event:
    """A GOAWAY with this code."""
    return until(peer, f"GOAWAY {code_name(code)}", lambda event: _is_code(event, "GOAWAY", code))


def _is_code(event: Event, kind: str, code: int) -> bool | None:
    return event.code == code if event.kind == kind and event.code != NO_ERROR else None


def closed(peer: Peer) -> None:
    """The TCP connection's end."""
    until(peer, "the connection closed", lambda event: True if event.kind == "closed" else None)


def ping_ack(peer: Peer, payload: bytes) -> None:
    """The acknowledgement of a PING with this payload, and of no other."""

    def decide(event: Event) -> bool | None:
        if event.kind == "GOAWAY" and event.code != NO_ERROR:
            return False
        return event.payload == payload if event.kind == "PING" and event.ack else None

    until(peer, f"PING ACK {payload!r}", decide)


def ping_ack_or_closed(peer: Peer, payload: bytes) -> None:
    """The acknowledgement of a PING, or the connection's end."""

    def decide(event: Event) -> bool | None:
        return event.payload == payload if event.kind == "PING" and event.ack else event.kind == "closed" or None

    until(peer, f"PING ACK {payload!r}, or the connection closed", decide)


def settings_ack(peer: Peer) -> None:
    """The acknowledgement of SETTINGS."""
    until(peer, "SETTINGS ACK", lambda event: True if event.kind == "SETTINGS" and event.ack else None)


def _ends(event: Event, stream: int) -> bool:
    """Whether an event rules out that a stream will be answered."""
    return (event.kind == "GOAWAY" and event.code != NO_ERROR) or (
        event.kind == "RST_STREAM" and event.stream == stream
    )


def headers(peer: Peer, stream: int) -> Event:
    """An answer's HEADERS."""

    def decide(event: Event) -> bool | None:
        return False if _ends(event, stream) else (event.kind == "HEADERS" and event.stream == stream) or None

    return until(peer, f"HEADERS on stream {stream}", decide)


def some_data(peer: Peer, stream: int, length: int | None = None) -> Event:
    """An answer's next DATA, of this length if one is given."""

    def decide(event: Event) -> bool | None:
        if event.kind == "DATA" and event.stream == stream and event.length:
            return length is None or event.length == length
        return False if _ends(event, stream) else None

    return until(peer, f"DATA on stream {stream}" + (f" of {length} octets" if length else ""), decide)


def stream_closed(peer: Peer, stream: int) -> None:
    """The end of an answer: END_STREAM, or RST_STREAM with NO_ERROR."""

    def decide(event: Event) -> bool | None:
        if event.stream != stream:
            return None
        return event.end or (event.kind == "RST_STREAM" and event.code == NO_ERROR) or None

    until(peer, f"the end of stream {stream}", decide)


def answered(peer: Peer, stream: int, *payloads: bytes, status: int | None = 0, http: str = "200") -> dict[str, str]:
    """A whole gRPC answer: these messages, this status (None: any but 0).

    Returns:
        The trailers, or all fields of an answer without messages.
    """
    expected = f"{len(payloads)} messages, grpc-status {'other than 0' if status is None else status} on {stream}"
    body, fields = b"", {}

    def decide(event: Event) -> bool | None:
        return False if _ends(event, stream) else event.stream == stream or None

    while True:
        event = until(peer, expected, decide)
        body += event.payload if event.kind == "DATA" else b""
        fields.update(event.fields)
        if event.end:
            break
    came = fields.get("grpc-status", "")
    is_right = came not in ("", "0") if status is None else came == str(status)
    if not is_right or fields.get(":status") != http or body != b"".join(map(message, payloads)):
        raise Mismatch(expected, f"{event} after {len(body)} octets, :status={fields.get(':status')}")
    return fields


def calm(peer: Peer, piece: Callable[[int], bytes], most: int = 40_000) -> None:
    """That the server ends a flood with ENHANCE_YOUR_CALM, or closes, before it has taken `most` frames.

    Args:
        peer: Whose connection it is.
        piece: The frame of a number.
        most: Frames.
    """
    step = 500
    for first in range(0, most, step):
        is_taken = peer.send(*(piece(number) for number in range(first, first + step)))
        if _is_calmed(peer, 0.0 if is_taken and first + step < most else peer.wait_s):
            return
        if not is_taken:
            break
    raise Mismatch("GOAWAY ENHANCE_YOUR_CALM", f"{peer.seen[-1]} after {first + step} frames")


def _is_calmed(peer: Peer, wait_s: float) -> bool:
    """Whether the connection has been ended, waiting so long for each event."""
    while (event := peer.next_event(wait_s)).kind not in ("silence", "closed"):
        if event.kind == "GOAWAY" and event.code != NO_ERROR:
            if event.code == CALM:
                return True
            raise Mismatch("GOAWAY ENHANCE_YOUR_CALM", str(event))
    return event.kind == "closed"
