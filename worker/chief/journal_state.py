"""The journaled state of a job, from which a restarted chief continues. Pure: no clock, no I/O, no threads.

Guarded by the chief's lock.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from downpour.proto import chief_pb2 as pb
from downpour.ps.checkpoint.manifest import Checkpoint
from downpour.worker.chief.coordinator import Coordinator
from downpour.worker.chief.reactions import Reactions
from downpour.worker.chief.shards import Loss


@dataclass
class JournalState:
    """The state in the journal.

    Attributes:
        coordinator: Workers, leases and progress.
        checkpoint: The newest checkpoint that this run has written or begun from.
        score: The score of the latest checkpoint that was counted.
        losses: Losses of the shards' memory.
        resumed_from: Step of the checkpoint that the run began from.
        reactions: What callbacks have counted and decided.
        offered: Steps of the checkpoints that evaluators were given and have not scored yet.
        held: Scores that wait for those of earlier checkpoints, by step.
    """

    coordinator: Coordinator
    checkpoint: pb.NextCheckpointReply | None = None
    score: pb.Score | None = None
    losses: list[Loss] = field(default_factory=list)
    resumed_from: int | None = None
    reactions: Reactions = field(default_factory=Reactions)
    offered: set[int] = field(default_factory=set)
    held: list[pb.Score] = field(default_factory=list)

    @property
    def kept(self) -> set[int]:
        """Steps of checkpoints that must stay: the best, and those that may become it, since they are being scored."""
        if not self.reactions.keeps_best:
            return set()
        waiting = self.offered | {score.step for score in self.held} | {self.checkpoint.step if self.checkpoint else 0}
        best = {found["step"] for found in self.reactions.best.values()}
        return best | {step for step in waiting if step > self.reactions.observed}

    def scored(self, score: pb.Score | None, pending: Collection[int]) -> list[pb.Score]:
        """Adds a score, if there is a new one; returns those that are due, by step.

        Args:
            score: The new score.
            pending: Steps of checkpoints that are being scored; scores of later ones wait for theirs.
        """
        scores = sorted([*self.held, *([score] if score is not None else [])], key=lambda one: one.step)
        first = min(pending, default=None)
        due = [one for one in scores if first is None or one.step < first]
        self.held = scores[len(due) :]
        if due and (self.score is None or due[-1].step >= self.score.step):  # else its evaluator outlived a chief
            self.score = due[-1]
        return due

    def progress(self, now_s: float) -> dict[str, Any]:
        """Returns what a checkpoint holds of the chief's state, as JSON values."""
        return {
            "coordinator": self.coordinator.state(now_s, with_workers=False),
            "reactions": self.reactions.state(),
        }

    def state(self, now_s: float) -> dict[str, Any]:
        """Returns the whole state, as JSON values."""
        at = self.checkpoint
        return {
            "coordinator": self.coordinator.state(now_s, with_workers=True),
            "score": MessageToDict(self.score) if self.score else None,
            "checkpoint": {"directory": at.directory, "step": at.step} if at else None,
            "losses": [vars(loss) for loss in self.losses],
            "resumed_from": self.resumed_from,
            "reactions": self.reactions.state(),
            "offered": sorted(self.offered),
            "held": [MessageToDict(score) for score in self.held],
        }

    def resume(self, saved: Checkpoint, now_s: float) -> None:
        """Continues from a checkpoint."""
        self.recall(saved, now_s)
        self.resumed_from = saved.step

    def recall(self, saved: Checkpoint, now_s: float) -> None:
        """Takes over the progress in a checkpoint; checkpoints of older versions know of no callbacks.

        Raises:
            OtherRecords: It belongs to other training records.
            KeyError: It is not the state of a job; nothing has changed.
        """
        reactions = _continued(self.reactions, saved.progress)
        self.coordinator.load(saved.progress["coordinator"], now_s)
        self.checkpoint = pb.NextCheckpointReply(directory=saved.directory, step=saved.step)
        self.reactions = reactions

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
            offered = state.get("offered", [])
            offered = {int(step) for step in (offered if isinstance(offered, list) else [offered])}
            held = [ParseDict(score, pb.Score()) for score in state.get("held", [])]
        except (KeyError, TypeError, ValueError, AttributeError, ParseError) as error:
            raise KeyError(f"not the state of a chief: {error!r}") from None
        reactions = _continued(self.reactions, state)
        self.coordinator.load(state["coordinator"], now_s, gap_s=state["gap_s"])
        self.reactions, self.offered, self.held = reactions, offered, held
        self.score, self.checkpoint, self.losses, self.resumed_from = score, at, losses, resumed_from


def _continued(reactions: Reactions, state: Mapping[str, Any]) -> Reactions:
    try:
        return reactions.continued(state.get("reactions", {}))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise KeyError(f"not the state of a chief: {error!r}") from None
