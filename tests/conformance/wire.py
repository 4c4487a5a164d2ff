"""A raw HTTP/2 client for conformance cases: it sends any bytes, and reads what comes as a sequence of events.

Frames that come are parsed by hyperframe and header blocks by hpack, so that nothing of ours judges ours. Frames that
go are put together here, since hyperframe refuses to build what a case must send.

Threads: none of its own; a `Peer` belongs to the thread that made it.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import hpack
from hpack.hpack import encode_integer
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY_FLAG = 0x1, 0x1, 0x4, 0x8, 0x20
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = (
    range(1, 7)
)
DEFAULT_WINDOW, MAX_WINDOW, DEFAULT_FRAME = 65535, (1 << 31) - 1, 1 << 14

# RFC 9113, 7.
CODES = (
    "NO_ERROR PROTOCOL_ERROR INTERNAL_ERROR FLOW_CONTROL_ERROR SETTINGS_TIMEOUT STREAM_CLOSED FRAME_SIZE_ERROR "
    "REFUSED_STREAM CANCEL COMPRESSION_ERROR CONNECT_ERROR ENHANCE_YOUR_CALM INADEQUATE_SECURITY HTTP_1_1_REQUIRED"
).split()

Fields = Sequence[tuple[str | bytes, str | bytes]]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Any frame; `stream` may have the reserved bit."""
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def data(stream: int, payload: bytes, *, end: bool = False, padding: int | None = None) -> bytes:
    """A DATA frame, padded if `padding` is a number."""
    flags = (END_STREAM if end else 0) | (0 if padding is None else PADDED)
    return frame(DATA, flags, stream, payload if padding is None else bytes([padding]) + payload + bytes(padding))


def priority(stream: int, depends_on: int = 0, weight: int = 255, *, exclusive: bool = False) -> bytes:
    """A PRIORITY frame."""
    return frame(PRIORITY, 0, stream, struct.pack(">IB", depends_on | exclusive << 31, weight))


def reset(stream: int, code: int) -> bytes:
    """A RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream, struct.pack(">I", code))


def settings(*pairs: tuple[int, int]) -> bytes:
    """A SETTINGS frame with these values in this order."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))


def ping(payload: bytes = b"conforms", *, ack: bool = False) -> bytes:
    """A PING frame."""
    return frame(PING, ACK if ack else 0, 0, payload)


def goaway(code: int, words: bytes = b"") -> bytes:
    """A GOAWAY frame of a client, to which nothing has been pushed."""
    return frame(GOAWAY, 0, 0, struct.pack(">II", 0, code) + words)


