"""What an OpenTelemetry collector receives of a run: a real one's requests, by its own messages."""

from __future__ import annotations

import gzip
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from downpour.launch.observe import otel
from tests.worker.test_traces import NUM_STEPS, traced_run

_KINDS: dict[str, Any] = {"/v1/traces": ExportTraceServiceRequest, "/v1/metrics": ExportMetricsServiceRequest}


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[Any]]]:
    """Requests to a collector on loopback, by path."""
    found = defaultdict[str, list[Any]](list)

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            found[self.path].append(_KINDS[self.path].FromString(body))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *values: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv(otel.ENDPOINT, f"http://127.0.0.1:{server.server_port}")
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_collector_receives_metrics_of_the_history_and_the_spans_of_traced_steps(
    received: dict[str, list[Any]], tmp_path: Path
) -> None:
    trace = traced_run(tmp_path, overlap=False)
    (sink,) = otel.sinks()
    sink.on_begin({"recipe": "tiny", "job_id": "42", "run_dir": str(tmp_path)})
    sink.on_entry({"kind": "loss", "step": 7, "seconds": 1.5, "loss": 0.25, "text": "no number"})
    sink.on_end({})
    metrics = {
        metric.name: point.as_double or point.as_int
        for request in received["/v1/metrics"]
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.gauge.data_points
    }
    assert metrics == {"downpour.loss.step": 7, "downpour.loss.seconds": 1.5, "downpour.loss.loss": 0.25}
    spans, process_of = {}, {}
    for request in received["/v1/traces"]:
        for resource in request.resource_spans:
            attributes = {each.key: each.value.string_value for each in resource.resource.attributes}
            assert attributes["service.name"] == "downpour" and attributes["downpour.job_id"] == "42"
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                spans[span.span_id] = span
                process_of[span.span_id] = attributes["service.instance.id"]
    assert len(spans) == sum(len(thread) for process in trace.spans.values() for thread in process.values())
    roots = [span for span in spans.values() if not span.parent_span_id]
    assert {span.name for span in roots} == {"worker step"} and len(roots) == 2 * NUM_STEPS
    assert len({span.trace_id for span in spans.values()}) == len(roots)
    for span in spans.values():
        if span.name in ("ps receive", "ps apply"):
            push = spans[span.parent_span_id]
            call = spans[push.parent_span_id]
            assert (push.name, call.name, spans[call.parent_span_id].name) == ("ps push", "worker push", "worker step")
            assert process_of[push.span_id] == process_of[span.span_id]
            error_ns = 1e3 * trace.error_us(process_of[push.span_id], process_of[call.span_id])
            assert call.start_time_unix_nano - error_ns <= push.start_time_unix_nano
            assert push.end_time_unix_nano <= call.end_time_unix_nano + error_ns
    age_s = (tmp_path / "trace.json").stat().st_mtime - min(span.start_time_unix_nano for span in roots) / 1e9
    assert 0 < age_s < 60, "spans are not at the time of day at which they were"


def test_without_an_endpoint_or_the_packages_nothing_is_exported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(otel.ENDPOINT, raising=False)
    assert otel.sinks() == ()
    monkeypatch.setenv(otel.ENDPOINT, "http://127.0.0.1:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    assert otel.sinks() == ()
    assert "OpenTelemetry is missing: pip install 'downpour-training[otel]'" in caplog.text
