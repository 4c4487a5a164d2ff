"""Refills shards that restarted without their memory, and tells all of them the factor of the learning rate.

They are filled from the newest good checkpoint, else with initial values. A shard that does not know the last change of
the learning rate is told: after a callback has reduced it, after a restore, after a restart of the chief.

Threads: `run` is a thread of its own; the chief's main thread calls `look_after` once before that thread begins. The
condition of `JobState` guards the state that both of them share with the service.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
from absl import logging

from downpour.proto import chief_pb2 as pb
from downpour.proto import parameter_server_pb2 as ps_pb
from downpour.proto.errors import DownpourError
from downpour.ps.checkpoint.manifest import Checkpoint
from downpour.ps.checkpoint.shard_file import Damaged
from downpour.worker.chief.details import shard_totals
from downpour.worker.chief.run_folder import RunFolder
from downpour.worker.chief.shards import Shards
from downpour.worker.chief.state import JobState

_LOOK_EVERY_S = 1.0


class Healer:
    """Refills the shards of one job.

    Args:
        shards: The job's shards.
        folder: The run's folder; has the checkpoints.
        state: The job's state; losses are added to `journal_state`.
        initial_values: Returns one array a variable, for a job without a checkpoint.

    Attributes:
        gave_up: Whether a shard's memory cannot be restored; the failure of `journal_state.coordinator` says why.
    """

    def __init__(
        self,
        shards: Shards,
        folder: RunFolder,
        state: JobState,
        initial_values: Callable[[], list[np.ndarray]],
    ) -> None:
        self.gave_up = False
        self._shards, self._folder, self._state, self._initial_values = shards, folder, state, initial_values
        self._polled = [0] * len(shards)  # versions at the last poll; guarded by `changed`

    def run(self, ending: threading.Event) -> None:
        """Polls once a second until `ending` is set, or a shard's memory cannot be restored."""
        said = ""
        while not ending.wait(_LOOK_EVERY_S):
            try:
                self.look_after()
            except Damaged as error:
                with self._state.changed:
                    self.gave_up = True
                    self._state.coordinator.failure = f"a shard has lost its memory, and {error}"
                    self._state.changed.notify_all()
                return
            except (DownpourError, ValueError, OSError) as error:  # a shard failed again, or storage fails: retried
                if str(error) != said:
                    logging.warning("shards cannot be restored: %s", error)
                said = str(error)
            else:
                said = ""

    def look_after(self) -> None:
        """Refills shards that restarted without their memory, records what was lost, and spreads the learning rate.

        Raises:
            Damaged: A shard needs a checkpoint, and all are damaged.
            DownpourError: A shard failed again, or cannot read its checkpoint.
        """
        statuses = self._shards.look()
        with self._state.changed:
            self._state.shards = list(zip(self._shards.addresses, statuses, strict=True))
            for address, status in self._state.shards:
                if status is not None:
                    self._state.shard_windows.add(address, status.job_id, time.monotonic(), shard_totals(status))
        with contextlib.ExitStack() as reading:

            def newest(check: Callable[[Checkpoint], None]) -> Checkpoint | None:
                reading.enter_context(self._folder.kept())
                return self._newest(check)

            losses = self._shards.heal(statuses, self._seen(), newest, self._initial_values)
        with self._state.changed:
            self._polled = [_version(old, status) for old, status in zip(self._polled, statuses, strict=True)]
        if losses:
            with self._state.journaled():
                self._state.journal_state.losses += losses
        self.spread_rate(statuses, [loss.shard for loss in losses])

    def spread_rate(self, statuses: Sequence[ps_pb.StatusReply | None], refilled: Sequence[int] = ()) -> None:
        """Tells shards the last change of the learning rate that they do not know; the latest that any knows holds.

        Args:
            statuses: Status of every shard; None for one that does not answer.
            refilled: Shards that were filled since then.

        Raises:
            DownpourError: A shard does not answer.
        """
        known = {shard: status.rate for shard, status in enumerate(statuses) if status is not None and status.ready}
        latest = max(known.values(), key=lambda rate: rate.number, default=ps_pb.Rate())
        with self._state.changed:
            self._state.journal_state.reactions.adopt(latest.number, latest.factor)
            last = self._state.journal_state.reactions.factor
        behind = {shard for shard, rate in known.items() if rate.number < last.number}
        if last.number:
            self._shards.set_rate(last.number, last.factor, sorted(behind.union(refilled)))

    def _seen(self) -> Sequence[int]:
        """The highest version of each shard that a worker or this object has observed since its last loss."""
        with self._state.changed:
            reported = self._state.coordinator.versions or [0] * len(self._shards)
            before = {loss.shard: loss.version + loss.updates for loss in self._state.journal_state.losses}
            polled = self._polled
        # A report from before an earlier loss says nothing about this one.
        current = [version if version > before.get(shard, -1) else 0 for shard, version in enumerate(reported)]
        return [max(pair) for pair in zip(polled, current, strict=True)]

    def _newest(self, check: Callable[[Checkpoint], None]) -> Checkpoint | None:
        """Returns the newest good checkpoint; newer ones, which are damaged, are no longer offered to the evaluator."""
        damaged = list[str]()
        saved = self._folder.newest(check, self._shards.job_id, damaged.append)
        with self._state.changed:
            known = self._state.journal_state.checkpoint  # may be newer than all that were looked at
            if saved is not None and known is not None and known.directory in damaged and not known.last:
                older = pb.NextCheckpointReply(directory=saved.directory, step=saved.step)
                self._state.journal_state.checkpoint = older
        return saved


def _version(before: int, status: ps_pb.StatusReply | None) -> int:
    return before if status is None else status.version
