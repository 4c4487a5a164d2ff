"""One connection's side, over a socket that is a script."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downpour.proto import frames
from downpour.proto.assembly import Assembler, Buffers, TooLarge
from downpour.proto.http2 import Connection, ProtocolError, Stream
from downpour.proto.sockets import Buffer, Closed
from tests.conftest import wait_until


class Script:
    """A socket that gives what a peer has sent, and keeps what is sent to it."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self.sent = b""

    def read_into(self, view: memoryview) -> None:
        if len(self._data) < len(view):
            raise Closed("the script is over")
        view[:], self._data = self._data[: len(view)], self._data[len(view) :]

    def send(self, buffers: Sequence[Buffer]) -> None:
        self.sent += b"".join(buffers)

    def set_deadline(self, at: float | None) -> None: ...

    def is_quiet(self) -> bool:
        return not self._data

    def shut_down(self) -> None: ...

    def close(self) -> None: ...


class Receiver(Connection):
    """A server's side that keeps its calls; whoever waits for more than there is waits for the reader."""

    def __init__(self, data: bytes) -> None:
        self.script = Script(data)
        super().__init__(self.script, Buffers(4), is_server=True, initial_window=frames.DEFAULT_WINDOW)
        self.begun: list[Stream] = []

    def on_request(self, stream: Stream) -> None:
        self.begun.append(stream)

    def wait(self, stream: Stream, is_due: Callable[[], bool]) -> None:
        assert self.changed.wait_for(is_due, 10)

    def read_all(self) -> None:
        try:
            while True:
                self.read_frame()
        except Closed:
            pass


def message(body: bytes) -> bytes:
    return b"\0" + len(body).to_bytes(4, "big") + body


def call(*parts: bytes, number: int = 1) -> bytes:
    """A call whose data come in frames of these parts."""
    data = b"".join(frames.frame(frames.DATA, 0, number, part) for part in parts)
    return frames.headers(number, [(":path", "/a")], end=False) + data + frames.frame(frames.DATA, 1, number, b"")


def taken(receiver: Receiver, stream: Stream) -> list[bytes]:
    bodies = []
    while got := receiver.next_message(stream):
        bodies.append(bytes(got[1]))
    return bodies


@given(st.lists(st.binary(max_size=300), max_size=6), st.lists(st.integers(0, 1500), max_size=8), st.booleans())
def test_messages_are_cut_into_frames_anyhow(bodies: list[bytes], cuts: list[int], wanted_first: bool) -> None:
    data = b"".join(map(message, bodies))
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    receiver = Receiver(call(*(data[a:b] for a, b in itertools.pairwise(places))))
    receiver.read_frame()
    [stream] = receiver.begun
    if wanted_first:
        receiver.want(stream)
    reader = threading.Thread(target=receiver.read_all)
    reader.start()
    if not wanted_first:
        reader.join()
        receiver.want(stream)
    assert taken(receiver, stream) == bodies
    reader.join()


@given(st.lists(st.binary(max_size=600), max_size=6), st.integers(1, 700), st.lists(st.booleans(), min_size=6))
def test_longer_messages_go_where_they_belong(bodies: list[bytes], step: int, has_place: list[bool]) -> None:
    placed: list[tuple[bytes, bytearray]] = []
    asked = 0

    def place(beginning: memoryview, length: int) -> memoryview | None:
        nonlocal asked
        asked += 1
        if not has_place[asked % len(has_place)]:
            return None
        placed.append((bytes(beginning), bytearray(length - len(beginning))))
        return memoryview(placed[-1][1])

    assembler, got = Assembler(Buffers(2), place), list[bytes]()
    for body in bodies:
        left, whole = memoryview(message(body)), None
        while left:
            assert whole is None
            room = assembler.room()
            count = min(step, len(room), len(left))
            room[:count], left = left[:count], left[count:]
            whole = assembler.took(count)
            assert assembler.is_inside == (whole is None)
        assert whole is not None
        got.append(b"".join(placed[-1]) if whole[0] is None else bytes(whole[0][: whole[1]]))
    assert got == bodies
    assert asked == sum(len(body) > 128 for body in bodies)


