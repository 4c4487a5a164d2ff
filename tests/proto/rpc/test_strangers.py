"""Unauthenticated connections, without sockets: which goes first, and when."""

from __future__ import annotations

from typing import cast

import pytest

from downpour.proto.http2.frames import ErrorCode, ProtocolError
from downpour.proto.rpc.server_connection import ServerConnection
from downpour.proto.rpc.strangers import FIRST_CALL_S, HANDSHAKE_S, STRANGER_BYTES, Stranger, Strangers


class Connection:
    """Receives `size` bytes at a time; a call is admitted after `admitted_after` of them."""

    def __init__(self, address: str = "a", size: int = 100, admitted_after: float = float("inf")) -> None:
        self.address, self.size, self.admitted_after = address, size, admitted_after
        self.has_begun = False
        self.num_bytes = self.num_shaken = self.num_greeted = self.drained = 0
        self.failure: OSError | None = None
        self.error: OSError | None = None

    @property
    def is_admitted(self) -> bool:
        return self.num_bytes >= self.admitted_after

    def shake_hands(self) -> None:
        self.num_shaken += 1
        if self.num_shaken == 1:
            raise BlockingIOError

    def greet(self) -> None:
        self.num_greeted += 1

    def read_some(self) -> int:
        self.num_bytes += self.size
        if self.error is not None:
            raise self.error
        return self.size

    def turn_away(self, error: Exception) -> bool:
        return isinstance(error, ProtocolError)

    def drain(self, num_bytes: int) -> None:
        self.drained += num_bytes


def stranger(connection: Connection, came_at: float = 0.0) -> Stranger:
    return Stranger(cast(ServerConnection, connection), came_at, 0.0)


def test_it_is_greeted_once_after_its_handshake_and_read_until_a_call_is_admitted() -> None:
    connection = Connection(admitted_after=1000)
    one = stranger(connection)
    with pytest.raises(BlockingIOError):
        one.advance()
    assert connection.num_greeted == connection.num_bytes == 0
    one.advance()
    one.advance()
    assert connection.num_bytes == 1000 and connection.num_greeted == 1


def test_more_than_a_few_kilobytes_before_a_call_are_an_error() -> None:
    connection = Connection(size=STRANGER_BYTES // 2)
    one = stranger(connection)
    with pytest.raises(BlockingIOError):
        one.advance()
    with pytest.raises(ProtocolError) as caught:
        one.advance()
    assert caught.value.code is ErrorCode.ENHANCE_YOUR_CALM
    assert one.turn_away(caught.value, 1.0) and one.is_leaving
    one.advance()
    assert connection.drained == STRANGER_BYTES


def test_an_error_after_the_admission_is_left_to_the_reader_thread() -> None:
    connection = Connection(admitted_after=100)
    connection.num_shaken = 1
    connection.error = ConnectionResetError()
    stranger(connection).advance()
    assert connection.failure is connection.error


def test_its_deadlines() -> None:
    connection = Connection()
    one = stranger(connection, came_at=100.0)
    assert not one.is_overdue(100.0 + HANDSHAKE_S - 0.1)
    assert one.is_overdue(100.0 + HANDSHAKE_S)
    connection.has_begun = True
    assert not one.is_overdue(100.0 + HANDSHAKE_S)
    assert one.is_overdue(100.0 + FIRST_CALL_S)
    assert not one.turn_away(OSError("it has gone"), 101.0)
    assert one.turn_away(ProtocolError("nonsense"), 101.0)
    assert one.is_overdue(102.5)


def test_the_oldest_of_the_busiest_address_is_in_the_way() -> None:
    all_of_them = Strangers()
    assert all_of_them.in_the_way() is None
    first, *rest = [stranger(Connection(address), came_at=i) for i, address in enumerate("abbab")]
    for one in (first, *rest):
        all_of_them.add(one)
    assert all_of_them.in_the_way() is rest[0]
    all_of_them.remove(rest[0])
    all_of_them.remove(rest[1])
    assert all_of_them.in_the_way() is first
    assert len(all_of_them) == 3 and rest[0] not in all_of_them and first in all_of_them
    assert all_of_them.overdue(HANDSHAKE_S + 2) == [first]
