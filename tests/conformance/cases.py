"""The register of conformance cases: what has a name, says what must happen, and can be checked against an address.

A name begins with where h2spec (`generic/`, `http2/`, `hpack/`) or we (`rfc9113/`, `rfc7541/`, `calm/`, `grpc/`) have
it; the numbers of http2/ are sections of RFC 7540, as h2spec counts. A case's docstring cites the sentence it relies
on, from RFC 9113 unless it says otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tests.conformance import expect
from tests.conformance.wire import Fields, Peer, data, message

SERVICE = "/conformance.Service"
ECHO = f"{SERVICE}/Echo"
REQUEST: list[tuple[str, str]] = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", ECHO),
    (":authority", "conformance"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]
CASES: list[Case] = []


@dataclass(frozen=True)
class Case:
    """One thing that a server must do.

    Attributes:
        name: Section and title.
        says: What must happen, and why.
        is_promise: Not demanded by an RFC but promised by our server, so grpcio's is not asked.
        check: Runs it against an address, waiting so many seconds for each event.
    """

    name: str
    says: str
    is_promise: bool
    check: Callable[[str, float], None]


@dataclass(frozen=True)
class Outcome:
    """What came of a case."""

    name: str
    status: Literal["passed", "failed", "skipped"]
    expected: str = ""
    came: str = ""
    seconds: float = 0.0


def case(
    section: str, title: str, *, promise: bool = False, greeting: bool = True
) -> Callable[[Callable[[Peer], None]], Callable[[Peer], None]]:
    """Registers a function that is given a connection, after its handshake unless `greeting` is false."""

    def register(function: Callable[[Peer], None]) -> Callable[[Peer], None]:
        def check(address: str, wait_s: float) -> None:
            with Peer(address, wait_s) as peer:
                if greeting:
                    peer.handshake()
                function(peer)

        CASES.append(Case(f"{section} {title}", _sentence(function), promise, check))
        return function

    return register


def grpc_case(section: str, title: str) -> Callable[[Callable[[str], None]], Callable[[str], None]]:
    """Registers a function that is given an address, to call it by grpcio's client."""

    def register(function: Callable[[str], None]) -> Callable[[str], None]:
        CASES.append(Case(f"{section} {title}", _sentence(function), False, lambda address, _: function(address)))
        return function

    return register


def _sentence(function: Callable[..., None]) -> str:
    assert function.__doc__, f"{function.__name__} does not say what it relies on"
    return " ".join(function.__doc__.split())


def run(one: Case, address: str, wait_s: float) -> Outcome:
    """Checks a case; whatever it raises is an outcome."""
    begin = time.monotonic()
    try:
        one.check(address, wait_s)
    except expect.Skipped as skipped:
        return Outcome(one.name, "skipped", came=str(skipped))
    except expect.Mismatch as mismatch:
        return Outcome(one.name, "failed", mismatch.expected, mismatch.came, time.monotonic() - begin)
    except Exception as error:  # a broken connection or a broken answer is the server's, and must not end the run
        came = f"{type(error).__name__}: {error}"
        return Outcome(one.name, "failed", "an answer that can be read", came, time.monotonic() - begin)
    return Outcome(one.name, "passed", seconds=time.monotonic() - begin)


def request(path: str = ECHO, *more: tuple[str | bytes, str | bytes]) -> Fields:
    """The fields of a call's HEADERS."""
    return [*((name, path if name == ":path" else value) for name, value in REQUEST), *more]


def without(*names: str) -> Fields:
    """The fields of a call's HEADERS but for these."""
    return [(name, value) for name, value in REQUEST if name not in names]


def changed(name: str, value: str | bytes) -> Fields:
    """The fields of a call's HEADERS, one with another value."""
    return [(each, value if each == name else old) for each, old in REQUEST]


def echo(peer: Peer, stream: int, fields: Fields = REQUEST, payload: bytes = b"echo") -> None:
    """Sends a whole call."""
    peer.send(peer.headers(stream, fields), data(stream, message(payload), end=True))


def echoes(peer: Peer, stream: int, payload: bytes = b"echo") -> None:
    """Sends a whole call, whose answer must come."""
    echo(peer, stream, payload=payload)
    expect.answered(peer, stream, payload)
