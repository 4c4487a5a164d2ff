"""A worker's exchange with all shards: push gradients, pull parameters, every shard in parallel.

Threads: one a shard does that shard's calls, a push always before the pull that follows it, so a worker's own
last gradient is in what it pulls. The caller waits on the future that `start` returns, or computes meanwhile.
No TensorFlow here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.ps.layout import Layout
from downpour.worker.clients import ShardClient


@dataclass(frozen=True)
class Parameters:
    """What a pull gives, one entry a shard. Overwritten by the second pull after it.

    Attributes:
        trained: [num_trained] in the wire dtype (bfloat16 as uint16 bits).
        statistics: [size - num_trained] float32.
        versions: Version of each shard.
    """

    trained: list[np.ndarray]
    statistics: list[np.ndarray]
    versions: list[int]


@dataclass(frozen=True)
class Gradients:
    """What a push takes, one entry a shard; `versions` are those of the parameters it was computed from."""

    trained: Sequence[np.ndarray]
    statistics: Sequence[np.ndarray]
    versions: Sequence[int]


@dataclass(frozen=True)
class Answer:
    """What came of one exchange.

    Attributes:
        parameters: Pulled after the push.
        acknowledged: Whether there was a push; then every shard has acknowledged it.
        staleness: Mean over the shards, in pushes.
        push_s: Seconds the slowest shard's push took.
        pull_s: Seconds the slowest shard's pull took.
    """

    parameters: Parameters
    acknowledged: bool
    staleness: float
    push_s: float
    pull_s: float


class Exchange:
    """The shards of a job, for one worker.

    Args:
        addresses: `host:port` of every shard, in order.
        layout: The layout this worker computed.
        wire: Codec of the trained part, a value of `pb.Codec`.
        worker: Index of this worker.
        incarnation: Higher than that of any earlier process with this index.
        give_up_after_s: See `ShardClient`.
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
    ) -> None:
        self._layout = layout
        self._wire = wire
        self._name = pb.PushHeader(fingerprint=layout.fingerprint, worker=worker, incarnation=incarnation, sequence=0)
        self._clients = [ShardClient(i, address, layout, give_up_after_s) for i, address in enumerate(addresses)]
        self._pool = ThreadPoolExecutor(len(self._clients) + 1, thread_name_prefix="exchange")
        # Two sets of buffers: one is computed with while the other is filled.
        self._buffers = [self._new_buffers(), self._new_buffers()]
        trained = sum(layout.num_trained(shard) for shard in range(layout.num_shards))
        statistics = sum(layout.size(shard) for shard in range(layout.num_shards)) - trained
        self.num_bytes = trained * codec.WIRE_DTYPES[wire].itemsize + statistics * 4  # of a pull, and of a push

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

    def start(self, gradients: Gradients | None = None) -> Future[Answer]:
        """Begins to push `gradients` (if any) and then to pull; the future gives the answer or raises.

        Pushes of one worker are numbered here, so this is called from one thread, and again only once the
        future before has given its answer.
        """
        if gradients is not None:
            self._name.sequence += 1
        self._buffers.reverse()
        buffers = self._buffers[0]
        calls = [
            self._pool.submit(self._exchange, shard, gradients, self._name.sequence, buffers)
            for shard in range(len(self._clients))
        ]
        return self._pool.submit(_collect, calls, buffers, gradients is not None)

    def _exchange(
        self, shard: int, gradients: Gradients | None, sequence: int, buffers: Parameters
    ) -> tuple[int, float, float]:
        """One shard's push and pull. Returns the push's staleness and the seconds of both."""
        begin = time.monotonic()
        staleness = 0
        if gradients is not None:
            header = pb.PushHeader(base_version=gradients.versions[shard])
            header.MergeFrom(self._name)
            header.sequence = sequence
            reply = self._clients[shard].push(header, self._wire, gradients.trained[shard], gradients.statistics[shard])
            staleness = reply.staleness
        pushed = time.monotonic()
        buffers.versions[shard] = self._clients[shard].pull(
            self._wire, buffers.trained[shard], buffers.statistics[shard]
        )
        return staleness, pushed - begin, time.monotonic() - pushed

    def _new_buffers(self) -> Parameters:
        layout, dtype = self._layout, codec.WIRE_DTYPES[self._wire]
        shards = range(layout.num_shards)
        return Parameters(
            [np.empty(layout.num_trained(shard), dtype) for shard in shards],
            [np.empty(layout.size(shard) - layout.num_trained(shard), np.float32) for shard in shards],
            [0 for _ in shards],
        )


def _collect(calls: list[Future[tuple[int, float, float]]], parameters: Parameters, pushed: bool) -> Answer:
    wait(calls)
    staleness, push_s, pull_s = zip(*(call.result() for call in calls), strict=True)
    return Answer(parameters, pushed, sum(staleness) / len(staleness), max(push_s), max(pull_s))
