"""What is kept of a run that ends: its report, and of its last steps a checkpoint, else the shards' memory.

Entered by the thread of the supervisor only.
"""

from __future__ import annotations

import shutil
import time
from contextlib import closing
from pathlib import Path

from downpour.launch.job import mistakes
from downpour.launch.local.cluster import LocalCluster
from downpour.launch.local.config import RunConfig
from downpour.launch.local.progress import Display
from downpour.launch.local.scratch import find_kept
from downpour.launch.observe.reports.run import write_report
from downpour.launch.roles import entry
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint.storage import Folder, StorageError

_SAVE_WITHIN_S = 30.0  # after a signal, or the end of another process
_SAVE_LOOK_S = 0.5


def save(cluster: LocalCluster, display: Display) -> None:
    """Has the chief write a checkpoint before all processes end, as for a terminating shard.

    Sets `unsaved` without one within `_SAVE_WITHIN_S`. A second signal ends the wait; then nothing is kept.
    """
    supervisor = cluster.supervisor
    with closing(cluster.chief(_SAVE_LOOK_S)) as chief:
        if reply := chief.look(_SAVE_LOOK_S):  # the last one is up to a second old
            cluster.record(reply)
    if not cluster.trained or supervisor.hurried:
        return
    second = "; a second Ctrl-C ends everything at once" if supervisor.signalled else ""
    display.line("local", f"the chief writes a checkpoint, for at most {_SAVE_WITHIN_S:.0f} s{second}")
    begin, incarnation, asking = time.monotonic(), time.time_ns(), cluster.config.job.cluster.num_ps
    with closing(cluster.chief(_SAVE_LOOK_S)) as chief:
        while not supervisor.hurried and not supervisor.ended("chief"):
            if chief.leaving(asking, incarnation, _SAVE_LOOK_S):
                return
            if time.monotonic() > begin + _SAVE_WITHIN_S:
                break
            time.sleep(_SAVE_LOOK_S / 5)
    cluster.unsaved = not supervisor.hurried and supervisor.exit_code("chief") not in (entry.OK, entry.REFUSED)


def report(run_dir: Path, display: Display) -> None:
    """Writes the report of a run and says where it is; where it cannot be made, one line says why."""
    try:
        display.line("local", f"the report of the run is {write_report(run_dir)}")
    except Exception as error:  # of whatever the folder holds: the run itself has ended as it has
        display.line("local", f"no report of the run: {mistakes.describe(error)}")


def take_kept(config: RunConfig, display: Display) -> Path | None:
    """The folder with the shards' memory from which a resumed run continues. A new run removes it."""
    kept = find_kept(config.arena_parent, config.folder)
    if kept is None:
        return None
    if config.checkpoints.resume == "no":
        shutil.rmtree(kept, ignore_errors=True)
        return None
    display.line("local", f"continues with the shards' memory in {kept}")
    for port in kept.glob("*.port"):  # of the previous run
        port.unlink()
    return kept


def newest(config: RunConfig) -> str:
    """Name of the newest complete checkpoint; empty if there is none, or the folder cannot be read."""
    try:
        return max(checkpoint.complete(Folder(config.checkpoints.of(config.folder))), default="")
    except StorageError:
        return ""


def how_to_go_on(config: RunConfig, kept: Path | None) -> str:
    """Where the last steps are saved, and how the run continues from them."""
    command = f"continue with: {config.how_to_resume}"
    if kept:
        return f"the last steps are in no checkpoint but in the shards' memory, kept in {kept}; {command}"
    name = newest(config)
    if not name:
        return "no checkpoint was written"
    return f"the checkpoint of step {int(name.removeprefix('step-'))} is in {config.folder}; {command}"
