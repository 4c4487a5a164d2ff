"""HTTP/2's frames (RFC 9113) as bytes, its error codes and its limits. Pure; no sockets, no threads.

`downpour.proto.http2.headers` has the blocks of header fields, `downpour.proto.http2.endpoint` the rules for what may
follow what.
"""

from __future__ import annotations

import enum
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # what a client says first

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, HAS_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20  # flags
ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = range(2, 7)  # settings

DEFAULT_WINDOW = (1 << 16) - 1
MAX_WINDOW = (1 << 31) - 1
DEFAULT_FRAME = 1 << 14
LARGEST_FRAME = (1 << 24) - 1  # that anybody may be told to send
MAX_FRAME_BYTES = (1 << 22) + (1 << 12)  # that we take: a chunk of float32 is one frame
MAX_HEADER_BYTES = 1 << 14  # of one block, and of the fields in it

HEAD_BYTES = 9
_HEAD = struct.Struct(">HBBBI")
_SETTING_BYTES = 6


class ErrorCode(enum.IntEnum):
    """Why a stream or a connection ends (RFC 9113, section 7)."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


def code_name(code: int) -> str:
    """What the peer's error is called; codes that nobody knows mean nothing in particular."""
    return ErrorCode(code).name if code in ErrorCode._value2member_map_ else f"error {code}"


class ProtocolError(OSError):
    """The peer does not speak HTTP/2 as it must; the connection cannot go on.

    Args:
        reason: For the log.
        code: That GOAWAY carries.
    """

    def __init__(self, reason: str, code: ErrorCode = ErrorCode.PROTOCOL_ERROR) -> None:
        super().__init__(f"{reason} ({code.name})")
        self.code = code


def head(length: int, kind: int, flags: int, number: int) -> bytes:
    """What goes before a frame's payload; `number` is the stream's."""
    return _HEAD.pack(length >> 8, length & 0xFF, kind, flags, number)


def read_head(data: memoryview) -> tuple[int, int, int, int]:
    """Length, kind, flags and number of the stream."""
    high, low, kind, flags, number = _HEAD.unpack(data)
    return high << 8 | low, kind, flags, number & MAX_WINDOW


def frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    """A small frame."""
    return head(len(payload), kind, flags, number) + payload


def window_update(number: int, num_bytes: int) -> bytes:
    """So many bytes more may be sent; number 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, number, num_bytes.to_bytes(4, "big"))


def reset(number: int, code: int) -> bytes:
    """The stream is over."""
    return frame(RST_STREAM, 0, number, code.to_bytes(4, "big"))


def goaway(last: int, code: int) -> bytes:
    """The connection takes no new streams; those beyond `last` have not been looked at."""
    return frame(GOAWAY, 0, 0, last.to_bytes(4, "big") + code.to_bytes(4, "big"))


def settings(values: dict[int, int]) -> bytes:
    """What a connection begins with."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in values.items()))


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """The inverse, of whole settings."""
    return list(struct.iter_unpack(">HI", payload))


def is_whole_settings(length: int) -> bool:
    """Whether a payload of so many bytes can be settings."""
    return length % _SETTING_BYTES == 0
