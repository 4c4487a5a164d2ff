"""What strangers do: for each attack, what one connection sends, and how many there are. Pure.

An attack is a script that each of its connections follows (`tests.strangers.crowd` does). It is named after what it
exhausts or repeats, and says with which ways of coming (`tests.strangers.ways`) it is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.strangers import wire
from tests.strangers.ways import NO_CERTIFICATE, NO_TOKEN, OTHER_CA, WORKER, WORKER_NO_TOKEN, WRONG_TOKEN, Way

Frames = Sequence[bytes]

_STREAMS = 32  # of a connection at a time
_BURST = 500  # cheap frames that are handed to the kernel at once
_EMPTY = bytes(5)  # a gRPC message of no bytes
_NO_PROTOBUF = wire.message(b"\xff\xff\xff")
_HALF_HEAD = b"\0\0"  # of a frame's nine bytes
_CHUNK = b"\x0a\x00\x18\x01"  # how a message of a push may begin


@dataclass(frozen=True)
class Script:
    """What one connection sends.

    Attributes:
        opening: Once, after the preface.
        again: After that, the frames of the n-th time, n from 0.
        every_s: Between two times; 0: whenever the kernel takes more.
        has_preface: Whether the preface and SETTINGS go before `opening`.
        has_tls: Whether there is a handshake first, where the shard wants one.
        reads: Whether it takes what the server sends.
        leaves: Whether it closes the connection after the opening.
    """

    opening: Frames = ()
    again: Callable[[int], Frames] | None = None
    every_s: float = 0.0
    has_preface: bool = True
    has_tls: bool = True
    reads: bool = True
    leaves: bool = False


@dataclass(frozen=True)
class Attack:
    """Many connections that follow one script.

    Attributes:
        name: For tables and `--only`.
        does: What it is, in a few words.
        script: Made for the token that goes with its calls, if any.
        num_connections: At a time; one that the server closes is opened again.
        ways: Of coming, that it is tried with.
        opens_per_s: Connections opened in a second, at most.
        frames_per_s: That must have been sent, counted over the whole attack; else it did not happen.
        scarce: What the shard is short of: `threads`, `descriptors` or nothing.
        lets_in: Whether new clients must get through while it lasts.
        growth_mb: Of the shard's memory, that it may cause. Strangers share 20 MB, however many come; those who are
            admitted take memory for each connection, of which there is a number at most.
        is_long: Whether it takes effect by waiting, for longer than a usual slice.
    """

    name: str
    does: str
    script: Callable[[str], Script]
    num_connections: int
    ways: Sequence[Way]
    opens_per_s: int = 500
    frames_per_s: float = 0.0
    scarce: str = ""
    lets_in: bool = True
    growth_mb: float = 20.0
    is_long: bool = False


def _call(method: str, stream: int, token: str, flags: int = 0) -> bytes:
    return wire.frame(wire.HEADERS, wire.END_HEADERS | flags, stream, wire.header_block(method, token))


def _streams(turn: int, number: int) -> range:
    """The numbers of the streams of the n-th burst."""
    return range(2 * number * turn + 1, 2 * number * (turn + 1) + 1, 2)


def _one_byte(token: str) -> Script:
    return Script([b"P"], has_preface=False, has_tls=False)


def _silent(token: str) -> Script:
    return Script(has_preface=False, has_tls=False)


def _half_preface(token: str) -> Script:
    return Script([wire.PREFACE[:12]], has_preface=False)


def _idle(token: str) -> Script:
    return Script([_HALF_HEAD])


def _slow_bytes(token: str) -> Script:
    data = wire.PREFACE + wire.frame(wire.SETTINGS, 0, 0) + 100 * _call("Status", 1, token)
    return Script(again=lambda turn: [data[turn : turn + 1]], every_s=1.0, has_preface=False)


def _handshakes(token: str) -> Script:
    return Script(leaves=True)


def _held_connections(token: str) -> Script:
    body = wire.frame(wire.DATA, wire.END_STREAM, 1, wire.message(b""))
    return Script([_call("Status", 1, token), body])


def _empties_spilled(token: str) -> Script:
    """Each stream gets a whole window of empty messages, in frames of the default size."""
    data = _EMPTY * 13_107
    pieces = [data[i : i + 16_384] for i in range(0, len(data), 16_384)]

    def burst(turn: int) -> Frames:
        return [
            frame
            for stream in _streams(turn, _STREAMS)
            for frame in (
                _call("Status", stream, token),
                *(wire.frame(wire.DATA, 0, stream, piece) for piece in pieces),
            )
        ]

    return Script(burst(0), again=lambda turn: burst(turn + 1), every_s=1.0)


def _empties_in_one_frame(token: str) -> Script:
    """Each to a call that was begun a second ago, so that it is waited for."""
    data = _EMPTY * 620_000  # 3.1 MB

    def again(turn: int) -> Frames:
        stream = 2 * turn + 1
        return [wire.frame(wire.DATA, 0, stream, data), _call("Status", stream + 2, token)]

    return Script([_call("Status", 1, token)], again=again, every_s=1.0)


def _duplicates(token: str) -> Script:
    """Every frame of a push of zeros comes twice: what follows the message is read as thousands of empty ones."""
    push = wire.message(_CHUNK + bytes(20_000))
    middle = len(push) // 2

    def again(turn: int) -> Frames:
        (stream,) = _streams(turn, 1)
        call = _call("Push", stream, token)
        first, last = (wire.frame(wire.DATA, 0, stream, part) for part in (push[:middle], push[middle:]))
        return [call, first, first, last, last, wire.frame(wire.DATA, wire.END_STREAM, stream)]

    return Script(again=again, every_s=0.02)


def _headers_only(method: str) -> Callable[[str], Script]:
    def script(token: str) -> Script:
        ping = wire.frame(wire.PING, 0, 0, b"stranger")
        calls = [_call(method, 2 * i + 1, token) for i in range(_STREAMS)]
        return Script(calls, again=lambda _: [ping], every_s=9.0)

    return script


def _calls(method: str, body: bytes, every_s: float) -> Callable[[str], Script]:
    """Whole calls, 20 at a time."""

    def script(token: str) -> Script:
        def again(turn: int) -> Frames:
            return [
                frame
                for stream in _streams(turn, 20)
                for frame in (_call(method, stream, token), wire.frame(wire.DATA, wire.END_STREAM, stream, body))
            ]

        return Script(again=again, every_s=every_s)

    return script


def _flood(frame: bytes, *opening: bytes, reads: bool = True) -> Callable[[str], Script]:
    """The same frame, as fast as it is taken."""
    burst = [frame] * _BURST
    return lambda token: Script(opening, again=lambda _: burst, reads=reads)


def _flood_of_continuations(token: str) -> Script:
    begun = wire.frame(wire.HEADERS, 0, 1, wire.header_block("Status", token))
    burst = [wire.frame(wire.CONTINUATION, 0, 1)] * _BURST
    return Script([begun], again=lambda _: burst)


def _flood_of_empty_data(token: str) -> Script:
    burst = [wire.frame(wire.DATA, 0, 1)] * _BURST
    return Script([_call("Push", 1, token)], again=lambda _: burst)


def _rapid_resets(token: str) -> Script:
    cancel = wire.CANCEL.to_bytes(4, "big")

    def again(turn: int) -> Frames:
        return [
            frame
            for stream in _streams(turn, 50)
            for frame in (_call("Status", stream, token), wire.frame(wire.RST_STREAM, 0, stream, cancel))
        ]

    return Script(again=again)


def _big_headers(token: str) -> Script:
    """Blocks of 20 KB, each another one: 2 MB a connection within two seconds."""

    def again(turn: int) -> Frames:
        (stream,) = _streams(turn, 1)
        block = wire.header_block("Status", token, ("x-large", f"{turn:06}" + "x" * 20_000))
        first = wire.frame(wire.HEADERS, 0, stream, block[:16_384])
        return [first, wire.frame(wire.CONTINUATION, wire.END_HEADERS, stream, block[16_384:])]

    return Script(again=again, every_s=0.02)


def _endless_headers(token: str) -> Script:
    begun = wire.frame(wire.HEADERS, 0, 1, wire.header_block("Status", token))
    more = wire.frame(wire.CONTINUATION, 0, 1, (b"\x00\x01x\x01y" * 3277)[:16_384])
    return Script([begun], again=lambda _: [more] * 4)


_PING = wire.frame(wire.PING, 0, 0, b"stranger")
_SETTINGS = wire.frame(wire.SETTINGS, 0, 0, b"\x00\x04\x00\x00\xff\xff")  # INITIAL_WINDOW_SIZE, as it is already
_PRIORITY = wire.frame(wire.PRIORITY, 0, 3, b"\x00\x00\x00\x00\x10")
_WINDOW_UPDATE = wire.frame(wire.WINDOW_UPDATE, 0, 0, b"\x00\x00\x00\x01")

_PLAIN, _PLAIN_AND_WORKER = (NO_TOKEN,), (NO_TOKEN, WORKER_NO_TOKEN)
_PLAIN_AND_WORKERS = (NO_TOKEN, WORKER_NO_TOKEN, WORKER)
_AT_THE_DOOR = (NO_CERTIFICATE, OTHER_CA)  # as far as the handshake

ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for attack in (
        Attack("one-byte", "one byte, few threads left", _one_byte, 600, (NO_TOKEN, OTHER_CA), scarce="threads"),
        Attack(
            "held-connections",
            "one call each, few threads left",
            _held_connections,
            300,
            (WORKER,),
            scarce="threads",
            lets_in=False,
            growth_mb=150.0,  # a third of a MB each
        ),
        Attack("silent", "nothing at all", _silent, 2_100, (NO_TOKEN, NO_CERTIFICATE), opens_per_s=2_000),
        Attack("half-prefaces", "half a preface", _half_preface, 10_000, _PLAIN, opens_per_s=2_500),
        Attack("idle", "preface and half a frame", _idle, 2_100, _PLAIN_AND_WORKER, opens_per_s=1_000, is_long=True),
        Attack("slow-bytes", "a byte each second", _slow_bytes, 500, _PLAIN, frames_per_s=100, is_long=True),
        Attack(
            "few-descriptors",
            "nothing, few descriptors left",
            _silent,
            600,
            (NO_TOKEN, NO_CERTIFICATE),
            opens_per_s=2_000,
            scarce="descriptors",
        ),
        Attack(
            "handshakes",
            "connects, leaves, comes again",
            _handshakes,
            20,
            (NO_TOKEN, *_AT_THE_DOOR, WORKER_NO_TOKEN),
            opens_per_s=200,
        ),
        Attack(
            "headers-only-unary", "calls without a body", _headers_only("Status"), 4, _PLAIN_AND_WORKERS, is_long=True
        ),
        Attack(
            "headers-only-stream", "calls without a body", _headers_only("Push"), 4, _PLAIN_AND_WORKERS, is_long=True
        ),
        Attack("empty-messages", "65 KB a stream", _empties_spilled, 2, _PLAIN_AND_WORKERS, frames_per_s=30),
        Attack(
            "empty-messages-one-frame", "3.1 MB a frame", _empties_in_one_frame, 8, _PLAIN_AND_WORKERS, frames_per_s=1
        ),
        Attack("duplicated-frames", "pushes, every frame twice", _duplicates, 4, _PLAIN_AND_WORKERS, frames_per_s=100),
        Attack(
            "no-protobuf",
            "calls with another body",
            _calls("Status", _NO_PROTOBUF, 0.01),
            4,
            (NO_TOKEN, WRONG_TOKEN, WORKER_NO_TOKEN, WORKER),
            frames_per_s=100,
        ),
        Attack(
            "refused-calls",
            "calls that it may not make",
            _calls("Stop", wire.message(b""), 0.0),
            4,
            (NO_TOKEN, WRONG_TOKEN, WORKER_NO_TOKEN, WORKER),
            frames_per_s=100,
        ),
        Attack(
            "ping",
            "PING as fast as they are taken",
            _flood(_PING),
            50,
            (*_PLAIN_AND_WORKERS, *_AT_THE_DOOR),
            frames_per_s=500,
        ),
        Attack(
            "ping-unread",
            "the same, answers not read",
            _flood(_PING, reads=False),
            50,
            _PLAIN_AND_WORKER,
            frames_per_s=500,
        ),
        Attack(
            "settings",
            "SETTINGS as fast as they are taken",
            _flood(_SETTINGS),
            200,
            _PLAIN_AND_WORKER,
            frames_per_s=500,
        ),
        Attack(
            "continuation",
            "empty CONTINUATION as fast as they are taken",
            _flood_of_continuations,
            50,
            _PLAIN_AND_WORKER,
            frames_per_s=500,
        ),
        Attack("rapid-reset", "calls, cancelled at once", _rapid_resets, 20, _PLAIN_AND_WORKERS, frames_per_s=100),
        Attack("priority", "PRIORITY as fast as they are taken", _flood(_PRIORITY), 50, _PLAIN, frames_per_s=500),
        Attack(
            "empty-data",
            "empty DATA as fast as they are taken",
            _flood_of_empty_data,
            50,
            (NO_TOKEN, WORKER),
            frames_per_s=500,
        ),
        Attack("window-update", "WINDOW_UPDATE of one byte", _flood(_WINDOW_UPDATE), 50, _PLAIN, frames_per_s=500),
        Attack("big-headers", "2 MB of blocks each", _big_headers, 16, _PLAIN_AND_WORKERS, frames_per_s=20),
        Attack("endless-headers", "a block without end", _endless_headers, 16, _PLAIN_AND_WORKER, frames_per_s=20),
    )
}