def test_a_call_is_wanted_just_when_the_reader_has_looked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then what was kept is still being taken when the next frame is read, and must come first all the same."""
    body = bytes(range(256)) * 4
    data = message(body)
    receiver = Receiver(call(data[:700], data[700:]))
    receiver.read_frame()
    receiver.read_frame()
    [stream] = receiver.begun
    feeding, go_on, room = threading.Event(), threading.Event(), Assembler.room

    class Lock:
        """Lets the other thread begin as soon as the reader has given it up for the first time."""

        def __init__(self) -> None:
            self._lock = threading.Lock()
            self.acquire, self.release = self._lock.acquire, self._lock.release

        def __enter__(self) -> None:
            self._lock.acquire()

        def __exit__(self, *error: object) -> None:
            self._lock.release()
            if threading.current_thread() is reader and not wanting.ident:
                wanting.start()
                feeding.wait(10)

    def slow_room(self: Assembler) -> memoryview:
        if threading.current_thread() is wanting:
            feeding.set()
            go_on.wait(10)
        return room(self)

    lock: Any = Lock()
    monkeypatch.setattr(receiver, "lock", lock)
    monkeypatch.setattr(receiver, "changed", threading.Condition(lock))
    monkeypatch.setattr(Assembler, "room", slow_room)
    wanting = threading.Thread(target=receiver.want, args=(stream,))
    reader = threading.Thread(target=receiver.read_all)
    reader.start()
    assert feeding.wait(10)
    reader.join(0.2)  # it waits for the other one, or has read on
    go_on.set()
    wanting.join()
    assert taken(receiver, stream) == [body]
    reader.join()


def test_a_message_is_read_when_the_one_before_has_been_taken() -> None:
    receiver = Receiver(call(message(b"a") + message(b"b") + message(b"c")))
    receiver.read_frame()
    [stream] = receiver.begun
    receiver.want(stream)
    reader = threading.Thread(target=receiver.read_all)
    reader.start()
    for body in (b"a", b"b", b"c"):
        wait_until(lambda: bool(stream.arrived), "a message")
        assert len(stream.arrived) == 1
        got = receiver.next_message(stream)
        assert got is not None and bytes(got[1]) == body
    assert receiver.next_message(stream) is None
    reader.join()


def test_a_call_that_is_over_leaves_the_connection_to_others() -> None:
    receiver = Receiver(call(message(b"x" * 1000), message(b"y")) + call(message(b"z"), number=3))
    receiver.read_frame()
    receiver.forget(receiver.begun[0])
    receiver.read_all()
    [_, other] = receiver.begun
    receiver.want(other)
    assert taken(receiver, other) == [b"z"]


def test_messages_that_are_too_long_or_compressed_end_their_stream() -> None:
    for prefix in (b"\0\x7f\xff\xff\xff", b"\1\0\0\0\5"):
        receiver = Receiver(call(prefix + b"12345") + call(message(b"z"), number=3))
        receiver.read_all()
        first, other = receiver.begun
        receiver.want(first)
        with pytest.raises(TooLarge):
            receiver.next_message(first)
        receiver.want(other)
        assert taken(receiver, other) == [b"z"]


@pytest.mark.parametrize(
    "data",
    [
        call(b"x" * 40_000, b"x" * 40_000),  # more than a window that nobody has opened
        frames.frame(frames.CONTINUATION, 0, 1, b""),
        frames.head(1 << 20, frames.SETTINGS, 0, 0),
        frames.frame(frames.SETTINGS, 0, 0, b"12345"),
        frames.settings({frames.MAX_FRAME_SIZE: 10}),
        frames.frame(frames.HEADERS, frames.END_HEADERS, 1, b"\xff\xff"),
        frames.headers(2, [(":path", "/a")], end=True),
    ],
)
def test_what_makes_no_sense_ends_the_connection(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Receiver(data).read_all()


def test_what_a_peer_asks_is_answered_and_does_not_pile_up() -> None:
    ping = frames.frame(frames.PING, 0, 0, b"12345678")
    receiver = Receiver(ping + frames.settings({}))
    receiver.read_all()
    assert receiver.script.sent == ping[:4] + b"\1" + ping[5:] + frames.frame(frames.SETTINGS, frames.ACK, 0, b"")
    stuck = Receiver(ping * 2000)
    with stuck._sending, pytest.raises(ProtocolError, match="without reading"):
        stuck.read_all()
