"""Mutations of a connection's frames, of the header blocks, messages and chunks in them. Pure.

Each takes a random generator, the frames and all recorded sessions, and returns other frames. What it makes may be
valid, or wrong at any level from the frame's head to the fields of a chunk.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from google.protobuf.message import DecodeError

from downpour.proto import parameter_server_pb2 as pb
from tests.fuzz import frames as h2
from tests.fuzz.frames import Frame
from tests.fuzz.record import Session

Mutation = Callable[[random.Random, list[Frame], Sequence[Session]], list[Frame]]

_NUMBERS = (0, 1, 2, 127, 128, 255, 1 << 14, 1 << 16, 1 << 20, (1 << 24) - 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
_FIELDS = (  # for the end of a header block: literals, indices and changes of the table's size, right or wrong
    (b"content-length", b"7"),
    (b"content-length", b"-1"),
    (b"grpc-timeout", b"0n"),
    (b"grpc-timeout", b"1n"),
    (b"grpc-timeout", b"99999999H"),
    (b"grpc-timeout", b"\xb2S"),
    (b"grpc-encoding", b"gzip"),
    (b"grpc-encoding", b"identity"),
    (b"connection", b"close"),
    (b"transfer-encoding", b"chunked"),
    (b"te", b"gzip"),
    (b"Upper", b"case"),
    (b"", b"nameless"),
    (b"nul", b"\0\r\n"),
    (b":path", b"/downpour.v1.ParameterServer/Status"),
    (b":status", b"200"),
    (b":unknown", b""),
    (b"content-type", b"text/html"),
    (b"downpour-token", b"another"),
    (b"cookie", b"c" * 5000),
    (b"x-bin", b"AA=="),
)
_INSTRUCTIONS = (
    b"\x80",  # index 0
    b"\xff\xff\xff\xff\xff\xff\x7f",  # an index far beyond the table
    b"\xbe",  # the first of the dynamic table
    b"\x3f\xe1\xff\xff\xff\x0f",  # the table grows beyond all measure
    b"\x20",  # the table is emptied
    b"\x3f\xe1\x1f",  # 4096, as it was
    b"\x40\x81",  # Huffman code that ends in the middle
    b"\x00\x84\xff\xff\xff\xff\x00",  # end-of-string inside of Huffman code
    b"\x00\x7f\xff\xff\xff\xff\x7f",  # a name of gigabytes
    b"\x40\x01a\x7f\x80\x10" + b"b" * 2175,  # an entry that is kept
    b"\xbf" * 500,
)


def flip(rng: random.Random, data: bytes, num_bits: int) -> bytes:
    """With so many bits changed, if there are any."""
    changed = bytearray(data)
    for _ in range(num_bits if data else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _at(rng: random.Random, frames: Sequence[Frame], *kinds: int) -> int | None:
    """Index of a frame, of one of these kinds if any are named; None without one."""
    found = [i for i, frame in enumerate(frames) if not kinds or frame.kind in kinds]
    return rng.choice(found) if found else None


def _changed_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bits flipped, bytes inserted, taken out or repeated, or the end cut off."""
    at, span = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 5, 40, 500))
    kind = rng.randrange(6)
    if kind == 0:
        return flip(rng, data, rng.choice((1, 1, 2, 8)))
    if kind == 1:
        return data[:at] + rng.randbytes(span) + data[at:]
    if kind == 2:
        return data[:at] + data[at + span :]
    if kind == 3:
        return data[:at] + data[at : at + span] * 2 + data[at + span :]
    if kind == 4:
        return data[:at] + bytes([rng.choice((0, 0x7F, 0x80, 0xFF))]) * span + data[at + span :]
    return data[:at]


def _payload(rng: random.Random, frames: list[Frame], sessions: Sequence[Session]) -> list[Frame]:
    at = _at(rng, frames) or 0
    return [*frames[:at], replace(frames[at], payload=_changed_bytes(rng, frames[at].payload)), *frames[at + 1 :]]


def _duplicate(rng: random.Random, frames: list[Frame], sessions: Sequence[Session]) -> list[Frame]:
    at, times = _at(rng, frames) or 0, rng.choice((1, 1, 2, 10, 100))
    to = rng.choice((at, rng.randrange(len(frames) + 1)))
    return [*frames[:to], *[frames[at]] * times, *frames[to:]]


