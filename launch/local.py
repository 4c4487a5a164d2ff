"""Trains on this machine: every role a process of its own, started by the commands that production runs.

    python -m downpour.launch.local --recipe=quickstart [--set=cluster.num_ps=3] [--run_dir=runs/mine] [--resume]

Order: the job is checked (recipe, data, run folder) before anything starts; the shards' kernels are compiled once;
shards, chief, workers and evaluator start; what crashes is restarted, a shard or chief at its old port. When the
chief is done, the rest ends. The folder of the run gets `logs/`, `summary.json` and `learning_curve.png`; the last
line on stdout is `RESULT {json}`. Ctrl-C or SIGTERM ends every process.

Does not import TensorFlow.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from absl import flags

from downpour.launch import entry, initial, progress, recipe, report, topology
from downpour.launch.job import Job
from downpour.launch.memory import PeakMemory
from downpour.launch.scratch import scratch_folder
from downpour.launch.supervisor import Interrupted, ProcessFailed, Program, Supervisor
from downpour.ps import checkpoint
from downpour.ps.storage import Folder

topology.define_recipe_flags()
topology.define_checkpoint_flags()
initial.define_flags()
_RUN_DIR = flags.DEFINE_string("run_dir", None, "Where the job writes; runs/NAME of the recipe by default.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Short for --set=batch_size=N.")
_STEPS = flags.DEFINE_integer("steps", None, "Short for --set=num_steps=N.")
_EVALUATOR = flags.DEFINE_boolean("evaluator", True, "Whether to score checkpoints on held-out data.")
_PRINT_LAYOUT = flags.DEFINE_boolean("print_layout", None, "Print the layout first; paper_shape does by default.")
_ARENA_PARENT = flags.DEFINE_string("arena_parent", None, "Where the shards' memory is kept; /dev/shm if it has room.")

_HOST = "127.0.0.1"
_BIND_TIMEOUT_S = 180.0  # the chief imports TensorFlow and builds its model first
_LOOK_EVERY_S = 1.0  # at progress and memory
_END_GRACE_S = 30.0  # for workers and evaluator after the chief is done
_ASK_AFTER_FAILURE_S = 5.0  # a chief that is busy, but not for one that is gone, which is known at once
_SAVE_GRACE_S = 60.0  # for a chief whose job has failed
_CLOSING_GRACE_S = 10.0  # for a chief that answers no more
_ENVIRONMENT = {"PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True)
class Run:
    """What to run and where: the recipe with its overrides, the job they make, and folders.

    Attributes:
        recipe: Name or path.
        overrides: Each `key=value`.
        job: What they make.
        run_dir: Gets logs, checkpoints and results.
        evaluator: Whether one is started.
        arena_parent: Of the folder for the shards' memory; None to choose.
        source: Of initial values, as the chief is told; None for fresh ones.
    """

    recipe: str
    overrides: tuple[str, ...]
    job: Job
    run_dir: Path
    evaluator: bool = True
    arena_parent: Path | None = None
    source: initial.Source | None = None

    def common_flags(self) -> dict[str, topology.FlagValue]:
        """What worker, chief and evaluator are all told."""
        return {"recipe": self.recipe, "set": self.overrides, "run_dir": self.run_dir, **_parent_flag()}


@dataclass
class _Cluster:
    """The processes of a run, once started."""

    supervisor: Supervisor
    run: Run
    scratch: Path
    ports: dict[str, int] = field(default_factory=dict)  # of shards and chief, by process name

    def start(self) -> None:
        """Starts every role; shards and chief first, since the others need their addresses."""
        shards = {f"ps/{i}": self._shard_flags(i) for i in range(self.run.job.cluster.num_ps)}
        self._start_servers("ps", shards)
        where = self.run.common_flags() | {"ps": ",".join(self._address(name) for name in shards)}
        source = self.run.source.flags() if self.run.source else {}
        chief = where | {"evaluator": self.run.evaluator, **source, **topology.checkpoint_flags()}
        self._start_servers("chief", {"chief": chief})
        where["chief"] = self._address("chief")
        for i in range(self.run.job.cluster.num_workers):
            self.supervisor.start(Program(f"worker/{i}", topology.command("worker", i, where)))
        if self.run.evaluator:
            self.supervisor.start(Program("evaluator", topology.command("evaluator", 0, where)))

    def clients(self) -> list[str]:
        """Names of the processes that end by themselves when the job is done."""
        workers = [f"worker/{i}" for i in range(self.run.job.cluster.num_workers)]
        return workers + ["evaluator"] * self.run.evaluator

    def watcher(self) -> progress.ChiefWatcher:
        """Asks this cluster's chief."""
        return progress.ChiefWatcher(self._address("chief"))

    def _shard_flags(self, index: int) -> dict[str, topology.FlagValue]:
        return {"arena": self.scratch / f"shard-{index}.arena", **_parent_flag()}

    def _start_servers(self, role: str, servers: dict[str, dict[str, topology.FlagValue]]) -> None:
        """Starts processes that listen, waits for their ports, and has them restarted with the same ones."""

        def command(name: str, port: int) -> list[str]:
            index = int(name.partition("/")[2] or 0)
            listen: dict[str, topology.FlagValue] = {"host": _HOST, "port": port, "port_file": self._port_file(name)}
            return topology.command(role, index, listen | servers[name])

        for name in servers:
            endless = role == "ps"
            self.supervisor.start(Program(name, command(name, 0), endless=endless))
        for name in servers:
            self.ports[name] = self._wait_for_port(name)
            self.supervisor.change_command(name, command(name, self.ports[name]))

    def _wait_for_port(self, name: str) -> int:
        file = self._port_file(name)
        if not self.supervisor.wait(file.exists, _BIND_TIMEOUT_S):
            raise ProcessFailed(1, f"{name} did not listen within {_BIND_TIMEOUT_S:.0f} s; see {self.run.run_dir}/logs")
        return int(file.read_text())

    def _port_file(self, name: str) -> Path:
        return self.scratch / f"{name.replace('/', '-')}.port"

    def _address(self, name: str) -> str:
        return f"{_HOST}:{self.ports[name]}"


