"""The process of a worker: pushes and pulls until it is told to end. Started by `tests.strangers.scene`.

Every step pushes a gradient of ones and pulls the parameters, over the client that training uses. A shard that has
applied n pushes of all workers together holds `-n * LEARNING_RATE` everywhere, exactly.

It writes `ready` after its first steps, ends when a line comes, and writes one line of JSON: what it has done.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import numpy as np
from absl import flags

from downpour.launch.roles import entry
from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import DownpourError
from downpour.ps.layout import Variable, lay_out
from downpour.worker.exchange.clients import ShardClient
from downpour.worker.exchange.pulled import Pulled
from tests.strangers.ways import Guard

_INDEX = flags.DEFINE_integer("worker_index", 0, "Of the worker.")
_PORT = flags.DEFINE_integer("shard_port", 0, "Of the shard, on this machine.")
_FOLDER = flags.DEFINE_string("folder", "", "Of the certificates and the token.")
_TLS = flags.DEFINE_bool("with_tls", False, "Whether the shard wants a certificate.")
_TOKEN = flags.DEFINE_bool("with_token", False, "Whether the shard wants a token.")

NUM_ELEMENTS = 100_000
LAYOUT = lay_out([Variable("w", (NUM_ELEMENTS,))], 1)
LEARNING_RATE = 2.0**-10  # so that sums of it are exact
_COMPUTE_S = 0.02  # what the gradient of a step would take
_FIRST_STEPS = 10
_GIVE_UP_AFTER_S = 30.0


class Worker:
    """A worker that has a connection to the shard.

    Attributes:
        ends: When each step ended, by `time.monotonic()`.
        seconds: How long each took.
    """

    def __init__(self, index: int, client: ShardClient) -> None:
        self.ends: list[float] = []
        self.seconds: list[float] = []
        self._index, self._client = index, client
        self._pulled = Pulled(LAYOUT, 0, codec.FLOAT32)
        ones = np.ones(NUM_ELEMENTS, np.float32)
        cuts = codec.split(0, NUM_ELEMENTS)
        self._chunks = [codec.Outgoing(start, stop - start, codec.FLOAT32, ones[start:stop]) for start, stop in cuts]

    def step(self) -> None:
        """One push, one pull."""
        begin, sequence = time.monotonic(), len(self.ends) + 1
        push = pb.PushHeader(worker=self._index, incarnation=1, sequence=sequence)
        pull = pb.PullRequest(worker=self._index, incarnation=1, num_pushes=sequence, codec=codec.FLOAT32)
        push.fingerprint = pull.fingerprint = LAYOUT.fingerprint
        self._client.push(push, self._chunks)
        self._client.pull(pull, self._pulled)
        self.ends.append(time.monotonic())
        self.seconds.append(self.ends[-1] - begin)


def _main() -> None:
    guard = Guard(_TLS.value, _TOKEN.value)
    client = ShardClient(
        0, f"127.0.0.1:{_PORT.value}", LAYOUT, _GIVE_UP_AFTER_S, guard.security(Path(_FOLDER.value), "worker")
    )
    worker, ending, error = Worker(_INDEX.value, client), threading.Event(), ""
    for _ in range(_FIRST_STEPS):
        worker.step()
    print("ready", flush=True)
    threading.Thread(target=lambda: (sys.stdin.readline(), ending.set()), daemon=True).start()
    try:
        while not ending.wait(_COMPUTE_S):
            worker.step()
    except DownpourError as failure:
        error = str(failure)
    print(json.dumps({"ends": worker.ends, "seconds": worker.seconds, "error": error}), flush=True)


if __name__ == "__main__":
    entry.run(_main, role="worker")
