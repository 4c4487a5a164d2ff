"""A worker's totals and the thread that reports them to the chief once a second, and when a lease does not come.

Threads: the training loop calls the counting methods; the reporter's own thread sends. One lock guards the totals.
"""

from __future__ import annotations

import itertools
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping

from absl import logging

from downpour.model.data.epochs import Epochs
from downpour.model.data.order import Lease
from downpour.model.vision.records import RecordCounts
from downpour.proto.chief_pb2 import EpochSums, Norms, RegisterRequest, ReportReply, WorkerReport
from downpour.proto.errors import DownpourError, Unreachable
from downpour.proto.spans import MOST_IN_MESSAGE
from downpour.worker.exchange.clients import ChiefClient
from downpour.worker.exchange.exchange import Answer
from downpour.worker.exchange.overlap import Course
from downpour.worker.input_share import InputShare, Spent
from downpour.worker.tracing import Tracer

_EVERY_S = 1.0
_LOOK_EVERY_S = 0.1
_FIRST_REPORTS = 8  # one after another, of a worker that traces steps
_LATE_S = 0.001  # that the loop waits for an exchange in flight, from which it counts as late


class Reporter:
    """Registers a worker with the chief and reports its totals until `finish` or `leave`.

    Args:
        chief: Client of the chief.
        worker: Index of the worker.
        fingerprint: Fingerprint of the worker's layout.
        job: Fields of the worker's job and their values, compared with the chief's.
        epochs: Which steps make an epoch; None: losses are not reported by epoch.

    Attributes:
        incarnation: Incarnation of this process, assigned by the chief.
        job_id: Id of the job whose parameters the shards must hold.
        stop: Set when the chief ends training or refuses this worker.
        overlap: Whether exchanges should run while a batch is computed, as the chief has answered last.
        tracer: Takes the spans of as many steps as the chief wants traced; sent with the reports.

    Raises:
        LayoutMismatch: The chief runs another job.
        TooManyWorkers: The job admits no worker of this index.
    """

    def __init__(
        self,
        chief: ChiefClient,
        worker: int,
        fingerprint: bytes,
        job: Mapping[str, str] | None = None,
        epochs: Epochs | None = None,
    ) -> None:
        self.stop = threading.Event()
        self.overlap = False
        self._chief = chief
        self._worker = worker
        self._losses = _EpochLosses(epochs)
        self._norms: Norms | None = None  # of a step; None once they have been reported
        self._computed_s: float | None = None  # when the last step was computed
        self._lease_since_s: float | None = None  # when a lease was requested that has not come; None: reported since
        self._lease_s = 0.0  # waited for leases
        self._input = InputShare()
        self._lock = threading.Lock()
        self._refusal: DownpourError | None = None
        self._ending = threading.Event()
        host, process = f"{socket.gethostname()} process {os.getpid()}", secrets.token_hex(8)
        hello = RegisterRequest(worker=worker, fingerprint=fingerprint, host=host, process=process, job=job or {})
        reply = chief.register(hello)
        self.incarnation, self.job_id = reply.incarnation, reply.job_id
        self.tracer = Tracer(worker, reply.trace_steps)
        self._totals = WorkerReport(worker=worker, incarnation=self.incarnation)
        if reply.stop:
            self.stop.set()
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self._thread.start()

    def computed(self, *, loss: float, num_examples: int, seconds: float, version: int) -> None:
        """Counts a computed step."""
        with self._lock:
            totals = self._totals
            totals.steps += 1
            totals.examples += num_examples
            totals.loss_sum += loss
            totals.compute_seconds += seconds
            self._computed_s = _count_period(totals, self._computed_s, time.monotonic())
            totals.version = max(totals.version, version)
            self._losses.add(version, loss)

    def normed(self, norms: Norms) -> None:
        """Has the next report hold the norms of a step."""
        with self._lock:
            self._norms = norms

    def skipped(self) -> None:
        """Counts a step that was skipped because it overflowed under loss scaling."""
        with self._lock:
            self._totals.steps_skipped += 1

    def exchanged(self, answer: Answer, records_done: int, course: Course) -> None:
        """Counts an answered exchange.

        Args:
            answer: Result of the exchange.
            records_done: Positions of this worker's leases up to the end of what it pushed, if it pushed.
            course: What it meant for the loop.
        """
        with self._lock:
            _count_exchange(self._totals, answer, records_done, course)

    def read(self, counts: RecordCounts, input_s: float) -> None:
        """Sets the numbers of records read and skipped so far; counts the seconds that the loop waited for a batch.

        Warns once if these are much of a step; see `InputShare`.
        """
        with self._lock:
            totals = self._totals
            totals.input_seconds += input_s
            totals.records_read = counts.read
            totals.records_skipped = counts.skipped
            totals.skipped_examples[:] = counts.examples
            others_s = totals.compute_seconds + totals.wait_seconds
            spent = Spent(totals.steps, totals.examples, totals.input_seconds, self._lease_s, others_s)
            warning = self._input.add(spent)
            totals.input_share = self._input.largest
        if warning:
            logging.warning("%s", warning)

    def leases(self) -> Iterator[Lease]:
        """Yields leases without end, each requested from the chief when it is needed.

        Raises (while iterating):
            WorkerSuperseded: See `ChiefClient.lease`.
            Unreachable: The chief does not answer.
        """
        for number in itertools.count():
            begin_s = self._lease_since_s = time.monotonic()
            lease = self._chief.lease(self._worker, self.incarnation, number)
            while isinstance(lease, float):  # this worker is not let in yet
                time.sleep(lease)
                lease = self._chief.lease(self._worker, self.incarnation, number)
            self._lease_since_s = None
            with self._lock:
                self._lease_s += time.monotonic() - begin_s
            yield lease

    def finish(self, failure: str = "") -> None:
        """Sends the last report. With a failure, the chief ends the job.

        Raises:
            DownpourError: The chief refused this worker, or did not answer, before; a failure is sent even if the
                chief did not answer before.
        """
        self._ending.set()
        self._thread.join()
        self.tracer.end()
        if self._refusal and not (failure and isinstance(self._refusal, Unreachable)):
            raise self._refusal
        while self.tracer.num_waiting > MOST_IN_MESSAGE:
            self._send()
        with self._lock:
            self._totals.finished = True
            self._totals.failure = failure
        self._send()

    def leave(self, within_s: float) -> bool:
        """Sends the last report of a worker that stops early, once; returns whether it arrived.

        The chief then grants its unfinished positions to other workers.
        """
        self._ending.set()
        self._thread.join(within_s)
        with self._lock:
            self._totals.finished = True
        report = self.totals()
        self.tracer.write(report)
        return self._chief.report_once(report, within_s)

    def totals(self) -> WorkerReport:
        """The totals now, as they are reported."""
        with self._lock:
            report = WorkerReport(epochs=self._losses.unsent(), norms=self._norms)
            report.MergeFrom(self._totals)
            return report

    def _send(self) -> ReportReply:
        """Sends a report, and notes what the chief has received."""
        report, asked_s = self.totals(), time.monotonic()
        self.tracer.write(report)
        reply = self._chief.report(report)
        self.tracer.answered(report, reply, asked_s)
        self._sent(report)
        return reply

    def _sent(self, report: WorkerReport) -> None:
        with self._lock:
            self._losses.sent(report.epochs)
            if self._norms is not None and self._norms.version == report.norms.version:
                self._norms = None

    def _run(self) -> None:
        sent_s = time.monotonic()
        num_first = _FIRST_REPORTS if self.tracer.active else 0  # to compare clocks
        while num_first or not self._ending.wait(min(_LOOK_EVERY_S, _EVERY_S)):
            now, since_s = time.monotonic(), self._lease_since_s
            # A lease that does not come may wait for the end of an epoch, which this report may complete.
            hurry = since_s is not None and now > since_s + _LOOK_EVERY_S
            more = num_first or self.tracer.num_waiting > MOST_IN_MESSAGE
            if now < sent_s + _EVERY_S and not hurry and not more:
                continue
            if hurry:
                self._lease_since_s = None
            sent_s, num_first = now, max(0, num_first - 1)
            try:
                reply = self._send()
                self.overlap = reply.overlap
                if reply.stop:
                    self.stop.set()
            except DownpourError as error:
                self._refusal = error  # raised by `finish`
                self.stop.set()
                return


