"""Calls to one shard and to the chief, each with a deadline and safe retries.

Threads: a client may be used from several threads; it keeps no state but its channel.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import grpc
import numpy as np

from downpour.model.data.order import Lease
from downpour.proto import chief_pb2, chief_pb2_grpc, codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import LayoutMismatch, MalformedChunk, NotReady
from downpour.proto.http2.connection import Message
from downpour.proto.rpc.client import Channel
from downpour.proto.rpc.retry import call
from downpour.proto.security.config import PLAIN, Security
from downpour.proto.trace_pb2 import SpansReceived
from downpour.ps import layout as layouts
from downpour.ps.layout import Layout
from downpour.ps.layout.chunks import chunks_of_values
from downpour.worker.exchange.pulled import Pulled
from downpour.worker.tracing import Tracer

Reply = TypeVar("Reply")

_PATH = "/downpour.v1.ParameterServer/"
_RESTORE_S = 600.0  # deadline of reading a checkpoint, however slow the store


class ShardClient:
    """Client of one shard.

    Args:
        shard: Index of the shard.
        address: `host:port`.
        layout: The layout this process computed.
        give_up_after_s: Deadline of a call, and how long a failing one is retried before `Unreachable`.
        security: Security configuration of this process.
        job_id: Id of the job whose parameters the shard must hold; empty: not compared.
        tracer: Takes the spans of pushes and pulls of traced steps.

    Attributes:
        peer: Role and address, for messages.
        shard: As given.
        job_id: As given.
    """

    def __init__(
        self,
        shard: int,
        address: str,
        layout: Layout,
        give_up_after_s: float,
        security: Security = PLAIN,
        job_id: str = "",
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer or Tracer()
        self.peer = f"shard {shard} at {address}"
        self.shard = shard
        self.job_id = job_id
        self._layout = layout
        self._give_up_after_s = give_up_after_s
        self._channel = Channel(address, security, "ps")
        # Chunk streams carry raw bytes: `codec` encodes and decodes them.
        self._initialize = self._channel.stream_unary(_PATH + "Initialize", pb.InitializeReply.FromString)
        self._pull = self._channel.unary_stream(_PATH + "Pull", pb.PullRequest.SerializeToString)
        self._push = self._channel.stream_unary(_PATH + "Push", pb.PushReply.FromString)
        self._push_pull = self._channel.stream_stream(_PATH + "PushPull")
        self._status = self._unary("Status", pb.StatusRequest, pb.StatusReply)
        self._restore = self._unary("Restore", pb.RestoreRequest, pb.InitializeReply)
        self._absent = self._unary("Absent", pb.AbsentRequest, pb.AbsentReply)
        self._set_rate = self._unary("SetRate", pb.SetRateRequest, pb.SetRateReply)
        self._write_checkpoint = self._unary("WriteCheckpoint", pb.WriteCheckpointRequest, pb.WriteCheckpointReply)
        self._stop = self._unary("Stop", pb.StopRequest, pb.StopReply)

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def status(self) -> pb.StatusReply:
        """Returns the shard's counters, and whether it is ready."""
        return self._call(lambda: self._status(pb.StatusRequest(), timeout=self._give_up_after_s))

    def described(self) -> pb.StatusReply:
        """Returns the shard's status with its layout and specification."""
        request = pb.StatusRequest(with_layout=True)
        return self._call(lambda: self._status(request, timeout=self._give_up_after_s))

    def look(
        self, timeout_s: float, *, with_layout: bool = False, trace: SpansReceived | None = None
    ) -> pb.StatusReply | None:
        """Returns the shard's status, or None if it does not answer within `timeout_s`; `trace` asks for its spans."""
        request = pb.StatusRequest(with_layout=with_layout, trace=trace)
        try:
            reply: pb.StatusReply = self._status(request, timeout=timeout_s, wait_for_ready=True)
        except grpc.RpcError:
            return None
        return reply

    def wait_ready(self) -> None:
        """Waits until the shard is initialised, and compares index, layout and job.

        Raises:
            LayoutMismatch: It is another shard, or of another job; or its layout differs, then with both fingerprints
                and the first difference.
        """

        def ask() -> pb.StatusReply:
            reply: pb.StatusReply = self._status(pb.StatusRequest(), timeout=self._give_up_after_s)
            if not reply.ready:
                raise NotReady(f"{self.peer} holds no parameters yet; the chief has not initialised it")
            return reply

        found = self._call(ask)
        if found.shard != self.shard:
            raise LayoutMismatch(f"{self.peer} is shard {found.shard}; check the order of the addresses in --ps")
        if found.fingerprint != self._layout.fingerprint:
            theirs = self._status(pb.StatusRequest(with_layout=True), timeout=self._give_up_after_s).layout
            layouts.check_same(self._layout, theirs, self.peer)
        if self.job_id and found.job_id != self.job_id:
            raise LayoutMismatch(
                f"{self.peer} holds parameters of job {found.job_id or 'without an id'}, and this is job "
                f"{self.job_id}; give every job its own shards"
            )

    def initialize(self, specification: pb.ShardSpecification, values: np.ndarray) -> pb.InitializeReply:
        """Sends the shard its specification and its [n] float32 initial values; a no-op if it has them."""

        def chunks() -> Iterator[Message]:
            for start, stop in chunks_of_values(values.size) if values.size else [(0, 0)]:
                header = specification if start == 0 else None
                yield codec.chunk_parts(start, codec.FLOAT32, values[start:stop], header)

        return self._call(lambda: self._initialize(chunks(), timeout=self._give_up_after_s))

    def restore(self, specification: pb.ShardSpecification, directory: str, *, with_slots: bool) -> pb.InitializeReply:
        """Has the shard, if it is empty, read a checkpoint.

        Raises:
            CheckpointFailed: The checkpoint cannot be read.
        """
        request = pb.RestoreRequest(specification=specification, directory=directory, without_slots=not with_slots)
        return self._call(lambda: self._restore(request, timeout=_RESTORE_S))

    def pull(self, request: pb.PullRequest, into: Pulled) -> None:
        """Pulls the shard's vector; blocks until the job's pace admits the pull.

        Args:
            request: Worker, number of pushes and codec; shard, job and publication are set here.
            into: Receives the vector; holds what this worker has pulled from this shard before.
        """
        request.shard, request.job_id = self.shard, self.job_id

        def attempt() -> None:
            request.publication = into.begin()
            _receive(self._pull(request, timeout=self._give_up_after_s, place=into.place), into, self.peer)

        with self._tracer.call("pull", request.traced_step, self.shard):
            self._call(attempt)

    def push(self, header: pb.PushHeader, chunks: Sequence[codec.Outgoing]) -> pb.PushReply:
        """Sends a push, as cut by `worker.packing`; without chunks only its header. Sets shard and job in that."""
        header.shard, header.job_id = self.shard, self.job_id
        with self._tracer.call("push", header.traced_step, self.shard):
            return self._call(lambda: self._push(_messages(header, chunks), timeout=self._give_up_after_s))

    def push_pull(
        self, header: pb.PushHeader, chunks: Sequence[codec.Outgoing], into: Pulled
    ) -> Callable[[], tuple[pb.PushReply, float]]:
        """Sends a push and, in its header, the request of the pull after it; returns what receives the answers.

        That returns the one to the push, and when it came, a moment of `time.monotonic()`. Where either breaks, both
        are repeated.
        """
        header.shard, header.job_id = self.shard, self.job_id

        def begin() -> Iterator[memoryview | None]:
            header.pull.publication = into.begin()
            return self._push_pull(_messages(header, chunks), timeout=self._give_up_after_s, place=into.place)

        begun_s, begun = time.monotonic(), [self._call(begin)]

        def attempt() -> tuple[pb.PushReply, float]:
            _receive(begun.pop() if begun else begin(), into, self.peer, is_after_push=True)
            assert into.pushed is not None
            self._tracer.joined(header.traced_step, self.shard, begun_s, into.pushed[1])
            return into.pushed

        return lambda: self._call(attempt)

    def absent(self, workers: Sequence[tuple[int, int]]) -> None:
        """Removes workers (index, incarnation) from the pace, so that no pull blocks on them."""
        request = pb.AbsentRequest(fingerprint=self._layout.fingerprint, shard=self.shard, job_id=self.job_id)
        for index, incarnation in workers:
            request.workers.add(index=index, incarnation=incarnation)
        self._call(lambda: self._absent(request, timeout=self._give_up_after_s))

    def set_rate(self, number: int, factor: float) -> pb.Rate:
        """Has the shard multiply its schedule's rate by a factor, unless it knows a later change; returns the last."""
        request = pb.SetRateRequest(fingerprint=self._layout.fingerprint, shard=self.shard, job_id=self.job_id)
        request.number, request.factor = number, factor
        return self._call(lambda: self._set_rate(request, timeout=self._give_up_after_s)).rate

    def write_checkpoint(self, directory: str, *, check_only: bool = False) -> pb.WriteCheckpointReply:
        """Has the shard write its file into a directory, or only check that it may.

        Raises:
            CheckpointFailed: The shard cannot write there.
        """
        request = pb.WriteCheckpointRequest(fingerprint=self._layout.fingerprint, shard=self.shard, job_id=self.job_id)
        request.directory, request.check_only = directory, check_only
        return self._call(lambda: self._write_checkpoint(request, timeout=self._give_up_after_s))

    def stop(self, within_s: float) -> None:
        """Has the shard stop, since the job is over; retries for up to `within_s` seconds."""
        request = pb.StopRequest(fingerprint=self._layout.fingerprint, shard=self.shard, job_id=self.job_id)
        call(self.peer, within_s, lambda: self._stop(request, timeout=within_s))

    def _unary(self, name: str, request: Any, reply: Any) -> Callable[..., Any]:
        return self._channel.unary_unary(_PATH + name, request.SerializeToString, reply.FromString)

    def _call(self, attempt: Callable[[], Reply]) -> Reply:
        try:
            return call(self.peer, self._give_up_after_s, attempt)
        except LayoutMismatch as error:
            raise LayoutMismatch(f"{self.peer}: {error}") from None


