"""Serves one parameter-server shard. Needs no TensorFlow.

python -m downpour.launch.ps --index=0 --port=2222 --arena=/dev/shm/shard-0.arena
"""

from __future__ import annotations

import signal
from pathlib import Path

from absl import flags, logging

from downpour.launch import entry, security, topology
from downpour.ps.server import Server

topology.define_flags("ps")


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    entry.run(_run, role="ps")


def _run() -> None:
    where, index = topology.from_flags("ps")
    host, port = topology.listen_address("ps", where, index)
    arena = flags.FLAGS["arena"].value
    security.prepare_server()
    server = Server(index, host, port, Path(arena) if arena else None, security.from_flags("ps"))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop_soon())
    logging.info("listens on %s:%d", host, server.port)
    topology.write_port(server.port)
    with security.health(lambda: server.ready):
        server.wait()
    logging.info("stopped")


if __name__ == "__main__":
    main()
