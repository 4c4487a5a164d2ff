"""Our shards under load: started as production starts them, used by emulated workers, measured, checked.

The check: every shard has applied exactly the pushes that workers had acknowledged, or `ValueError`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from google.protobuf import json_format

from downpour.launch import certs
from downpour.launch.job.job import PULLS_A_PUBLICATION
from downpour.launch.local.scratch import scratch_folder
from downpour.launch.roles import topology
from downpour.proto import codec
from downpour.proto.security.config import Security
from downpour.ps.layout import Layout
from downpour.ps.policy.named import to_message
from downpour.ps.policy.rules import RMSProp
from downpour.ps.policy.schedules import Constant
from downpour.worker.exchange.clients import ShardClient
from tests.benchmarks import shape
from tests.benchmarks.emulated_worker import Settings, save_gradients
from tests.benchmarks.hosts import LOOPBACK, Host
from tests.benchmarks.measure import Measurement, measure
from tests.benchmarks.processes import Child, Processes, wait_for_file
from tests.worker.cluster import initialize

RULE = RMSProp(rho=0.9, momentum=0.9)  # the paper's
_TIMEOUT_S = 120.0
_GRADIENTS = "gradients"


@dataclass(frozen=True)
class Load:
    """What to measure.

    Attributes:
        codec: Name of the wire codec.
        push: Name of the codec of pushed gradients: `same` or `int8`.
        compute_s: What computing a gradient would take a worker, slept.
        pull: What is pulled: `live`, or the name of the codec of differences to publications.
        factored: Whether the head's gradient travels as factors.
        variables: File that lists the model's variables.
        num_shards: Shard processes.
        num_workers: Emulated workers.
        num_processes: Worker processes; at most one a worker.
        warmup_s: Seconds of work before the window.
        seconds: Length of the window.
        shard_hosts: Shard i runs on host i modulo their number.
        worker_hosts: Worker process i likewise.
        shard_module: What a shard process runs in place of the production module, with the same flags.
        certificates: Folder with a job's certificates, one folder a role in it; None for plain text.
    """

    codec: str = "bfloat16"
    push: str = "same"
    pull: str = "live"
    compute_s: float = 0.0
    factored: bool = False
    variables: Path = shape.PAPER
    num_shards: int = 17
    num_workers: int = 4
    num_processes: int = 2
    warmup_s: float = 3.0
    seconds: float = 15.0
    shard_hosts: tuple[Host, ...] = field(default=(Host(),))
    worker_hosts: tuple[Host, ...] = field(default=(Host(),))
    shard_module: str = "downpour.launch.ps"
    certificates: Path | None = None

    def __post_init__(self) -> None:
        for name in ("num_shards", "num_workers", "num_processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")
        object.__setattr__(self, "num_processes", min(self.num_processes, self.num_workers))


Watch = Callable[[Sequence[Child], Sequence[Child], Sequence[str]], AbstractContextManager[object]]


def run(load: Load, watch: Watch = lambda shards, workers, addresses: nullcontext()) -> Measurement:
    """Measures our shards under a load.

    Args:
        load: The load.
        watch: Called with shards, worker processes and the shards' addresses; gives what is entered as the window
            begins, left as it ends.

    Raises:
        ValueError: A process failed, or a shard's count of pushes is not the workers'.
    """
    cache_kernels()
    layout = shape.layout_of(load.variables, load.num_shards, factored=load.factored)
    chief = certs.security_of("chief", load.certificates)
    with scratch_folder() as scratch, Processes(scratch) as processes:
        shards, addresses = start_shards(processes, scratch, load)
        initialize(addresses, layout, shape.initial_values(layout), RULE, Constant(learning_rate=1e-6), security=chief)
        save_gradients(scratch / _GRADIENTS, layout, codec.CODECS[load.codec])
        workers = _start_workers(processes, addresses, scratch / _GRADIENTS, load)
        measurement, _ = measure(
            shards,
            workers,
            warmup_s=load.warmup_s,
            seconds=load.seconds,
            namespaces=sorted({host.prefix for host in load.shard_hosts}),
            watch=watch(shards, workers, addresses),
        )
        _check_pushes(addresses, layout, measurement.pushes, chief)
    return measurement


def cache_kernels() -> None:
    """Compiles what the shards would all compile at once."""
    rule = json_format.MessageToJson(to_message(RULE), indent=None)
    subprocess.run(
        [sys.executable, "-m", "downpour.ps.apply.kernels", f"--rule={rule}"], check=True, stdout=subprocess.DEVNULL
    )


def start_shards(processes: Processes, scratch: Path, load: Load) -> tuple[list[Child], list[str]]:
    """Starts all, then waits for their ports. Returns processes and addresses."""
    shards, hosts = [], [load.shard_hosts[i % len(load.shard_hosts)] for i in range(load.num_shards)]
    for i, host in enumerate(hosts):
        values: dict[str, topology.FlagValue] = {
            "host": host.address,
            "port": 0,
            "port_file": scratch / f"ps-{i}.port",
            "arena": scratch / f"shard-{i}.arena",
            "listen_in_plain_text_on_the_network": host.address != LOOPBACK,
            "die_with_parent": os.getpid(),
            "tls": load.certificates and load.certificates / "ps",
        }
        command = topology.command("ps", i, values)
        command[command.index("downpour.launch.ps")] = load.shard_module
        shards.append(processes.start(f"ps/{i}", [*host.prefix, *command]))
    ports = [int(wait_for_file(scratch / f"ps-{i}.port", shard)) for i, shard in enumerate(shards)]
    return shards, [f"{host.address}:{port}" for host, port in zip(hosts, ports, strict=True)]


def _start_workers(processes: Processes, addresses: list[str], gradients: Path, load: Load) -> list[Child]:
    small, larger = divmod(load.num_workers, load.num_processes)
    workers, first = [], 0
    settings = Settings(
        variables=str(load.variables),
        addresses=addresses,
        gradients=str(gradients),
        codec=load.codec,
        push=load.push,
        pull=load.pull,
        publish_every=PULLS_A_PUBLICATION * load.num_workers,
        compute_s=load.compute_s,
        factored=load.factored,
        first=0,
        num_workers=0,
        certificates=str(load.certificates or ""),
    )
    for i in range(load.num_processes):
        count = small + (i < larger)
        command = [
            *load.worker_hosts[i % len(load.worker_hosts)].prefix,
            *(sys.executable, "-m", "tests.benchmarks.emulated_worker", f"--die_with_parent={os.getpid()}"),
            replace(settings, first=first, num_workers=count).flag(),
        ]
        workers.append(processes.start(f"workers/{i}", command))
        first += count
    return workers


def _check_pushes(addresses: Sequence[str], layout: Layout, acknowledged: int, chief: Security) -> None:
    for i, address in enumerate(addresses):
        client = ShardClient(i, address, layout, _TIMEOUT_S, chief)
        status = client.status()
        client.close()
        if (status.version, status.pushes_repeated) != (acknowledged, 0):
            raise ValueError(
                f"shard {i} has applied {status.version} pushes and refused {status.pushes_repeated} as repeated, "
                f"but workers had {acknowledged} acknowledged"
            )
