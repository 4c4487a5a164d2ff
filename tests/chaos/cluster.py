"""A job's processes, started by the commands that production runs, with proxies in between.

Workers and evaluator find shards and chief at proxies; the chief talks to the shards themselves. What dies is started
again, a server at its old port. Entered by the main thread only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from downpour.launch.job import Cluster as Counts
from downpour.launch.local.cluster import kernels_command
from downpour.launch.local.supervisor import ProcessFailed, Program, Supervisor
from downpour.launch.roles import topology
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto import parameter_server_pb2_grpc
from downpour.ps.policy.rules import Rule
from downpour.worker.chief import owner
from tests.channels import plain
from tests.chaos.proxy import Proxies

_HOST = "127.0.0.1"
_BIND_TIMEOUT_S = 180.0
_STATUS_TIMEOUT_S = 60.0
_RESTARTS = 10**6
_DEBUG = 1

Flags = dict[str, topology.FlagValue]


@dataclass
class Cluster:
    """The processes of one job.

    Attributes:
        supervisor: Starts and restarts them.
        common: Flags of chief, workers and evaluator: recipe, overrides and folder of the run.
        counts: How many there are.
        rule: What the shards compile before they start.
        scratch: Folder for arenas and port files.
        proxies: Between clients and servers; None for none.
        verbose: Whether they log every push.
        ports: Of shards and chief, by process name.
    """

    supervisor: Supervisor
    common: Flags
    counts: Counts
    rule: Rule
    scratch: Path
    proxies: Proxies | None = None
    verbose: bool = True
    ports: dict[str, int] = field(default_factory=dict)
    _commands: dict[str, list[str]] = field(default_factory=dict)

    def start(self) -> None:
        """Starts every role; shards and chief first, since the others need their addresses."""
        self.supervisor.run(Program("kernels", kernels_command(self.rule), max_restarts=0))
        own: Flags = {"die_with_parent": os.getpid(), "verbosity": _DEBUG if self.verbose else None}
        shards = [f"ps/{i}" for i in range(self.counts.num_ps)]
        for name in shards:
            self._start_server(name, own | {"arena": self.scratch / f"{name.replace('/', '-')}.arena"})
        self._wait_for_ports(shards)
        direct: Flags = {"ps": ",".join(self._address(self.ports[name]) for name in shards)}
        anew: Flags = {"overwrite": True, "job_id": owner.new_job_id()}
        self._start_server("chief", own | self.common | direct | anew)
        self._wait_for_ports(["chief"])
        where: Flags = {"ps": ",".join(map(self._way_to, shards)), "chief": self._way_to("chief")}
        for name in self.clients():
            role, _, index = name.partition("/")
            self._commands[name] = topology.command(role, int(index or 0), own | self.common | where)
            self.supervisor.start(Program(name, self._commands[name], _RESTARTS))

    def clients(self) -> list[str]:
        """Names of the processes that end by themselves when the job is done."""
        return [*(f"worker/{i}" for i in range(self.counts.num_workers)), "evaluator"]

    def command(self, name: str) -> list[str]:
        """What a process was started with."""
        return list(self._commands[name])

    def chief_address(self) -> str:
        """Of the chief itself."""
        return self._address(self.ports["chief"])

    def statuses(self) -> list[pb.StatusReply]:
        """What every shard says of itself.

        Raises:
            grpc.RpcError: One does not answer.
        """
        replies = []
        for i in range(self.counts.num_ps):
            with plain(self._address(self.ports[f"ps/{i}"])) as channel:
                stub = parameter_server_pb2_grpc.ParameterServerStub(channel)  # type: ignore[no-untyped-call]
                replies.append(stub.Status(pb.StatusRequest(), timeout=_STATUS_TIMEOUT_S, wait_for_ready=True))
        return replies

    def _way_to(self, name: str) -> str:
        """Where clients find a server."""
        port = self.ports[name]
        return self._address(self.proxies.add(name, port) if self.proxies else port)

    def _start_server(self, name: str, flags: Flags) -> None:
        role, _, index = name.partition("/")
        listen: Flags = {"host": _HOST, "port": 0, "port_file": self._port_file(name)}
        self._commands[name] = command = topology.command(role, int(index or 0), listen | flags)
        self.supervisor.start(Program(name, command, _RESTARTS, endless=role == "ps"))

    def _wait_for_ports(self, names: list[str]) -> None:
        """Waits until servers listen, and has them restarted at the same ports."""
        for name in names:
            file = self._port_file(name)
            if not self.supervisor.wait(file.exists, _BIND_TIMEOUT_S):
                raise ProcessFailed(1, f"{name} did not listen within {_BIND_TIMEOUT_S:.0f} s")
            self.ports[name] = port = int(file.read_text())
            command = [f"--port={port}" if word == "--port=0" else word for word in self._commands[name]]
            self._commands[name] = command
            self.supervisor.change_command(name, command)

    def _port_file(self, name: str) -> Path:
        return self.scratch / f"{name.replace('/', '-')}.port"

    def _address(self, port: int) -> str:
        return f"{_HOST}:{port}"


class Sessions:
    """Remembers every session that a supervisor has begun, to find what is left of them."""

    def __init__(self) -> None:
        self._leaders: set[int] = set()

    def note(self, pids: Mapping[str, int]) -> None:
        """Every program is the leader of its own session."""
        self._leaders |= set(pids.values())

    def left(self) -> list[str]:
        """Living processes of those sessions, for a message."""
        found = []
        for process in psutil.process_iter(["pid", "status", "cmdline"]):
            try:
                mine = os.getsid(process.pid) in self._leaders
            except ProcessLookupError:
                continue
            if mine and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {' '.join(process.info['cmdline'] or [])[:200]}")
        return found
