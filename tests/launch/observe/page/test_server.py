"""The page's server over real connections: who is admitted, and what a peer can occupy."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from downpour.launch import certs
from downpour.launch.observe.page import server as server_module
from downpour.launch.observe.page.server import MOST_CONNECTIONS, MOST_REQUEST_BYTES, PageServer
from downpour.proto.security.config import PLAIN, Security
from tests import certificates
from tests.conftest import wait_until

TOKEN = "a-token-of-this-job-0123456789"
SECRET = "the run's own name"


class Status:
    """The chief's part: counts how often it is asked."""

    asked = 0

    def __call__(self) -> dict[str, Any]:
        self.asked += 1
        return {"state": "training", "recipe": SECRET, "loss": float("nan")}


@pytest.fixture
def status() -> Status:
    return Status()


@pytest.fixture
def page(tmp_path: Path, status: Status) -> Iterator[PageServer]:
    yield from _serving(tmp_path, status, PLAIN)


@pytest.fixture
def guarded(tmp_path: Path, status: Status) -> Iterator[PageServer]:
    yield from _serving(tmp_path, status, Security(token=TOKEN))


def _serving(folder: Path, status: Status, security: Security) -> Iterator[PageServer]:
    (folder / "history.jsonl").write_text('{"kind": "loss", "step": 3, "seconds": 1.5, "loss": 0.25}\n')
    server = PageServer("127.0.0.1", 0, status, folder / "history.jsonl", security)
    yield server
    server._cached_s = -1e9  # nobody looks any more
    server.close()


def ask(
    server: PageServer, path: str, method: str = "GET", body: str | None = None, **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)) as connection:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer, answer.read()


def raw(server: PageServer, data: bytes) -> bytes:
    with closing(socket.create_connection(("127.0.0.1", server.server_port), 5)) as connection:
        connection.sendall(data)
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                found += piece
        return found


def test_it_serves_the_page_and_what_the_chief_knows(page: PageServer, status: Status) -> None:
    assert page.url == f"http://127.0.0.1:{page.server_port}" and status.asked == 0
    for path, kind in (
        ("/", "text/html"),
        ("/page.css", "text/css"),
        ("/page.js", "text/javascript"),
        ("/topology.js", "text/javascript"),
    ):
        answer, body = ask(page, path)
        assert answer.status == 200 and body and str(answer.getheader("Content-Type")).startswith(kind)
        assert SECRET.encode() not in body
        assert "default-src 'none'" in str(answer.getheader("Content-Security-Policy"))
        assert "frame-ancestors 'none'" in str(answer.getheader("Content-Security-Policy"))
        assert (
            answer.getheader("X-Content-Type-Options") == "nosniff" and answer.getheader("Cache-Control") == "no-store"
        )
    found = json.loads(ask(page, "/status.json")[1])
    assert found["recipe"] == SECRET and found["loss"] is None and abs(found["time"] - time.time()) < 60
    ask(page, "/status.json")
    assert status.asked == 1, "one answer serves all who ask at the same time"
    history = json.loads(ask(page, "/history.json")[1])
    assert history["curves"] == {"loss": [[3, 1.5, 0.25]]}
    assert json.loads(ask(page, f"/history.json?since={history['next']}")[1])["curves"] == {"loss": []}


def test_nothing_but_get_is_answered(page: PageServer) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "HEAD"):
        assert ask(page, "/status.json", method)[0].status == 405
    assert ask(page, "/../../etc/passwd")[0].status == 404
    for bad in ("x", "1e3", "9" * 100000):
        assert ask(page, f"/history.json?since={bad}")[0].status in (400, 431)


def test_a_name_that_was_made_to_lead_here_is_refused(page: PageServer) -> None:
    for host, code in (
        ("attacker.example", 421),
        (f"attacker.example:{page.server_port}", 421),
        ("127.0.0.1.attacker.example", 421),
        ("", 421),
        ("localhost:8080", 200),  # a tunnel
        ("LOCALHOST", 200),
        ("[::1]:8080", 200),
    ):
        assert ask(page, "/status.json", Host=host)[0].status == code, host


def test_a_stranger_sees_a_login_form_and_nothing_of_the_run(guarded: PageServer, status: Status) -> None:
    for headers in (
        {},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": TOKEN},
        {"Authorization": "Bearer "},
        {"Cookie": f"downpour-{guarded.server_port}={TOKEN}"},
        {"Cookie": f"downpour-{guarded.server_port}="},
    ):
        answer, body = ask(guarded, "/", **headers)
        assert answer.status == 401 and b"Token of the job" in body and SECRET.encode() not in body
        for path in ("/status.json", "/history.json", "/page.js", "/other"):
            answer, body = ask(guarded, path, **headers)
            assert (answer.status, body) == (401, b"The token of the job is needed.\n")
    assert status.asked == 0
    assert ask(guarded, "/status.json", Authorization=f"Bearer {TOKEN}")[0].status == 200


