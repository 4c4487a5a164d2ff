"""Admits or refuses the calls to one server, by role and token, and counts them.

With TLS both sides of every connection present a certificate of the job's CA (`downpour.proto.security.tls`); a peer
without one is refused in the handshake. The token is required with every call, with or without TLS.

Threads: any; `Gate` has a lock.
"""

from __future__ import annotations

import collections
import hmac
import threading
import time
from dataclasses import dataclass

import grpc
from absl import logging

from downpour.proto.errors import DownpourError, Forbidden, MalformedChunk, Unauthenticated
from downpour.proto.security import policy
from downpour.proto.security.config import TOKEN_KEY, Security

_LOG_EVERY_S = 60.0

# Counters by the error that a call ends with.
_REFUSED: dict[type[DownpourError], str] = {
    Forbidden: "refused_role",
    Unauthenticated: "refused_token",
    MalformedChunk: "refused_malformed",
}
_LOGGED = ("connections_malformed", "connections_dropped", *_REFUSED.values())


@dataclass(frozen=True)
class Counts:
    """Connections and calls of a server since it started.

    Attributes:
        connections: Accepted; those that end in the handshake included.
        connections_admitted: Of these, from which a call was admitted.
        connections_malformed: Ended because they violated HTTP/2 or its limits.
        connections_dropped: Ended without a call because their deadline passed, or to make room for others.
        refused_role: Calls refused because their caller's role may not make them.
        refused_token: Calls refused for a wrong or missing token.
        refused_malformed: Streams refused because they do not follow the protocol.
        broken_off: Streams that ended in the middle: the caller died, or a message exceeded the size limit, which some
            of the time counts as malformed.
    """

    connections: int = 0
    connections_admitted: int = 0
    connections_malformed: int = 0
    connections_dropped: int = 0
    refused_role: int = 0
    refused_token: int = 0
    refused_malformed: int = 0
    broken_off: int = 0


class Gate:
    """Admits or refuses the calls to one server, and counts them.

    Args:
        security: Security settings of this process.
        log_every_s: Minimum seconds between two logs of the counts.
    """

    def __init__(self, security: Security, log_every_s: float = _LOG_EVERY_S) -> None:
        self._security = security
        self._log_every_s = log_every_s
        self._token = security.token.encode()
        self._job = security.certificates.job if security.certificates else ""
        self._lock = threading.Lock()
        # Everything below is guarded by `_lock`.
        self._counts = collections.Counter[str]()
        self._log_at = time.monotonic() + log_every_s
        self._connections_then = 0  # at the last check of the log
        self._logged: tuple[int, ...] = (0,) * 6

    def connection_began(self) -> None:
        """Counts a connection that is accepted."""
        self._count("connections")

    def connection_admitted(self) -> None:
        """Counts a connection whose first call is admitted."""
        self._count("connections_admitted")

    def connection_malformed(self) -> None:
        """Counts a connection that is ended because it violates HTTP/2 or its limits."""
        self._count("connections_malformed")

    def connection_dropped(self) -> None:
        """Counts a connection that is ended without a call."""
        self._count("connections_dropped")

    def admit(self, method: str, context: grpc.ServicerContext) -> None:
        """Returns if a call is admitted.

        Raises:
            Unauthenticated: It carries no token, or a wrong one.
            Forbidden: Its caller's role may not make it.
        """
        refusal = self._refusal(method, context)
        if refusal is not None:
            raise refusal
        self.log()

    def broke_off(self) -> None:
        """Counts a stream of requests that ends in the middle."""
        self._count("broken_off")

    def refused(self, error: DownpourError) -> None:
        """Counts a call that ends with this error."""
        for kind, name in _REFUSED.items():
            if isinstance(error, kind):
                self._count(name)
        self.log()

    def counts(self) -> Counts:
        """Returns the current counts."""
        with self._lock:
            return Counts(**self._counts)

    def log(self) -> None:
        """Logs refused and unauthenticated peers if the counts have changed, once per interval; called often."""
        with self._lock:
            if time.monotonic() < self._log_at:
                return
            self._log_at = time.monotonic() + self._log_every_s
            # Only connections that have had time to make a call.
            silent = max(0, self._connections_then - self._counts["connections_admitted"], self._logged[0])
            self._connections_then = self._counts["connections"]
            totals = (silent, *(self._counts[name] for name in _LOGGED))
            if totals == self._logged:
                return
            self._logged = totals
        logging.warning(
            "unauthenticated peers: %d connections without a call; ended: %d for what they sent, %d at their deadline "
            "or to make room; calls refused: %d for their role, %d for their token, %d for what they sent",
            *totals,
        )

    def _refusal(self, method: str, context: grpc.ServicerContext) -> Forbidden | Unauthenticated | None:
        if self._token and not self._knows_token(context):
            return Unauthenticated("the call carries no token or not this job's; give every role the same --token_file")
        if self._security.certificates is None:
            return None
        names = (name.decode(errors="replace") for name in context.auth_context().get("peer_dns", ()))
        return policy.refusal(method, names, self._job)

    def _knows_token(self, context: grpc.ServicerContext) -> bool:
        given = [value for key, value in context.invocation_metadata() if key == TOKEN_KEY]
        return len(given) == 1 and hmac.compare_digest(str(given[0]).encode(), self._token)

    def _count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1
