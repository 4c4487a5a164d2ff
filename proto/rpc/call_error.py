"""Statuses of failed calls, as the client raises them. No I/O."""

from __future__ import annotations

import contextlib
import urllib.parse
from collections.abc import Iterator

import grpc

from downpour.proto.http2.assembly import TooLarge, Unreadable
from downpour.proto.http2.headers import Headers
from downpour.proto.http2.sockets import Deadline
from downpour.proto.http2.stream import Ended

_CODES = {str(code.value[0]): code for code in grpc.StatusCode}
# Status for an HTTP status that is not gRPC's (gRPC's http-grpc-status-mapping.md).
_HTTP_CODES = {
    "400": grpc.StatusCode.INTERNAL,
    "401": grpc.StatusCode.UNAUTHENTICATED,
    "403": grpc.StatusCode.PERMISSION_DENIED,
    "404": grpc.StatusCode.UNIMPLEMENTED,
    **dict.fromkeys(("429", "502", "503", "504"), grpc.StatusCode.UNAVAILABLE),
}


class CallError(grpc.RpcError):  # type: ignore[misc]  # grpc has no types
    """A call failed; has those methods of `grpc.Call` that describe the failure.

    Attributes:
        cause: The error on this side that the status stands for; None for a status that was received.
    """

    def __init__(
        self, code: grpc.StatusCode, details: str, trailers: Headers = (), *, cause: Exception | None = None
    ) -> None:
        super().__init__(f"{code.name}: {details}")
        self.cause = cause
        self._code, self._details, self._trailers = code, details, tuple(trailers)

    def code(self) -> grpc.StatusCode:
        """The status."""
        return self._code

    def details(self) -> str:
        """The message."""
        return self._details

    def trailing_metadata(self) -> Headers:
        """The metadata sent with the status."""
        return self._trailers


@contextlib.contextmanager
def mapped() -> Iterator[None]:
    """Maps a connection's errors to `CallError`."""
    try:
        yield
    except Deadline as error:
        raise CallError(grpc.StatusCode.DEADLINE_EXCEEDED, str(error), cause=error) from None
    except Unreadable as error:
        code = grpc.StatusCode.RESOURCE_EXHAUSTED if isinstance(error, TooLarge) else grpc.StatusCode.INTERNAL
        raise CallError(code, str(error), cause=error) from None
    except (Ended, OSError) as error:
        words = str(error) or type(error).__name__
        raise CallError(grpc.StatusCode.UNAVAILABLE, words, cause=error) from None


def check(trailers: Headers) -> None:
    """Raises `CallError` if a call's status is not OK."""
    check_http(trailers)
    values = dict(trailers)
    number = values.get("grpc-status", "")
    code = _CODES.get(number, grpc.StatusCode.UNKNOWN)
    if code is not grpc.StatusCode.OK:
        details = urllib.parse.unquote(values.get("grpc-message", ""))
        raise CallError(code, details, tuple(pair for pair in trailers if not pair[0].startswith(":")))


def check_http(fields: Headers) -> None:
    """Raises `CallError` for an HTTP status other than 200."""
    if (status := dict(fields).get(":status", "200")) != "200":
        raise CallError(_HTTP_CODES.get(status, grpc.StatusCode.UNKNOWN), f"HTTP status {status}")
