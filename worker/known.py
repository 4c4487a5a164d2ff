"""What a chief has learned of its job, as the next one must know it. Pure: no clock, no I/O, no threads.

Guarded by the chief's lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from downpour.proto import chief_pb2 as pb
from downpour.worker.coordinator import Coordinator
from downpour.worker.shards import Loss


@dataclass
class Known:
    """What goes into the journal.

    Attributes:
        coordinator: Workers, leases and progress.
        checkpoint: The newest one that this run has written or begun from.
        scores: Of the evaluator, by step.
        losses: What shards have lost.
        resumed_from: Step of the checkpoint that the run began from.
    """

    coordinator: Coordinator
    checkpoint: pb.NextCheckpointReply | None = None
    scores: dict[int, pb.Score] = field(default_factory=dict)
    losses: list[Loss] = field(default_factory=list)
    resumed_from: int | None = None

    @property
    def newest_score(self) -> pb.Score:
        """Empty if there is none."""
        return self.scores[max(self.scores)] if self.scores else pb.Score()

    def state(self, now_s: float) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        at = self.checkpoint
        return {
            "coordinator": self.coordinator.state(now_s, with_workers=True),
            "scores": [{"step": step, "metrics": dict(score.metrics)} for step, score in self.scores.items()],
            "checkpoint": {"directory": at.directory, "step": at.step} if at else None,
            "losses": [vars(loss) for loss in self.losses],
            "resumed_from": self.resumed_from,
        }

    def load(self, state: Mapping[str, Any], now_s: float) -> None:
        """Goes on from a state; its `gap_s` are the seconds since it was written."""
        self.coordinator.load(state["coordinator"], now_s, gap_s=state["gap_s"])
        self.scores = {entry["step"]: pb.Score(**entry) for entry in state["scores"]}
        if state["checkpoint"]:
            self.checkpoint = pb.NextCheckpointReply(**state["checkpoint"])
        self.losses = [Loss(**loss) for loss in state["losses"]]
        self.resumed_from = state["resumed_from"]
