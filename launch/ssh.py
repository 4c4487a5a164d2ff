"""Starts a job on hosts that a file lists, over ssh, and supervises it until it is done.

    downpour ssh --hosts=hosts.txt --recipe=quickstart --run_dir=/shared/run --tls=/shared/certificates

A line of the file is a host, or user@host, and the roles that run there, repeated for more than one of a kind:

    cpu1  chief evaluator
    cpu2  ps ps
    gpu1  worker
    gpu2  worker

The file decides the numbers of shards and workers; they are numbered in its order. Shards and chief listen on ports
counted up from --port. The first worker's host checks the whole job before anything starts. Every host needs Downpour
in --directory, and chief, shards and evaluator need a --run_dir (or --checkpoint_dir) that all of them reach. A
--run_dir that already holds a run needs --resume, --resume_if_any or --overwrite. Crashed processes are restarted; when
the chief is done, the others end.
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from absl import flags

from downpour.launch.job import recipe
from downpour.launch.local.supervisor import Interrupted, ProcessFailed, Program, Supervisor
from downpour.launch.roles import entry, topology
from downpour.launch.roles.topology import FlagValue, Topology
from downpour.proto.http2.sockets import host_and_port
from downpour.worker.chief import owner

_END_GRACE_S = 60.0  # for the others after the chief is done


@dataclass(frozen=True)
class Place:
    """A process of the job: `host` replaces `{}` in --via, `index` counts within the role."""

    role: str
    index: int
    host: str

    @property
    def name(self) -> str:
        """Name in logs."""
        return f"{self.role}/{self.index}" if self.role in ("ps", "worker") else self.role

    @property
    def address(self) -> str:
        """Name of its host for other hosts, without the user."""
        return self.host.rpartition("@")[2]


def read_hosts(text: str) -> list[Place]:
    """Parses a file of hosts into processes, in the order of their start: shards, chief, workers, evaluator.

    Raises:
        ValueError: A word is no role, a host has no role, or a role is missing or listed too often.
    """
    places: list[Place] = []
    for number, line in enumerate(text.splitlines(), 1):
        host, *roles = line.partition("#")[0].split() or [""]
        for role in roles:
            if role not in topology.ROLES:
                raise ValueError(f"--hosts, line {number}: {role!r} is no role; roles are {', '.join(topology.ROLES)}")
            places.append(Place(role, sum(place.role == role for place in places), host))
        if host and not roles:
            raise ValueError(f"--hosts, line {number}: {host} has no role; add some of {', '.join(topology.ROLES)}")
    counts = {role: sum(place.role == role for place in places) for role in topology.ROLES}
    if counts["chief"] != 1 or counts["evaluator"] > 1 or not counts["ps"] or not counts["worker"]:
        given = ", ".join(f"{count} {role}" for role, count in counts.items())
        raise ValueError(f"--hosts lists {given}; give one chief, one ps and worker or more, one evaluator at most")
    return sorted(places, key=lambda place: ("ps", "chief", "worker", "evaluator").index(place.role))


def topology_of(places: list[Place], first_port: int) -> Topology:
    """Returns the cluster; shards and chief get ports counted up from `first_port`."""
    listeners = [place for place in places if place.role in ("ps", "chief")]
    addresses = {place.name: host_and_port(place.address, first_port + i) for i, place in enumerate(listeners)}
    return Topology(
        ps=tuple(addresses[place.name] for place in listeners if place.role == "ps"),
        chief=addresses["chief"],
        num_workers=sum(place.role == "worker" for place in places),
        evaluator=any(place.role == "evaluator" for place in places),
    )


def shell_command(place: Place, cluster: Topology, common: dict[str, FlagValue], job_id: str = "") -> str:
    """Returns the shell command that starts a process on its host.

    Args:
        place: The process.
        cluster: The whole cluster.
        common: Flags of chief, workers and evaluator.
        job_id: Id of a new run, the same whenever the chief is restarted.
    """
    values: dict[str, FlagValue] = {
        "tls": f"{flags.FLAGS.tls.rstrip('/')}/{place.role}" if flags.FLAGS.tls else None,
        "token_file": flags.FLAGS.token_file,
    }
    values |= {"chief": cluster.chief} if place.role == "ps" else common | cluster.flags()
    if place.role in ("ps", "chief"):
        values["port"] = int(cluster.address(place.role, place.index).rpartition(":")[2])
        values["listen_in_plain_text_on_the_network"] = flags.FLAGS.listen_in_plain_text_on_the_network or None
    if place.role == "chief":
        more = {"chief": None, "stop_shards": True, "evaluator": cluster.evaluator, "job_id": job_id}
        values |= more | topology.checkpoint_flags()
    begin, end = "exec ", ""
    if place.role == "ps" and flags.FLAGS.arena_dir:
        values["arena"] = arena = f"{flags.FLAGS.arena_dir.rstrip('/')}/downpour-{place.index}.arena"
        begin, end = "", f" && rm -f {shlex.quote(arena)}"  # once the job is over
    command = shlex.join(topology.command(place.role, place.index, values, python=flags.FLAGS.python))
    return f"cd {shlex.quote(flags.FLAGS.directory or os.getcwd())} && {begin}{command}{end}"


def preflight_command(evaluator: bool) -> str:
    """Returns the shell command that checks the job on a worker's host (`downpour.launch.local.preflight`)."""
    values: dict[str, FlagValue] = {name: flags.FLAGS[name].value for name in ("recipe", "set")}
    values |= {"preflight": True, "evaluator": evaluator, "out": "/dev/null"}
    words = [flags.FLAGS.python, "-m", "downpour.launch.layout_table", *topology.flag_arguments(values)]
    return f"cd {shlex.quote(flags.FLAGS.directory or os.getcwd())} && exec {shlex.join(words)}"


