"""The one description of a cluster, and the command of every process in it.

Local emulation, manifests and tests all start roles through `command`; every role gets the cluster and its own index by
`from_flags`, from its flags or from `TF_CONFIG` (as a Kubeflow TFJob sets it). A role's module does

    topology.define_flags("worker")            # at import
    where, index = topology.from_flags("worker", job)

| flag | roles | meaning |
|---|---|---|
| `--index` | ps, worker | index of this process in its role |
| `--recipe`, `--set` | worker, chief, evaluator | the job (read by `downpour.launch.job.recipe`) |
| `--run_dir` | worker, chief, evaluator | where the job writes |
| `--ps`, `--chief` | worker, chief, evaluator | addresses; without them TF_CONFIG decides |
| `--chief`, `--grace_s` | ps | whom to ask for a checkpoint at SIGTERM, and how long to wait for it |
| `--stop_shards` | chief | whether it ends the shards when the job is over |
| `--evaluator` | chief | whether an evaluator will score the checkpoints |
| `--host`, `--port`, `--port_file` | ps, chief | where to listen; where to write the port |
| `--checkpoint_dir` | chief | where checkpoints go, a path or a URL that shards and evaluator reach, too |
| `--resume`, `--resume_if_any` | chief | empty shards continue from the newest checkpoint |
| `--overwrite` | chief | a new run removes another run's files in `--run_dir` and `--checkpoint_dir` |
| `--job_id` | chief | id of a new run; a restart with the same id continues it |
| `--arena` | ps | file with the shard's state |
| `--tls`, `--token_file`, `--health_port` | all | see `downpour.launch.roles.security` |

Imports only what a shard has installed.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from downpour import files
from downpour.launch.roles import entry, security

if TYPE_CHECKING:
    from downpour.launch.job import Job

ROLES = ("ps", "worker", "chief", "evaluator")
_JOB_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SERVERS, _CLIENTS = ("ps", "chief"), ("worker", "chief", "evaluator")

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
    at = [f"--index={index}"] if role in ("ps", "worker") else []
    return [python, "-m", f"downpour.launch.{role}", *at, *flag_arguments(values)]


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


def define_flags(role: str) -> None:
    """Defines every flag of a role; flags that another role of the same process has defined are kept."""
    security.define_flags(role)
    if role in ("ps", "worker"):
        _define(flags.DEFINE_integer, "index", None, "Which of its role this process is.", lower_bound=0)
    if role in _CLIENTS:
        define_recipe_flags()
        _define(flags.DEFINE_string, "run_dir", None, "Where the job writes; runs/NAME of the recipe by default.")
        _define(flags.DEFINE_list, "ps", [], "host:port of every shard, with commas; TF_CONFIG by default.")
        _define(flags.DEFINE_string, "chief", "", "host:port of the chief; TF_CONFIG by default.")
    if role in _SERVERS:
        _define(flags.DEFINE_string, "host", "0.0.0.0", "Interface to listen on.")
        text = "Port to listen on, 0 for any; TF_CONFIG by default, else 0."
        _define(flags.DEFINE_integer, "port", None, text, lower_bound=0, upper_bound=65535)
        _define(flags.DEFINE_string, "port_file", None, "File to write the port to once it is bound.")
    if role == "ps":
        _define(flags.DEFINE_string, "arena", None, "File that holds the shard's numbers; a new one is made.")
        _define(flags.DEFINE_string, "chief", "", "host:port of the chief, asked for a checkpoint at SIGTERM.")
        _define(flags.DEFINE_float, "grace_s", 20.0, "Seconds to wait for that checkpoint.", lower_bound=0.0)
    if role == "chief":
        _define(flags.DEFINE_boolean, "stop_shards", False, "Whether to end the shards when the job is over.")
        _define(flags.DEFINE_boolean, "evaluator", True, "Whether an evaluator will score the checkpoints.")
        define_checkpoint_flags()
        text = "Id of a run that begins, the same whenever its chief is started again; a random one by default."
        _define(flags.DEFINE_string, "job_id", "", text)


def define_checkpoint_flags() -> None:
    """Defines `--checkpoint_dir`, `--resume`, `--resume_if_any` and `--overwrite`."""
    where = "Folder of the checkpoints, a path or a URL such as s3://bucket/run; checkpoints in --run_dir by default."
    _define(flags.DEFINE_string, "checkpoint_dir", "", where)
    _define(flags.DEFINE_boolean, "resume", False, "Continue from the newest checkpoint; an error if there is none.")
    _define(flags.DEFINE_boolean, "resume_if_any", False, "Continue from the newest checkpoint, if there is one.")
    text = "Remove the run that the folders of the run and its checkpoints hold, and begin anew."
    _define(flags.DEFINE_boolean, "overwrite", False, text)


def checkpoint_flags() -> dict[str, FlagValue]:
    """The flags of `define_checkpoint_flags` that were given, for another process."""
    values = {name: _value(name, None) for name in ("checkpoint_dir", "resume", "resume_if_any", "overwrite")}
    return {name: value for name, value in values.items() if value}


def checkpoint_dir(run_dir: Path) -> str:
    """Where the checkpoints of a run are: a path or a URL."""
    return _value("checkpoint_dir", "") or str(run_dir.absolute() / "checkpoints")


def overwrite() -> bool:
    """Whether the flags allow a new run to remove another one."""
    return bool(_value("overwrite", False))


def job_id() -> str:
    """Id of a new run, from the flags; empty for a random one.

    Raises:
        ValueError: It is too long or has invalid characters.
    """
    value = str(_value("job_id", ""))
    if value and not _JOB_ID.fullmatch(value):
        raise ValueError(f"--job_id={value}: give up to 64 letters, digits, '.', '_' and '-'")
    return value


def resume() -> str:
    """Whether to resume, from the flags: `yes`, `if_any` or `no`.

    Raises:
        ValueError: They contradict `--overwrite`.
    """
    if overwrite() and (_value("resume", False) or _value("resume_if_any", False)):
        raise ValueError("--overwrite removes the run that --resume continues; leave one of them out")
    if _value("resume", False):
        return "yes"
    return "if_any" if _value("resume_if_any", False) else "no"


def define_recipe_flags() -> None:
    """Defines `--recipe` and `--set`."""
    _define(flags.DEFINE_string, "recipe", None, "Name of a recipe, or path of its .py file.")
    _define(flags.DEFINE_multi_string, "set", [], "Override of the recipe, key=value; may be given many times.")


def from_flags(role: str, job: Job | None = None) -> tuple[Topology, int]:
    """The cluster and this process' index in its role; also puts both into the log prefix.

    Args:
        role: Role of this process.
        job: Job to check against the cluster. A shard has none; its cluster is empty unless TF_CONFIG
            describes one.

    Raises:
        ValueError: Neither flags nor TF_CONFIG describe the cluster, they are invalid, or their numbers of
            processes are not the job's.
    """
    ps, chief, index = _value("ps", []), _value("chief", ""), _value("index", None)
    text = os.environ.get("TF_CONFIG", "")
    if _by_flags(role) or not text:
        if role in _CLIENTS:
            _check_flags(role, ps, chief, index)
        topology, index = Topology(tuple(ps), chief, job.cluster.num_workers if job else 0), index or 0
    else:
        topology, at, place = from_tf_config(text)
        if at != role:
            raise ValueError(f"TF_CONFIG says task type {at!r}, but this process is started as {role!r}")
        index = place if index is None else index
    topology = replace(topology, chief=chief or topology.chief, evaluator=_value("evaluator", True))
    entry.set_role(f"{role}/{index}" if role in ("ps", "worker") else role)
    if job:
        check_counts(topology, job, index if role == "worker" else 0)
    return topology, index


def check_counts(topology: Topology, job: Job, worker: int = 0) -> None:
    """Raises `ValueError` when cluster and job differ in the number of shards or workers."""
    for key, given, wanted in (
        ("cluster.num_ps", len(topology.ps), job.cluster.num_ps),
        ("cluster.num_workers", topology.num_workers, job.cluster.num_workers),
    ):
        if given != wanted:
            raise ValueError(f"the cluster has {given} but the job's {key} is {wanted}; add --set={key}={given}")
    most = job.cluster.most_workers
    if worker >= most:
        raise ValueError(
            f"--index={worker}, but the job takes {most} workers; give 0 to {most - 1}, or start every role with "
            f"--set=cluster.max_workers={worker + 1}"
        )


def listen_address(role: str, topology: Topology, index: int) -> tuple[str, int]:
    """Host and port that a shard or chief binds: from its flags, else the port in TF_CONFIG, else 0."""
    port = _value("port", None)
    if port is None and not _by_flags(role):
        known = role == "chief" or index < len(topology.ps)
        port = int(topology.address(role, index).rpartition(":")[2]) if known and _in_tf_config() else None
    return _value("host", "0.0.0.0"), port or 0


def write_port(port: int) -> None:
    """Writes the bound port to `--port_file`, if there is one, atomically.

    Raises:
        ValueError: The file cannot be written. A file that already has this port is left as it is.
    """
    name = _value("port_file", None)
    if not name:
        return
    path, text = Path(name), f"{port}\n"
    try:
        if not path.exists() or path.read_text() != text:
            files.write(path, text)
    except OSError as error:
        raise ValueError(f"--port_file={name} cannot be written: {error.strerror}; make room or give another") from None


def run_dir(job: Job) -> Path:
    """Where the job writes: `--run_dir`, by default `runs/NAME`."""
    return Path(_value("run_dir", None) or Path("runs") / job.name)


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
    role, index = _task(task, {"ps": len(ps), "worker": len(workers), "chief": 1, "evaluator": 1})
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


def _task(task: dict[str, Any], counts: dict[str, int]) -> tuple[str, int]:
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


def _check_flags(role: str, ps: list[str], chief: str, index: int | None) -> None:
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


def _by_flags(role: str) -> bool:
    """Whether flags describe the cluster. For a shard `--chief` only names the chief to ask at SIGTERM."""
    return bool(_value("ps", []) or (role in _CLIENTS and _value("chief", "")))


def _in_tf_config() -> bool:
    return bool(os.environ.get("TF_CONFIG"))


def _define(define: Any, name: str, default: Any, text: str, **more: Any) -> None:
    if name not in flags.FLAGS:
        define(name, default, text, flag_values=flags.FLAGS, **more)


def _value(name: str, default: Any) -> Any:
    return flags.FLAGS[name].value if name in flags.FLAGS else default
