"""Shards' gRPC beside grpcio's: each server with each client, over real connections."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from downpour.proto.errors import ERROR_KEY, LayoutMismatch, from_rpc_error
from downpour.proto.rpc import client, server
from downpour.proto.security.config import TOKEN_KEY, Security
from tests.channels import plain
from tests.conftest import wait_until

TOKEN = "0123456789abcdef"
SIZES = [0, 1, 65_530, 65_531, 100_000, 3 << 20, 17]
WORDS = 'a "message", 100 % of it:\n\tüber 12 µs \\ {"x": [1]}'
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def pattern(size: int) -> bytes:
    return (b"%07d" % size * (size // 7 + 1))[:size]


def digest(messages: Iterator[bytes]) -> bytes:
    return b" ".join(b"%d:%d" % (len(message), zlib.crc32(message)) for message in messages)


class Service:
    """Methods of every kind, as a servicer of ours has them.

    Attributes:
        let_go: Ends `hold`.
        holding: How many calls of `hold` have come.
        answering: How many calls of `sizes` are open.
    """

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.holding = self.answering = 0

    def echo(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        return request

    def long(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        return bytes(int(request))

    def sizes(self, request: bytes, context: grpc.ServicerContext) -> Iterator[Any]:
        self.answering += 1
        try:
            for size in map(int, request.split()):
                yield self.parts(pattern(size))
        finally:
            self.answering -= 1

    def take(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        return digest(requests)

    def refuse(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        next(requests)
        context.set_trailing_metadata(((ERROR_KEY, "LayoutMismatch"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, WORDS)
        raise AssertionError("not reached")

    def token(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        given = [value for key, value in context.invocation_metadata() if key == TOKEN_KEY]
        return f"{given} {context.time_remaining() is not None}".encode()

    def hold(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.holding += 1
        self.let_go.wait(30)
        return b"held"

    def parts(self, message: bytes) -> Any:
        """As the server of ours wants an answer: in parts."""
        return [message[:10], memoryview(message)[10:]]

    def handler(self) -> grpc.GenericRpcHandler:
        unary, many, stream = (
            grpc.unary_unary_rpc_method_handler,
            grpc.unary_stream_rpc_method_handler,
            grpc.stream_unary_rpc_method_handler,
        )
        methods = {
            "Echo": unary(self.echo, bytes, bytes),
            "Long": unary(self.long, bytes, bytes),
            "Sizes": many(self.sizes, bytes, None),
            "Take": stream(self.take, None, bytes),
            "Refuse": stream(self.refuse, None, bytes),
            "Token": unary(self.token, bytes, bytes),
            "Hold": unary(self.hold, bytes, bytes),
        }
        return grpc.method_handlers_generic_handler("Service", methods)


class WholeService(Service):
    """The same for grpcio's server."""

    def parts(self, message: bytes) -> Any:
        return message


@dataclass
class Pair:
    """A server and a client: methods of the client by kind, each taking whole messages."""

    service: Service
    unary: Callable[[str], Callable[..., bytes]]
    many: Callable[[str], Callable[..., Iterator[bytes]]]
    stream: Callable[[str], Callable[..., bytes]]


def serve(ours: bool, service: Service) -> tuple[str, Callable[[], None]]:
    if ours:
        one = server.Server(service.handler(), "127.0.0.1", 0, 16)
        return f"127.0.0.1:{one.port}", lambda: one.stop(None).wait() and None
    other = grpc.server(ThreadPoolExecutor(16), options=_OPTIONS)
    other.add_generic_rpc_handlers((service.handler(),))
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()
    return f"127.0.0.1:{port}", lambda: other.stop(None).wait() and None


@pytest.fixture(params=["ours, ours", "ours, grpcio", "grpcio, ours"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Server and client."""
    our_server, our_client = (word == "ours" for word in request.param.split(", "))
    service = Service() if our_server else WholeService()
    address, stop = serve(our_server, service)
    if our_client:
        channel: Any = client.Channel(address, Security(token=TOKEN))
        yield Pair(
            service,
            lambda name: channel.unary_unary(f"/Service/{name}", bytes, bytes),
            lambda name: lambda *a, **more: map(bytes, channel.unary_stream(f"/Service/{name}", bytes)(*a, **more)),
            lambda name: (
                lambda requests, **more: channel.stream_unary(f"/Service/{name}", bytes)(
                    ([one[:3], one[3:]] for one in requests), **more
                )
            ),
        )
    else:
        # A window that large answers have to wait for.
        channel = plain(address, *_OPTIONS, ("grpc.http2.lookahead_bytes", 100_000))
        token = ((TOKEN_KEY, TOKEN),)
        yield Pair(
            service,
            lambda name: lambda *a, **more: channel.unary_unary(f"/Service/{name}")(*a, metadata=token, **more),
            lambda name: lambda *a, **more: channel.unary_stream(f"/Service/{name}")(*a, metadata=token, **more),
            lambda name: lambda *a, **more: channel.stream_unary(f"/Service/{name}")(*a, metadata=token, **more),
        )
    service.let_go.set()
    channel.close()
    stop()


def test_messages_of_all_sizes_go_both_ways(pair: Pair) -> None:
    for size in SIZES:
        assert pair.unary("Echo")(pattern(size), timeout=30) == pattern(size)
    expected = digest(map(pattern, SIZES))
    request = " ".join(map(str, SIZES)).encode()
    assert digest(pair.many("Sizes")(request, timeout=30)) == expected
    assert pair.stream("Take")(map(pattern, SIZES), timeout=30) == expected
    assert list(pair.many("Sizes")(b"", timeout=30)) == []
    assert pair.stream("Take")(iter(()), timeout=30) == b""


def test_an_error_keeps_its_kind_and_every_letter(pair: Pair) -> None:
    """Sent while requests are still coming, which nobody reads any more."""
    with pytest.raises(grpc.RpcError) as caught:
        pair.stream("Refuse")((pattern(1 << 20) for _ in range(30)), timeout=30)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    error = from_rpc_error(caught.value)
    assert isinstance(error, LayoutMismatch)
    assert str(error) == WORDS
    assert pair.unary("Echo")(b"next", timeout=30) == b"next"


def test_the_token_goes_with_the_call_and_the_deadline_too(pair: Pair) -> None:
    assert pair.unary("Token")(b"", timeout=30) == f"['{TOKEN}'] True".encode()


def test_a_call_ends_at_its_deadline_and_the_next_one_does_not(pair: Pair) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        pair.unary("Hold")(b"", timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert pair.unary("Echo")(b"next", timeout=30) == b"next"


def test_a_method_that_does_not_exist(pair: Pair) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        pair.unary("Nothing")(b"", timeout=30)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_calls_at_one_time_do_not_wait_for_each_other(pair: Pair) -> None:
    with ThreadPoolExecutor(10) as pool:
        held = [pool.submit(pair.unary("Hold"), b"", timeout=30) for _ in range(3)]
        wait_until(lambda: pair.service.holding == 3, "calls that are held")
        echoes = [pool.submit(pair.unary("Echo"), pattern(size), timeout=30) for size in SIZES]
        assert [echo.result() for echo in echoes] == list(map(pattern, SIZES))
        pair.service.let_go.set()
        assert [one.result() for one in held] == [b"held"] * 3
