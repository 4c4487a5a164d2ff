"""Memory that a simulation needs beside what one worker needs: arenas of the shards, and what workers hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from downpour.launch.job import Job
from downpour.launch.planning import demand
from downpour.proto import codec
from downpour.ps.layout import Layout
from downpour.ps.memory import arena
from downpour.ps.policy.specification import specification_of
from downpour.worker.exchange.cadence import EveryStep, LocalSteps

_FLOAT32_BYTES = 4
_MB = 1e6
_LIMIT, _STATISTICS = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.stat")


@dataclass(frozen=True)
class Footprint:
    """Memory of a simulation, an upper bound in bytes.

    Attributes:
        shards: Arenas of all shards, and what they keep encoded.
        workers: What all workers hold: parameters, gradients in flight, copies and slots of their own.
    """

    shards: int
    workers: int

    def __str__(self) -> str:
        total = self.shards + self.workers
        return (
            f"{total / _MB:,.0f} MB of memory at most beside the model, its step and data: {self.shards / _MB:,.0f} MB "
            f"for the shards and {self.workers / _MB:,.0f} MB for what the workers hold"
        )

    def check(self) -> None:
        """Raises `ValueError` if this machine has not so much memory available."""
        left = available()
        if self.shards + self.workers > left:
            raise ValueError(
                f"the simulation needs {self}; this machine has {left / _MB:,.0f} MB available; simulate fewer "
                "workers, a narrower --set=exchange.codec, or a smaller model"
            )


def of(job: Job, layout: Layout, *, instant: bool) -> Footprint:
    """Returns what a simulation needs.

    Args:
        job: The job, with the number of workers.
        layout: Layout of its variables.
        instant: Whether an exchange takes no time, so that one gradient is in flight at a time.
    """
    shards = range(layout.num_shards)
    workers, wire = job.cluster.num_workers, codec.WIRE_DTYPES[codec.CODECS[job.exchange.codec]].itemsize
    num_trained = sum(map(layout.num_trained, shards))
    num_statistics = sum(map(layout.num_pushed, shards)) - num_trained
    num_frozen = sum(map(layout.size, shards)) - num_trained - num_statistics
    pulled = wire * (num_trained + num_frozen) + _FLOAT32_BYTES * num_statistics
    arenas = sum(arena.bytes_needed(specification_of(job, layout, workers, shard)) for shard in shards)
    # Every worker holds parameters that it computes with, and receives others; of these, those of one version are one.
    held = (workers * (1 + bool(job.overlap)) + 1) * pulled
    held += (1 if instant else workers) * sum(demand.push_bytes(layout, shard, job) for shard in shards)
    if job.exchange.push == "int8":
        held += workers * _FLOAT32_BYTES * num_trained
    if not isinstance(job.cadence, EveryStep):
        copies = 2  # the worker's own parameters, and the sum of its gradients
        if isinstance(job.cadence, LocalSteps):
            copies += 1 + len(job.cadence.rule.slots)
        held += workers * copies * _FLOAT32_BYTES * (num_trained + num_statistics)
    publications = 2 * wire * num_trained if job.publish_every else 0
    return Footprint(arenas + pulled + publications, held)


def available() -> int:
    """Bytes of memory that this process may still take: what the machine has, within the limit of its control group."""
    left = int(psutil.virtual_memory().available)
    try:
        used = dict(line.split() for line in _STATISTICS.read_text().splitlines())["anon"]
        return min(left, int(_LIMIT.read_text()) - int(used))
    except (OSError, ValueError, KeyError):  # no such group, or no limit
        return left
