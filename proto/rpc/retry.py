"""The one retry loop: calls that are safe to repeat are repeated until they succeed or fail permanently.

Threads: `call` runs in its caller's thread.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

import grpc
from absl import logging

from downpour.proto.errors import (
    DownpourError,
    MessageTooLarge,
    NotReady,
    NotYet,
    Unauthenticated,
    Unreachable,
    from_rpc_error,
)
from downpour.proto.http2.assembly import TooLarge
from downpour.proto.http2.sockets import Closed
from downpour.proto.rpc.call_error import CallError
from downpour.proto.security.tls import PeerAlert, WrongPeer

Result = TypeVar("Result")

_JITTER = random.Random()  # its own: a model's initial values are drawn from the global one, while other threads retry

# Statuses that may pass: the peer restarts, the network breaks, a deadline was too short, too many calls are open.
_TRANSIENT = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)


def backoff_s(attempt: int) -> float:
    """Seconds to wait before attempt 1, 2, ...: 0.05 doubling up to 2, each times a random 0.5 to 1."""
    return min(0.05 * 2.0 ** (attempt - 1), 2.0) * _JITTER.uniform(0.5, 1.0)


def call(peer: str, give_up_after_s: float, attempt: Callable[[], Result]) -> Result:
    """Runs `attempt`, a call that is safe to repeat, until it succeeds or fails permanently.

    Args:
        peer: Role and address, for messages.
        give_up_after_s: Seconds of failed attempts after which the peer counts as unreachable.
        attempt: Makes the call once.

    Raises:
        Unreachable: Every attempt failed for `give_up_after_s` seconds.
        Unauthenticated: Every attempt failed for `give_up_after_s` seconds, the last because the peer's certificate is
            not one of this job's. Retried, since a reused address may lead to another job for a while.
        DownpourError: The peer's answer, when a retry cannot succeed.
    """
    start = time.monotonic()
    attempts = 0
    while True:
        try:
            return attempt()
        except NotReady as error:
            reason, cause = str(error), None
        except grpc.RpcError as error:
            refusal = from_rpc_error(error)
            if isinstance(refusal, NotYet):  # the shard is reachable; the pace delays this worker
                start, attempts = time.monotonic(), 0
                continue
            cause = error.cause if isinstance(error, CallError) else None
            reason = _reason_to_retry(error, refusal, cause)
        attempts += 1
        waited = time.monotonic() - start
        if waited > give_up_after_s:
            if isinstance(cause, WrongPeer):
                raise Unauthenticated(f"{peer} is not one of this job: {cause.meaning}")
            if isinstance(cause, Closed | PeerAlert):
                reason += " (it may have refused this process's certificate: it must be of the same CA)"
            raise Unreachable(
                f"{peer} did not answer for {waited:.0f} s ({attempts} tries): {reason}; "
                "check that it runs and that the address is right"
            )
        if attempts % 8 == 0:
            logging.info("still waiting for %s after %.0f s: %s", peer, waited, reason)
        time.sleep(backoff_s(attempts))


def _reason_to_retry(error: grpc.RpcError, refusal: DownpourError | None, cause: Exception | None) -> str:
    """Returns why a call failed if it may succeed later; raises the error if it cannot."""
    if isinstance(cause, TooLarge) or isinstance(refusal, MessageTooLarge):
        raise MessageTooLarge(f"{error.details()}; slice the variable, or make the batch smaller") from None
    if refusal is not None and not isinstance(refusal, NotReady):
        raise refusal from None
    if refusal is None and error.code() not in _TRANSIENT:
        raise error
    return str(refusal or error.details() or error.code().name)
