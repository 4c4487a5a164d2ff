"""The processes of a run on this machine: their commands, their ports, and the order of their start.

Entered by the thread of the supervisor only.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from google.protobuf import json_format

from downpour.launch.local import progress, targets
from downpour.launch.local.config import RunConfig
from downpour.launch.local.supervisor import ProcessFailed, Program, Supervisor
from downpour.launch.observe.page import ADDRESS_FILE
from downpour.launch.roles import topology
from downpour.launch.roles.topology import FlagValue
from downpour.proto.chief_pb2 import ProgressReply
from downpour.ps.policy.named import to_message
from downpour.ps.policy.rules import Rule
from downpour.worker.chief import owner
from downpour.worker.exchange.clients import ChiefClient

_HOST = "127.0.0.1"
_BIND_TIMEOUT_S = 180.0  # the chief imports TensorFlow and builds its model first
_PREPARED = "prepared.npz"  # in the scratch folder, from the preflight to the chief


@dataclass
class LocalCluster:
    """The processes of a run.

    Attributes:
        supervisor: Starts and restarts them.
        config: Configuration of the run.
        scratch: Folder for the shards' memory and files of the start.
        ports: Ports of shards and chief, by process name.
        page: URL of the chief's page; "" for none.
        trained: Whether a step of this run has been reported.
        unsaved: Whether only the shards' memory has the last steps.
    """

    supervisor: Supervisor
    config: RunConfig
    scratch: Path
    ports: dict[str, int] = field(default_factory=dict)
    page: str = ""
    trained: bool = False
    unsaved: bool = False

    def prepare(self) -> str:
        """Compiles the kernels of the job's rule while another process checks the job; returns the layout's table."""
        config, out = self.config, self.scratch / "layout.txt"
        values: dict[str, FlagValue] = {"recipe": config.recipe, "set": config.overrides, "out": out}
        values |= {"preflight": True, "evaluator": config.evaluator, "prepared_out": self.scratch / _PREPARED}
        values |= {"verbosity": config.verbosity, **self._own_flags()}
        programs = {
            "kernels": kernels_command(config.job.rule),
            "preflight": preflight_command(values),
        }
        for name, command in programs.items():
            self.supervisor.start(Program(name, command, max_restarts=0))
        self.supervisor.wait(lambda: all(self.supervisor.exit_code(name) is not None for name in programs))
        return out.read_text()

    def start(self) -> None:
        """Starts every role; shards and chief first, since the others need their addresses."""
        config = self.config
        if self._metrics:
            where_served = {name: f"{targets.HOST}:{port}" for name, port in self._metrics.items()}
            targets.write(config.folder, where_served)
        shards = {f"ps/{i}": self._shard_flags(i) for i in range(config.job.cluster.num_ps)}
        self._start_servers("ps", shards)
        where: dict[str, FlagValue] = {"recipe": config.recipe, "set": config.overrides, "run_dir": config.folder}
        where |= {**self._own_flags(), "ps": ",".join(self._address(name) for name in shards)}
        source = config.source.flags() if config.source else {"prepared": self.scratch / _PREPARED}
        chief = where | {"evaluator": config.evaluator, **source, **config.checkpoints.flags()}
        chief["trace"] = config.trace_steps or None
        chief["job_id"] = owner.new_job_id()  # a restarted chief continues the same run
        if config.page_port is not None:
            chief["page_port"] = config.page_port
        self._start_servers("chief", {"chief": chief})
        where["chief"] = self._address("chief")
        for i in range(config.job.cluster.num_workers):
            observed = targets.flags(self._metrics, f"worker/{i}")
            self.supervisor.start(Program(f"worker/{i}", topology.command("worker", i, where | observed)))
        for i, name in enumerate(self._evaluators):
            observed = targets.flags(self._metrics, name)
            self.supervisor.start(Program(name, topology.command("evaluator", i, where | observed)))

    @property
    def _evaluators(self) -> list[str]:
        return targets.evaluators(self.config.job) if self.config.evaluator else []

    @cached_property
    def _metrics(self) -> dict[str, int]:
        """Ports of the processes' metrics, by process name; none unless they are asked for."""
        job, first = self.config.job, self.config.metrics_port
        return targets.ports(targets.processes(job, evaluator=self.config.evaluator), first) if first else {}

    def all_shards_run(self) -> bool:
        """Whether every shard is running, to write its part of a checkpoint."""
        running = self.supervisor.pids()
        return all(f"ps/{i}" in running for i in range(self.config.job.cluster.num_ps))

    def record(self, reply: ProgressReply) -> None:
        """Records the progress that the chief reports."""
        self.trained |= reply.step > 0 and reply.state != ProgressReply.STATE_PREPARING

    def clients(self) -> list[str]:
        """Names of the processes that end by themselves when the job is done."""
        workers = [f"worker/{i}" for i in range(self.config.job.cluster.num_workers)]
        return workers + self._evaluators

    def chief(self, timeout_s: float) -> ChiefClient:
        """Returns a client of this cluster's chief."""
        return ChiefClient(self._address("chief"), timeout_s)

    def watcher(self) -> progress.ChiefWatcher:
        """Returns a watcher of this cluster's chief."""
        return progress.ChiefWatcher(self._address("chief"))

    def _shard_flags(self, index: int) -> dict[str, FlagValue]:
        return {"arena": self.scratch / f"shard-{index}.arena", **self._own_flags()}

    def _own_flags(self) -> dict[str, FlagValue]:
        """Flags of every process: that it ends with this one, and the format of its log."""
        log_format = self.config.log_format
        return {"die_with_parent": os.getpid(), "log_format": log_format if log_format != "text" else None}

    def _start_servers(self, role: str, servers: Mapping[str, dict[str, FlagValue]]) -> None:
        """Starts processes that listen, waits for their ports, and sets the same ports for restarts."""

        def command(name: str, port: int) -> list[str]:
            index = int(name.partition("/")[2] or 0)
            listen: dict[str, FlagValue] = {"host": _HOST, "port": port, "port_file": self._port_file(name)}
            return topology.command(role, index, listen | servers[name] | targets.flags(self._metrics, name))

        for name in servers:
            self.supervisor.start(Program(name, command(name, 0), endless=role == "ps"))
        for name in servers:
            self.ports[name] = self._wait_for_port(name)
            if "page_port" in servers[name]:
                with contextlib.suppress(OSError):  # the chief could not write it: the disk is full
                    self.page = (self.config.folder / ADDRESS_FILE).read_text().strip()
                    servers[name]["page_port"] = self.page.rpartition(":")[2]
            self.supervisor.change_command(name, command(name, self.ports[name]))

    def _wait_for_port(self, name: str) -> int:
        file = self._port_file(name)
        if not self.supervisor.wait(file.exists, _BIND_TIMEOUT_S):
            logs = self.config.folder / "logs"
            raise ProcessFailed(1, f"{name} did not listen within {_BIND_TIMEOUT_S:.0f} s; see {logs}")
        return int(file.read_text())

    def _port_file(self, name: str) -> Path:
        return self.scratch / f"{name.replace('/', '-')}.port"

    def _address(self, name: str) -> str:
        return f"{_HOST}:{self.ports[name]}"


def kernels_command(rule: Rule) -> list[str]:
    """The command of the process that compiles a rule's kernels, so that the shards need not all do it at once."""
    text = json_format.MessageToJson(to_message(rule), indent=None)
    return [sys.executable, "-m", "downpour.ps.apply.kernels", f"--rule={text}"]


def preflight_command(values: Mapping[str, FlagValue]) -> list[str]:
    """The command of the process that builds the model, reads a batch and traces the step before any role starts."""
    return [sys.executable, "-m", "downpour.launch.layout_table", *topology.flag_arguments(values)]
