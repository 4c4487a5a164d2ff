"""Losses and scores by epoch, and how far leases may run ahead of them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from downpour.model.data.epochs import Epochs
from downpour.model.data.order import Lease
from downpour.proto.chief_pb2 import WorkerReport
from downpour.worker.chief.coordinator import Coordinator
from downpour.worker.chief.epoch_log import EpochLog
from downpour.worker.chief.leases import LeaseTable

TEN = Epochs(100, 10)  # steps of ten positions, ten an epoch


def report(worker: int, *sums: tuple[int, int, float], finished: bool = False, version: int = 0) -> WorkerReport:
    """A report with (epoch, steps, sum of losses)."""
    made = WorkerReport(worker=worker, incarnation=1, finished=finished, version=version)
    for epoch, steps, loss in sums:
        made.epochs.add(epoch=epoch, steps=steps, loss_sum=loss)
    return made


@pytest.mark.parametrize(
    ("epochs", "ends"), [(TEN, [10, 20, 30]), (Epochs(100, 64), [2, 4, 5, 7, 8]), (Epochs(3, 10), [1, 1, 1, 2])]
)
def test_an_epoch_ends_with_the_step_that_takes_its_last_position(epochs: Epochs, ends: list[int]) -> None:
    assert [epochs.end(epoch) for epoch in range(len(ends))] == ends
    for step in range(ends[-1]):
        epoch = epochs.of(step)
        assert (epochs.end(epoch - 1) if epoch else 0) <= step < epochs.end(epoch)


def test_an_epoch_is_taken_once_when_every_worker_has_reported_since_and_it_is_scored() -> None:
    log = EpochLog(TEN, every=True, scored=True, num_workers=2)
    log.report(report(0, (0, 4, 8.0)), 1.0)
    log.saw(9, 2.0, 1.0)
    log.saw(11, 2.5, 1.5)
    log.score(10, {"val_loss": 0.5})
    assert not list(log.take(3.0))  # the reports are older than the epoch's end
    log.report(report(0, (0, 5, 10.0), (1, 1, 7.0)), 3.1)
    assert not list(log.take(3.2))  # nor has the other one reported at all
    log.report(report(1, (0, 5, 20.0)), 3.3)
    assert list(log.take(3.4)) == [{"epoch": 0, "step": 10, "seconds": 1.5, "loss": 3.0, "val_loss": 0.5}]
    log.report(report(1, (0, 6, 99.0)), 3.5)  # too late
    assert not list(log.take(9.0)) and log.newest_loss() == 7.0


def test_a_silent_worker_and_a_missing_evaluator_hold_up_no_epoch_for_ever() -> None:
    log = EpochLog(TEN, every=True)
    log.report(report(0, (0, 5, 10.0)), 1.0)
    log.saw(10, 2.0, 1.5)
    assert not list(log.take(4.9))
    assert [row["loss"] for row in log.take(5.1)] == [2.0]


def test_two_epochs_that_end_between_two_checkpoints_have_the_score_of_the_later_one() -> None:
    log = EpochLog(TEN, every=True, scored=True)
    log.report(report(0, (0, 10, 10.0), (1, 10, 20.0), finished=True), 1.0)
    log.saw(23, 2.0, 1.0)
    log.score(23, {"val_loss": 0.5})
    assert [(row["loss"], row["val_loss"]) for row in log.take(2.0)] == [(1.0, 0.5), (2.0, 0.5)]


def test_an_epoch_has_no_score_of_a_checkpoint_long_after_it() -> None:
    log = EpochLog(TEN, every=True, scored=True)
    log.report(report(0, *((epoch, 10, 10.0) for epoch in range(6)), finished=True), 1.0)
    log.score(10, {"val_loss": 0.1})
    log.score(60, {"val_loss": 0.6})
    log.saw(60, 2.0, 1.0)
    assert [row.get("val_loss") for row in log.take(2.0)] == [0.1, None, None, None, 0.6, 0.6]


def test_a_job_without_a_checkpoint_an_epoch_waits_for_no_score() -> None:
    log = EpochLog(TEN, scored=True)
    log.report(report(0, *((epoch, 10, 10.0 * epoch) for epoch in range(3)), finished=True), 1.0)
    log.score(25, {"val_loss": 0.5})
    log.saw(30, 2.0, 1.0)
    rows = list(log.take(2.0))
    assert [row["loss"] for row in rows] == [0.0, 1.0, 2.0]
    assert [row.get("val_loss") for row in rows] == [None, 0.5, None]  # step 25 is after the end of epoch 1


def test_the_last_epoch_may_be_cut_off_and_steps_beyond_the_last_belong_to_none() -> None:
    log = EpochLog(TEN)
    log.report(report(0, (0, 10, 10.0), (1, 5, 20.0), finished=True), 1.0)
    log.saw(15, 2.0, 1.0)
    assert [row["epoch"] for row in log.take(2.0)] == [0]
    assert list(log.take_rest(15, 1.2)) == [{"epoch": 1, "step": 15, "seconds": 1.2, "loss": 4.0}]
    assert not list(log.take_rest(15, 1.2))
    log = EpochLog(TEN)
    log.report(report(0, (0, 10, 10.0), (1, 1, 20.0), finished=True), 1.0)
    log.saw(10, 2.0, 1.0)
    assert [row["epoch"] for row in [*log.take(2.0), *log.take_rest(10, 1.0)]] == [0]


def test_losses_survive_a_chief() -> None:
    log, again = EpochLog(TEN), EpochLog(TEN)
    log.report(report(0, (0, 4, 8.0)), 1.0)
    again.load(log.state())
    again.begin([], {}, 4)
    again.report(report(0, (0, 5, 9.0)), 2.0)  # the same worker's totals: not added
    again.report(report(1, (0, 5, 11.0)), 2.0)
    assert again.loss(0) == 2.0
    resumed = EpochLog(TEN)
    resumed.begin([], {}, 55)
    assert resumed.next == 5  # of what was before there are no losses


def continued(log: EpochLog, entries: list[dict[str, Any]], scores: dict[int, dict[str, float]], step: int) -> EpochLog:
    """As a chief continues that has the history, and the losses of the last checkpoint."""
    made = EpochLog(TEN, every=log.every, scored=log.scored)
    made.load(json.loads(json.dumps(log.state())))
    made.begin(entries, scores, step)
    return made


def test_every_epoch_that_a_killed_chief_had_not_noted_is_noted_with_the_score_of_its_own_checkpoint() -> None:
    log = EpochLog(TEN, every=True, scored=True)
    log.report(report(0, *((epoch, 10, 10.0 * epoch) for epoch in range(7)), (7, 3, 3.0)), 1.0)
    log.score(12, {"val_loss": 0.12})
    log.saw(73, 0.5, 1.0)
    noted = list(log.take(1.0))
    assert [entry["epoch"] for entry in noted] == [0]
    scores = {step: {"val_loss": step / 100} for step in (12, 22, 31, 42)}
    resumed = continued(log, noted, scores, 73)
    resumed.saw(73, 10.0, 1.0)
    rest = list(resumed.take(99.0))
    resumed.score(53, {"val_loss": 0.53})
    resumed.score(73, {"val_loss": 0.73})
    rest += resumed.take(99.0)
    assert [(entry["epoch"], entry["loss"], entry["val_loss"]) for entry in rest] == [
        (1, 1.0, 0.22), (2, 2.0, 0.31), (3, 3.0, 0.42), (4, 4.0, 0.53), (5, 5.0, 0.73), (6, 6.0, 0.73),
    ]  # fmt: skip
    assert resumed.next == 7 and resumed.newest_loss() == 1.0


@pytest.mark.parametrize("num_reported", [4, 2], ids=["", "losses reported after the checkpoint"])
def test_an_epoch_that_a_stopped_job_notes_without_its_score_has_it_later(num_reported: int) -> None:
    log = EpochLog(TEN, every=True, scored=True)
    log.report(report(0, *((epoch, 10, 10.0 * epoch) for epoch in range(num_reported))), 1.0)
    at_checkpoint = EpochLog(TEN, every=True, scored=True)
    at_checkpoint.load(log.state())
    log.report(report(0, *((epoch, 10, 10.0 * epoch) for epoch in range(4)), finished=True), 1.0)
    log.score(10, {"val_loss": 0.1})
    log.saw(33, 1.0, 2.5)
    noted = [*log.take(2.0), *log.unscored()]
    assert [(entry["epoch"], entry["loss"], entry.get("val_loss")) for entry in noted] == [
        (0, 0.0, 0.1), (1, 1.0, None), (2, 2.0, None),
    ]  # fmt: skip
    resumed = continued(at_checkpoint, noted, {10: {"val_loss": 0.1}, 20: {"val_loss": 0.2}}, 33)
    assert resumed.next == 1  # what follows in the history is taken back
    resumed.saw(33, 10.0, 9.0)
    resumed.score(33, {"val_loss": 0.33})
    assert list(resumed.take(99.0)) == [
        {"epoch": 1, "step": 20, "seconds": 2.5, "loss": 1.0, "val_loss": 0.2},
        {"epoch": 2, "step": 30, "seconds": 2.5, "loss": 2.0, "val_loss": 0.33},
    ]


def test_a_job_that_went_on_without_scores_keeps_its_epochs_and_completes_one_that_was_cut_off() -> None:
    log = EpochLog(TEN)
    log.report(report(0, (0, 10, 10.0), (1, 10, 20.0), (2, 5, 15.0), finished=True), 1.0)
    state = EpochLog(TEN, every=True, scored=True)
    log.saw(25, 1.0, 2.5)
    noted = list(log.take(2.0))
    state.load(log.state())
    noted += log.take_rest(25, 2.5)
    assert [entry["step"] for entry in noted] == [10, 20, 25]
    resumed = continued(state, noted, {}, 25)
    assert resumed.next == 2
    resumed.report(report(1, (2, 5, 25.0), finished=True), 3.0)
    resumed.saw(30, 3.0, 3.0)
    resumed.score(30, {"val_loss": 0.3})
    assert list(resumed.take(9.0)) == [{"epoch": 2, "step": 30, "seconds": 3.0, "loss": 4.0, "val_loss": 0.3}]


@pytest.mark.parametrize(
    ("checkpoint", "scored", "granted"),
    [(0, 0, 150), (9, 0, 150), (10, 0, 250), (20, 0, 350), (30, 0, 350), (30, 10, 450), (30, 30, 450)],
)
def test_leases_are_granted_half_an_epoch_ahead_of_checkpoints_and_two_more_of_scores(
    checkpoint: int, scored: int, granted: int
) -> None:
    log = EpochLog(TEN, every=True, scored=True, num_workers=2)
    if scored:
        log.score(scored, {})
    assert not log.must_wait(granted - 1, checkpoint, 1.0)
    assert log.must_wait(granted, checkpoint, 1.0) and log.must_wait(granted, checkpoint, 30.9)
    assert not log.must_wait(granted, checkpoint, 31.1)  # no evaluator holds up training for ever
    assert not EpochLog(TEN).must_wait(granted, checkpoint, 1.0)


def test_workers_that_hold_parts_of_batches_still_reach_the_end_of_a_tiny_epoch() -> None:
    """Each of four workers holds up to nine positions, of an epoch of twenty."""
    log = EpochLog(Epochs(20, 10), every=True, num_workers=4)
    assert not log.must_wait(69, 0, 1.0) and log.must_wait(70, 0, 1.0)
    assert (69 - 4 * 9) // 10 >= log.epochs.end(0)


def test_a_coordinator_grants_no_lease_until_the_epoch_has_its_checkpoint() -> None:
    log = EpochLog(TEN, every=True)
    job = Coordinator(1000, 1000, LeaseTable(100, 50), epochs=log)
    leases = [job.lease(0, 1, number, 1.0) for number in range(4)]
    assert leases == [Lease(0, 0, 50), Lease(0, 50, 100), Lease(1, 0, 50), None]
    job.saw(10)
    assert job.checkpoint_due()
    job.checkpointed(10)
    assert not job.checkpoint_due() and job.lease(0, 1, 3, 1.0) == Lease(1, 50, 100)
    assert job.lease(0, 1, 4, 1.0) == Lease(2, 0, 50) and job.lease(0, 1, 5, 1.0) is None
    job.leases.release(0, 1)
    assert job.lease(1, 2, 0, 1.0) == Lease(0, 0, 50)  # what was given back never waits
    job.saw(1000)
    assert job.lease(1, 2, 1, math.inf) is not None  # nor does anybody when training is over


def test_leases_are_parts_of_an_epoch_that_is_shorter_than_the_data() -> None:
    log = EpochLog(TEN, every=True)
    job = Coordinator(1000, 1000, LeaseTable(100_000, 10), epochs=log)
    job.lease(0, 1, 0, 1.0)
    sizes = [lease.num_records for number in range(1, 4) if (lease := job.lease(0, 1, number, 1.0)) is not None]
    assert sizes == [40, 50, 50], "never above half an epoch"
