"""Every conformance case against our server, and that every case can fail."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.conformance import run
from tests.conformance.cases import CASES
from tests.conformance.wire import ACK, GOAWAY, PREFACE, SETTINGS, frame

_SHORT_S = 0.15
_PATIENT_S = 10.0  # on a machine that is busy with other tests
_GREETING = {"generic/1/1 the server's first frame is SETTINGS", "http2/3.5/1 the client's preface"}
_HTTP_1_1_REQUIRED = frame(GOAWAY, 0, 0, bytes(7) + b"\x0d")


def test_names_are_unique_and_many() -> None:
    names = [one.name for one in CASES]
    assert len(set(names)) == len(names) >= 140


@pytest.mark.process
def test_our_server_passes_every_case() -> None:
    with run.serving("ours") as address:
        outcomes = run.run_all(run.selected(None, "ours"), address, _PATIENT_S)
    failed = run.failures(outcomes)
    assert not failed, f"python -m tests.conformance.run --server=ours\n{failed}"
    assert {one.status for one in outcomes} == {"passed"}


@contextlib.contextmanager
def _parrot(answer: bytes) -> Iterator[str]:
    """The address of a server that greets, and has the same answer to whatever comes then."""

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(frame(SETTINGS, 0, 0) + frame(SETTINGS, ACK, 0))
            num_read = 0
            while got := connection.recv(1 << 16):
                if num_read <= len(PREFACE) + 24 < num_read + len(got):  # SETTINGS with a value, and its ACK
                    connection.sendall(answer)
                num_read += len(got)

    def accept() -> None:
        with contextlib.suppress(OSError):  # it has been shut down
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()


@pytest.mark.parametrize("answer", [b"", _HTTP_1_1_REQUIRED], ids=["nothing", "a wrong code"])
def test_every_case_fails_against_a_server_that_does_not_understand(answer: bytes) -> None:
    by_hand = [one for one in CASES if not one.name.startswith("grpc/interop")]
    with _parrot(answer) as address:
        outcomes = run.run_all(by_hand, address, _SHORT_S)
    assert {one.name for one in outcomes if one.status == "passed"} == _GREETING
