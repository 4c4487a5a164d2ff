"""The chief's decisions, event by event, with the time as a number."""

from __future__ import annotations

import json
import math

import pytest

from downpour.model.data.order import Lease
from downpour.proto.chief_pb2 import WorkerReport
from downpour.proto.errors import WorkerSuperseded
from downpour.worker.chief.coordinator import Coordinator
from downpour.worker.chief.leases import LeaseTable
from downpour.worker.chief.membership import Membership
from downpour.worker.chief.training_time import TrainingTime


def coordinator(max_train_s: float = math.inf) -> Coordinator:
    return Coordinator(
        num_steps=100, checkpoint_every_steps=30, leases=LeaseTable(100, 20), time=TrainingTime(max_train_s)
    )


def report(worker: int = 0, incarnation: int = 1, steps: int = 0, version: int = 0, **more: object) -> WorkerReport:
    return WorkerReport(
        worker=worker, incarnation=incarnation, steps=steps, version=version, pushes_acknowledged=steps,
        examples=8 * steps, loss_sum=2.0 * steps, staleness_sum=3.0 * steps, **more,  # type: ignore[arg-type]
    )  # fmt: skip


def test_the_job_ends_at_its_steps() -> None:
    c = coordinator()
    assert not c.report(report(steps=99, version=99), 1.0)
    assert c.report(report(steps=100, version=100), 2.0)


def test_the_job_ends_when_its_time_is_up() -> None:
    c = coordinator(max_train_s=10)
    assert not c.should_stop(1000.0), "time counts from the first step"
    assert not c.report(report(steps=1, version=1), 1000.0)
    assert not c.report(report(steps=2, version=2), 1009.0)
    assert c.report(report(steps=3, version=3), 1011.0)
    assert c.time.train_s(2000.0) == 11.0


def test_why_it_ended_is_known() -> None:
    by_time, by_steps, by_failure = coordinator(max_train_s=10), coordinator(), coordinator()
    by_time.report(report(steps=1, version=1), 0.0)
    by_time.report(report(steps=2, version=2), 11.0)
    by_steps.report(report(steps=100, version=100), 1.0)
    by_failure.report(report(failure="loss nan"), 1.0)
    assert [c.ended_by() for c in (by_time, by_steps, by_failure)] == ["max_train_s", "steps", "failure"]


def test_a_callback_ends_training_once_and_not_after_its_end() -> None:
    c = coordinator()
    c.report(report(steps=50, version=50), 1.0)
    c.stop("early stopping", "no better")
    c.stop("callback", "later")
    assert c.should_stop(2.0) and (c.ended_by(), c.stopped) == ("early stopping", ("early stopping", "no better"))
    restarted, resumed, over = coordinator(), coordinator(), coordinator()
    restarted.load(json.loads(json.dumps(c.state(3.0, with_workers=True))), 3.0)
    assert restarted.should_stop(4.0) and restarted.stopped == c.stopped
    c.failure = "worker 0: loss nan"
    assert c.ended_by() == "failure"
    resumed.load(c.state(3.0, with_workers=False), 3.0)
    assert not resumed.should_stop(4.0) and not resumed.failure, "what ended a run does not end the resumed one"
    over.report(report(steps=100, version=100), 1.0)
    over.stop("early stopping", "no better")
    assert over.ended_by() == "steps"


def test_a_resumed_job_has_its_time_anew_and_a_restarted_chief_has_not() -> None:
    c = coordinator(max_train_s=10)
    c.report(report(steps=1, version=1), 0.0)
    assert c.report(report(steps=2, version=2), 11.0)
    resumed = coordinator(max_train_s=10)
    resumed.load(c.state(11.0, with_workers=False), 100.0)
    assert not resumed.report(report(incarnation=2, steps=1, version=3), 100.0)
    assert not resumed.report(report(incarnation=2, steps=5, version=7), 109.0)
    assert resumed.progress(109.0).seconds_left == pytest.approx(1, abs=0.1)

    restarted = coordinator(max_train_s=10)
    restarted.load(resumed.state(109.0, with_workers=True), 200.0)
    assert not restarted.should_stop(200.5)
    assert restarted.should_stop(201.5)
    assert restarted.time.train_s(201.5) == pytest.approx(21.5)


def test_a_failure_ends_the_job_and_names_the_worker() -> None:
    c = coordinator()
    assert c.report(report(worker=3, failure="loss nan at step 7"), 1.0)
    assert c.failure == "worker 3: loss nan at step 7"


def test_the_newest_incarnation_wins_and_both_count() -> None:
    c = coordinator()
    c.register(0, 1, "host a", 0.0)
    c.report(report(incarnation=1, steps=10, version=10), 1.0)
    c.register(0, 2, "host b", 2.0)
    c.report(report(incarnation=2, steps=5, version=15), 3.0)
    with pytest.raises(WorkerSuperseded, match="worker 0 was taken over by host b: two workers run with --index=0"):
        c.report(report(incarnation=1, steps=11, version=16), 4.0)
    assert c.reports.total(lambda r: r.steps) == 15


def test_a_report_that_comes_twice_changes_nothing() -> None:
    c = coordinator()
    for _ in range(2):
        c.report(report(steps=10, version=10), 1.0)
    assert c.reports.total(lambda r: r.examples) == 80


