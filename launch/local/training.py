"""A run on this machine from its first process to its summary.

Order: the model, the loss and a batch of the data are checked in a process of their own
(`downpour.launch.local.preflight`), while the shards' kernels are compiled. Shards, chief, workers and evaluator start;
crashed processes are restarted, a shard or chief at its old port. When the chief is done, the others are ended.

Entered by the thread of the supervisor only. Does not import TensorFlow.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from downpour import files
from downpour.launch.local import saving
from downpour.launch.local.cluster import LocalCluster
from downpour.launch.local.config import RunConfig
from downpour.launch.local.memory import PeakMemory
from downpour.launch.local.progress import Display
from downpour.launch.local.scratch import keep, scratch_folder
from downpour.launch.local.supervisor import ProcessFailed, Stopped, Supervisor
from downpour.launch.observe import report
from downpour.launch.roles import entry
from downpour.worker.chief import owner

_LOOK_EVERY_S = 1.0  # interval of progress and memory samples
_END_GRACE_S = 30.0  # for workers and evaluator after the chief is done
_ASK_AFTER_FAILURE_S = 5.0  # deadline for a busy chief; a stopped one fails at once
_SAVE_GRACE_S = 60.0  # for a chief whose job has failed
_CLOSING_GRACE_S = 10.0  # for a chief that no longer answers


def train(config: RunConfig, supervisor: Supervisor, display: Display) -> dict[str, Any]:
    """Runs a job to its end; `config.check` has accepted its configuration.

    Returns:
        The summary, as in `summary.json`.

    Raises:
        Stopped: The supervisor was interrupted.
        ProcessFailed: A process failed; the message has name and reason. Notes of either say how to continue.
    """
    memory = PeakMemory()
    kept, newest = saving.take_kept(config, display), saving.newest(config)
    parent = kept.parent if kept else config.arena_parent
    with scratch_folder(parent, kept) as scratch, display:
        cluster = LocalCluster(supervisor, config, scratch)
        try:
            with supervisor:
                table = cluster.prepare()
                if config.shows_layout:
                    print(table, flush=True)
                cluster.start()
                if cluster.page:
                    display.line("local", f"page {cluster.page}")
                _watch(cluster, display, memory)
                _end(cluster, display)
        except (Stopped, ProcessFailed) as error:
            if cluster.unsaved:
                kept = keep(scratch, config.folder)
            elif kept and saving.newest(config) != newest:  # a newer checkpoint has its steps
                shutil.rmtree(kept, ignore_errors=True)
                kept = None
            if kept or cluster.trained:
                error.add_note(saving.how_to_go_on(config, kept))
            if isinstance(error, ProcessFailed):
                refused = error.code == entry.REFUSED and not cluster.trained
                owner.write_failure(config.folder, f"{'refused before training: ' if refused else ''}{error}")
            if cluster.trained:
                saving.report(config.folder, display)
            raise
    return _finish(config.folder, memory, display)


def _watch(cluster: LocalCluster, display: Display, memory: PeakMemory) -> None:
    """Shows progress and samples memory until the chief is done."""
    with closing(cluster.watcher()) as watcher:
        look_at = 0.0

        def done() -> bool:
            nonlocal look_at
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + _LOOK_EVERY_S
                memory.sample(cluster.supervisor.pids())
                reply = watcher.ask(detailed=display.detailed)
                if reply:
                    display.show(reply)
                    cluster.record(reply)
            return cluster.supervisor.exit_code("chief") is not None

        try:
            cluster.supervisor.wait(done)
        except Stopped:
            saving.save(cluster, display)
            raise
        except ProcessFailed as error:
            reply = watcher.ask(_ASK_AFTER_FAILURE_S)
            if reply is not None and not reply.failure:
                if cluster.all_shards_run():
                    saving.save(cluster, display)
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


def _end(cluster: LocalCluster, display: Display) -> None:
    """Ends workers and evaluator, then the shards.

    The chief ends after the last report of every worker that has registered and the last score. So at SIGTERM a worker
    that has trained ends by itself, and a process that is still starting, or looks for the chief, ends at once.
    """
    for name in cluster.supervisor.drain(cluster.clients(), _END_GRACE_S, terminate=True):
        display.line("local", f"{name} did not end {_END_GRACE_S:.0f} s after the chief; stopping it")
    for name in cluster.clients():
        if cluster.supervisor.exit_code(name) not in (None, entry.OK, entry.TERMINATED, -signal.SIGTERM):
            display.line("local", f"failed after the chief was done: {cluster.supervisor.reason(name)}")
    cluster.supervisor.stop()


def _finish(run_dir: Path, memory: PeakMemory, display: Display) -> dict[str, Any]:
    """Adds the memory to the chief's summary, draws the learning curve and writes the report."""
    path = run_dir / report.SUMMARY_FILE
    if not path.exists():
        raise ProcessFailed(1, f"the chief ended without {path}; see {run_dir}/logs/chief.log")
    summary: dict[str, Any] = json.loads(path.read_text()) | memory.summary()
    try:
        files.write(path, json.dumps(summary, indent=2) + "\n", durable=True)
        report.learning_curve(run_dir)
    except (ValueError, OSError) as error:  # the chief's summary remains
        display.line("local", str(error))
    saving.report(run_dir, display)
    return summary
