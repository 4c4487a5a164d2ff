"""Serves one parameter-server shard. Needs no TensorFlow.

    downpour ps --index=0 --port=2222 --arena=/dev/shm/shard-0.arena

It ends with exit code 0 when the chief stops it at the end of the job. At SIGTERM it ends with 0, too, unless `--chief`
or TF_CONFIG names the chief: then it first requests a checkpoint from the chief, serves until that is written or
`--grace_s` has passed, and ends with 143, to be restarted on another machine. A second SIGTERM ends it at once.
"""

from __future__ import annotations

import gc
import secrets
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from absl import logging

from downpour.launch.observe.metrics.shard import metrics_of_shard
from downpour.launch.roles import ending, entry, metrics, role_flags, security, topology
from downpour.launch.roles.command_line import Syntax
from downpour.launch.roles.config import Access, Listening
from downpour.proto.http2.sockets import host_and_port
from downpour.ps.service.server import ShardServer
from downpour.worker.exchange.clients import ChiefClient

SYNTAX = Syntax(
    shown="index host port arena chief grace_s group_commit tls token_file health_port metrics_port log_format "
    "listen_in_plain_text_on_the_network",
)
_ASK_EVERY_S, _ANSWER_WITHIN_S = 0.25, 2.0


@dataclass(frozen=True)
class ShardConfig:
    """Configuration of one shard.

    Attributes:
        index: Index of the shard.
        listening: Where it listens.
        arena: File with its state; None for memory that ends with the process.
        chief: `host:port` of the chief that is asked for a checkpoint at SIGTERM; "" for none.
        grace_s: Seconds to wait for that checkpoint.
        access: Identity, access, health port and metrics port.
        group_commit: Whether pushes may be delayed so that others are applied with them, where processors are short.
    """

    index: int
    listening: Listening = field(default_factory=Listening)
    arena: Path | None = None
    chief: str = ""
    grace_s: float = 20.0
    access: Access = field(default_factory=Access)
    group_commit: bool = True


def main() -> None:
    """Serves until the job is over, or until SIGTERM or SIGINT."""
    define()
    entry.run(lambda: run(from_flags()), role="ps", syntax=SYNTAX)


def define() -> None:
    """Defines the flags."""
    role_flags.define("ps")


def from_flags() -> ShardConfig:
    """Returns the configuration of the command line."""
    where, index = role_flags.cluster("ps")
    listening = role_flags.listening("ps", where, index)
    arena, grace_s = role_flags.value("arena"), float(role_flags.value("grace_s") or 0.0)
    return ShardConfig(
        index,
        listening,
        Path(arena) if arena else None,
        where.chief,
        grace_s,
        role_flags.access("ps"),
        bool(role_flags.value("group_commit")),
    )


def run(config: ShardConfig) -> int:
    """Serves a shard until it is stopped; returns the exit code."""
    host, port = config.listening.host, config.listening.port
    security.prepare_server()
    access, group_commit = config.access, config.group_commit
    server = ShardServer(config.index, host, port, config.arena, access.security, group_commit=group_commit)
    gc.freeze()  # modules stay; to scan them for garbage takes 20 ms, in the middle of a call
    end = _End(server, config)
    ending.on_sigterm(end.leave)
    signal.signal(signal.SIGINT, lambda *_: server.stop_soon())
    logging.info("listens on %s", host_and_port(host, server.port))
    observed = metrics.serve(access, metrics_of_shard(server.status, server.times, config.arena))
    with security.health(access.health_port, lambda: server.ready), observed:
        topology.write_port(config.listening.port_file, server.port)
        server.wait()
    if end.code == entry.OK:
        entry.conclude("stopped")
    else:  # what was said when it was told to end is the message
        logging.info("stopped")
    return end.code


class _End:
    """Ends a shard at SIGTERM.

    Attributes:
        code: Exit code once the server has stopped.
    """

    def __init__(self, server: ShardServer, config: ShardConfig) -> None:
        self.code = entry.OK
        self._server, self._config = server, config

    def leave(self) -> None:
        """Stops the server, after a checkpoint if a chief is known and the shard holds parameters."""
        if self._config.chief and self._server.ready:
            self._wait_for_checkpoint()
        if self._config.chief:
            self.code = entry.TERMINATED
        self._server.stop_soon()

    def _wait_for_checkpoint(self) -> None:
        begin, incarnation = time.monotonic(), secrets.randbits(63)
        grace_s = self._config.grace_s
        chief = ChiefClient(self._config.chief, grace_s, self._config.access.security)
        pause = threading.Event()
        while (left := begin + grace_s - time.monotonic()) > 0:
            if chief.leaving(self._config.index, incarnation, min(left, _ANSWER_WITHIN_S)):
                entry.conclude("stopping; a checkpoint was written within %.1f s", time.monotonic() - begin)
                return
            pause.wait(min(left, _ASK_EVERY_S))
        words = "stopping without a checkpoint: the chief wrote none within %.0f s"
        entry.conclude(words, grace_s, level=logging.WARNING)


if __name__ == "__main__":
    main()
