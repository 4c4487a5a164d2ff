"""Proxies pass bytes on, and break them as they are told."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from tests.chaos.proxy import Proxies
from tests.conftest import wait_until

TIMEOUT_S = 20.0


class Echo(socketserver.ThreadingTCPServer):
    """Sends back what it receives, and remembers it by connection."""

    daemon_threads = True

    def __init__(self) -> None:
        self.received: list[bytearray] = []
        super().__init__(("127.0.0.1", 0), self._Handler)

    class _Handler(socketserver.BaseRequestHandler):
        server: Echo

        def handle(self) -> None:
            mine = bytearray()
            self.server.received.append(mine)
            try:
                while data := self.request.recv(1 << 16):
                    mine += data
                    self.request.sendall(data)
            except OSError:
                pass


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def proxies() -> Iterator[Proxies]:
    with Proxies() as proxies:
        yield proxies


@pytest.fixture
def port(echo: Echo, proxies: Proxies) -> int:
    """Of a proxy before the echo."""
    return proxies.add("echo", echo.server_address[1])


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), TIMEOUT_S)


def say(client: socket.socket, data: bytes) -> bytes:
    """What comes back."""
    client.sendall(data)
    return hear(client, len(data))


def hear(client: socket.socket, num_bytes: int) -> bytes:
    answer = b""
    while len(answer) < num_bytes:
        more = client.recv(num_bytes - len(answer))
        assert more, "the connection ended"
        answer += more
    return answer


def is_cut(client: socket.socket) -> bool:
    """Whether the connection has ended, or ends now."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def test_passes_bytes_both_ways(port: int, echo: Echo) -> None:
    sent = bytes(range(256)) * 4096
    with connect(port) as client:
        answers: list[bytes] = []
        reading = threading.Thread(target=lambda: answers.append(hear(client, len(sent))))
        reading.start()
        client.sendall(sent)
        reading.join(TIMEOUT_S)
    assert answers == [sent]
    assert bytes(echo.received[0]) == sent


def test_cuts_what_is_open_and_nothing_later(port: int, proxies: Proxies) -> None:
    with connect(port) as one, connect(port) as other:
        assert say(one, b"a") + say(other, b"b") == b"ab"
        assert proxies.begin("cut", "echo") == 2
        assert is_cut(one) and is_cut(other)
    with connect(port) as later:
        assert say(later, b"c") == b"c"
    assert proxies.struck("cut", "echo") == 2


def test_a_cut_of_nothing_is_not_counted(port: int, proxies: Proxies) -> None:
    assert proxies.begin("cut", "echo") == 0 == proxies.struck("cut", "echo")


def test_holds_bytes_back_until_calm(port: int, proxies: Proxies, echo: Echo) -> None:
    with connect(port) as client:
        assert say(client, b"before") == b"before"
        proxies.begin("delay", "echo")
        assert proxies.struck("delay", "echo") == 0
        client.sendall(b"held")
        wait_until(lambda: proxies.struck("delay", "echo") == 1, "the delay")
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(1)
        assert bytes(echo.received[0]) == b"before"
        client.settimeout(TIMEOUT_S)
        proxies.calm("echo")
        assert hear(client, 4) == b"held"
        assert say(client, b"after") == b"after"
    assert proxies.struck("delay", "echo") == 1


def test_duplicates_new_connections_and_throws_the_answers_away(port: int, proxies: Proxies, echo: Echo) -> None:
    with connect(port) as early:
        assert say(early, b"x") == b"x"
        proxies.begin("duplicate", "echo")
        assert is_cut(early)
    with connect(port) as client:
        assert say(client, b"twice") == b"twice"
        wait_until(lambda: [bytes(r) for r in echo.received].count(b"twice") == 2, "the copy")
        assert proxies.struck("duplicate", "echo") == 1
        proxies.calm("echo")
        assert say(client, b" once") == b" once"
    assert sorted(bytes(r) for r in echo.received) == [b"twice", b"twice once", b"x"]


def test_a_server_that_is_down_looks_down_and_one_that_is_back_is_found(proxies: Proxies, echo: Echo) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: refuses
        down = proxies.add("down", taken.getsockname()[1])
        with connect(down) as client:
            assert is_cut(client)


def test_ends_with_open_connections(echo: Echo) -> None:
    begin = time.monotonic()
    with Proxies() as proxies, connect(proxies.add("echo", echo.server_address[1])) as client:
        assert say(client, b"a") == b"a"
    assert time.monotonic() - begin < TIMEOUT_S
