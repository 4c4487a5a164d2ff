"""The shard's gRPC methods: decode, call, encode.

Threads: gRPC calls each method in a thread of its pool. Chunk streams pass as raw bytes; `downpour.proto.codec`
reads and writes them.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
from absl import logging

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import CheckpointFailed, LayoutMismatch, MalformedChunk, NotReady
from downpour.proto.http2.connection import Message
from downpour.proto.security.gate import Gate
from downpour.proto.spans import SpanBuffer
from downpour.ps.apply.admission import Admission
from downpour.ps.apply.group_commit import GroupCommit
from downpour.ps.apply.processors import Processors
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint import restore
from downpour.ps.checkpoint.shard_file import write_shard
from downpour.ps.checkpoint.storage import Folder
from downpour.ps.memory.arena import Arena
from downpour.ps.policy.specification import policies_of
from downpour.ps.service.tracing import CallPhases
from downpour.ps.service.usage import Usage
from downpour.ps.shard.publication import live, only
from downpour.ps.shard.shard import Shard

SERVICE = "downpour.v1.ParameterServer"

# Messages that name layout, shard and job.
_Call = (
    pb.ShardSpecification
    | pb.PullRequest
    | pb.PushHeader
    | pb.AbsentRequest
    | pb.SetRateRequest
    | pb.WriteCheckpointRequest
    | pb.StopRequest
)

# A pull that the pace blocks is answered with `NotYet` after so long, and retried; it occupies a thread meanwhile.
_TURN_S = 5.0

# Pushes that are received, and pulls that are answered, at a time. The others wait under back-pressure: a shard buffers
# 64 KB of unread data a call (`downpour.proto.http2.connection`). On two cores more were not faster.
# A worker that stalls in the middle loses its place after 10 s (`downpour.proto.rpc.server`).
_MAX_PUSHES = 3
_MAX_PULLS = 3


class Servicer:
    """Serves one shard, which is empty until the chief initialises it or its arena holds it already.

    Args:
        index: Index of this shard.
        arena_path: File of the arena; None for anonymous memory.
        stop_soon: Begins to stop the server and returns at once.
        gate: The server's gate; its counts are in the status.
        group_commit: Whether pushes may be delayed so that others are applied with them.
        clock: Clock of the spans of traced steps, in seconds.

    Raises:
        ValueError: The arena cannot be used.
    """

    def __init__(
        self,
        index: int,
        arena_path: Path | None,
        stop_soon: Callable[[], None] = lambda: None,
        gate: Gate | None = None,
        *,
        group_commit: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._index = index
        self._spans = SpanBuffer(clock)
        self._stop_soon = stop_soon
        self._gate = gate
        self._arena_path = arena_path
        self._initializing, self._checkpointing = threading.Lock(), threading.Lock()
        pushing = Admission(_MAX_PUSHES, GroupCommit(Processors()) if group_commit else None)
        self._usage = Usage(pushing, Admission(_MAX_PULLS))
        arena = Arena.open(arena_path, index) if arena_path else None
        self._shard = Shard(arena) if arena else None
        if self._shard:
            logging.info("continuing from the arena at version %d", self._shard.version)
            _log_ledger(self._shard.arena)

    @property
    def ready(self) -> bool:
        """Whether the shard holds parameters."""
        return self._shard is not None

    def handler(self) -> grpc.GenericRpcHandler:
        """The methods, as `downpour/proto/parameter_server.proto` describes them."""
        return _handler(self)

    def status(self, request: pb.StatusRequest, context: grpc.ServicerContext | None = None) -> pb.StatusReply:
        """Counters; see `ParameterServer.Status`."""
        reply = self.counted()
        if self._shard is not None and request.with_layout:
            specification = self._shard.arena.specification
            reply.layout = specification.layout
            reply.specification.CopyFrom(specification)
            reply.specification.ClearField("layout")
        if request.HasField("trace"):
            reply.trace.CopyFrom(self._spans.after(request.trace))
        return reply

    def counted(self, *, since_start: bool = False) -> pb.StatusReply:
        """Counters, or those of this process; without layout and spans."""
        shard = self._shard
        reply = pb.StatusReply(shard=self._index) if shard is None else shard.status(since_start=since_start)
        reply.MergeFrom(self._usage.status())
        if self._gate:
            reply.guests.MergeFrom(pb.StatusReply.Guests(**asdict(self._gate.counts())))
        return reply

    def initialize(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> pb.InitializeReply:
        """Receives specification and values; see `ParameterServer.Initialize`."""
        chunks = map(codec.decode_chunk, messages)
        first = next(chunks, None)
        if first is None or not isinstance(first.header, pb.ShardSpecification):
            raise MalformedChunk("the first chunk has no specification")
        with self._initializing:
            if self._shard is not None:
                self._check(first.header)
                return pb.InitializeReply(kept=True, version=self._shard.version)
            self._check_index(first.header.shard)
            self._shard = _create(self._arena_path, first.header, itertools.chain((first,), chunks))
        logging.info("initialised with %s parameters", f"{self._shard.vector.size:,}")
        return pb.InitializeReply(version=0)

    def restore(self, request: pb.RestoreRequest, context: grpc.ServicerContext) -> pb.InitializeReply:
        """Reads a checkpoint; see `ParameterServer.Restore`."""
        with self._initializing:
            if self._shard is not None:
                self._check(request.specification)
                return pb.InitializeReply(kept=True, version=self._shard.version)
            self._check_index(request.specification.shard)
            self._shard = _restored(self._arena_path, request)
        logging.info("restored from %s at version %d", request.directory, self._shard.version)
        return pb.InitializeReply(version=self._shard.version)

    def pull(self, request: pb.PullRequest, context: grpc.ServicerContext) -> Iterator[Message]:
        """Streams the vector; see `ParameterServer.Pull`."""
        yield from self._pull(request, self._check(request), context)

    def push(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> pb.PushReply:
        """Applies each chunk as it arrives; see `ParameterServer.Push`."""
        return self._push(messages)[1]

    def push_pull(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Message]:
        """Applies a push, then streams the vector; see `ParameterServer.PushPull`."""
        header, reply = self._push(messages)
        yield from self._pull(header.pull, self._check(header), context, reply)

    def absent(self, request: pb.AbsentRequest, context: grpc.ServicerContext) -> pb.AbsentReply:
        """Removes some workers from the pace; see `ParameterServer.Absent`."""
        self._check(request).absent([(worker.index, worker.incarnation) for worker in request.workers])
        return pb.AbsentReply()

    def set_rate(self, request: pb.SetRateRequest, context: grpc.ServicerContext) -> pb.SetRateReply:
        """Changes the factor of the learning rate; see `ParameterServer.SetRate`."""
        shard = self._check(request)
        if not 0 < request.factor < math.inf:
            raise MalformedChunk(f"the factor of the learning rate is {request.factor}, not a number above 0")
        rate = shard.set_rate(request.number, request.factor)
        logging.info("the learning rate is multiplied by %g since version %d", rate.factor, rate.version)
        return pb.SetRateReply(rate=rate)

    def write_checkpoint(
        self, request: pb.WriteCheckpointRequest, context: grpc.ServicerContext
    ) -> pb.WriteCheckpointReply:
        """Writes a checkpoint's file; see `ParameterServer.WriteCheckpoint`."""
        shard = self._check(request)
        if request.check_only:
            _check_folder(self._index, request.directory)
            return pb.WriteCheckpointReply()
        with self._checkpointing, shard.snapshot() as snapshot:
            return write_shard(request.directory, shard.arena.specification, snapshot)

    def stop(self, request: pb.StopRequest, context: grpc.ServicerContext) -> pb.StopReply:
        """Stops the server at the end of the job; see `ParameterServer.Stop`."""
        if self._shard is not None:
            self._check(request)
        logging.info("the job is over")
        self._stop_soon()
        return pb.StopReply()

    def close(self) -> None:
        """Closes the arena; pushes in flight are refused."""
        if self._shard is not None:
            self._shard.close()

    def _push(self, messages: Iterator[bytes]) -> tuple[pb.PushHeader, pb.PushReply]:
        phases = CallPhases(self._spans)
        with self._usage.push(self._shard.patience_s if self._shard else 0.0) as (member, meter):
            phases.end("queue")
            chunks = meter.chunks(messages)
            first = next(chunks, None)
            if first is None or not isinstance(first.header, pb.PushHeader):
                raise MalformedChunk("the first chunk does not name a push")
            phases.of(first.header)
            shard = self._check(first.header)
            push = shard.begin(first.header, member)
            for chunk in itertools.chain((first,) if first.count else (), chunks):
                phases.end("receive")
                meter.apply(shard, push, chunk)
                phases.end("apply")
            reply = shard.finish(push)
        phases.keep()
        _log_push(push.header, reply)
        return push.header, reply

    def _pull(
        self, request: pb.PullRequest, shard: Shard, context: grpc.ServicerContext, pushed: pb.PushReply | None = None
    ) -> Iterator[Message]:
        phases = CallPhases(self._spans, request)
        _check_codecs(request, shard)
        with self._usage.pace():
            shard.wait_turn(request, min(_TURN_S, context.time_remaining() or _TURN_S))
        phases.end("pace")
        yield from self._usage.pull(messages_of_pull(request, shard, pushed), lambda: phases.end("queue"))
        phases.end("send")
        phases.keep()

    def _check_index(self, shard: int) -> None:
        if shard != self._index:
            raise LayoutMismatch(
                f"this is shard {self._index}, called as shard {shard}; check the order of the addresses in --ps"
            )

    def _check(self, call: _Call) -> Shard:
        """Returns the shard if its index, layout and job are those of a call."""
        if self._shard is None:
            raise NotReady(f"shard {self._index} holds no parameters yet; the chief has not initialised it")
        if isinstance(call, pb.ShardSpecification) or call.HasField("shard"):
            self._check_index(call.shard)
        another = f", or give another --arena than {self._arena_path}" if self._arena_path else ""
        _check_same(self._shard.arena.specification, call, another)
        return self._shard


