"""A worker's exchange with all shards: push gradients, pull parameters, every shard in parallel.

Threads: one a shard does that shard's calls, a push always before the pull that follows it, so a worker's own
last gradient is in what it pulls (unless it pulls publications, which may be older). The caller waits on the future
that `start` returns, or computes meanwhile.
No TensorFlow here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import numpy as np

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.ps.layout import Layout
from downpour.worker.clients import ShardClient
from downpour.worker.packing import Packer
from downpour.worker.pulled import Pulled


@dataclass(frozen=True)
class Parameters:
    """What a pull gives, one entry a shard. Overwritten by the second pull after it; by the next without overlap.

    Attributes:
        trained: [num_trained] in the wire dtype (bfloat16 as uint16 bits).
        statistics: [num_pushed - num_trained] float32.
        versions: Version of each shard.
        frozen: [size - num_pushed] in the wire dtype.
    """

    trained: list[np.ndarray]
    statistics: list[np.ndarray]
    versions: list[int]
    frozen: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True)
class Gradients:
    """What a push takes, one entry a shard.

    Attributes:
        trained: [num_trained - num_factored] in the wire dtype.
        statistics: [num_pushed - num_trained] float32, differences.
        versions: Of the parameters it was computed from.
        base: Those parameters, as pulled, for shards that compensate delays.
        factors: For each factored variable of the shard, x [rows, inputs] and d [rows, outputs], flat, in one array of
            the wire dtype: its gradient is x^T d.
    """

    trained: Sequence[np.ndarray]
    statistics: Sequence[np.ndarray]
    versions: Sequence[int]
    base: Sequence[np.ndarray] | None = None
    factors: Sequence[list[np.ndarray]] | None = None


@dataclass(frozen=True)
class Answer:
    """What came of one exchange.

    Attributes:
        parameters: Pulled after the push; None if there was no pull.
        versions: Of each shard, after the push and the pull.
        acknowledged: Whether there was a push; then every shard has acknowledged it.
        dropped: Whether a shard has left out some or all of it.
        staleness: Mean over the shards, in pushes.
        push_s: Seconds the slowest shard's push took.
        pull_s: Seconds the slowest shard's pull took.
        bytes_pushed: Over all shards.
        bytes_pulled: Over all shards.
    """

    parameters: Parameters | None
    versions: list[int]
    acknowledged: bool
    dropped: bool
    staleness: float
    push_s: float
    pull_s: float
    bytes_pushed: int
    bytes_pulled: int


@dataclass(frozen=True)
class _Done:
    """One shard's part of an exchange."""

    version: int
    staleness: int
    dropped: bool
    push_s: float
    pull_s: float
    bytes_pushed: int


