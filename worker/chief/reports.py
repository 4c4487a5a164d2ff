"""The workers' reports: totals over all workers, and rates over the last seconds. Pure: no clock, no I/O.

Guarded by the chief's lock, like the coordinator that holds it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format

from downpour.proto import chief_pb2 as pb
from downpour.worker.chief.windows import WINDOW_S, Growth, Windows

PARTS = ("input", "pull", "compute", "push", "wait")  # of a step; see `summary.seconds_per_step`


@dataclass(frozen=True)
class Mark:
    """Totals over all workers at one moment."""

    at_s: float = 0.0
    steps: int = 0
    examples: int = 0
    pushes: int = 0
    loss_sum: float = 0.0
    staleness_sum: float = 0.0


class Reports:
    """The newest report of every incarnation of every worker; those of lost workers still count.

    Attributes:
        norms: The norms of the newest step that any worker has reported them of; None before, and after a restart.
    """

    def __init__(self) -> None:
        self.norms: pb.Norms | None = None
        self._newest: dict[tuple[int, int], pb.WorkerReport] = {}
        self._marks = deque[Mark]()
        self._windows = Windows()

    def add(self, report: pb.WorkerReport) -> None:
        """Replaces the last report of the same incarnation."""
        newest = self._newest.setdefault((report.worker, report.incarnation), pb.WorkerReport())
        newest.CopyFrom(report)
        newest.ClearField("epochs")  # only those that have changed; see `EpochLog`
        newest.ClearField("norms")
        if report.HasField("norms") and (self.norms is None or report.norms.version > self.norms.version):
            self.norms = pb.Norms()
            self.norms.CopyFrom(report.norms)

    def records_done(self, worker: int, incarnation: int) -> int:
        """Positions done, as an incarnation has last reported; 0 before its first report."""
        report = self._newest.get((worker, incarnation))
        return report.records_done if report else 0

    def of(self, worker: int, incarnation: int) -> pb.WorkerReport:
        """The newest report of an incarnation; an empty one before its first."""
        return self._newest.get((worker, incarnation), pb.WorkerReport())

    def by_worker(self) -> dict[int, pb.WorkerReport]:
        """Totals of every worker's steps and periods, over its incarnations."""
        found: dict[int, pb.WorkerReport] = {}
        for (worker, _), report in sorted(self._newest.items()):
            totals = found.setdefault(worker, pb.WorkerReport(worker=worker))
            totals.steps += report.steps
            totals.periods += report.periods
            totals.period_seconds += report.period_seconds
            totals.period_square_seconds += report.period_square_seconds
        return found

    def state(self) -> list[dict[str, Any]]:
        """Returns all reports, as JSON values."""
        return [json_format.MessageToDict(report) for report in self._newest.values()]

    def total(self, value: Callable[[pb.WorkerReport], float]) -> float:
        """Sum of a field over all incarnations of all workers."""
        return sum(value(report) for report in self._newest.values())

    def mean(self, value: Callable[[pb.WorkerReport], float]) -> float:
        """Sum of a field over all workers, divided by their steps."""
        return self.total(value) / max(self.total(lambda r: r.steps), 1)

    def input_shares(self) -> dict[int, float]:
        """Largest share of its steps that each worker waited for data, over its incarnations; see `InputShare`."""
        shares: dict[int, float] = {}
        for (worker, _), report in self._newest.items():
            shares[worker] = max(shares.get(worker, 0.0), report.input_share)
        return shares

    def skipped_examples(self) -> list[str]:
        """Up to five records that workers skipped, sorted, each once."""
        return sorted({example for report in self._newest.values() for example in report.skipped_examples})[:5]

    def recent(self, worker: int, now_s: float) -> Growth:
        """Growth of a worker's totals over the last seconds: `steps`, `examples`, `staleness`, and seconds by part."""
        return self._windows.growth(worker, now_s)

    def mark(self, now_s: float, report: pb.WorkerReport) -> None:
        """Records the totals of this moment, for rates: those of the worker that has reported, and of all.

        A worker's first step is in none of its rates: it compiles where a rehearsal could not.
        """
        totals = {f"{part}_seconds": getattr(report, f"{part}_seconds") for part in PARTS}
        totals |= {"steps": report.steps, "examples": report.examples, "staleness": report.staleness_sum}
        if report.steps:
            self._windows.add(report.worker, report.incarnation, now_s, totals)
        self._marks.append(
            Mark(
                now_s,
                int(self.total(lambda r: r.steps)),
                int(self.total(lambda r: r.examples)),
                int(self.total(lambda r: r.pushes_acknowledged)),
                self.total(lambda r: r.loss_sum),
                self.total(lambda r: r.staleness_sum),
            )
        )
        while len(self._marks) > 2 and now_s - self._marks[1].at_s > WINDOW_S:
            self._marks.popleft()

    def window(self) -> tuple[Mark, Mark]:
        """The oldest and the newest mark of the last seconds."""
        return (self._marks[0], self._marks[-1]) if self._marks else (Mark(), Mark())

    def recent_loss(self) -> float:
        """Mean loss over the steps of the last seconds, over all if these had none; NaN before the first."""
        first, last = self.window()
        if last.steps > first.steps:
            return (last.loss_sum - first.loss_sum) / (last.steps - first.steps)
        return last.loss_sum / last.steps if last.steps else math.nan
