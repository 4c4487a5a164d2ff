"""Plays ranges of cases, many at a time, and says what came of them.

Threads: `_THREADS` in each process that plays; connections mostly wait for the server.
"""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import hpack

from downpour.proto import parameter_server_pb2 as pb
from tests.fuzz import frames as h2
from tests.fuzz import send
from tests.fuzz.mutate import Case, draw
from tests.fuzz.record import Session, blocks_of
from tests.fuzz.send import End, Played

_THREADS = 24
_MOST_AGAIN = 4  # repetitions of a control: half a minute, of the minutes for which a worker tries
_ABORTED = str(grpc.StatusCode.ABORTED.value[0])


@dataclass(frozen=True)
class Plan:
    """What every process needs to know.

    Attributes:
        seed: Of all cases.
        sessions: They are drawn from.
        port: Of the shard.
        certificates: Folder of those of every role; None for plain text.
    """

    seed: int
    sessions: Sequence[Session]
    port: int
    certificates: Path | None

    def case(self, number: int) -> Case:
        """Of this number."""
        return draw(self.seed, number, self.sessions, tls=self.certificates is not None)


@dataclass
class Report:
    """What came of some cases.

    Attributes:
        cases: How many there were.
        controls: Of which were not changed.
        again: Repetitions of controls that were not answered: the server spends little on newcomers, and they come by
            dozens.
        num_bytes: Sent by the server.
        acknowledged: Pushes of controls that were acknowledged, and not as repeated.
        ends: Of their connections.
        wrong: Number and reason of each case that went wrong.
    """

    cases: int = 0
    controls: int = 0
    again: int = 0
    num_bytes: int = 0
    acknowledged: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[int, str]] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Takes another one in."""
        self.cases += other.cases
        self.controls += other.controls
        self.again += other.again
        self.num_bytes += other.num_bytes
        self.acknowledged += other.acknowledged
        self.ends += other.ends
        self.wrong += other.wrong


class Player:
    """Plays cases to one shard."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._contexts: dict[str, ssl.SSLContext] = send.contexts(plan.certificates)

    def play(self, numbers: Iterable[int]) -> Report:
        """All of them, many at a time."""
        report = Report()
        with ThreadPoolExecutor(_THREADS) as pool:
            for one in pool.map(self.play_one, numbers):
                report.add(one)
        return report

    def play_one(self, number: int) -> Report:
        """One case; a control that was not answered at all a few times more, as a worker would try again."""
        case = self._plan.case(number)
        played, again = send.play(case, self._plan.port, self._contexts), 0
        while case.is_control and again < _MOST_AGAIN and not statuses_of(played.answer):
            played, again = send.play(case, self._plan.port, self._contexts), again + 1
        report = Report(1, int(case.is_control), again, len(played.answer), ends=Counter([played.end.value]))
        if reason := wrong_with(case, played):
            report.wrong.append((number, reason))
        if case.is_control:
            report.acknowledged = num_acknowledged(case, played.answer)
        return report


_player: Player | None = None  # of a process that plays


def begin(plan: Plan) -> None:
    """Prepares a process of a pool."""
    global _player
    _player = Player(plan)


def play(numbers: range) -> Report:
    """In a process of a pool."""
    assert _player is not None
    return _player.play(numbers)


def wrong_with(case: Case, played: Played) -> str:
    """Why a case went wrong; empty if it did not."""
    if played.end is End.UNANSWERED:
        return f"the server left a half closed connection open for {send.END_S:.0f} s"
    if not case.is_control:
        return ""
    if played.end is End.REFUSED:
        return f"a valid connection was refused: {played.error}"
    found = statuses_of(played.answer)
    # Hundreds of cases later the same worker pushes again, and so may overtake this push.
    overtaken = {stream for stream in case.session.pushes if found.get(stream) == _ABORTED}
    if {stream: found[stream] for stream in found if stream not in overtaken} != {
        stream: status for stream, status in case.session.statuses.items() if stream not in overtaken
    }:
        how = f"after {played.seconds:.1f} s {played.error}"
        return f"unchanged calls ended with {found}, recorded were {case.session.statuses}, {how}"
    return ""


def num_acknowledged(case: Case, answer: bytes) -> int:
    """Pushes of a control that the server has counted because of it."""
    frames, asked = h2.parse(answer), blocks_of(case.session.sent)
    return sum(
        not reply.repeated
        for stream in case.session.pushes
        for reply in _replies(asked[stream][":path"], h2.messages_of(frames, stream))
    )


def _replies(path: str, bodies: Sequence[bytes]) -> list[pb.PushReply]:
    """The answers to pushes in the messages of an answer."""
    if path.endswith("/Push"):
        return [pb.PushReply.FromString(body) for body in bodies]
    headers = [pb.Chunk.FromString(body).pull for body in bodies]
    return [header.pushed for header in headers if header.HasField("pushed")]


def statuses_of(answer: bytes) -> dict[int, str]:
    """gRPC status of each stream that is answered; of stream 0, why headers cannot be read."""
    try:
        return {number: pairs.get("grpc-status", "") for number, pairs in blocks_of(h2.parse(answer)).items()}
    except hpack.HPACKError as error:
        return {0: repr(error)}
