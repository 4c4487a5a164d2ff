"""One connection of `downpour.proto.rpc.server`, from accepting to closing.

At first it is unauthenticated: the acceptor's thread reads what has arrived, a few kilobytes at most, without waiting.
When the first call is admitted it gets its own reader thread. A call goes to a thread of the pool when its first
message has arrived, so that a caller that sends nothing occupies none. Calls run one at a time until a message has been
decoded, and again after one that could not be: a caller of nonsense occupies one thread.

Threads: the acceptor's, then the reader thread; pool threads send answers; `Server.stop` and the acceptor may end it.
"""

from __future__ import annotations

import contextlib
import math
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol

import grpc

from downpour.proto.http2 import frames
from downpour.proto.http2.assembly import Buffers
from downpour.proto.http2.connection import Connection
from downpour.proto.http2.frames import DEFAULT_WINDOW, MAX_WINDOW, ErrorCode, ProtocolError
from downpour.proto.http2.outgoing import REFUSAL_COST
from downpour.proto.http2.sockets import Closed, Deadline, PlainSocket
from downpour.proto.http2.stream import Ended, Event, Limits, Stream
from downpour.proto.rpc import calls
from downpour.proto.security.config import Security
from downpour.proto.security.gate import Gate

MAX_STREAMS = 32  # calls of one connection at a time
STRANGER_BYTES = 1 << 14  # of HTTP/2, before a call is admitted
_STEPS = 64  # parts of frames that are read at a time from an unauthenticated connection
FIRST_MESSAGE_S = 10.0  # for the first message of an admitted call to arrive
IDLE_S = 300.0  # without a call
STALL_S = 10.0  # without a byte that a caller takes, or sends while it is waited for, after which it counts as lost
_NONSENSE_COST = 5 * REFUSAL_COST  # of a call with malformed messages, which has occupied a thread
_LINGER_S = 1.0  # for a peer to read why its connection ends
_WINDOW = (1 << 23) + (1 << 16)  # of a stream whose messages are wanted: two chunks of float32

_LIMITS = Limits(initial_window=DEFAULT_WINDOW, wanted_window=_WINDOW, max_streams=MAX_STREAMS)


