"""Serves `/metrics` over HTTP, in plain text, to every peer: Prometheus' side of it needs no certificate.

Like the health service it answers one question, `GET /metrics`, and tells numbers only: no token, no parameter, no
example, no address. Peers are limited: 16 connections at a time, of which the oldest is ended for a new one, and 5 s
for each read and write.

Threads: one accepts, one serves each connection; all call the collectors, which must not wait.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from downpour import __version__
from downpour.launch.observe.metrics.scrape import Scrape, Source

PATH = "/metrics"
_TIMEOUT_S = 5.0
_MOST = 16


class MetricsServer:
    """Serves metrics until `close`.

    Args:
        port: Port to listen on; 0 lets the kernel choose.
        host: Address to listen on; "" for every interface.
        add: Functions that add this process' metrics.

    Attributes:
        port: The port it listens on.

    Raises:
        ValueError: The address cannot be bound.
    """

    def __init__(self, port: int, host: str, *add: Callable[[Scrape], None]) -> None:
        registry = CollectorRegistry()
        registry.register(Source(_build, *add))
        ProcessCollector(registry=registry)
        try:
            self._server = _Server(host, port, registry)
        except (OSError, OverflowError) as error:
            where = f"{host}:{port}" if host else f"port {port}"
            raise ValueError(
                f"cannot listen on {where} for metrics ({getattr(error, 'strerror', None) or error}); give another "
                "--metrics_port, or 0 for none"
            ) from None
        self.port: int = self._server.server_address[1]
        # Daemon threads: a role that ends does not wait for a peer that reads slowly.
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops the server."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    allow_reuse_address = True
    allow_reuse_port = False

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._open: OrderedDict[int, socket.socket] = OrderedDict()  # touched by several threads, one operation each
        self.address_family = socket.AF_INET6 if ":" in host or (not host and socket.has_ipv6) else socket.AF_INET
        super().__init__((host or ("::" if self.address_family == socket.AF_INET6 else ""), port), _Handler)

    def server_bind(self) -> None:
        """Binds every interface of both families if the host is "::"."""
        if self.address_family == socket.AF_INET6:
            with contextlib.suppress(OSError):
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serves a connection in a thread of its own; ends the oldest of too many."""
        while len(self._open) >= _MOST:
            with contextlib.suppress(KeyError, OSError):
                self._open.popitem(last=False)[1].shutdown(socket.SHUT_RDWR)
        self._open[id(request)] = request
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Ends a connection."""
        self._open.pop(id(request), None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: the peer has gone, or was too slow."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _TIMEOUT_S

    def do_GET(self) -> None:
        """Answers `/metrics`."""
        if self.path.partition("?")[0] != PATH:
            self._answer(404, "text/plain; charset=utf-8", f"there is only {PATH}\n".encode())
            return
        encode, kind = choose_encoder(self.headers.get("Accept", ""))
        self._answer(200, kind, encode(self.server.registry))

    def version_string(self) -> str:
        """Tells nothing of Python's version."""
        return "downpour"

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing: a scrape comes every few seconds."""

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def _build(scrape: Scrape) -> None:
    scrape.gauge("downpour_build_info", "1; the label is the version of Downpour.", 1, version=__version__)
