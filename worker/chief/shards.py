"""The chief's calls to the shards of a job: initialise, restore, poll, heal, write checkpoints, stop.

Threads: any may call; a pool makes the calls. No state is kept but the specification and the connections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from absl import logging

from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import DownpourError, LayoutMismatch
from downpour.proto.security.config import PLAIN, Security
from downpour.proto.trace_pb2 import RoundTrip, Spans, SpansReceived
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint import restore
from downpour.ps.checkpoint.manifest import Checkpoint
from downpour.ps.checkpoint.shard_file import ShardFile
from downpour.ps.layout import Layout, from_canonical
from downpour.ps.policy.specification import POLICIES
from downpour.worker.exchange.clients import ShardClient

_NUM_THREADS = 64
_LOOK_S = 2.0  # for an answer of a shard that may be down
_STOP_S = 10.0  # for a shard to acknowledge that it is to stop


@dataclass(frozen=True)
class Loss:
    """Loss of a shard's memory: it was restored at `version`, and `updates` beyond that were lost."""

    shard: int
    version: int
    updates: int


class Shards:
    """All shards of a job.

    Args:
        addresses: `host:port` of each, in order.
        layout: Layout of the job's variables.
        specification: Specification sent to every shard; `shard` and `job_id` are set here.
        give_up_after_s: See `ShardClient`.
        security: Security configuration of this process.

    Attributes:
        addresses: As given.
        layout: As given.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        layout: Layout,
        specification: pb.ShardSpecification,
        give_up_after_s: float,
        security: Security = PLAIN,
    ) -> None:
        self.addresses, self.layout = tuple(addresses), layout
        self._specification = pb.ShardSpecification()
        self._specification.CopyFrom(specification)
        self._clients = [
            ShardClient(i, address, layout, give_up_after_s, security) for i, address in enumerate(addresses)
        ]
        self._pool = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="shards")

    @property
    def job_id(self) -> str:
        """Id of the job whose parameters the shards must hold; empty until it is set."""
        return self._specification.job_id

    @job_id.setter
    def job_id(self, job_id: str) -> None:
        self._specification.job_id = job_id
        for client in self._clients:
            client.job_id = job_id

    def __len__(self) -> int:
        return len(self._clients)

    def close(self) -> None:
        """Stops the threads and closes the connections."""
        self._pool.shutdown()
        for client in self._clients:
            client.close()

    def statuses(self) -> list[pb.StatusReply]:
        """Returns the status of every shard; retries those that do not answer."""
        return self._on_all(ShardClient.status)

    def look(self) -> list[pb.StatusReply | None]:
        """Returns the status of every shard, or None for one that does not answer within `_LOOK_S`."""
        return self._on_all(lambda client: client.look(_LOOK_S))

    def spans(self, received: Sequence[SpansReceived], clock: Callable[[], float]) -> list[Spans | None]:
        """Returns the spans of every shard after some, each with the times of its call by `clock`; None as `look`."""
        return self._on_all(lambda client: _spans(client, received[client.shard], clock))

    def check_job(self) -> None:
        """Waits until all shards hold parameters, and compares their specification with this job's.

        Raises:
            LayoutMismatch: A shard holds another layout, or another rule, schedule, pace, treatment or average.
        """
        self._on_all(ShardClient.wait_ready)
        for shard, status in enumerate(self._on_all(ShardClient.described)):
            for field in POLICIES:
                theirs, mine = getattr(status.specification, field), getattr(self._specification, field)
                if theirs != mine:
                    raise LayoutMismatch(
                        f"shard {shard} has the {field} {_words(theirs)}, this job says {_words(mine)}; "
                        "start with the recipe that it was started with, or on empty shards with --resume"
                    )

    def initialize(self, values: Callable[[], list[np.ndarray]], only: Sequence[int] | None = None) -> None:
        """Sends empty shards their initial values; `values` returns one array a variable, in the layout's order."""
        vectors = self.layout.scatter(values())
        self._on_all(lambda client: client.initialize(self._specification_for(client), vectors[client.shard]), only)

    def restore(self, saved: Checkpoint, only: Sequence[int] | None = None, *, with_slots: bool = True) -> list[int]:
        """Has empty shards read a checkpoint; returns their versions.

        Raises:
            LayoutMismatch: The checkpoint is of another model.
            CheckpointFailed: A shard cannot read it.
        """
        restore.check(saved, self.layout.variables)
        replies = self._on_all(
            lambda client: client.restore(self._specification_for(client), saved.directory, with_slots=with_slots), only
        )
        return [reply.version for reply in replies]

    def heal(
        self,
        statuses: Sequence[pb.StatusReply | None],
        seen: Sequence[int],
        newest: Callable[[Callable[[Checkpoint], None]], Checkpoint | None],
        values: Callable[[], list[np.ndarray]],
    ) -> list[Loss]:
        """Refills shards that restarted without their memory: from the newest checkpoint, else with initial values.

        Args:
            statuses: As returned by `look`.
            seen: Highest observed version of each shard.
            newest: Returns the newest checkpoint that passes a check of the needed parts, or None.
            values: See `initialize`.

        Raises:
            Damaged: There are checkpoints, and all are damaged.
            LayoutMismatch: A shard holds parameters of another job.
        """
        for i, status in enumerate(statuses):
            if status is not None and status.ready and status.job_id != self.job_id:
                raise LayoutMismatch(
                    f"shard {i} holds parameters of job {status.job_id or 'without an id'}, and this is job "
                    f"{self.job_id}; start it again without that arena"
                )
        empty = [i for i, status in enumerate(statuses) if status is not None and not status.ready]
        if not empty:
            return []

        def needed(saved: Checkpoint) -> None:
            saved.verify(empty if saved.layout.canonical == self.layout.canonical else None)

        saved = newest(needed)
        if saved is None:
            self.initialize(values, empty)
            versions = [0] * len(empty)
        else:
            versions = self.restore(saved, empty)
        losses = [Loss(i, version, max(0, seen[i] - version)) for i, version in zip(empty, versions, strict=True)]
        for loss in losses:
            whence = saved.directory if saved else "initial values"
            logging.warning("shard %d lost its memory: back at version %d from %s, %d updates lost", loss.shard,
                          loss.version, whence, loss.updates)  # fmt: skip
        return losses

    def set_rate(self, number: int, factor: float, only: Sequence[int]) -> None:
        """Has some shards multiply their schedule's rate by a factor; see `ShardClient.set_rate`."""
        self._on_all(lambda client: client.set_rate(number, factor), only)

    def check_may_write(self, directory: str) -> None:
        """Raises `CheckpointFailed` if a shard may not write into a folder."""
        self._on_all(lambda client: client.write_checkpoint(directory, check_only=True))

    def write_checkpoint(self, directory: str, step: int, progress: dict[str, Any]) -> Checkpoint:
        """Has every shard write its file, then writes the manifest.

        Raises:
            CheckpointFailed: A file cannot be written; the files of the other shards have been removed.
        """
        specification = pb.ShardSpecification()
        specification.CopyFrom(self._specification)
        specification.ClearField("layout")
        try:
            files = tuple(ShardFile.of(reply) for reply in self._on_all(lambda c: c.write_checkpoint(directory)))
            saved = Checkpoint(directory, step, self.layout, files, specification, progress)
            checkpoint.write_manifest(saved)
        except DownpourError:
            checkpoint.discard(directory)
            raise
        return saved

    def absent(self, workers: Sequence[tuple[int, int]]) -> None:
        """Removes workers (index, incarnation) from the pace, so that no pull blocks on them."""
        self._on_all(lambda client: client.absent(workers))

    def stop(self) -> None:
        """Has every shard stop, since the job is over. A shard that does not answer within `_STOP_S` is logged."""

        def tell(client: ShardClient) -> None:
            try:
                client.stop(_STOP_S)
            except (DownpourError, grpc.RpcError) as error:
                logging.warning("%s was not stopped: %s", client.peer, error)

        self._on_all(tell)

    def _specification_for(self, client: ShardClient) -> pb.ShardSpecification:
        specification = pb.ShardSpecification()
        specification.CopyFrom(self._specification)
        specification.shard = client.shard
        return specification

    def _on_all(self, action: Callable[[ShardClient], Any], only: Sequence[int] | None = None) -> list[Any]:
        """Runs an action on every shard, or some, in parallel; raises the first error after all have ended."""
        clients = self._clients if only is None else [self._clients[i] for i in only]
        futures = [self._pool.submit(action, client) for client in clients]
        errors = [error for future in futures if (error := future.exception())]
        if errors:
            raise errors[0]
        return [future.result() for future in futures]


