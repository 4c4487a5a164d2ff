"""Fuzzes our client: recorded answers, mutated, come from a server that is a script.

Every call must end within its deadline, with an answer or with `grpc.RpcError`: no other exception, no hang.
"""

from __future__ import annotations

import random
import socket
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc

from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.rpc.client import Channel
from tests.fuzz import frames as h2
from tests.fuzz.frames import Frame
from tests.fuzz.mutations import MUTATIONS
from tests.fuzz.record import Session

_DEADLINE_S = 1.0
_LATE_S = 5.0  # after the deadline a call must have ended
_PATH = "/downpour.v1.ParameterServer/"
_TOPICS = ("ours/statuses", "ours/pushes", "ours/pulls")
_MOST_BYTES = 1 << 19
_ENDS_SHARE = 0.9  # of answers after which the server closes; after the others it stays silent


@dataclass
class Outcome:
    """What fuzzing came to.

    Attributes:
        cases: Calls made.
        answered: That gave an answer.
        failures: One line each.
    """

    cases: int = 0
    answered: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Answer:
    """What the script says to a call.

    Attributes:
        method: Of the call.
        mutations: Their names.
        data: All of it.
        closes: Whether the connection ends then.
    """

    method: str
    mutations: tuple[str, ...]
    data: bytes
    closes: bool


def draw(seed: int, number: int, sessions: Sequence[Session]) -> Answer:
    """The answer of a seed and a number; every tenth is as recorded."""
    rng = random.Random(f"client/{seed}/{number}")
    session = rng.choice([session for session in sessions if session.name in _TOPICS])
    method = {"ours/statuses": "Status", "ours/pushes": "Push", "ours/pulls": "Pull"}[session.name]
    stream = rng.choice(list(session.statuses))
    frames = [replace_stream(frame, stream) for frame in session.answered if frame.stream in (0, stream)]
    names = rng.choices(list(MUTATIONS), k=rng.choice((1, 1, 1, 2, 3))) if rng.random() >= 0.1 else []
    for name in names:
        if frames:
            frames = MUTATIONS[name](rng, frames, sessions)
    return Answer(method, tuple(names), h2.encode(frames)[:_MOST_BYTES], rng.random() < _ENDS_SHARE)


def replace_stream(frame: Frame, stream: int) -> Frame:
    """A frame of a later call as if it belonged to the first."""
    return Frame(frame.kind, frame.flags, 1 if frame.stream == stream else 0, frame.payload)


def fuzz(seed: int, sessions: Sequence[Session], seconds: float) -> Outcome:
    """Makes calls for so long."""
    outcome, end = Outcome(), time.monotonic() + seconds
    while time.monotonic() < end and len(outcome.failures) < 10:
        answer = draw(seed, outcome.cases, sessions)
        reason = reason_of(answer, outcome)
        if reason and not any(_kind(reason) in failure for failure in outcome.failures):
            outcome.failures.append(f"client: {reason}; {_describe(seed, outcome.cases, answer)}")
            print("FAILED", outcome.failures[-1], flush=True)
        outcome.cases += 1
    print(f"client: {outcome.cases} cases", flush=True)
    return outcome


def replay(seed: int, sessions: Sequence[Session], number: int) -> int:
    """One call; the exit code."""
    answer = draw(seed, number, sessions)
    print(_describe(seed, number, answer))
    reason = reason_of(answer)
    print(f"failed: {reason}" if reason else "nothing went wrong")
    return int(bool(reason))


def reason_of(answer: Answer, outcome: Outcome | None = None) -> str:
    """What went wrong with a call that is answered so; empty if nothing did. Counts it if it gave an answer."""
    begin = time.monotonic()
    reason = ""
    with answering(answer) as channel:
        try:
            _call(channel, answer.method)
            if outcome:
                outcome.answered += 1
        except grpc.RpcError as error:
            reason = "" if answer.mutations else f"an answer as recorded failed: {error}"
        except Exception as error:  # which must not be
            place = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {error} in {place.name} of {place.filename.rpartition('/')[2]}"
    took_s = time.monotonic() - begin
    if took_s > _DEADLINE_S + _LATE_S:
        reason = f"the call took {took_s:.1f} s, its deadline was {_DEADLINE_S} s"
    return reason


@contextmanager
def answering(answer: Answer) -> Iterator[Channel]:
    """A channel to a server that says this, whatever it is asked."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=_serve, args=(listener, answer))
        server.start()
        channel = Channel(f"127.0.0.1:{listener.getsockname()[1]}")
        try:
            yield channel
        finally:
            channel.close()
            server.join()


def _serve(listener: socket.socket, answer: Answer) -> None:
    connection, _ = listener.accept()
    connection.settimeout(_DEADLINE_S + _LATE_S)  # then a call that hangs is let go
    with connection, suppress(OSError):
        connection.sendall(answer.data)
        if answer.closes:
            connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):
            pass


def _call(channel: Channel, method: str) -> Any:
    if method == "Status":
        call = channel.unary_unary(_PATH + method, pb.StatusRequest.SerializeToString, pb.StatusReply.FromString)
        return call(pb.StatusRequest(), timeout=_DEADLINE_S)
    if method == "Push":
        push = channel.stream_unary(_PATH + method, pb.PushReply.FromString)
        return push(iter([[b"chunk"], [b"another"]]), timeout=_DEADLINE_S)
    pull = channel.unary_stream(_PATH + method, pb.PullRequest.SerializeToString)
    return [bytes(view) for view in pull(pb.PullRequest(), timeout=_DEADLINE_S) if view is not None]


def _describe(seed: int, number: int, answer: Answer) -> str:
    what = ", ".join(answer.mutations) or "as recorded"
    return f"{answer.method} answered {what}: python -m tests.fuzz.run --seed={seed} --only_client={number}"


def _kind(reason: str) -> str:
    """Exceptions of one type in one place are reported once."""
    return reason.partition(":")[0] + ":" if " in " in reason else reason
