"""HTTP/2 frames and the gRPC messages in them as plain values, valid or not. Imports nothing of the code under test."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, HAS_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
HEAD_BYTES, PREFIX_BYTES = 9, 5
MAX_PAYLOAD_BYTES = 1 << 14  # that every peer must accept


@dataclass(frozen=True)
class Frame:
    """One frame.

    Attributes:
        kind: Its type.
        flags: All 8.
        stream: All 32 bits, the reserved one included.
        payload: What follows the head.
        claimed: Length in the head where that differs from the payload's.
    """

    kind: int
    flags: int
    stream: int
    payload: bytes = b""
    claimed: int | None = None

    def encode(self) -> bytes:
        length = len(self.payload) if self.claimed is None else self.claimed
        head = (length & 0xFFFFFF).to_bytes(3, "big") + bytes([self.kind & 0xFF, self.flags & 0xFF])
        return head + (self.stream & 0xFFFFFFFF).to_bytes(4, "big") + self.payload


def encode(frames: Iterable[Frame]) -> bytes:
    """What a connection carries for these frames."""
    return b"".join(frame.encode() for frame in frames)


def parse(data: bytes) -> list[Frame]:
    """The whole frames that bytes begin with; a last one that is not whole is left out."""
    frames, at = [], 0
    while at + HEAD_BYTES <= len(data):
        stop = at + HEAD_BYTES + int.from_bytes(data[at : at + 3], "big")
        if stop > len(data):
            break
        stream = int.from_bytes(data[at + 5 : at + HEAD_BYTES], "big")
        frames.append(Frame(data[at + 3], data[at + 4], stream, data[at + HEAD_BYTES : stop]))
        at = stop
    return frames


def message(body: bytes, compressed: int = 0) -> bytes:
    """A gRPC message with its prefix."""
    return bytes([compressed]) + len(body).to_bytes(4, "big") + body


def data_of(frames: Iterable[Frame], stream: int) -> bytes:
    """Everything that a stream's DATA frames hold."""
    return b"".join(frame.payload for frame in frames if frame.kind == DATA and frame.stream == stream)


def messages_of(frames: Iterable[Frame], stream: int) -> list[bytes]:
    """The bodies of the whole gRPC messages of a stream."""
    data = data_of(frames, stream)
    bodies, at = [], 0
    while at + PREFIX_BYTES <= len(data):
        stop = at + PREFIX_BYTES + int.from_bytes(data[at + 1 : at + PREFIX_BYTES], "big")
        if stop > len(data):
            break
        bodies.append(data[at + PREFIX_BYTES : stop])
        at = stop
    return bodies


def with_messages(frames: Sequence[Frame], stream: int, messages: Sequence[bytes]) -> list[Frame]:
    """The same frames with other messages (prefixes included) on a stream, where its first DATA frame was."""
    old = [frame for frame in frames if frame.kind == DATA and frame.stream == stream]
    ends = any(frame.flags & END_STREAM for frame in old)
    new = [
        Frame(DATA, 0, stream, whole[at : at + MAX_PAYLOAD_BYTES])
        for whole in messages
        for at in range(0, max(1, len(whole)), MAX_PAYLOAD_BYTES)
    ]
    if ends:
        new = [*new[:-1], replace(new[-1], flags=END_STREAM)] if new else [Frame(DATA, END_STREAM, stream)]
    first = next((i for i, frame in enumerate(frames) if frame in old), len(frames))
    before, after = frames[:first], [frame for frame in frames[first:] if frame not in old]
    return [*before, *new, *after]


def streams_of(frames: Iterable[Frame]) -> list[int]:
    """Numbers of the streams that HEADERS frames open, in order."""
    return list(dict.fromkeys(frame.stream for frame in frames if frame.kind == HEADERS))
