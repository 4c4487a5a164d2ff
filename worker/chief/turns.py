"""Which evaluator scores which checkpoint: each is scored whole, by one of them. Pure: no clock, no I/O, no threads.

A checkpoint is given to the first evaluator that asks. It is given again if that evaluator is started again, or has not
been heard of for as long as a worker may be silent. Guarded by the chief's lock.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from downpour.proto import chief_pb2 as pb


@dataclass
class Turn:
    """What is known of one evaluator.

    Attributes:
        incarnation: Random number of its process.
        heard_s: When it was heard of last.
        given: The checkpoint that it scores; None while it waits for one.
        since_s: When it was given that.
        scored: Checkpoints that it has scored.
    """

    incarnation: int
    heard_s: float
    given: pb.NextCheckpointReply | None = None
    since_s: float = 0.0
    scored: int = 0


class Turns:
    """The evaluators of a job, and the checkpoints that they score.

    Args:
        lease_s: Seconds of silence after which an evaluator's checkpoint is given to another.

    Attributes:
        after: Highest step that was given or scored; -1 before the first.
    """

    def __init__(self, lease_s: float) -> None:
        self.after = -1
        self._lease_s = lease_s
        self._evaluators: dict[int, Turn] = {}
        self._returned: list[pb.NextCheckpointReply] = []  # by step
        self._scored: set[int] = set()

    def ask(self, request: pb.NextCheckpointRequest, now_s: float) -> None:
        """An evaluator asks for a checkpoint, having scored or passed over all that it was given up to `after_step`."""
        turn = self._evaluators.get(request.evaluator)
        if turn is None or turn.incarnation != request.incarnation:
            self._take_back(turn)
            turn = self._evaluators[request.evaluator] = Turn(
                request.incarnation, now_s, scored=turn.scored if turn else 0
            )
        turn.heard_s = now_s
        if turn.given is not None and turn.given.step <= request.after_step:
            turn.given = None
        self.after = max(self.after, request.after_step)

    def renew(self, request: pb.NextCheckpointRequest, now_s: float) -> None:
        """An evaluator says that it is still scoring a checkpoint, which a restarted chief may not know."""
        turn = self._evaluators.get(request.evaluator)
        if turn is None:
            turn = self._evaluators[request.evaluator] = Turn(request.incarnation, now_s)
            turn.given, turn.since_s = pb.NextCheckpointReply(step=request.scoring), now_s
            self.after = max(self.after, request.scoring)
        if turn.incarnation == request.incarnation:
            turn.heard_s = now_s

    def next(
        self, evaluator: int, saved: Iterable[pb.NextCheckpointReply], now_s: float
    ) -> pb.NextCheckpointReply | None:
        """The checkpoint for an evaluator that asks: what it has already, what was taken back, or a new one.

        Args:
            evaluator: Its index.
            saved: Checkpoints that there are, by step.
            now_s: The time.
        """
        for turn in self._evaluators.values():
            if now_s > turn.heard_s + self._lease_s:
                self._take_back(turn)
        mine = self._evaluators[evaluator].given
        if mine is not None and mine.directory:
            return mine
        new = (one for one in saved if one.step > self.after)
        return next(itertools.chain(self._returned, new), None)

    def give(self, evaluator: int, found: pb.NextCheckpointReply, now_s: float) -> None:
        """Gives an evaluator what `next` has returned."""
        turn = self._evaluators[evaluator]
        if turn.given is None or turn.given.step != found.step:
            turn.given, turn.since_s = found, now_s
        self._returned = [one for one in self._returned if one.step != found.step]
        self.after = max(self.after, found.step)

    def scored(self, step: int) -> bool:
        """A checkpoint has been scored; returns whether that is new.

        It is not where a report is repeated, or an evaluator that was silent for too long has ended after another.
        """
        if step in self._scored:
            return False
        self._scored.add(step)
        self.after = max(self.after, step)
        self._returned = [one for one in self._returned if one.step != step]
        for turn in self._evaluators.values():
            if turn.given is not None and turn.given.step == step:
                turn.given, turn.scored = None, turn.scored + 1
        return True

    @property
    def steps(self) -> set[int]:
        """Steps of the checkpoints that are being scored, or wait to be given again."""
        given = [turn.given for turn in self._evaluators.values() if turn.given is not None]
        return {one.step for one in (*given, *self._returned)}

    def progress(self, now_s: float) -> Iterator[pb.ProgressReply.Evaluator]:
        """What every evaluator does."""
        kinds = pb.ProgressReply.Evaluator
        for index, turn in sorted(self._evaluators.items()):
            lost = now_s > turn.heard_s + self._lease_s
            state = kinds.STATE_LOST if lost else kinds.STATE_WAITING if turn.given is None else kinds.STATE_SCORING
            yield kinds(
                index=index,
                state=state,
                step=turn.given.step if turn.given is not None else 0,
                seconds=now_s - turn.since_s if turn.given is not None else 0.0,
                scored=turn.scored,
                silent_seconds=max(now_s - turn.heard_s, 0.0),
            )

    def _take_back(self, turn: Turn | None) -> None:
        if turn is None or turn.given is None:
            return
        if turn.given.directory:  # else a chief that was restarted does not know where it is
            self._returned = sorted([*self._returned, turn.given], key=lambda one: one.step)
        turn.given = None
