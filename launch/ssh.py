"""Starts a job on hosts that a file lists, over ssh, and supervises it until it is done.

    downpour ssh mine.py --hosts=hosts.txt --run_dir=/shared/run --tls=certs

    # hosts.txt: host or user@host, and its roles, as often as they run there
    cpu1  chief evaluator
    cpu2  ps ps
    gpu1  worker
    gpu2  worker

The file decides the numbers of shards, workers and evaluators; they are numbered in its order. Shards and chief listen
on ports counted up from --port. The first worker's host checks the whole job before anything starts. Every host needs
Downpour in --directory, and chief, shards and evaluator need a --run_dir (or --checkpoint_dir) that all of them reach.
A --run_dir that already holds a run needs --resume, --resume_if_any or --overwrite. Crashed processes are restarted;
when the chief is done, the others end.
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from absl import flags

from downpour.launch.job import recipe, recipe_flags
from downpour.launch.local import targets
from downpour.launch.local.supervisor import Interrupted, ProcessFailed, Program, Supervisor
from downpour.launch.roles import entry, log_lines, role_flags, topology
from downpour.launch.roles.command_line import Syntax
from downpour.launch.roles.config import Checkpoints
from downpour.launch.roles.topology import FlagValue, Topology
from downpour.proto.http2.sockets import host_and_port
from downpour.worker.chief import owner

_END_GRACE_S = 60.0  # for the others after the chief is done


@dataclass(frozen=True)
class Placement:
    """A process of the job: `host` replaces `{}` in --via, `index` counts within the role, of `count` processes."""

    role: str
    index: int
    host: str
    count: int = 1

    @property
    def name(self) -> str:
        """Name in logs."""
        return topology.process_name(self.role, self.index, self.count)

    @property
    def address(self) -> str:
        """Name of its host for other hosts, without the user."""
        return self.host.rpartition("@")[2]


@dataclass(frozen=True)
class SshConfig:
    """A job on hosts.

    Attributes:
        recipe: Name or path of the recipe, on all hosts.
        overrides: Overrides of the recipe, among them the numbers of shards and workers.
        places: Its processes, in the order of their start.
        topology: The cluster that they make.
        run_dir: Folder of the run, on all hosts.
        via: Runs a shell command, given after it, on host {}.
        python: Interpreter on the hosts.
        directory: Working directory on the hosts.
        arena_dir: Folder of the shards' memory; "" for memory that ends with a shard.
        tls: Folder that `downpour certs` has made; "" for plain text.
        token_file: File with the job's token; "" for none.
        listen_in_plain_text_on_the_network: Whether servers accept unencrypted connections from other hosts.
        checkpoints: Where checkpoints go, and whether the run continues from one.
        trace_steps: How many steps every worker traces.
        log_format: `--log_format` of every process.
        metrics_port: Port of the first process' metrics; the others count up, whatever their host. 0 for none.
        metrics_host: Address on which each is served; "" for every interface.
    """

    recipe: str
    overrides: tuple[str, ...]
    places: tuple[Placement, ...]
    topology: Topology
    run_dir: Path
    via: str
    python: str
    directory: str
    arena_dir: str = ""
    tls: str = ""
    token_file: str = ""
    listen_in_plain_text_on_the_network: bool = False
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    trace_steps: int = 0
    log_format: str = "text"
    metrics_port: int = 0
    metrics_host: str = ""

    @property
    def metrics(self) -> dict[str, int]:
        """Ports of the processes' metrics, by process name; none unless they are asked for.

        Raises:
            ValueError: There are not as many ports, or shards and chief listen on some of them.
        """
        if not self.metrics_port:
            return {}
        found = targets.ports([place.name for place in self.places], self.metrics_port)
        listening = {int(address.rpartition(":")[2]) for address in (*self.topology.ps, self.topology.chief)}
        if both := listening & set(found.values()):
            raise ValueError(
                f"--metrics_port={self.metrics_port}: shards and chief listen on {min(both)}; give a --metrics_port "
                f"above {max(listening)}, or another --port"
            )
        return found

    def job_flags(self) -> dict[str, FlagValue]:
        """Flags of chief, workers and evaluator."""
        return {"recipe": self.recipe, "set": self.overrides, "run_dir": self.run_dir}


def read_hosts(text: str) -> list[Placement]:
    """Parses a file of hosts into processes, in the order of their start: shards, chief, workers, evaluator.

    Raises:
        ValueError: A word is no role, a host has no role, or a role is missing or listed too often.
    """
    places: list[Placement] = []
    for number, line in enumerate(text.splitlines(), 1):
        host, *roles = line.partition("#")[0].split() or [""]
        for role in roles:
            if role not in topology.ROLES:
                raise ValueError(f"--hosts, line {number}: {role!r} is no role; roles are {', '.join(topology.ROLES)}")
            places.append(Placement(role, sum(place.role == role for place in places), host))
        if host and not roles:
            raise ValueError(f"--hosts, line {number}: {host} has no role; add some of {', '.join(topology.ROLES)}")
    counts = {role: sum(place.role == role for place in places) for role in topology.ROLES}
    if counts["chief"] != 1 or not counts["ps"] or not counts["worker"]:
        given = ", ".join(f"{count} {role}" for role, count in counts.items())
        raise ValueError(f"--hosts lists {given}; give one chief, one ps and worker or more")
    places = [replace(place, count=counts[place.role]) for place in places]
    return sorted(places, key=lambda place: ("ps", "chief", "worker", "evaluator").index(place.role))


def topology_of(places: list[Placement], first_port: int) -> Topology:
    """Returns the cluster; shards and chief get ports counted up from `first_port`."""
    listeners = [place for place in places if place.role in ("ps", "chief")]
    addresses = {place.name: host_and_port(place.address, first_port + i) for i, place in enumerate(listeners)}
    return Topology(
        ps=tuple(addresses[place.name] for place in listeners if place.role == "ps"),
        chief=addresses["chief"],
        num_workers=sum(place.role == "worker" for place in places),
        evaluator=any(place.role == "evaluator" for place in places),
    )


def shell_command(config: SshConfig, place: Placement, job_id: str = "") -> str:
    """Returns the shell command that starts a process on its host.

    Args:
        config: The configuration.
        place: The process.
        job_id: Id of a new run, the same whenever the chief is restarted.
    """
    cluster = config.topology
    values: dict[str, FlagValue] = {
        "tls": f"{config.tls.rstrip('/')}/{place.role}" if config.tls else None,
        "token_file": config.token_file,
        **_log_format(config),
        **targets.flags(config.metrics, place.name, config.metrics_host),
    }
    values |= {"chief": cluster.chief} if place.role == "ps" else config.job_flags() | cluster.flags()
    if place.role in ("ps", "chief"):
        values["port"] = int(cluster.address(place.role, place.index).rpartition(":")[2])
        values["listen_in_plain_text_on_the_network"] = config.listen_in_plain_text_on_the_network or None
    if place.role == "chief":
        more: dict[str, FlagValue] = {
            "chief": None,
            "stop_shards": True,
            "evaluator": cluster.evaluator,
            "job_id": job_id,
            "trace": config.trace_steps or None,
        }
        values |= more | config.checkpoints.flags()
    begin, end = "exec ", ""
    if place.role == "ps" and config.arena_dir:
        values["arena"] = arena = f"{config.arena_dir.rstrip('/')}/downpour-{place.index}.arena"
        begin, end = "", f" && rm -f {shlex.quote(arena)}"  # once the job is over
    command = shlex.join(topology.command(place.role, place.index, values, python=config.python))
    return f"cd {shlex.quote(config.directory)} && {begin}{command}{end}"


def _log_format(config: SshConfig) -> dict[str, FlagValue]:
    return {"log_format": config.log_format} if config.log_format != "text" else {}


def preflight_command(config: SshConfig) -> str:
    """Returns the shell command that checks the job on a worker's host (`downpour.launch.local.preflight`)."""
    values: dict[str, FlagValue] = {"recipe": config.recipe, "set": config.overrides}
    values |= {"preflight": True, "evaluator": config.topology.evaluator, "out": "/dev/null", **_log_format(config)}
    words = [config.python, "-m", "downpour.launch.layout_table", *topology.flag_arguments(values)]
    return f"cd {shlex.quote(config.directory)} && exec {shlex.join(words)}"


