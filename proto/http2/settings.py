"""SETTINGS of both sides of an HTTP/2 connection, no I/O (RFC 9113, section 6.5).

This side announces its limits in its first frame. Frames of megabytes are allowed later, and only count as allowed once
the peer has acknowledged the setting.

Threads: any, under the connection's lock.
"""

from __future__ import annotations

from downpour.proto.http2 import frames
from downpour.proto.http2.frames import ErrorCode, ProtocolError
from downpour.proto.http2.outgoing import Outgoing
from downpour.proto.http2.stream import Limits
from downpour.proto.http2.streams import Streams
from downpour.proto.http2.windows import Windows

_MAX_SETTINGS = 64  # of one frame


class Settings:
    """The settings announced by this side, and the effect of the peer's.

    Args:
        limits: Limits for the peer.
        streams: Streams of the connection.
        windows: Flow-control windows of the connection.
        outgoing: Queue for answers.
        is_server: Whether this side is the server.

    Attributes:
        max_frame: Maximum payload of a received frame, in bytes.
        is_greeted: Whether the peer has sent its first SETTINGS.
    """

    def __init__(
        self, limits: Limits, streams: Streams, windows: Windows, outgoing: Outgoing, *, is_server: bool
    ) -> None:
        self._limits, self._is_server = limits, is_server
        self._streams, self._windows, self._outgoing = streams, windows, outgoing
        self.max_frame = frames.DEFAULT_FRAME
        self.is_greeted = False
        self._takes_large = False  # once the peer has acknowledged it
        self._num_acknowledged = 0  # SETTINGS frames of this side

    def greeting(self) -> bytes:
        """Encodes the first bytes of this side."""
        values = {
            frames.INITIAL_WINDOW_SIZE: self._limits.initial_window,
            frames.MAX_HEADER_LIST_SIZE: frames.MAX_HEADER_BYTES,
        }
        if self._is_server:
            return frames.settings({**values, frames.MAX_CONCURRENT_STREAMS: self._limits.max_streams})
        self.max_frame = values[frames.MAX_FRAME_SIZE] = frames.MAX_FRAME_BYTES
        return frames.PREFACE + frames.settings({**values, frames.ENABLE_PUSH: 0})

    def take_large_frames(self) -> None:
        """Allows the peer frames of megabytes, once it has acknowledged the setting; for a server, once."""
        self._outgoing.add(frames.settings({frames.MAX_FRAME_SIZE: frames.MAX_FRAME_BYTES}))
        self._takes_large = True

    def check(self, kind: int, length: int, flags: int, number: int) -> int:
        """Checks the header of SETTINGS; returns how many bytes of the payload `handle` gets."""
        if (flags & frames.ACK and length) or not frames.is_whole_settings(length):
            raise ProtocolError(f"SETTINGS of {length} bytes", ErrorCode.FRAME_SIZE_ERROR)
        self._outgoing.budget.spend(1, "SETTINGS")
        if length > frames.SETTING_BYTES * _MAX_SETTINGS:
            raise ProtocolError(f"SETTINGS of {length} bytes", ErrorCode.ENHANCE_YOUR_CALM)
        return length

    def handle(self, kind: int, data: memoryview, flags: int, number: int) -> None:
        """Handles the payload of SETTINGS: applies and acknowledges the peer's, or counts an acknowledgement."""
        if flags & frames.ACK:
            self._num_acknowledged += 1
            if self._takes_large and self._num_acknowledged > 1:  # the first one is for the greeting
                self.max_frame = frames.MAX_FRAME_BYTES
            return
        for setting, value in frames.read_settings(bytes(data)):
            self._apply(setting, value)
        self.is_greeted = True
        self._outgoing.add(frames.frame(frames.SETTINGS, frames.ACK, 0, b""))

    def _apply(self, setting: int, value: int) -> None:
        """Applies a setting of the peer; unknown ones have no meaning."""
        if setting == frames.ENABLE_PUSH and value not in ((0, 1) if self._is_server else (0,)):
            raise ProtocolError(f"ENABLE_PUSH of {value}")
        if setting == frames.INITIAL_WINDOW_SIZE:
            self._windows.set_initial(value, self._streams.open.values())
        elif setting == frames.MAX_FRAME_SIZE:
            if not frames.DEFAULT_FRAME <= value <= frames.LARGEST_FRAME:
                raise ProtocolError(f"MAX_FRAME_SIZE of {value}")
            self._windows.max_frame = value
