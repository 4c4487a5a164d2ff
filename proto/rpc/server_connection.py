"""One connection of `downpour.proto.rpc.server`, from accepting to closing.

At first it is unauthenticated: the acceptor's thread reads what has arrived, a few kilobytes at most, without waiting.
When the first call is admitted it gets its own reader thread. A call goes to a thread of the pool when its first
message has arrived (`downpour.proto.rpc.dispatcher`).

Threads: the acceptor's, then the reader thread; pool threads send answers; `Server.stop` and the acceptor may end it.
"""

from __future__ import annotations

import contextlib
import math
import socket
import time
from collections.abc import Callable

from downpour.proto.http2 import frames
from downpour.proto.http2.connection import Connection
from downpour.proto.http2.frames import DEFAULT_WINDOW, MAX_WINDOW, ErrorCode, ProtocolError
from downpour.proto.http2.outgoing import REFUSAL_COST
from downpour.proto.http2.sockets import Closed, Deadline, PlainSocket, host_and_port
from downpour.proto.http2.stream import Ended, Event, Limits, Stream
from downpour.proto.rpc.dispatcher import Dispatcher
from downpour.proto.rpc.host import Host
from downpour.proto.security.config import Security

MAX_STREAMS = 32  # calls of one connection at a time
STALL_S = 10.0  # without a byte that a caller takes, or sends while it is waited for, after which it counts as lost
_NONSENSE_COST = 5 * REFUSAL_COST  # of a call with malformed messages, which has occupied a thread
_LINGER_S = 1.0  # for a peer to read why its connection ends
_WINDOW = (1 << 23) + (1 << 16)  # of a stream whose messages are wanted: two chunks of float32

_LIMITS = Limits(initial_window=DEFAULT_WINDOW, wanted_window=_WINDOW, max_streams=MAX_STREAMS)


