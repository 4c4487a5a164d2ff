"""Strangers that knock at shards until they are told to end: a process of its own, started by `tests.benchmarks.tls`.

At once so many connections to the first shard that say nothing, as its system allows; then, again and again, at every
shard in turn, a TLS handshake without a certificate, one with a certificate of another CA, and plain text.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import sys
import threading
import time
from pathlib import Path

from absl import flags

from downpour.launch.roles import entry
from tests.launch.strangers import SilentConnections

_ADDRESSES = flags.DEFINE_list("addresses", [], "Of the shards.")
_FOREIGN = flags.DEFINE_string("foreign", "", "Folder with a certificate of another CA.")
_SILENT = flags.DEFINE_integer("silent", 10_000, "Connections that say nothing.")
_PER_SECOND = flags.DEFINE_float("per_second", 10.0, "Other strangers a second.")


def contexts(foreign: Path) -> list[ssl.SSLContext]:
    """Without a certificate, and with a foreign one; made once, since strangers share the machine with the job."""
    made = [ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) for _ in range(2)]
    for context in made:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
    made[1].load_cert_chain(foreign / "tls.crt", foreign / "tls.key")
    return made


def knock(address: str, number: int, ways: list[ssl.SSLContext]) -> None:
    """One stranger; which kind, its number says."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as plain:
        if number % 3 == 0:
            plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            plain.recv(100)
            return
        with ways[number % 3 == 1].wrap_socket(plain) as secure:
            secure.recv(100)  # in TLS 1.3 the refusal comes after the client's part


def _main() -> None:
    ending = threading.Event()
    addresses, ways = _ADDRESSES.value, contexts(Path(_FOREIGN.value))
    print("ready", flush=True)
    sys.stdin.readline()
    threading.Thread(target=lambda: (sys.stdin.readline(), ending.set()), daemon=True).start()
    begin, others = time.monotonic(), 0
    with SilentConnections(int(addresses[0].rpartition(":")[2]), _SILENT.value) as silent:
        opened_s = time.monotonic() - begin
        while not ending.wait(1 / _PER_SECOND.value):
            with contextlib.suppress(OSError):
                knock(addresses[others % len(addresses)], others, ways)
            others += 1
        # Of one core, which strangers on machines of their own would not take.
        share = time.process_time() / (time.monotonic() - begin)
        told = {"silent_open": silent.num_open(), "opened_s": opened_s, "others": others, "core_share": share}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    entry.run(_main, role="strangers")
