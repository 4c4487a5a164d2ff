"""The service that conformance cases call, in terms of grpc's handlers, which our server and grpcio's both take.

    python -m tests.conformance.service --server=ours     (or grpcio; prints its port, ends when its stdin does)

Threads: the server's own run the methods; `_ended` and `_released` are shared by all of them.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

NAME = "conformance.Service"
WORDS = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"  # of gRPC's interop test
_THREADS = 64
_CALL_KEY = "x-call"  # names a call, for `Ended` and `Release`
_PATIENCE_S = 30.0  # longer than any case waits: a call that is held up does not pass by its end


class _Events:
    """Events by name, made by whoever asks first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: dict[str, threading.Event] = {}

    def __getitem__(self, name: str) -> threading.Event:
        with self._lock:
            return self._events.setdefault(name, threading.Event())


class Service:
    """Methods of every kind."""

    def __init__(self) -> None:
        self._ended = _Events()
        self._released = _Events()

    def echo(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        """Answers the request, and `x-trailing` as trailing metadata."""
        given = tuple((pair[0], pair[1]) for pair in context.invocation_metadata())
        context.set_trailing_metadata(tuple(pair for pair in given if pair[0] in ("x-trailing", "x-trailing-bin")))
        return request

    def fields(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        """Answers the metadata whose keys begin with `x-`."""
        pairs = ((pair[0], pair[1]) for pair in context.invocation_metadata())
        return "\n".join(f"{key}={value}" for key, value in pairs if key.startswith("x-")).encode()

    def fail(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        """Ends with status UNKNOWN and the request as its message."""
        context.abort(grpc.StatusCode.UNKNOWN, request.decode())
        raise AssertionError  # abort raises

    def sizes(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Answers a message of each size that the request names."""
        for size in map(int, request.split()):
            yield bytes(size)

    def take(self, requests: Iterator[Any], context: grpc.ServicerContext) -> bytes:
        """Answers how many octets came in how many messages."""
        sizes = [len(request) for request in requests]
        return b"%d in %d" % (sum(sizes), len(sizes))

    def chat(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Answers each request with as many octets as it names; says when it has ended."""
        try:
            for request in requests:
                yield bytes(int(bytes(request)))
        finally:
            self._ended[_metadata(context).get(_CALL_KEY, "")].set()

    def deaf(self, requests: Iterator[Any], context: grpc.ServicerContext) -> bytes:
        """Reads nothing until it is released, then as `take`."""
        self._released[_metadata(context).get(_CALL_KEY, "")].wait(_PATIENCE_S)
        return self.take(requests, context)

    def ended(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        """Waits for the end of the `chat` that the request names; answers whether it came."""
        return b"%d" % self._ended[request.decode()].wait(_PATIENCE_S)

    def release(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        """Lets the `deaf` go on that the request names."""
        self._released[request.decode()].set()
        return b""

    def handler(self) -> grpc.GenericRpcHandler:
        """For either server."""
        unary = grpc.unary_unary_rpc_method_handler
        methods = {
            "Echo": unary(self.echo, bytes, bytes),
            "Fields": unary(self.fields, bytes, bytes),
            "Fail": unary(self.fail, bytes, bytes),
            "Ended": unary(self.ended, bytes, bytes),
            "Release": unary(self.release, bytes, bytes),
            "Sizes": grpc.unary_stream_rpc_method_handler(self.sizes, bytes, bytes),
            "Take": grpc.stream_unary_rpc_method_handler(self.take, bytes, bytes),
            "Deaf": grpc.stream_unary_rpc_method_handler(self.deaf, bytes, bytes),
            "Chat": grpc.stream_stream_rpc_method_handler(self.chat, bytes, bytes),
        }
        return grpc.method_handlers_generic_handler(NAME, methods)


def _metadata(context: grpc.ServicerContext) -> dict[str, Any]:
    return {pair[0]: pair[1] for pair in context.invocation_metadata()}


def start(kind: str) -> tuple[int, Callable[[], Any]]:
    """Starts our server or grpcio's on loopback; returns its port and how to stop it."""
    handler = Service().handler()
    if kind == "ours":
        from downpour.proto.rpc.server import Server

        ours = Server(handler, "127.0.0.1", 0, _THREADS)
        return ours.port, lambda: ours.stop(None).wait()
    other = grpc.server(ThreadPoolExecutor(_THREADS), [handler], options=[("grpc.so_reuseport", 0)])
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()
    return port, lambda: other.stop(None).wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", choices=["ours", "grpcio"], required=True)
    port, stop = start(parser.parse_args().server)
    print(port, flush=True)
    sys.stdin.read()
    stop()


if __name__ == "__main__":
    main()
