"""One connection's side, over a socket that is a script."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downpour.proto.http2 import frames, headers
from downpour.proto.http2.assembly import Buffers, TooLarge, Unreadable
from downpour.proto.http2.connection import Connection
from downpour.proto.http2.frames import DEFAULT_WINDOW
from downpour.proto.http2.sockets import Buffer, Closed
from downpour.proto.http2.stream import Event, Limits, Stream

GREETING = frames.PREFACE + frames.settings({})
REQUEST = [(":method", "POST"), (":scheme", "http"), (":path", "/a")]


class Script:
    """A socket that gives what a peer has sent, and keeps what is sent to it."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self.sent = b""

    def read_into(self, view: memoryview) -> None:
        if len(self._data) < len(view):
            raise Closed("the script is over")
        view[:], self._data = self._data[: len(view)], self._data[len(view) :]

    def read_some(self, view: memoryview) -> int:
        self.read_into(view[:1])
        return 1

    def read_ahead(self, view: memoryview) -> bool:
        return False

    def send(self, buffers: Sequence[Buffer]) -> None:
        self.sent += b"".join(buffers)

    def set_deadline(self, at: float | None) -> None: ...

    def is_quiet(self) -> bool:
        return not self._data

    def shut_down(self) -> None: ...

    def close(self) -> None: ...


class Receiver(Connection):
    """A server's side that keeps its calls; whoever waits for more than there is waits for the reader."""

    def __init__(self, data: bytes, window: int = 1 << 22) -> None:
        self.script = Script(GREETING + data)
        super().__init__(self.script, Buffers(4), Limits(DEFAULT_WINDOW, window, 100), is_server=True)
        self.begun: list[Stream] = []

    def on_event(self, event: Event, stream: Stream) -> None:
        if event is Event.BEGUN:
            self.begun.append(stream)

    def wait(self, stream: Stream, is_due: Callable[[], bool]) -> None:
        assert self.changed.wait_for(is_due, 10)

    def read_to_a_call(self) -> Stream:
        """Up to the beginning of the next one."""
        count = len(self.begun)
        while len(self.begun) == count:
            self.read()
        return self.begun[-1]

    def read_all(self) -> None:
        try:
            while True:
                self.read()
        except Closed:
            pass


def message(body: bytes) -> bytes:
    return b"\0" + len(body).to_bytes(4, "big") + body


def call(*parts: bytes, number: int = 1) -> bytes:
    """A call whose data come in frames of these parts."""
    data = b"".join(frames.frame(frames.DATA, 0, number, part) for part in parts)
    return headers.write(number, REQUEST, end=False) + data + frames.frame(frames.DATA, 1, number, b"")


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
    stream = receiver.read_to_a_call()
    if wanted_first:
        receiver.want(stream)
    reader = threading.Thread(target=receiver.read_all)
    reader.start()
    if not wanted_first:
        reader.join()
        receiver.want(stream)
    assert taken(receiver, stream) == bodies
    reader.join()


def test_a_reader_does_not_wait_for_whoever_takes_the_messages() -> None:
    """They wait in the inbox, as many as its window holds, while other streams go on."""
    body = b"x" * 10_000
    receiver = Receiver(call(*[message(body)] * 6) + call(message(b"z"), number=3))
    first = receiver.read_to_a_call()
    receiver.want(first)
    receiver.read_all()
    other = receiver.begun[-1]
    receiver.want(other)
    assert taken(receiver, other) == [b"z"]
    assert first.inbox.held == 6 * len(body)
    assert taken(receiver, first) == [body] * 6
    assert first.inbox.held == 0


def test_the_window_is_opened_as_messages_are_taken() -> None:
    window = 200_000
    data = message(b"x" * 49_995) * 4
    parts = b"".join(frames.frame(frames.DATA, 0, 1, data[i : i + 10_000]) for i in range(0, len(data), 10_000))
    receiver = Receiver(headers.write(1, REQUEST, end=False) + parts, window)
    stream = receiver.read_to_a_call()
    receiver.want(stream)
    receiver.script.sent = b""
    receiver.read_all()
    assert frames.window_update(1, 1)[:9] not in receiver.script.sent, "opened for messages that nobody has taken"
    for _ in range(4):
        assert receiver.next_message(stream) is not None
    assert frames.window_update(1, 1)[:9] in receiver.script.sent
    assert stream.inbox.window >= window // 2


def test_a_call_that_is_over_leaves_the_connection_to_others() -> None:
    receiver = Receiver(call(message(b"x" * 1000), message(b"y")) + call(message(b"z"), number=3))
    receiver.forget(receiver.read_to_a_call())
    receiver.read_all()
    [_, other] = receiver.begun
    receiver.want(other)
    assert taken(receiver, other) == [b"z"]


@pytest.mark.parametrize(("prefix", "error"), [(b"\0\x7f\xff\xff\xff", TooLarge), (b"\1\0\0\0\5", Unreadable)])
@pytest.mark.parametrize("wanted_first", [False, True])
def test_messages_that_are_too_long_or_compressed_end_their_stream(
    prefix: bytes, error: type[Exception], wanted_first: bool
) -> None:
    receiver = Receiver(call(prefix + b"12345") + call(message(b"z"), number=3))
    first = receiver.read_to_a_call()
    if wanted_first:
        receiver.want(first)
    receiver.read_all()
    receiver.want(first)
    with pytest.raises(error):
        receiver.next_message(first)
    other = receiver.begun[-1]
    receiver.want(other)
    assert taken(receiver, other) == [b"z"]


def test_what_is_asked_is_answered_in_order() -> None:
    ping = frames.frame(frames.PING, 0, 0, b"12345678")
    receiver = Receiver(ping)
    receiver.read_all()
    ack = frames.frame(frames.SETTINGS, frames.ACK, 0, b"")
    assert receiver.script.sent == ack + ping[:4] + b"\1" + ping[5:]


def test_answers_go_after_what_is_being_sent() -> None:
    receiver = Receiver(frames.frame(frames.PING, 0, 0, b"12345678"))
    with receiver._sending:
        receiver.read_all()
        assert receiver.script.sent == b""
    receiver.send(b"what was to be sent")
    assert receiver.script.sent.endswith(b"12345678what was to be sent")