def test_workers_have_ended_when_finished_or_lost() -> None:
    c = coordinator()
    c.report(report(worker=0), 0.0)
    c.report(report(worker=1), 0.0)
    assert not c.members.all_gone(1.0)
    c.report(report(worker=0, finished=True), 1.0)
    assert not c.members.all_gone(c.members.lease_s)
    assert c.members.all_gone(c.members.lease_s + 0.1)


def test_checkpoints_are_due_once_a_multiple_has_passed() -> None:
    c = coordinator()
    c.report(report(steps=29, version=29), 0.0)
    assert not c.checkpoint_due()
    c.report(report(steps=65, version=65), 1.0)
    assert c.checkpoint_due()
    c.checkpointed(c.step)
    assert not c.checkpoint_due()


def test_progress_gives_rates_over_the_last_seconds() -> None:
    c = coordinator()
    for second in range(11):
        c.report(report(steps=second * 4, version=second * 4), float(second))
    progress = c.progress(10.0)
    assert progress.examples_per_second == pytest.approx(32)
    assert progress.pushes_per_second == pytest.approx(4)
    assert progress.staleness_mean == pytest.approx(3)
    assert progress.loss == pytest.approx(2)
    assert progress.seconds_left == pytest.approx(60 / 4)


def test_the_first_step_of_a_worker_which_compiles_is_in_none_of_its_rates() -> None:
    c = coordinator()
    c.report(report(), 0.0)
    for steps, compute_s in ((0, 0.0), (1, 20.0), (5, 20.4), (11, 21.0)):
        c.report(report(steps=steps, compute_seconds=compute_s), 1.0 + compute_s)
    recent = c.reports.recent(0, 22.0)
    assert recent.mean("compute_seconds", "steps") == pytest.approx(0.1)


def test_progress_before_anything_happened() -> None:
    progress = coordinator().progress(5.0)
    assert math.isnan(progress.loss) and progress.seconds_left == -1.0


def test_nobody_must_wait_for_workers_that_ended_were_lost_or_never_came() -> None:
    c = Coordinator(
        num_steps=100, checkpoint_every_steps=30, leases=LeaseTable(100, 20), members=Membership(3, 10, opened_s=0)
    )
    c.report(WorkerReport(worker=0, incarnation=5, finished=True), 1)
    c.report(WorkerReport(worker=1, incarnation=6), 1)
    assert c.members.absent(9) == [(0, 5)]
    assert c.members.absent(10.5) == [(0, 5), (2, 0)]
    assert c.members.absent(11.5) == [(0, 5), (1, 6), (2, 0)]


def test_leases_of_workers_that_end_are_lost_or_superseded_are_given_to_others() -> None:
    c = coordinator()
    assert [c.lease(worker, 1, 0, 0.0) for worker in range(3)] == [Lease(0, 0, 20), Lease(0, 20, 40), Lease(0, 40, 60)]
    c.report(report(worker=0, records_done=8, finished=True), 1.0)
    c.register(1, 2, "host b", 1.0)
    c.report(report(worker=2, records_done=16), 2.0)
    assert c.lease(3, 1, 0, 20.0) == Lease(0, 8, 20), "worker 0 has finished"
    assert c.lease(3, 1, 1, 20.0) == Lease(0, 20, 40), "worker 1 was superseded"
    assert c.lease(3, 1, 2, 20.0) == Lease(0, 60, 80)
    c.report(report(worker=3), 32.0)
    assert c.lease(3, 1, 3, 32.1) == Lease(0, 56, 60), "worker 2 was silent for a lease"
    assert c.leases.records_repeated == 12 + 20 + 4
    assert c.leases.epochs == pytest.approx(0.24)


def test_asking_for_a_lease_is_a_sign_of_life() -> None:
    c = coordinator()
    c.lease(0, 1, 0, 0.0)
    c.lease(0, 1, 1, 25.0)
    assert c.lease(1, 1, 0, 50.0) == Lease(0, 40, 60)


def test_an_older_incarnation_gets_no_lease() -> None:
    c = coordinator()
    c.register(0, 2, "host b", 0.0)
    with pytest.raises(WorkerSuperseded, match="worker 0 was taken over by host b"):
        c.lease(0, 1, 0, 1.0)


def test_a_job_that_is_resumed_may_have_another_number_of_shards() -> None:
    c = coordinator()
    c.report(report(steps=2, version=2, versions=[2, 1]), 1.0)
    resumed, restarted = coordinator(), coordinator()
    resumed.load(c.state(2.0, with_workers=False), 3.0)
    assert not resumed.report(report(incarnation=2, versions=[3, 2, 3]), 4.0)
    assert resumed.versions == [3, 2, 3]
    restarted.load(c.state(2.0, with_workers=True), 3.0)
    assert restarted.versions == [2, 1]


def test_a_job_that_has_ended_early_grants_no_lease_until_the_worker_is_told() -> None:
    c = coordinator()
    assert c.lease(0, 1, 0, 1.0) is not None
    c.stop("early stopping", "no better")
    assert c.lease(0, 1, 1, 1.1) is None and c.should_stop(1.2) and c.lease(0, 1, 1, 1.3) is None
    assert c.report(report(0, 1), 1.4) and c.lease(0, 1, 1, 1.5) is not None
    assert c.lease(1, 1, 0, 1.6) is None
    assert c.lease(1, 1, 0, 4.3) is not None, "a worker that cannot report is not held for ever"
