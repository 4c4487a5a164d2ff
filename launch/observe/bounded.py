"""An HTTP server for peers that nobody has vouched for: few connections, each with a deadline.

Threads: one accepts connections and ends those that are too old; each connection has one until its answer is sent.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_LOOK_EVERY_S = 0.5  # for connections that are too old


class BoundedServer(ThreadingHTTPServer):
    """Listens from construction on, and answers from `start` until `close`.

    Args:
        host: Address to listen on; "" for every interface of both families.
        port: Port to listen on; 0 lets the kernel choose.
        handler: Answers the request of a connection.
        most: Number of connections; with one more the oldest ends.
        within_s: Seconds from the connection to the end of the answer.

    Attributes:
        port: The port it listens on.

    Raises:
        OSError, OverflowError: The address cannot be bound.
    """

    daemon_threads = True  # a process that ends does not wait for a peer that reads slowly
    block_on_close = False
    request_queue_size = 128
    allow_reuse_address = True
    allow_reuse_port = False

    def __init__(
        self, host: str, port: int, handler: type[BaseHTTPRequestHandler], *, most: int, within_s: float
    ) -> None:
        self._most, self._within_s = most, within_s
        self._lock = threading.Lock()
        self._open: dict[Any, tuple[socket.socket, float]] = {}  # by the peer's address, since when; by `_lock`
        self.address_family = socket.AF_INET6 if ":" in host or (not host and socket.has_ipv6) else socket.AF_INET
        bound = host.strip("[]") or ("::" if self.address_family == socket.AF_INET6 else "")
        super().__init__((bound, port), handler)
        self.port: int = self.server_address[1]

    def start(self, name: str) -> None:
        """Starts the thread that accepts connections."""
        threading.Thread(target=self.serve_forever, args=(_LOOK_EVERY_S,), name=name, daemon=True).start()

    def close(self) -> None:
        """Stops serving."""
        self.shutdown()
        self.server_close()

    def server_bind(self) -> None:
        """Binds; without the base's look-up of this machine's name, which may take seconds."""
        if self.address_family == socket.AF_INET6:
            with contextlib.suppress(OSError):
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Gives a new connection a thread, and ends the oldest if there are too many."""
        with self._lock:
            self._open[client_address] = request, time.monotonic()
            if len(self._open) > self._most:
                _cut(self._open.pop(next(iter(self._open)))[0])
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Ends connections that take too long."""
        with self._lock:
            for peer, (one, since_s) in list(self._open.items()):
                if time.monotonic() > since_s + self._within_s:
                    _cut(one)
                    del self._open[peer]

    def encrypted(self, client_address: Any, connection: socket.socket) -> None:
        """Notes that a connection goes on as another object, which is the one to be ended."""
        with self._lock:
            if client_address in self._open:
                self._open[client_address] = connection, self._open[client_address][1]

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serves a connection; in a thread of its own."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._open.pop(client_address, None)


def _cut(connection: socket.socket) -> None:
    """Has every call on a connection return at once, in whatever thread."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # of an encrypted one, too: no message to the peer
