"""When a worker counts as one that computes faster than it reads."""

from __future__ import annotations

import logging as standard_logging
from collections.abc import Iterator
from typing import Any

import pytest

from downpour.model.data.order import Lease
from downpour.model.vision.records import RecordCounts
from downpour.proto.chief_pb2 import RegisterReply, RegisterRequest, WorkerReport
from downpour.worker import reporter as reporters
from downpour.worker.chief.reports import Reports
from downpour.worker.chief.summary import input_bound
from downpour.worker.input_share import LIMIT, NUM_STEPS, InputShare, Spent
from downpour.worker.reporter import Reporter


def steps(input_s: float, others_s: float, *, lease_s: float = 0.0, first_s: float = 0.0) -> Iterator[Spent]:
    """Totals after each of many steps of 8 examples; `first_s` is waited before the first batch."""
    for n in range(1, 4 * NUM_STEPS):
        yield Spent(n, 8 * n, first_s + n * input_s, n * lease_s, n * others_s)


def outcome(totals: Iterator[Spent]) -> tuple[float, list[str]]:
    """The largest share, and the warnings."""
    watch = InputShare()
    warnings = [warning for one in totals if (warning := watch.add(one))]
    return watch.largest, warnings


def test_a_worker_that_waits_for_its_data_says_once_what_it_reads_and_could_compute() -> None:
    share, warnings = outcome(steps(input_s=0.3, others_s=0.1))
    assert share == pytest.approx(0.75)
    (warning,) = warnings
    assert "waits for its data for 75% of a step (mean of 100 steps): it reads 20 examples/s" in warning
    assert "could compute 80; give the data more num_threads" in warning


def test_nothing_is_said_below_the_limit_or_of_the_first_batch_or_of_leases() -> None:
    below, above = LIMIT - 0.01, LIMIT + 0.01
    assert outcome(steps(below, 1 - below)) == (pytest.approx(below), [])
    assert len(outcome(steps(above, 1 - above))[1]) == 1
    assert outcome(steps(0.0, 0.1, first_s=1000.0)) == (0.0, [])
    assert outcome(steps(0.5, 0.1, lease_s=0.5)) == (pytest.approx(0.0), [])
    assert outcome(list(steps(0.5, 0.1))[:NUM_STEPS].__iter__()) == (0.0, [])


class Chief:
    """Registers a worker and grants leases."""

    def register(self, request: RegisterRequest) -> RegisterReply:
        return RegisterReply(incarnation=1)

    def report(self, report: WorkerReport) -> bool:
        self.last = report
        return True

    def lease(self, *_: Any) -> Lease:
        return Lease(0, 0, 10)


def test_a_worker_logs_it_and_reports_it(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(reporters, "_EVERY_S", 1000.0)
    chief: Any = Chief()
    reporter = Reporter(chief, 0, b"")
    assert next(reporter.leases()) == Lease(0, 0, 10)
    with caplog.at_level(standard_logging.WARNING):
        for n in range(1, 2 * NUM_STEPS + 2):
            reporter.computed(loss=1.0, num_examples=8, seconds=0.1, version=n)
            reporter.read(RecordCounts(), 0.1)
    reporter.finish()
    (warning,) = [record.getMessage() for record in caplog.records if "waits for its data" in record.getMessage()]
    assert "for 50% of a step" in warning
    assert chief.last.input_share == pytest.approx(0.5, abs=0.01)


def test_the_summary_names_the_workers_that_wait() -> None:
    reports = Reports()
    for worker, incarnation, share in ((3, 1, 0.1), (1, 2, 0.5), (1, 7, 0.25), (0, 3, 0.21)):
        reports.add(WorkerReport(worker=worker, incarnation=incarnation, input_share=share))
    assert input_bound(reports) == {"0": 0.21, "1": 0.5}
