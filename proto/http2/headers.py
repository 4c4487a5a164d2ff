"""Blocks of header fields: decoded (RFC 7541), checked (RFC 9113, section 8), encoded. Pure; no sockets, no threads.

Blocks are encoded as plain literals, so that they depend on nothing sent before; the package hpack decodes received
blocks.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import hpack

from downpour.proto.http2.frames import (
    END_HEADERS,
    END_STREAM,
    HEADERS,
    MAX_HEADER_BYTES,
    ErrorCode,
    ProtocolError,
    frame,
)

Headers = Sequence[tuple[str, str]]
Fields = tuple[tuple[str, str], ...]  # of a decoded block

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+")  # a token (RFC 9110, 5.6.2) without capitals
_BAD_IN_VALUE = re.compile(r"[\0\r\n]|^[ \t]|[ \t]$")
_OF_CONNECTIONS = frozenset({"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"})
_OF_REQUESTS = frozenset({":method", ":scheme", ":path", ":authority"})
_NEEDED = frozenset({":method", ":scheme", ":path"})
_OF_RESPONSES = frozenset({":status"})

# Repeated blocks, such as those of one client's calls, are decoded once.
_MAX_KNOWN = 16
_MAX_KNOWN_BYTES = 1 << 10
_MAX_CHECKED = 64  # cached results of each check, in the whole process


class Malformed(ValueError):
    """Invalid header fields of a request or response; its stream cannot continue."""


def write(number: int, pairs: Headers, *, end: bool) -> bytes:
    """Encodes a block of header fields as one frame."""
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), number, _block(tuple(pairs)))


class HeaderReader:
    """Decodes the header blocks of one connection, in the order in which they are received."""

    def __init__(self) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=MAX_HEADER_BYTES)
        self._known: dict[tuple[bytes, int], Fields] = {}  # by block and maximum size of the dynamic table

    def read(self, block: bytes) -> Fields:
        """Decodes one block. The result is cached if the block finds the dynamic table empty and does not change it.

        Raises:
            ProtocolError: The block cannot be decoded, or its fields exceed the size limit.
        """
        table = self._decoder.header_table
        size, is_empty = table.maxsize, not table.dynamic_entries
        if is_empty and (known := self._known.get((block, size))) is not None:
            return known
        try:
            pairs = tuple((_text(name), _text(value)) for name, value in self._decoder.decode(block, raw=True))
        except hpack.OversizedHeaderListError:
            raise ProtocolError("header fields that are too long", ErrorCode.ENHANCE_YOUR_CALM) from None
        except (hpack.HPACKError, ValueError, IndexError) as error:
            reason = f"header fields that cannot be read: {error}"
            raise ProtocolError(reason, ErrorCode.COMPRESSION_ERROR) from None
        is_constant = is_empty and not table.dynamic_entries and table.maxsize == size
        if is_constant and len(block) <= _MAX_KNOWN_BYTES and len(self._known) < _MAX_KNOWN:
            self._known[block, size] = pairs
        return pairs


@functools.lru_cache(maxsize=_MAX_CHECKED)
def check_request(pairs: Fields) -> int | None:
    """Checks the header fields of a request; returns its content-length in bytes, None without one.

    Raises:
        Malformed: The fields are invalid.
    """
    found = _check(pairs, _OF_REQUESTS)
    is_connect = found.get(":method") == "CONNECT"
    if is_connect and (":scheme" in found or ":path" in found or ":authority" not in found):
        raise Malformed("a CONNECT request has an authority, no scheme and no path")
    if not is_connect and (missing := _NEEDED - found.keys()):
        raise Malformed(f"a request without {', '.join(sorted(missing))}")
    if found.get(":path") == "":
        raise Malformed("a request with an empty :path")
    return _content_length(pairs)


@functools.lru_cache(maxsize=_MAX_CHECKED)
def check_response(pairs: Fields) -> None:
    """Raises `Malformed` for invalid header fields of a response."""
    if not _check(pairs, _OF_RESPONSES):
        raise Malformed("a response without :status")


@functools.lru_cache(maxsize=_MAX_CHECKED)
def check_trailers(pairs: Fields) -> None:
    """Raises `Malformed` for invalid trailers of a request or response."""
    _check(pairs, frozenset())


def _content_length(pairs: Fields) -> int | None:
    values = {value for name, value in pairs if name == "content-length"}
    if not values:
        return None
    value = values.pop()
    if values or not (value.isascii() and value.isdigit() and len(value) < 19):
        raise Malformed("a content-length that is not one number")
    return int(value)


def _check(pairs: Fields, allowed: frozenset[str]) -> dict[str, str]:
    """Checks each field; returns the pseudo-header fields."""
    found: dict[str, str] = {}
    is_past = False  # whether the pseudo-header fields have ended
    for name, value in pairs:
        if name.startswith(":"):
            if is_past or name not in allowed or name in found:
                raise Malformed(f"the pseudo-header field {name[:40]!r} is unknown, too late or there twice")
            found[name] = value
        else:
            is_past = True
            if not _NAME.fullmatch(name) or name in _OF_CONNECTIONS or (name == "te" and value != "trailers"):
                raise Malformed(f"the header field {name[:40]!r} may not be sent")
        if _BAD_IN_VALUE.search(value):
            raise Malformed(f"the value of {name[:40]!r} has characters that may not be there")
    return found


@functools.lru_cache(maxsize=256)
def _block(headers: tuple[tuple[str, str], ...]) -> bytes:
    """Encodes fields as literals without indexing (RFC 7541, 6.2.2): no tables, no Huffman code.

    It begins by setting the dynamic table's size to 0, whatever the peer allows: some peers expect that update.
    """
    return b"\x20" + b"".join(b"\0" + _string(name) + _string(value) for name, value in headers)


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
    return bytes(value).decode("latin-1")
