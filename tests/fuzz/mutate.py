"""Cases: what is said on one connection, drawn from recorded sessions by a seed and a number.

A case is a session whose pushes get a name of their own, changed by up to four mutations of its frames, header blocks,
gRPC messages and chunks, then cut into pieces and ended in one of four ways. Every tenth case is not changed at all: a
control, whose calls must end with the status that was recorded. Pure: the same seed, number and sessions give the same
case. The mutations themselves are in `tests.fuzz.mutations`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from downpour.proto import parameter_server_pb2 as pb
from tests.fuzz import frames as h2
from tests.fuzz.frames import Frame
from tests.fuzz.mutations import MUTATIONS, flip
from tests.fuzz.record import Session
from tests.fuzz.shard import CONTROL_INCARNATION, CONTROLS, FUZZER, NUM_CONTROLS, NUM_FUZZERS

WAIT, HALF_CLOSE, CLOSE, RESET = "wait", "half close", "close", "reset"  # how a connection ends
_ENDINGS = {WAIT: 70, HALF_CLOSE: 10, CLOSE: 10, RESET: 10}
_CONTROL_SHARE, _STRANGER_SHARE, _RECORD_SHARE = 0.1, 0.15, 0.1
_MOST_BYTES = 1 << 19  # of a case
_PUSHES_A_CASE = 4  # more than any session has
_BREAKS = 1 << 14  # where the plain text of a TLS record ends


@dataclass(frozen=True)
class Case:
    """One connection.

    Attributes:
        number: That drew it.
        session: That it was made of.
        mutations: Their names, in order; none in a control.
        pieces: What is sent, in so many writes.
        ending: How the connection ends, after the last piece.
        flips: Seed of bits to be flipped in TLS records, or None.
    """

    number: int
    session: Session
    mutations: tuple[str, ...]
    pieces: tuple[bytes, ...]
    ending: str
    flips: int | None = None

    @property
    def is_control(self) -> bool:
        """Whether it is answered as recorded."""
        return not self.mutations and self.flips is None

    def describe(self) -> str:
        """One line."""
        what = ", ".join(self.mutations) or "unchanged"
        flips = ", TLS records flipped" if self.flips is not None else ""
        size = sum(map(len, self.pieces))
        return f"{self.session.name}: {what}{flips}; {size} bytes in {len(self.pieces)} pieces, then {self.ending}"


def draw(seed: int, number: int, sessions: Sequence[Session], *, tls: bool) -> Case:
    """The case of a seed and a number."""
    rng = random.Random(f"{seed}/{number}")
    is_stranger = rng.random() < _STRANGER_SHARE
    session = rng.choice([session for session in sessions if session.is_admitted is not is_stranger])
    is_control = rng.random() < _CONTROL_SHARE
    frames = named(session, number, is_control=is_control)
    if is_control:
        return Case(number, session, (), (h2.PREFACE + h2.encode(frames),), WAIT)
    names = rng.choices([*MUTATIONS, "bytes"], k=rng.choice((1, 1, 1, 2, 2, 3, 4)))
    for name in names:
        if name != "bytes" and frames:
            frames = MUTATIONS[name](rng, frames, sessions)
    data = h2.PREFACE + h2.encode(frames)
    if "bytes" in names:
        data = _mutated_bytes(rng, data)
    ending = rng.choices(list(_ENDINGS), list(_ENDINGS.values()))[0]
    flips = rng.getrandbits(32) if tls and rng.random() < _RECORD_SHARE else None
    pieces = _pieces(rng, data[:_MOST_BYTES], ending)
    return Case(number, session, tuple(names), pieces, ending, flips)


def named(session: Session, number: int, *, is_control: bool) -> list[Frame]:
    """The session's frames, with pushes whose names no other case has.

    Those of controls are of an incarnation so high, and workers so far, that no mutation of others shuts them out.
    """
    frames = list(session.sent)
    for i, stream in enumerate(session.pushes):
        bodies = h2.messages_of(frames, stream)
        data = h2.data_of(frames, stream)
        chunk = pb.Chunk.FromString(bodies[0])
        if is_control:  # each of another worker: calls that are sent at once are answered in any order
            chunk.push.worker = CONTROLS + (number * _PUSHES_A_CASE + i) % NUM_CONTROLS
            chunk.push.incarnation, chunk.push.sequence = CONTROL_INCARNATION, 2 + number
        else:
            chunk.push.worker = FUZZER + number % NUM_FUZZERS
            chunk.push.incarnation, chunk.push.sequence = 1 + number // NUM_FUZZERS, 1 + i
        rest = data[len(h2.message(bodies[0])) :]
        frames = h2.with_messages(frames, stream, [h2.message(chunk.SerializeToString()) + rest])
    return frames


def flipped(seed: int, records: Sequence[bytes]) -> list[bytes]:
    """The same bytes with one to eight bits changed."""
    rng, changed = random.Random(seed), list(records)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(changed))
        changed[at] = flip(rng, changed[at], 1)
    return changed


def _mutated_bytes(rng: random.Random, data: bytes) -> bytes:
    """Without regard to frames; sometimes in the preface."""
    at = rng.randrange(len(data)) if rng.random() < 0.8 else rng.randrange(len(h2.PREFACE))
    span = rng.choice((1, 1, 3, 9, 100))
    kind = rng.randrange(4)
    if kind == 0:
        return data[:at] + flip(rng, data[at : at + span], 1) + data[at + span :]
    if kind == 1:
        return data[:at] + rng.randbytes(span) + data[at:]
    if kind == 2:
        return data[:at] + data[at + span :]
    return data[:at]


def _pieces(rng: random.Random, data: bytes, ending: str) -> tuple[bytes, ...]:
    """Cut at random, or byte by byte at the beginning; before a close or a reset, not all of it may be sent."""
    if ending in (CLOSE, RESET) and rng.random() < 0.5:
        data = data[: rng.randrange(len(data) + 1)]
    kind = rng.randrange(4)
    if kind == 0 or len(data) < 2:
        return (data,)
    if kind == 1:
        cuts = sorted(rng.randrange(1, len(data)) for _ in range(rng.choice((1, 3, 30))))
    elif kind == 2:
        begin = rng.randrange(len(data))
        cuts = list(range(begin + 1, min(begin + 60, len(data))))
    else:
        cuts = list(range(_BREAKS - 1, len(data), _BREAKS))
    return tuple(data[i:j] for i, j in zip([0, *cuts], [*cuts, len(data)], strict=True) if i < j)
