"""What the kernel says of a connection, where it can be read."""

from __future__ import annotations

import socket
import struct
import sys

import pytest

from downpour.proto.http2 import tcp_info


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has it")
def test_another_structure_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """At other offsets, such as those of the state and of the time since data was sent."""
    check = tcp_info.is_usable.__wrapped__
    if not check():
        pytest.skip("this kernel has another structure already")
    for wrong in ("@I", "@16xI", "@200xI", "@4000xI"):
        monkeypatch.setattr(tcp_info, "_LAST_DATA_RECEIVED", struct.Struct(wrong))
        assert not check(), wrong


def test_without_tcp_info_it_is_not_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(raw: socket.socket) -> float:
        raise OSError("Protocol not available")

    monkeypatch.setattr(tcp_info, "silent_s", refuse)
    assert not tcp_info.is_usable.__wrapped__()
