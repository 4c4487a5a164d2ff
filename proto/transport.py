"""gRPC as Downpour uses it: settings with their reasons, credentials, one error mapping, one retry loop.

The chief and its callers use grpcio, by `open_channel` and `start_server`. Shards and their callers, who move messages
of megabytes, speak the same protocol by `downpour.proto.server` and `downpour.proto.client`. Nobody else opens a
channel or starts a server, but for `downpour.proto.health`.

Threads: gRPC's own call the interceptor and ask for certificates; `call` runs in its caller's.
"""

from __future__ import annotations

import os
import random
import resource
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
import grpc.experimental
from absl import logging

from downpour.proto.assembly import MAX_MESSAGE_BYTES
from downpour.proto.errors import (
    DownpourError,
    MalformedChunk,
    NotReady,
    NotYet,
    Unauthenticated,
    Unreachable,
    abort,
    from_rpc_error,
)
from downpour.proto.security import PLAIN, Certificates, Gate, Security
from downpour.proto.sockets import host_and_port
from downpour.proto.tls import server_name

Result = TypeVar("Result")

# gRPC's own lines about every stranger's handshake; `Gate` counts them. Read when the first channel or server is made.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_retries", 0),  # retrying is ours: it needs the ledger
    ("grpc.enable_http_proxy", 0),  # peers are within reach; http_proxy is for those who are not
]

# What may pass without harm: the peer restarts, the network breaks, a deadline was too short.
_TRANSIENT = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})


HANDSHAKE_S = 5.0  # until a connection must have shown its certificate, and said that it speaks HTTP/2
_MAX_CONNECTIONS = 2048  # also those that still say nothing
_SPARE_FILES = 256  # of the process, beside its connections
MAX_STREAMS = 32  # calls of one connection at a time
CALLS_PER_THREAD = 8  # open or waiting; more are refused and come again

# What gRPC reports when a peer answers, but not as one of the job, and what that means.
_NOT_OURS = {
    "Hostname mismatch": "its certificate names another job or role",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not signed by the CA in this process's ca.crt, or has expired",
    "Hostname Verification Check failed": "its certificate names another job or role",
    "WRONG_VERSION_NUMBER": "it does not speak TLS; start it with --tls, too",
}
_MAYBE_REFUSED = ("Socket closed", "_ALERT_")  # what a client sees of a handshake that the server ends