class ServerConnection(Connection):
    """One connection of the server.

    Args:
        host: The server.
        raw: The accepted socket.
        security: Security settings of this process.

    Attributes:
        address: Address of the peer, without its port.
        peer: Address with the port, as gRPC writes it.
        names: DNS names in the peer's certificate.
        raw: The accepted socket.
        tls: TLS over it; None in plain text.
        is_admitted: Whether a call has been admitted.
        cost_s: Processor seconds that it had used by then.
        failure: Why it must be ended instead of read; None if it can be read.

    Raises:
        OSError: The connection has ended already.
    """

    def __init__(self, host: Host, raw: socket.socket, security: Security) -> None:
        self.address, port = raw.getpeername()[:2]
        self.peer = f"{'ipv6' if ':' in self.address else 'ipv4'}:{host_and_port(self.address, port)}"
        self.names: list[str] = []
        self.raw = raw
        self.is_admitted, self.cost_s = False, 0.0
        self._host = host
        self._plain = PlainSocket(raw, stall_s=STALL_S)
        self._plain.set_blocking(False)
        self.tls = security.certificates.over_tls(self._plain, None) if security.certificates else None
        super().__init__(self.tls or self._plain, host.buffers, _LIMITS, is_server=True)
        self.failure: OSError | None = None
        # Guarded by `lock`.
        self._calls = Dispatcher(host, self, self)
        self._is_leaving = False
        self._nonsense_s = 0.0  # processor seconds of calls that violated the protocol
        self._is_ended = False  # for what it has sent

    # Before a call is admitted: unauthenticated.

    @property
    def has_begun(self) -> bool:
        """Whether the peer has presented its certificate and begun HTTP/2."""
        return self._endpoint.settings.is_greeted

    def shake_hands(self) -> None:
        """Makes the TLS handshake, as much of it as is possible now; raises as `TlsSocket.shake_hands`."""
        if self.tls:
            self.tls.shake_hands()
            self.names = self.tls.names

    def turn_away(self, error: Exception) -> bool:
        """Sends an unauthenticated peer the reason why it is refused; returns whether it needs time to read that."""
        if not isinstance(error, ProtocolError):
            return False
        self.say_goodbye(error.code)
        self._plain.end_sending()
        return True

    def drain(self, num_bytes: int) -> None:
        """Reads and discards a peer's bytes, about `num_bytes`; raises `Closed` when it has ended the connection."""
        self._plain.drain(num_bytes)

    def fileno(self) -> int:
        """Returns the descriptor, for `selectors`."""
        return self._plain.fileno()

    # After a call is admitted.

    def run(self) -> None:
        """Reads until the connection ends, in a thread of its own."""
        reason: Exception = Closed("Socket closed")
        try:
            self._begin_to_run()
            while not self.failure:
                self.read()
            raise self.failure
        except ProtocolError as error:
            reason = error
            self._end_for(error)
            self._plain.linger(_LINGER_S)
        except OSError:  # it has ended
            pass
        finally:
            if self._is_ended:  # else its peer reconnects, and costs as much again
                self._host.charge(self.cost_s + time.thread_time() + self._nonsense_s)
            self.close(reason)

    def close(self, reason: Exception) -> None:
        """Ends it, and waits for its running calls, so that none sends to a closed descriptor."""
        self._plain.shut_down()
        self._calls.drop_waiting()
        self.break_off(Ended(str(reason)))
        with self.lock:
            self.changed.wait_for(lambda: not self._calls.running)
        self._plain.close()

    def forget(self, stream: Stream) -> None:
        """See `Connection`."""
        super().forget(stream)
        with self.lock:
            self._calls.ending.add(stream.number)
        self._go_on_with_waiting()  # before it is discarded, for which `close` waits
        with self.lock:
            self._calls.ended(stream)
            self.changed.notify_all()

    def go_away(self) -> None:
        """Sends GOAWAY: the peer begins no more calls, those in flight continue."""
        with contextlib.suppress(OSError):
            self.send(frames.goaway(MAX_WINDOW, ErrorCode.NO_ERROR))

    def broke_the_protocol(self, cost_s: float) -> None:
        """See `Caller`."""
        try:
            with self.lock:
                self._calls.makes_sense = False
                self._nonsense_s += cost_s
                self.outgoing.budget.spend(_NONSENSE_COST, "calls that do not follow the protocol")
        except ProtocolError as error:
            self._end_for(error)
            self.shut_down()

    def made_sense(self) -> None:
        """See `Caller`."""
        if not self._calls.makes_sense:
            self._calls.makes_sense = True
            self._go_on_with_waiting()

    def shut_down(self) -> None:
        """Ends it at once."""
        self._plain.shut_down()

    def look_after(self, now: float) -> None:
        """Ends calls whose first message is late, and the connection if it is idle; called every second or so."""
        if unended := self._calls.expire(now):
            self.shut_down()  # first, so that nothing is sent to a peer that does not read
            self._calls.drop(unended)
        with self.lock:
            leaves = self._calls.is_idle(now) and not self._is_leaving
            self._is_leaving |= leaves
        if leaves and not self._host.run(self._leave):
            self._is_leaving = False

    def wait(self, stream: Stream, is_due: Callable[[], bool]) -> None:
        """See `Connection`: the reader thread receives what is waited for; a silent caller raises `Closed`."""
        began, end = time.monotonic(), math.inf if stream.deadline is None else stream.deadline
        while not self.changed.wait_for(is_due, min(STALL_S, end - time.monotonic())):
            now = time.monotonic()
            if now >= end:
                raise Deadline("the call's deadline has passed")
            is_reading = self._endpoint.reading is stream  # a part of a message, which may be long
            silent_s = self._plain.silent_s() if is_reading else now - max(began, stream.heard_at)
            if silent_s >= STALL_S:
                raise Closed(f"the caller has sent nothing for {STALL_S} s")

    def on_event(self, event: Event, stream: Stream) -> None:
        """See `Connection`."""
        if event is Event.BEGUN and self._calls.begin(stream) and not self.is_admitted:
            self._host.gate.connection_admitted()
            self.is_admitted = True
        self._calls.go_on(stream)

    def _go_on_with_waiting(self) -> None:
        """Hands over calls that waited for another one of this connection to make sense or to end."""
        try:
            if self._calls.go_on_with_all():
                self.flush()
        except ProtocolError as error:
            self._end_for(error)
            self.shut_down()
        except OSError:  # it has ended
            pass

    def _begin_to_run(self) -> None:
        """Takes over, in the reader thread, from the acceptor's thread, which never waits."""
        self._plain.set_blocking(True)
        with self.lock:
            self._calls.is_open = True
            self._endpoint.settings.take_large_frames()
        self._go_on_with_waiting()
        self.flush()

    def _end_for(self, error: ProtocolError) -> None:
        """Sends an admitted peer the reason why its connection ends, once."""
        with self.lock:
            if self._is_ended:
                return
            self._is_ended = True
        self._host.gate.connection_malformed()
        self.say_goodbye(error.code)

    def _leave(self) -> None:
        with self.lock:
            self._is_leaving = self._calls.is_idle(time.monotonic())
        if self._is_leaving:
            self.say_goodbye(ErrorCode.NO_ERROR)
            self.shut_down()
