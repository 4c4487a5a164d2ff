"""Trains a small job for an hour, undisturbed, and looks for what grows: files, threads, processes, memory.

    python -m tests.chaos.soak [--seconds=3600] [--warm_up_s=600] [--every_s=30] [--run_dir=runs/soak]

Writes `samples.tsv`, one line a process and sample, prints a table, and ends with a line `RESULT {json}`: means of the
first and the last quarter of the time, and slopes per hour. Exit code 1 if files, threads or processes have become
more, memory has grown by more than 5 %, or a process had to be started again.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

from absl import flags

from downpour.launch.job import recipe
from downpour.launch.local.scratch import scratch_folder
from downpour.launch.local.supervisor import Interrupted, ProcessFailed, Supervisor
from downpour.launch.roles import entry
from tests.chaos.cluster import Cluster, Flags, Sessions
from tests.chaos.growth import sample, table, trends
from tests.chaos.harness import ENVIRONMENT
from tests.launch.jobs import write_recipe

_RUN_DIR = flags.DEFINE_string("run_dir", "runs/soak", "Folder of samples, logs and checkpoints.")
_SECONDS = flags.DEFINE_float("seconds", 3600.0, "Of sampling.", 1.0)
_EVERY_S = flags.DEFINE_float("every_s", 30.0, "Seconds between samples.", 0.1)
_WARM_UP_S = flags.DEFINE_float(
    "warm_up_s", 600.0, "Before the first sample: everything is loaded, pools of threads have filled.", 0
)

_START_S = 600.0
_OVERRIDES = ("num_steps=1000000000", "checkpoint_every_steps=1000", "clip=Clip(by_global_norm=1)")


class Soak:
    """Samples a running job; `look` is called again and again by the main thread."""

    def __init__(self, supervisor: Supervisor, out: Path, every_s: float) -> None:
        self.series: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        self.begun_s = time.monotonic()
        self._supervisor, self._out, self._every_s = supervisor, out, every_s
        self._next_s = self.begun_s
        self._pids = supervisor.pids()
        self._sessions = Sessions()
        self.restarts = 0
        out.write_text("seconds\tprocess\tquantity\tvalue\n")

    def look(self) -> None:
        """Takes a sample if it is time."""
        pids = self._supervisor.pids()
        self.restarts += sum(self._pids.get(name) != pid for name, pid in pids.items())
        self._pids |= pids
        self._sessions.note(pids)
        if time.monotonic() < self._next_s:
            return
        self._next_s += self._every_s
        seconds = time.monotonic() - self.begun_s
        values = sample(pids) | {("all", "processes"): float(len(self._sessions.left()))}
        with self._out.open("a") as file:
            for key, value in values.items():
                self.series[key].append((seconds, value))
                file.write(f"{seconds:.1f}\t{key[0]}\t{key[1]}\t{value:.2f}\n")


def run(run_dir: Path, seconds: float, every_s: float, warm_up_s: float) -> Soak:
    """Trains and samples.

    Raises:
        Interrupted: A signal ended it.
        ProcessFailed: The job did not start, or was refused.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    for manifest in _manifests(run_dir):  # of a run before, which would be taken for this one's
        manifest.unlink()
    path = write_recipe(run_dir)
    job = recipe.load(path)
    common: Flags = {"recipe": path, "set": _OVERRIDES, "run_dir": run_dir}
    environment = {key: value for key, value in os.environ.items() if key != "TF_CONFIG"} | ENVIRONMENT
    with scratch_folder() as scratch, Supervisor(run_dir / "logs", environment) as supervisor:
        cluster = Cluster(supervisor, common, job.cluster, job.rule, scratch, verbose=False)
        cluster.start()
        if not supervisor.wait(lambda: bool(_manifests(run_dir)), _START_S):
            raise ProcessFailed(1, f"no checkpoint within {_START_S:.0f} s; see {run_dir}/logs")
        supervisor.wait(lambda: False, warm_up_s)
        soak = Soak(supervisor, run_dir / "samples.tsv", every_s)

        def over() -> bool:
            soak.look()
            return time.monotonic() > soak.begun_s + seconds

        supervisor.wait(over)
    return soak


def _manifests(run_dir: Path) -> list[Path]:
    return list(run_dir.glob("checkpoints/step-*/manifest.json"))


def _main() -> int | None:
    try:
        soak = run(Path(_RUN_DIR.value), _SECONDS.value, _EVERY_S.value, _WARM_UP_S.value)
    except Interrupted as error:
        print(f"[soak] {error}; every process has ended", file=sys.stderr)
        return error.code
    found = trends(soak.series)
    growing = [f"{name} {quantity}" for name, of in found.items() for quantity, trend in of.items() if trend.grows]
    print(table(found))
    figures = {name: {quantity: asdict(trend) for quantity, trend in of.items()} for name, of in found.items()}
    result = {"seconds": _SECONDS.value, "growing": growing, "restarts": soak.restarts, "trends": figures}
    print(f"RESULT {json.dumps(result)}", flush=True)
    return 1 if growing or soak.restarts else None


if __name__ == "__main__":
    entry.run(_main, role="soak")
