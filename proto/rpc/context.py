"""What a servicer sees of its call: the caller, the deadline, and the status with which the call ends.

Threads: the one that runs the call.
"""

from __future__ import annotations

import time
from typing import NoReturn, Protocol

import grpc

from downpour.proto.errors import ERROR_KEY, DownpourError
from downpour.proto.http2.stream import Stream

_UNITS_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


class Aborted(Exception):
    """Ends a call with the status of its context."""


class Caller(Protocol):
    """The peer that has made a call.

    Attributes:
        peer: Its address.
        names: DNS names in its certificate.
    """

    peer: str
    names: list[str]

    def broke_the_protocol(self, cost_s: float) -> None:
        """Counts a call that violated the protocol and took `cost_s` processor seconds; many end the connection."""

    def made_sense(self) -> None:
        """Called when a message of a call has been decoded."""


class Context:
    """Those methods of `grpc.ServicerContext` that a servicer uses.

    Args:
        stream: Stream of the call, whose header fields have been received; gets the deadline that they name.
        caller: The peer that made the call.

    Attributes:
        status: Status with which the call ends.
        details: Message that goes with it.
        trailing: Trailing metadata.
    """

    def __init__(self, stream: Stream, caller: Caller) -> None:
        self._stream, self._caller = stream, caller
        self._metadata = tuple(pair for pair in stream.headers if not pair[0].startswith(":"))
        self.status = grpc.StatusCode.OK
        self.details = ""
        self.trailing: tuple[tuple[str, str], ...] = ()
        stream.deadline = _deadline(dict(stream.headers).get("grpc-timeout"))

    def fail(self, status: grpc.StatusCode, details: str, error: type[DownpourError] | None = None) -> None:
        """Sets the status of a call that fails, and the type of our own error that it stands for."""
        self.status, self.details = status, details
        if error is not None:
            self.trailing = ((ERROR_KEY, error.__name__),)

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """See `grpc.ServicerContext`."""
        self.fail(code, details)
        raise Aborted

    def set_trailing_metadata(self, metadata: tuple[tuple[str, str], ...]) -> None:
        """See `grpc.ServicerContext`."""
        self.trailing = metadata

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """See `grpc.ServicerContext`."""
        return self._metadata

    def time_remaining(self) -> float | None:
        """See `grpc.ServicerContext`."""
        deadline = self._stream.deadline
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    def peer(self) -> str:
        """See `grpc.ServicerContext`."""
        return self._caller.peer

    def auth_context(self) -> dict[str, list[bytes]]:
        """See `grpc.ServicerContext`."""
        return {"peer_dns": [name.encode() for name in self._caller.names]}


def _deadline(timeout: str | None) -> float | None:
    """Returns the moment of `time.monotonic()` that a `grpc-timeout` names."""
    if not timeout:
        return None
    number, unit = timeout[:-1], timeout[-1]
    if not number.isascii() or not number.isdigit() or len(number) > 8 or unit not in _UNITS_S:
        return None
    return time.monotonic() + int(number) * _UNITS_S[unit]
