"""Errors across a real gRPC connection, and the retry loop."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import grpc
import pytest

from downpour.proto import transport
from downpour.proto.errors import BY_NAME, DownpourError, NotReady, Unreachable, from_rpc_error


class Echo:
    """Raises the error whose name it is sent."""

    def unary(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        raise BY_NAME[request.decode()](f"about {request.decode()}")

    def stream(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield b"one"
        raise BY_NAME[request.decode()](f"about {request.decode()}")


@pytest.fixture(scope="module")
def channel() -> Iterator[grpc.Channel]:
    echo = Echo()
    handler = grpc.method_handlers_generic_handler(
        "Echo",
        {
            "Unary": grpc.unary_unary_rpc_method_handler(echo.unary),
            "Stream": grpc.unary_stream_rpc_method_handler(echo.stream),
        },
    )
    server, port = transport.start_server(lambda s: s.add_generic_rpc_handlers((handler,)), "127.0.0.1", 0, 4)
    channel = transport.open_channel(f"127.0.0.1:{port}")
    yield channel
    channel.close()
    server.stop(None).wait()


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_every_error_keeps_its_type_status_and_message(channel: grpc.Channel, name: str) -> None:
    for call in (
        lambda: channel.unary_unary("/Echo/Unary")(name.encode()),
        lambda: list(channel.unary_stream("/Echo/Stream")(name.encode())),
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
    channel = transport.open_channel(address)
    attempts = []

    def attempt() -> bytes:
        attempts.append(1)
        reply: bytes = channel.unary_unary("/Echo/Unary")(b"", timeout=1)
        return reply

    with pytest.raises(Unreachable, match=f"shard 3 at {address} did not answer for [12] s"):
        transport.call(f"shard 3 at {address}", 1.0, attempt)
    assert len(attempts) > 2
    channel.close()


def test_call_waits_for_a_peer_that_is_not_ready_and_raises_what_cannot_pass(channel: grpc.Channel) -> None:
    names = iter(["NotReady", "NotReady", "LayoutMismatch"])
    used = []

    def attempt() -> bytes:
        used.append(next(names))
        reply: bytes = channel.unary_unary("/Echo/Unary")(used[-1].encode())
        return reply

    with pytest.raises(DownpourError, match="about LayoutMismatch"):
        transport.call("echo", 30.0, attempt)
    assert used == ["NotReady", "NotReady", "LayoutMismatch"]


def test_not_ready_ends_as_unreachable(channel: grpc.Channel) -> None:
    with pytest.raises(Unreachable, match="about NotReady"):
        transport.call("echo", 0.2, lambda: channel.unary_unary("/Echo/Unary")(NotReady.__name__.encode()))


def test_a_taken_port_is_refused() -> None:
    server, port = transport.start_server(lambda server: None, "127.0.0.1", 0, 1)
    with pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1:{port}"):
        transport.start_server(lambda server: None, "127.0.0.1", port, 1)
    server.stop(None).wait()


def test_backoff_grows_to_a_limit() -> None:
    for attempt in range(1, 30):
        assert 0.5 * min(0.05 * 2 ** (attempt - 1), 2.0) <= transport.backoff_s(attempt) <= 2.0