def _handler(servicer: Servicer) -> grpc.GenericRpcHandler:
    pull = grpc.unary_stream_rpc_method_handler(servicer.pull, pb.PullRequest.FromString, None)
    push = grpc.stream_unary_rpc_method_handler(servicer.push, None, pb.PushReply.SerializeToString)
    initialize = grpc.stream_unary_rpc_method_handler(servicer.initialize, None, pb.InitializeReply.SerializeToString)
    methods = {
        "Status": _unary(servicer.status, pb.StatusRequest, pb.StatusReply),
        "Initialize": initialize,
        "Restore": _unary(servicer.restore, pb.RestoreRequest, pb.InitializeReply),
        "Pull": pull,
        "Push": push,
        "PushPull": grpc.stream_stream_rpc_method_handler(servicer.push_pull, None, None),
        "Absent": _unary(servicer.absent, pb.AbsentRequest, pb.AbsentReply),
        "SetRate": _unary(servicer.set_rate, pb.SetRateRequest, pb.SetRateReply),
        "WriteCheckpoint": _unary(servicer.write_checkpoint, pb.WriteCheckpointRequest, pb.WriteCheckpointReply),
        "Stop": _unary(servicer.stop, pb.StopRequest, pb.StopReply),
    }
    return grpc.method_handlers_generic_handler(SERVICE, methods)


