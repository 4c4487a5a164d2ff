"""A kubelet's probes over gRPC: every period a new connection, one question, one answer."""

from __future__ import annotations

import time
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.kubelet.fields import Document, known

_OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))


class Probe:
    """One probe of one container.

    Args:
        specification: As in the manifest.
        address: Of the pod.

    Attributes:
        passed: Whether the newest answers were good, as many as must be.
        failed: Whether so many answers were bad that something must happen.
        passed_after_s: From the probe's begin to its first success; None before.
    """

    def __init__(self, specification: Document, address: str) -> None:
        known(specification, "grpc", "periodSeconds", "failureThreshold", "timeoutSeconds")
        known(specification["grpc"], "port", "service")
        self._target = f"{address}:{specification['grpc']['port']}"
        self._service = specification["grpc"]["service"]
        self._period_s = specification.get("periodSeconds", 10)
        self._threshold = specification.get("failureThreshold", 3)
        self._timeout_s = specification.get("timeoutSeconds", 1)
        self._begin = time.monotonic()
        self._next = self._begin
        self._failures = 0
        self._channel: grpc.Channel | None = None
        self._answer: Any = None
        self.passed = self.failed = False
        self.passed_after_s: float | None = None

    def tick(self) -> None:
        """Asks when it is time, and takes the answer when it is there."""
        if self._answer is not None and self._answer.done():
            self._take(self._answer.exception() is None and self._answer.result().status == 1)
        if self._answer is None and time.monotonic() >= self._next:
            self._next = time.monotonic() + self._period_s
            self._channel = grpc.insecure_channel(self._target, options=_OPTIONS)
            check = health_pb2_grpc.HealthStub(self._channel).Check
            self._answer = check.future(health_pb2.HealthCheckRequest(service=self._service), timeout=self._timeout_s)

    def close(self) -> None:
        """Asks no more."""
        if self._channel:
            self._channel.close()
        self._channel = self._answer = None

    def _take(self, good: bool) -> None:
        self.close()
        self._failures = 0 if good else self._failures + 1
        self.failed = self._failures >= self._threshold
        self.passed = good or (self.passed and not self.failed)
        if good and self.passed_after_s is None:
            self.passed_after_s = time.monotonic() - self._begin
