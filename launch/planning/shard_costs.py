"""Measures, on this machine, what a push and a pull of one shard cost: core-seconds of the shard and of the workers.

Runs a real shard process on loopback, started as in production, and a few real clients in this process, which do what a
worker does for one shard, without computing gradients. Measures the largest shard of two layouts, one with several
times as many shards, so that the costs of any number of shards follow (`downpour.launch.planning.demand.Cost`).

Threads: one per client; all end before `measure` returns.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

from downpour.launch import certs
from downpour.launch.job.job import PULLS_A_PUBLICATION, Job
from downpour.launch.local.scratch import scratch_folder
from downpour.launch.local.supervisor import ProcessFailed, Program, Supervisor
from downpour.launch.planning.demand import Cost, Costs
from downpour.launch.roles import topology
from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.security.config import Security
from downpour.ps.layout import Layout, lay_out
from downpour.ps.policy.specification import specification_of
from downpour.ps.policy.staleness import Compensate
from downpour.worker.exchange.clients import ShardClient
from downpour.worker.exchange.packing import Packer
from downpour.worker.exchange.pulled import Pulled

_CLIENTS = 4  # concurrent, so that pushes are applied by group commit, as in a fleet
_TIMES_AS_MANY = 4  # shards of the second layout
_TIMEOUT_S = 120.0


def measure(job: Job, layout: Layout, seconds: float, *, mutual_tls: bool) -> Costs:
    """Measures the costs of the job's calls.

    Args:
        job: The job.
        layout: Its layout.
        seconds: How long each of the four measurements takes.
        mutual_tls: Whether calls are encrypted, with certificates made for this.

    Raises:
        ValueError: The shard process does not start, or TLS' packages are missing.
    """
    smaller = lay_out(layout.variables, _TIMES_AS_MANY * layout.num_shards, job.slicing)
    measured = []
    with scratch_folder() as scratch:
        certificates = None
        if mutual_tls:
            certificates = scratch / "certs"
            certs.make("plan", certificates, days=1)
        for one in (smaller, layout):
            largest = max(range(one.num_shards), key=one.size)
            with _shard(job, one, largest, scratch, certificates) as (address, pid):
                costs = _costs_of(job, one, largest, address, pid, seconds, certs.security_of("worker", certificates))
            measured.append((one.size(largest), costs))
    (few, less), (many, more) = measured
    return Costs(*(Cost.through((few, a), (many, b)) for a, b in zip(less, more, strict=True)))


@contextmanager
def _shard(job: Job, layout: Layout, shard: int, scratch: Path, certificates: Path | None) -> Iterator[tuple[str, int]]:
    """Runs a shard process that holds zeros; yields its address and process id."""
    folder = scratch / str(layout.num_shards)
    with Supervisor(folder, os.environ) as supervisor:
        port_file = folder / "port"
        flags: dict[str, topology.FlagValue] = {
            "host": "127.0.0.1", "port": 0, "port_file": port_file, "arena": folder / "arena",
            "die_with_parent": os.getpid(),
        }  # fmt: skip
        if certificates:
            flags["tls"] = certificates / "ps"
        supervisor.start(Program("ps", topology.command("ps", shard, flags), max_restarts=0, endless=True))
        try:
            if not supervisor.wait(port_file.exists, _TIMEOUT_S):
                raise ValueError(f"the shard to measure did not listen within {_TIMEOUT_S:.0f} s")
        except ProcessFailed as error:
            raise ValueError(f"the shard to measure did not start: {error}") from None
        address = f"127.0.0.1:{port_file.read_text().strip()}"
        client = ShardClient(shard, address, layout, _TIMEOUT_S, certs.security_of("chief", certificates))
        specification = specification_of(job, layout, _CLIENTS, shard)
        client.initialize(specification, np.zeros(layout.size(shard), np.float32))
        client.close()
        yield address, supervisor.pids()["ps"]


def _costs_of(
    job: Job, layout: Layout, shard: int, address: str, pid: int, seconds: float, security: Security
) -> tuple[float, float, float, float]:
    """Core-seconds of the shard for a push and for a pull, and of a worker for a push and for a pull."""
    clients = [_Client(job, layout, shard, address, index, security) for index in range(_CLIENTS)]
    try:
        for client in clients:
            client.both()  # warm-up: compiles and allocates
        shard_push, worker_push = _core_s(clients, _Client.push, pid, seconds)
        shard_both, worker_both = _core_s(clients, _Client.both, pid, seconds)
    finally:
        for client in clients:
            client.close()
    return shard_push, max(0.0, shard_both - shard_push), worker_push, max(0.0, worker_both - worker_push)


def _core_s(clients: list[_Client], action: Callable[[_Client], None], pid: int, seconds: float) -> tuple[float, float]:
    """Core-seconds of one action, of the shard and of the workers, while all clients repeat it."""
    shard, workers = psutil.Process(pid), psutil.Process()
    counts, stop = [0] * len(clients), threading.Event()

    def repeat(index: int) -> None:
        while not stop.is_set():
            action(clients[index])
            counts[index] += 1

    before = [_cpu_s(shard), _cpu_s(workers)]
    with ThreadPoolExecutor(len(clients)) as pool:
        done = [pool.submit(repeat, index) for index in range(len(clients))]
        time.sleep(seconds)
        stop.set()
        for future in done:
            future.result()
    spent = [_cpu_s(shard) - before[0], _cpu_s(workers) - before[1]]
    return spent[0] / sum(counts), spent[1] / sum(counts)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


class _Client:
    """A worker's client of one shard."""

    def __init__(self, job: Job, layout: Layout, shard: int, address: str, index: int, security: Security) -> None:
        wire = codec.CODECS[job.exchange.codec]
        self._client = ShardClient(shard, address, layout, _TIMEOUT_S, security)
        self._packer = Packer(layout, shard, wire, codec.BLOCK_CODECS.get(job.exchange.push, wire))
        self._pulled = Pulled(layout, shard, wire, differences=bool(job.publish_every))
        self._header = pb.PushHeader(fingerprint=layout.fingerprint, worker=index, incarnation=1)
        self._request = pb.PullRequest(
            fingerprint=layout.fingerprint,
            codec=wire,
            worker=index,
            incarnation=1,
            publish_every=PULLS_A_PUBLICATION * _CLIENTS if job.publish_every else 0,
            differences=codec.BLOCK_CODECS.get(job.exchange.pull),
        )
        dtype, num_dense = codec.WIRE_DTYPES[wire], layout.num_trained(shard) - layout.num_factored(shard)
        self._gradient = np.zeros(num_dense, dtype)
        self._differences = np.zeros(layout.num_pushed(shard) - layout.num_trained(shard), np.float32)
        self._factors = [
            (np.zeros((job.batch_size, group.num_inputs), dtype), np.zeros((job.batch_size, group.num_outputs), dtype))
            for group in layout.factored(shard)
        ]
        self._base = self._gradient if isinstance(job.treatment, Compensate) else None

    def push(self) -> None:
        """Pushes zeros, which cost what other numbers do."""
        self._header.sequence += 1
        self._header.base_version = self._pulled.version
        chunks = self._packer.pack(self._gradient, self._differences, self._factors, self._base)
        self._client.push(self._header, chunks)

    def both(self) -> None:
        """Pushes, then pulls."""
        self.push()
        self._request.num_pushes = self._header.sequence
        self._client.pull(self._request, self._pulled)

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()
