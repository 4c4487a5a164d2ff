"""The one description of a cluster, and the command of every process in it.

Local emulation, manifests and tests all start roles through `command`. Every role computes the cluster and its own
index by `cluster_of`, from its flags (`downpour.launch.roles.role_flags`) or from TF_CONFIG, as a Kubeflow TFJob sets
it. Imports only what a shard has installed.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from downpour import files

if TYPE_CHECKING:
    from downpour.launch.job import Job

ROLES = ("ps", "worker", "chief", "evaluator")
SERVERS, CLIENTS = ("ps", "chief"), ("worker", "chief", "evaluator")  # those that listen; those that know the job
INDEXED = ("ps", "worker", "evaluator")  # those of which there may be several

FlagValue = str | int | float | Path | bool | Iterable[str] | None


@dataclass(frozen=True)
class Topology:
    """Addresses and numbers of a cluster's processes.

    Attributes:
        ps: `host:port` of every shard, in order.
        chief: `host:port` of the chief.
        num_workers: Workers.
        evaluator: Whether there is an evaluator.
    """

    ps: tuple[str, ...]
    chief: str
    num_workers: int
    evaluator: bool = True

    def __post_init__(self) -> None:
        for address in (*self.ps, *([self.chief] if self.chief else [])):
            _check_address(address)
        repeated = sorted({address for address in self.ps if self.ps.count(address) > 1})
        if repeated:
            raise ValueError(f"two shards have the address {repeated[0]}; give every shard its own")

    def address(self, role: str, index: int) -> str:
        """Address of a role that listens, `ps` or `chief`."""
        return self.chief if role == "chief" else self.ps[index]

    def flags(self) -> dict[str, FlagValue]:
        """Flags that describe this cluster to a worker, chief or evaluator."""
        return {"ps": ",".join(self.ps), "chief": self.chief}


def command(role: str, index: int, values: Mapping[str, FlagValue], python: str = sys.executable) -> list[str]:
    """The command line of one process, exactly as production runs it.

    Args:
        role: One of `ROLES`.
        index: Index in its role.
        values: Flags by name. None and "" are left out, True becomes `--name`, False `--noname`, a list one flag
            per entry.
        python: Interpreter.
    """
    assert role in ROLES, role
    at = [f"--index={index}"] if role in ("ps", "worker") or index else []
    return [python, "-m", f"downpour.launch.{role}", *at, *flag_arguments(values)]


def process_name(role: str, index: int, num_evaluators: int = 1) -> str:
    """Name of a process in logs: `worker/3`; an evaluator has its index only where there are several."""
    return f"{role}/{index}" if role in ("ps", "worker") or (role == "evaluator" and num_evaluators > 1) else role


def flag_arguments(values: Mapping[str, FlagValue]) -> list[str]:
    """Formats flags as `command` describes."""
    arguments: list[str] = []
    for name, value in values.items():
        if isinstance(value, bool):
            arguments.append(f"--{name}" if value else f"--no{name}")
        elif isinstance(value, str | int | float | Path):
            arguments += [f"--{name}={value}"] if value != "" else []
        elif value is not None:
            arguments += [f"--{name}={one}" for one in value]
    return arguments


def cluster_of(
    role: str,
    ps: Sequence[str] = (),
    chief: str = "",
    index: int | None = None,
    *,
    evaluator: bool = True,
    tf_config: str = "",
    job: Job | None = None,
) -> tuple[Topology, int]:
    """Returns the cluster and the index of this process in its role.

    Args:
        role: Role of this process.
        ps: `host:port` of every shard. Without shards, TF_CONFIG describes the cluster of a client that also lacks
            `chief`, and of a server.
        chief: `host:port` of the chief. For a shard it is only the chief to ask for a checkpoint at SIGTERM.
        index: Index of this process; by default that in TF_CONFIG, else 0.
        evaluator: Whether there is an evaluator.
        tf_config: Text of the environment variable TF_CONFIG.
        job: The job, for its number of workers. A shard has none; its cluster is empty unless TF_CONFIG describes one.

    Raises:
        ValueError: Neither addresses nor TF_CONFIG describe the cluster, or they are invalid.
    """
    if is_described(role, ps, chief) or not tf_config:
        if role in CLIENTS:
            _check_given(role, ps, chief, index)
        topology, index = Topology(tuple(ps), chief, job.cluster.num_workers if job else 0), index or 0
    else:
        topology, at, place = from_tf_config(tf_config)
        if at != role:
            raise ValueError(f"TF_CONFIG says task type {at!r}, but this process is started as {role!r}")
        index = place if index is None else index
    return replace(topology, chief=chief or topology.chief, evaluator=evaluator), index


def is_described(role: str, ps: Sequence[str], chief: str) -> bool:
    """Whether addresses describe the cluster, rather than TF_CONFIG."""
    return bool(ps or (role in CLIENTS and chief))


def check_counts(topology: Topology, job: Job, role: str = "", index: int = 0) -> None:
    """Raises `ValueError` when cluster and job differ in numbers of processes, or this one's index is too high."""
    for key, given, wanted in (
        ("cluster.num_ps", len(topology.ps), job.cluster.num_ps),
        ("cluster.num_workers", topology.num_workers, job.cluster.num_workers),
    ):
        if given != wanted:
            raise ValueError(f"the cluster has {given} but the job's {key} is {wanted}; add --set={key}={given}")
    most = {"worker": job.cluster.most_workers, "evaluator": job.cluster.num_evaluators}.get(role)
    if most is not None and index >= most:
        key = "max_workers" if role == "worker" else "num_evaluators"
        raise ValueError(
            f"--index={index}, but the job takes {most} {role}{'s' * (most > 1)}; give 0 to {most - 1}, or start every "
            f"role with --set=cluster.{key}={index + 1}"
        )


