"""What mutual TLS costs the exchange, and what strangers who knock cost it.

    python -m tests.benchmarks.tls [--rounds=3] [--seconds=10]

The exchange of `tests.benchmarks.exchange` in plain text, with TLS, and with TLS while strangers knock
(`tests.benchmarks.knocking`): 10,000 connections that say nothing, all at once, at one shard, and ten handshakes a
second that fail. One after the other, several rounds, so that whatever else the machine does hits all of them; the
ratios are medians over rounds of what was measured side by side.

Everything runs on this machine, so a ratio shares out the cost of both ends of every connection, and of the strangers
themselves. The cipher is read off a server's answer on the wire. The last line is `RESULT {json}`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from downpour.launch import certs
from downpour.launch.roles import entry
from downpour.proto import parameter_server_pb2 as pb
from downpour.ps.layout import Layout
from downpour.worker.exchange.clients import ShardClient
from tests.benchmarks import cluster, shape
from tests.benchmarks.measure import HEADING, Measurement
from tests.benchmarks.modes import MODES
from tests.benchmarks.processes import Child, Processes

_MODES = flags.DEFINE_list(
    "modes", ["float32", "exact", "best"], "How to exchange; modes of tests.benchmarks.exchange."
)
_VARIABLES = flags.DEFINE_string("variables", str(shape.PAPER), "File that lists the model's variables.")
_SHARDS = flags.DEFINE_integer("shards", 17, "Shard processes.", lower_bound=1)
_WORKERS = flags.DEFINE_integer("workers", 4, "Emulated workers.", lower_bound=1)
_WARMUP = flags.DEFINE_float("warmup", 3.0, "Seconds of work before the window.", lower_bound=0)
_SECONDS = flags.DEFINE_float("seconds", 10.0, "Length of the window.", lower_bound=0.1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "How often each is measured.", lower_bound=1)
_SILENT = flags.DEFINE_integer("silent", 10_000, "Connections that say nothing.", lower_bound=1)

_PLAIN, _TLS, _STRANGERS = "plain text", "mTLS", "mTLS, strangers"
_CIPHERS = {0x1301: "TLS_AES_128_GCM_SHA256", 0x1302: "TLS_AES_256_GCM_SHA384", 0x1303: "TLS_CHACHA20_POLY1305_SHA256"}


class Strangers:
    """Knock while a window lasts.

    Attributes:
        seen: What the shards counted of them, all shards together.
        knocked: What they did.
    """

    def __init__(self, processes: Processes, folder: Path) -> None:
        self._processes, self._folder = processes, folder
        self.seen = dict.fromkeys((field.name for field in pb.StatusReply.Guests.DESCRIPTOR.fields), 0)
        self.knocked: dict[str, float] = {}

    def knocking(
        self, shards: Sequence[Child], workers: Sequence[Child], addresses: Sequence[str]
    ) -> AbstractContextManager[None]:
        """For `cluster.run`: the process is started before the window, and waits for it."""
        command = [
            *(sys.executable, "-m", "tests.benchmarks.knocking", f"--die_with_parent={os.getpid()}"),
            *(f"--addresses={','.join(addresses)}", f"--foreign={self._folder / 'foreign' / 'worker'}"),
            f"--silent={_SILENT.value}",
        ]
        strangers = self._processes.start("strangers", command)
        assert strangers.read(60) == "ready"
        return self._window(strangers, addresses, self._guests(addresses))

    @contextmanager
    def _window(self, strangers: Child, addresses: Sequence[str], before: dict[str, int]) -> Iterator[None]:
        strangers.write("begin")
        yield
        strangers.write("end")
        self.knocked = json.loads(strangers.read(60))
        after = self._guests(addresses)
        self.seen = {name: after[name] - before[name] for name in after}

    def _guests(self, addresses: Sequence[str]) -> dict[str, int]:
        total = dict.fromkeys(self.seen, 0)
        for i, address in enumerate(addresses):
            client = ShardClient(i, address, Layout((), 0, ()), 30, certs.security_of("chief", self._folder / "certs"))
            guests = client.status().guests
            client.close()
            for name in total:
                total[name] += getattr(guests, name)
        return total


def run(folder: Path, processes: Processes) -> dict[str, Any]:
    """Measures everything, round by round; the RESULT."""
    certs.make("benchmark", folder / "certs")
    certs.make("benchmark", folder / "foreign")
    strangers = Strangers(processes, folder)
    measured: dict[tuple[str, str], list[Measurement]] = {}
    print(f"{_WORKERS.value} workers, {_SHARDS.value} shards, {_ROUNDS.value} rounds\n{'':<26} {HEADING}")
    for _ in range(_ROUNDS.value):
        for mode in _MODES.value:
            plain = _load(mode)
            secure = replace(plain, certificates=folder / "certs")
            for how, load in ((_PLAIN, plain), (_TLS, secure), (_STRANGERS, secure)):
                found = cluster.run(load, strangers.knocking) if how == _STRANGERS else cluster.run(load)
                measured.setdefault((mode, how), []).append(found)
                print(f"{mode + ', ' + how:<26} {found.row()}", flush=True)
    result: dict[str, Any] = {"cipher": cipher(folder), "aes_gcm_gb_per_second": aes_gb_per_second()}
    for mode in _MODES.value:
        result |= _of_mode(mode, *(measured[mode, how] for how in (_PLAIN, _TLS, _STRANGERS)))
    return result | {"strangers_counted": strangers.seen, "strangers": strangers.knocked}


def _load(name: str) -> cluster.Load:
    mode = MODES[name]
    return cluster.Load(
        codec=mode.codec,
        push=mode.push,
        pull=mode.pull,
        factored=mode.factored,
        variables=Path(_VARIABLES.value),
        num_shards=_SHARDS.value,
        num_workers=_WORKERS.value,
        num_processes=_WORKERS.value,  # as in a job
        warmup_s=_WARMUP.value,
        seconds=_SECONDS.value,
    )


def _of_mode(
    mode: str, plain: list[Measurement], secure: list[Measurement], knocked: list[Measurement]
) -> dict[str, float]:
    def ratio(these: list[Measurement], those: list[Measurement], of: Callable[[Measurement], float]) -> float:
        return round(float(np.median([of(a) / of(b) for a, b in zip(these, those, strict=True)])), 3)

    def speed(one: Measurement) -> float:
        return one.steps_per_second

    def core_ms(one: Measurement) -> float:
        return one.shard_core_ms + one.worker_core_ms

    return {
        f"{mode}_steps_per_second_plain": round(float(np.median(list(map(speed, plain)))), 3),
        f"{mode}_steps_per_second_tls": round(float(np.median(list(map(speed, secure)))), 3),
        f"{mode}_ratio_tls": ratio(secure, plain, speed),
        f"{mode}_ratio_strangers": ratio(knocked, secure, speed),
        f"{mode}_core_ms_ratio_tls": ratio(secure, plain, core_ms),  # of CPU time a step, shards and workers
        f"{mode}_core_ms_ratio_strangers": ratio(knocked, secure, core_ms),
        f"{mode}_mb_per_step": round(float(np.median([one.mb_per_step for one in secure])), 1),
    }


def cipher(folder: Path) -> str:
    """What a worker and a shard agree on: read from the shard's first bytes, on their way through a relay."""
    load = replace(_load("best"), num_shards=1, certificates=folder / "certs")
    with Processes(folder) as processes, socket.create_server(("127.0.0.1", 0)) as listener:
        (folder / "cipher").mkdir(exist_ok=True)
        _, (address,) = cluster.start_shards(processes, folder / "cipher", load)
        first: list[bytes] = []
        threading.Thread(target=_relay, args=(listener, address, first), daemon=True).start()
        relay = f"127.0.0.1:{listener.getsockname()[1]}"
        client = ShardClient(0, relay, Layout((), 0, ()), 30, certs.security_of("worker", folder / "certs"))
        client.status()
        client.close()
    # A record (5 bytes) with a handshake message (4) that is ServerHello: version (2), random (32), session id, cipher.
    hello = first[0]
    assert hello[0] == 22 and hello[5] == 2, hello[:10]
    at = 44 + hello[43]
    number = int.from_bytes(hello[at : at + 2], "big")
    return _CIPHERS.get(number, f"0x{number:04x}")


