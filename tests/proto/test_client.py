"""The shards' callers against a server that is a script."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest

from downpour.proto import frames
from downpour.proto.client import Channel
from tests.proto.test_http2 import message


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
    begin = frames.headers(1, [(":status", "200")], end=False)
    return begin + frames.frame(frames.DATA, 0, 1, data) + frames.headers(1, [("grpc-status", "0")], end=True)


def test_a_frame_may_hold_many_messages() -> None:
    bodies = [bytes([i]) * i for i in range(200)]
    with answering(frames_of(b"".join(map(message, bodies)))) as channel:
        answers = channel.unary_stream("/a/b", bytes)(b"", timeout=10)
        assert [bytes(answer) for answer in answers if answer is not None] == bodies


def test_a_frame_may_not_hold_more_messages_than_a_caller_keeps() -> None:
    with answering(frames_of(message(b"") * 3000)) as channel, pytest.raises(grpc.RpcError) as caught:
        list(channel.unary_stream("/a/b", bytes)(b"", timeout=10))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "too many messages in one frame" in str(caught.value.details())
