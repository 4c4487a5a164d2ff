"""One call on `downpour.proto.rpc.server`: its admission, its messages, and how it ends.

Threads: the thread that reads its connection makes the call, admits or refuses it and receives the messages; one of
the pool runs it.
"""

from __future__ import annotations

import contextlib
import re
import time
import urllib.parse
from collections.abc import Callable, Generator, Iterator
from typing import Any, NoReturn

import grpc
from absl import logging
from google.protobuf.message import DecodeError

from downpour.proto.errors import ERROR_KEY, DownpourError, MalformedChunk, MessageTooLarge
from downpour.proto.http2 import frames, headers
from downpour.proto.http2.assembly import Buffers, TooLarge, Unreadable, check_length
from downpour.proto.http2.connection import Connection, Message
from downpour.proto.http2.frames import ErrorCode
from downpour.proto.http2.headers import Headers
from downpour.proto.http2.sockets import Buffer, Deadline
from downpour.proto.http2.stream import Ended, Stream
from downpour.proto.rpc.call_times import OTHER, CallTimes
from downpour.proto.rpc.context import Aborted, Caller, Context
from downpour.proto.security.gate import Gate

_BEGIN: Headers = ((":status", "200"), ("content-type", "application/grpc"))
_MAX_MESSAGE_BYTES = 4096  # of an encoded error text


class Last(list[Buffer]):
    """The last message of an answer, sent together with the status; it must stay valid when the answer has ended."""


class BrokenOff(grpc.RpcError):  # type: ignore[misc]  # grpc has no types
    """Raised in a call whose own requests or answers are broken off."""