def known_layout(addresses: Sequence[str], security: Security = PLAIN) -> Layout | None:
    """Returns the layout of the first shard that answers within `_LOOK_S` and holds parameters; else None."""
    clients = [ShardClient(i, address, Layout((), 0, ()), _LOOK_S, security) for i, address in enumerate(addresses)]
    with ThreadPoolExecutor(len(clients)) as pool:
        statuses = list(pool.map(lambda client: client.look(_LOOK_S, with_layout=True), clients))
    for client in clients:
        client.close()
    return next((from_canonical(status.layout) for status in statuses if status is not None and status.ready), None)


def _spans(client: ShardClient, received: SpansReceived, clock: Callable[[], float]) -> Spans | None:
    asked_s = clock()
    status = client.look(_LOOK_S, trace=received)
    answered_s = clock()
    if status is None or not status.HasField("trace"):
        return None
    there = status.trace.clock_seconds
    trip = RoundTrip(asked_seconds=asked_s, received_seconds=there, replied_seconds=there, answered_seconds=answered_s)
    status.trace.round_trip.CopyFrom(trip)
    return status.trace


def _words(named: pb.Named) -> str:
    values = ", ".join(f"{key}={list(numbers.values)}" for key, numbers in sorted(named.parameters.items()))
    return f"{named.name or 'none'}({values})"
