"""What a shard says of itself in `Status`: bytes, seconds by cause, calls that wait, memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.rpc.client import Channel
from downpour.ps.apply.admission import Admission
from downpour.ps.layout import Variable, lay_out
from downpour.ps.policy.pace import Async
from downpour.ps.policy.rules import RMSProp
from downpour.ps.policy.schedules import StaircaseExponential
from downpour.ps.policy.specification import Policies, specification_of
from downpour.ps.policy.staleness import Keep
from downpour.ps.service.server import ShardServer
from downpour.ps.service.usage import Usage
from downpour.worker.exchange.clients import ShardClient
from tests.chunks import encode_chunk

SIZE = 3 * codec.CHUNK_ELEMENTS
LAYOUT = lay_out([Variable("w", (SIZE,))], 1)
POLICIES = Policies(RMSProp(), StaircaseExponential(0.1, 0.5, 3), Async(), Keep(), None)
PATH = "/downpour.v1.ParameterServer/"


@pytest.fixture(name="shard")
def running() -> Iterator[tuple[list[Channel], ShardClient]]:
    with ShardServer(0) as server:
        address = f"127.0.0.1:{server.port}"
        client = ShardClient(0, address, LAYOUT, 20.0)
        assert client.status().uptime_seconds > 0  # before it is initialised
        client.initialize(specification_of(POLICIES, LAYOUT, 2), np.ones(SIZE, np.float32))
        channels = [Channel(address) for _ in range(4)]  # as of workers
        yield channels, client
        for channel in channels:
            channel.close()
        client.close()


def chunks(sequence: int, worker: int = 0) -> list[bytes]:
    header = pb.PushHeader(fingerprint=LAYOUT.fingerprint, worker=worker, incarnation=1, sequence=sequence)
    cut = range(0, SIZE, codec.CHUNK_ELEMENTS)
    values = np.ones(codec.CHUNK_ELEMENTS, np.float32)
    return [encode_chunk(start, codec.FLOAT32, values, None if start else header) for start in cut]


def test_bytes_and_seconds_are_those_of_the_calls(shard: tuple[list[Channel], ShardClient]) -> None:
    (channel, *_), client = shard
    push = channel.stream_unary(PATH + "Push", pb.PushReply.FromString)

    def slowly() -> Iterator[list[bytes]]:
        for chunk in chunks(1):
            yield [chunk]
            time.sleep(0.1)

    push(slowly(), timeout=20)
    pull = channel.unary_stream(PATH + "Pull", pb.PullRequest.SerializeToString)
    request = pb.PullRequest(fingerprint=LAYOUT.fingerprint, codec=codec.BFLOAT16)
    pulled = sum(len(message) for message in pull(request, timeout=20))
    found = client.status()
    assert found.bytes_received == sum(map(len, chunks(1))) > 4 * SIZE
    assert found.bytes_sent == pulled > 2 * SIZE
    assert (found.pulls, found.pushes, found.pushes_waiting, found.pulls_waiting) == (1, 1, 0, 0)
    assert 0.1 < found.receive_seconds < found.push_seconds
    assert 0 < found.apply_seconds < found.push_seconds - found.receive_seconds + 0.1
    assert found.push_seconds + found.pull_seconds < found.uptime_seconds
    assert 10 << 20 < found.memory_bytes < 4 << 30


def test_a_failed_push_and_a_push_that_waits_are_seen(shard: tuple[list[Channel], ShardClient]) -> None:
    channels, client = shard
    pushes = [channel.stream_unary(PATH + "Push", pb.PushReply.FromString) for channel in channels]
    first = chunks(1)[0]
    with pytest.raises(grpc.RpcError):
        pushes[0](iter([[first]]), timeout=20)
    assert client.status().bytes_received == len(first)
    go_on, threads = threading.Event(), list[threading.Thread]()

    def held(worker: int) -> Iterator[list[bytes]]:
        first, second, last = chunks(1, worker)
        yield [first]
        yield [second]  # a client sends a message when it has the next one
        go_on.wait(20)
        yield [last]

    for worker, push in enumerate(pushes, 1):  # three are admitted at a time
        threads.append(threading.Thread(target=push, args=(held(worker),), kwargs={"timeout": 20}))
        threads[-1].start()
    deadline = time.monotonic() + 10
    while client.status().pushes_waiting != 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert client.status().pushes_waiting == 1
    go_on.set()
    for thread in threads:
        thread.join()
    found = client.status()
    assert (found.pushes, found.pushes_waiting) == (4, 0)
    assert found.queue_seconds > 0


def test_memory_is_read_again_only_after_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    usage, readings = Usage(Admission(1), Admission(1)), list[int]()
    monkeypatch.setattr("downpour.ps.service.usage._memory_bytes", lambda: readings.append(1) or len(readings))
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    first = [usage.status().memory_bytes for _ in range(100)]
    clock[0] += 1.1
    assert set(first) == {1} and usage.status().memory_bytes == 2
