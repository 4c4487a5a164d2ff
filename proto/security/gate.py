"""How a process shows who it is and whom it answers: certificates, the job's token, which role may call what.

With TLS both sides of every connection show a certificate of the job's CA (`downpour.proto.security.tls`). Whoever
cannot is turned away in the handshake; whoever can may call what `MAY_CALL` says. The token is asked for with every
call, with or without TLS. `downpour.proto.rpc.client` and `downpour.proto.rpc.server` make connections of it.

Threads: any; `Gate` and `Certificates` each have a lock.
"""

from __future__ import annotations

import collections
import hmac
import ipaddress
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from absl import logging

from downpour.proto.errors import DownpourError, Forbidden, MalformedChunk, Unauthenticated
from downpour.proto.security import tls

if TYPE_CHECKING:
    from OpenSSL import SSL

    from downpour.proto.http2.sockets import PlainSocket
    from downpour.proto.security.tls_socket import TlsSocket

TOKEN_KEY = "downpour-token"
_TOKEN = re.compile(r"[!-~]{16,1024}")  # what a header may carry

_ANY = frozenset(tls.ROLES)

# Who may call what. A method that is not listed may be called by nobody.
MAY_CALL: dict[str, frozenset[str]] = {
    "ParameterServer/Status": _ANY,
    "ParameterServer/Push": frozenset({"worker"}),
    "ParameterServer/Pull": frozenset({"worker"}),
    "ParameterServer/Initialize": frozenset({"chief"}),
    "ParameterServer/Restore": frozenset({"chief"}),
    "ParameterServer/WriteCheckpoint": frozenset({"chief"}),
    "ParameterServer/Absent": frozenset({"chief"}),
    "ParameterServer/Stop": frozenset({"chief"}),
    "Chief/Register": frozenset({"worker"}),
    "Chief/Report": frozenset({"worker"}),
    "Chief/Lease": frozenset({"worker"}),
    "Chief/NextCheckpoint": frozenset({"evaluator"}),
    "Chief/ReportScore": frozenset({"evaluator"}),
    "Chief/Leaving": frozenset({"ps"}),
    "Chief/Progress": _ANY,
}
_PACKAGE = "/downpour.v1."

_LOOK_EVERY_S = 1.0  # for renewed certificates
_LOG_EVERY_S = 60.0

# What is counted by the error that a call ends with.
_REFUSED: dict[type[DownpourError], str] = {
    Forbidden: "refused_role",
    Unauthenticated: "refused_token",
    MalformedChunk: "refused_malformed",
}
_LOGGED = ("connections_malformed", "connections_dropped", *_REFUSED.values())


class Certificates:
    """The certificate files of a process, read again when they have been renewed.

    Args:
        folder: Holds them; see `downpour.proto.security.tls`.
        role: Of this process.

    Attributes:
        job: That the certificate names.

    Raises:
        ValueError: They cannot be used.
    """

    def __init__(self, folder: Path, role: str) -> None:
        self._folder, self._role = folder, role
        self._lock = threading.Lock()
        self._stamp = self._stamp_now()
        self._files = tls.read(folder)
        self.job = tls.check(folder, self._files, role).job
        self._number = 1
        self._contexts: dict[bool, tuple[int, SSL.Context]] = {}  # by whether it is a server's
        self._look_at = time.monotonic() + _LOOK_EVERY_S

    def latest(self) -> tuple[int, tls.Files]:
        """The files, and how many times they have changed; what cannot be used is not taken up."""
        with self._lock:
            if time.monotonic() >= self._look_at:
                self._look_at = time.monotonic() + _LOOK_EVERY_S
                self._look()
            return self._number, self._files

    def over_tls(self, plain: PlainSocket, server_name: str | None) -> TlsSocket:
        """TLS over a new connection, before its handshake: shows the newest certificate, and wants one of the same CA.

        Args:
            plain: The connection.
            server_name: Whom it must lead to; None on the server's side.
        """
        from downpour.proto.security import tls_socket

        number, files = self.latest()
        is_server = server_name is None
        with self._lock:
            if self._contexts.get(is_server, (0, None))[0] != number:
                self._contexts[is_server] = number, tls_socket.context(files, is_server=is_server)
            context = self._contexts[is_server][1]
        return tls_socket.TlsSocket(plain, context, server_name)

    def _look(self) -> None:
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            files = tls.read(self._folder)
            identity = tls.check(self._folder, files, self._role)
            if identity.job != self.job:
                raise ValueError(f"--tls={self._folder} is of job {identity.job!r} now, not of {self.job!r}")
        except ValueError as error:
            logging.warning("renewed certificates are not taken up: %s", error)
            return
        self._files, self._number = files, self._number + 1
        logging.info("certificates renewed, valid until %s UTC", f"{identity.ends:%Y-%m-%d %H:%M}")

    def _stamp_now(self) -> tuple[object, ...]:
        """Differs when a file has been replaced or written; also what a secret's link points to."""
        stamp: list[object] = []
        for name in (tls.CERTIFICATE, tls.KEY, tls.CA):
            try:
                found = (self._folder / name).stat()
            except OSError:
                stamp.append(None)
            else:
                stamp.append((found.st_ino, found.st_mtime_ns, found.st_size))
        return tuple(stamp)