class Host(Protocol):
    """The interface of the server that a connection uses.

    Attributes:
        buffers: For messages.
        gate: Admits and counts calls.
        is_stopping: Whether new calls are refused.
    """

    buffers: Buffers
    gate: Gate

    @property
    def is_stopping(self) -> bool:
        """See above."""

    def find(self, method: str) -> Any:
        """Returns the handler of a method; None if there is none."""

    def run(self, job: Callable[[], None]) -> bool:
        """Queues a job for the pool; returns False if too many are queued, or the server stops."""

    def charge(self, seconds: float) -> None:
        """Deducts the cost of a connection that was ended for what it sent from the credit of unauthenticated ones."""


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
        is_admitted: Whether a call has been admitted.
        cost_s: Processor seconds that it had used by then.

    Raises:
        OSError: The connection has ended already.
    """

    def __init__(self, host: Host, raw: socket.socket, security: Security) -> None:
        self.address, port = raw.getpeername()[:2]
        family = "ipv6" if ":" in self.address else "ipv4"
        self.peer = f"{family}:[{self.address}]:{port}" if family == "ipv6" else f"{family}:{self.address}:{port}"
        self.names: list[str] = []
        self.is_admitted = False
        self.cost_s = 0.0
        self._host = host
        self._plain = PlainSocket(raw, stall_s=STALL_S)
        self._plain.set_blocking(False)
        self._tls = security.certificates.over_tls(self._plain, None) if security.certificates else None
        super().__init__(self._tls or self._plain, host.buffers, _LIMITS, is_server=True)
        self._has_greeted = False
        self._num_bytes = 0  # received before it was admitted
        self._failed: OSError | None = None
        self._used_at = time.monotonic()
        self._is_running = False  # `run` has begun: calls may go to the pool
        # Guarded by `lock`.
        self._waiting: dict[int, calls.Call] = {}  # calls without their first message, by stream
        self._given: set[int] = set()  # streams whose calls were handed to the pool
        self._is_leaving = False
        self._makes_sense = False  # whether the last message was decoded
        self._nonsense_s = 0.0  # processor seconds of calls that violated the protocol
        self._is_ended = False  # for what it has sent

    # Before a call is admitted: unauthenticated.

    @property
    def has_begun(self) -> bool:
        """Whether the peer has presented its certificate and begun HTTP/2."""
        return self._endpoint.settings.is_greeted

    def advance(self) -> None:
        """Makes progress without waiting, until a call is admitted.

        Raises:
            BlockingIOError: No more progress is possible now.
            OSError: The connection has ended, or must be ended.
        """
        if not self._has_greeted:
            if self._tls:
                self._tls.shake_hands()
                self.names = self._tls.names
            self.greet()  # also if the peer uses another protocol, so that it can detect that
            self._has_greeted = True
        for _ in range(_STEPS):
            if self.is_admitted:
                return
            try:
                self._num_bytes += self.read_some()
            except OSError as error:
                if not self.is_admitted:
                    raise
                self._failed = error  # the reader thread must end it, and wait for its call
            if self._num_bytes > STRANGER_BYTES and not self.is_admitted:
                raise ProtocolError("too much before a call is admitted", ErrorCode.ENHANCE_YOUR_CALM)

    def turn_away(self, error: Exception) -> bool:
        """Sends an unauthenticated peer the reason why it is refused; returns whether it needs time to read that."""
        if not isinstance(error, ProtocolError):
            return False
        self.say_goodbye(error.code)
        self._plain.end_sending()
        return True

    def drain(self) -> None:
        """Reads and discards an unauthenticated peer's bytes; raises `Closed` when it has ended the connection."""
        self._plain.drain(STRANGER_BYTES)

    def fileno(self) -> int:
        """Returns the descriptor, for `selectors`."""
        return self._plain.fileno()

    # After a call is admitted.

    def run(self) -> None:
        """Reads until the connection ends, in a thread of its own."""
        reason: Exception = Closed("Socket closed")
        try:
            self._begin_to_run()
            while not self._failed:
                self.read()
            raise self._failed
        except ProtocolError as error:
            reason = error
            self._end_for(error)
            self._linger()
        except OSError:  # it has ended
            pass
        finally:
            if self._is_ended:  # else its peer reconnects, and costs as much again
                self._host.charge(self.cost_s + time.thread_time() + self._nonsense_s)
            self.close(reason)

    def close(self, reason: Exception) -> None:
        """Ends it, and waits for its running calls, so that none sends to a closed descriptor."""
        self._plain.shut_down()
        self._drop_waiting()
        self.break_off(Ended(str(reason)))
        with self.lock:
            self.changed.wait_for(lambda: not self._given)
        self._plain.close()

    def forget(self, stream: Stream) -> None:
        """See `Connection`."""
        super().forget(stream)
        self._go_on_with_waiting(stream.number)  # before it is discarded, for which `close` waits
        with self.lock:
            self._used_at = time.monotonic()
            self._given.discard(stream.number)
            self.changed.notify_all()

    def go_away(self) -> None:
        """Sends GOAWAY: the peer begins no more calls, those in flight continue."""
        with contextlib.suppress(OSError):
            self.send(frames.goaway(MAX_WINDOW, ErrorCode.NO_ERROR))

    def broke_the_protocol(self, cost_s: float) -> None:
        """See `calls.Caller`."""
        try:
            with self.lock:
                self._makes_sense = False
                self._nonsense_s += cost_s
                self.outgoing.budget.spend(_NONSENSE_COST, "calls that do not follow the protocol")
        except ProtocolError as error:
            self._end_for(error)
            self.shut_down()

    def made_sense(self) -> None:
        """See `calls.Caller`."""
        if not self._makes_sense:
            self._makes_sense = True
            self._go_on_with_waiting()

    def shut_down(self) -> None:
        """Ends it at once."""
        self._plain.shut_down()

    def look_after(self, now: float) -> None:
        """Ends calls whose first message is late, and the connection if it is idle; called every second or so."""
        with self.lock:
            late = [n for n in self._waiting if _is_late(self.streams.open[n], now)]
            expired = [(number, self._waiting.pop(number)) for number in late]
            self._given.update(late)
            leaves = self._is_idle(now) and not self._is_leaving
            self._is_leaving |= leaves
        for number, call in expired:
            if not self._host.run(call.expire):
                self.shut_down()
                self._drop([number])
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
                raise Closed(f"the caller has said nothing for {STALL_S} s")

    def on_event(self, event: Event, stream: Stream) -> None:
        """See `Connection`."""
        if event is Event.BEGUN:
            self._begin(stream)
        if stream.number in self._waiting:
            self._go_on(stream)

    def _begin(self, stream: Stream) -> None:
        """Admits or refuses a call by its header fields."""
        call = calls.Call(self._host.find, self._host.gate, self, stream, self, self._buffers)
        if self._host.is_stopping:
            self._end(stream, b"", ErrorCode.REFUSED_STREAM)
        elif (refusal := call.refusal()) is not None:
            self._end(stream, refusal, ErrorCode.NO_ERROR)
            with self.lock:
                self.outgoing.budget.spend(REFUSAL_COST, "calls that are refused")
        else:
            if not self.is_admitted:
                self._host.gate.connection_admitted()
            self.is_admitted = True
            with self.lock:
                self._waiting[stream.number] = call

    def _go_on(self, stream: Stream, ended: int = 0) -> None:
        """Hands a call to the pool if it may run; `ended` is a call that counts as running no more."""
        with self.lock:
            may_run = self._makes_sense or not self._given - {ended}
            is_due = stream.reset is not None or (may_run and _is_due(stream))
            if not self._is_running or not is_due:
                return
            call = self._waiting.pop(stream.number, None)
            if call is None:
                return
            self._given.add(stream.number)
        if stream.reset is not None:
            self._host.gate.broke_off()
            self.forget(stream)
        elif not self._host.run(call.run):
            words = "too many calls are open"
            last = calls.answer(stream.number, grpc.StatusCode.RESOURCE_EXHAUSTED, words)
            self._end(stream, last, ErrorCode.NO_ERROR)

    def _go_on_with_waiting(self, ended: int = 0) -> None:
        """Hands over calls that waited for another one of this connection to make sense or to end."""
        with self.lock:
            waiting = [self.streams.open[number] for number in self._waiting]
        try:
            for stream in waiting:
                self._go_on(stream, ended)
            if waiting:
                self.flush()
        except ProtocolError as error:
            self._end_for(error)
            self.shut_down()
        except OSError:  # it has ended
            pass

    def _end(self, stream: Stream, last: bytes, code: ErrorCode) -> None:
        """Ends a call that has not run."""
        if not last or not stream.is_whole:
            last += frames.reset(stream.number, code)
        try:
            with self.lock:
                self.outgoing.add(last)
        finally:
            self.forget(stream)

    def _drop_waiting(self) -> None:
        with self.lock:
            waiting = list(self._waiting)
            self._waiting.clear()
        self._drop(waiting)

    def _drop(self, numbers: list[int]) -> None:
        """Drops calls that will not run."""
        for number in numbers:
            self._host.gate.broke_off()
            self.forget(self.streams.open[number])

    def _begin_to_run(self) -> None:
        """Takes over, in the reader thread, from the acceptor's thread, which never waits."""
        self._plain.set_blocking(True)
        with self.lock:
            self._is_running = True
            self._endpoint.settings.take_large_frames()
        self._go_on_with_waiting()
        self.flush()

    def _is_idle(self, now: float) -> bool:
        return not self.streams.open and now - self._used_at > IDLE_S

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
            self._is_leaving = self._is_idle(time.monotonic())
        if self._is_leaving:
            self.say_goodbye(ErrorCode.NO_ERROR)
            self.shut_down()

    def _linger(self) -> None:
        """Reads and discards bytes: with unread ones the kernel would drop what the peer should still read."""
        self._plain.end_sending()
        self._plain.set_deadline(time.monotonic() + _LINGER_S)
        rest = memoryview(bytearray(STRANGER_BYTES))
        with contextlib.suppress(OSError):
            while True:
                self._plain.read_now(rest)


def _is_due(stream: Stream) -> bool:
    """Whether a call may run: its first message has arrived, or as much of it as its window allows."""
    return stream.is_whole or stream.inbox.has_first or stream.inbox.window < DEFAULT_WINDOW // 2


def _is_late(stream: Stream, now: float) -> bool:
    """Whether a call's first message, or its deadline, is overdue."""
    is_silent = now - stream.began_at > FIRST_MESSAGE_S and not _is_due(stream)
    return is_silent or (stream.deadline is not None and now > stream.deadline)
