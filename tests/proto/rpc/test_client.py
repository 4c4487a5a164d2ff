"""The shards' callers against a server that is a script."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest

from downpour.proto.http2 import frames, headers
from downpour.proto.rpc.client import Channel
from tests.proto.http2.test_connection import message


@contextmanager
def answering(answer: bytes) -> Iterator[Channel]:
    """A channel to a server that answers these frames, whatever it is asked."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            raw, _ = listener.accept()
            with raw:
                raw.sendall(frames.settings({}) + answer)
                while raw.recv(1 << 16):
                    pass

        server = threading.Thread(target=serve)
        server.start()
        channel = Channel(f"127.0.0.1:{listener.getsockname()[1]}")
        try:
            yield channel
        finally:
            channel.close()
            server.join()


def frames_of(data: bytes) -> bytes:
    """A call's answer whose messages all come in one frame."""
    begin = headers.write(1, [(":status", "200")], end=False)
    return begin + frames.frame(frames.DATA, 0, 1, data) + headers.write(1, [("grpc-status", "0")], end=True)


def test_a_frame_may_hold_many_messages() -> None:
    bodies = [bytes([i]) * i for i in range(200)]
    with answering(frames_of(b"".join(map(message, bodies)))) as channel:
        answers = channel.unary_stream("/a/b", bytes)(b"", timeout=60)
        assert [bytes(answer) for answer in answers if answer is not None] == bodies


def failure(answer: bytes) -> grpc.RpcError:
    with answering(answer) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/a/b", bytes, bytes)(b"", timeout=60)
    return caught.value


def test_empty_messages_are_messages() -> None:
    with answering(frames_of(message(b"") * 3000)) as channel:
        assert list(channel.unary_stream("/a/b", bytes)(b"", timeout=60)) == [b""] * 3000


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("400", grpc.StatusCode.INTERNAL),
        ("401", grpc.StatusCode.UNAUTHENTICATED),
        ("403", grpc.StatusCode.PERMISSION_DENIED),
        ("404", grpc.StatusCode.UNIMPLEMENTED),
        ("418", grpc.StatusCode.UNKNOWN),
        ("503", grpc.StatusCode.UNAVAILABLE),
    ],
)
def test_an_answer_that_is_not_grpcs_has_the_status_that_grpc_gives_it(status: str, code: grpc.StatusCode) -> None:
    page = frames.frame(frames.DATA, frames.END_STREAM, 1, b"<html>not grpc</html>")
    assert failure(headers.write(1, [(":status", status)], end=True)).code() is code
    assert failure(headers.write(1, [(":status", status)], end=False) + page).code() is code


@pytest.mark.parametrize("status", ["\xb2", "9" * 5000, "-1", "99", ""])
def test_a_status_that_nobody_knows_is_unknown(status: str) -> None:
    begin, end = headers.write(1, [(":status", "200")], end=False), [("grpc-status", status)]
    assert failure(begin + headers.write(1, end, end=True)).code() is grpc.StatusCode.UNKNOWN


@pytest.mark.parametrize(
    ("last", "message"),
    [(0, "closes the connection and has not processed the call"), (1, "Socket closed")],
)
def test_a_call_that_the_server_will_not_look_at_ends_at_once(last: int, message: str) -> None:
    """One that it has begun to look at goes on, here until the connection ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        channel = Channel(f"127.0.0.1:{listener.getsockname()[1]}")

        def serve() -> None:
            raw, _ = listener.accept()
            with raw:
                raw.recv(1 << 16)
                raw.sendall(frames.settings({}) + frames.goaway(last, 0))
                if last:
                    raw.shutdown(socket.SHUT_WR)
                while raw.recv(1 << 16):
                    pass

        server = threading.Thread(target=serve)
        server.start()
        with pytest.raises(grpc.RpcError, match=message) as caught:
            channel.unary_unary("/a/b", bytes, bytes)(b"", timeout=60)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        channel.close()
        server.join()


@pytest.mark.parametrize(
    "answer",
    [
        headers.write(1, [(":status", "200"), ("UPPER", "x")], end=False),
        headers.write(1, [("grpc-status", "0")], end=True),
        headers.write(2, [(":status", "200")], end=True),
        frames.frame(frames.PUSH_PROMISE, 4, 1, bytes(4)),
        frames.frame(frames.DATA, 0, 3, b"x"),
        frames.head(1 << 23, frames.DATA, 0, 1),
    ],
)
def test_a_server_that_breaks_the_rules_is_unavailable(answer: bytes) -> None:
    assert failure(answer).code() is grpc.StatusCode.UNAVAILABLE


def test_an_error_of_the_callers_own_requests_is_raised_as_it_is() -> None:
    """It says nothing about the connection, so a call that failed with it must not be retried."""

    def requests() -> Iterator[list[bytes]]:
        yield [b"first"]
        raise OSError("the file with the second cannot be read")

    with answering(b"") as channel, pytest.raises(OSError, match="the file with the second cannot be read") as caught:
        channel.stream_unary("/a/b", bytes)(requests(), timeout=60)
    assert not isinstance(caught.value, grpc.RpcError)