def write_port(path: Path | None, port: int) -> None:
    """Writes the bound port to the file of `--port_file`, if there is one, atomically.

    Raises:
        ValueError: The file cannot be written. A file that already has this port is left as it is.
    """
    if path is None:
        return
    text = f"{port}\n"
    try:
        if not path.exists() or path.read_text() != text:
            files.write(path, text)
    except OSError as error:
        raise ValueError(f"--port_file={path} cannot be written: {error.strerror}; make room or give another") from None


def from_tf_config(text: str) -> tuple[Topology, str, int]:
    """The cluster, this process' role and its index, from the JSON that a Kubeflow TFJob puts into TF_CONFIG.

    Kubeflow leaves the evaluator out of the cluster; it then appears only as a task type. A `master` is a chief.

    Raises:
        ValueError: The text is not JSON or incomplete, or the task is not part of the cluster.
    """
    config = _json_object(text)
    cluster, task = config["cluster"], config["task"]
    chiefs = _addresses(cluster, "chief") + _addresses(cluster, "master")
    if len(chiefs) != 1:
        raise ValueError(f"TF_CONFIG names {len(chiefs)} chiefs; add one replica of type Chief to the TFJob")
    ps, workers = _addresses(cluster, "ps"), _addresses(cluster, "worker")
    if not ps or not workers:
        raise ValueError(f"TF_CONFIG names {len(ps)} ps and {len(workers)} workers; there must be at least one of each")
    role, index = _task(task, {"ps": len(ps), "worker": len(workers), "chief": 1, "evaluator": math.inf})
    evaluator = role == "evaluator" or "evaluator" in cluster
    return Topology(tuple(ps), chiefs[0], len(workers), evaluator), role, index


def _json_object(text: str) -> dict[str, dict[str, Any]]:
    try:
        config: dict[str, dict[str, Any]] = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"TF_CONFIG is not JSON ({error}): {text[:80]!r}") from None
    for key, example in (("cluster", '{"ps": ["host:port"]}'), ("task", '{"type": "worker", "index": 0}')):
        if not isinstance(config, dict) or not isinstance(config.get(key), dict):
            hint = "; turn dynamic workers off" if isinstance(config, dict) and "sparseCluster" in config else ""
            raise ValueError(f"TF_CONFIG has no object {key!r}, such as {example}: {text[:80]!r}{hint}")
    return config


def _addresses(cluster: dict[str, Any], role: str) -> list[str]:
    addresses = cluster.get(role, [])
    if not isinstance(addresses, list) or not all(isinstance(address, str) for address in addresses):
        raise ValueError(f"TF_CONFIG: cluster[{role!r}] is {addresses!r}; give a list of 'host:port'")
    return addresses


def _task(task: dict[str, Any], counts: dict[str, float]) -> tuple[str, int]:
    role, index = task.get("type"), task.get("index", 0)
    role = "chief" if role == "master" else role
    if role not in counts:
        raise ValueError(f"TF_CONFIG: task type is {role!r}; accepted are {', '.join(counts)} and master")
    try:
        index = int(index)
    except (TypeError, ValueError):
        raise ValueError(f"TF_CONFIG: task index is {index!r}; give a whole number") from None
    if not 0 <= index < counts[role]:
        raise ValueError(f"TF_CONFIG: task index is {index}, but the cluster has {counts[role]} of type {role!r}")
    return role, index


def _check_given(role: str, ps: Sequence[str], chief: str, index: int | None) -> None:
    missing = [flag for flag, given in (("--ps", ps), ("--chief", chief or role == "chief")) if not given]
    if role == "worker" and index is None:
        missing.append("--index")
    if missing:
        raise ValueError(f"{role} lacks {' and '.join(missing)}; give them as flags or the whole cluster as TF_CONFIG")


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"address {address!r} is not host:port with a port from 1 to 65535")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(f"address {address!r} is not host:port; an IPv6 address stands in brackets, [::1]:2222")