def _reorder(rng: random.Random, frames: list[Frame], sessions: Sequence[Session]) -> list[Frame]:
    start = rng.randrange(len(frames))
    stop = rng.choice((start + 2, start + 5, len(frames)))
    part = frames[start:stop]
    rng.shuffle(part)
    return [*frames[:start], *part, *frames[stop:]]


def _drop(rng: random.Random, frames: list[Frame], sessions: Sequence[Session]) -> list[Frame]:
    at = _at(rng, frames) or 0
    return [*frames[:at], *frames[at + rng.choice((1, 1, 3)) :]]


def _stream(rng: random.Random, frames: list[Frame], sessions: Sequence[Session]) -> list[Frame]:
    """One frame, or all of its stream from there on, get another number."""
    at = _at(rng, frames) or 0
    old = frames[at].stream
    others = h2.streams_of(frames)
    new = rng.choice((0, 2, old + 1, old + 2, old + 200, old | 1 << 31, (1 << 31) - 1, *others))
    last = at if rng.random() < 0.5 else len(frames)
    return [replace(f, stream=new) if at <= i <= last and f.stream == old else f for i, f in enumerate(frames)]


def _length(rng: random.Random, frames: list[Frame], sessions: Sequence[Session]) -> list[Frame]:
    """The length in a head, without the payload or with it."""
    at = _at(rng, frames) or 0
    frame = frames[at]
    if rng.random() < 0.5:
        near = [max(0, len(frame.payload) + step) for step in (-9, -1, 1, 9)]
        changed = replace(frame, claimed=rng.choice((*near, *_NUMBERS[:10])))
    else:
        wanted = rng.choice((0, 1, 3, 4, 5, 6, 8, 9, 1 << 14, (1 << 14) + 1, 1 << 16))
        changed = replace(frame, payload=(frame.payload + bytes(wanted))[:wanted])
    return [*frames[:at], changed, *frames[at + 1 :]]


def _flags(rng: random.Random, frames: list[Frame], sessions: Sequence[Session]) -> list[Frame]:
    at = _at(rng, frames, h2.HEADERS, h2.DATA) if rng.random() < 0.8 else _at(rng, frames)
    at = at or 0
    flags = frames[at].flags ^ rng.choice((h2.END_STREAM, h2.END_HEADERS, h2.PADDED, h2.HAS_PRIORITY, 0xC2))
    return [*frames[:at], replace(frames[at], flags=flags), *frames[at + 1 :]]


def _kind(rng: random.Random, frames: list[Frame], sessions: Sequence[Session]) -> list[Frame]:
    at = _at(rng, frames) or 0
    return [*frames[:at], replace(frames[at], kind=rng.choice((*range(12), 255))), *frames[at + 1 :]]


def _header_block(rng: random.Random, frames: list[Frame], sessions: Sequence[Session]) -> list[Frame]:
    """Bytes of a block, or more fields or instructions at its beginning or end."""
    at = _at(rng, frames, h2.HEADERS)
    if at is None:
        return frames
    block, kind = frames[at].payload, rng.randrange(3)
    if kind == 0:
        block = _changed_bytes(rng, block)
    else:
        added = rng.choice(_INSTRUCTIONS) if kind == 1 else b"".join(_literal(*rng.choice(_FIELDS)) for _ in range(2))
        added *= rng.choice((1, 1, 1, 20))
        block = added + block if rng.random() < 0.3 else block + added
    return [*frames[:at], replace(frames[at], payload=block), *frames[at + 1 :]]


def _literal(name: bytes, value: bytes) -> bytes:
    return b"\0" + _length_of(name) + name + _length_of(value) + value


