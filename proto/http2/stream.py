"""One HTTP/2 stream, which is one call: its state, its events and the limits for it. No I/O.

`downpour.proto.http2.streams` changes streams as frames are received, `downpour.proto.http2.windows` their flow-control
windows.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from downpour.proto.http2.assembly import Inbox
from downpour.proto.http2.headers import Fields


class Ended(Exception):
    """A stream has ended: one side reset it, or the connection is lost."""


class Event(enum.Enum):
    """What happened to a stream."""

    BEGUN = enum.auto()  # a request's header fields were received
    CHANGED = enum.auto()  # messages, the end of the stream, trailers or an error


@dataclass(frozen=True)
class Limits:
    """Limits that this side sets for the peer.

    Attributes:
        initial_window: Flow-control window of a new stream, in bytes.
        wanted_window: Window once the stream's messages are wanted, in bytes in flight or received but not taken.
        max_streams: Streams that the peer may have open at one time.
    """

    initial_window: int
    wanted_window: int
    max_streams: int = 0


@dataclass(eq=False)
class Stream:
    """The state of one HTTP/2 stream, which is one call.

    Attributes:
        number: Stream identifier.
        window: Bytes that may be sent.
        inbox: Received messages.
        headers: Header fields received last; the trailers, once the call has ended.
        has_headers: Whether any header fields were received.
        is_whole: Whether the peer has ended its side of the stream.
        reset: Why the stream cannot continue; None if it can.
        is_reset_by_peer: Whether the peer reset it.
        is_answered: Whether the end of the answer is being sent; the peer may begin another stream instead.
        announced: Bytes of messages still due by `content-length`; None without that field.
        deadline: Until when operations may wait for it, a moment of `time.monotonic()`; None for no limit.
        began_at: When it began, a moment of the clock.
        heard_at: When it began or last received DATA.
    """

    number: int
    window: int
    inbox: Inbox
    headers: Fields = ()
    has_headers: bool = False
    is_whole: bool = False
    reset: Ended | None = None
    is_reset_by_peer: bool = False
    is_answered: bool = False
    announced: int | None = None
    deadline: float | None = None
    began_at: float = 0.0
    heard_at: float = 0.0
