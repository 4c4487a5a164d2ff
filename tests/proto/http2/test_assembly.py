"""Messages put together from pieces of any size, and what waits for whoever takes them."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downpour.proto.http2.assembly import Assembler, Buffers, Inbox
from tests.proto.http2.test_connection import message


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


@given(st.lists(st.binary(max_size=300), max_size=60), st.integers(1, 500), st.data())
def test_an_inbox_gives_what_came_whoever_is_faster(bodies: list[bytes], step: int, data: st.DataObject) -> None:
    inbox, sent, got = Inbox(Assembler(Buffers(2)), 1 << 16), b"".join(map(message, bodies)), list[bytes]()
    left = memoryview(sent)
    while left:
        room = inbox.room(min(step, len(left)))
        if data.draw(st.booleans()):  # between the two, as another thread may
            inbox.want()
            if whole := inbox.take():
                got.append(bytes((whole[0] or b"")[: whole[1]]))
        room[:], left = left[: len(room)], left[len(room) :]
        inbox.took(len(room))
        assert inbox.held >= 0
    inbox.want()
    while whole := inbox.take():
        got.append(bytes((whole[0] or b"")[: whole[1]]))
    assert got == bodies
    assert inbox.held == 0 and not inbox.is_inside


def test_small_messages_take_little_more_than_they_are() -> None:
    """Two megabytes of empty ones once took 2.5 GB."""
    buffers = Buffers(4)
    inbox = Inbox(Assembler(buffers), 1 << 22)
    inbox.want()
    for body in (b"", b"x"):
        data = message(body) * 100_000
        left = memoryview(data)
        while left:
            room = inbox.room(len(left))
            room[:], left = left[: len(room)], left[len(room) :]
            inbox.took(len(room))
        ready = sum(sys.getsizeof(buffer) for buffer, _ in inbox._ready)
        assert ready + len(inbox._spilled) < 1.2 * len(data) + 400_000
        while inbox.take():
            pass
        assert inbox.held == 0


def test_the_first_message_is_noticed_when_it_is_whole() -> None:
    inbox = Inbox(Assembler(Buffers(2)), 1 << 16)
    for i, byte in enumerate(message(b"abc")):
        assert not inbox.has_first, i
        inbox.room(1)[0] = byte
        inbox.took(1)
    assert inbox.has_first


def test_a_buffer_is_used_again_and_an_empty_one_is_none() -> None:
    buffers = Buffers(1)
    one = buffers.take(100)
    buffers.give_back(one)
    assert buffers.take(50) is one
    assert buffers.take(0) == b""
    buffers.give_back(bytearray())
    assert buffers.take(50) is not one


@pytest.mark.parametrize("length", [0, 1, 128, 129, 5000])
def test_a_message_of_any_length_is_whole_when_its_last_byte_has_come(length: int) -> None:
    assembler = Assembler(Buffers(2), lambda beginning, length: None)
    data = memoryview(message(b"m" * length))
    whole = None
    while data:
        assert whole is None
        room = assembler.room()
        assert room
        count = min(len(room), len(data))
        room[:count], data = data[:count], data[count:]
        whole = assembler.took(count)
    assert whole is not None and whole[1] == length
