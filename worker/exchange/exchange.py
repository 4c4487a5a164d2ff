"""A worker's exchange with all shards: push gradients, pull parameters, several shards at a time.

A pull from a shard begins after the push to it is acknowledged, so it includes the worker's own last gradient.

Threads: a small pool makes the calls. The caller waits on the future that `start` returns, or computes meanwhile.
No TensorFlow here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.numerics import convert
from downpour.proto.security.config import PLAIN, Security
from downpour.ps.layout import Layout
from downpour.worker.exchange.clients import ShardClient
from downpour.worker.exchange.futures import after
from downpour.worker.exchange.packing import Packer
from downpour.worker.exchange.pulled import Pulled
from downpour.worker.exchange.rows import RowPacker, Rows
from downpour.worker.tracing import Tracer

# Concurrent calls of one worker. All of them hold messages in memory, here and on the shards. On two cores, where calls
# wait for the processor, more were not faster; over slow networks to many hosts that was not measured.
_MAX_CALLS = 4

# Elements of the largest shard up to which one thread makes all calls of a step, a push and a pull in each: what was
# sent and is not read yet fits the sockets' buffers, and threads would cost more than they gain.
_MOST_JOINED = 1 << 18

# Delay of a pull from which it is a call of its own, where else a push and a pull would be one.
_LONG_S = 0.01


# Of one factored variable: x [rows, inputs] and a shard's columns of d [rows, outputs], both in the wire dtype.
Factors = tuple[np.ndarray, np.ndarray]


_Span = tuple[float, float]  # when a pull began and ended, moments of `time.monotonic()`


@dataclass(frozen=True)
class Parameters:
    """Result of a pull, one entry a shard. Overwritten by the second pull after it; without overlap by the next.

    Attributes:
        trained: [num_trained] in the wire dtype (bfloat16 as uint16 bits).
        statistics: [num_pushed - num_trained] float32.
        versions: Version of each shard.
        frozen: [size - num_pushed] in the wire dtype.
        staleness: How stale a gradient computed from them is to be expected, in batches: that of this worker's last
            push, mean over the shards; 0 before.
    """

    trained: list[np.ndarray]
    statistics: list[np.ndarray]
    versions: list[int]
    frozen: list[np.ndarray] = field(default_factory=list)
    staleness: float = 0.0


@dataclass(frozen=True)
class Gradients:
    """Content of a push, one entry a shard.

    Attributes:
        trained: [num_trained - num_factored] in the wire dtype, without the variables in `rows`.
        statistics: [num_pushed - num_trained] float32, differences.
        versions: Versions of the parameters that the gradients were computed from.
        base: Those parameters, as pulled, for shards that compensate delays.
        factors: For each factored variable of the shard, x and d: its gradient is x^T d. Shards may share an array x.
        rows: Of all shards together: rows of the gradients of some trained variables, by their number in
            `Layout.variables`; all other rows of these are zero.
    """

    trained: Sequence[np.ndarray]
    statistics: Sequence[np.ndarray]
    versions: Sequence[int]
    base: Sequence[np.ndarray] | None = None
    factors: Sequence[Sequence[Factors]] | None = None
    rows: Mapping[int, Rows] | None = None


@dataclass(frozen=True)
class Answer:
    """Result of one exchange.

    Attributes:
        parameters: Pulled after the push; None if there was no pull.
        versions: Version of each shard, after the push and the pull.
        acknowledged: Whether there was a push; then every shard has acknowledged it.
        dropped: Whether a shard has dropped some or all of it.
        staleness: Mean staleness over the shards, in pushes.
        push_s: Seconds until the last shard had acknowledged the push.
        pull_s: Seconds from then, or from the time up to which the pulls were delayed, until the last pull ended; pulls
            that ended before do not count.
        bytes_pushed: Sum over all shards.
        bytes_pulled: Sum over all shards.
        begun_s: Moment of `time.monotonic()` at which the exchange was started.
        read_s: Moment at which the first pull began; of the last acknowledgement if that was one call. 0 without.
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
    begun_s: float = 0.0
    read_s: float = 0.0


@dataclass(frozen=True)
class _Due:
    """When pulls begin: at `at_s` of `time.monotonic()`, or when `now` is set."""

    at_s: float
    now: threading.Event


@dataclass(frozen=True)
class _Pushed:
    """One shard's part of a push, and when the pull in the same call ended, if there was one."""

    shard: int
    reply: pb.PushReply
    ended: float
    num_bytes: int
    pull_ended: float | None = None


