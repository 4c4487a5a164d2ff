"""Trains on this machine: every role is a process, started by the same command as in production.

    python -m downpour.launch.local --recipe=quickstart [--set=cluster.num_ps=3] [--run_dir=runs/mine]

A folder that already holds a run is refused unless `--resume` continues that run or `--overwrite` removes it. A folder
in which another job is running is refused.

Order: the job is checked before any role starts: first recipe, data and run folder, then in a separate process the
model, the loss and a batch of the data (`downpour.launch.local.preflight`), while the shards' kernels are compiled.
Shards, chief, workers and evaluator start; crashed processes are restarted, a shard or chief at its old port. When the
chief is done, the others end. The run's folder gets `logs/`, `summary.json` and `learning_curve.png`; the last line on
stdout is `RESULT {json}`. At Ctrl-C or SIGTERM the chief writes a checkpoint, then every process ends, and the last
line has the command to continue; a second signal ends them at once. If the last steps cannot be written to a
checkpoint, the shards' memory is kept, and `--resume` continues from it.

Does not import TensorFlow.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from absl import flags

from downpour import files
from downpour.launch.job import Job, keras_settings, recipe
from downpour.launch.job.build import check_data
from downpour.launch.local import progress
from downpour.launch.local.memory import PeakMemory
from downpour.launch.local.scratch import find_kept, keep, scratch_folder
from downpour.launch.local.supervisor import Interrupted, ProcessFailed, Program, Supervisor
from downpour.launch.observe import report
from downpour.launch.roles import entry, initial, topology
from downpour.proto.chief_pb2 import ProgressReply
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint.storage import Folder, StorageError
from downpour.worker.chief import owner
from downpour.worker.exchange.clients import ChiefClient

topology.define_recipe_flags()
topology.define_checkpoint_flags()
initial.define_flags()
_RUN_DIR = flags.DEFINE_string("run_dir", None, "Where the job writes; runs/NAME of the recipe by default.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Short for --set=batch_size=N.")
_STEPS = flags.DEFINE_integer("steps", None, "Short for --set=num_steps=N.")
if "evaluator" not in flags.FLAGS:  # another module of the same process may have defined it
    flags.DEFINE_boolean("evaluator", True, "Whether to score checkpoints on held-out data.")
_PRINT_LAYOUT = flags.DEFINE_boolean("print_layout", None, "Print the layout first; paper_shape does by default.")
_ARENA_PARENT = flags.DEFINE_string("arena_parent", None, "Where the shards' memory is kept; /dev/shm if it has room.")

_HOST = "127.0.0.1"
_LOCK = "launcher.lock"  # protects a run before its chief holds the chief's own lock
_BIND_TIMEOUT_S = 180.0  # the chief imports TensorFlow and builds its model first
_LOOK_EVERY_S = 1.0  # interval of progress and memory samples
_END_GRACE_S = 30.0  # for workers and evaluator after the chief is done
_ASK_AFTER_FAILURE_S = 5.0  # deadline for a busy chief; a stopped one fails at once
_SAVE_GRACE_S = 60.0  # for a chief whose job has failed
_SAVE_WITHIN_S = 30.0  # after a signal, or the end of another process
_SAVE_LOOK_S = 0.5
_FULL_BYTES = 1 << 20  # with less free space a disk counts as full
_CLOSING_GRACE_S = 10.0  # for a chief that no longer answers
_PREPARED = "prepared.npz"  # in the scratch folder, from the preflight to the chief
_CONTRADICT_WITH_VALUE = ("init_from", "init_only")  # flags that --resume contradicts
_CONTRADICT = (*_CONTRADICT_WITH_VALUE, "resume", "noresume", "resume_if_any", "noresume_if_any", "overwrite")
_ENVIRONMENT = {"PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True)
class Run:
    """What to run and where: the recipe with its overrides, the resulting job, and folders.

    Attributes:
        recipe: Name or path of the recipe.
        overrides: Each `key=value`.
        job: Job of the recipe with the overrides.
        run_dir: Folder for logs, checkpoints and results.
        evaluator: Whether an evaluator is started.
        arena_parent: Parent of the folder for the shards' memory; None to choose.
        source: Source of initial values, passed to the chief; None for fresh ones.
    """

    recipe: str
    overrides: tuple[str, ...]
    job: Job
    run_dir: Path
    evaluator: bool = True
    arena_parent: Path | None = None
    source: initial.Source | None = None

    def common_flags(self) -> dict[str, topology.FlagValue]:
        """Common flags of worker, chief and evaluator."""
        return {"recipe": self.recipe, "set": self.overrides, "run_dir": self.run_dir, **_parent_flag()}


@dataclass
class _Cluster:
    """The processes of a run, once started."""

    supervisor: Supervisor
    run: Run
    scratch: Path
    ports: dict[str, int] = field(default_factory=dict)  # of shards and chief, by process name
    trained: bool = False  # whether a step of this run has been reported
    unsaved: bool = False  # whether only the arenas have the last steps

    def start(self) -> None:
        """Starts every role; shards and chief first, since the others need their addresses."""
        shards = {f"ps/{i}": self._shard_flags(i) for i in range(self.run.job.cluster.num_ps)}
        self._start_servers("ps", shards)
        where = self.run.common_flags() | {"ps": ",".join(self._address(name) for name in shards)}
        source = self.run.source.flags() if self.run.source else {"prepared": self.scratch / _PREPARED}
        chief = where | {"evaluator": self.run.evaluator, **source, **topology.checkpoint_flags()}
        chief["job_id"] = owner.new_job_id()  # a restarted chief continues the same run
        self._start_servers("chief", {"chief": chief})
        where["chief"] = self._address("chief")
        for i in range(self.run.job.cluster.num_workers):
            self.supervisor.start(Program(f"worker/{i}", topology.command("worker", i, where)))
        if self.run.evaluator:
            self.supervisor.start(Program("evaluator", topology.command("evaluator", 0, where)))

    def shards_run(self) -> bool:
        """Whether every shard is running, to write its part of a checkpoint."""
        running = self.supervisor.pids()
        return all(f"ps/{i}" in running for i in range(self.run.job.cluster.num_ps))

    def heard(self, reply: ProgressReply) -> None:
        """Records the progress that the chief reports."""
        self.trained |= reply.step > 0 and reply.state != ProgressReply.STATE_PREPARING

    def chief(self) -> ChiefClient:
        """Returns a client of this cluster's chief."""
        return ChiefClient(self._address("chief"), _SAVE_LOOK_S)

    def clients(self) -> list[str]:
        """Names of the processes that end by themselves when the job is done."""
        workers = [f"worker/{i}" for i in range(self.run.job.cluster.num_workers)]
        return workers + ["evaluator"] * self.run.evaluator

    def watcher(self) -> progress.ChiefWatcher:
        """Returns a watcher of this cluster's chief."""
        return progress.ChiefWatcher(self._address("chief"))

    def _shard_flags(self, index: int) -> dict[str, topology.FlagValue]:
        return {"arena": self.scratch / f"shard-{index}.arena", **_parent_flag()}

    def _start_servers(self, role: str, servers: dict[str, dict[str, topology.FlagValue]]) -> None:
        """Starts processes that listen, waits for their ports, and sets the same ports for restarts."""

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
        ProcessFailed: A process failed; the message has name and reason. Notes of either have the command to continue.
    """
    memory = PeakMemory()
    kept, newest = _kept(job_run), _newest(job_run)
    parent = kept.parent if kept else job_run.arena_parent
    with scratch_folder(parent, kept) as scratch, progress.display() as display:
        environment = {key: value for key, value in os.environ.items() if key != "TF_CONFIG"} | _ENVIRONMENT
        cluster: _Cluster | None = None
        try:
            with Supervisor(job_run.run_dir / "logs", environment, display.line) as supervisor:
                table = _prepare(supervisor, job_run, scratch)
                if print_layout:
                    print(table, flush=True)
                cluster = _Cluster(supervisor, job_run, scratch)
                cluster.start()
                _watch(cluster, display, memory)
                _end(cluster, display)
        except (Interrupted, ProcessFailed) as error:
            if cluster is not None and cluster.unsaved:
                kept = keep(scratch, job_run.run_dir)
            elif kept and _newest(job_run) != newest:  # a newer checkpoint has its steps
                shutil.rmtree(kept, ignore_errors=True)
                kept = None
            if kept or (cluster is not None and cluster.trained):
                error.add_note(_how_to_go_on(job_run, kept))
            raise
    return _finish(job_run.run_dir, memory)


def check(job_run: Run) -> None:
    """Raises `ValueError` for mistakes that can be found before a process starts."""
    if job_run.arena_parent is not None and not os.access(job_run.arena_parent, os.W_OK | os.X_OK):
        raise ValueError(f"folder {job_run.arena_parent} is missing or not writable; give another --arena_parent")
    keras_settings.check()
    check_data(job_run.job)
    if job_run.source:
        initial.check(job_run.source)
    owner.check_free(job_run.run_dir / owner.LOCK)
    checkpoints = Folder(topology.checkpoint_dir(job_run.run_dir))
    kept = find_kept(job_run.arena_parent, job_run.run_dir) if topology.resume() != "no" else None
    if kept:
        _check_kept(kept, job_run.job.cluster.num_ps)
    elif topology.resume() == "yes":
        checkpoint.to_resume(checkpoints)
    elif topology.resume() == "no" and not topology.overwrite():
        owner.check_new_run(job_run.run_dir, checkpoints)
    try:
        (job_run.run_dir / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"run folder {job_run.run_dir}: {error.strerror}; give another --run_dir") from None
    if not os.access(job_run.run_dir, os.W_OK):
        raise ValueError(f"run folder {job_run.run_dir} is not writable; give another --run_dir")
    checkpoints.check()


def _watch(cluster: _Cluster, display: progress.Display, memory: PeakMemory) -> None:
    """Shows progress and samples memory until the chief is done."""
    with closing(cluster.watcher()) as watcher:
        look_at = 0.0

        def done() -> bool:
            nonlocal look_at
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + _LOOK_EVERY_S
                memory.sample(cluster.supervisor.pids())
                reply = watcher.ask()
                if reply:
                    display.show(reply)
                    cluster.heard(reply)
            return cluster.supervisor.exit_code("chief") is not None

        try:
            cluster.supervisor.wait(done)
        except Interrupted:
            _save(cluster, display)
            raise
        except ProcessFailed as error:
            reply = watcher.ask(_ASK_AFTER_FAILURE_S)
            if reply is not None and not reply.failure:
                if cluster.shards_run():
                    _save(cluster, display)
                else:
                    cluster.unsaved = cluster.trained
                raise
            # A worker reported the job's failure to the chief, which saves the last good state, or has and is ending.
            cluster.supervisor.drain(["chief"], _SAVE_GRACE_S if reply else _CLOSING_GRACE_S)
            code = cluster.supervisor.exit_code("chief")
            if code != entry.REFUSED:
                cluster.unsaved = cluster.trained or code == entry.NOT_SAVED
                raise
            raise ProcessFailed(error.code, cluster.supervisor.reason("chief").removeprefix("chief: ")) from None


def _save(cluster: _Cluster, display: progress.Display) -> None:
    """Has the chief write a checkpoint before all processes end, as for a terminating shard.

    Sets `unsaved` without one within `_SAVE_WITHIN_S`. A second signal ends the wait; then nothing is kept.
    """
    supervisor = cluster.supervisor
    with closing(cluster.chief()) as chief:
        if reply := chief.look(_SAVE_LOOK_S):  # the last one is up to a second old
            cluster.heard(reply)
    if not cluster.trained:
        return
    limit = f"for at most {_SAVE_WITHIN_S:.0f} s; a second Ctrl-C ends everything at once"
    display.line("local", f"the chief writes a checkpoint, {limit}")
    begin, incarnation, asking = time.monotonic(), time.time_ns(), cluster.run.job.cluster.num_ps
    with closing(cluster.chief()) as chief:
        while not supervisor.hurried and not supervisor.ended("chief"):
            if chief.leaving(asking, incarnation, _SAVE_LOOK_S):
                return
            if time.monotonic() > begin + _SAVE_WITHIN_S:
                break
            time.sleep(_SAVE_LOOK_S / 5)
    cluster.unsaved = not supervisor.hurried and supervisor.exit_code("chief") not in (entry.OK, entry.REFUSED)


def _kept(job_run: Run) -> Path | None:
    """The folder with the shards' memory from which a resumed run continues. A new run removes it."""
    kept = find_kept(job_run.arena_parent, job_run.run_dir)
    if kept is None:
        return None
    if topology.resume() == "no":
        shutil.rmtree(kept, ignore_errors=True)
        return None
    print(f"[local] goes on with the shards' memory in {kept}", file=sys.stderr)
    for port in kept.glob("*.port"):  # of the previous run
        port.unlink()
    return kept


