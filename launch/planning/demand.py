"""Demand of one step on every shard, by layout and job: bytes on the wire, core-seconds. Pure.

Bytes are those of the payloads, as `downpour.worker.exchange.packing` cuts a push and the shards answer a pull; gRPC
and TCP add about one percent.
"""

from __future__ import annotations

from dataclasses import dataclass

from downpour.launch.job import Job
from downpour.launch.planning.fleet import CallCosts
from downpour.proto import codec
from downpour.ps.layout import Layout
from downpour.ps.policy.staleness import Compensate

_FLOAT32_BYTES = 4


def push_bytes(layout: Layout, shard: int, job: Job) -> int:
    """Bytes of one push to a shard."""
    wire = codec.WIRE_DTYPES[codec.CODECS[job.exchange.codec]].itemsize
    factors = sum(job.batch_size * (group.num_inputs + group.num_outputs) for group in layout.factored(shard))
    num_dense = layout.num_trained(shard) - layout.num_factored(shard)
    if job.exchange.push == "int8":
        dense = codec.blocks_bytes(codec.INT8, num_dense)  # chunks are whole blocks
    else:
        dense = wire * num_dense * (2 if isinstance(job.treatment, Compensate) else 1)
    return wire * factors + dense + _statistics_bytes(layout, shard)


def pull_bytes(layout: Layout, shard: int, job: Job) -> float:
    """Bytes of one pull from a shard; for differences, with its share of a publication."""
    wire = codec.WIRE_DTYPES[codec.CODECS[job.exchange.codec]].itemsize
    num_trained, num_frozen = layout.num_trained(shard), layout.size(shard) - layout.num_pushed(shard)
    if job.exchange.pull == "live":
        return wire * (num_trained + num_frozen) + _statistics_bytes(layout, shard)
    blocks = codec.blocks_bytes(codec.BLOCK_CODECS[job.exchange.pull], num_trained)
    pulls = job.publish_every / job.cluster.num_workers  # of one worker, to one publication
    # If publications are more frequent than pulls, a worker misses some, and is sent whole ones.
    publication = blocks / pulls if pulls >= 1 else wire * num_trained
    return blocks + publication + _statistics_bytes(layout, shard)


def _statistics_bytes(layout: Layout, shard: int) -> int:
    return _FLOAT32_BYTES * (layout.num_pushed(shard) - layout.num_trained(shard))


@dataclass(frozen=True)
class Cost:
    """Core-seconds of one kind of call on one side: a constant per call, and a part per parameter of the shard."""

    per_call_s: float = 0.0
    per_element_s: float = 0.0

    @classmethod
    def through(cls, small: tuple[int, float], large: tuple[int, float]) -> Cost:
        """Fits a cost to shards of two sizes: (parameters, measured core-seconds), the smaller shard first."""
        (few, less_s), (many, more_s) = small, large
        slope = (more_s - less_s) / (many - few) if many > few else 0.0
        slope = min(max(slope, 0.0), more_s / many if many else 0.0)  # noise must not make a cost negative
        return cls(more_s - slope * many, slope)

    def of(self, num_elements: int) -> float:
        """Core-seconds of a shard with so many parameters."""
        return self.per_call_s + self.per_element_s * num_elements


@dataclass(frozen=True)
class Costs:
    """Costs of calls: on the shard and in the worker."""

    shard_push: Cost = Cost()
    shard_pull: Cost = Cost()
    worker_push: Cost = Cost()
    worker_pull: Cost = Cost()


def calls(layout: Layout, job: Job, costs: Costs) -> tuple[list[CallCosts], list[CallCosts]]:
    """Every shard's push and pull, as `downpour.launch.planning.queueing` takes them."""
    pushes, pulls = [], []
    for shard in range(layout.num_shards):
        size = layout.size(shard)
        to, back = push_bytes(layout, shard, job), pull_bytes(layout, shard, job)
        pushes.append(CallCosts(to, costs.shard_push.of(size), costs.worker_push.of(size)))
        pulls.append(CallCosts(back, costs.shard_pull.of(size), costs.worker_pull.of(size)))
    return pushes, pulls