def _check_same(mine: pb.ShardSpecification, call: _Call, another: str) -> None:
    """Raises `LayoutMismatch` for a call of another layout or job than the shard's; `another` ends the message."""
    if call.fingerprint != mine.fingerprint:
        raise LayoutMismatch(
            f"shard {mine.shard} holds layout {mine.fingerprint.hex()[:16]}, the call is for "
            f"{call.fingerprint.hex()[:16]}; start every role with the same recipe and overrides{another}"
        )
    if call.job_id and call.job_id != mine.job_id:
        raise LayoutMismatch(
            f"shard {mine.shard} holds parameters of job {mine.job_id or 'without an id'}, the call is of job "
            f"{call.job_id}; give every job its own shards{another}"
        )


def _check_folder(shard: int, directory: str) -> None:
    """Raises `CheckpointFailed` for a folder that cannot be written."""
    try:
        Folder(directory).check()
    except ValueError as error:
        raise CheckpointFailed(f"shard {shard}: {error}") from None


def _check_codecs(request: pb.PullRequest, shard: Shard) -> None:
    """Raises `MalformedChunk` for a pull in codecs that are not known."""
    if request.codec not in codec.WIRE_DTYPES:
        raise MalformedChunk(f"codec {request.codec} is not known; known are {sorted(codec.WIRE_DTYPES)}")
    if request.publish_every and (request.codec != codec.BFLOAT16 or request.differences not in shard.publishers):
        raise MalformedChunk(
            f"publications are bfloat16 with differences in one of {sorted(shard.publishers)}; "
            f"codec {request.codec} with {request.differences} was asked for"
        )