def _main() -> int | None:
    if not flags.FLAGS.hosts:
        raise ValueError("no --hosts; give a file with a host and its roles in each line (see --help)")
    try:
        places = read_hosts(Path(flags.FLAGS.hosts).read_text())
    except OSError as error:
        raise ValueError(f"--hosts={flags.FLAGS.hosts}: {error.strerror}") from None
    cluster = topology_of(places, flags.FLAGS.port)
    overrides = [f"cluster.num_ps={len(cluster.ps)}", f"cluster.num_workers={cluster.num_workers}"]
    flags.FLAGS["set"].value = [*(flags.FLAGS["set"].value or []), *overrides]
    job = recipe.from_flags()
    if "{}" not in flags.FLAGS.via:
        raise ValueError(f"--via={flags.FLAGS.via} has no {{}}, the place of the host's name")
    run_dir = Path(flags.FLAGS.run_dir or Path("runs") / job.name)
    common: dict[str, FlagValue] = {
        "recipe": flags.FLAGS["recipe"].value, "set": flags.FLAGS["set"].value, "run_dir": run_dir,
    }  # fmt: skip
    topology.resume()  # refused here, before anything starts, if the flags contradict each other
    job_id = owner.new_job_id()
    try:
        commands = [(place, shell_command(place, cluster, common, job_id)) for place in places]
        _run(commands, preflight_command(cluster.evaluator), run_dir)
    except (Interrupted, ProcessFailed) as error:
        print(f"[ssh] {'' if isinstance(error, Interrupted) else 'error: '}{error}", file=sys.stderr)
        return error.code
    print(f"[ssh] done; see {run_dir}/summary.json", file=sys.stderr)
    return None


def _run(commands: list[tuple[Place, str]], preflight: str, run_dir: Path) -> None:
    """Checks the job on the host of the first worker, starts it, and waits until all processes have ended."""

    def via(host: str) -> list[str]:
        return [word.replace("{}", host) for word in shlex.split(flags.FLAGS.via)]

    def show(name: str, line: str) -> None:
        print(line if line.startswith("[") else f"[{name}] {line}", file=sys.stderr, flush=True)

    with Supervisor(run_dir / "logs", os.environ, show) as supervisor:
        host = next(place.host for place, _ in commands if place.role == "worker")
        supervisor.run(Program("preflight", [*via(host), preflight], max_restarts=0))
        for place, command in commands:
            supervisor.start(Program(place.name, [*via(place.host), command]))
        supervisor.wait(lambda: supervisor.exit_code("chief") is not None)
        for name in supervisor.drain([place.name for place, _ in commands], _END_GRACE_S):
            show("ssh", f"{name} did not end {_END_GRACE_S:.0f} s after the chief; stopping it")


def main() -> None:
    """Runs the job of the flags on the hosts."""
    topology.define_recipe_flags()
    topology.define_checkpoint_flags()
    flags.DEFINE_string("hosts", None, "File that lists hosts and their roles.")
    flags.DEFINE_string("via", "ssh -tt -o BatchMode=yes {}", "Runs a shell command, given after it, on host {}.")
    flags.DEFINE_integer("port", 2222, "Port of the first shard; others count up.", lower_bound=1)
    flags.DEFINE_string("python", "python3", "Interpreter on the hosts.")
    flags.DEFINE_string("directory", None, "Working directory on the hosts; this one by default.")
    flags.DEFINE_string("run_dir", None, "Where the job writes, on all hosts; runs/NAME by default.")
    flags.DEFINE_string("arena_dir", None, "Where shards keep their memory, such as /dev/shm: see --help of ps.")
    flags.DEFINE_string("tls", None, "Folder that `downpour certs` has made, on all hosts.")
    flags.DEFINE_string("token_file", None, "File with the job's token, on all hosts.")
    flags.DEFINE_boolean(
        "listen_in_plain_text_on_the_network", False, "Serve every peer that can reach the hosts, unencrypted."
    )
    entry.run(_main, role="ssh")


if __name__ == "__main__":
    main()
