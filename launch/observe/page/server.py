"""The server of the page: a few answers over HTTP or HTTPS, within strict limits.

| path | what |
|---|---|
| `/` | the page; the login form for who does not show the token |
| `/page.css`, `/page.js`, `/topology.js` | its style, and its scripts |
| `/status.json` | `downpour.worker.chief.progress.as_json`, with `time`, `findings` and, at the end, `summary` |
| `/history.json?since=LINE` | the curves: `downpour.launch.observe.page.history` |
| `POST /login` | takes the token from the form |

Threads: one accepts connections, and each connection has one until its answer is sent; there are no connections that
stay. While nobody looks, nothing is read or computed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http
import io
import json
import math
import socket
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from absl import logging

from downpour.launch.observe.bounded import BoundedServer
from downpour.launch.observe.findings import findings
from downpour.launch.observe.page.access import Access, check
from downpour.launch.observe.page.history import Curves
from downpour.proto.http2.sockets import host_and_port
from downpour.proto.security.config import PLAIN, Security

MOST_CONNECTIONS = 32  # with one more the oldest ends
WITHIN_S = 10.0  # from the connection to the end of the answer
MOST_REQUEST_BYTES = 16 << 10  # request line and fields: other servers of this host name may have set long cookies
_MOST_FORM_BYTES = 2 << 10
_SILENCE_S = 5.0
_MOST_AT_ONCE, _A_SECOND = 64, 32  # connections: who opens more waits, so that the training keeps its processor
_STATUS_FOR_S = 0.5  # one status serves all who ask within it
_LOOKED_S, _LAST_LOOK_S = 10.0, 3.0  # who has looked so lately sees the end, too: the page asks every 2 s
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Connection": "close",
}
_ANY_HOST = ("0.0.0.0", "::", "[::]")
_HTML, _JSON = "text/html; charset=utf-8", "application/json"
_SCRIPT = "text/javascript; charset=utf-8"
_TYPES = {"page.html": _HTML, "page.css": "text/css; charset=utf-8", "page.js": _SCRIPT, "topology.js": _SCRIPT}
_LOGIN = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Downpour</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="page.css">
<main class="login">
<h1>Downpour</h1>
<form method="post" action="login">
<label for="token">Token of the job</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus
 aria-describedby="hint">
<p id="hint">{hint}</p>
<button>Show the run</button>
</form>
</main>
</html>
"""
_HINT = "It is in the file that every process of the job was given as --token_file."
_WRONG = "That is not this job's token."