class Channel:
    """A connection to one server, whose calls carry the job's token.

    When this process's certificates have been renewed, calls that begin later go over a new connection: the old one
    would not get through a handshake again.

    Args:
        address: `host:port`.
        security: Of this process.
        role: Of the server, which its certificate must name.
    """

    def __init__(self, address: str, security: Security, role: str) -> None:
        self._address, self._security, self._role = address, security, role
        self._lock = threading.Lock()
        self._made: list[tuple[int, grpc.Channel]] = []

    def unary_unary(self, *arguments: Any, **more: Any) -> Callable[..., Any]:
        """As that of `grpc.Channel`."""
        made: tuple[grpc.Channel | None, Any] = (None, None)

        def call(*values: Any, **options: Any) -> Any:
            nonlocal made
            channel = self._latest()
            if made[0] is not channel:
                made = channel, channel.unary_unary(*arguments, **more)
            return made[1](*values, metadata=self._security.metadata, **options)

        return call

    def close(self) -> None:
        """Ends the connection."""
        with self._lock:
            for _, channel in self._made:
                channel.close()

    def _latest(self) -> grpc.Channel:
        certificates = self._security.certificates
        number, files = certificates.latest() if certificates else (0, None)
        with self._lock:
            if not self._made or self._made[-1][0] != number:
                credentials = files and grpc.ssl_channel_credentials(files.ca, files.key, files.certificate)
                self._made.append((number, self._open(credentials)))  # calls may go on over the one before
            return self._made[-1][1]

    def _open(self, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
        options = [
            *_OPTIONS,
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        if credentials is None:
            return grpc.insecure_channel(self._address, options)
        assert self._security.certificates is not None
        name = server_name(self._role, self._security.certificates.job)
        return grpc.secure_channel(self._address, credentials, [*options, ("grpc.ssl_target_name_override", name)])


def open_channel(address: str, security: Security = PLAIN, role: str = "chief") -> Channel:
    """A channel of its own connection, which reconnects within a second of the peer's return; see `Channel`."""
    return Channel(address, security, role)


def start_server(
    register: Callable[[grpc.Server], None],
    host: str,
    port: int,
    num_threads: int,
    security: Security = PLAIN,
    gate: Gate | None = None,
) -> tuple[grpc.Server, int]:
    """Starts a server and returns it with the port it is bound to.

    Args:
        register: Adds the service to the server.
        host: Address to listen on.
        port: Port to listen on; 0 lets the kernel choose.
        num_threads: Calls that may be open at once; more wait.
        security: Of this process.
        gate: What admits calls and counts; a new one by default.

    Raises:
        ValueError: The address cannot be bound, or not with this security.
    """
    security.check_host(host)
    gate = gate or Gate(security)
    server = grpc.server(
        ThreadPoolExecutor(num_threads, thread_name_prefix="grpc"),
        interceptors=(ErrorInterceptor(gate),),
        options=[
            *_OPTIONS,
            ("grpc.so_reuseport", 0),  # a port that is taken must fail, not be shared
            ("grpc.server_handshake_timeout_ms", int(1000 * HANDSHAKE_S)),
            ("grpc.max_allowed_incoming_connections", max_connections()),
            ("grpc.max_concurrent_streams", MAX_STREAMS),
        ],
        maximum_concurrent_rpcs=CALLS_PER_THREAD * num_threads,
    )
    register(server)
    credentials = _server_credentials(security.certificates, gate) if security.certificates else None
    try:
        where = host_and_port(host, port)
        bound = server.add_secure_port(where, credentials) if credentials else server.add_insecure_port(where)
    except RuntimeError:
        bound = 0
    if not bound:
        raise cannot_listen(host, port)
    server.start()
    return server, bound


def cannot_listen(host: str, port: int) -> ValueError:
    """What a server says that cannot have its address."""
    return ValueError(
        f"cannot listen on {host_and_port(host, port)}: the port is taken or the host is not this machine's; "
        "give another --port (0 lets the kernel choose)"
    )


def max_connections() -> int:
    """Of a server; the process needs some descriptors for other things."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(64, min(_MAX_CONNECTIONS, files - _SPARE_FILES))


def _server_credentials(certificates: Certificates, gate: Gate) -> grpc.ServerCredentials:
    """Ask every caller for a certificate, and show the newest of this process."""
    shown, files = certificates.latest()
    lock = threading.Lock()

    def configuration(files: Any) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(files.key, files.certificate)], files.ca)

    def connection_begins() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        gate.connection_began()
        number, latest = certificates.latest()
        with lock:
            if number == shown:
                return None
            shown = number
        return configuration(latest)

    return grpc.dynamic_ssl_server_credentials(configuration(files), connection_begins, True)


class ErrorInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Lets calls through the gate; turns our exceptions into their gRPC status, whatever kind of method raised them."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def intercept_service(self, continuation: Callable[..., Any], details: grpc.HandlerCallDetails) -> Any:
        """See `grpc.ServerInterceptor`."""
        handler = continuation(details)
        if handler is None:
            return None
        wrap = _mapped_stream if handler.response_streaming else _mapped
        kind = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        return kind(
            wrap(behaviour, details.method, self._gate), handler.request_deserializer, handler.response_serializer
        )


def _mapped(behaviour: Callable[..., Any], method: str, gate: Gate) -> Callable[..., Any]:
    def call(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            gate.admit(method, context)
            return behaviour(request, context)
        except DownpourError as error:
            gate.refused(error)
            return abort(context, error)
        except grpc.RpcError:  # of this call's own requests
            gate.broke_off()
            raise

    return call


def _mapped_stream(behaviour: Callable[..., Iterator[Any]], method: str, gate: Gate) -> Callable[..., Iterator[Any]]:
    def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            gate.admit(method, context)
            yield from behaviour(request, context)
        except DownpourError as error:
            gate.refused(error)
            abort(context, error)

    return call


def backoff_s(attempt: int) -> float:
    """Seconds to wait before attempt 1, 2, ...: 0.05 doubling up to 2, each times a random 0.5 to 1."""
    return min(0.05 * 2.0 ** (attempt - 1), 2.0) * random.uniform(0.5, 1.0)


def call(peer: str, give_up_after_s: float, attempt: Callable[[], Result]) -> Result:
    """Runs `attempt`, a call that is safe to repeat, until it succeeds or fails for good.

    Args:
        peer: Role and address, for messages.
        give_up_after_s: Seconds of failing after which the peer counts as unreachable.
        attempt: Makes the call once.

    Raises:
        Unreachable: Every attempt failed for `give_up_after_s` seconds.
        Unauthenticated: Likewise, and lastly because the peer's certificate is not one of this job's. That may pass,
            too: where addresses are given out anew, an old one may lead to another job for a while.
        DownpourError: What the peer answered, when trying again cannot help.
    """
    start = time.monotonic()
    attempts = 0
    while True:
        try:
            return attempt()
        except NotReady as error:
            reason = str(error)
        except grpc.RpcError as error:
            refusal = from_rpc_error(error)
            if isinstance(refusal, NotYet):  # the peer is there, and has waited for us
                start, attempts = time.monotonic(), 0
                continue
            reason = _reason_to_retry(error, refusal)
        attempts += 1
        waited = time.monotonic() - start
        if waited > give_up_after_s:
            if stranger := next((meaning for sign, meaning in _NOT_OURS.items() if sign in reason), None):
                raise Unauthenticated(f"{peer} is not one of this job: {stranger}")
            if any(sign in reason for sign in _MAYBE_REFUSED):
                reason += " (it may have refused this process's certificate: it must be of the same CA)"
            raise Unreachable(
                f"{peer} did not answer for {waited:.0f} s ({attempts} tries): {reason}; "
                "check that it runs and that the address is right"
            )
        if attempts % 8 == 0:
            logging.info("still waiting for %s after %.0f s: %s", peer, waited, reason)
        time.sleep(backoff_s(attempts))


def _reason_to_retry(error: grpc.RpcError, refusal: DownpourError | None) -> str:
    """What a failed call says, if it may succeed later; raises what cannot."""
    if refusal is not None and not isinstance(refusal, NotReady):
        raise refusal from None
    if refusal is None and error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        if "larger than max" in str(error.details()):
            raise MalformedChunk(f"{error.details()}; slice the variable, or make the batch smaller") from None
    elif refusal is None and error.code() not in _TRANSIENT:
        raise error
    return str(refusal or error.details() or error.code().name)