class ChiefClient:
    """Client of the chief, for workers, shards, the evaluator and the launcher."""

    def __init__(self, address: str, give_up_after_s: float, security: Security = PLAIN) -> None:
        self.peer = f"the chief at {address}"
        self._give_up_after_s = give_up_after_s
        self._channel = Channel(address, security, "chief")
        self._stub = chief_pb2_grpc.ChiefStub(self._channel)

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def register(self, request: chief_pb2.RegisterRequest) -> chief_pb2.RegisterReply:
        """Registers a worker; the reply has its incarnation, and whether it should stop, since training is over.

        Raises:
            LayoutMismatch: The chief runs another job, or computed another layout.
            TooManyWorkers: The job admits no worker of this index.
        """
        return self._call(self._stub.Register, request)

    def report(self, report: chief_pb2.WorkerReport) -> chief_pb2.ReportReply:
        """Sends a worker's totals; returns what it should do."""
        return self._call(self._stub.Report, report)

    def lease(self, worker: int, incarnation: int, number: int) -> Lease | float:
        """Requests the next positions to train on, for an incarnation that has received `number` leases.

        Returns:
            The lease; or, for a worker that is not let in yet, the seconds after which to ask again.

        Raises:
            WorkerSuperseded: A newer incarnation is known, or the chief was restarted without its newest journal.
        """
        request = chief_pb2.LeaseRequest(worker=worker, incarnation=incarnation, number=number)
        reply: chief_pb2.LeaseReply = self._call(self._stub.Lease, request)
        return reply.ask_again_seconds or Lease(reply.epoch, reply.start, reply.stop)

    def next_checkpoint(
        self, after_step: int, evaluator: int = 0, incarnation: int = 0
    ) -> chief_pb2.NextCheckpointReply:
        """Returns a checkpoint to score, with an empty directory if there is none.

        Args:
            after_step: Step of the one that this evaluator was given last, which it has scored or passed over; -1 for
                none.
            evaluator: Its index.
            incarnation: Random number of its process.
        """
        request = chief_pb2.NextCheckpointRequest(after_step=after_step, evaluator=evaluator, incarnation=incarnation)
        return self._call(self._stub.NextCheckpoint, request)

    def scoring(self, step: int, evaluator: int, incarnation: int, within_s: float) -> None:
        """Says once that an evaluator is still scoring the checkpoint of a step; a failure is ignored."""
        request = chief_pb2.NextCheckpointRequest(evaluator=evaluator, incarnation=incarnation, scoring=step)
        _once(self._stub.NextCheckpoint, request, within_s)

    def check_job(self, job: Mapping[str, str]) -> None:
        """Compares the job of this process, its fields and their values, with the chief's.

        Raises:
            LayoutMismatch: A field differs; the message names the first.
        """
        self._call(self._stub.NextCheckpoint, chief_pb2.NextCheckpointRequest(after_step=-1, job=job))

    def report_score(self, score: chief_pb2.Score) -> None:
        """Reports the score of a checkpoint."""
        self._call(self._stub.ReportScore, score)

    def report_once(self, report: chief_pb2.WorkerReport, within_s: float) -> bool:
        """Sends a worker's totals once; returns whether they were acknowledged within `within_s` seconds."""
        return _once(self._stub.Report, report, within_s) is not None

    def leaving(self, shard: int, incarnation: int, within_s: float) -> bool:
        """Sends a shard's request to stop once; returns whether it may, which it may not without a reply."""
        request = chief_pb2.LeavingRequest(shard=shard, incarnation=incarnation)
        reply: chief_pb2.LeavingReply | None = _once(self._stub.Leaving, request, within_s)
        return reply is not None and reply.may_go

    def look(self, within_s: float) -> chief_pb2.ProgressReply | None:
        """Returns what `progress` does, without retries; None without a reply within `within_s` seconds."""
        return _once(self._stub.Progress, chief_pb2.ProgressRequest(), within_s)

    def progress(self) -> chief_pb2.ProgressReply:
        """Returns the job's progress, as displays show it."""
        return self._call(self._stub.Progress, chief_pb2.ProgressRequest())

    def _call(self, method: Callable[..., Reply], request: object) -> Reply:
        return call(self.peer, self._give_up_after_s, lambda: method(request, timeout=self._give_up_after_s))


def _messages(header: pb.PushHeader, chunks: Sequence[codec.Outgoing]) -> Iterator[Message]:
    """The messages of a push."""
    if not chunks:
        yield codec.chunk_parts(0, codec.FLOAT32, np.empty(0, np.float32), header)
    for chunk in chunks:
        yield chunk.encode(header if chunk is chunks[0] else None)


def _receive(answers: Iterator[memoryview | None], into: Pulled, peer: str, *, is_after_push: bool = False) -> None:
    """Receives a pull to its end, and the answer to the push in the same call."""
    try:
        for message in answers:
            if message is not None:
                into.receive(codec.decode_chunk(message))
        into.end()
        if is_after_push and into.pushed is None:
            raise MalformedChunk("there is no answer to the push")
    except MalformedChunk as error:
        raise MalformedChunk(f"pulling from {peer}: {error}") from None


def _once(method: Callable[..., Reply], request: object, within_s: float) -> Reply | None:
    """Calls a method without retries; None if it fails."""
    try:
        return method(request, timeout=within_s)
    except grpc.RpcError:
        return None
