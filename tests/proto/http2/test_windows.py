"""Flow control by numbers: what may be sent, and what the peer is granted."""

from __future__ import annotations

import pytest

from downpour.proto.http2 import frames
from downpour.proto.http2.assembly import Assembler, Buffers, Inbox
from downpour.proto.http2.frames import DEFAULT_WINDOW, MAX_WINDOW, ErrorCode, ProtocolError
from downpour.proto.http2.outgoing import Outgoing
from downpour.proto.http2.stream import Ended, Limits, Stream
from downpour.proto.http2.windows import Windows

WANTED = 1 << 20


def windows() -> tuple[Windows, Outgoing]:
    outgoing = Outgoing(lambda: 0.0)
    return Windows(Limits(DEFAULT_WINDOW, WANTED), outgoing), outgoing


def stream(number: int = 1, window: int = DEFAULT_WINDOW) -> Stream:
    return Stream(number, window, Inbox(Assembler(Buffers(1)), DEFAULT_WINDOW))


def test_a_sender_needs_room_in_both_windows() -> None:
    both, _ = windows()
    both.max_frame = 1 << 20
    first, second = stream(1, 100), stream(3, 1 << 20)
    assert both.take(first, 1000) == 100
    assert both.take(first, 1000) == 0
    assert both.take(second, 1 << 20) == DEFAULT_WINDOW - 100
    assert both.take(second, 1) == 0
    both.enlarge(10)
    assert both.take(second, 1000) == 10
    second.reset = Ended("over")
    with pytest.raises(Ended, match="over"):
        both.take(second, 1)


def test_the_connection_is_granted_what_it_has_used_of_a_quarter() -> None:
    both, outgoing = windows()
    both.received(DEFAULT_WINDOW // 4)
    assert not outgoing.frames
    both.received(1)
    assert list(outgoing.frames) == [frames.window_update(0, DEFAULT_WINDOW // 4 + 1)]
    with pytest.raises(ProtocolError) as caught:
        both.received(DEFAULT_WINDOW + 1)
    assert caught.value.code is ErrorCode.FLOW_CONTROL_ERROR


def test_a_stream_is_granted_its_larger_window_once_it_is_wanted() -> None:
    both, outgoing = windows()
    one = stream()
    both.grant(one)
    assert not outgoing.frames
    one.inbox.want()
    both.grant(one)
    assert list(outgoing.frames) == [frames.window_update(1, WANTED - DEFAULT_WINDOW)]
    assert one.inbox.window == WANTED
    both.grant(one)
    assert len(outgoing.frames) == 1


def test_a_window_beyond_the_maximum_is_an_error_of_its_stream_or_of_the_connection() -> None:
    both, _ = windows()
    one = stream()
    assert both.enlarge_stream(one, 0) is ErrorCode.PROTOCOL_ERROR
    assert both.enlarge_stream(one, MAX_WINDOW) is ErrorCode.FLOW_CONTROL_ERROR
    assert both.enlarge_stream(one, 1) is None and one.window == DEFAULT_WINDOW + 1
    with pytest.raises(ProtocolError):
        both.enlarge(MAX_WINDOW)
    with pytest.raises(ProtocolError):
        both.set_initial(MAX_WINDOW, [one])


def test_the_initial_window_changes_open_streams_also_below_zero() -> None:
    both, _ = windows()
    one = stream()
    assert both.take(one, 1000) == 1000
    both.set_initial(10, [one])
    assert one.window == 10 - 1000 and both.initial_send == 10
    assert both.take(one, 1) == 0
