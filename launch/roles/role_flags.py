"""The flags of the roles: defines them, and reads them as values. Called by the entry of each role only.

    def main() -> None:
        role_flags.define("worker")
        entry.run(lambda: run(from_flags()), role="worker")

| flag | roles | meaning |
|---|---|---|
| `--index` | ps, worker, evaluator | index of this process in its role |
| `--recipe`, `--set` | worker, chief, evaluator | the job (read by `downpour.launch.job.recipe_flags`) |
| `--run_dir` | worker, chief, evaluator | where the job writes |
| `--ps`, `--chief` | worker, chief, evaluator | addresses; without them TF_CONFIG decides |
| `--chief`, `--grace_s` | ps | whom to ask for a checkpoint at SIGTERM, and how long to wait for it |
| `--trace` | chief | how many steps every worker traces, into `trace.json` of the run |
| `--stop_shards` | chief | whether it ends the shards when the job is over |
| `--evaluator` | chief | whether an evaluator will score the checkpoints |
| `--host`, `--port`, `--port_file` | ps, chief | where to listen; where to write the port |
| `--checkpoint_dir` | chief | where checkpoints go, a path or a URL that shards and evaluator reach, too |
| `--resume`, `--resume_if_any` | chief | empty shards continue from the newest checkpoint |
| `--overwrite` | chief | a new run removes another run's files in `--run_dir` and `--checkpoint_dir` |
| `--page_port`, `--page_host` | chief | where it serves a page to browsers: `downpour.launch.observe.page` |
| `--job_id` | chief | id of a new run; a restart with the same id continues it |
| `--init_from`, `--init_only` | chief | see `downpour.launch.roles.initial` |
| `--arena` | ps | file with the shard's state |
| `--group_commit` | ps | whether pushes may be delayed to be applied with others |
| `--tls` | all | folder with `tls.crt`, `tls.key` and `ca.crt` of the role; `downpour certs` makes them |
| `--token_file` | all | file with the job's token, which is then sent with every call |
| `--health_port` | all | port of grpc.health.v1, in plain text; none by default |
| `--metrics_port`, `--metrics_host` | all | where Prometheus' `/metrics` is served, in plain text; none by default |
| `--log_format` | all | log lines: text or JSON, see `downpour.launch.roles.log_lines` |
| `--listen_in_plain_text_on_the_network` | ps, chief | without it a server listens on loopback or with `--tls` |

Imports only what a shard has installed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from downpour.launch.roles import entry, security, topology
from downpour.launch.roles.config import Access, Checkpoints, Listening
from downpour.launch.roles.topology import CLIENTS, INDEXED, SERVERS, Topology
from downpour.proto import spans

if TYPE_CHECKING:
    from downpour.launch.job import Job

_JOB_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PORT = {"lower_bound": 0, "upper_bound": 65535}


def define(role: str) -> None:
    """Defines every flag of a role, except `--recipe` and `--set`; flags that are defined already are kept."""
    entry.define_log_format()
    _define_access(role)
    if role in INDEXED:
        _define(flags.DEFINE_integer, "index", None, "Index of this process in its role.", lower_bound=0)
    if role in CLIENTS:
        define_run_dir()
        _define(flags.DEFINE_list, "ps", [], "host:port of every shard, with commas; TF_CONFIG by default.")
        _define(flags.DEFINE_string, "chief", "", "host:port of the chief; TF_CONFIG by default.")
    if role in SERVERS:
        _define(flags.DEFINE_string, "host", "0.0.0.0", "Interface to listen on.")
        text = "Port to listen on, 0 for any; TF_CONFIG by default, else 0."
        _define(flags.DEFINE_integer, "port", None, text, **_PORT)
        _define(flags.DEFINE_string, "port_file", None, "File to write the port to once it is bound.")
    if role == "ps":
        _define(flags.DEFINE_string, "arena", None, "File with the shard's state; created if missing.")
        _define(
            flags.DEFINE_string, "chief", "", "host:port of the chief, from which a checkpoint is requested at SIGTERM."
        )
        _define(flags.DEFINE_float, "grace_s", 20.0, "Seconds to wait for that checkpoint.", lower_bound=0.0)
        text = "Whether pushes may be delayed to be applied with others, where processors are short."
        _define(flags.DEFINE_boolean, "group_commit", True, text)
    if role == "chief":
        _define(flags.DEFINE_boolean, "stop_shards", False, "Whether to end the shards when the job is over.")
        define_evaluator("Whether an evaluator will score the checkpoints.")
        define_checkpoints()
        define_initial_values()
        define_trace()
        define_page(-1)
        text = "Interface of that page; beyond loopback it needs --token_file."
        _define(flags.DEFINE_string, "page_host", "127.0.0.1", text)
        text = "Id of a run that begins, the same whenever its chief is restarted; a random one by default."
        _define(flags.DEFINE_string, "job_id", "", text)
        text = "File of layout and initial values that a launcher has written."
        _define(flags.DEFINE_string, "prepared", None, text)


def define_credentials() -> None:
    """Defines `--tls` and `--token_file`."""
    _define(flags.DEFINE_string, "tls", None, "Folder with tls.crt, tls.key and ca.crt of a role (downpour certs).")
    _define(flags.DEFINE_string, "token_file", None, "File with the job's token, asked for and sent with every call.")


def _define_access(role: str) -> None:
    define_credentials()
    _define(flags.DEFINE_integer, "health_port", None, "Port of the gRPC health service, in plain text.", **_PORT)
    _define(flags.DEFINE_integer, "metrics_port", None, "Port of Prometheus' /metrics, plain text; 0: none.", **_PORT)
    _define(flags.DEFINE_string, "metrics_host", "", "Address on which that is served; every interface by default.")
    if role in SERVERS:
        text = "Serve every peer that can reach this machine, unencrypted. Use --tls instead."
        _define(flags.DEFINE_boolean, "listen_in_plain_text_on_the_network", False, text)


def define_run_dir() -> None:
    """Defines `--run_dir`."""
    _define(flags.DEFINE_string, "run_dir", None, "Where the job writes; runs/NAME of the recipe by default.")


def define_evaluator(text: str) -> None:
    """Defines `--evaluator`, with a text for `--help`."""
    _define(flags.DEFINE_boolean, "evaluator", True, text)


def define_checkpoints() -> None:
    """Defines `--checkpoint_dir`, `--resume`, `--resume_if_any` and `--overwrite`."""
    where = "Folder of the checkpoints, a path or a URL such as s3://bucket/run; checkpoints in --run_dir by default."
    _define(flags.DEFINE_string, "checkpoint_dir", "", where)
    _define(flags.DEFINE_boolean, "resume", False, "Continue from the newest checkpoint; an error if there is none.")
    _define(flags.DEFINE_boolean, "resume_if_any", False, "Continue from the newest checkpoint, if there is one.")
    text = "Remove the run in the folders of the run and its checkpoints, and begin a new one."
    _define(flags.DEFINE_boolean, "overwrite", False, text)


def define_trace() -> None:
    """Defines `--trace`."""
    text = f"Trace N steps of every worker, at most {spans.MOST_STEPS}, into trace.json of the run; 0 for none."
    _define(flags.DEFINE_integer, "trace", 0, text)


def define_initial_values() -> None:
    """Defines `--init_from` and `--init_only`."""
    text = "Where initial values are read: a Keras file, checkpoint or run folder."
    _define(flags.DEFINE_string, "init_from", None, text)
    text = "Name patterns of the variables to read, with commas; all by default."
    _define(flags.DEFINE_list, "init_only", [], text)


def define_page(default: int) -> None:
    """Defines `--page_port`, with a default."""
    text = "Port of a page for browsers that shows the run live, 0 for any; -1 for none."
    _define(flags.DEFINE_integer, "page_port", default, text, lower_bound=-1, upper_bound=65535)


def page_port() -> int | None:
    """Returns the port of the page; None for no page."""
    port = value("page_port", -1)
    return None if port < 0 else int(port)


def page() -> Listening | None:
    """Returns where the chief serves its page; None for nowhere."""
    port = page_port()
    return None if port is None else Listening(value("page_host"), port)


def cluster(role: str, job: Job | None = None) -> tuple[Topology, int]:
    """Returns the cluster and this process' index in its role, and puts role and index into the log prefix.

    Args:
        role: Role of this process.
        job: Job to check against the cluster; a shard has none.

    Raises:
        ValueError: Neither flags nor TF_CONFIG describe the cluster, they are invalid, or their numbers of processes
            are not the job's.
    """
    where, index = topology.cluster_of(
        role,
        value("ps", ()),
        value("chief", ""),
        value("index"),
        evaluator=value("evaluator", True),
        tf_config=_tf_config(),
        job=job,
    )
    entry.set_role(topology.process_name(role, index, job.cluster.num_evaluators if job else 1))
    if job:
        topology.check_counts(where, job, role, index)
    return where, index


def listening(role: str, where: Topology, index: int) -> Listening:
    """Returns where a shard or chief listens: on `--port`, else the port in TF_CONFIG, else any."""
    port, file = value("port"), value("port_file")
    if port is None and _tf_config() and not topology.is_described(role, value("ps", ()), value("chief", "")):
        known = role == "chief" or index < len(where.ps)
        port = int(where.address(role, index).rpartition(":")[2]) if known else None
    return Listening(value("host", "0.0.0.0"), port or 0, Path(file) if file else None)


def access(role: str) -> Access:
    """Returns a role's identity, access, health port and metrics port; "" is any role that only calls.

    Raises:
        ValueError: The certificate or the token cannot be used by this role.
    """
    folder, token_file = value("tls"), value("token_file")
    plain = bool(value("listen_in_plain_text_on_the_network"))
    mine = security.load(role, Path(folder) if folder else None, Path(token_file) if token_file else None, plain)
    return Access(mine, value("health_port"), value("metrics_port"), str(value("metrics_host") or ""))


def checkpoints() -> Checkpoints:
    """Returns the settings of the run's checkpoints.

    Raises:
        ValueError: `--overwrite` contradicts `--resume`.
    """
    return Checkpoints(
        value("checkpoint_dir") or "",
        "yes" if value("resume") else "if_any" if value("resume_if_any") else "no",
        bool(value("overwrite")),
    )


def trace_steps() -> int:
    """Returns how many steps every worker traces.

    Raises:
        ValueError: There are too many, or they are below 0.
    """
    return spans.check_steps(int(value("trace") or 0))


def job_id() -> str:
    """Returns the id of a new run; empty for a random one.

    Raises:
        ValueError: It is too long or has invalid characters.
    """
    given = str(value("job_id") or "")
    if given and not _JOB_ID.fullmatch(given):
        raise ValueError(f"--job_id={given}: give up to 64 letters, digits, '.', '_' and '-'")
    return given


def run_dir(job: Job) -> Path:
    """Returns where the job writes: `--run_dir`, by default `runs/NAME`."""
    return Path(value("run_dir") or Path("runs") / job.name)


def value(name: str, default: Any = None) -> Any:
    """Returns the value of a flag; the default if this process has not defined the flag."""
    return flags.FLAGS[name].value if name in flags.FLAGS else default


def _define(define: Any, name: str, default: Any, text: str, **more: Any) -> None:
    if name not in flags.FLAGS:
        define(name, default, text, flag_values=flags.FLAGS, **more)


def _tf_config() -> str:
    return os.environ.get("TF_CONFIG", "")