def _check_kept(kept: Path, num_ps: int) -> None:
    count = len(list(kept.glob("shard-*.arena")))
    if count != num_ps:
        raise ValueError(
            f"{kept} is the memory of {count} shards, with steps that are in no checkpoint, and this run has {num_ps}; "
            f"go on with --set=cluster.num_ps={count} first, or remove that folder to go on from the last checkpoint"
        )


def _how_to_go_on(job_run: Run, kept: Path | None) -> str:
    """Where the last steps are saved, and the command that continues from them."""
    command = f"go on with: {_resume_command()}"
    if kept:
        return f"the last steps are in no checkpoint but in the shards' memory, kept in {kept}; {command}"
    name = _newest(job_run)
    if not name:
        return "no checkpoint was written"
    return f"the checkpoint of step {int(name.removeprefix('step-'))} is in {job_run.run_dir}; {command}"


def _newest(job_run: Run) -> str:
    """Name of the newest complete checkpoint; empty if there is none, or the folder cannot be read."""
    try:
        return max(checkpoint.complete(Folder(topology.checkpoint_dir(job_run.run_dir))), default="")
    except StorageError:
        return ""


def _resume_command() -> str:
    """This command line with `--resume`, without flags that contradict it."""
    program = sys.argv[0] if sys.argv[0].startswith("downpour ") else "python -m downpour.launch.local"
    words, skip = [], False
    for word in sys.argv[1:]:
        name = word.lstrip("-").partition("=")[0]
        if not skip and name not in _CONTRADICT:
            words.append(word)
        skip = not skip and name in _CONTRADICT_WITH_VALUE and "=" not in word
    return f"{program} {shlex.join([*words, '--resume'])}"


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
    try:
        files.write(path, json.dumps(summary, indent=2) + "\n", durable=True)
        report.learning_curve(run_dir)
    except (ValueError, OSError) as error:  # the chief's summary remains
        print(f"[local] {error}", file=sys.stderr)
    return summary