def _relay(listener: socket.socket, address: str, first: list[bytes]) -> None:
    host, _, port = address.rpartition(":")
    near, _ = listener.accept()
    far = socket.create_connection((host, int(port)))

    def pump(source: socket.socket, sink: socket.socket, seen: list[bytes]) -> None:
        while data := source.recv(1 << 16):
            seen.append(data)
            sink.sendall(data)
        with suppress(OSError):  # the other direction has ended already
            sink.shutdown(socket.SHUT_WR)

    threading.Thread(target=pump, args=(near, far, []), daemon=True).start()
    pump(far, near, first)


def aes_gb_per_second() -> float | None:
    """AES-128-GCM of one core of this machine in 16 KB records, as OpenSSL measures it; None without openssl."""
    if not shutil.which("openssl"):
        return None
    command = ["openssl", "speed", "-seconds", "1", "-bytes", "16384", "-evp", "aes-128-gcm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"([\d.]+)k\s*$", done.stdout)
    return round(float(found[1]) / 1e6, 2) if found else None


def _main() -> None:
    with tempfile.TemporaryDirectory() as folder, Processes(Path(folder)) as processes:
        result = run(Path(folder), processes)
    print(f"RESULT {json.dumps(result)}", flush=True)


def main() -> None:
    """See the module."""
    entry.run(_main, role="tls")


if __name__ == "__main__":
    main()
