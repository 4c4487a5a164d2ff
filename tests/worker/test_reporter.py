"""What a worker tells the chief at its end, after a chief that did not answer."""

from __future__ import annotations

from typing import Any

import pytest

from downpour.proto.chief_pb2 import RegisterReply, RegisterRequest, WorkerReport
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

    def report(self, report: WorkerReport) -> bool:
        error, self._error = self._error, None
        if error:
            raise error
        self.reports.append(report)
        return True


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