class Call:
    """One call on a server.

    Args:
        find: Returns the handler of a method, a `grpc.RpcMethodHandler`; None if there is no such method.
        gate: Admits and counts calls.
        connection: Connection that the call is made on.
        stream: Stream of the call, whose header fields have been received.
        caller: The peer that made it.
        buffers: Buffers of its messages.
        times: Counts calls by method and status.
    """

    def __init__(
        self,
        find: Callable[[str], Any],
        gate: Gate,
        connection: Connection,
        stream: Stream,
        caller: Caller,
        buffers: Buffers,
        times: CallTimes,
    ) -> None:
        self._find = find
        self._gate = gate
        self._connection = connection
        self._stream = stream
        self._caller = caller
        self._buffers = buffers
        self._times = times
        self._method = OTHER  # until the call is admitted
        self._context = Context(stream, caller)
        self._fields = dict(stream.headers)
        self._sent = False  # whether any part of the answer was sent
        self._reply: Message = ()  # the only answer or the last, which is sent with the status

    def refusal(self) -> bytes | None:
        """Returns the answer to a refused call, None if the call is admitted; checks the header fields only."""
        number, kind = self._stream.number, self._fields.get("content-type", "")
        if self._fields[":method"] != "POST":
            return headers.write(number, ((":status", "405"), ("allow", "POST")), end=True)
        if kind[:16] != "application/grpc" or kind[16:17] not in ("", "+", ";"):
            return headers.write(number, ((":status", "415"),), end=True)
        path = self._fields[":path"]
        is_known = self._find(path) is not None
        self._method = path.removeprefix("/") if is_known else OTHER
        self._times.began(self._method)
        try:
            self._gate.admit(path, self._context)
        except DownpourError as error:
            return self._refused(error)
        if not is_known:
            return self._unimplemented(f"there is no method {path[:200]}")
        if (encoding := self._fields.get("grpc-encoding", "identity")) != "identity":
            words = f"messages compressed with {encoding[:40]} are not supported"
            accepted = (("grpc-accept-encoding", "identity"),)
            return self._unimplemented(words, accepted)
        return None

    def expire(self) -> None:
        """Ends a call instead of running it, because its first message has not arrived."""
        is_overdue = self._context.time_remaining() == 0
        status = grpc.StatusCode.DEADLINE_EXCEEDED if is_overdue else grpc.StatusCode.CANCELLED
        self._context.fail(status, "no message was received in time")
        self._gate.broke_off()
        self._end()

    def run(self) -> None:
        """Runs the call to its end."""
        began_s = time.thread_time()
        try:
            self._run()
        except Aborted:
            pass
        except DownpourError as error:
            self._gate.refused(error)
            if isinstance(error, MalformedChunk):
                self._caller.broke_the_protocol(time.thread_time() - began_s)
            self._context.fail(error.status, str(error), type(error))
        except TooLarge as error:  # the answer
            self._context.fail(MessageTooLarge.status, str(error), MessageTooLarge)
        except BrokenOff:
            self._gate.broke_off()
            if self._context.status is grpc.StatusCode.OK:
                self._context.fail(grpc.StatusCode.CANCELLED, "the call was cancelled")
        except Exception as error:  # any error must be reported to the caller, as by grpcio's server
            logging.exception("a call failed")
            self._context.fail(grpc.StatusCode.UNKNOWN, f"{type(error).__name__}: {error}")
        finally:
            self._end()

    def _refused(self, error: DownpourError) -> bytes:
        self._gate.refused(error)
        self._count(error.status)
        trailing = ((ERROR_KEY, type(error).__name__),)
        return answer(self._stream.number, error.status, str(error), trailing)

    def _unimplemented(self, words: str, metadata: Headers = ()) -> bytes:
        self._count(grpc.StatusCode.UNIMPLEMENTED)
        return answer(self._stream.number, grpc.StatusCode.UNIMPLEMENTED, words, metadata)

    def _count(self, status: grpc.StatusCode) -> None:
        self._times.ended(self._method, status, time.monotonic() - self._stream.began_at)

    def _end(self) -> None:
        try:
            self._finish()
        finally:
            self._count(self._context.status)
            self._connection.forget(self._stream)

    def _run(self) -> None:
        handler = self._find(self._fields[":path"])
        read = handler.request_deserializer or (lambda message: message)
        write = handler.response_serializer
        with contextlib.closing(self._messages(read, is_decoded=handler.request_deserializer is not None)) as messages:
            request = messages if handler.request_streaming else self._only(messages)
            if handler.response_streaming:
                # Closed as soon as the caller has disconnected: it may hold a place that others wait for.
                serve = handler.unary_stream or handler.stream_stream
                with contextlib.closing(serve(request, self._context)) as answers:
                    for parts in answers:
                        if isinstance(parts, Last):
                            self._reply = parts
                        else:
                            self._send([write(parts)] if write else parts)
            else:
                reply = write((handler.unary_unary or handler.stream_unary)(request, self._context))
                check_length(len(reply))
                self._reply = [reply]

    def _messages(self, read: Callable[[Any], Any], *, is_decoded: bool) -> Generator[Any, None, None]:
        """Yields the caller's messages; each is valid until the next is requested.

        A message that `read` does not decode made sense if the handler requests another one.
        """
        while True:
            try:
                if not self._stream.inbox.is_wanted:
                    self._connection.want(self._stream)
                got = self._connection.next_message(self._stream)
            except (Ended, OSError, Unreadable) as error:
                self._break_off(error)
            if got is None:
                return
            buffer, view = got
            try:
                message = _read(read, view)
                if is_decoded:
                    self._caller.made_sense()
                yield message
                if not is_decoded:
                    self._caller.made_sense()
            finally:
                if buffer is not None:
                    self._buffers.give_back(buffer)

    def _only(self, messages: Iterator[Any]) -> Any:
        for message in messages:
            return message
        self._context.abort(grpc.StatusCode.UNIMPLEMENTED, "the call carries no request")

    def _send(self, message: Message, after: bytes = b"") -> None:
        before = b"" if self._sent else headers.write(self._stream.number, _BEGIN, end=False)
        self._sent = True
        try:
            self._connection.send_message(self._stream, message, before, after)
        except (Ended, OSError) as error:
            self._break_off(error)

    def _break_off(self, error: Exception) -> NoReturn:
        """Ends a call whose requests or answers are broken off, with the status for that error."""
        if isinstance(error, Deadline):
            self._context.fail(grpc.StatusCode.DEADLINE_EXCEEDED, str(error))
        elif isinstance(error, TooLarge):
            self._context.fail(MessageTooLarge.status, str(error), MessageTooLarge)
        elif isinstance(error, Unreadable):
            self._context.fail(grpc.StatusCode.INTERNAL, str(error))
        raise BrokenOff(str(error)) from None

    def _finish(self) -> None:
        """Sends the status, and the reply if there is one."""
        number, context = self._stream.number, self._context
        has_reply = bool(self._reply) and context.status is grpc.StatusCode.OK
        last = answer(number, context.status, context.details, context.trailing, begun=self._sent or has_reply)
        if not self._stream.is_whole:  # the rest is not read
            last += frames.reset(number, ErrorCode.NO_ERROR)
        if self._stream.reset is None:
            with contextlib.suppress(OSError, BrokenOff):  # the caller has disconnected
                if has_reply:
                    self._send(self._reply, last)
                else:
                    self._stream.is_answered = True
                    self._connection.send(last)


def _read(read: Callable[[Any], Any], view: memoryview) -> Any:
    try:
        return read(view.toreadonly())
    except DecodeError:
        raise MalformedChunk("the request is no message of its method") from None


def answer(number: int, status: grpc.StatusCode, words: str, metadata: Headers = (), *, begun: bool = False) -> bytes:
    """Encodes the frame that ends a call; `begun` if header fields were sent before."""
    trailers = [("grpc-status", str(status.value[0])), *metadata]
    if status is not grpc.StatusCode.OK:
        safe = " !\"#$&'()*+,/:;<=>?@[\\]^`{|}"
        quoted = urllib.parse.quote(words, safe)[:_MAX_MESSAGE_BYTES]
        trailers.insert(1, ("grpc-message", re.sub(r"%[0-9A-F]?$", "", quoted)))
    return headers.write(number, [*([] if begun else _BEGIN), *trailers], end=True)
