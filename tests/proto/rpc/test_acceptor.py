"""Who has not been admitted yet: what they may keep, how long, and that others come through."""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import itertools
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import DecodeError

from downpour.launch import certs
from downpour.proto.http2 import frames, headers
from downpour.proto.http2.endpoint import Endpoint
from downpour.proto.http2.frames import ErrorCode
from downpour.proto.rpc import acceptor, credit, dispatcher, server, strangers
from downpour.proto.rpc.client import Channel
from downpour.proto.rpc.server import Server
from downpour.proto.rpc.server_connection import ServerConnection
from downpour.proto.security.certificates import Certificates
from downpour.proto.security.config import TOKEN_KEY, Security
from downpour.proto.security.gate import Gate
from downpour.proto.security.policy import MAY_CALL
from tests.certificates import JOB
from tests.conftest import wait_until
from tests.proto.http2.test_connection import GREETING, message

TOKEN = "0123456789abcdef"
SECURITY = Security(token=TOKEN)


class Service:
    """Counts what it has been asked to read."""

    def __init__(self) -> None:
        self.num_read = self.num_run = 0
        self.num_reading = self.most_reading = 0
        self.let_go = threading.Event()

    def read(self, request: bytes) -> bytes:
        self.num_read += 1
        if request == b"nonsense":
            self.num_reading += 1
            self.most_reading = max(self.most_reading, self.num_reading)
            time.sleep(0.01)  # others may begin
            self.num_reading -= 1
            raise DecodeError
        return request

    def status(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.num_run += 1
        if request == b"hold":
            self.let_go.wait(30)
        return request

    def handler(self) -> grpc.GenericRpcHandler:
        methods = {
            name: grpc.unary_unary_rpc_method_handler(self.status, self.read, bytes) for name in ("Status", "Stop")
        }
        return grpc.method_handlers_generic_handler("downpour.v1.ParameterServer", methods)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def gate() -> Gate:
    return Gate(SECURITY)


@pytest.fixture
def served(service: Service, gate: Gate) -> Iterator[Server]:
    """Two threads; a token."""
    one = Server(service.handler(), "127.0.0.1", 0, 2, SECURITY, gate)
    yield one
    service.let_go.set()
    one.stop(None).wait()


def connect(served: Server, data: bytes = b"") -> socket.socket:
    raw = socket.create_connection(("127.0.0.1", served.port), timeout=20)
    if data:
        raw.sendall(data)
    return raw


def rest(raw: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    out = b""
    try:
        while more := raw.recv(1 << 16):
            out += more
    except ConnectionResetError:
        pass
    return out


def call(number: int = 1, method: str = "Status", token: str = TOKEN, *, end: bool = False) -> bytes:
    path = f"/downpour.v1.ParameterServer/{method}"
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), ("content-type", "application/grpc")]
    return headers.write(number, [*fields, (TOKEN_KEY, token)], end=end)


def data(number: int, body: bytes) -> bytes:
    return frames.frame(frames.DATA, frames.END_STREAM, number, message(body))


def ask(served: Server) -> bytes:
    channel = Channel(f"127.0.0.1:{served.port}", SECURITY)
    answer: bytes = channel.unary_unary("/downpour.v1.ParameterServer/Status", bytes, bytes)(b"x", timeout=20)
    channel.close()
    return answer


