"""Hosts for tests and benchmarks: network namespaces on one bridge, each with a line of its own.

A host is a network namespace, tied by a veth pair to the bridge; what it sends and what it is sent are both shaped to
the line's rate (`tc tbf`). Needs root and `ip` and `tc` (Debian: iproute2). Namespaces, bridge and queues are removed
however the block ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

_SUBNET = "198.18.{}.{}"  # 198.18.0.0/15 is set aside for benchmarks (RFC 2544)
LOOPBACK = "127.0.0.1"
_BURST_BYTES = 256 * 1024
_QUEUE_MS = 50
_NEIGHBOURS = Path("/proc/sys/net/ipv4/neigh/default")


@dataclass(frozen=True)
class Host:
    """Where processes run: its address, and what to put before a command to run it there."""

    address: str = LOOPBACK
    prefix: tuple[str, ...] = ()


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
        stack.enter_context(_room_for_neighbours(num_shard_hosts + num_worker_hosts + 1))
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


@contextmanager
def _room_for_neighbours(num_hosts: int) -> Iterator[None]:
    """Lets the kernel remember who has which address, of every host for every other; as it was before afterwards.

    All namespaces share one table, of 1,024 entries by default. When it is full, hosts lose each other: "No
    route to host", connections that break off.
    """
    before = {file: file.read_text() for file in sorted(_NEIGHBOURS.glob("gc_thresh*"))}
    needed = 2 * num_hosts**2
    try:
        # From the highest on: no threshold may be above the next.
        for file in sorted(before, reverse=True) if needed > int(min(before.values(), key=int, default="0")) else ():
            file.write_text(f"{max(needed, int(before[file]))}\n")
        yield
    finally:
        for file, value in before.items():
            file.write_text(value)


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
