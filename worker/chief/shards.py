"""The shards of a job as its chief sees them: given their values, watched, healed, written to checkpoints.

Threads: any may call; a pool of this module's makes the calls. Nothing is kept but what shards have lost.
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
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint import restore
from downpour.ps.checkpoint.manifest import Checkpoint
from downpour.ps.checkpoint.shard_file import ShardFile
from downpour.ps.layout import Layout, from_canonical
from downpour.worker.exchange.clients import ShardClient

_NUM_THREADS = 64
_LOOK_S = 2.0  # for an answer of a shard that may be away
_STOP_S = 10.0  # until a shard that is to stop has been told


@dataclass(frozen=True)
class Loss:
    """What a shard lost with its memory: `updates` beyond the checkpoint it came back from."""

    shard: int
    version: int
    updates: int


class Shards:
    """All shards of a job.

    Args:
        addresses: `host:port` of each, in order.
        layout: Of the job's variables.
        told: What every shard is told; `shard`, `layout` and `fingerprint` are set here.
        give_up_after_s: See `ShardClient`.
        security: Of this process.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        layout: Layout,
        told: pb.ShardSpecification,
        give_up_after_s: float,
        security: Security = PLAIN,
    ) -> None:
        self.layout = layout
        self._told = pb.ShardSpecification(layout=layout.canonical, fingerprint=layout.fingerprint)
        self._told.MergeFrom(told)
        self._clients = [
            ShardClient(i, address, layout, give_up_after_s, security) for i, address in enumerate(addresses)
        ]
        self._pool = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="shards")

    @property
    def job_id(self) -> str:
        """Of the job whose parameters the shards must hold; empty until it is set."""
        return self._told.job_id

    @job_id.setter
    def job_id(self, job_id: str) -> None:
        self._told.job_id = job_id
        for client in self._clients:
            client.job_id = job_id

    def __len__(self) -> int:
        return len(self._clients)

    def close(self) -> None:
        """Ends threads and connections."""
        self._pool.shutdown()
        for client in self._clients:
            client.close()

    def statuses(self) -> list[pb.StatusReply]:
        """Of every shard; waits for those that are away."""
        return self._on_all(ShardClient.status)

    def look(self) -> list[pb.StatusReply | None]:
        """Of every shard that answers soon."""
        return self._on_all(lambda client: client.look(_LOOK_S))

    def check_job(self) -> None:
        """Compares what the shards hold with this job, and waits until all of them hold something.

        Raises:
            LayoutMismatch: A shard holds another layout, or updates by another rule, schedule or pace.
        """
        self._on_all(ShardClient.wait_ready)
        for shard, status in enumerate(self._on_all(ShardClient.described)):
            for field in ("rule", "schedule", "pace", "staleness", "average"):
                theirs, mine = getattr(status.specification, field), getattr(self._told, field)
                if theirs != mine:
                    raise LayoutMismatch(
                        f"shard {shard} works with the {field} {_words(theirs)}, this job says {_words(mine)}; "
                        "start with the recipe that it was started with, or on empty shards with --resume"
                    )

    def initialize(self, values: Callable[[], list[np.ndarray]], only: Sequence[int] | None = None) -> None:
        """Gives empty shards their initial values; `values` gives one array a variable, in the layout's order."""
        vectors = self.layout.scatter(values())
        self._on_all(lambda client: client.initialize(self._told_to(client), vectors[client.shard]), only)

    def restore(self, saved: Checkpoint, only: Sequence[int] | None = None, *, with_slots: bool = True) -> list[int]:
        """Has empty shards read a checkpoint; returns their versions.

        Raises:
            LayoutMismatch: It is of another model.
            CheckpointFailed: A shard cannot read it.
        """
        restore.check(saved, self.layout.variables)
        replies = self._on_all(
            lambda client: client.restore(self._told_to(client), saved.directory, with_slots=with_slots), only
        )
        return [reply.version for reply in replies]

    def heal(
        self,
        statuses: Sequence[pb.StatusReply | None],
        seen: Sequence[int],
        newest: Callable[[Callable[[Checkpoint], None]], Checkpoint | None],
        values: Callable[[], list[np.ndarray]],
    ) -> list[Loss]:
        """Gives shards that came back without their memory what there is: the newest checkpoint, else initial values.

        Args:
            statuses: As `look` gives them.
            seen: Highest version of each shard that anybody has seen.
            newest: Gives the newest checkpoint of which a check finds what is needed undamaged, if there is one.
            values: See `initialize`.

        Raises:
            Damaged: There are checkpoints, and all are.
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

    def check_may_write(self, directory: str) -> None:
        """Raises `CheckpointFailed` when a shard may not write into a folder."""
        self._on_all(lambda client: client.write_checkpoint(directory, check_only=True))

    def write_checkpoint(self, directory: str, step: int, progress: dict[str, Any]) -> Checkpoint:
        """Has every shard write its file, then writes the manifest.

        Raises:
            CheckpointFailed: A file cannot be written; what was written of the others has been removed.
        """
        told = pb.ShardSpecification()
        told.CopyFrom(self._told)
        told.ClearField("layout")
        try:
            files = tuple(ShardFile.of(reply) for reply in self._on_all(lambda c: c.write_checkpoint(directory)))
            saved = Checkpoint(directory, step, self.layout, files, told, progress)
            checkpoint.write_manifest(saved)
        except DownpourError:
            checkpoint.discard(directory)
            raise
        return saved

    def absent(self, workers: Sequence[tuple[int, int]]) -> None:
        """Names workers (index, incarnation) that nobody must wait for any longer."""
        self._on_all(lambda client: client.absent(workers))

    def stop(self) -> None:
        """Tells every shard that the job is over. One that does not answer soon is left alone, with a warning."""

        def tell(client: ShardClient) -> None:
            try:
                client.stop(_STOP_S)
            except (DownpourError, grpc.RpcError) as error:
                logging.warning("%s was not stopped: %s", client.peer, error)

        self._on_all(tell)

    def _told_to(self, client: ShardClient) -> pb.ShardSpecification:
        specification = pb.ShardSpecification(shard=client.shard)
        specification.MergeFrom(self._told)
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
    """The layout that some shard holds, if one that answers soon holds any: a job goes on."""
    clients = [ShardClient(i, address, Layout((), 0, ()), _LOOK_S, security) for i, address in enumerate(addresses)]
    with ThreadPoolExecutor(len(clients)) as pool:
        statuses = list(pool.map(lambda client: client.look(_LOOK_S, with_layout=True), clients))
    for client in clients:
        client.close()
    return next((from_canonical(status.layout) for status in statuses if status is not None and status.ready), None)


def _words(named: pb.Named) -> str:
    values = ", ".join(f"{key}={list(numbers.values)}" for key, numbers in sorted(named.parameters.items()))
    return f"{named.name or 'none'}({values})"
