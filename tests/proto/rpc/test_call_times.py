"""A server's calls by method and status, as gRPC's own metrics count them."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from downpour.proto.rpc.call_times import BOUNDS_S, OTHER, CallTimes, Durations
from downpour.proto.rpc.client import Channel
from downpour.proto.rpc.server import Server
from downpour.proto.security.config import Security
from tests.conftest import wait_until
from tests.proto.rpc.test_interoperation import Service

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture(name="served")
def running() -> Iterator[Server]:
    served = Server(Service().handler(), "127.0.0.1", 0, 8, Security(token=TOKEN))
    yield served
    served.stop(None).wait()


def call(served: Server, path: str, token: str = TOKEN) -> grpc.StatusCode:
    channel = Channel(f"127.0.0.1:{served.port}", Security(token=token))
    try:
        channel.unary_unary(path, bytes, bytes)(b"x", timeout=60)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    finally:
        channel.close()
    return grpc.StatusCode.OK


def test_calls_are_counted_by_method_and_status_and_a_stranger_invents_no_names(served: Server) -> None:
    assert call(served, "/Service/Echo") is call(served, "/Service/Echo") is grpc.StatusCode.OK
    for number in range(3):
        assert call(served, f"/Service/Invented{number}") is grpc.StatusCode.UNIMPLEMENTED
    assert call(served, "/Service/Echo", "another token, just as long as it is") is grpc.StatusCode.UNAUTHENTICATED
    counts = {("Service/Echo", "OK"): 2, (OTHER, "UNIMPLEMENTED"): 3, ("Service/Echo", "UNAUTHENTICATED"): 1}

    def found() -> dict[tuple[str, str], int]:
        return {key: sum(one.counts) for key, one in served.times.durations().items()}

    wait_until(lambda: found() == counts, "all calls")  # a caller has its status before the call is forgotten
    assert served.times.started() == {"Service/Echo": 3, OTHER: 3}
    assert 0 < served.times.durations()[("Service/Echo", "OK")].total_s < 5


@pytest.mark.parametrize(("seconds", "bucket"), [(0.0, 0), (0.001, 7), (0.0011, 8), (100.0, 40), (101.0, 41)])
def test_a_bound_belongs_to_the_calls_below_it(seconds: float, bucket: int) -> None:
    times = CallTimes()
    times.ended("Service/Echo", grpc.StatusCode.OK, seconds)
    [found] = times.durations().values()
    assert found == Durations([int(i == bucket) for i in range(len(BOUNDS_S) + 1)], seconds)