def test_the_token_is_exchanged_for_a_cookie_that_does_not_hold_it(guarded: PageServer) -> None:
    answer, body = ask(guarded, "/login", "POST", "token=wrong")
    assert answer.status == 401 and b"not this job" in body and answer.getheader("Set-Cookie") is None
    answer, _ = ask(guarded, "/login", "POST", urllib.parse.urlencode({"token": TOKEN}))
    cookie = str(answer.getheader("Set-Cookie"))
    assert answer.status == 303 and answer.getheader("Location") == "/"
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and TOKEN not in cookie and "Secure" not in cookie
    assert ask(guarded, "/status.json", Cookie=f"a; b=\x01; {cookie.partition(';')[0]}")[0].status == 200
    assert ask(guarded, "/login", "POST", "token=" + "x" * 5000)[0].status == 413
    assert raw(guarded, b"POST /login HTTP/1.0\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n").startswith(
        b"HTTP/1.0 413"
    )


def test_a_request_of_too_many_bytes_is_refused(page: PageServer) -> None:
    long = b"x" * MOST_REQUEST_BYTES
    for request in (b"GET /" + long, b"GET / HTTP/1.0\r\nA: " + long, b"GET / HTTP/1.0\r\n" + b"a: b\r\n" * 4000):
        answer = raw(page, request)[:12]
        assert answer in (b"HTTP/1.0 431", b""), request[:30]  # nothing where the kernel discards it: bytes are unread
    assert raw(page, b"GET / HTTP/1.0\r\n" + b"a: b\r\n" * 90 + b"\r\n").startswith(b"HTTP/1.0 421")
    assert raw(page, b"nonsense\r\n\r\n").startswith(b"HTTP/1.0 400")


def test_who_is_slow_is_cut_off_and_who_opens_too_many_makes_room(
    page: PageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "_within_s", 1.0)
    first = socket.create_connection(("127.0.0.1", page.server_port), 5)
    begin = time.monotonic()
    with closing(first):
        with pytest.raises(OSError):
            while time.monotonic() < begin + 60:  # a byte now and then: never silent, never done
                first.sendall(b"G")
                time.sleep(0.1)
        assert time.monotonic() < begin + 30
    monkeypatch.setattr(page, "_within_s", 60.0)
    many = [socket.create_connection(("127.0.0.1", page.server_port), 5) for _ in range(MOST_CONNECTIONS + 8)]
    try:
        assert ask(page, "/status.json")[0].status == 200
        assert many[0].recv(10) == b"", "the oldest was ended"
        assert len(page._open) <= MOST_CONNECTIONS
    finally:
        for one in many:
            one.close()


def test_where_it_may_not_be_served_one_error_says_what_to_do(tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    with pytest.raises(ValueError, match=r"--page_host=0.0.0.0 would show .* --token_file"):
        PageServer("0.0.0.0", 0, dict, history)
    with pytest.raises(ValueError, match="in plain text"):
        PageServer("0.0.0.0", 0, dict, history, Security(token=TOKEN))
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"cannot listen on 127.0.0.1:{port} for the page: .*--page_port"):
            PageServer("127.0.0.1", port, dict, history)


def test_beyond_loopback_it_is_served_over_the_jobs_tls(tmp_path: Path, status: Status) -> None:
    certs.make(certificates.JOB, tmp_path)
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    security = certificates.security(tmp_path, "chief", token_file)
    server = PageServer("0.0.0.0", 0, status, tmp_path / "history.jsonl", security)
    try:
        assert server.url.startswith("https://")
        context = ssl.create_default_context(cafile=str(tmp_path / "chief" / "ca.crt"))
        plain = socket.create_connection(("127.0.0.1", server.server_port), 5)
        with context.wrap_socket(plain, server_hostname=f"chief.{certificates.JOB}.downpour") as connection:
            connection.sendall(f"GET /status.json HTTP/1.0\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.0 200") and SECRET.encode() in answer
        assert "Secure" in str(server.access.cookie(TOKEN))
        assert raw(server, b"GET / HTTP/1.0\r\n\r\n") == b"", "plain text is not answered"
        wait_until(lambda: not server._open, "the end of every connection", 10)
    finally:
        server._cached_s = -1e9
        server.close()


def test_who_looks_sees_the_end(tmp_path: Path, status: Status, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_LAST_LOOK_S", 0.5)
    for looks, least, most in ((False, 0.0, 30.0), (True, 0.5, 30.0)):
        server = PageServer("127.0.0.1", 0, status, tmp_path / "history.jsonl")
        if looks:
            ask(server, "/status.json")
        begin = time.monotonic()
        server.close()
        assert least <= time.monotonic() - begin < most
        with pytest.raises(OSError):
            ask(server, "/")