@dataclass(frozen=True)
class Security:
    """What a process was told about security; by default nothing: plain text on loopback, no token.

    Attributes:
        certificates: Of this process; None for plain text.
        token: Of the job; empty for none.
        plain_text_on_the_network: Whether it may listen in plain text on more than loopback.
    """

    certificates: Certificates | None = None
    token: str = field(default="", repr=False)
    plain_text_on_the_network: bool = False

    @property
    def metadata(self) -> tuple[tuple[str, str], ...] | None:
        """What goes with every call."""
        return ((TOKEN_KEY, self.token),) if self.token else None

    def check_host(self, host: str) -> None:
        """Raises `ValueError` when a server may not listen on a host."""
        if self.certificates or self.plain_text_on_the_network or _is_loopback(host):
            return
        raise ValueError(
            f"listening on {host} in plain text would let anybody on the network read and change the model; give "
            "--tls=FOLDER (downpour certs makes its files), --host=127.0.0.1, or, if nobody else can reach this "
            "machine, --listen_in_plain_text_on_the_network"
        )


PLAIN = Security()


def read_token(path: Path) -> str:
    """The token of a file.

    Raises:
        ValueError: It cannot be read or is no token. The message does not show it.
    """
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ValueError(f"--token_file={path} cannot be read: {reason}") from None
    if not _TOKEN.fullmatch(token):
        raise ValueError(
            f"--token_file={path} holds no token: give 16 to 1024 ASCII letters, digits or signs without blanks on one "
            f"line, such as those of `openssl rand -hex 32`; it has {len(token)} characters"
        )
    return token


@dataclass(frozen=True)
class Counts:
    """Who has come to a server since it began.

    Attributes:
        connections: Begun; those that end in the handshake included.
        connections_admitted: Of these, from which a call was admitted.
        connections_malformed: Ended since they broke HTTP/2's rules or its limits.
        connections_dropped: Ended without a call since their time was up, or to make room for others.
        refused_role: Calls refused because their caller's role may not make them.
        refused_token: Calls refused for a wrong or missing token.
        refused_malformed: Streams refused because they do not follow the protocol.
        broken_off: Streams that ended in the middle: the caller died, or a message was larger than may be, which some
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
    """Lets calls into one server, or refuses them, and counts.

    Args:
        security: Of this process.
        log_every_s: Strangers are logged at most so often.
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
        self._connections_then = 0  # when the log was looked at last
        self._logged: tuple[int, ...] = (0,) * 6

    def connection_began(self) -> None:
        """A connection is accepted."""
        self._count("connections")

    def connection_admitted(self) -> None:
        """The first call of a connection is admitted."""
        self._count("connections_admitted")

    def connection_malformed(self) -> None:
        """A connection is ended that breaks HTTP/2's rules or its limits."""
        self._count("connections_malformed")

    def connection_dropped(self) -> None:
        """A connection without a call is ended."""
        self._count("connections_dropped")

    def admit(self, method: str, context: grpc.ServicerContext) -> None:
        """Returns when a call may go on.

        Raises:
            Unauthenticated: It carries no token, or another one.
            Forbidden: Its caller's role may not make it.
        """
        refusal = self._refusal(method, context)
        if refusal is not None:
            raise refusal
        self.log()

    def broke_off(self) -> None:
        """A stream of requests ends in the middle."""
        self._count("broken_off")

    def refused(self, error: DownpourError) -> None:
        """A call ends with this error."""
        for kind, name in _REFUSED.items():
            if isinstance(error, kind):
                self._count(name)
        self.log()

    def counts(self) -> Counts:
        """Of this moment."""
        with self._lock:
            return Counts(**self._counts)

    def log(self) -> None:
        """Logs what strangers have done, now and then, and only when there is more; called often."""
        with self._lock:
            if time.monotonic() < self._log_at:
                return
            self._log_at = time.monotonic() + self._log_every_s
            # Of connections that have had time enough to make a call.
            silent = max(0, self._connections_then - self._counts["connections_admitted"], self._logged[0])
            self._connections_then = self._counts["connections"]
            totals = (silent, *(self._counts[name] for name in _LOGGED))
            if totals == self._logged:
                return
            self._logged = totals
        logging.warning(
            "strangers so far: %d connections without a call; ended: %d for what they sent, %d since their time was up "
            "or to make room; calls refused: %d for their role, %d for their token, %d for what they sent",
            *totals,
        )

    def _refusal(self, method: str, context: grpc.ServicerContext) -> Forbidden | Unauthenticated | None:
        if self._token and not self._knows_token(context):
            return Unauthenticated("the call carries no token or not this job's; give every role the same --token_file")
        if self._security.certificates is None:
            return None
        names = context.auth_context().get("peer_dns", ())
        role = tls.role_in((name.decode(errors="replace") for name in names), self._job)
        name = method.removeprefix(_PACKAGE)
        if role in MAY_CALL.get(name, ()):
            return None
        who = f"role {role!r}" if role else f"a certificate that names no role of job {self._job!r}"
        accepted = " or ".join(sorted(MAY_CALL.get(name, ()))) or "nobody"
        return Forbidden(f"{who} may not call {name}, {accepted} may; give every process its own role's --tls folder")

    def _knows_token(self, context: grpc.ServicerContext) -> bool:
        given = [value for key, value in context.invocation_metadata() if key == TOKEN_KEY]
        return len(given) == 1 and hmac.compare_digest(str(given[0]).encode(), self._token)

    def _count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
