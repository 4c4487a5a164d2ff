"""HTTP/2 frames as a stranger sends them, and a reader of what comes back. Pure; nothing of `downpour.proto` is used.

Header blocks are literals that nobody must remember (RFC 7541, 6.2.2), so that a script can send the same one again.
"""

from __future__ import annotations

import collections
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4  # flags
CANCEL = 0x8

SERVICE = "/downpour.v1.ParameterServer/"
TOKEN_KEY = "downpour-token"

_HEAD = struct.Struct(">HBBBI")
_CODES = (  # RFC 9113, 7
    *("NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED"),
    *("FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM"),
    *("INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED"),
)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return _HEAD.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


def header_block(method: str, token: str = "", *more: tuple[str, str]) -> bytes:
    """The headers of a gRPC call of one of the shard's methods.

    Args:
        method: Its name.
        token: Sent along, unless empty.
        *more: Other headers.
    """
    headers = [
        *((":method", "POST"), (":scheme", "http"), (":path", SERVICE + method), (":authority", "stranger")),
        *(("te", "trailers"), ("content-type", "application/grpc")),
        *([(TOKEN_KEY, token)] if token else []),
        *more,
    ]
    return b"".join(b"\x00" + _string(name) + _string(value) for name, value in headers)


def message(body: bytes) -> bytes:
    """A gRPC message that is not compressed."""
    return b"\x00" + len(body).to_bytes(4, "big") + body


def code_name(number: int) -> str:
    """Of an error."""
    return _CODES[number] if number < len(_CODES) else str(number)


class Reader:
    """Counts the frames that a server sends over one connection.

    Args:
        counts: Gets `answers` (HEADERS), `reset CODE` and `goaway CODE`.
    """

    def __init__(self, counts: collections.Counter[str]) -> None:
        self._counts = counts
        self._data = b""

    def feed(self, data: bytes) -> None:
        """Takes what has come."""
        data, at = self._data + data, 0
        while len(data) - at >= _HEAD.size:
            high, low, kind, _, _ = _HEAD.unpack_from(data, at)
            end = at + _HEAD.size + (high << 8 | low)
            if end > len(data):
                break
            self._count(kind, data[at + _HEAD.size : end])
            at = end
        self._data = data[at:]

    def _count(self, kind: int, payload: bytes) -> None:
        if kind == HEADERS:
            self._counts["answers"] += 1
        elif kind == RST_STREAM:
            self._counts[f"reset {code_name(int.from_bytes(payload[:4], 'big'))}"] += 1
        elif kind == GOAWAY:
            self._counts[f"goaway {code_name(int.from_bytes(payload[4:8], 'big'))}"] += 1


def _string(text: str) -> bytes:
    data = text.encode()
    prefix = bytes([len(data)]) if len(data) < 127 else b"\x7f" + _rest(len(data) - 127)
    return prefix + data


def _rest(number: int) -> bytes:
    """The bytes of an integer after its prefix (RFC 7541, 5.1)."""
    found = bytearray()
    while number >= 128:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])
