"""Serves one parameter-server shard. Needs no TensorFlow.

python -m downpour.launch.ps --index=0 --port=2222 --arena=/dev/shm/shard-0.arena

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
from pathlib import Path

from absl import flags, logging

from downpour.launch.roles import ending, entry, security, topology
from downpour.proto.http2.sockets import host_and_port
from downpour.proto.security.config import Security
from downpour.ps.service.server import Server
from downpour.worker.exchange.clients import ChiefClient

topology.define_flags("ps")

_ASK_EVERY_S, _ANSWER_WITHIN_S = 0.25, 2.0


def main() -> None:
    """Serves until the job is over, or until SIGTERM or SIGINT."""
    entry.run(_run, role="ps")


def _run() -> int:
    where, index = topology.from_flags("ps")
    host, port = topology.listen_address("ps", where, index)
    arena = flags.FLAGS["arena"].value
    security.prepare_server()
    mine = security.from_flags("ps")
    server = Server(index, host, port, Path(arena) if arena else None, mine)
    gc.freeze()  # modules stay; to scan them for garbage takes 20 ms, in the middle of a call
    end = _End(server, index, where.chief, mine)
    ending.on_sigterm(end.leave)
    signal.signal(signal.SIGINT, lambda *_: server.stop_soon())
    logging.info("listens on %s", host_and_port(host, server.port))
    topology.write_port(server.port)
    with security.health(lambda: server.ready):
        server.wait()
    logging.info("stopped")
    return end.code


class _End:
    """Ends a shard at SIGTERM.

    Attributes:
        code: Exit code once the server has stopped.
    """

    def __init__(self, server: Server, index: int, chief: str, mine: Security) -> None:
        self.code = entry.OK
        self._server, self._index, self._chief, self._security = server, index, chief, mine

    def leave(self) -> None:
        """Stops the server, after a checkpoint if a chief is known and the shard holds parameters."""
        if self._chief and self._server.ready:
            self._wait_for_checkpoint()
        if self._chief:
            self.code = entry.TERMINATED
        self._server.stop_soon()

    def _wait_for_checkpoint(self) -> None:
        begin, incarnation = time.monotonic(), secrets.randbits(63)
        grace_s = float(flags.FLAGS["grace_s"].value or 0.0)
        chief = ChiefClient(self._chief, grace_s, self._security)
        pause = threading.Event()
        while (left := begin + grace_s - time.monotonic()) > 0:
            if chief.leaving(self._index, incarnation, min(left, _ANSWER_WITHIN_S)):
                logging.info("leaves; a checkpoint was written within %.1f s", time.monotonic() - begin)
                return
            pause.wait(min(left, _ASK_EVERY_S))
        logging.warning("leaves without a checkpoint: the chief wrote none within %.0f s", grace_s)


if __name__ == "__main__":
    main()