def from_flags() -> SshConfig:
    """Returns the configuration of the command line.

    Raises:
        ValueError: The file of hosts cannot be read or makes no cluster, or flags are missing or contradict each other.
    """
    values = flags.FLAGS.flag_values_dict()
    if not values["hosts"]:
        raise ValueError("no --hosts; give a file with a host and its roles in each line (see --help)")
    try:
        places = read_hosts(Path(values["hosts"]).read_text())
    except OSError as error:
        raise ValueError(f"--hosts={values['hosts']}: {error.strerror}") from None
    cluster = topology_of(places, values["port"])
    name, overrides = recipe_flags.read()
    overrides = (*overrides, f"cluster.num_ps={len(cluster.ps)}", f"cluster.num_workers={cluster.num_workers}")
    if (num_evaluators := sum(place.role == "evaluator" for place in places)) > 1:
        overrides = (*overrides, f"cluster.num_evaluators={num_evaluators}")
    job = recipe.load(name, overrides)
    if "{}" not in values["via"]:
        raise ValueError(f"--via={values['via']} has no {{}}, the place of the host's name")
    config = SshConfig(
        recipe=name,
        overrides=overrides,
        places=tuple(places),
        topology=cluster,
        run_dir=role_flags.run_dir(job),
        via=values["via"],
        python=values["python"],
        directory=values["directory"] or os.getcwd(),
        arena_dir=values["arena_dir"] or "",
        tls=values["tls"] or "",
        token_file=values["token_file"] or "",
        listen_in_plain_text_on_the_network=bool(values["listen_in_plain_text_on_the_network"]),
        checkpoints=role_flags.checkpoints(),
        trace_steps=role_flags.trace_steps(),
        log_format=values["log_format"],
        metrics_port=values["metrics_port"],
        metrics_host=values["metrics_host"],
    )
    _ = config.metrics  # raises for ports that do not fit
    return config


