"""Servers and channels with certificates, in this process: renewal, and how many calls a server takes."""

from __future__ import annotations

import functools
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from downpour.launch import certs
from downpour.proto.errors import Unauthenticated
from downpour.proto.rpc import retry
from downpour.proto.rpc.client import Channel
from downpour.proto.rpc.server import CALLS_PER_THREAD, Server
from downpour.proto.security.certificates import Certificates
from downpour.proto.security.config import Security
from downpour.proto.security.gate import Gate
from tests.certificates import JOB
from tests.conftest import wait_until

_PATH = "/downpour.v1.ParameterServer/Status"


class Holding:
    """Answers at once, or, when it is asked to hold, only after `let_go`."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.held = 0

    def status(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        if request == b"hold":
            self.held += 1
            self.let_go.wait(60)
        return b"answer"

    def handler(self) -> grpc.GenericRpcHandler:
        methods = {"Status": grpc.unary_unary_rpc_method_handler(self.status, bytes, bytes)}
        return grpc.method_handlers_generic_handler("downpour.v1.ParameterServer", methods)


@pytest.fixture
def holding() -> Holding:
    return Holding()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    certs.make(JOB, tmp_path / "certs")
    return tmp_path / "certs"


@pytest.fixture
def served(folder: Path, holding: Holding) -> Iterator[tuple[str, Security, Gate]]:
    """Address, security and gate of a server."""
    security = Security(Certificates(folder / "ps", "ps"))
    gate = Gate(security)
    one = Server(holding.handler(), "127.0.0.1", 0, 2, security, gate)
    yield f"127.0.0.1:{one.port}", security, gate
    holding.let_go.set()
    one.stop(None).wait()


def look_now(security: Security) -> None:
    """Instead of in a second."""
    assert security.certificates is not None
    security.certificates._look_at = 0.0


def ask(channel: Channel) -> bytes:
    answer: bytes = retry.call("a shard", 0.5, lambda: channel.unary_unary(_PATH, bytes, bytes)(b"", timeout=5))
    return answer


def test_renewed_certificates_are_used_by_both_sides_and_connections_go_on(
    served: tuple[str, Security, Gate], folder: Path, tmp_path: Path
) -> None:
    address, security, gate = served
    mine, late = (Security(Certificates(folder / "worker", "worker")) for _ in range(2))
    channel = Channel(address, mine)
    assert ask(channel) == b"answer"

    certs.make(JOB, tmp_path / "renewed")  # another CA, so that nobody can mix them up
    shutil.copytree(tmp_path / "renewed" / "ps", folder / "ps", dirs_exist_ok=True)
    look_now(security)
    assert ask(channel) == b"answer"
    assert gate.counts().connections == 1, "the connection did not go on"
    stale = Channel(address, late)
    with pytest.raises(Unauthenticated, match="not signed by the CA"):
        ask(stale)

    shutil.copytree(tmp_path / "renewed" / "worker", folder / "worker", dirs_exist_ok=True)
    before = gate.counts().connections_admitted
    for one, channel_of_one in ((mine, channel), (late, stale)):
        look_now(one)
        assert ask(channel_of_one) == b"answer"
    assert gate.counts().connections_admitted == before + 2
    channel.close()
    stale.close()


def test_calls_beyond_what_a_server_takes_come_again(
    served: tuple[str, Security, Gate], folder: Path, holding: Holding
) -> None:
    channel = Channel(served[0], Security(Certificates(folder / "worker", "worker")))
    method = channel.unary_unary(_PATH, bytes, bytes)
    most = 2 * CALLS_PER_THREAD
    with ThreadPoolExecutor(most) as pool:
        # One of them may come again, too, if a call below was there before it.
        hold = functools.partial(method, b"hold", timeout=60)
        calls = [pool.submit(retry.call, "a shard", 30.0, hold) for _ in range(most)]
        wait_until(lambda: holding.held == 2, "calls that are held")

        def refused() -> bool:
            try:
                method(b"", timeout=0.2)
            except grpc.RpcError as error:
                return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            return False

        wait_until(refused, "a refusal")
        late = pool.submit(retry.call, "a shard", 30.0, lambda: method(b"", timeout=30))
        holding.let_go.set()
        assert late.result() == b"answer"
        assert {call.result() for call in calls} == {b"answer"}
    channel.close()
