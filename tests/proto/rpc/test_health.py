from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from downpour.proto.rpc.health import Health
from tests.channels import plain

_SERVING, _NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING

Check = Callable[[str], object]


@pytest.fixture
def ready() -> threading.Event:
    return threading.Event()


@pytest.fixture
def check(ready: threading.Event) -> Iterator[Check]:
    with Health(0, ready.is_set) as health, plain(f"127.0.0.1:{health.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        yield lambda service: stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=60).status


def test_a_process_lives_before_it_is_ready(check: Check, ready: threading.Event) -> None:
    assert (check(""), check("ready")) == (_SERVING, _NOT_SERVING)
    ready.set()
    assert (check(""), check("ready")) == (_SERVING, _SERVING)
    ready.clear()
    assert check("ready") == _NOT_SERVING


def test_other_services_are_not_found(check: Check) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        check("shard")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "ask for '' or 'ready'" in caught.value.details()


def test_a_taken_port_is_refused() -> None:
    with Health(0, lambda: True) as health:
        with pytest.raises(ValueError, match=f"cannot listen on port {health.port} for health; .* --health_port"):
            Health(health.port, lambda: True)


def test_after_its_end_nobody_is_answered() -> None:
    with Health(0, lambda: True) as health:
        port = health.port
    with plain(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError):
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
    Health(port, lambda: True).close()