class Exchanger:
    """Exchange of one worker with all shards of a job.

    Args:
        addresses: `host:port` of every shard, in order.
        layout: The layout this worker computed.
        wire: Codec of the trained part, a value of `pb.Codec`.
        push: Codec that gradients are pushed in: `wire`, or INT8.
        worker: Index of this worker.
        incarnation: Higher than that of any earlier process with this index.
        publish_every: Not 0: pull differences to publications, of which there is a new one after so many pushes of all
            workers together (`downpour.ps.shard.publication`). 0: pull the vector itself.
        differences: Codec of these differences, INT8 or INT4.
        send_base: Whether pushes carry `Gradients.base`.
        joined: Whether a push and the pull after it may be one call: where no pull waits for other workers.
        give_up_after_s: See `ShardClient`.
        security: Security configuration of this process.
        job_id: See `ShardClient`.
        tracer: Takes the spans of pushes and pulls of traced steps.

    Attributes:
        wire: As given.
        incarnation: As given.
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
        differences: pb.Codec | None = None,
        send_base: bool = False,
        joined: bool = False,
        security: Security = PLAIN,
        job_id: str = "",
        tracer: Tracer | None = None,
    ) -> None:
        self._layout = layout
        self._tracer = tracer or Tracer()
        self.wire = wire
        self.incarnation = incarnation
        self._publish_every = publish_every
        self._differences = differences
        self._uses_blocks = push == codec.INT8 or differences is not None
        self._send_base = send_base
        self._joined = joined and max(map(layout.size, range(layout.num_shards))) <= _MOST_JOINED
        self._name = pb.PushHeader(fingerprint=layout.fingerprint, worker=worker, incarnation=incarnation, sequence=0)
        self._clients = [
            ShardClient(i, address, layout, give_up_after_s, security, job_id, self._tracer)
            for i, address in enumerate(addresses)
        ]
        self._packers = [Packer(layout, i, wire, push or wire) for i in range(len(addresses))]
        self._row_packers = [RowPacker(layout, i, packer) for i, packer in enumerate(self._packers)]
        self._pool = ThreadPoolExecutor(_MAX_CALLS, thread_name_prefix="exchange")
        # Workers begin with different shards, so that their calls do not all queue at the same one.
        self._order = [(worker + i) % len(addresses) for i in range(len(addresses))]
        self._begun_s, self._pushes = 0.0, list[Future[list[_Pushed]]]()  # of the exchange that was begun last
        self._staleness = 0.0  # of the last push
        self._now = threading.Event()  # set when its pulls are no longer to be delayed
        self._pulled = [Pulled(layout, i, wire, differences=bool(publish_every)) for i in range(len(addresses))]

    def connect(self) -> None:
        """Waits until every shard is ready, and compares index, layout and job.

        Raises:
            LayoutMismatch: See `ShardClient.wait_ready`.
            Unreachable: A shard does not answer.
        """
        futures = [self._pool.submit(client.wait_ready) for client in self._clients]
        if self._uses_blocks:
            convert.load_blocks()  # so that no step waits for them
        for future in futures:
            future.result()

    def close(self) -> None:
        """Stops the threads and closes the connections, after the calls in flight."""
        self._pool.shutdown(wait=True)
        for client in self._clients:
            client.close()

    def start(
        self, gradients: Gradients | None = None, *, pull: bool = True, ahead: bool = False, delay_s: float = 0.0
    ) -> Future[Answer]:
        """Starts a push of `gradients` (if any), followed by a pull (if `pull`).

        Pushes of one worker are numbered here, so this is called from one thread, and again only once the
        previous future is done.

        Args:
            gradients: What to push.
            pull: Whether to pull after it.
            ahead: Whether this worker pushes once more before the step that the pulled parameters are for. Then those
                of the pull before stay as they are, which from the first time on takes twice the memory.
            delay_s: Seconds from now before which no pull begins, unless `hurry` is called.

        Returns:
            A future that gives the answer or raises.
        """
        if gradients is not None:
            self._name.sequence += 1
        name = pb.PushHeader()
        name.CopyFrom(self._name)
        name.traced_step = self._tracer.step
        submit, order, self._begun_s = self._pool.submit, self._order, time.monotonic()
        self._now = threading.Event()
        for pulled in self._pulled if ahead else ():
            pulled.keep()
        pushes: list[Future[list[_Pushed]]] = []
        pulls: list[Future[_Span]] = []
        if gradients is not None and pull and self._joined and delay_s < _LONG_S:
            pushes = [submit(self._push_pull, name, gradients, ahead)]
        else:
            # All pushes are queued first: they do not depend on other workers; a pull may block on others' pushes.
            of_shards = {} if gradients is None else {s: submit(self._push, s, name, gradients) for s in order}
            pushes = list(of_shards.values())
            if pull:
                due = _Due(self._begun_s + delay_s, self._now)
                pulls = [submit(self._pull, shard, name, of_shards.get(shard), ahead, due) for shard in order]
        self._pushes = pushes
        return after([*pushes, *pulls], lambda: self._collect(pulls))

    def hurry(self) -> None:
        """Begins the pulls of the exchange started last, if they are delayed."""
        self._now.set()

    def acknowledged(self, within_s: float) -> Answer | None:
        """Returns the answer of the push started last, without the pull that follows it.

        None if nothing was pushed, or some shard has not acknowledged it within `within_s` seconds.
        """
        wait(self._pushes, within_s)
        if not self._pushes or any(not push.done() or push.exception() for push in self._pushes):
            return None
        return self._collect([])

    def _push(self, shard: int, name: pb.PushHeader, gradients: Gradients) -> list[_Pushed]:
        """Pushes to one shard."""
        header, chunks = self._packed(shard, name, gradients)
        reply = self._clients[shard].push(header, chunks)
        return [_Pushed(shard, reply, time.monotonic(), _num_bytes(chunks))]

    def _push_pull(self, name: pb.PushHeader, gradients: Gradients, ahead: bool) -> list[_Pushed]:
        """Pushes to all shards and pulls from them, in one call each: sends to all, then receives."""
        begun = []
        for shard in self._order:
            header, chunks = self._packed(shard, name, gradients)
            header.pull.CopyFrom(self._request(name, ahead))
            receive = self._clients[shard].push_pull(header, chunks, self._pulled[shard])
            begun.append((shard, receive, _num_bytes(chunks)))
        return [_Pushed(shard, *receive(), num_bytes, time.monotonic()) for shard, receive, num_bytes in begun]

    def _packed(
        self, shard: int, name: pb.PushHeader, gradients: Gradients
    ) -> tuple[pb.PushHeader, list[codec.Outgoing]]:
        """Returns the header and the chunks of one shard's part of a push."""
        header = pb.PushHeader(base_version=gradients.versions[shard])
        header.MergeFrom(name)
        return header, pack(gradients, shard, self._packers[shard], self._row_packers[shard], base=self._send_base)

    def _pull(self, shard: int, name: pb.PushHeader, pushed: Future[Any] | None, ahead: bool, due: _Due) -> _Span:
        """Pulls from one shard, after the push to it; returns the times at which the pull began and ended."""
        if pushed:
            pushed.result()
        due.now.wait(max(0.0, due.at_s - time.monotonic()))
        begun = time.monotonic()
        request = self._request(name, ahead)
        request.fingerprint = name.fingerprint
        self._clients[shard].pull(request, self._pulled[shard])
        return begun, time.monotonic()

    def _request(self, name: pb.PushHeader, ahead: bool) -> pb.PullRequest:
        return pb.PullRequest(
            codec=self.wire,
            worker=name.worker,
            incarnation=name.incarnation,
            num_pushes=name.sequence + ahead,
            publish_every=self._publish_every,
            differences=self._differences,
            traced_step=name.traced_step,
        )

    def _collect(self, pulls: list[Future[_Span]]) -> Answer:
        """Returns the answer of the pushes and of pulls, all of which are done; raises what the first failed raised."""
        pushed = [one for push in self._pushes for one in push.result()]
        if pushed:
            self._staleness = sum(push.reply.staleness for push in pushed) / len(self._clients)
        return _answer(pushed, [pull.result() for pull in pulls], self._pulled, self._begun_s, self._staleness)


