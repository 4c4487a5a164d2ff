"""A run in OpenTelemetry: its history as metrics while it goes on, and its traced steps as spans at its end.

Active on the chief where the standard variable OTEL_EXPORTER_OTLP_ENDPOINT is set; needs the extra `otel`. All else is
configured by the standard variables, too, such as OTEL_EXPORTER_OTLP_HEADERS; the protocol is http/protobuf.

Threads: as any sink.
"""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from absl import logging

from downpour import how_to_install
from downpour.worker.chief.sinks import Sink

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_BATCH = 512  # spans of a request
_SERVICE = "downpour"


def sinks() -> tuple[Sink, ...]:
    """Returns the sink if the environment asks for it and its packages are installed; else none."""
    if not os.environ.get(ENDPOINT):
        return ()
    try:
        import opentelemetry.exporter.otlp.proto.http
        import opentelemetry.sdk  # noqa: F401
    except ImportError:
        logging.warning("%s is set, but OpenTelemetry is missing: %s", ENDPOINT, how_to_install("otel"))
        return ()
    return (OpenTelemetry(),)


class OpenTelemetry(Sink):
    """Exports metrics and spans over OTLP."""

    def on_begin(self, job: dict[str, Any]) -> None:
        """See `Sink`."""
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

        self._run_dir = Path(job["run_dir"])
        self._about = {"downpour.recipe": job["recipe"], "downpour.job_id": job["job_id"]}
        reader = PeriodicExportingMetricReader(OTLPMetricExporter())
        self._metrics = MeterProvider([reader], _resource("chief", self._about))
        self._gauges: dict[str, Any] = {}

    def on_entry(self, entry: dict[str, Any]) -> None:
        """Sets a gauge for every number of the entry, such as `downpour.loss.loss` and `downpour.loss.step`."""
        for key, value in entry.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                name = f"downpour.{entry['kind']}.{key}"
                if name not in self._gauges:
                    self._gauges[name] = self._metrics.get_meter(_SERVICE).create_gauge(name)
                self._gauges[name].set(value)

    def on_end(self, summary: dict[str, Any]) -> None:
        """See `Sink`; exports the spans of the run's `trace.json`, if there is one."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        self._metrics.shutdown()
        path = self._run_dir / "trace.json"
        if path.exists():
            spans, exporter = spans_of(json.loads(path.read_text()), self._about), OTLPSpanExporter()
            for start in range(0, len(spans), _BATCH):
                exporter.export(spans[start : start + _BATCH])
            exporter.shutdown()  # type: ignore[no-untyped-call]


def spans_of(trace: dict[str, Any], about: dict[str, str]) -> list[Any]:
    """Returns the spans of a trace of Downpour: one OpenTelemetry trace for each step of a worker.

    A step has the worker's phases and calls as children, a call what the shard did for it, and that its phases.

    Args:
        trace: As `downpour.worker.chief.trace_file` writes it.
        about: Attributes of every process.
    """
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.trace import set_span_in_context

    told, found = trace["otherData"], InMemorySpanExporter()
    # Seconds since 1970 at time 0 of the trace.
    began_s = datetime.fromisoformat(told["written"]).timestamp() - (told["written_at_s"] - told["first_span_s"])
    tracers = {}
    for event in trace["traceEvents"]:
        if event["name"] == "process_name":
            provider = TracerProvider(resource=_resource(event["args"]["name"], about))
            provider.add_span_processor(SimpleSpanProcessor(found))
            tracers[event["pid"]] = event["args"]["name"], provider.get_tracer(_SERVICE)
    parents: dict[tuple[Any, ...], Any] = {}
    for event in sorted((e for e in trace["traceEvents"] if e["ph"] == "X"), key=_parents_first):
        process, tracer = tracers[event["pid"]]
        own, of = _keys(event, process)
        begin_ns = round(1e9 * began_s + 1e3 * event["ts"])
        context = set_span_in_context(parents[of]) if of in parents else None
        attributes = {f"downpour.{key}": value for key, value in event["args"].items()}
        span = tracer.start_span(f"{event['cat']} {event['name']}", context, attributes=attributes, start_time=begin_ns)
        span.end(begin_ns + round(1e3 * event["dur"]))
        parents[own] = span
    return list(found.get_finished_spans())


def _parents_first(event: dict[str, Any]) -> tuple[int, bool, float]:
    """Order in which every span comes after its parent: steps, what workers did, calls on shards, their phases."""
    level = 0 if event["name"] == "step" else 1 if event["cat"] == "worker" else 2
    return level, event["name"] not in ("push", "pull"), event["ts"]


def _keys(event: dict[str, Any], process: str) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The keys of a span and of its parent."""
    step = event["args"]["worker"], event["args"]["step"]
    if event["cat"] == "worker":
        call = ("shard " + str(event["args"]["shard"]),) if "shard" in event["args"] else ()
        return ((*step, event["name"], *call), () if event["name"] == "step" else (*step, "step"))
    if event["name"] in ("push", "pull"):
        return (*step, event["tid"], process), (*step, event["name"], process)
    return (*step, event["name"], event["tid"], process, event["ts"]), (*step, event["tid"], process)


def _resource(process: str, about: dict[str, str]) -> Any:
    from opentelemetry.sdk.resources import Resource

    return Resource.create({"service.name": _SERVICE, "service.instance.id": process, **about})
