"""HTTP/2's frames (RFC 9113) as bytes, its error codes and its limits. Pure; no sockets, no threads.

`downpour.proto.http2.headers` has the blocks of header fields, `downpour.proto.http2.endpoint` the rules for the order
of frames.
"""

from __future__ import annotations

import enum
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # the first bytes from a client

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
NAMES = (
    "DATA HEADERS PRIORITY RST_STREAM SETTINGS PUSH_PROMISE PING GOAWAY WINDOW_UPDATE CONTINUATION".split()
)  # by kind
END_STREAM, ACK, END_HEADERS, PADDED, HAS_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20  # flags
ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = range(2, 7)  # settings

DEFAULT_WINDOW = (1 << 16) - 1
MAX_WINDOW = (1 << 31) - 1
DEFAULT_FRAME = 1 << 14
LARGEST_FRAME = (1 << 24) - 1  # that a peer may be allowed to send
MAX_FRAME_BYTES = (1 << 22) + (1 << 12)  # that this side accepts: a chunk of float32 is one frame
MAX_HEADER_BYTES = 1 << 14  # of one block, and of the fields in it

HEAD_BYTES = 9
_HEAD = struct.Struct(">HBBBI")
SETTING_BYTES = 6


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
    """Returns the name of the peer's error code; unknown codes have no special meaning."""
    return ErrorCode(code).name if code in ErrorCode._value2member_map_ else f"error {code}"


class ProtocolError(OSError):
    """The peer violates HTTP/2; the connection cannot continue.

    Args:
        reason: Text for the log.
        code: Error code for GOAWAY.
    """

    def __init__(self, reason: str, code: ErrorCode = ErrorCode.PROTOCOL_ERROR) -> None:
        super().__init__(f"{reason} ({code.name})")
        self.code = code


def head(length: int, kind: int, flags: int, number: int) -> bytes:
    """Encodes the header of a frame; `number` is the stream's."""
    return _HEAD.pack(length >> 8, length & 0xFF, kind, flags, number)


def read_head(data: memoryview) -> tuple[int, int, int, int]:
    """Decodes the header of a frame: length, kind, flags and stream number."""
    high, low, kind, flags, number = _HEAD.unpack(data)
    return high << 8 | low, kind, flags, number & MAX_WINDOW


def frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    """Encodes a small frame."""
    return head(len(payload), kind, flags, number) + payload


def window_update(number: int, num_bytes: int) -> bytes:
    """Encodes WINDOW_UPDATE by `num_bytes`; number 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, number, num_bytes.to_bytes(4, "big"))


def reset(number: int, code: int) -> bytes:
    """Encodes RST_STREAM."""
    return frame(RST_STREAM, 0, number, code.to_bytes(4, "big"))


def goaway(last: int, code: int) -> bytes:
    """Encodes GOAWAY: no new streams are accepted, and those beyond `last` were not processed."""
    return frame(GOAWAY, 0, 0, last.to_bytes(4, "big") + code.to_bytes(4, "big"))


def settings(values: dict[int, int]) -> bytes:
    """Encodes SETTINGS."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in values.items()))


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """Decodes the payload of SETTINGS, which must hold whole settings."""
    return list(struct.iter_unpack(">HI", payload))


def is_whole_settings(length: int) -> bool:
    """Whether a payload of `length` bytes can be SETTINGS."""
    return length % SETTING_BYTES == 0