def threads(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


def test_a_call_without_a_token_is_refused_by_its_header_fields(served: Server, service: Service, gate: Gate) -> None:
    with connect(served, GREETING + call(token="another-token-16")) as raw:
        got = b""
        while frames.reset(1, ErrorCode.NO_ERROR) not in got:  # no body has been sent
            got += raw.recv(1 << 16)
        assert b"grpc-status\x0216" in got
        raw.sendall(data(1, b"late") + call(3, token="another-token-16") + data(3, b"x"))
        while got.count(b"grpc-status\x0216") < 2:
            got += raw.recv(1 << 16)
        assert threads("read") == threads("call") == 0
    assert gate.counts().refused_token == 2 and gate.counts().connections_admitted == 0
    assert service.num_read == service.num_run == 0


def test_a_call_without_a_message_keeps_no_thread(served: Server, service: Service) -> None:
    calls = b"".join(call(number) for number in range(1, 2 * 30, 2))
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(connect(served, GREETING + calls))
        wait_until(lambda: threads("read") == 4, "the connections")
        assert ask(served) == b"x"
    assert service.num_run == 1


def test_a_call_whose_first_message_does_not_come_is_ended(
    served: Server, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "FIRST_MESSAGE_S", 0.3)
    monkeypatch.setattr(acceptor, "_LOOK_AFTER_S", 0.05)
    ping = frames.frame(frames.PING, 0, 0, bytes(8))
    with connect(served, GREETING + call()) as raw:
        got = b""
        raw.settimeout(0.1)
        while frames.reset(1, ErrorCode.NO_ERROR) not in got:
            try:
                got += raw.recv(1 << 16)
            except TimeoutError:
                raw.sendall(ping)  # which is no excuse
        assert b"grpc-status\x011" in got and b"no message was received in time" in got
        raw.settimeout(20)
        raw.sendall(call(3) + data(3, b"now"))
        while b"now" not in got:
            got += raw.recv(1 << 16)
    assert gate.counts().broken_off == 1


def test_a_connection_without_calls_is_ended(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "IDLE_S", 0.3)
    monkeypatch.setattr(acceptor, "_LOOK_AFTER_S", 0.05)
    with connect(served, GREETING + call() + data(1, b"x")) as raw:
        assert frames.goaway(1, ErrorCode.NO_ERROR) in rest(raw)
    wait_until(lambda: not threads("read"), "the end of its thread")


STRANGERS: dict[str, bytes] = {
    "nothing": b"",
    "half a preface": frames.PREFACE[:12],
    "a preface": GREETING,
    "a call without its end": GREETING + call()[:-3],
}


@pytest.mark.parametrize("said", STRANGERS)
def test_a_stranger_is_ended_in_time(served: Server, gate: Gate, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setattr(strangers, "HANDSHAKE_S", 0.2)
    monkeypatch.setattr(strangers, "FIRST_CALL_S", 0.6)
    began = time.monotonic()
    with connect(served, STRANGERS[said]) as raw:
        rest(raw)
    assert time.monotonic() - began < 10
    assert gate.counts().connections_dropped == 1 and threads("read") == 0
    assert ask(served) == b"x"


def test_a_stranger_who_breaks_the_rules_is_told_why(served: Server, gate: Gate) -> None:
    with connect(served, GREETING + frames.frame(frames.DATA, 0, 0, b"x") * 1000) as raw:
        assert frames.goaway(0, ErrorCode.PROTOCOL_ERROR) in rest(raw)
    with connect(served, GREETING + frames.frame(99, 0, 0, bytes(64)) * 400) as raw:
        assert frames.goaway(0, ErrorCode.ENHANCE_YOUR_CALM) in rest(raw)
    assert gate.counts().connections_malformed == 2


def test_the_oldest_stranger_of_the_busiest_address_makes_room(
    served: Server, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served._acceptor, "_most", 20)
    monkeypatch.setattr(acceptor, "_GRACE_S", 0.1)
    with ExitStack() as stack:
        other = stack.enter_context(socket.create_connection(("127.0.0.1", served.port), 20, ("127.0.0.2", 0)))
        many = [stack.enter_context(connect(served, GREETING)) for _ in range(60)]
        assert ask(served) == b"x"
        rest(many[0])
        other.sendall(GREETING + call() + data(1, b"I was first"))
        got = b""
        while b"I was first" not in got:
            got += other.recv(1 << 16)
    assert gate.counts().connections_dropped >= 40


def test_one_that_speaks_takes_the_place_of_one_that_does_not(
    served: Server, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However young that is: half prefaces came 2,500 times a second, and a new client gave up after 8 s."""
    monkeypatch.setattr(served._acceptor, "_most", 20)
    monkeypatch.setattr(acceptor, "_GRACE_S", 60.0)
    with ExitStack() as stack:
        many = [stack.enter_context(connect(served, frames.PREFACE[:12])) for _ in range(60)]
        assert ask(served) == b"x"
        for late in many[20:]:
            rest(late)
    assert gate.counts().connections_dropped >= 41


def test_one_that_speaks_waits_where_all_have_spoken(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served._acceptor, "_most", 3)
    monkeypatch.setattr(acceptor, "_GRACE_S", 0.5)
    began = time.monotonic()
    with ExitStack() as stack:
        first_flight = GREETING + 3 * frames.frame(frames.PING, 0, 0, bytes(8))
        many = [stack.enter_context(connect(served, first_flight)) for _ in range(3)]
        wait_until(lambda: len(served._acceptor._strangers) == 3, "the strangers")
        assert ask(served) == b"x"
        assert time.monotonic() - began >= 0.5
        rest(many[0])


def test_no_thread_is_no_end(served: Server, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed start once made a shard deaf for good."""
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if thread.name in ("read", "call"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        for _ in range(3):
            with connect(served, GREETING + call() + data(1, b"x")) as raw:
                rest(raw)
    assert ask(served) == b"x"
    assert gate.counts().connections_dropped == 3


def test_no_descriptor_is_no_end(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[float] = []

    class Full:
        """A listener where descriptors have run out."""

        def __init__(self, real: socket.socket) -> None:
            self._real, self.fileno, self.close = real, real.fileno, real.close

        def accept(self) -> tuple[socket.socket, object]:
            used.append(time.monotonic())
            if len(used) < 6:
                raise OSError(errno.EMFILE, "Too many open files")
            return self._real.accept()

    entrance, selector = served._acceptor._entrance, served._acceptor._selector
    listener = Full(entrance._listener)
    monkeypatch.setattr(entrance, "_listener", listener)
    selector.unregister(listener._real)
    selector.register(listener, 1, entrance)  # type: ignore[arg-type]
    assert ask(served) == b"x"
    assert used[5] - used[0] > 0.3, "it went round and round"


def test_strangers_get_a_part_of_a_processor(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credit, "BURST_S", 0.0)
    monkeypatch.setattr(credit, "SHARE", 0.02)
    stop, used = threading.Event(), [0.0]
    spend = served._acceptor._credit.spend

    def count(seconds: float) -> None:
        spend(seconds)
        used.append(used[-1] + seconds)

    monkeypatch.setattr(served._acceptor._credit, "spend", count)

    def flood() -> None:
        while not stop.is_set():
            with connect(served, b"GET / HTTP/1.1\r\n\r\n1234567890") as raw:
                rest(raw)

    flooding = threading.Thread(target=flood)
    flooding.start()
    wait_until(lambda: len(used) > 1, "the first")
    first, began = used[-1], time.monotonic()
    time.sleep(1.0)
    share = (used[-1] - first) / (time.monotonic() - began)
    stop.set()
    flooding.join()
    assert 0.0 < share < 0.1
    assert ask(served) == b"x"


@pytest.mark.parametrize("role", ["worker", "evaluator"])
def test_a_role_that_may_not_is_refused_by_the_header_fields(tmp_path: Path, service: Service, role: str) -> None:
    assert "worker" not in MAY_CALL["ParameterServer/Stop"]
    certs.make(JOB, tmp_path)
    security = Security(Certificates(tmp_path / "ps", "ps"))
    served = Server(service.handler(), "127.0.0.1", 0, 2, security)
    channel = Channel(f"127.0.0.1:{served.port}", Security(Certificates(tmp_path / role, role)))
    for method, code in (("Stop", grpc.StatusCode.PERMISSION_DENIED), ("Status", None)):
        try:
            channel.unary_unary(f"/downpour.v1.ParameterServer/{method}", bytes, bytes)(b"", timeout=20)
            assert code is None
        except grpc.RpcError as error:
            assert error.code() is code
    assert service.num_run == 1
    channel.close()
    served.stop(None).wait()


def test_many_calls_at_once_are_refused_beyond_what_the_pool_takes(served: Server, service: Service) -> None:
    most = server.CALLS_PER_THREAD * 2
    held = b"".join(call(number) + data(number, b"hold") for number in range(1, 2 * most, 2))
    with connect(served, GREETING + held) as raw:
        wait_until(lambda: service.num_run == 2, "calls that are held")
        raw.sendall(call(101) + data(101, b"one too many"))
        got = b""
        while b"grpc-status\x018" not in got:
            got += raw.recv(1 << 16)
        service.let_go.set()
        wait_until(lambda: service.num_run == most, "the others")


def test_who_makes_room_for_another_is_not_looked_at_any_more(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger that has said something and a new connection, both found by one look at all of them."""
    monkeypatch.setattr(served._acceptor, "_most", 1)
    monkeypatch.setattr(acceptor, "_GRACE_S", 0.0)
    looked, go_on = threading.Event(), threading.Event()
    select = served._acceptor._selector.select

    def both(timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = select(timeout)
        looked.set()
        assert go_on.wait(20)
        found = list({one[0].fd: one for one in found + select(0)}.values())
        return sorted(found, key=lambda one: one[0].fileobj is not served._acceptor._entrance._listener)

    with connect(served) as stranger, monkeypatch.context() as patch:
        wait_until(lambda: len(served._acceptor._strangers) == 1, "the stranger")
        patch.setattr(served._acceptor._selector, "select", both)
        stranger.sendall(GREETING)
        assert looked.wait(20)
        with connect(served):
            time.sleep(0.05)  # until it waits to be accepted
            go_on.set()
            rest(stranger)
    assert ask(served) == b"x"


def test_members_may_come_as_fast_as_they_like(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a connection has cost counts as a stranger's only until a call of it is admitted."""
    monkeypatch.setattr(credit, "BURST_S", 0.05)
    monkeypatch.setattr(credit, "SHARE", 0.001)
    # A collection of what earlier tests have left takes 70 ms, and counts as cost of the stranger it happens to hit.
    gc.collect()
    gc.freeze()
    began = time.monotonic()
    for _ in range(300):
        assert ask(served) == b"x"
    assert time.monotonic() - began < 30
    gc.unfreeze()


def test_calls_that_make_no_sense_end_their_connection_in_time(served: Server, service: Service, gate: Gate) -> None:
    with connect(served, GREETING) as raw:
        for i in range(2000):
            raw.sendall(call(2 * i + 1) + data(2 * i + 1, b"nonsense"))
            is_due = functools.partial(lambda i: service.num_read > i or gate.counts().connections_malformed > 0, i)
            wait_until(is_due, "its being read")
            if gate.counts().connections_malformed:
                break
        got = rest(raw)
    assert b"grpc-status\x013" in got  # INVALID_ARGUMENT
    assert b"\x00\x00\x00\x0b" in got[-13:]  # ENHANCE_YOUR_CALM
    assert gate.counts().refused_malformed >= 20 and gate.counts().connections_malformed == 1


def test_calls_that_make_no_sense_run_one_at_a_time(served: Server, service: Service) -> None:
    """32 at once woke all threads of the pool, which took a tenth of the steps of those who trained."""
    with connect(served, GREETING + b"".join(call(n) + data(n, b"nonsense") for n in range(1, 21, 2))):
        wait_until(lambda: service.num_read == 10, "all")
    assert service.most_reading == 1


def test_calls_that_waited_for_one_that_made_no_sense_are_answered(served: Server, service: Service) -> None:
    calls = b"".join(call(n) + data(n, b"nonsense" if n < 7 else b"%d" % n) for n in range(1, 25, 2))
    with connect(served, GREETING + calls) as raw:
        wait_until(lambda: service.num_run == 9, "the others")
        raw.sendall(call(25) + data(25, b"last"))
        wait_until(lambda: service.num_run == 10, "the last")
        raw.shutdown(socket.SHUT_WR)
        got = rest(raw)
    assert got.count(b"grpc-status\x010") == 10 and got.count(b"grpc-status\x013") == 3


def test_a_call_that_arrives_while_another_ends_is_not_forgotten(
    served: Server, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at those that wait and the end of the one that ends."""
    go_on_with_all = dispatcher.Dispatcher.go_on_with_all
    arrived, sends = threading.Event(), threading.Event()

    def arriving(self: dispatcher.Dispatcher) -> bool:
        found = go_on_with_all(self)
        if threading.current_thread().name == "call" and self.ending:
            sends.set()
            assert arrived.wait(20)
            time.sleep(0.1)
        return found

    monkeypatch.setattr(dispatcher.Dispatcher, "go_on_with_all", arriving)
    with connect(served, GREETING + call(1) + data(1, b"nonsense") + call(3)) as raw:
        assert sends.wait(20)
        raw.sendall(data(3, b"x"))
        time.sleep(0.2)
        arrived.set()
        wait_until(lambda: service.num_run == 1, "the second")


def test_calls_run_side_by_side_once_a_message_was_decoded(served: Server, service: Service) -> None:
    with connect(served, GREETING + call(1) + data(1, b"hold") + call(3) + data(3, b"x")) as raw:
        wait_until(lambda: service.num_run == 2, "the second beside the first")
        assert not service.let_go.is_set()
        raw.sendall(frames.reset(1, ErrorCode.CANCEL))


def test_a_call_that_is_reset_while_it_waits_for_another_is_dropped(served: Server, gate: Gate) -> None:
    body = message(b"x" * 60_000)
    parts = [body[i : i + 10_000] for i in range(0, 40_000, 10_000)]
    with connect(served, GREETING + call(1)) as raw:
        wait_until(lambda: bool(served._members()), "its admission")
        for part in parts:  # more than half of its window: it runs
            raw.sendall(frames.frame(frames.DATA, 0, 1, part))
        raw.sendall(call(3) + b"".join(frames.frame(frames.DATA, 0, 3, part) for part in parts))  # another long one
        raw.sendall(frames.reset(3, ErrorCode.CANCEL))
        wait_until(lambda: gate.counts().broken_off == 1, "the drop")
    wait_until(lambda: gate.counts().broken_off == 2, "the end of the first")


def test_members_that_talk_nonsense_come_again_more_slowly(
    served: Server, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What their calls have cost is what strangers get less, though not for ever."""
    monkeypatch.setattr(credit, "BURST_S", 0.0)
    stop = threading.Event()

    def talk() -> None:
        calls = GREETING + b"".join(call(n) + data(n, b"nonsense") for n in range(1, 21, 2))
        while not stop.is_set():
            with connect(served, calls) as raw, contextlib.suppress(OSError):
                for n in itertools.count(21, 2):
                    raw.sendall(call(n) + data(n, b"nonsense"))
                    raw.recv(1 << 16)

    talking = threading.Thread(target=talk)
    talking.start()
    time.sleep(1.5)
    num_ended = gate.counts().connections_malformed
    began = time.monotonic()
    assert ask(served) == b"x"
    waited_s = time.monotonic() - began
    stop.set()
    talking.join()
    assert 0 < num_ended <= 100  # 540 where nothing is charged
    assert waited_s < 10


def test_members_for_whom_there_is_no_room_cost_a_part_of_a_processor(
    served: Server, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credit, "BURST_S", 0.0)
    monkeypatch.setattr(credit, "SHARE", 0.01)
    with monkeypatch.context() as patch:
        patch.setattr(served, "_most_connections", 0)
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            with connect(served, GREETING + call() + data(1, b"x")) as raw, contextlib.suppress(OSError):
                raw.settimeout(max(0.1, end - time.monotonic()))
                while raw.recv(1 << 16):
                    pass
        assert 0 < gate.counts().connections_dropped < 100  # 189 where they are not charged
    assert ask(served) == b"x"


@pytest.mark.parametrize("sent", [b"", GREETING, GREETING + call(1)], ids=["nothing", "preface", "call"])
def test_a_closed_connection_is_freed_at_once(served: Server, sent: bytes) -> None:
    """A cycle would keep it, with its TLS state, until a full collection, which is rare in a shard."""
    freed = _num_connections()
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            with connect(served, sent) as raw:
                time.sleep(0.01)
                raw.shutdown(socket.SHUT_WR)
                rest(raw)
        wait_until(lambda: _num_connections() <= freed + 1, "the connections' being freed")
    finally:
        gc.enable()


def _num_connections() -> int:
    return sum(type(one) in (ServerConnection, Endpoint) for one in gc.get_objects())
