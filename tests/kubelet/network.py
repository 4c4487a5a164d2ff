"""A network of pods: one namespace each on one bridge, whose other end is the node, where the kubelet is.

Needs root and `ip`. Addresses are never used twice, as a pod that comes back has another one.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

_SUBNET = f"198.19.{os.getpid() % 256}.{{}}"  # 198.18.0.0/15 is set aside for tests (RFC 2544)
_NODE = 254


class Network:
    """A bridge; made by `network`.

    Attributes:
        node: Address of the node, as pods reach it.
    """

    def __init__(self) -> None:
        self.node = _SUBNET.format(_NODE)
        self._tag = f"dk{os.getpid() % 100_000}"  # a device's name has 15 characters at most
        self._bridge = f"{self._tag}br"
        self._pods: dict[str, str] = {}
        self._made = 0
        run(f"ip link add {self._bridge} type bridge")
        run(f"ip address add {self.node}/24 dev {self._bridge}")
        run(f"ip link set {self._bridge} up")

    def add(self) -> tuple[str, str]:
        """Makes a namespace; its name and its address."""
        self._made += 1
        assert self._made < _NODE, "no address is left"
        name, address = f"{self._tag}n{self._made}", _SUBNET.format(self._made)
        self._pods[name] = address
        run(f"ip netns add {name}")
        run(f"ip link add {name}o type veth peer name eth0 netns {name}")
        run(f"ip link set {name}o master {self._bridge} up")
        run(f"ip -n {name} address add {address}/24 dev eth0")
        run(f"ip -n {name} link set eth0 up")
        run(f"ip -n {name} link set lo up")
        return name, address

    def remove(self, name: str) -> None:
        """Takes a namespace away; processes in it keep what they have of it, but reach nobody."""
        # A namespace's own devices go some time after it; the pair's other end, and so the pair, goes at once.
        run(f"ip link delete {name}o", check=False)
        run(f"ip netns delete {name}", check=False)
        self._pods.pop(name, None)

    def close(self) -> None:
        """Removes everything."""
        for name in list(self._pods):
            self.remove(name)
        run(f"ip link delete {self._bridge}", check=False)


@contextmanager
def network() -> Iterator[Network]:
    """A network without pods; whatever was added is removed at the end."""
    made = Network()
    try:
        yield made
    finally:
        made.close()


def run(command: str, check: bool = True) -> None:
    """Runs a command of the system."""
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise OSError(f"{command!r} failed: {done.stderr.strip() or done.stdout.strip()}")
