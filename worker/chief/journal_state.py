"""The journaled state of a job, from which a restarted chief continues. Pure: no clock, no I/O, no threads.

Guarded by the chief's lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from downpour.proto import chief_pb2 as pb
from downpour.ps.checkpoint.manifest import Checkpoint
from downpour.worker.chief.coordinator import Coordinator
from downpour.worker.chief.shards import Loss


@dataclass
class JournalState:
    """The state in the journal.

    Attributes:
        coordinator: Workers, leases and progress.
        checkpoint: The newest checkpoint that this run has written or begun from.
        score: The evaluator's newest score.
        losses: Losses of the shards' memory.
        resumed_from: Step of the checkpoint that the run began from.
    """

    coordinator: Coordinator
    checkpoint: pb.NextCheckpointReply | None = None
    score: pb.Score | None = None
    losses: list[Loss] = field(default_factory=list)
    resumed_from: int | None = None

    def state(self, now_s: float) -> dict[str, Any]:
        """Returns the whole state, as JSON values."""
        at = self.checkpoint
        return {
            "coordinator": self.coordinator.state(now_s, with_workers=True),
            "score": MessageToDict(self.score) if self.score else None,
            "checkpoint": {"directory": at.directory, "step": at.step} if at else None,
            "losses": [vars(loss) for loss in self.losses],
            "resumed_from": self.resumed_from,
        }

    def resume(self, saved: Checkpoint, now_s: float) -> None:
        """Continues from a checkpoint."""
        self.coordinator.load(saved.progress["coordinator"], now_s)
        self.checkpoint = pb.NextCheckpointReply(directory=saved.directory, step=saved.step)
        self.resumed_from = saved.step

    def load(self, state: Mapping[str, Any], now_s: float) -> None:
        """Continues from a journaled state; its `gap_s` are the seconds since it was staged.

        Raises:
            OtherRecords: The state belongs to other training records.
            KeyError: It is not a state of a chief; nothing has changed.
        """
        try:
            score = ParseDict(state["score"], pb.Score()) if state["score"] else None
            at = pb.NextCheckpointReply(**state["checkpoint"]) if state["checkpoint"] else None
            losses = [Loss(*(int(loss[key]) for key in ("shard", "version", "updates"))) for loss in state["losses"]]
            resumed_from = None if state["resumed_from"] is None else int(state["resumed_from"])
        except (KeyError, TypeError, ValueError, AttributeError, ParseError) as error:
            raise KeyError(f"not the state of a chief: {error!r}") from None
        self.coordinator.load(state["coordinator"], now_s, gap_s=state["gap_s"])
        self.score, self.checkpoint, self.losses, self.resumed_from = score, at, losses, resumed_from