def messages_of_pull(request: pb.PullRequest, shard: Shard, pushed: pb.PushReply | None) -> Iterator[Message]:
    """The messages that answer a pull, with the answer to the push before it if there was one."""
    if request.publish_every:
        if pushed:
            yield only(pb.PullHeader(pushed=pushed))
        yield from shard.publishers[request.differences].pull(request.publish_every, request.publication)
    else:
        header = pb.PullHeader(version=shard.version, pushed=pushed)
        yield from live(shard.vector, request.codec, 0, shard.vector.size, header)


def _check_job(request: pb.RestoreRequest, saved: checkpoint.Checkpoint) -> None:
    """Raises `ValueError` for a checkpoint of another job; those of older versions name none."""
    mine, theirs = request.specification.job_id, saved.specification.job_id
    if mine and theirs and mine != theirs:
        raise ValueError(
            f"the checkpoint {saved.directory} is of job {theirs}, and this is job {mine}; give every job its own "
            "--run_dir and --checkpoint_dir"
        )


def _unary(method: Callable[..., Any], request: Any, reply: Any) -> grpc.RpcMethodHandler:
    return grpc.unary_unary_rpc_method_handler(method, request.FromString, reply.SerializeToString)


def _restored(path: Path | None, request: pb.RestoreRequest) -> Shard:
    """Creates a shard with the values of a checkpoint."""
    try:
        saved = checkpoint.load(request.directory)
        _check_job(request, saved)
        policies_of(request.specification)
        arena = restore.arena_of(path, request.specification, saved, with_slots=not request.without_slots)
    except ValueError as error:
        raise CheckpointFailed(f"shard {request.specification.shard}: {error}") from None
    with arena.closed_on_error():
        return _complete(arena)


def _create(path: Path | None, specification: pb.ShardSpecification, chunks: Iterable[codec.Chunk]) -> Shard:
    """Creates a shard with its initial values."""
    try:
        policies_of(specification)
        arena = Arena.create(path, specification)
    except ValueError as error:
        raise LayoutMismatch(f"shard {specification.shard}: {error}") from None
    with arena.closed_on_error():
        _receive(arena, chunks)
        arena.start_average()
        return _complete(arena)


def _complete(arena: Arena) -> Shard:
    """Marks a new arena complete once it can be served: a process that is started again opens it."""
    shard = Shard(arena)
    arena.mark_complete()
    return shard


def _receive(arena: Arena, chunks: Iterable[codec.Chunk]) -> None:
    """Receives all initial values, in order."""
    position, size = 0, arena.parameters.size
    for chunk in chunks:
        stop = position + chunk.count
        if chunk.start != position or stop > size or chunk.codec != codec.FLOAT32:
            raise MalformedChunk(f"initial values [{chunk.start}, {chunk.start + chunk.count}) out of order")
        arena.parameters[position:stop] = chunk.values()
        position = stop
    if position != size:
        raise MalformedChunk(f"initial values end after {position} of {size} elements")


def _log_push(header: pb.PushHeader, reply: pb.PushReply) -> None:
    """Logs a push before its reply is sent, so that every acknowledged push is in the log."""
    what = "repeated" if reply.repeated else "counted"
    logging.debug("push %d/%d/%d %s", header.worker, header.incarnation, header.sequence, what)


def _log_ledger(arena: Arena) -> None:
    """Logs the last push of every worker, since the previous process may have died before it logged that."""
    for worker, entry in enumerate(arena.ledger):
        if entry["incarnation"]:
            what = "complete" if entry["complete"] else "incomplete"
            logging.debug("ledger %d/%d/%d %s", worker, entry["incarnation"], entry["sequence"], what)