class PageServer(BoundedServer):
    """Serves the page until `close`.

    Args:
        host: Interface to listen on.
        port: Port to listen on; 0 lets the kernel choose.
        status: Returns the status, as JSON values; called by other threads.
        history: Path of the run's `history.jsonl`.
        security: Security settings of this process.

    Attributes:
        access: Who is admitted.
        files: Contents of the page's files, by name.
        url: Address for a browser.

    Raises:
        ValueError: The page may not be served on that interface, or the port is taken.
    """

    request_queue_size = MOST_CONNECTIONS

    def __init__(
        self, host: str, port: int, status: Callable[[], Mapping[str, Any]], history: Path, security: Security = PLAIN
    ) -> None:
        check(host, security)
        self.files = {name: Path(__file__).with_name(name).read_bytes() for name in _TYPES}
        self._status, self._curves = status, Curves(history)
        self._asking, self._reading = threading.Lock(), threading.Lock()
        self._cached, self._cached_s = b"", -math.inf  # guarded by `_asking`
        self._accepted_s = 0.0  # when the next connection is due at the allowed pace
        try:
            super().__init__(host, port, _Handler, most=MOST_CONNECTIONS, within_s=WITHIN_S)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(
                f"cannot listen on {host}:{port} for the page: {reason}; give another --page_port"
            ) from None
        self.access = Access(host, self.port, security)
        # On loopback in plain text: no certificate of the job names it, and nobody else can listen.
        self._certificates = security.certificates if self.access.is_secure else None
        named = socket.gethostname() if host in _ANY_HOST else host.strip("[]")
        self.url = f"http{'s' * self.access.is_secure}://{host_and_port(named, self.port)}"
        self.start("page")

    def close(self) -> None:
        """Stops serving; who looks sees the end before."""
        if time.monotonic() < self._cached_s + _LOOKED_S:
            time.sleep(_LAST_LOOK_S)
        super().close()

    def status(self) -> bytes:
        """The newest status, as JSON."""
        with self._asking:
            if time.monotonic() >= self._cached_s + _STATUS_FOR_S:
                found = {"time": time.time(), **self._status()}
                with self._reading:
                    progress = self._curves.progress()
                found["findings"] = [dataclasses.asdict(one) for one in findings(found, progress)]
                self._cached, self._cached_s = _dumped(found), time.monotonic()
            return self._cached

    def curves(self, since: int) -> bytes:
        """The points of the curves after so many lines of the history, as JSON."""
        with self._reading:
            return _dumped(self._curves.after(since))

    def process_request(self, request: Any, client_address: Any) -> None:
        """Gives a new connection a thread, no more of them a second than are allowed."""
        now = time.monotonic()
        self._accepted_s = max(self._accepted_s, now - _MOST_AT_ONCE / _A_SECOND) + 1 / _A_SECOND
        if self._accepted_s > now:
            time.sleep(self._accepted_s - now)
        super().process_request(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answers a connection; in a thread of its own."""
        if self._certificates is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(_SILENCE_S)
        with self._certificates.for_browsers().wrap_socket(
            request, server_side=True, do_handshake_on_connect=False
        ) as encrypted:
            self.encrypted(client_address, encrypted)
            encrypted.do_handshake()
            super().finish_request(encrypted, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs what is a mistake of this process; what peers do is none."""
        if not isinstance(sys.exception(), OSError):
            logging.error("the page cannot answer", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: PageServer
    timeout = _SILENCE_S

    def setup(self) -> None:
        super().setup()
        self.rfile = _Bounded(self.rfile)  # type: ignore[assignment]

    def handle(self) -> None:
        try:
            super().handle()
        except _TooLarge:
            self.requestline, self.request_version, self.command = "", "HTTP/1.0", ""
            self.send_error(431)

    def do_GET(self) -> None:
        access, (path, _, query) = self.server.access, self.path.partition("?")
        if not access.knows_host(self.headers.get("Host")):
            self._answer(421, "This page is served on this machine's own names only.\n")
        elif path == "/page.css":
            self._answer(200, self.server.files["page.css"], _TYPES["page.css"])
        elif not access.admits(self.headers):
            if path == "/":
                self._login(401, _HINT)
            else:
                self._answer(401, "The token of the job is needed.\n")
        elif path == "/":
            self._answer(200, self.server.files["page.html"], _HTML)
        elif path in ("/page.js", "/topology.js"):
            self._answer(200, self.server.files[path[1:]], _SCRIPT)
        elif path == "/status.json":
            self._answer(200, self.server.status(), _JSON)
        elif path == "/history.json":
            self._history(query)
        else:
            self._answer(404, "There is no such page.\n")

    def do_POST(self) -> None:
        access = self.server.access
        length = self.headers.get("Content-Length") or ""
        if not access.knows_host(self.headers.get("Host")):
            self._answer(421, "This page is served on this machine's own names only.\n")
        elif self.path != "/login" or not access.has_token:
            self._answer(405, "Only GET is answered here.\n")
        elif not length.isdecimal() or int(length) > _MOST_FORM_BYTES:
            self._answer(413, "The form is too long.\n")
        else:
            form = urllib.parse.parse_qs(self.rfile.read(int(length)).decode(errors="replace"), max_num_fields=4)
            cookie = access.cookie(form.get("token", [""])[0])
            if cookie:
                self._answer(303, "", headers={"Location": "/", "Set-Cookie": cookie})
            else:
                self._login(401, _WRONG)

    def _history(self, query: str) -> None:
        since = urllib.parse.parse_qs(query, max_num_fields=4).get("since", ["0"])[0]
        try:
            self._answer(200, self.server.curves(int(since[:20])), _JSON)
        except ValueError:
            self._answer(400, "since is the number `next` of an earlier answer.\n")

    def _login(self, code: int, hint: str) -> None:
        self._answer(code, _LOGIN.format(hint=hint), _HTML)

    def _answer(
        self, code: int, body: str | bytes, kind: str = "text/plain; charset=utf-8", headers: Mapping[str, str] = {}
    ) -> None:
        content = body.encode() if isinstance(body, str) else body
        self.request_version = "HTTP/1.0"  # else what is no request gets an answer without headers
        self.send_response_only(code)
        challenge = {"WWW-Authenticate": 'Bearer realm="downpour"'} if code == 401 else {}
        found = {"Content-Type": kind, "Content-Length": str(len(content)), **_HEADERS, **challenge, **headers}
        for name, value in found.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        with contextlib.suppress(OSError):
            self._answer(405 if code == 501 else code, f"{http.HTTPStatus(code).phrase}\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line a request would fill the log."""


class _TooLarge(Exception):
    """A request has more bytes than are read."""


class _Bounded:
    """Reads at most `MOST_REQUEST_BYTES` in lines."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._file, self._left = file, MOST_REQUEST_BYTES

    def readline(self, size: int = -1) -> bytes:
        line = self._file.readline(self._left + 1)
        self._left -= len(line)
        if self._left < 0:
            raise _TooLarge
        return line

    def read(self, size: int) -> bytes:
        return self._file.read(size)

    @property
    def closed(self) -> bool:
        return self._file.closed

    def close(self) -> None:
        self._file.close()


def _dumped(value: Any) -> bytes:
    try:
        text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(_finite(value), separators=(",", ":"))
    return text.encode()


def _finite(value: Any) -> Any:
    """The same with None for NaN and infinity, which JSON has not."""
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
