"""What a worker tells the chief at its end, after a chief that did not answer."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from downpour.model.data.epochs import Epochs
from downpour.model.data.order import Lease
from downpour.proto.chief_pb2 import RegisterReply, RegisterRequest, ReportReply, WorkerReport
from downpour.proto.errors import DownpourError, Unreachable, WorkerSuperseded
from downpour.worker import reporter as reporters
from downpour.worker.reporter import Reporter


class FakeChief:
    """Fails the first report with an error."""

    def __init__(self, error: DownpourError) -> None:
        self._error: DownpourError | None = error
        self.reports = list[WorkerReport]()

    def register(self, request: RegisterRequest) -> RegisterReply:
        return RegisterReply(incarnation=1)

    def report(self, report: WorkerReport) -> ReportReply:
        error, self._error = self._error, None
        if error:
            raise error
        self.reports.append(report)
        return ReportReply(stop=True)


def test_losses_are_reported_by_epoch_until_they_are_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporters, "_EVERY_S", 1000.0)
    chief: Any = FakeChief(Unreachable("unused"))
    reporter = Reporter(chief, 0, b"", epochs=Epochs(100, 10))
    for version, loss in ((8, 1.0), (9, 2.0), (10, 4.0)):
        reporter.computed(loss=loss, num_examples=10, seconds=0.1, version=version)
    first = reporter.totals()
    assert [(sums.epoch, sums.steps, sums.loss_sum) for sums in first.epochs] == [(0, 2, 3.0), (1, 1, 4.0)]
    reporter.computed(loss=5.0, num_examples=10, seconds=0.1, version=11)  # while the report is on its way
    assert [sums.epoch for sums in reporter.totals().epochs] == [0, 1]  # it may have been lost
    reporter._sent(first)
    assert [(sums.epoch, sums.steps, sums.loss_sum) for sums in reporter.totals().epochs] == [(1, 2, 9.0)]


def test_a_worker_whose_lease_does_not_come_reports_at_once_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease may wait for the end of an epoch, of which the chief has not heard yet."""
    monkeypatch.setattr(reporters, "_EVERY_S", 1000.0)
    monkeypatch.setattr(reporters, "_LOOK_EVERY_S", 0.01)
    granted, reported = threading.Event(), threading.Event()

    class Waiting(FakeChief):
        def lease(self, worker: int, incarnation: int, number: int) -> Lease:
            assert granted.wait(20)
            return Lease(0, 0, 10)

        def report(self, report: WorkerReport) -> ReportReply:
            self.reports.append(report)
            reported.set()
            return ReportReply()

    chief: Any = Waiting(Unreachable("unused"))
    reporter = Reporter(chief, 0, b"")
    loading = threading.Thread(target=next, args=(reporter.leases(),))
    loading.start()
    assert reported.wait(20)
    granted.set()
    loading.join()
    reporter.finish()
    assert [report.finished for report in chief.reports] == [False, True]


def reporting(error: DownpourError, monkeypatch: pytest.MonkeyPatch) -> tuple[FakeChief, Reporter]:
    """A reporter whose first report has failed."""
    monkeypatch.setattr(reporters, "_EVERY_S", 0.01)
    chief: Any = FakeChief(error)
    reporter = Reporter(chief, 0, b"")
    assert reporter.stop.wait(10)
    return chief, reporter


def test_a_failure_is_reported_although_the_chief_did_not_answer_before(monkeypatch: pytest.MonkeyPatch) -> None:
    chief, reporter = reporting(Unreachable("no answer"), monkeypatch)
    reporter.finish("the loss is not finite")
    assert [(report.failure, report.finished) for report in chief.reports] == [("the loss is not finite", True)]


@pytest.mark.parametrize(
    ("error", "failure"), [(Unreachable("no answer"), ""), (WorkerSuperseded("another one"), "the loss is not finite")]
)
def test_otherwise_the_error_is_raised(monkeypatch: pytest.MonkeyPatch, error: DownpourError, failure: str) -> None:
    chief, reporter = reporting(error, monkeypatch)
    with pytest.raises(type(error)):
        reporter.finish(failure)
    assert not chief.reports