def run(job_run: Run, print_layout: bool = False) -> dict[str, Any]:
    """Runs a job to its end.

    Returns:
        The summary, as in `summary.json`.

    Raises:
        Interrupted: A signal ended it.
        ProcessFailed: A process did; its message says which and why.
    """
    memory = PeakMemory()
    with scratch_folder(job_run.arena_parent) as scratch, progress.display() as display:
        environment = {key: value for key, value in os.environ.items() if key != "TF_CONFIG"} | _ENVIRONMENT
        with Supervisor(job_run.run_dir / "logs", environment, display.line) as supervisor:
            # Patterns that match no variable are refused here, before any role starts.
            job = job_run.job
            if print_layout or job.frozen or job.rates or job.statistics or job.local:
                table = _layout_table(supervisor, job_run, scratch / "layout.txt")
                if print_layout:
                    print(table, flush=True)
            supervisor.run(Program("kernels", [sys.executable, "-m", "downpour.ps.kernels"], max_restarts=0))
            cluster = _Cluster(supervisor, job_run, scratch)
            cluster.start()
            _watch(cluster, display, memory)
            _end(cluster, display)
    return _finish(job_run.run_dir, memory)


def check(job_run: Run) -> None:
    """Raises `ValueError` for what can be known to be wrong before a process starts."""
    if job_run.arena_parent is not None and not os.access(job_run.arena_parent, os.W_OK | os.X_OK):
        raise ValueError(f"folder {job_run.arena_parent} is missing or not writable; give another --arena_parent")
    job_run.job.data.check()
    if job_run.source:
        initial.check(job_run.source)
    checkpoints = Folder(topology.checkpoint_dir(job_run.run_dir))
    if topology.resume() == "yes":
        checkpoint.to_resume(checkpoints)
    try:
        (job_run.run_dir / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"run folder {job_run.run_dir}: {error.strerror}; give another --run_dir") from None
    if not os.access(job_run.run_dir, os.W_OK):
        raise ValueError(f"run folder {job_run.run_dir} is not writable; give another --run_dir")
    checkpoints.check()