def _prepare(supervisor: Supervisor, job_run: Run, scratch: Path) -> str:
    """Compiles the shards' kernels while another process checks the job; returns the layout's table."""
    out = scratch / "layout.txt"
    values: dict[str, topology.FlagValue] = {"recipe": job_run.recipe, "set": job_run.overrides, "out": out}
    values |= {"preflight": True, "evaluator": job_run.evaluator, "prepared_out": scratch / _PREPARED}
    if not flags.FLAGS["verbosity"].using_default_value:
        values["verbosity"] = flags.FLAGS["verbosity"].value
    supervisor.start(Program("kernels", [sys.executable, "-m", "downpour.ps.apply.kernels"], max_restarts=0))
    supervisor.start(Program("preflight", preflight_command(values | _parent_flag()), max_restarts=0))
    supervisor.wait(lambda: all(supervisor.exit_code(name) is not None for name in ("kernels", "preflight")))
    return out.read_text()


def preflight_command(values: dict[str, topology.FlagValue]) -> list[str]:
    """The command of the process that builds the model, reads a batch and traces the step before any role starts."""
    return [sys.executable, "-m", "downpour.launch.layout_table", *topology.flag_arguments(values)]


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
        evaluator=bool(flags.FLAGS["evaluator"].value),
        arena_parent=Path(_ARENA_PARENT.value) if _ARENA_PARENT.value else None,
        source=initial.from_flags(run_dir),
    )


def _main() -> int | None:
    job_run = _from_flags()
    check(job_run)
    print_layout = job_run.job.name == "paper_shape" if _PRINT_LAYOUT.value is None else _PRINT_LAYOUT.value
    lock = owner.Lock(job_run.run_dir / _LOCK, "launcher")
    try:
        summary = run(job_run, print_layout)
    except Interrupted as error:
        print(f"[local] {error}; every process has ended", file=sys.stderr)
        _print_notes(error)
        return error.code
    except ProcessFailed as error:
        _print_notes(error)
        full = shutil.disk_usage(job_run.run_dir).free < _FULL_BYTES
        print(f"[local] error: {error}{f'; the disk of {job_run.run_dir} is full' if full else ''}", file=sys.stderr)
        return error.code
    finally:
        lock.close()
    print(report.cost_table(summary))
    if ended := report.early_end(summary, job_run.job):
        print(ended)
    print(f"RESULT {json.dumps(summary)}", flush=True)
    return None


def _print_notes(error: BaseException) -> None:
    for note in getattr(error, "__notes__", ()):
        print(f"[local] {note}", file=sys.stderr)


def main() -> None:
    """Runs the recipe of the flags."""
    entry.run(_main, role="local")