def _answer(
    pushed: Sequence[_Pushed], spans: list[_Span], pulled: Sequence[Pulled], begun_s: float, staleness: float
) -> Answer:
    """Returns the answer of pushes, of pulls that were calls of their own, and of pulls in the same calls."""
    pushed_at = max((push.ended for push in pushed), default=begun_s)
    spans = spans + [(pushed_at, push.pull_ended) for push in pushed if push.pull_ended is not None]
    read_at = min((begun for begun, _ in spans), default=0.0)
    pulled_at = max((ended for _, ended in spans), default=pushed_at)
    parameters = _parameters(pulled, staleness) if spans else None
    versions = list(parameters.versions) if parameters else [0] * len(pulled)
    for push in pushed:
        versions[push.shard] = max(versions[push.shard], push.reply.version)
    return Answer(
        parameters,
        versions,
        bool(pushed),
        any(push.reply.dropped for push in pushed),
        staleness if pushed else 0.0,
        pushed_at - begun_s,
        max(0.0, pulled_at - max(pushed_at, read_at)),
        sum(push.num_bytes for push in pushed),
        sum(shard.num_bytes for shard in pulled) if spans else 0,
        begun_s,
        read_at,
    )


def pack(
    gradients: Gradients, shard: int, packer: Packer, row_packer: RowPacker, *, base: bool
) -> list[codec.Outgoing]:
    """Returns the chunks of one shard's part of a push; `base`: with the parameters that it was computed from."""
    given = gradients.base[shard] if base and gradients.base is not None else None
    factors = gradients.factors[shard] if gradients.factors else []
    mine = gradients.trained[shard], gradients.statistics[shard], factors
    if gradients.rows:
        return row_packer.pack(*mine, gradients.rows, given)
    return packer.pack(*mine, given)


def _parameters(pulled: Sequence[Pulled], staleness: float) -> Parameters:
    latest = [shard.latest for shard in pulled]
    return Parameters(
        [vectors.trained for vectors in latest],
        [vectors.statistics for vectors in latest],
        [shard.version for shard in pulled],
        [vectors.frozen for vectors in latest],
        staleness,
    )


def _num_bytes(chunks: Sequence[codec.Outgoing]) -> int:
    return sum(chunk.num_bytes for chunk in chunks)
