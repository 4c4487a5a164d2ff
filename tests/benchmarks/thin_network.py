"""The exchange between hosts that a thin line connects: where its bytes count, not its CPU time.

    python -m tests.benchmarks.thin_network [--modes=float32,smallest] [--rate_mbit=1000] [--shard_hosts=1]

A host is a network namespace, tied by a veth pair to one bridge; what it sends and what it is sent are both shaped to
the line's rate (`tc tbf`). Shards live in some hosts, worker processes in others; one full-duplex line per host, as in
a rack of old machines. For every mode: steps a second over all workers, the share of the busiest line's rate that the
exchange used, and the limit: line rate over bytes a step, in the direction and on the side where it binds.

Needs root and `ip` and `tc` (Debian: iproute2); without them it says so and ends with exit code 0. Namespaces, bridge
and queues are removed however it ends. The last line is `RESULT {json}`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from absl import flags

from downpour.launch import entry
from tests.benchmarks import cluster, shape
from tests.benchmarks.cluster import Host
from tests.benchmarks.measure import HEADING, Measurement, as_json
from tests.benchmarks.modes import MODES

_MODES = flags.DEFINE_list("modes", list(MODES), "Ways to exchange to measure; see tests.benchmarks.modes.")
_RATE = flags.DEFINE_float("rate_mbit", 1000.0, "Line rate of a host, each way, in 10^6 bits a second.", lower_bound=1)
_SHARD_HOSTS = flags.DEFINE_integer("shard_hosts", 1, "Hosts that share the shards.", lower_bound=1, upper_bound=100)
_WORKER_HOSTS = flags.DEFINE_integer(
    "worker_hosts", 2, "Hosts, one worker process each.", lower_bound=1, upper_bound=100
)
_VARIABLES = flags.DEFINE_string("variables", str(shape.PAPER), "File that lists the model's variables.")
_SHARDS = flags.DEFINE_integer("shards", 17, "Shard processes.", lower_bound=1)
_WORKERS = flags.DEFINE_integer("workers", 4, "Emulated workers.", lower_bound=1)
_WARMUP = flags.DEFINE_float("warmup", 5.0, "Seconds of work before the window.", lower_bound=0)
_SECONDS = flags.DEFINE_float("seconds", 20.0, "Length of the window.", lower_bound=0.1)

_SUBNET = "198.18.{}.{}"  # 198.18.0.0/15 is set aside for benchmarks (RFC 2544)
_BURST_BYTES = 256 * 1024
_QUEUE_MS = 50


@dataclass(frozen=True)
class Network:
    """Hosts on one bridge.

    Attributes:
        shards: Where shards run.
        workers: Where worker processes run.
    """

    shards: tuple[Host, ...]
    workers: tuple[Host, ...]


def obstacle() -> str | None:
    """Why networks cannot be made here; None if they can."""
    missing = [tool for tool in ("ip", "tc") if not shutil.which(tool)]
    if missing:
        return f"no {' and no '.join(missing)} on this machine; install iproute2"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with network(1, 1, 1000.0):
            return None
    except ValueError as error:
        return str(error)


@contextmanager
def network(num_shard_hosts: int, num_worker_hosts: int, rate_mbit: float) -> Iterator[Network]:
    """Makes a bridge and the hosts on it; removes all of it at the end.

    Raises:
        ValueError: The kernel refuses.
    """
    tag = f"dp{os.getpid()}"[:9]  # a device's name has 15 characters at most
    third = os.getpid() % 256
    with ExitStack() as stack:
        bridge = f"{tag}br"
        stack.callback(_run, f"ip link delete {bridge}", check=False)
        _run(f"ip link add {bridge} type bridge")
        _run(f"ip address add {_SUBNET.format(third, 254)}/24 dev {bridge}")
        _run(f"ip link set {bridge} up")
        hosts = []
        for number in range(num_shard_hosts + num_worker_hosts):
            name, address = f"{tag}h{number}", _SUBNET.format(third, number + 1)
            stack.callback(_run, f"ip netns delete {name}", check=False)
            # A namespace's own devices go some time after it; the pair's other end, and so the pair, goes at once.
            stack.callback(_run, f"ip link delete {name}o", check=False)
            _add_host(name, address, bridge, rate_mbit)
            hosts.append(Host(address, ("ip", "netns", "exec", name)))
        yield Network(tuple(hosts[:num_shard_hosts]), tuple(hosts[num_shard_hosts:]))


def _add_host(name: str, address: str, bridge: str, rate_mbit: float) -> None:
    outside = f"{name}o"
    _run(f"ip netns add {name}")
    _run(f"ip link add {outside} type veth peer name line netns {name}")
    _run(f"ip link set {outside} master {bridge} up")
    _run(f"ip -n {name} address add {address}/24 dev line")
    _run(f"ip -n {name} link set line up")
    _run(f"ip -n {name} link set lo up")
    shape_it = f"root tbf rate {rate_mbit:g}mbit burst {_BURST_BYTES} latency {_QUEUE_MS}ms"
    _run(f"tc -n {name} qdisc add dev line {shape_it}")  # what it sends
    _run(f"tc qdisc add dev {outside} {shape_it}")  # what it is sent


def _run(command: str, check: bool = True) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise ValueError(f"{command!r} failed: {done.stderr.strip() or done.stdout.strip()}")


def limit(mb_one_way: float, num_hosts: int, rate_mbit: float) -> float:
    """Steps a second that the lines allow, whose bytes are spread evenly over the hosts.

    Args:
        mb_one_way: 10^6 bytes of a step, in the direction that has more of them.
        num_hosts: Of shards or of workers, whichever are fewer.
        rate_mbit: Line rate, each way.
    """
    return num_hosts * rate_mbit / 8 / mb_one_way


def measure(name: str) -> tuple[Measurement, float]:
    """A mode's measurement and its limit, in steps a second."""
    mode = MODES[name]
    num_worker_hosts = min(_WORKER_HOSTS.value, _WORKERS.value)
    with network(_SHARD_HOSTS.value, num_worker_hosts, _RATE.value) as hosts:
        load = cluster.Load(
            codec=mode.codec,
            push=mode.push,
            pull=mode.pull,
            factored=mode.factored,
            variables=Path(_VARIABLES.value),
            num_shards=_SHARDS.value,
            num_workers=_WORKERS.value,
            num_processes=num_worker_hosts,
            warmup_s=_WARMUP.value,
            seconds=_SECONDS.value,
            shard_hosts=hosts.shards,
            worker_hosts=hosts.workers,
        )
        measurement = cluster.run(load)
    fewer = min(_SHARD_HOSTS.value, num_worker_hosts)
    one_way = max(measurement.mb_sent_per_step, measurement.mb_per_step - measurement.mb_sent_per_step)
    return measurement, limit(one_way, fewer, _RATE.value)


def _main() -> None:
    unknown = sorted(set(_MODES.value) - set(MODES))
    if unknown:
        raise ValueError(f"--modes: {', '.join(unknown)} is not known; known are {', '.join(MODES)}")
    reason = obstacle()
    if reason:
        print(f"skipped: {reason}")
        return
    print(
        f"{_SHARDS.value} shards on {_SHARD_HOSTS.value} hosts, {_WORKERS.value} workers on {_WORKER_HOSTS.value}, "
        f"{_RATE.value:g} Mbit/s a host and direction\n{'':<10} {HEADING} {'limit':>7} {'of line':>8}"
    )
    result = {}
    for name in _MODES.value:
        measurement, steps = measure(name)
        share = measurement.steps_per_second / steps
        print(f"{name:<10} {measurement.row()} {steps:7.2f} {share:8.1%}", flush=True)
        result[name] = as_json(measurement, limit=round(steps, 3), share_of_line=round(share, 3))
    print(f"RESULT {json.dumps(result)}", flush=True)


def main() -> None:
    """See the module."""
    entry.run(_main, role="thin network")


if __name__ == "__main__":
    main()
