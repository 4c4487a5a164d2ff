"""What only the shards' server does: connections that are used again, callers that stop, strangers, its own end."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from downpour.proto.http2 import frames, headers, tcp_info
from downpour.proto.http2.assembly import MAX_MESSAGE_BYTES
from downpour.proto.rpc import acceptor, calls, client, dispatcher, server, server_connection
from downpour.proto.rpc.client import Channel
from downpour.proto.rpc.server import Server
from downpour.proto.security.config import Security
from downpour.proto.security.gate import Gate
from tests.conftest import wait_until
from tests.proto.http2.test_connection import message
from tests.proto.rpc.test_interoperation import Service, pattern


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def gate() -> Gate:
    return Gate(Security())


@pytest.fixture
def served(service: Service, gate: Gate) -> Iterator[Server]:
    one = Server(service.handler(), "127.0.0.1", 0, 8, gate=gate)
    yield one
    service.let_go.set()
    one.stop(None).wait()


@pytest.fixture
def channel(served: Server) -> Iterator[Channel]:
    channel = Channel(f"127.0.0.1:{served.port}")
    yield channel
    channel.close()


def echo(channel: Channel, message: bytes = b"x", timeout: float = 10) -> bytes:
    answer: bytes = channel.unary_unary("/Service/Echo", bytes, bytes)(message, timeout=timeout)
    return answer


def num_connections(served: Server) -> int:
    return len(served._connections)


def num_calls(served: Server) -> int:
    return served._num_jobs


def test_calls_one_after_another_share_a_connection(served: Server, channel: Channel) -> None:
    for size in range(20):
        assert echo(channel, pattern(size)) == pattern(size)
    assert num_connections(served) == 1


def test_a_connection_that_is_no_longer_needed_is_closed(
    served: Server, service: Service, channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_KEEP_IDLE_S", 0.2)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(channel.unary_unary("/Service/Hold", bytes, bytes), b"", timeout=30)
        wait_until(lambda: service.holding == 1, "the call that is held")
        echo(channel)
        assert num_connections(served) == 2
        service.let_go.set()
        assert held.result() == b"held"
    deadline = time.monotonic() + 10
    while num_connections(served) == 2 and time.monotonic() < deadline:
        echo(channel)  # needs only one
    assert num_connections(served) == 1


def test_an_answer_that_nobody_reads_to_its_end_takes_its_connection_along(served: Server, channel: Channel) -> None:
    answers = channel.unary_stream("/Service/Sizes", bytes)(b"1000000 " * 50, timeout=60)
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    wait_until(lambda: not num_connections(served), "the end of the connection")
    assert echo(channel) == b"x"


def test_a_caller_that_stops_reading_is_given_up(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_connection, "STALL_S", 0.5)
    served = Server(service.handler(), "127.0.0.1", 0, 1)  # whose only thread it would keep
    channel = Channel(f"127.0.0.1:{served.port}")
    answers = channel.unary_stream("/Service/Sizes", bytes)(b"3000000 " * 50, timeout=60)
    next(answers)
    assert echo(channel, timeout=20) == b"x"
    channel.close()
    served.stop(None).wait()


@pytest.mark.parametrize("by", ["the kernel", "this process"])
def test_a_caller_that_stops_sending_in_the_middle_is_given_up(
    service: Service, gate: Gate, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    if by == "this process":
        monkeypatch.setattr(tcp_info, "is_usable", lambda: False)
    elif not tcp_info.is_usable():
        pytest.skip("this kernel does not say when the last byte came")
    monkeypatch.setattr(server_connection, "STALL_S", 0.5)
    served = Server(service.handler(), "127.0.0.1", 0, 1, gate=gate)  # whose only thread it would keep
    channel = Channel(f"127.0.0.1:{served.port}")
    with socket.create_connection(("127.0.0.1", served.port)) as raw:
        raw.sendall(frames.PREFACE + frames.settings({}) + begin("/Service/Take"))
        raw.sendall(frames.frame(frames.DATA, 0, 1, message(b"")))
        raw.sendall(frames.head(100, frames.DATA, 0, 1) + b"\0" + (1000).to_bytes(4, "big"))
        wait_until(lambda: num_calls(served) == 1, "the call")
        for _ in range(9):  # slow it may be
            time.sleep(0.1)
            raw.sendall(b"x")
        assert num_calls(served) == 1
        assert echo(channel, timeout=20) == b"x"
        assert gate.counts().broken_off == 1
    channel.close()
    served.stop(None).wait()


def test_an_answer_that_is_too_long_is_an_error_and_keeps_no_thread(served: Server, channel: Channel) -> None:
    for _ in range(20):  # more than the server has
        with pytest.raises(grpc.RpcError, match="Sent message larger than max") as caught:
            channel.unary_unary("/Service/Long", bytes, bytes)(b"%d" % (MAX_MESSAGE_BYTES + 1), timeout=60)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert echo(channel) == b"x"


def test_what_an_answer_holds_is_let_go_when_its_caller_goes(
    served: Server, service: Service, channel: Channel
) -> None:
    answers = channel.unary_stream("/Service/Sizes", bytes)(b"3000000 " * 50, timeout=60)
    next(answers)
    assert service.answering == 1
    answers.close()  # type: ignore[attr-defined]
    wait_until(lambda: service.answering == 0, "the end of the answer")


def test_what_is_not_wanted_yet_stays_with_the_sender(service: Service) -> None:
    """A call that waits for a thread holds back its requests, at most a window of them."""
    served = Server(service.handler(), "127.0.0.1", 0, 1)
    channel = Channel(f"127.0.0.1:{served.port}")
    sent = 0

    def requests() -> Iterator[list[bytes]]:
        nonlocal sent
        for _ in range(20):
            yield [pattern(1 << 20)]
            sent += 1

    with ThreadPoolExecutor(2) as pool:
        held = pool.submit(channel.unary_unary("/Service/Hold", bytes, bytes), b"", timeout=30)
        wait_until(lambda: service.holding == 1, "the call that is held")
        push = pool.submit(channel.stream_unary("/Service/Take", bytes), requests(), timeout=30)
        wait_until(lambda: num_connections(served) == 2, "the second connection")
        wait_until(lambda: sent == 1, "the first message, which is not through")
        assert not push.done()
        service.let_go.set()
        assert held.result() == b"held"
        assert len(push.result().split()) == 20
    assert sent == 20
    channel.close()
    served.stop(None).wait()


def test_a_caller_that_dies_in_the_middle_is_counted(served: Server, gate: Gate) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as raw:
        raw.sendall(frames.PREFACE + frames.settings({}) + begin("/Service/Take"))
        raw.sendall(frames.frame(frames.DATA, 0, 1, message(b"") + b"\0" + (1000).to_bytes(4, "big") + b"x" * 95))
        # A socket closed with the server's greeting unread takes along what the server has not read yet, too.
        wait_until(lambda: num_calls(served) == 1, "the call")
    wait_until(lambda: gate.counts().broken_off == 1, "the count")
    wait_until(lambda: not num_connections(served), "its end")


def test_when_it_stops_open_calls_may_end_and_new_ones_are_refused(service: Service) -> None:
    served = Server(service.handler(), "127.0.0.1", 0, 8)
    channel = Channel(f"127.0.0.1:{served.port}")
    assert echo(channel) == b"x"  # leaves a connection
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(channel.unary_unary("/Service/Hold", bytes, bytes), b"", timeout=30)
        wait_until(lambda: service.holding == 1, "the call that is held")
        stopped = served.stop(20)
        with pytest.raises(grpc.RpcError) as caught:
            echo(channel)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not stopped.is_set()
        service.let_go.set()
        assert held.result() == b"held"
    assert stopped.wait(10)
    again = Server(service.handler(), "127.0.0.1", served.port, 8)  # the port is free at once
    assert echo(channel) == b"x"
    again.stop(None).wait()
    channel.close()


def test_it_may_be_stopped_at_any_moment(service: Service) -> None:
    for _ in range(300):  # also before its own threads have come to anything
        assert Server(service.handler(), "127.0.0.1", 0, 1).stop(None).wait(10)


def test_it_does_not_wait_longer_than_its_grace(service: Service) -> None:
    served = Server(service.handler(), "127.0.0.1", 0, 8)
    channel = Channel(f"127.0.0.1:{served.port}")
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(channel.unary_unary("/Service/Hold", bytes, bytes), b"", timeout=30)
        wait_until(lambda: service.holding == 1, "the call that is held")
        begin_s = time.monotonic()
        assert served.stop(0.2).wait(60)
        assert time.monotonic() - begin_s < 20
        with pytest.raises(grpc.RpcError) as caught:
            held.result()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        service.let_go.set()
    channel.close()


def test_a_taken_port_is_refused(served: Server) -> None:
    with pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1:{served.port}"):
        Server(Service().handler(), "127.0.0.1", served.port, 1)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_everybody_is_reached_by_ipv4_and_by_ipv6(service: Service, host: str) -> None:
    if host == "[::1]":
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("no IPv6 here")
    served = Server(service.handler(), "0.0.0.0", 0, 4, Security(plain_text_on_the_network=True))
    channel = Channel(f"{host}:{served.port}")
    assert echo(channel) == b"x"
    channel.close()
    served.stop(None).wait()


def begin(path: str) -> bytes:
    """The frame that begins stream 1."""
    pairs = [(":method", "POST"), (":scheme", "http"), (":path", path), ("content-type", "application/grpc")]
    return headers.write(1, pairs, end=False)


KINDS = st.integers(0, 12)
FRAMES = st.lists(
    st.tuples(KINDS, st.integers(0, 255), st.sampled_from([0, 1, 2, 3, 5, (1 << 31) - 1]), st.binary(max_size=60)),
    max_size=12,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sent=FRAMES, begins=st.booleans())
def test_frames_in_any_order_end_nothing_but_their_connection(
    served: Server, channel: Channel, sent: list[tuple[int, int, int, bytes]], begins: bool
) -> None:
    data = frames.PREFACE + (begin("/Service/Take") if begins else b"")
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as raw:
        try:
            raw.sendall(data + b"".join(frames.frame(*one) for one in sent))
        except ConnectionError:
            pass
    assert echo(channel) == b"x"


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(garbage=st.binary(max_size=300), preface=st.booleans())
def test_garbage_ends_nothing_but_its_connection(
    served: Server, channel: Channel, garbage: bytes, preface: bool
) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as raw:
        try:
            raw.sendall((frames.PREFACE if preface else b"") + garbage)
        except ConnectionError:
            pass
    assert echo(channel) == b"x"


def test_threads_that_have_nothing_to_do_end(served: Server, channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_THREAD_IDLE_S", 0.2)
    monkeypatch.setattr(acceptor, "_LOOK_AFTER_S", 0.05)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            sent = [pool.submit(echo, channel, pattern(size)) for size in range(50)]
            assert [one.result() for one in sent] == [pattern(size) for size in range(50)]
            wait_until(lambda: served._num_threads == 0, "the end of the threads")
    assert not any(thread.name == "call" for thread in threading.enumerate())


def test_nothing_is_left_of_many_connections(served: Server, channel: Channel) -> None:
    echo(channel)
    before = threading.active_count()
    for _ in range(100):
        other = Channel(f"127.0.0.1:{served.port}")
        echo(other)
        other.close()
    wait_until(lambda: num_connections(served) == 1, "the end of the others")
    wait_until(lambda: threading.active_count() <= before + 8, "the end of their threads")


def test_it_ends_in_time_though_a_caller_does_not_read(service: Service) -> None:
    served = Server(service.handler(), "127.0.0.1", 0, 8)
    with socket.create_connection(("127.0.0.1", served.port)) as raw:
        request = b"16000000 " * 3
        windows = frames.settings({frames.INITIAL_WINDOW_SIZE: frames.MAX_WINDOW}) + frames.window_update(0, 1 << 30)
        raw.sendall(frames.PREFACE + windows + begin("/Service/Sizes"))
        raw.sendall(frames.frame(frames.DATA, frames.END_STREAM, 1, message(request)))
        wait_until(lambda: service.answering == 1, "the answer")
        time.sleep(0.2)  # until the kernel's buffers are full
        begin_s = time.monotonic()
        assert served.stop(0.3).wait(60)
        assert time.monotonic() - begin_s < 20


def test_a_connection_is_idle_from_the_end_of_its_last_call(
    served: Server, service: Service, channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "IDLE_S", 1.0)
    monkeypatch.setattr(acceptor, "_LOOK_AFTER_S", 0.05)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(channel.unary_unary("/Service/Hold", bytes, bytes), b"", timeout=30)
        wait_until(lambda: service.holding == 1, "the call that is held")
        time.sleep(1.2)
        service.let_go.set()
        assert held.result() == b"held"
    time.sleep(0.2)  # in which the connection is looked at
    assert num_connections(served) == 1
    wait_until(lambda: num_connections(served) == 0, "its end")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_call_that_cannot_be_looked_at_leaves_nothing(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, contextlib.closing(Channel(f"127.0.0.1:{served.port}")) as channel:
        assert echo(channel) == b"x"
        patch.setattr(calls.Call, "refusal", lambda _: 1 / 0)
        with pytest.raises(grpc.RpcError):
            echo(channel)
        wait_until(lambda: num_connections(served) == 0, "the end of the connection")


@pytest.mark.parametrize("rest", [b"\1\0\0\0\5", b"\0\x7f\xff\xff\xff"], ids=["compressed", "too long"])
def test_what_cannot_be_read_ends_no_answer_to_what_came_before(
    served: Server, rest: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A shard logged a traceback for each such call, and did not answer."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as raw:
        raw.sendall(frames.PREFACE + frames.settings({}) + begin("/Service/Echo"))
        raw.sendall(frames.frame(frames.DATA, frames.END_STREAM, 1, b"\0\0\0\0\3abc" + rest))
        got = b""
        while b"grpc-status\x010" not in got:
            got += raw.recv(1 << 16) or pytest.fail(f"no answer: {got!r}")
    assert b"\0\0\0\0\3abc" in got
    assert not caplog.records