def run(config: SshConfig) -> int | None:
    """Runs the job on the hosts; returns the exit code if it failed or was interrupted."""
    try:
        _supervise(config, owner.new_job_id())
    except Interrupted as error:
        entry.say(f"{error}; continue with --resume")
        return error.code
    except ProcessFailed as error:
        entry.say_failed(str(error))
        return error.code
    entry.say(f"done; see {config.run_dir}/summary.json")
    return None


def _supervise(config: SshConfig, job_id: str) -> None:
    """Checks the job on the host of the first worker, starts it, and waits until all processes have ended."""

    def via(host: str) -> list[str]:
        return [word.replace("{}", host) for word in shlex.split(config.via)]

    def show(name: str, line: str) -> None:
        text = line if line.startswith("[") else f"[{name}] {line}"
        print(log_lines.wrapped(name, line) if config.log_format == "json" else text, file=sys.stderr, flush=True)

    with Supervisor(config.run_dir / "logs", os.environ, show) as supervisor:
        host = next(place.host for place in config.places if place.role == "worker")
        supervisor.run(Program("preflight", [*via(host), preflight_command(config)], max_restarts=0))
        if where := config.metrics:
            addresses = {place.name: host_and_port(place.address, where[place.name]) for place in config.places}
            targets.write(config.run_dir, addresses)
        for place in config.places:
            supervisor.start(Program(place.name, [*via(place.host), shell_command(config, place, job_id)]))
        supervisor.wait(lambda: supervisor.exit_code("chief") is not None)
        for name in supervisor.drain([place.name for place in config.places], _END_GRACE_S):
            show("ssh", f"{name} did not end {_END_GRACE_S:.0f} s after the chief; stopping it")


SYNTAX = Syntax(
    shown="recipe set hosts run_dir tls token_file directory python via port arena_dir checkpoint_dir resume overwrite "
    "metrics_port log_format",
    positional="recipe",
)


def main() -> None:
    """Runs the job of the flags on the hosts."""
    define()
    entry.run(lambda: run(from_flags()), role="ssh", syntax=SYNTAX)


def define() -> None:
    """Defines the flags."""
    recipe_flags.define()
    entry.define_log_format()
    role_flags.define_checkpoints()
    role_flags.define_trace()
    flags.DEFINE_string("hosts", None, "File that lists hosts and their roles.")
    flags.DEFINE_string("via", "ssh -tt -o BatchMode=yes {}", "Runs a shell command, given after it, on host {}.")
    flags.DEFINE_integer("port", 2222, "Port of the first shard; others count up.", lower_bound=1)
    flags.DEFINE_string("python", "python3", "Interpreter on the hosts.")
    flags.DEFINE_string("directory", None, "Working directory on the hosts; this one by default.")
    flags.DEFINE_string("run_dir", None, "Where the job writes, on all hosts; runs/NAME by default.")
    text = "First port for Prometheus' /metrics, plain text; every process takes the next one. 0: none."
    flags.DEFINE_integer("metrics_port", 0, text, lower_bound=0, upper_bound=65535)
    flags.DEFINE_string("metrics_host", "", "Address on which hosts serve that; every interface by default.")
    flags.DEFINE_string("arena_dir", None, "Where shards keep their memory, such as /dev/shm: see --help of ps.")
    flags.DEFINE_string("tls", None, "Folder that `downpour certs` has made, on all hosts.")
    flags.DEFINE_string("token_file", None, "File with the job's token, on all hosts.")
    flags.DEFINE_boolean(
        "listen_in_plain_text_on_the_network", False, "Serve every peer that can reach the hosts, unencrypted."
    )


if __name__ == "__main__":
    main()
