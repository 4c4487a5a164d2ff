"""Traced steps over real gRPC: spans of processes whose clocks are far apart come to the chief, on its clock."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from downpour.proto.chief_pb2 import ReportReply, WorkerReport
from downpour.proto.spans import _MOST_KEPT, MOST_IN_MESSAGE, MOST_STEPS, SpanBuffer, check_steps
from downpour.proto.trace_pb2 import RoundTrip, Span, Spans, SpansReceived
from downpour.ps.service.server import ShardServer
from downpour.worker.chief import traces as traces_module
from downpour.worker.chief.chief import Chief
from downpour.worker.chief.run_folder import RunFolder
from downpour.worker.chief.trace_file import chrome_trace
from downpour.worker.chief.traces import Traces, offset_of
from downpour.worker.chief.tracing import Tracing
from downpour.worker.tracing import Tracer
from tests import traces
from tests.worker.test_job import Cluster, plan_in

CHIEF_S, SHARDS_S = 1000.0, (50.0, -70.0, 7200.0)  # by how much their clocks are ahead of the workers'
NUM_STEPS = 4


def ahead(seconds: float) -> Callable[[], float]:
    """A clock."""
    return lambda: time.monotonic() + seconds


def traced_run(folder: Path, *, overlap: bool) -> traces.Trace:
    """A job of two workers and three shards, in threads, with clocks of their own."""
    settings = replace(plan_in(folder), trace_steps=NUM_STEPS, num_steps=60)
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(ShardServer(i, clock=ahead(s))) for i, s in enumerate(SHARDS_S)]
        chief = stack.enter_context(contextlib.closing(Chief(settings, folder, host="127.0.0.1", port=0)))
        chief._tracing.traces.clock = ahead(CHIEF_S)
        pool = stack.enter_context(ThreadPoolExecutor(4))
        cluster = Cluster(servers, chief, pool, folder)
        done = cluster.run_chief()
        workers = [pool.submit(cluster.work, i, overlap=overlap, num_steps=60) for i in range(2)]
        for worker in workers:
            worker.result(60)
        done.result(60)
    return traces.read(folder / "trace.json")


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> traces.Trace:
    return traced_run(tmp_path_factory.mktemp("run"), overlap=False)


def test_clocks_that_are_far_apart_are_aligned_within_the_stated_error(trace: traces.Trace) -> None:
    true = {"worker 0": CHIEF_S, "worker 1": CHIEF_S}
    true |= {f"shard {i}": CHIEF_S - seconds for i, seconds in enumerate(SHARDS_S)}
    found = trace.about["processes"]
    assert set(found) == set(true)
    for name, seconds in true.items():
        assert abs(found[name]["offset_s"] - seconds) <= found[name]["error_s"] + 1e-6
        assert 0 < found[name]["error_s"] < 1


def test_every_phase_of_every_step_is_there_on_one_clock(trace: traces.Trace) -> None:
    traces.check(trace, num_workers=2, num_shards=3, num_steps=NUM_STEPS)


def test_with_overlap_calls_of_a_step_go_on_during_the_next_one(tmp_path: Path) -> None:
    overlapping = traced_run(tmp_path, overlap=True)
    traces.check(overlapping, num_workers=2, num_shards=3, num_steps=NUM_STEPS, overlap=True)
    ends = {step["args"]["step"]: step["end"] for step in overlapping.named("worker 0", "step")}
    assert any(pull["end"] > ends[pull["args"]["step"]] for pull in overlapping.named("worker 0", "pull"))


def test_steps_that_are_not_traced_leave_no_span(tmp_path: Path) -> None:
    tracer, report = Tracer(3, 0), WorkerReport()
    with tracer.steps(), tracer.phase("input"), tracer.call("push", tracer.step, 0):
        tracer.joined(tracer.step, 0, 1.0, 2.0)
    tracer.write(report)
    assert not tracer.active and tracer.num_waiting == 0 and report == WorkerReport()


def test_a_lost_reply_loses_no_span_and_repeats_none() -> None:
    tracer, chief = Tracer(0, 2), Traces(2, 1)
    for _ in range(5):
        with tracer.steps(), tracer.phase("compute"):
            pass
    tracer.end()
    for answered in (False, True, True):
        report = WorkerReport()
        tracer.write(report)
        if report.HasField("trace"):
            received = chief.take("worker", 0, report.trace)
            if answered:
                tracer.answered(report, ReportReply(trace_received=received), 0.0)
    assert not report.HasField("trace"), "the chief has everything"
    names = [(span.name, span.step) for span in chief.processes()[0].spans]
    assert names == [("compute", 1), ("step", 1), ("compute", 2), ("step", 2)]
    assert chief.complete and chief.steps_of(0) == 0 and chief.steps_of(1) == 2


def test_memory_is_bounded_and_what_does_not_fit_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer, chief = SpanBuffer(), Traces(1, 1)
    buffer.add(*(Span(name=str(i), begin_seconds=i, end_seconds=i) for i in range(_MOST_KEPT + 100)))
    monkeypatch.setattr(traces_module, "_MOST_SPANS", MOST_IN_MESSAGE + 10)
    received = SpansReceived()
    for number in range(2):
        spans = buffer.after(received)
        assert len(spans.spans) == MOST_IN_MESSAGE and spans.first == 100 + number * MOST_IN_MESSAGE
        received = chief.take("worker", 0, spans)
    process = chief.processes()[0]
    assert [span.name for span in process.spans] == [str(100 + i) for i in range(MOST_IN_MESSAGE + 10)]
    assert process.missing == 100 + MOST_IN_MESSAGE - 10
    assert buffer.num_after(received) == _MOST_KEPT - 2 * MOST_IN_MESSAGE


def test_a_process_that_was_started_again_is_another_one() -> None:
    chief = Traces(2, 1)
    for process in (SpanBuffer(), SpanBuffer()):
        process.add(Span(name="step", begin_seconds=1, end_seconds=2, step=1))
        chief.take("worker", 0, process.after(chief.received("worker", 0)))
    assert [len(process.spans) for process in chief.processes()] == [1, 1]
    assert chief.steps_of(0) == 0


def test_spans_that_cannot_be_drawn_are_left_out_and_the_file_stays_json() -> None:
    nan, chief = float("nan"), Traces(1, 1)
    bad = [Span(name="step", begin_seconds=a, end_seconds=b) for a, b in ((nan, 1), (1, nan), (2, 1), (0, 1e999))]
    spans = Spans(spans=[*bad, Span(name="x" * 65), Span(name="step", begin_seconds=1, end_seconds=2)])
    spans.round_trip.answered_seconds = 1.0
    chief.take("worker", 0, spans)
    found = chief.processes()[0]
    assert (len(found.spans), found.missing) == (1, 5)
    json.dumps(chrome_trace([found], {}), allow_nan=False)


def test_the_offset_of_a_round_trip_is_wrong_by_half_of_its_delay_at_most() -> None:
    for there_s, back_s in ((0.0, 0.3), (0.3, 0.0), (0.1, 0.2)):
        trip = RoundTrip(asked_seconds=10, received_seconds=110 + there_s, replied_seconds=111 + there_s)
        trip.answered_seconds = 11 + there_s + back_s
        offset = offset_of(trip)
        assert offset is not None and offset.error_s == pytest.approx(0.15)
        assert abs(offset.seconds - 100) <= offset.error_s + 1e-9
    assert offset_of(RoundTrip(asked_seconds=1, answered_seconds=0)) is None
    assert offset_of(RoundTrip(asked_seconds=float("nan"))) is None


def test_the_round_trip_with_the_smallest_delay_counts() -> None:
    chief = Traces(1, 1)
    for delay_s, ahead_s in ((0.2, 5.0), (0.01, 6.0), (0.1, 7.0)):
        moment = ahead_s + delay_s / 2
        trip = RoundTrip(received_seconds=moment, replied_seconds=moment, answered_seconds=delay_s)
        for role in ("worker", "ps"):
            chief.take(role, 0, Spans(round_trip=trip, spans=[Span(name="step")]))
    worker, shard = chief.processes()
    assert worker.clock is not None and shard.clock is not None
    assert (worker.clock.seconds, shard.clock.seconds) == pytest.approx((6.0, -6.0))  # the shard is the one called
    assert worker.clock.error_s == pytest.approx(0.005)


def test_a_trace_that_cannot_be_written_is_logged_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chief = Traces(1, 1)
    chief.take("worker", 0, Spans(spans=[Span(name="step")]))
    folder = RunFolder(tmp_path, str(tmp_path / "checkpoints"))
    with contextlib.closing(folder):
        tracing = Tracing(plan_in(tmp_path), folder)
        tracing.traces = chief
        (tmp_path / "trace.json").mkdir()
        tracing.write()
        assert "the trace cannot be written: " in caplog.text and "training goes on" in caplog.text
        (tmp_path / "trace.json").rmdir()
        tracing.write()  # it is tried again
    assert json.loads((tmp_path / "trace.json").read_text())["otherData"]["without_a_clock"] == ["worker 0"]


def test_a_process_whose_clock_was_never_compared_is_named_and_left_out() -> None:
    chief = Traces(1, 1)
    for worker in range(2):
        spans = Spans(spans=[Span(name="step", track="loop", begin_seconds=1, end_seconds=2)])
        if worker == 0:
            spans.round_trip.answered_seconds = 0.5
        chief.take("worker", worker, spans)
    found = chrome_trace(chief.processes(), {})
    assert found["otherData"]["without_a_clock"] == ["worker 1"]
    assert [event["pid"] for event in found["traceEvents"] if event["ph"] == "X"] == [1]


@pytest.mark.parametrize("given", [-1, MOST_STEPS + 1])
def test_a_number_of_steps_that_is_out_of_bounds_is_refused(given: int) -> None:
    with pytest.raises(ValueError, match=f"--trace={given}: a worker traces 1 to 1000 steps; give one of these, or 0"):
        check_steps(given)
