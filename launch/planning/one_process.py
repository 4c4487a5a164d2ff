"""The shards and workers of a job in one process: they do, event by event, what the job's processes would do.

The step, the update of the shards, rounding and packing are those of a job; messages are encoded and decoded as on the
wire, and passed on without gRPC. Workers that have pulled the same version of a shard share its array.

Threads: one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from downpour.launch.job import Job
from downpour.launch.planning.queueing import Event, Kind
from downpour.model import weights
from downpour.model.data.batches import Batch
from downpour.model.data.nests import num_examples
from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.ps.layout import Layout
from downpour.ps.memory.arena import Arena
from downpour.ps.policy.specification import specification_of
from downpour.ps.policy.staleness import Compensate
from downpour.ps.service.servicer import messages_of_pull
from downpour.ps.shard.shard import Shard
from downpour.worker.exchange.exchange import Gradients, Parameters, pack
from downpour.worker.exchange.packing import Packer
from downpour.worker.exchange.pulled import Pulled, Vectors
from downpour.worker.exchange.replica import contribution
from downpour.worker.exchange.rows import RowPacker
from downpour.worker.loop import is_usable

Packers = Sequence[tuple[Packer, RowPacker]]

_INCARNATION = 1


@dataclass(frozen=True, eq=False)
class _Held:
    """What a pull of one shard has given; it is not changed."""

    vectors: Vectors
    version: int


class _Shard:
    """One shard, with the requests that all workers send it.

    Args:
        job: The job.
        layout: Layout of its variables.
        index: Index of the shard.
        values: [size] float32, its initial values.

    Attributes:
        shard: The shard itself.
    """

    def __init__(self, job: Job, layout: Layout, index: int, values: np.ndarray) -> None:
        arena = Arena.create(None, specification_of(job, layout, job.cluster.num_workers, index))
        arena.parameters[:] = values
        arena.start_average()
        self.shard = Shard(arena)
        wire = codec.CODECS[job.exchange.codec]
        self._request = pb.PullRequest(
            codec=wire,
            publish_every=job.publish_every,
            differences=codec.BLOCK_CODECS.get(job.exchange.pull),
        )
        self._pulled = Pulled(layout, index, wire, differences=bool(job.publish_every))
        self._latest: _Held | None = None  # since the last push

    def push(self, header: pb.PushHeader, chunks: list[codec.Outgoing]) -> pb.PushReply:
        """Applies a push.

        Raises:
            NonFinite: The gradient is not finite.
        """
        push = self.shard.begin(header)
        for chunk in chunks:
            self.shard.apply(push, codec.decode_chunk(b"".join(chunk.encode(None))))
        self._latest = None
        return self.shard.finish(push)

    def pull(self) -> _Held:
        """Returns the present parameters, as any worker receives them."""
        if self._latest is None:
            pulled = self._pulled
            self._request.publication = pulled.begin()
            for message in messages_of_pull(self._request, self.shard, None):
                pulled.receive(codec.decode_chunk(b"".join(message)))
            pulled.end()
            parts = pulled.latest.trained, pulled.latest.statistics, pulled.latest.frozen
            self._latest = _Held(Vectors(*(part.copy() for part in parts)), pulled.version)
        return self._latest


class _Worker:
    """One worker.

    Attributes:
        mine: Its parameters and the gradients that it has gathered.
        pulled: What the exchange under way, or the last one, has pulled, by shard.
        stale: Staleness of its last push, by shard.
        gathered: What is being pushed.
        waiting: Shards that have not received it.
        num_batches: Gradients computed.
        num_pushes: Pushes begun.
        state: Its part of the step: `TrainingStep.local` and `TrainingStep.scale`.
        packers: For each shard.
    """

    def __init__(self, job: Job, packers: Packers, state: tuple[Any, Any]) -> None:
        self.mine = contribution(job.cadence, codec.CODECS[job.exchange.codec])
        self.pulled: dict[int, _Held] = {}
        self.stale: dict[int, int] = {}
        self.gathered: Gradients | None = None
        self.waiting = self.num_batches = self.num_pushes = 0
        self.state, self.packers = state, packers


class OneProcess:
    """A job's shards and workers; see the module.

    Args:
        job: The job, with the number of workers.
        layout: Layout of its variables.
        values: One array a variable, the initial values.
        step: The job's step, a `TrainingStep`.
        state: `local` and `scale` of the step before the first batch.

    Attributes:
        num_examples: Examples trained on.
    """

    def __init__(
        self, job: Job, layout: Layout, values: Sequence[np.ndarray], step: Any, state: tuple[Any, Any]
    ) -> None:
        self._job, self._layout, self._step = job, layout, step
        self._shards = [_Shard(job, layout, i, vector) for i, vector in enumerate(layout.scatter(values))]
        self._versions = [0] * layout.num_shards
        shared = None if job.exchange.push == "int8" else _packers(job, layout)  # int8 keeps each worker's rounding
        self._workers = []
        for _ in range(job.cluster.num_workers):
            local, scale = state
            worker = _Worker(job, shared or _packers(job, layout), (local, scale and replace(scale)))
            worker.pulled = {i: one.pull() for i, one in enumerate(self._shards)}
            self._fetch(worker)
            self._workers.append(worker)
        self._needs_base = isinstance(job.treatment, Compensate)
        self._loss_sum = self._num_losses = 0.0
        self._staleness, self._num_dropped = Counter[int](), 0
        self.num_examples = 0

    @property
    def num_steps(self) -> int:
        """Updates that every shard has applied."""
        return min(self._versions)

    def handle(self, event: Event, batches: Iterator[Batch]) -> None:
        """Does what an event says.

        Args:
            event: The next event.
            batches: Gives the batch of each event of kind COMPUTED.

        Raises:
            JobFailed: A loss or gradient is not finite; see `downpour.worker.loop.train`.
            NonFinite: A shard refuses a gradient.
        """
        worker = self._workers[event.worker]
        if event.kind is Kind.COMPUTED:
            self._compute(worker, batches)
        elif event.kind is Kind.PUSHED:
            self._push(event.worker, event.shard)
        elif event.kind is Kind.PULLED:
            worker.pulled[event.shard] = self._shards[event.shard].pull()
        elif worker.pulled:
            self._fetch(worker)

    def take_loss(self) -> float:
        """The mean loss of the steps since the last call; NaN without one."""
        mean = self._loss_sum / self._num_losses if self._num_losses else math.nan
        self._loss_sum = self._num_losses = 0.0
        return mean

    def values(self) -> dict[str, np.ndarray]:
        """The parameters by the names of variables, or their average where the job scores that."""
        name = "slot.average" if self._job.evaluate_average else "parameters"
        return weights.by_name(self._layout, [one.shard.arena.vectors[name] for one in self._shards])

    @property
    def staleness(self) -> tuple[int, ...]:
        """Pushes by staleness, over all shards."""
        return tuple(self._staleness[number] for number in range(1 + max(self._staleness, default=0)))

    @property
    def dropped(self) -> float:
        """Share of the pushes that shards have dropped."""
        return self._num_dropped / max(1, self._staleness.total())

    def _compute(self, worker: _Worker, batches: Iterator[Batch]) -> None:
        parameters, step = worker.mine.parameters, self._step
        while True:  # a step that overflows is skipped; the next one takes no more time, for simplicity
            batch = next(batches)
            step.local, step.scale = worker.state
            result = step(parameters, *batch)
            worker.state = step.local, step.scale
            if is_usable(result, max(parameters.versions)):
                break
        self.num_examples += num_examples(batch[0])
        self._loss_sum += result.loss
        self._num_losses += 1
        worker.mine.computed(result.gradients)
        worker.num_batches += 1
        if worker.num_batches % self._job.cadence.push_every == 0:
            worker.gathered, worker.waiting = worker.mine.take(), len(self._shards)
            worker.num_pushes += 1

    def _push(self, index: int, shard: int) -> None:
        worker = self._workers[index]
        assert worker.gathered is not None
        header = pb.PushHeader(
            fingerprint=self._layout.fingerprint,
            worker=index,
            incarnation=_INCARNATION,
            sequence=worker.num_pushes,
            base_version=worker.gathered.versions[shard],
        )
        chunks = pack(worker.gathered, shard, *worker.packers[shard], base=self._needs_base)
        reply = self._shards[shard].push(header, chunks)
        self._versions[shard] = reply.version
        self._staleness[reply.staleness] += 1
        self._num_dropped += reply.dropped
        worker.stale[shard] = reply.staleness
        worker.waiting -= 1
        if not worker.waiting:
            worker.gathered = None

    def _fetch(self, worker: _Worker) -> None:
        held = [worker.pulled[shard] for shard in range(len(self._shards))]
        worker.mine.fetched(
            Parameters(
                [one.vectors.trained for one in held],
                [one.vectors.statistics for one in held],
                [one.version for one in held],
                [one.vectors.frozen for one in held],
                sum(worker.stale.values()) / len(self._shards),
            )
        )
        worker.pulled = {}


def _packers(job: Job, layout: Layout) -> Packers:
    wire = codec.CODECS[job.exchange.codec]
    push = codec.BLOCK_CODECS.get(job.exchange.push, wire)
    packers = [Packer(layout, shard, wire, push) for shard in range(layout.num_shards)]
    return [(packer, RowPacker(layout, shard, packer)) for shard, packer in enumerate(packers)]
