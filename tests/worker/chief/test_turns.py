"""Which evaluator scores which checkpoint, and in which order their scores count."""

from __future__ import annotations

from downpour.proto import chief_pb2 as pb
from downpour.worker.chief.turns import Turns
from tests.worker.chief.test_journal_state import handed_on, known

LEASE_S = 10.0


class Asked:
    """Evaluators that ask; checkpoints of steps 10, 20 and so on are there."""

    def __init__(self, *steps: int) -> None:
        self.turns, self.now_s = Turns(LEASE_S), 0.0
        self.saved = [pb.NextCheckpointReply(directory=f"step-{step}", step=step) for step in steps]

    def ask(self, evaluator: int, after: int = -1, incarnation: int = 1) -> int | None:
        """The step that an evaluator is given."""
        request = pb.NextCheckpointRequest(after_step=after, evaluator=evaluator, incarnation=incarnation)
        self.turns.ask(request, self.now_s)
        found = self.turns.next(evaluator, self.saved, self.now_s)
        if found is None:
            return None
        self.turns.give(evaluator, found, self.now_s)
        return int(found.step)

    def renew(self, evaluator: int, step: int, incarnation: int = 1) -> None:
        request = pb.NextCheckpointRequest(evaluator=evaluator, incarnation=incarnation, scoring=step)
        self.turns.renew(request, self.now_s)


def test_each_checkpoint_is_given_once() -> None:
    job = Asked(10, 20, 30)
    assert [job.ask(0), job.ask(1), job.ask(2), job.ask(3)] == [10, 20, 30, None]
    assert job.ask(0) == 10, "its answer may have been lost"
    assert job.turns.scored(20) and not job.turns.scored(20), "a repeated report is no other score"
    assert job.ask(1, after=20) is None and job.turns.steps == {10, 30}


def test_what_an_evaluator_passes_over_is_given_to_nobody() -> None:
    job = Asked(10, 20)
    assert (job.ask(0), job.ask(0, after=10), job.ask(1)) == (10, 20, None)


def test_a_checkpoint_of_an_evaluator_that_begins_anew_is_given_to_the_first_that_asks() -> None:
    job = Asked(10, 20)
    assert (job.ask(0), job.ask(1)) == (10, 20)
    job.turns.scored(20)
    assert job.ask(0, incarnation=2) == 10
    assert job.ask(0, incarnation=3) == 10 and job.ask(1, after=20) is None


def test_a_checkpoint_of_an_evaluator_that_is_silent_is_given_to_another() -> None:
    job = Asked(10, 20)
    assert (job.ask(0), job.ask(1)) == (10, 20)
    job.turns.scored(20)
    job.now_s = LEASE_S
    job.renew(0, 10)
    job.now_s += LEASE_S
    assert job.ask(1, after=20) is None, "it says that it is still scoring"
    job.now_s += 0.1
    states = {one.index: one.state for one in job.turns.progress(job.now_s)}
    assert states == {0: pb.ProgressReply.Evaluator.STATE_LOST, 1: pb.ProgressReply.Evaluator.STATE_WAITING}
    assert job.ask(1, after=20) == 10
    assert job.turns.scored(10) and not job.turns.scored(10), "the silent one ends after all"
    assert job.ask(0, after=10) is None


def test_a_restarted_chief_learns_from_an_evaluator_what_it_scores() -> None:
    job = Asked(10, 20)
    job.renew(0, 10)
    assert job.ask(1) == 20 and job.turns.steps == {10, 20}
    (first, _) = job.turns.progress(3.0)
    assert (first.step, first.state) == (10, pb.ProgressReply.Evaluator.STATE_SCORING)


def test_scores_count_in_the_order_of_their_checkpoints() -> None:
    before = known()
    assert before.scored(pb.Score(step=20), {10, 30}) == [] and before.score is None
    again = handed_on(before)
    assert [score.step for score in again.held] == [20], "it is in the journal"
    assert [score.step for score in again.scored(pb.Score(step=10), {30})] == [10, 20]
    assert again.score is not None and again.score.step == 20 and not again.held
    assert again.scored(pb.Score(step=40), {30}) == [] and [one.step for one in again.scored(None, ())] == [40]
