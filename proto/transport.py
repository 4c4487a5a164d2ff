"""gRPC as Downpour uses it: settings with their reasons, one error mapping, one retry loop.

Threads: gRPC's own call the interceptor; `call` runs in its caller's.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
import grpc.experimental
from absl import logging

from downpour.proto.errors import DownpourError, NotReady, NotYet, Unreachable, abort, from_rpc_error

Result = TypeVar("Result")

# Measured at the paper's shape; see "Transport" in BUILD_NOTES.md.
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", -1),  # a chunk is bounded by its sender; a variable never is
    ("grpc.max_send_message_length", -1),
    ("grpc.http2.max_frame_size", 1 << 24),  # a 2 MB chunk in one frame instead of 128
    # What a stream may send before somebody asks for it: memory of the receiver, for every open call. A message that is
    # being read is let in whole.
    ("grpc.http2.lookahead_bytes", 1 << 17),
    ("grpc.http2.bdp_probe", 0),  # the window is set above; probing only adds pings
    ("grpc.experimental.tcp_read_chunk_size", 4 << 20),
    ("grpc.http2.write_buffer_size", 8 << 20),
    ("grpc.enable_retries", 0),  # retrying is ours: it needs the ledger
]

# What may pass without harm: the peer restarts, the network breaks, a deadline was too short.
_TRANSIENT = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})


def open_channel(address: str) -> grpc.Channel:
    """A channel of its own connection, which reconnects within a second of the peer's return."""
    return grpc.insecure_channel(
        address,
        options=[
            *OPTIONS,
            # A stream of answers is read by the thread that wants them instead of through one of its own.
            (grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ],
    )


def start_server(
    register: Callable[[grpc.Server], None], host: str, port: int, num_threads: int
) -> tuple[grpc.Server, int]:
    """Starts a server and returns it with the port it is bound to.

    Args:
        register: Adds the service to the server.
        host: Address to listen on.
        port: Port to listen on; 0 lets the kernel choose.
        num_threads: Calls that may be open at once; more wait.

    Raises:
        ValueError: The address cannot be bound.
    """
    server = grpc.server(
        ThreadPoolExecutor(num_threads, thread_name_prefix="grpc"),
        interceptors=(ErrorInterceptor(),),
        options=[*OPTIONS, ("grpc.so_reuseport", 0)],  # a port that is taken must fail, not be shared
    )
    register(server)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError:
        bound = 0
    if not bound:
        raise ValueError(
            f"cannot listen on {host}:{port}: the port is taken or the host is not this machine's; "
            "give another --port (0 lets the kernel choose)"
        )
    server.start()
    return server, bound


class ErrorInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Turns our exceptions into their gRPC status, whatever kind of method raised them."""

    def intercept_service(self, continuation: Callable[..., Any], details: grpc.HandlerCallDetails) -> Any:
        """See `grpc.ServerInterceptor`."""
        handler = continuation(details)
        if handler is None:
            return None
        wrap = _mapped_stream if handler.response_streaming else _mapped
        kind = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        return kind(wrap(behaviour), handler.request_deserializer, handler.response_serializer)


def _mapped(behaviour: Callable[..., Any]) -> Callable[..., Any]:
    def call(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return behaviour(request, context)
        except DownpourError as error:
            return abort(context, error)

    return call


def _mapped_stream(behaviour: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            yield from behaviour(request, context)
        except DownpourError as error:
            abort(context, error)

    return call


def backoff_s(attempt: int) -> float:
    """Seconds to wait before attempt 1, 2, ...: 0.05 doubling up to 2, each times a random 0.5 to 1."""
    return min(0.05 * 2.0 ** (attempt - 1), 2.0) * random.uniform(0.5, 1.0)


def call(peer: str, give_up_after_s: float, attempt: Callable[[], Result]) -> Result:
    """Runs `attempt`, a call that is safe to repeat, until it succeeds or fails for good.

    Args:
        peer: Role and address, for messages.
        give_up_after_s: Seconds of failing after which the peer counts as unreachable.
        attempt: Makes the call once.

    Raises:
        Unreachable: Every attempt failed for `give_up_after_s` seconds.
        DownpourError: What the peer answered, when trying again cannot help.
    """
    start = time.monotonic()
    attempts = 0
    while True:
        try:
            return attempt()
        except NotReady as error:
            reason = str(error)
        except grpc.RpcError as error:
            refusal = from_rpc_error(error)
            if isinstance(refusal, NotYet):  # the peer is there, and has waited for us
                start, attempts = time.monotonic(), 0
                continue
            reason = _reason_to_retry(error, refusal)
        attempts += 1
        waited = time.monotonic() - start
        if waited > give_up_after_s:
            raise Unreachable(
                f"{peer} did not answer for {waited:.0f} s ({attempts} tries): {reason}; "
                "check that it runs and that the address is right"
            )
        if attempts % 8 == 0:
            logging.info("still waiting for %s after %.0f s: %s", peer, waited, reason)
        time.sleep(backoff_s(attempts))


def _reason_to_retry(error: grpc.RpcError, refusal: DownpourError | None) -> str:
    """What a failed call says, if it may succeed later; raises what cannot."""
    if refusal is not None and not isinstance(refusal, NotReady):
        raise refusal from None
    if refusal is None and error.code() not in _TRANSIENT:
        raise error
    return str(refusal or error.details() or error.code().name)