def window_update(stream: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


def message(payload: bytes, *, compressed: bool = False) -> bytes:
    """A gRPC message with its prefix."""
    return struct.pack(">BI", compressed, len(payload)) + payload


def literal(
    name: str | bytes | int, value: str | bytes, *, pattern: int = 0x00, bits: int = 4, huffman: bool = False
) -> bytes:
    """A literal header field (RFC 7541, 6.2), by default without indexing; a number names an indexed name."""
    if isinstance(name, int):
        begin = encode_integer(name, bits)
        begin[0] |= pattern
        return bytes(begin) + string(value, huffman=huffman)
    return bytes([pattern]) + string(name, huffman=huffman) + string(value, huffman=huffman)


def string(value: str | bytes, *, huffman: bool = False) -> bytes:
    """A string literal (RFC 7541, 5.2)."""
    raw = value.encode() if isinstance(value, str) else value
    if huffman:
        raw = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(raw)
    length = encode_integer(len(raw), 7)
    length[0] |= 0x80 if huffman else 0
    return bytes(length) + raw


@dataclass(frozen=True)
class Event:
    """What came: a frame, a header block that is whole, the connection's end, or nothing in time.

    Attributes:
        kind: The frame's name as in RFC 9113; `closed` or `silence`.
        stream: Its number.
        end: Whether it carries END_STREAM.
        ack: Whether it carries ACK.
        code: Of RST_STREAM and GOAWAY.
        last: Stream that a GOAWAY names.
        payload: Of DATA and PING.
        fields: Of HEADERS.
        length: Octets of the payload on the wire.
    """

    kind: str
    stream: int = 0
    end: bool = False
    ack: bool = False
    code: int = 0
    last: int = 0
    payload: bytes = b""
    fields: tuple[tuple[str, str], ...] = ()
    length: int = 0

    def __str__(self) -> str:
        if self.kind in ("closed", "silence"):
            return {"closed": "the connection closed", "silence": "nothing in time"}[self.kind]
        words = [self.kind, *(["ACK"] if self.ack else []), *([f"stream {self.stream}"] if self.stream else [])]
        if self.kind in ("RST_STREAM", "GOAWAY"):
            words.append(code_name(self.code))
        if self.kind == "HEADERS":
            shown = (":status", "grpc-status", "grpc-message")
            words += [f"{name}={value}" for name, value in self.fields if name in shown]
        return " ".join([*words, *(["END_STREAM"] if self.end else [])])


def code_name(code: int) -> str:
    """An error code's name."""
    return CODES[code] if code < len(CODES) else f"error {code:#x}"


class Peer:
    """A client's side of one connection.

    Args:
        address: Of the server, `host:port`.
        wait_s: How long it waits for an event.

    Attributes:
        address: As given.
        settings: That the server has announced.
        windows: Bytes that may still be sent, by stream; 0 is the connection.
        seen: Every event, in order.
    """

    def __init__(self, address: str, wait_s: float) -> None:
        self.address, self.wait_s = address, wait_s
        self.settings: dict[int, int] = {}
        self.windows: dict[int, int] = {0: DEFAULT_WINDOW}
        self.seen: list[Event] = []
        self.decoder = hpack.Decoder()
        self._encoder = hpack.Encoder()
        self._block: tuple[int, int, bytes] | None = None  # stream, flags and what has come of a header block
        self._unread = b""
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host.strip("[]"), int(port)), timeout=wait_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def handshake(self) -> None:
        """Sends the preface and SETTINGS, and waits for the server's SETTINGS and acknowledgement."""
        self.send(PREFACE, settings((INITIAL_WINDOW_SIZE, DEFAULT_WINDOW)))
        missing = {False, True}
        while missing:
            event = self.next_event()
            if event.kind in ("closed", "silence"):
                raise ConnectionError(f"no handshake: {event}")
            if event.kind == "SETTINGS":
                missing.discard(event.ack)

    def send(self, *frames: bytes) -> bool:
        """Sends bytes; false if the server has closed, or does not read: what it said before can still be read."""
        self._socket.settimeout(self.wait_s)
        try:
            self._socket.sendall(b"".join(frames))
        except OSError:
            return False
        return True

    def encode(self, fields: Fields) -> bytes:
        """A header block, of this connection's next HEADERS."""
        return self._encoder.encode([(_bytes(name), _bytes(value)) for name, value in fields], huffman=False)

    def headers(self, stream: int, fields: Fields, *, end: bool = False, end_headers: bool = True) -> bytes:
        """A HEADERS frame."""
        return self.headers_of(stream, self.encode(fields), end=end, end_headers=end_headers)

    def headers_of(self, stream: int, block: bytes, *, end: bool = False, end_headers: bool = True) -> bytes:
        """A HEADERS frame of any block."""
        return frame(HEADERS, (END_STREAM if end else 0) | (END_HEADERS if end_headers else 0), stream, block)

    def continuation(self, stream: int, block: bytes, *, end_headers: bool = True) -> bytes:
        """A CONTINUATION frame."""
        return frame(CONTINUATION, END_HEADERS if end_headers else 0, stream, block)

    def next_event(self, wait_s: float | None = None) -> Event:
        """What comes next; SETTINGS and PING of the server are acknowledged."""
        end = time.monotonic() + (self.wait_s if wait_s is None else wait_s)
        event = None
        while event is None:
            head = self._exactly(9, end)
            if isinstance(head, Event):
                return head
            length = int.from_bytes(head[:3], "big")
            got = self._exactly(9 + length, end)
            if isinstance(got, Event):
                return got
            self._unread = self._unread[9 + length :]
            event = self._parsed(got)
        self.seen.append(event)
        return event

    def events(self) -> Iterable[Event]:
        """What comes, until `closed` or `silence`, which is the last."""
        while True:
            yield (event := self.next_event())
            if event.kind in ("closed", "silence"):
                return

    def window(self, stream: int) -> int:
        """Octets of DATA that may be sent now on a stream."""
        return min(self.windows.setdefault(stream, self._initial_window), self.windows[0])

    def used(self, stream: int, octets: int) -> None:
        """Takes what has been sent from the windows."""
        self.window(stream)
        self.windows[stream] -= octets
        self.windows[0] -= octets

    @property
    def _initial_window(self) -> int:
        """Of a stream, to be sent."""
        return self.settings.get(INITIAL_WINDOW_SIZE, DEFAULT_WINDOW)

    def _exactly(self, octets: int, end: float) -> bytes | Event:
        """The next octets, which stay unread; or why there are none."""
        while len(self._unread) < octets:
            try:
                self._socket.settimeout(max(0.001, end - time.monotonic()))
                got = self._socket.recv(1 << 16)
            except TimeoutError:
                return Event("silence")
            except OSError:
                got = b""
            if not got:
                return Event("closed")
            self._unread += got
        return self._unread[:octets]

    def _parsed(self, raw: bytes) -> Event | None:
        """The event of a frame; None in the middle of a header block."""
        parsed, length = Frame.parse_frame_header(memoryview(raw[:9]))
        parsed.parse_body(memoryview(raw[9:]))
        number, end, ack = parsed.stream_id, "END_STREAM" in parsed.flags, "ACK" in parsed.flags
        match parsed:
            case DataFrame():
                return Event("DATA", number, end, payload=parsed.data, length=length)
            case HeadersFrame() | ContinuationFrame():
                return self._block_came(parsed, raw[4], length)
            case RstStreamFrame():
                return Event("RST_STREAM", number, code=parsed.error_code)
            case GoAwayFrame():
                return Event("GOAWAY", code=parsed.error_code, last=parsed.last_stream_id)
            case PingFrame():
                if not ack:
                    self.send(ping(parsed.opaque_data, ack=True))
                return Event("PING", ack=ack, payload=parsed.opaque_data)
            case SettingsFrame():
                self._settings_came(parsed, ack)
                return Event("SETTINGS", ack=ack)
            case WindowUpdateFrame():
                self.windows[number] = self.windows.get(number, self._initial_window) + parsed.window_increment
                return Event("WINDOW_UPDATE", number)
        return Event(type(parsed).__name__, number)

    def _block_came(self, parsed: HeadersFrame | ContinuationFrame, flags: int, length: int) -> Event | None:
        stream, first_flags, before = self._block or (parsed.stream_id, flags, b"")
        self._block = (stream, first_flags, before + parsed.data)
        if not flags & END_HEADERS:
            return None
        fields = tuple(
            (name.decode(errors="replace"), value.decode(errors="replace"))
            for name, value in self.decoder.decode(self._block[2], raw=True)
        )
        self._block = None
        return Event("HEADERS", stream, bool(first_flags & END_STREAM), fields=fields, length=length)

    def _settings_came(self, parsed: SettingsFrame, ack: bool) -> None:
        if ack:
            return
        before = self._initial_window
        self.settings.update(parsed.settings)
        for stream in self.windows.keys() - {0}:
            self.windows[stream] += self._initial_window - before
        self.send(frame(SETTINGS, ACK, 0))


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