class _EpochLosses:
    """Sums of losses by the epoch in which a step began; without epochs, none. The caller's lock guards them."""

    def __init__(self, epochs: Epochs | None) -> None:
        self._epochs = epochs
        self._sums: dict[int, EpochSums] = {}
        self._unsent: set[int] = set()  # epochs whose sums have changed since the last acknowledged report

    def add(self, version: int, loss: float) -> None:
        """Adds the loss of a step."""
        if self._epochs is not None:
            epoch = self._epochs.of(version)
            sums = self._sums.setdefault(epoch, EpochSums(epoch=epoch))
            sums.steps += 1
            sums.loss_sum += loss
            self._unsent.add(epoch)

    def unsent(self) -> list[EpochSums]:
        """The sums that have changed since they were sent."""
        return [self._sums[epoch] for epoch in sorted(self._unsent)]

    def sent(self, acknowledged: Iterable[EpochSums]) -> None:
        """Notes sums that were acknowledged; those that have changed meanwhile are to be sent again."""
        self._unsent -= {sums.epoch for sums in acknowledged if sums.steps == self._sums[sums.epoch].steps}


def _count_exchange(totals: WorkerReport, answer: Answer, records_done: int, course: Course) -> None:
    """See `Reporter.exchanged`."""
    totals.wait_seconds += course.waited_s
    totals.exchanges_ahead += course.ahead
    totals.pulls_late += course.ahead and course.waited_s > _LATE_S
    totals.staleness_own_sum += course.own
    totals.staleness_early_sum += course.early
    seen = totals.versions or [0] * len(answer.versions)
    totals.versions[:] = [max(pair) for pair in zip(seen, answer.versions, strict=True)]
    totals.version = max(totals.version, *answer.versions)
    if answer.parameters is not None:
        totals.pull_seconds += answer.pull_s
        totals.bytes_pulled += answer.bytes_pulled
    if answer.acknowledged:
        totals.pushes_acknowledged += 1
        totals.records_done = records_done
        totals.pushes_dropped += answer.dropped
        totals.staleness_sum += answer.staleness
        totals.push_seconds += answer.push_s
        totals.bytes_pushed += answer.bytes_pushed
        # Every push of an incarnation is acknowledged before the next begins, so their count identifies it.
        name = totals.pushes_acknowledged
        logging.debug("push %d/%d/%d acknowledged", totals.worker, totals.incarnation, name)


def _count_period(totals: WorkerReport, before_s: float | None, now_s: float) -> float:
    """Counts the seconds since a step was computed, if one was; returns now.

    The first step, in which the graph may be compiled, is not in a period.
    """
    if before_s is not None:
        seconds = now_s - before_s
        totals.periods += 1
        totals.period_seconds += seconds
        totals.period_square_seconds += seconds**2
    return now_s
