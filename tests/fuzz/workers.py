"""Real workers beside the fuzzer: they pull and push all the while, and every push of theirs must count once."""

from __future__ import annotations

import threading
import time

import grpc
import numpy as np

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import DownpourError
from downpour.worker.exchange.clients import ShardClient
from downpour.worker.exchange.pulled import Pulled
from tests.fuzz.shard import LAYOUT, NUM_PUSHED, FuzzedShard

WORKERS = (1001, 1002)
_INCARNATION = (1 << 63) + 1  # no mutation of the fuzzer's names is likely to come after it
_GIVE_UP_S = 10.0  # a call must not take so long, however often it is repeated
_PAUSE_S = 0.02  # between steps: the fuzzer is to have most of the machine


class Worker:
    """One worker that trains from its start to its end, in a thread of its own; a context manager.

    Attributes:
        acknowledged: Pushes so far.
        longest_s: That a step took.
        error: What ended it, if anything did.
    """

    def __init__(self, shard: FuzzedShard, number: int) -> None:
        self.number = number
        self.acknowledged, self.longest_s, self.error = 0, 0.0, ""
        self._client = shard.client("worker", _GIVE_UP_S)
        self._pulled = Pulled(LAYOUT, 0, pb.CODEC_FLOAT32)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Worker:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.set()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        try:
            while not self._ending.wait(_PAUSE_S):
                begin = time.monotonic()
                self._step()
                self.longest_s = max(self.longest_s, time.monotonic() - begin)
        except (DownpourError, grpc.RpcError) as error:
            self.error = repr(error)

    def _step(self) -> None:
        request = pb.PullRequest(fingerprint=LAYOUT.fingerprint, codec=pb.CODEC_FLOAT32, worker=self.number)
        request.incarnation, request.num_pushes = _INCARNATION, self.acknowledged
        self._client.pull(request, self._pulled)
        push_zeros(self._client, self.number, _INCARNATION, self.acknowledged + 1, self._pulled.version)
        self.acknowledged += 1


def push_zeros(client: ShardClient, worker: int, incarnation: int, sequence: int, base_version: int = 0) -> None:
    """A whole push in float32."""
    header = pb.PushHeader(fingerprint=LAYOUT.fingerprint, worker=worker, incarnation=incarnation, sequence=sequence)
    header.base_version = base_version
    client.push(header, [codec.Outgoing(0, NUM_PUSHED, codec.FLOAT32, np.zeros(NUM_PUSHED, np.float32))])
