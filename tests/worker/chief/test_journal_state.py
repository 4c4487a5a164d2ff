"""The next chief knows what the last one has written down."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from downpour.model.data.epochs import Epochs
from downpour.proto import chief_pb2 as pb
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.layout import Layout
from downpour.worker.chief.callbacks import KeepBest, ReduceOnPlateau
from downpour.worker.chief.coordinator import Coordinator, OtherRecords
from downpour.worker.chief.journal_state import JournalState
from downpour.worker.chief.leases import LeaseTable
from downpour.worker.chief.reactions import Reactions
from downpour.worker.chief.shards import Loss


def known() -> JournalState:
    return JournalState(Coordinator(num_steps=100, checkpoint_every_steps=30, leases=LeaseTable(100, 20)))


def handed_on(before: JournalState) -> JournalState:
    """What a new chief makes of the journal, 3 s later."""
    after = known()
    after.load(json.loads(json.dumps(before.state(10.0))) | {"gap_s": 3.0}, 1000.0)
    return after


def test_all_of_it_is_handed_on() -> None:
    before = known()
    before.coordinator.report(pb.WorkerReport(worker=1, incarnation=5, steps=9, version=9), 1.0)
    before.checkpoint = pb.NextCheckpointReply(directory="/runs/step-9", step=9)
    before.score = pb.Score(step=9, metrics={"map_at_100": 0.1}, records_skipped=2, skipped_examples=["a:3"])
    before.losses, before.resumed_from = [Loss(1, 5, 4)], 3
    after = handed_on(before)
    assert after.coordinator.step == 9
    assert (after.checkpoint, after.score) == (before.checkpoint, before.score)
    assert (after.losses, after.resumed_from) == (before.losses, 3)


def test_the_score_of_an_evaluator_that_outlived_a_chief_is_not_taken_for_the_last() -> None:
    after = handed_on(known())
    assert [score.step for score in after.scored(pb.Score(step=200), {100, 200})] == []
    assert [score.step for score in after.scored(None, ())] == [200]
    assert [score.step for score in after.scored(pb.Score(step=100), ())] == [100]
    assert after.score == pb.Score(step=200)
    after.scored(pb.Score(step=200, records_read=8), ())
    assert after.score == pb.Score(step=200, records_read=8), "scored again"


def test_journals_count_examples_as_they_did_when_they_called_them_images() -> None:
    before = known()
    before.coordinator.report(pb.WorkerReport(worker=1, incarnation=5, steps=9, examples=72), 1.0)
    state = json.loads(json.dumps(before.state(10.0)))
    assert state["coordinator"]["reports"][0]["images"] == "72"
    after = known()
    after.load(state | {"gap_s": 3.0}, 1000.0)
    assert after.coordinator.reports.total(lambda report: report.examples) == 72


def test_what_callbacks_have_counted_is_handed_on_and_is_in_checkpoints() -> None:
    reactions = Reactions((KeepBest(), ReduceOnPlateau(patience=1)), Epochs(10, 1))
    before = known()
    before.reactions, before.offered = reactions, {30}
    for step, value in ((10, 1.0), (20, 2.0)):
        reactions.scored(step, {"val_loss": value}, 0.1, (0, 0.0), over=False)
    before.checkpoint = pb.NextCheckpointReply(directory="/runs/step-40", step=40)
    assert before.kept == {10, 30, 40}, "the best, the one that is being scored, and the one that will be"
    after = known()
    after.reactions = reactions.continued({})
    after.load(json.loads(json.dumps(before.state(10.0))) | {"gap_s": 3.0}, 1000.0)
    assert after.reactions.state() == reactions.state() and after.kept == before.kept
    saved = checkpoint.Checkpoint("/runs/step-40", 40, Layout((), 0, ()), (), progress=before.progress(10.0))
    resumed = known()
    resumed.reactions = reactions.continued({})
    resumed.resume(saved, 1000.0)
    assert resumed.reactions.state() == reactions.state() and resumed.kept == {10, 40}
    resumed.reactions.scored(40, {"val_loss": 3.0}, 0.1, (0, 0.0), over=False)
    assert resumed.kept == {10}


def test_nothing_yet_is_handed_on_as_nothing() -> None:
    after = handed_on(known())
    assert (after.checkpoint, after.score, after.losses, after.resumed_from) == (None, None, [], None)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.clear(),
        lambda state: state.update(coordinator=[1, 2]),
        lambda state: state.update(score=[1]),
        lambda state: state.update(checkpoint="step-9"),
        lambda state: state.update(losses=[3]),
        lambda state: state.update(reactions={"observed": 3}),
        lambda state: state.update(reactions=[3]),
        lambda state: state["coordinator"].pop("train_s"),
        lambda state: state["coordinator"].update(step="many"),
        lambda state: state["coordinator"].update(workers={"one": 1}),
        lambda state: state["coordinator"].update(reports=[{"no": "report"}]),
        lambda state: state["coordinator"].update(leases=[3]),
        lambda state: state["coordinator"]["leases"].update(returned=[1]),
        lambda state: state["coordinator"]["leases"].update(holders={"0": {"leases": 3}}),
    ],
)
def test_a_state_of_another_shape_is_refused_and_changes_nothing(change: Callable[[Any], Any]) -> None:
    before = known()
    before.coordinator.report(pb.WorkerReport(worker=1, incarnation=5, steps=9, version=9), 1.0)
    before.coordinator.lease(1, 5, 0, 1.0)
    state = json.loads(json.dumps(before.state(10.0))) | {"gap_s": 3.0}
    change(state)
    after = known()
    with pytest.raises(KeyError, match="not the state of a"):
        after.load(state, 1000.0)
    assert after.state(0.0) == known().state(0.0)


def test_of_other_records_is_another_matter() -> None:
    state = known().state(0.0) | {"gap_s": 0.0}
    other = JournalState(Coordinator(num_steps=100, checkpoint_every_steps=30, leases=LeaseTable(200, 20)))
    with pytest.raises(OtherRecords, match="began with 100 training records, and its data now has 200"):
        other.load(state, 0.0)
