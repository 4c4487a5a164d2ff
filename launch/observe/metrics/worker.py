"""Metrics of a worker, from its totals, and of the evaluator."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from downpour.proto.chief_pb2 import WorkerReport

if TYPE_CHECKING:
    from downpour.launch.observe.metrics.scrape import Scrape

# Metric, field of the report, description.
_COUNTERS = (
    ("downpour_worker_steps_total", "steps", "Steps computed."),
    ("downpour_worker_examples_total", "examples", "Examples trained on."),
    ("downpour_worker_pushes_total", "pushes_acknowledged", "Pushes that every shard has acknowledged."),
    ("downpour_worker_pushes_dropped_total", "pushes_dropped", "Of these: a shard has left out some or all of it."),
    ("downpour_worker_steps_skipped_total", "steps_skipped", "Steps left out because they overflowed."),
    ("downpour_worker_pulled_bytes_total", "bytes_pulled", "Bytes pulled."),
    ("downpour_worker_pushed_bytes_total", "bytes_pushed", "Bytes pushed."),
    ("downpour_worker_records_read_total", "records_read", "Records read."),
    ("downpour_worker_records_skipped_total", "records_skipped", "Records skipped because they cannot be read."),
)
_PARTS = ("input", "pull", "compute", "push", "wait")


class WorkerMetrics:
    """Metrics of a worker.

    Attributes:
        totals: Returns its totals; None until it has registered with the chief.
    """

    def __init__(self, index: int) -> None:
        self._worker = str(index)
        self.totals: Callable[[], WorkerReport] | None = None

    def __call__(self, scrape: Scrape) -> None:
        """Adds the metrics."""
        found, worker = self.totals() if self.totals else WorkerReport(), self._worker
        scrape.gauge("downpour_worker_registered", "Whether the chief has let it in.", bool(self.totals), worker=worker)
        for name, field, text in _COUNTERS:
            scrape.counter(name, text, getattr(found, field), worker=worker)
        scrape.gauge("downpour_worker_version", "Highest version that it has seen.", found.version, worker=worker)
        text = (
            "Seconds of its steps, by part: waiting for input, pulls, computing, pushes, waiting for an exchange; "
            "where exchanges overlap computing, pulls and pushes count, too, and only wait delays a step."
        )
        for part in _PARTS:
            seconds = getattr(found, f"{part}_seconds")
            scrape.counter("downpour_worker_part_seconds_total", text, seconds, worker=worker, part=part)


class EvaluatorMetrics:
    """Metrics of the evaluator, which counts what it has scored here.

    Attributes:
        num_scored: Checkpoints scored so far.
    """

    def __init__(self) -> None:
        self.num_scored, self._seconds, self._step, self._read, self._skipped = 0, 0.0, -1, 0, 0

    def scored(self, step: int, seconds: float, records_read: int, records_skipped: int) -> None:
        """Counts a scored checkpoint."""
        self.num_scored, self._seconds, self._step = self.num_scored + 1, self._seconds + seconds, step
        self._read, self._skipped = self._read + records_read, self._skipped + records_skipped

    def __call__(self, scrape: Scrape) -> None:
        """Adds the metrics."""
        scrape.counter("downpour_evaluator_checkpoints_total", "Checkpoints scored.", self.num_scored)
        scrape.counter("downpour_evaluator_score_seconds_total", "Seconds that this took.", self._seconds)
        scrape.counter("downpour_evaluator_records_read_total", "Held-out records read.", self._read)
        text = "Held-out records skipped because they cannot be read."
        scrape.counter("downpour_evaluator_records_skipped_total", text, self._skipped)
        if self._step >= 0:
            scrape.gauge("downpour_evaluator_step", "Step of the checkpoint scored last.", self._step)
