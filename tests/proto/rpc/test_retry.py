"""Errors across a real gRPC connection, and the retry loop."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator, Sequence

import grpc
import pytest

from downpour.proto.errors import BY_NAME, DownpourError, NotReady, Unreachable, from_rpc_error
from downpour.proto.rpc import retry
from downpour.proto.rpc.client import Channel
from downpour.proto.rpc.server import Server


class Echo:
    """Raises the error whose name it is sent."""

    def unary(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        raise BY_NAME[request.decode()](f"about {request.decode()}")

    def stream(self, request: bytes, context: grpc.ServicerContext) -> Iterator[Sequence[bytes]]:
        yield [b"one"]
        raise BY_NAME[request.decode()](f"about {request.decode()}")


@pytest.fixture(scope="module")
def channel() -> Iterator[Channel]:
    methods = {
        "Unary": grpc.unary_unary_rpc_method_handler(Echo().unary, bytes, bytes),
        "Stream": grpc.unary_stream_rpc_method_handler(Echo().stream, bytes, None),
    }
    served = Server(grpc.method_handlers_generic_handler("Echo", methods), "127.0.0.1", 0, 4)
    channel = Channel(f"127.0.0.1:{served.port}")
    yield channel
    channel.close()
    served.stop(None).wait()


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_address_of_ipv6_is_listened_on_and_reached(host: str) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    methods = {"Unary": grpc.unary_unary_rpc_method_handler(lambda request, _: request, bytes, bytes)}
    handler = grpc.method_handlers_generic_handler("Echo", methods)
    served = Server(handler, host, 0, 4)
    channel = Channel(f"[::1]:{served.port}")
    assert channel.unary_unary("/Echo/Unary", bytes, bytes)(b"x", timeout=20) == b"x"
    channel.close()
    with pytest.raises(ValueError, match=rf"cannot listen on \[::1\]:{served.port}: the port is taken"):
        Server(handler, host, served.port, 4)
    served.stop(None).wait()


def test_a_proxy_in_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    methods = {"Unary": grpc.unary_unary_rpc_method_handler(lambda request, _: request, bytes, bytes)}
    handler = grpc.method_handlers_generic_handler("Echo", methods)
    served = Server(handler, "127.0.0.1", 0, 4)
    channel = Channel(f"127.0.0.1:{served.port}")
    assert channel.unary_unary("/Echo/Unary", bytes, bytes)(b"x", timeout=20) == b"x"
    channel.close()
    served.stop(None).wait()


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_every_error_keeps_its_type_status_and_message(channel: Channel, name: str) -> None:
    for call in (
        lambda: channel.unary_unary("/Echo/Unary", bytes, bytes)(name.encode()),
        lambda: list(channel.unary_stream("/Echo/Stream", bytes)(name.encode())),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        error = from_rpc_error(caught.value)
        assert type(error) is BY_NAME[name]
        assert str(error) == f"about {name}"
        assert caught.value.code() is BY_NAME[name].status


def test_call_repeats_what_may_pass_and_gives_up_in_time() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    channel = Channel(address)
    attempts = []

    def attempt() -> bytes:
        attempts.append(1)
        reply: bytes = channel.unary_unary("/Echo/Unary", bytes, bytes)(b"", timeout=1)
        return reply

    with pytest.raises(Unreachable, match=f"shard 3 at {address} did not answer for [1-9] s"):
        retry.call(f"shard 3 at {address}", 1.0, attempt)
    assert len(attempts) > 2
    channel.close()


def test_call_waits_for_a_peer_that_is_not_ready_and_raises_what_cannot_pass(channel: Channel) -> None:
    names = iter(["NotReady", "NotReady", "LayoutMismatch"])
    used = []

    def attempt() -> bytes:
        used.append(next(names))
        reply: bytes = channel.unary_unary("/Echo/Unary", bytes, bytes)(used[-1].encode())
        return reply

    with pytest.raises(DownpourError, match="about LayoutMismatch"):
        retry.call("echo", 30.0, attempt)
    assert used == ["NotReady", "NotReady", "LayoutMismatch"]


def test_not_ready_ends_as_unreachable(channel: Channel) -> None:
    with pytest.raises(Unreachable, match="about NotReady"):
        retry.call("echo", 0.2, lambda: channel.unary_unary("/Echo/Unary", bytes, bytes)(NotReady.__name__.encode()))


def test_backoff_grows_to_a_limit() -> None:
    for attempt in range(1, 30):
        assert 0.5 * min(0.05 * 2 ** (attempt - 1), 2.0) <= retry.backoff_s(attempt) <= 2.0


def test_backoff_leaves_the_random_numbers_of_initial_values_alone() -> None:
    """Keras draws the seeds of initial values from Python's own generator, while other threads retry."""
    before = random.getstate()
    retry.backoff_s(1)
    assert random.getstate() == before
