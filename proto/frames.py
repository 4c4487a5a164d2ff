"""HTTP/2's frames (RFC 9113) and the blocks of headers in them (RFC 7541), as bytes. Pure; no sockets, no threads.

Blocks are written as plain literals, so that they depend on nothing that was sent before; those that come are read by
the package hpack.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from typing import Any

import hpack

Headers = Sequence[tuple[str, str]]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # what a client says first

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, HAS_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20  # flags
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 3, 4, 5, 6  # settings
NO_ERROR, REFUSED_STREAM = 0x0, 0x7  # errors

DEFAULT_WINDOW = (1 << 16) - 1
MAX_WINDOW = (1 << 31) - 1
DEFAULT_FRAME = 1 << 14
LARGEST_FRAME = (1 << 24) - 1
MAX_HEADER_BYTES = 1 << 16  # of one block, that are read

HEAD_BYTES = 9
_HEAD = struct.Struct(">HBBBI")
_MAX_KNOWN = 100


class ProtocolError(OSError):
    """The peer does not speak HTTP/2 as it must; the connection cannot go on."""


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


def reset(number: int, error: int) -> bytes:
    """The stream is over."""
    return frame(RST_STREAM, 0, number, error.to_bytes(4, "big"))


def settings(values: dict[int, int]) -> bytes:
    """What a connection begins with."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in values.items()))


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """The inverse.

    Raises:
        ProtocolError: They are not whole.
    """
    if len(payload) % 6:
        raise ProtocolError("settings that cannot be read")
    return list(struct.iter_unpack(">HI", payload))


def headers(number: int, pairs: Headers, *, end: bool) -> bytes:
    """A block of headers as one frame."""
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), number, _block(tuple(pairs)))


class HeaderReader:
    """Reads the blocks of headers of one connection, in the order in which they come."""

    def __init__(self) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=MAX_HEADER_BYTES)
        self._known: dict[bytes, Headers] = {}

    def read(self, block: bytes) -> Headers:
        """One block. One that finds the tables empty and leaves them so means the same every time.

        Raises:
            ProtocolError: It makes no sense.
        """
        if block in self._known and not self._decoder.header_table.dynamic_entries:
            return self._known[block]
        try:
            pairs = [(_text(name), _text(value)) for name, value in self._decoder.decode(block)]
        except hpack.HPACKError as error:
            raise ProtocolError(f"headers that cannot be read: {error}") from None
        if not self._decoder.header_table.dynamic_entries and len(self._known) < _MAX_KNOWN:
            self._known[block] = pairs
        return pairs


@functools.lru_cache(maxsize=256)
def _block(headers: tuple[tuple[str, str], ...]) -> bytes:
    """Literals that nobody must remember (RFC 7541, 6.2.2): no tables, no Huffman code."""
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in headers)


def _string(text: str) -> bytes:
    data = text.encode()
    length, out = len(data), bytearray()
    if length < 127:
        return bytes([length]) + data
    out.append(127)
    length -= 127
    while length > 127:
        out.append(length & 127 | 128)
        length >>= 7
    out.append(length)
    return bytes(out) + data


def _text(value: Any) -> str:
    return value if isinstance(value, str) else bytes(value).decode("latin-1")
