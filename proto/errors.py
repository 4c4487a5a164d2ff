"""Downpour's errors, and the gRPC status that each is sent as.

| error               | gRPC status           | sent by        | try again?                                   |
|---------------------|-----------------------|----------------|----------------------------------------------|
| NotReady            | UNAVAILABLE           | shard, chief   | yes: the job is still being set up           |
| NotYet              | UNAVAILABLE           | shard, chief   | yes, without limit: others are behind        |
| LayoutMismatch      | FAILED_PRECONDITION   | shard, chief   | no: the two sides run different jobs         |
| WorkerSuperseded    | ABORTED               | shard, chief   | no: a newer incarnation has this index       |
| NonFinite           | OUT_OF_RANGE          | shard          | no: the gradient has NaN or infinity         |
| LeaseUnknown        | ABORTED               | chief          | by a new process, which takes new leases     |
| MalformedChunk      | INVALID_ARGUMENT      | shard          | no: the sender is broken                     |
| MessageTooLarge     | RESOURCE_EXHAUSTED    | anybody        | no: a message exceeds the size limit         |
| TooManyWorkers      | RESOURCE_EXHAUSTED    | shard          | no: the ledger has no room for this index    |
| CheckpointFailed    | INTERNAL              | shard          | at the next checkpoint                       |
| Unauthenticated     | UNAUTHENTICATED       | shard, chief   | no: no certificate or token of this job      |
| Forbidden           | PERMISSION_DENIED     | shard, chief   | no: the caller's role may not do that        |
| Unreachable         | (raised by the caller)| nobody         | it was retried until `give_up_after_s` passed|
| JobFailed           | (raised by the caller)| nobody         | no: the training itself went wrong           |
| NotSaved            | (raised by the chief) | nobody         | yes: a new chief writes the last checkpoint  |

The error's name is sent in the trailing metadata, which distinguishes errors of the same status.
"""

from __future__ import annotations

from typing import ClassVar

import grpc

ERROR_KEY = "downpour-error"


class DownpourError(Exception):
    """Base of all errors that end a call or a role with one message."""

    status: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN


class NotReady(DownpourError):
    """The shard holds no parameters yet, or the chief has no layout yet."""

    status = grpc.StatusCode.UNAVAILABLE


class NotYet(DownpourError):
    """The job's pace holds this worker back, or the checkpoint or score of an epoch does."""

    status = grpc.StatusCode.UNAVAILABLE


class LayoutMismatch(DownpourError):
    """Caller and shard computed different layouts."""

    status = grpc.StatusCode.FAILED_PRECONDITION


class WorkerSuperseded(DownpourError):
    """A newer incarnation of the same worker index exists."""

    status = grpc.StatusCode.ABORTED


class LeaseUnknown(WorkerSuperseded):
    """The chief has no record of this process's leases, since its journal was lost; a new process gets new ones."""


class NonFinite(DownpourError):
    """A gradient or difference contains NaN or infinity."""

    status = grpc.StatusCode.OUT_OF_RANGE


class MalformedChunk(DownpourError):
    """A chunk, or a stream of them, does not follow the protocol."""

    status = grpc.StatusCode.INVALID_ARGUMENT


class MessageTooLarge(MalformedChunk):
    """A message exceeds the size limit of `downpour.proto.http2.assembly`."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED


class TooManyWorkers(DownpourError):
    """The worker index exceeds the ledger's capacity."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED


class CheckpointFailed(DownpourError):
    """A checkpoint could not be written."""

    status = grpc.StatusCode.INTERNAL


class Unauthenticated(DownpourError):
    """The caller, or the server it reached, presented no valid certificate or token of the job."""

    status = grpc.StatusCode.UNAUTHENTICATED


class Forbidden(DownpourError):
    """The caller's role may not make this call."""

    status = grpc.StatusCode.PERMISSION_DENIED


class Unreachable(DownpourError):
    """A peer did not answer within the time that the caller may retry."""


class JobFailed(DownpourError):
    """The job ended without reaching its goal: a loss that is not finite, too many bad records."""


class NotSaved(DownpourError):
    """Training is over, the last checkpoint cannot be written, and the shards still hold the parameters."""


BY_NAME: dict[str, type[DownpourError]] = {
    error.__name__: error
    for error in (
        NotReady,
        NotYet,
        LayoutMismatch,
        WorkerSuperseded,
        LeaseUnknown,
        NonFinite,
        MalformedChunk,
        MessageTooLarge,
        TooManyWorkers,
        CheckpointFailed,
        Unauthenticated,
        Forbidden,
    )
}


def from_rpc_error(error: grpc.RpcError) -> DownpourError | None:
    """Returns the Downpour error that a failed call carries, or None for gRPC's own (broken connection, deadline)."""
    for key, value in error.trailing_metadata() or ():
        if key == ERROR_KEY and value in BY_NAME:
            return BY_NAME[value](error.details())
    return None