def _watch(cluster: _Cluster, display: progress.Display, memory: PeakMemory) -> None:
    """Shows progress and samples memory until the chief is done."""
    with _closing(cluster.watcher()) as watcher:
        look_at = 0.0

        def done() -> bool:
            nonlocal look_at
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + _LOOK_EVERY_S
                memory.sample(cluster.supervisor.pids())
                reply = watcher.ask()
                if reply:
                    display.show(reply)
            return cluster.supervisor.exit_code("chief") is not None

        try:
            cluster.supervisor.wait(done)
        except ProcessFailed as error:
            reply = watcher.ask(_ASK_AFTER_FAILURE_S)
            if reply is not None and not reply.failure:
                raise
            # A worker failed the job and told the chief, which now saves the last good state, or has and is ending.
            cluster.supervisor.drain(["chief"], _SAVE_GRACE_S if reply else _CLOSING_GRACE_S)
            if cluster.supervisor.exit_code("chief") != entry.REFUSED:
                raise
            raise ProcessFailed(error.code, cluster.supervisor.reason("chief").removeprefix("chief: ")) from None


def _end(cluster: _Cluster, display: progress.Display) -> None:
    """Lets workers and evaluator end by themselves, then stops them and the shards."""
    for name in cluster.supervisor.drain(cluster.clients(), _END_GRACE_S):
        display.line("local", f"{name} did not end {_END_GRACE_S:.0f} s after the chief; stopping it")
    for name in cluster.clients():
        if cluster.supervisor.exit_code(name):
            display.line("local", f"failed after the chief was done: {cluster.supervisor.reason(name)}")
    cluster.supervisor.stop()


def _finish(run_dir: Path, memory: PeakMemory) -> dict[str, Any]:
    """Adds the memory to the chief's summary and draws the learning curve."""
    path = run_dir / report.SUMMARY_FILE
    if not path.exists():
        raise ProcessFailed(1, f"the chief ended without {path}; see {run_dir}/logs/chief.log")
    summary: dict[str, Any] = json.loads(path.read_text()) | memory.summary()
    part = path.with_suffix(".json.part")
    part.write_text(json.dumps(summary, indent=2) + "\n")
    part.replace(path)
    try:
        report.learning_curve(run_dir)
    except ValueError as error:
        print(f"[local] {error}", file=sys.stderr)
    return summary


def _layout_table(supervisor: Supervisor, job_run: Run, out: Path) -> str:
    """Has another process make the layout, as it needs TensorFlow to know the model's variables."""
    values: dict[str, topology.FlagValue] = {"recipe": job_run.recipe, "set": job_run.overrides, "out": out}
    command = [sys.executable, "-m", "downpour.launch.layout_table", *topology.flag_arguments(values | _parent_flag())]
    supervisor.run(Program("layout", command, max_restarts=0))
    return out.read_text()


@contextmanager
def _closing(watcher: progress.ChiefWatcher) -> Iterator[progress.ChiefWatcher]:
    try:
        yield watcher
    finally:
        watcher.close()


def _parent_flag() -> dict[str, topology.FlagValue]:
    return {"die_with_parent": os.getpid()}


def _from_flags() -> Run:
    shortcuts = (("batch_size", _BATCH_SIZE.value), ("num_steps", _STEPS.value))
    flags.FLAGS["set"].value = [
        *(flags.FLAGS["set"].value or []),
        *(f"{key}={value}" for key, value in shortcuts if value is not None),
    ]
    job = recipe.from_flags()
    run_dir = Path(_RUN_DIR.value or Path("runs") / job.name)
    return Run(
        recipe=str(flags.FLAGS["recipe"].value),
        overrides=tuple(flags.FLAGS["set"].value or ()),
        job=job,
        run_dir=run_dir,
        evaluator=bool(_EVALUATOR.value),
        arena_parent=Path(_ARENA_PARENT.value) if _ARENA_PARENT.value else None,
        source=initial.from_flags(run_dir),
    )


def _main() -> int | None:
    job_run = _from_flags()
    check(job_run)
    print_layout = job_run.job.name == "paper_shape" if _PRINT_LAYOUT.value is None else _PRINT_LAYOUT.value
    try:
        summary = run(job_run, print_layout)
    except Interrupted as error:
        print(f"[local] {error}; every process has ended", file=sys.stderr)
        return error.code
    except ProcessFailed as error:
        print(f"[local] error: {error}", file=sys.stderr)
        return error.code
    print(report.cost_table(summary))
    print(f"RESULT {json.dumps(summary)}", flush=True)
    return None


def main() -> None:
    """Runs the recipe of the flags."""
    entry.run(_main, role="local")


if __name__ == "__main__":
    main()
