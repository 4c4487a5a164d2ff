"""Serves `/metrics` over HTTP, in plain text, to every peer: Prometheus' side of it needs no certificate.

Like the health service it answers one question, `GET /metrics`, and tells numbers only: no token, no parameter, no
example, no address. Peers are limited: 16 connections at a time, of which the oldest is ended for a new one, and 10 s
for each of them.

Threads: one accepts, one serves each connection; all call the collectors, which must not wait.
"""

from __future__ import annotations

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any, Self

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from downpour import __version__
from downpour.launch.observe.bounded import BoundedServer
from downpour.launch.observe.metrics.scrape import Scrape, Source

PATH = "/metrics"
_MOST, _WITHIN_S = 16, 10.0  # connections; seconds from one to the end of its answer


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
        self.port = self._server.port
        self._server.start("metrics")

    def close(self) -> None:
        """Stops the server."""
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Server(BoundedServer):
    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        self.registry = registry
        super().__init__(host, port, _Handler, most=_MOST, within_s=_WITHIN_S)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: the peer has gone, or was too slow."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _WITHIN_S

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