class Exchange:
    """The shards of a job, for one worker.

    Args:
        addresses: `host:port` of every shard, in order.
        layout: The layout this worker computed.
        wire: Codec of the trained part, a value of `pb.Codec`.
        push: Codec that gradients are pushed in: `wire`, or INT8.
        worker: Index of this worker.
        incarnation: Higher than that of any earlier process with this index.
        publish_every: Not 0: pull publications, a new one after so many pushes of all workers together
            (`downpour.ps.publication`). 0: the shard's vector of the moment.
        overlap: Whether parameters are computed with while the next pull is under way, which takes twice the memory.
        send_base: Whether pushes carry `Gradients.base`.
        give_up_after_s: See `ShardClient`.

    Attributes:
        wire: As given.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        layout: Layout,
        *,
        wire: pb.Codec,
        worker: int,
        incarnation: int,
        give_up_after_s: float,
        push: pb.Codec | None = None,
        publish_every: int = 0,
        overlap: bool = True,
        send_base: bool = False,
    ) -> None:
        self._layout = layout
        self.wire = wire
        self._publish_every = publish_every
        self._send_base = send_base
        self._name = pb.PushHeader(fingerprint=layout.fingerprint, worker=worker, incarnation=incarnation, sequence=0)
        self._clients = [ShardClient(i, address, layout, give_up_after_s) for i, address in enumerate(addresses)]
        self._packers = [Packer(layout, i, wire, push or wire) for i in range(len(addresses))]
        self._pool = ThreadPoolExecutor(len(self._clients) + 1, thread_name_prefix="exchange")
        self._pulled = [Pulled(layout, i, wire, keep=overlap) for i in range(len(addresses))]

    def connect(self) -> None:
        """Waits until every shard is ready, and compares layouts.

        Raises:
            LayoutMismatch: A shard holds another layout.
            Unreachable: A shard does not answer.
        """
        for future in [self._pool.submit(client.wait_ready) for client in self._clients]:
            future.result()

    def close(self) -> None:
        """Ends threads and connections, after what is under way."""
        self._pool.shutdown(wait=True)
        for client in self._clients:
            client.close()

    def start(self, gradients: Gradients | None = None, *, pull: bool = True, ahead: bool = False) -> Future[Answer]:
        """Begins to push `gradients` (if any) and then to pull (unless told not to).

        Pushes of one worker are numbered here, so this is called from one thread, and again only once the
        future before has given its answer.

        Args:
            gradients: What to push.
            pull: Whether to pull after it.
            ahead: Whether another push comes before the step that the pulled parameters are for.

        Returns:
            A future that gives the answer or raises.
        """
        if gradients is not None:
            self._name.sequence += 1
        name = pb.PushHeader()
        name.CopyFrom(self._name)
        calls = [
            self._pool.submit(self._exchange, shard, name, gradients, pull, ahead)
            for shard in range(len(self._clients))
        ]
        return self._pool.submit(_collect, calls, self._pulled if pull else (), gradients is not None)

    def _exchange(self, shard: int, name: pb.PushHeader, gradients: Gradients | None, pull: bool, ahead: bool) -> _Done:
        """One shard's push and pull."""
        begin = time.monotonic()
        client = self._clients[shard]
        reply = pb.PushReply()
        chunks: list[codec.Outgoing] = []
        if gradients is not None:
            header = pb.PushHeader(base_version=gradients.versions[shard])
            header.MergeFrom(name)
            base = gradients.base[shard] if self._send_base and gradients.base is not None else None
            factors = gradients.factors[shard] if gradients.factors else []
            chunks = self._packers[shard].pack(gradients.trained[shard], gradients.statistics[shard], factors, base)
            reply = client.push(header, chunks)
        pushed = time.monotonic()
        version = reply.version
        if pull:
            request = pb.PullRequest(
                fingerprint=name.fingerprint,
                codec=self.wire,
                worker=name.worker,
                incarnation=name.incarnation,
                num_pushes=name.sequence + ahead,
                publish_every=self._publish_every,
            )
            client.pull(request, self._pulled[shard])
            version = max(version, self._pulled[shard].version)
        num_bytes = sum(chunk.num_bytes for chunk in chunks)
        return _Done(version, reply.staleness, reply.dropped, pushed - begin, time.monotonic() - pushed, num_bytes)


def _collect(calls: list[Future[_Done]], pulled: Sequence[Pulled], pushed: bool) -> Answer:
    wait(calls)
    done = [call.result() for call in calls]
    parameters = None
    if pulled:
        latest = [shard.latest for shard in pulled]
        parameters = Parameters(
            [vectors.trained for vectors in latest],
            [vectors.statistics for vectors in latest],
            [shard.version for shard in pulled],
            [vectors.frozen for vectors in latest],
        )
    return Answer(
        parameters,
        [d.version for d in done],
        pushed,
        any(d.dropped for d in done),
        sum(d.staleness for d in done) / len(done),
        max(d.push_s for d in done),
        max(d.pull_s for d in done),
        sum(d.bytes_pushed for d in done),
        sum(shard.num_bytes for shard in pulled),
    )
