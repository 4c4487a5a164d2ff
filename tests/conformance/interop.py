"""gRPC: its interoperability cases that concern a server, by grpcio's client, and the protocol's own rules by hand.

Names of the former are those of grpc/doc/interop-test-descriptions.md; the latter cite grpc/doc/PROTOCOL-HTTP2.md.
Not applicable, since neither the service nor the server has them: compressed answers, authentication by Google's
tokens, ORCA, and initial metadata in answers.
"""

from __future__ import annotations

import queue
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from tests.channels import plain
from tests.conformance import expect
from tests.conformance.cases import ECHO, SERVICE, case, changed, grpc_case, request
from tests.conformance.service import WORDS
from tests.conformance.wire import DEFAULT_FRAME, Event, Peer, data, message, ping, reset, window_update

_TIMEOUT_S = 10.0


class _Stub:
    """The service's methods."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel

    def unary(self, name: str, request: bytes, **more: Any) -> bytes:
        return bytes(self.channel.unary_unary(f"{SERVICE}/{name}")(request, **{"timeout": _TIMEOUT_S, **more}))

    def chat(self, requests: Iterator[bytes], **more: Any) -> Any:
        return self.channel.stream_stream(f"{SERVICE}/Chat")(requests, **{"timeout": _TIMEOUT_S, **more})


@contextmanager
def _stub(address: str) -> Iterator[_Stub]:
    """Over a connection of its own."""
    unlimited = (("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
    with plain(address, *unlimited) as channel:
        yield _Stub(channel)


def _equal(came: Any, expected: Any) -> None:
    if came != expected:
        raise expect.Mismatch(str(expected)[:200], str(came)[:200])


def _status(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    try:
        call()
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


class _Requests:
    """Requests that are sent one at a time, as `ping_pong` wants it."""

    def __init__(self) -> None:
        self._queue = queue.SimpleQueue[bytes | None]()

    def put(self, value: bytes | None) -> None:
        self._queue.put(value)

    def __iter__(self) -> Iterator[bytes]:
        while (value := self._queue.get()) is not None:
            yield value


@grpc_case("grpc/interop", "empty_unary")
def empty_unary(address: str) -> None:
    """A call with an empty message is answered by an empty message."""
    with _stub(address) as stub:
        _equal(stub.unary("Echo", b""), b"")


@grpc_case("grpc/interop", "large_unary")
def large_unary(address: str) -> None:
    """A request of 271,828 octets, an answer of 314,159."""
    with _stub(address) as stub:
        _equal(stub.unary("Echo", b"x" * 271_828), b"x" * 271_828)
        answers = stub.channel.unary_stream(f"{SERVICE}/Sizes")(b"314159", timeout=_TIMEOUT_S)
        _equal([len(answer) for answer in answers], [314_159])


@grpc_case("grpc/interop", "client_streaming")
def client_streaming(address: str) -> None:
    """Four requests, one answer with their sum."""
    with _stub(address) as stub:
        requests = iter([bytes(size) for size in (27_182, 8, 1_828, 45_904)])
        _equal(stub.channel.stream_unary(f"{SERVICE}/Take")(requests, timeout=_TIMEOUT_S), b"74922 in 4")


@grpc_case("grpc/interop", "server_streaming")
def server_streaming(address: str) -> None:
    """One request, four answers of the sizes it names."""
    with _stub(address) as stub:
        answers = stub.channel.unary_stream(f"{SERVICE}/Sizes")(b"31415 9 2653 58979", timeout=_TIMEOUT_S)
        _equal([len(answer) for answer in answers], [31_415, 9, 2_653, 58_979])


@grpc_case("grpc/interop", "ping_pong")
def ping_pong(address: str) -> None:
    """Each answer comes before the next request is sent."""
    with _stub(address) as stub:
        requests = _Requests()
        answers = stub.chat(iter(requests))
        for size in (31_415, 9, 2_653, 58_979):
            requests.put(b"%d" % size)
            _equal(len(next(answers)), size)
        requests.put(None)
        _equal(list(answers), [])


@grpc_case("grpc/interop", "empty_stream")
def empty_stream(address: str) -> None:
    """A stream without requests is answered by one without answers."""
    with _stub(address) as stub:
        _equal(list(stub.chat(iter(()))), [])


@grpc_case("grpc/interop", "status_code_and_message")
def status_code_and_message(address: str) -> None:
    """The status and its message come as the service gave them."""
    with _stub(address) as stub:
        _equal(
            _status(lambda: stub.unary("Fail", b"test status message")),
            (grpc.StatusCode.UNKNOWN, "test status message"),
        )


@grpc_case("grpc/interop", "special_status_message")
def special_status_message(address: str) -> None:
    """Unicode and whitespace in a status message survive their percent-encoding."""
    with _stub(address) as stub:
        _equal(_status(lambda: stub.unary("Fail", WORDS.encode())), (grpc.StatusCode.UNKNOWN, WORDS))


@grpc_case("grpc/interop", "unimplemented_method")
def unimplemented_method(address: str) -> None:
    """A method that the service lacks is UNIMPLEMENTED."""
    with _stub(address) as stub:
        _equal(_status(lambda: stub.unary("Nothing", b""))[0], grpc.StatusCode.UNIMPLEMENTED)


@grpc_case("grpc/interop", "unimplemented_service")
def unimplemented_service(address: str) -> None:
    """A service that the server lacks is UNIMPLEMENTED."""
    with _stub(address) as stub:
        call = stub.channel.unary_unary("/nothing.Service/Echo")
        _equal(_status(lambda: call(b"", timeout=_TIMEOUT_S))[0], grpc.StatusCode.UNIMPLEMENTED)


@grpc_case("grpc/interop", "custom_metadata")
def custom_metadata(address: str) -> None:
    """Metadata of a request, text and binary, comes back as trailing metadata."""
    given = (("x-trailing", "test_initial_metadata_value"), ("x-trailing-bin", b"\xab\xab\xab"))
    with _stub(address) as stub:
        echo = stub.channel.unary_unary(ECHO)
        _, call = echo.with_call(b"", metadata=given, timeout=_TIMEOUT_S)
        _equal(sorted((key, value) for key, value in call.trailing_metadata()), sorted(given))


@grpc_case("grpc/interop", "timeout_on_sleeping_server")
def timeout_on_sleeping_server(address: str) -> None:
    """A call that outlasts its deadline is DEADLINE_EXCEEDED, and its handler ends."""
    name = uuid.uuid4().hex
    with _stub(address) as stub:
        requests = _Requests()
        requests.put(b"1")
        call = stub.chat(iter(requests), timeout=0.2, metadata=(("x-call", name),))
        _equal(_status(lambda: list(call))[0], grpc.StatusCode.DEADLINE_EXCEEDED)
        requests.put(None)
        _equal(stub.unary("Ended", name.encode()), b"1")


def _cancelled(address: str, num_answers: int) -> None:
    name = uuid.uuid4().hex
    with _stub(address) as stub:
        requests = _Requests()
        call = stub.chat(iter(requests), metadata=(("x-call", name),))
        requests.put(b"5")
        for _ in range(num_answers):
            _equal(len(next(call)), 5)
        call.cancel()
        _equal(_status(lambda: list(call))[0], grpc.StatusCode.CANCELLED)
        requests.put(None)
        if num_answers:
            _equal(stub.unary("Ended", name.encode()), b"1")
        _equal(stub.unary("Echo", b"next"), b"next")


@grpc_case("grpc/interop", "cancel_after_begin")
def cancel_after_begin(address: str) -> None:
    """A call that is cancelled before an answer is CANCELLED, and the connection goes on."""
    _cancelled(address, 0)


@grpc_case("grpc/interop", "cancel_after_first_response")
def cancel_after_first_response(address: str) -> None:
    """A call that is cancelled after an answer is CANCELLED, its handler ends, and the connection goes on."""
    _cancelled(address, 1)


def _call(peer: Peer, path: str, *pieces: bytes, more: tuple[tuple[str, str], ...] = ()) -> None:
    """A call whose DATA frames are these."""
    peer.send(peer.headers(1, [*request(path), *more]))
    peer.send(*(data(1, piece, end=i == len(pieces) - 1) for i, piece in enumerate(pieces)))


@case("grpc/requests", "a message in many DATA frames")
def many_frames(peer: Peer) -> None:
    """Length-Prefixed-Message: DATA frame boundaries have no relation to message boundaries."""
    whole = message(b"0123456789" * 10)
    _call(peer, ECHO, *(whole[i : i + 1] for i in range(len(whole))))
    expect.answered(peer, 1, b"0123456789" * 10)


@case("grpc/requests", "several messages in one DATA frame")
def many_messages(peer: Peer) -> None:
    """Length-Prefixed-Message: DATA frame boundaries have no relation to message boundaries."""
    _call(peer, f"{SERVICE}/Take", message(b"one") + message(b"") + message(b"three"))
    expect.answered(peer, 1, b"8 in 3")


@case("grpc/requests", "a prefix split between DATA frames")
def split_prefix(peer: Peer) -> None:
    """Length-Prefixed-Message: DATA frame boundaries have no relation to message boundaries."""
    _call(peer, f"{SERVICE}/Take", message(b"one")[:3], message(b"one")[3:] + message(b"two")[:2], message(b"two")[2:])
    expect.answered(peer, 1, b"6 in 2")


@case("grpc/requests", "a message that ends too early")
def cut_message(peer: Peer) -> None:
    """Length-Prefixed-Message: a message shorter than its prefix says is no message: any status but OK."""
    _call(peer, ECHO, message(b"0123456789")[:-3])
    expect.answered(peer, 1, status=None)


@case("grpc/requests", "a unary call without a message")
def no_message(peer: Peer) -> None:
    """Request: unary methods take one message; with none the call fails: any status but OK."""
    peer.send(peer.headers(1, request(), end=True))
    expect.answered(peer, 1, status=None)


@case("grpc/requests", "a message larger than the server takes")
def too_large(peer: Peer) -> None:
    """statuscodes.md: RESOURCE_EXHAUSTED for a message larger than configured; a window of it must do."""
    peer.send(peer.headers(1, request()))
    begin = b"\x00\x7f\xff\xff\xff".ljust(peer.window(1), b"x")
    peer.send(*(data(1, begin[i : i + DEFAULT_FRAME]) for i in range(0, len(begin), DEFAULT_FRAME)))
    expect.answered(peer, 1, status=8)


@case("grpc/requests", "a compressed message without grpc-encoding")
def compressed_unsaid(peer: Peer) -> None:
    """compression.md: The compressed flag without an encoding MUST fail with INTERNAL."""
    _call(peer, ECHO, message(b"\x1f\x8bnonsense", compressed=True))
    expect.answered(peer, 1, status=13)


@case("grpc/requests", "a compressed message in an unknown encoding")
def compressed_unknown(peer: Peer) -> None:
    """compression.md: A message in an unsupported compression MUST fail with UNIMPLEMENTED."""
    _call(peer, ECHO, message(b"nonsense", compressed=True), more=(("grpc-encoding", "nonsense"),))
    expect.answered(peer, 1, status=12)


@case("grpc/requests", "an uncompressed message of a call with grpc-encoding")
def uncompressed(peer: Peer) -> None:
    """compression.md: A message may be sent uncompressed whatever grpc-encoding says."""
    _call(peer, ECHO, message(b"echo"), more=(("grpc-encoding", "identity"),))
    expect.answered(peer, 1, b"echo")


@case("grpc/requests", "a content-type with a suffix")
def content_type_suffix(peer: Peer) -> None:
    """Content-Type: `application/grpc` with an optional `+proto`, `+json` or custom suffix."""
    fields = changed("content-type", "application/grpc+proto")
    peer.send(peer.headers(1, fields), data(1, message(b"echo"), end=True))
    expect.answered(peer, 1, b"echo")


@case("grpc/requests", "metadata with equal keys")
def equal_keys(peer: Peer) -> None:
    """Custom-Metadata: may be repeated; the order of values with the same key is preserved."""
    peer.send(peer.headers(1, [*request(f"{SERVICE}/Fields"), ("x-key", "2"), ("x-other", "3"), ("x-key", "1")]))
    peer.send(data(1, message(b""), end=True))
    expect.answered(peer, 1, b"x-key=2\nx-other=3\nx-key=1")


def _http_status(peer: Peer, expected: str) -> None:
    event = expect.headers(peer, 1)
    _equal(dict(event.fields).get(":status"), expected)


@case("grpc/requests", "another content-type", promise=True)
def other_content_type(peer: Peer) -> None:
    """Content-Type: gRPC servers SHOULD respond with HTTP status 415 (Unsupported Media Type)."""
    peer.send(peer.headers(1, changed("content-type", "text/html"), end=True))
    _http_status(peer, "415")


@case("grpc/requests", "no content-type", promise=True)
def no_content_type(peer: Peer) -> None:
    """Content-Type: gRPC servers SHOULD respond with HTTP status 415 (Unsupported Media Type)."""
    peer.send(peer.headers(1, [pair for pair in request() if pair[0] != "content-type"], end=True))
    _http_status(peer, "415")


@case("grpc/requests", "another method than POST", promise=True)
def other_method(peer: Peer) -> None:
    """RFC 9110, 15.5.6: 405 says that the method is known but not supported by the target; gRPC is POST only."""
    peer.send(peer.headers(1, changed(":method", "GET"), end=True))
    _http_status(peer, "405")


@case("grpc/responses", "an answer is headers, messages, trailers")
def whole_answer(peer: Peer) -> None:
    """Responses: Response-Headers with content-type, messages, Trailers with grpc-status and END_STREAM."""
    _call(peer, f"{SERVICE}/Sizes", message(b"3 0 70000"))
    events: list[Event] = []
    for event in peer.events():
        if event.stream == 1 and event.kind != "WINDOW_UPDATE":
            events.append(event)
            peer.send(*_credit(event))
            if event.end:
                break
    kinds = [event.kind for event in events]
    _equal((kinds[0], set(kinds[1:-1]), kinds[-1]), ("HEADERS", {"DATA"}, "HEADERS"))
    _equal(dict(events[0].fields).get("content-type", "")[:16], "application/grpc")
    _equal((":status" in dict(events[-1].fields), dict(events[-1].fields).get("grpc-status")), (False, "0"))
    body = b"".join(event.payload for event in events)
    _equal(len(body), len(message(bytes(3)) + message(b"") + message(bytes(70_000))))


def _credit(event: Event) -> list[bytes]:
    """WINDOW_UPDATE for what has come."""
    return [window_update(stream, event.length) for stream in (0, 1)] if event.kind == "DATA" and event.length else []


@case("grpc/responses", "an answer that is only trailers")
def trailers_only(peer: Peer) -> None:
    """Responses: Trailers-Only is one HEADERS block with :status, content-type, grpc-status and END_STREAM."""
    _call(peer, f"{SERVICE}/Nothing", message(b""))
    event = expect.headers(peer, 1)
    fields = dict(event.fields)
    _equal((event.end, fields.get(":status"), fields.get("grpc-status")), (True, "200", "12"))
    _equal(fields.get("content-type", "")[:16], "application/grpc")


@case("grpc/responses", "grpc-message is percent-encoded")
def percent_encoded(peer: Peer) -> None:
    """Status-Message: octets outside 0x20-0x7E and `%` are percent-encoded."""
    _call(peer, f"{SERVICE}/Fail", message("100 % ☺\n".encode()))
    fields = expect.answered(peer, 1, status=2)
    _equal(fields.get("grpc-message", "").strip(), "100 %25 %E2%98%BA%0A")


@case("grpc/deadlines", "grpc-timeout ends a call")
def grpc_timeout(peer: Peer) -> None:
    """Timeout, statuscodes.md: a call whose deadline has passed ends with DEADLINE_EXCEEDED, or with RST_STREAM."""
    peer.send(peer.headers(1, [*request(f"{SERVICE}/Chat"), ("grpc-timeout", "200m")]), data(1, message(b"1")))

    def decide(event: Event) -> bool | None:
        if event.stream == 1 and event.kind == "HEADERS" and event.end:
            return dict(event.fields).get("grpc-status") == "4"
        return True if event.stream == 1 and event.kind == "RST_STREAM" else None

    expect.until(peer, "grpc-status 4, or RST_STREAM", decide)


@case("grpc/deadlines", "the connection's end ends a call")
def cancelled_by_end(peer: Peer) -> None:
    """Errors: a call whose connection has ended is cancelled: its handler ends."""
    name = uuid.uuid4().hex
    with Peer(peer.address, peer.wait_s) as other:
        other.handshake()
        other.send(other.headers(1, [*request(f"{SERVICE}/Chat"), ("x-call", name)]), data(1, message(b"1")))
        expect.some_data(other, 1)
    peer.send(peer.headers(1, request(f"{SERVICE}/Ended")), data(1, message(name.encode()), end=True))
    expect.answered(peer, 1, b"1")


@case("grpc/deadlines", "RST_STREAM ends a call whose answer waits for the window")
def cancelled_while_blocked(peer: Peer) -> None:
    """Errors: RST_STREAM with CANCEL ends the call, also one that is sending."""
    name = uuid.uuid4().hex
    peer.send(peer.headers(1, [*request(f"{SERVICE}/Chat"), ("x-call", name)]), data(1, message(b"60000")))
    peer.send(data(1, message(b"60000")))
    expect.some_data(peer, 1)
    peer.send(reset(1, expect.CANCEL), window_update(0, 1 << 20))
    peer.send(peer.headers(3, request(f"{SERVICE}/Ended")), data(3, message(name.encode()), end=True))
    expect.answered(peer, 3, b"1")


@case("grpc/deadlines", "RST_STREAM ends a call")
def cancelled_by_reset(peer: Peer) -> None:
    """Errors: RST_STREAM with CANCEL ends the call; nothing more comes on its stream, and the connection goes on."""
    name = uuid.uuid4().hex
    peer.send(peer.headers(1, [*request(f"{SERVICE}/Chat"), ("x-call", name)]), data(1, message(b"1")))
    expect.some_data(peer, 1)
    peer.send(reset(1, expect.CANCEL), ping())
    expect.ping_ack(peer, b"conforms")
    peer.send(peer.headers(3, request(f"{SERVICE}/Ended")), data(3, message(name.encode()), end=True))
    expect.answered(peer, 3, b"1")