def _length_of(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes([len(text)])
    rest = len(text) - 127
    return bytes([127, rest & 127 | 128, rest >> 7]) if rest > 127 else bytes([127, rest])


def _continuation(rng: random.Random, frames: list[Frame], sessions: Sequence[Session]) -> list[Frame]:
    """A header block in several frames: right, with something in between, or without an end."""
    at = _at(rng, frames, h2.HEADERS)
    if at is None:
        return frames
    frame, cut = frames[at], rng.randrange(len(frames[at].payload) + 1)
    first = replace(frame, flags=frame.flags & ~h2.END_HEADERS, payload=frame.payload[:cut])
    last = Frame(h2.CONTINUATION, h2.END_HEADERS, frame.stream, frame.payload[cut:])
    empty = [Frame(h2.CONTINUATION, 0, frame.stream)] * rng.choice((0, 0, 1, 50))
    between = [[], empty, [Frame(h2.PING, 0, 0, bytes(8))], [Frame(h2.DATA, 0, frame.stream, b"x")]]
    end = [last] if rng.random() < 0.8 else []
    return [*frames[:at], first, *rng.choice(between), *end, *frames[at + 1 :]]


def _padding(rng: random.Random, frames: list[Frame], sessions: Sequence[Session]) -> list[Frame]:
    """Padding that is right, longer than the frame, or missing."""
    at = _at(rng, frames, h2.DATA, h2.HEADERS)
    if at is None:
        return frames
    frame, length = frames[at], rng.choice((0, 1, 100, 255))
    padded = bytes([length]) + frame.payload + bytes(rng.choice((length, length, 0, length // 2)))
    return [*frames[:at], replace(frame, flags=frame.flags | h2.PADDED, payload=padded), *frames[at + 1 :]]


def _split(rng: random.Random, frames: list[Frame], sessions: Sequence[Session]) -> list[Frame]:
    """DATA in many frames, empty ones among them: the same messages."""
    at = _at(rng, frames, h2.DATA)
    if at is None:
        return frames
    frame, size = frames[at], rng.choice((1, 4, 5, 6, 100, 1000))
    payload = frame.payload[: 200 * size]
    parts = [payload[i : i + size] for i in range(0, len(payload), size)] + [frame.payload[200 * size :]]
    if rng.random() < 0.3:
        parts = [part for each in parts for part in (each, b"")]
    small = [Frame(h2.DATA, 0, frame.stream, part) for part in parts]
    return [*frames[:at], *small[:-1], replace(small[-1], flags=frame.flags), *frames[at + 1 :]]


def _strange_frames(rng: random.Random, frames: list[Frame], sessions: Sequence[Session]) -> list[Frame]:
    """Frames of the connection that nobody asked for, once or many times."""
    stream, number = rng.choice((0, 0, 1, 2, 99, *h2.streams_of(frames))), rng.choice(_NUMBERS)
    word = number.to_bytes(4, "big")
    strange = rng.choice(
        (
            Frame(h2.PING, rng.choice((0, h2.ACK)), 0, rng.randbytes(8)),
            Frame(h2.SETTINGS, 0, 0, rng.choice((1, 2, 3, 4, 5, 6, 8, 99)).to_bytes(2, "big") + word),
            Frame(h2.SETTINGS, h2.ACK, 0),
            Frame(h2.WINDOW_UPDATE, 0, stream, word),
            Frame(h2.RST_STREAM, 0, stream, word),
            Frame(h2.GOAWAY, 0, 0, word + bytes(4) + b"bye"),
            Frame(h2.PRIORITY, 0, stream, word + b"\x10"),
            Frame(h2.PUSH_PROMISE, h2.END_HEADERS, stream, word + b"\x82"),
            Frame(h2.CONTINUATION, h2.END_HEADERS, stream, b"\x82"),
            Frame(h2.DATA, 0, stream, b""),
            Frame(0xAB, 0xFF, stream, word),
        )
    )
    at, times = rng.randrange(len(frames) + 1), rng.choice((1, 1, 1, 5, 100, 2000))
    return [*frames[:at], *[strange] * times, *frames[at:]]


def _splice(rng: random.Random, frames: list[Frame], sessions: Sequence[Session]) -> list[Frame]:
    """Frames of another session, with their stream numbers or with later ones."""
    other = list(rng.choice(sessions).sent)
    shift = rng.choice((0, 2, 100))
    start = rng.randrange(len(other))
    part = [
        replace(f, stream=f.stream + shift) if f.stream else f for f in other[start : start + rng.choice((1, 3, 20))]
    ]
    at = rng.randrange(len(frames) + 1)
    return [*frames[:at], *part, *frames[at:]]


def _prefix(rng: random.Random, frames: list[Frame], sessions: Sequence[Session]) -> list[Frame]:
    """Length or compression of a gRPC message."""

    def change(bodies: list[bytes], at: int) -> list[bytes]:
        body, messages = bodies[at], [h2.message(each) for each in bodies]
        if rng.random() < 0.3:
            messages[at] = h2.message(body, rng.choice((1, 2, 128, 255)))
        else:
            near = [max(0, len(body) + step) for step in (-5, -1, 1, 5)]
            length = rng.choice((*near, *_NUMBERS, 16 << 20, (16 << 20) + 1))
            messages[at] = b"\0" + length.to_bytes(4, "big") + body
        return messages

    return _with_changed_messages(rng, frames, change)


def _empty_messages(rng: random.Random, frames: list[Frame], sessions: Sequence[Session]) -> list[Frame]:
    def change(bodies: list[bytes], at: int) -> list[bytes]:
        messages = [h2.message(each) for each in bodies]
        return [*messages[:at], h2.message(b"") * rng.choice((1, 2, 100, 3000)), *messages[at:]]

    return _with_changed_messages(rng, frames, change)


def _message_bytes(rng: random.Random, frames: list[Frame], sessions: Sequence[Session]) -> list[Frame]:
    """Inside of a message, whose length is right again afterwards."""

    def change(bodies: list[bytes], at: int) -> list[bytes]:
        messages = [h2.message(each) for each in bodies]
        body = bodies[at]
        head = rng.choice((len(body), 60))  # most fields stand before the payload
        messages[at] = h2.message(_changed_bytes(rng, body[:head]) + body[head:])
        return messages

    return _with_changed_messages(rng, frames, change)


def _message_order(rng: random.Random, frames: list[Frame], sessions: Sequence[Session]) -> list[Frame]:
    """Messages of a stream repeated, left out or in another order."""

    def change(bodies: list[bytes], at: int) -> list[bytes]:
        chosen = rng.choices(bodies, k=len(bodies) + rng.choice((-1, 0, 1, 5)))
        return [h2.message(each) for each in (chosen if rng.random() < 0.5 else [*bodies[at:], *bodies[:at]])]

    return _with_changed_messages(rng, frames, change)


def _chunk(rng: random.Random, frames: list[Frame], sessions: Sequence[Session]) -> list[Frame]:
    """A field of a chunk at a value that does not fit the others."""

    def change(bodies: list[bytes], at: int) -> list[bytes]:
        messages = [h2.message(each) for each in bodies]
        try:
            chunk = pb.Chunk.FromString(bodies[at])
        except DecodeError:
            return messages
        _change_chunk(rng, chunk)
        messages[at] = h2.message(chunk.SerializeToString())
        return messages

    return _with_changed_messages(rng, frames, change)


def _change_chunk(rng: random.Random, chunk: pb.Chunk) -> None:
    kind, number = rng.randrange(8), rng.choice((*_NUMBERS, (1 << 64) - 1))
    if kind == 0:
        chunk.start = rng.choice((number, chunk.start + 1, max(0, chunk.start - 1)))
    elif kind == 1:
        chunk.count = rng.choice((number & 0xFFFFFFFF, chunk.count + 1, max(0, chunk.count - 1)))
    elif kind == 2:
        wire: Any = rng.choice((0, 1, 2, 3, 4, 5, 6, -1))
        chunk.codec = wire
    elif kind == 3:
        chunk.rows = rng.choice((0, 1, chunk.rows + 1, number & 0xFFFFFFFF))
    elif kind == 4:
        chunk.payload = _changed_bytes(rng, chunk.payload)
    elif kind == 5:
        chunk.base = bytes(rng.choice((1, len(chunk.payload))))
    elif kind == 6:
        chunk.pull.version = number
    elif chunk.HasField("push"):
        setattr(chunk.push, rng.choice(("sequence", "base_version")), number)


def _with_changed_messages(
    rng: random.Random, frames: list[Frame], change: Callable[[list[bytes], int], list[bytes]]
) -> list[Frame]:
    """Has `change` make the messages of one stream, from their bodies and the index of one of them."""
    streams = [stream for stream in h2.streams_of(frames) if h2.messages_of(frames, stream)]
    if not streams:
        return frames
    stream = rng.choice(streams)
    bodies = h2.messages_of(frames, stream)
    return h2.with_messages(frames, stream, change(bodies, rng.randrange(len(bodies))))


MUTATIONS: dict[str, Mutation] = {
    "payload": _payload,
    "duplicate": _duplicate,
    "reorder": _reorder,
    "drop": _drop,
    "stream": _stream,
    "length": _length,
    "flags": _flags,
    "kind": _kind,
    "header block": _header_block,
    "continuation": _continuation,
    "padding": _padding,
    "split": _split,
    "strange frames": _strange_frames,
    "splice": _splice,
    "prefix": _prefix,
    "empty messages": _empty_messages,
    "message bytes": _message_bytes,
    "message order": _message_order,
    "chunk": _chunk,
}
