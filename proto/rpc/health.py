"""Health for probes without TLS: grpc.health.v1.Health on a port of its own, in plain text.

Kubernetes' kubelet probes with `grpc: {port: 2224, service: ready}` and cannot present a certificate; so this server
answers every peer, but only two questions: whether the process is alive (service "") and whether it is ready to do its
work (service "ready"). It has no `Watch`.

Threads: two gRPC threads call `ready`, which must return at once.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

READY = "ready"

# Limits, since any peer on the network may connect.
_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 4096),
    ("grpc.max_allowed_incoming_connections", 256),
    ("grpc.max_concurrent_streams", 4),
    ("grpc.server_handshake_timeout_ms", 2000),
    ("grpc.max_connection_idle_ms", 5000),
    ("grpc.max_connection_age_ms", 60_000),
    ("grpc.max_connection_age_grace_ms", 1000),
)


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # grpc has no types
    """Serves health checks until `close`.

    Args:
        port: Port to listen on, on every interface; 0 lets the kernel choose.
        ready: Returns whether the process is ready to do its work.

    Attributes:
        port: The port it listens on.

    Raises:
        ValueError: The port is taken.
    """

    def __init__(self, port: int, ready: Callable[[], bool]) -> None:
        self._ready = ready
        self._server = grpc.server(
            ThreadPoolExecutor(2, thread_name_prefix="health"), options=_OPTIONS, maximum_concurrent_rpcs=64
        )
        health_pb2_grpc.add_HealthServicer_to_server(self, self._server)
        try:
            self.port = self._server.add_insecure_port(f"[::]:{port}")
        except RuntimeError:
            raise ValueError(f"cannot listen on port {port} for health; give another --health_port") from None
        self._server.start()

    def Check(self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext) -> object:
        """See grpc.health.v1."""
        if request.service not in ("", READY):
            context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service[:40]!r}; ask for '' or '{READY}'")
        serves = not request.service or self._ready()
        states = health_pb2.HealthCheckResponse
        return states(status=states.SERVING if serves else states.NOT_SERVING)

    def close(self) -> None:
        """Stops the server."""
        self._server.stop(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
