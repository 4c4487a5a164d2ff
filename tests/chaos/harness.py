"""One run of a job under faults: starts it, strikes it, waits for its end, and counts.

The run's folder has `job`, where the chief writes, `logs` and `intruders.log`. Where disks are to be filled, `job` and
the folder of the arenas are small ones of their own (tmpfs, which takes root).
Entered by the main thread only, as `Supervisor` wants it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc

from downpour.launch.job import Job, recipe
from downpour.launch.local import progress
from downpour.launch.local.progress import ChiefWatcher
from downpour.launch.local.scratch import scratch_folder
from downpour.launch.local.supervisor import ProcessFailed, Supervisor
from downpour.launch.observe.report import SUMMARY_FILE
from downpour.launch.roles import topology
from downpour.proto.chief_pb2 import ProgressReply
from tests.chaos import counting
from tests.chaos.attacks import Attacks, Places
from tests.chaos.cluster import Cluster, Sessions
from tests.chaos.counting import Span
from tests.chaos.proxy import Proxies
from tests.chaos.schedule import FILL, PAUSE, Fault
from tests.chaos.strikes import Strike, Striker

ENVIRONMENT = {"PYTHONUNBUFFERED": "1"}

_START_S = 600.0  # until the first step
_END_S = 120.0  # for workers and evaluator after the chief
_FINDS_NOBODY = "still waiting for the chief"
_LATE = 3.0  # a run that takes so many times its seconds has failed
_ASK_EVERY_S, _ASK_TIMEOUT_S, _TELL_EVERY_S = 1.0, 0.2, 15.0
_DISK_BYTES = 512 << 20  # of a disk that is filled
_CLOCK = Path(__file__).with_name("clock")
_ERRORS = ("error:", "warning:", "Error", "ended with", "Traceback")  # in lines that are shown


@dataclass(frozen=True)
class Run:
    """What to run.

    Attributes:
        recipe: Name or path.
        overrides: Each `key=value`.
        run_dir: Gets logs and results.
        seconds: How long training takes, roughly.
    """

    recipe: str
    overrides: tuple[str, ...]
    run_dir: Path
    seconds: float

    @property
    def job_dir(self) -> Path:
        """Where the chief writes."""
        return self.run_dir / "job"

    def job(self) -> Job:
        """The job that recipe and overrides make."""
        return recipe.load(self.recipe, self.overrides)

    def flags(self) -> dict[str, topology.FlagValue]:
        """What chief, workers and evaluator are told."""
        return {"recipe": self.recipe, "set": self.overrides, "run_dir": self.job_dir}


@dataclass
class Outcome:
    """What came of a run.

    Attributes:
        strikes: The faults.
        times: Of acknowledged pushes, by WORKER/INCARNATION.
        count: What became of every push; None if the shards could not be asked.
        summary: The chief's; empty if it has written none.
        seconds: From the first step to the end of the chief.
        failure: Why the run ended before its time; empty if it did not.
        left: Processes that outlived it.
    """

    strikes: list[Strike] = field(default_factory=list)
    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    count: counting.Count | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    failure: str = ""
    left: list[str] = field(default_factory=list)

    def result(self) -> dict[str, Any]:
        """The figures, by the names under which they are reported."""
        fired = [strike for strike in self.strikes if strike.fired]
        count = self.count or counting.Count(0, ["unknown"], 0, 0)
        return {
            "faults_planned": len(self.strikes),
            "faults_fired": len(fired),
            "faults_by_kind": dict(sorted(Counter(strike.fault.kind for strike in fired).items())),
            "faults_by_role": dict(sorted(Counter(s.fault.target.partition("/")[0] for s in fired).items())),
            "pushes_acknowledged": count.acknowledged,
            "pushes_lost": len(count.lost),
            "pushes_doubled": count.doubled,
            "pushes_repeated": count.repeated,
            "worker_incarnations": len(self.times),
            "longest_stall_s": round(counting.longest_stall_s(self.times, self._pauses()), 2),
            "score": self.summary.get("map_at_100"),
            "global_steps": self.summary.get("global_steps"),
            "processes_left": len(self.left),
            "seconds": round(self.seconds, 1),
            "failure": self.failure,
        }

    def _pauses(self) -> dict[str, list[Span]]:
        """When each worker was paused itself."""
        spans = defaultdict(list)
        for strike in self.strikes:
            role, _, index = strike.fault.target.partition("/")
            if role == "worker" and strike.fault.kind == PAUSE and strike.begun_s is not None:
                spans[index].append(_span(strike))
        return spans


def run(what: Run, faults: Sequence[Fault], *, with_proxies: bool = True) -> Outcome:
    """Runs a job under faults, to its end.

    Raises:
        Interrupted: A signal ended it; no process is left.
    """
    outcome, sessions = Outcome(), Sessions()
    with contextlib.ExitStack() as closing:
        places = closing.enter_context(_places(what, with_disks=any(fault.kind == FILL for fault in faults)))
        proxies = closing.enter_context(Proxies())
        on_line = functools.partial(_hear, outcome)
        supervisor = closing.enter_context(Supervisor(what.run_dir / "logs", _environment(places), on_line))
        used = proxies if with_proxies else None
        cluster = Cluster(supervisor, what.flags(), what.job().cluster, what.job().rule, places.arenas, used)
        striker = Striker(faults, Attacks(supervisor.pids, proxies, places, cluster.command).of, _tell)
        outcome.strikes = striker.strikes
        try:
            cluster.start()
            watch = closing.enter_context(Watch(cluster, striker, what.seconds, sessions))
            supervisor.wait(watch.over)
            outcome.seconds = watch.seconds
            striker.close()
            _end(what, cluster, outcome)
        except (ProcessFailed, grpc.RpcError) as error:
            outcome.failure = str(error)
        finally:
            striker.close()
            sessions.note(supervisor.pids())
    outcome.left = sessions.left()
    return outcome


def _environment(places: Places) -> dict[str, str]:
    """Of the job's processes, whose clocks can be set."""
    path = os.pathsep.join([str(_CLOCK), *filter(None, [os.environ.get("PYTHONPATH")])])
    ours = ENVIRONMENT | {"CHAOS_CLOCKS": str(places.clocks), "PYTHONPATH": path}
    return {key: value for key, value in os.environ.items() if key != "TF_CONFIG"} | ours


@contextlib.contextmanager
def _places(what: Run, *, with_disks: bool) -> Iterator[Places]:
    """The job's folders, empty; what the chief has written is kept when the block ends."""
    shutil.rmtree(what.job_dir, ignore_errors=True)
    what.job_dir.mkdir(parents=True)
    log = what.run_dir / "intruders.log"
    log.unlink(missing_ok=True)
    with scratch_folder() as scratch, contextlib.ExitStack() as disks:
        places = Places(what.job_dir, scratch / "arenas", scratch / "clocks", log)
        places.arenas.mkdir()
        places.clocks.mkdir()
        if with_disks:
            disks.enter_context(_small_disk(places.arenas))
            disks.enter_context(_small_disk(places.run_dir))
        yield places
        if with_disks:
            _keep(what.job_dir)


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _keep(job_dir: Path) -> None:
    """Copies the small files of the run's disk to beside it, since the disk goes away."""
    for path in job_dir.glob("*.json*"):
        shutil.copy2(path, job_dir.parent)


class Watch:
    """Looks at a running job again and again, and lets the faults strike once it trains. A context manager.

    The clock of the faults is the job's steps, on any machine: a fault planned for a third of the seconds strikes
    after a third of the steps. While nothing can train, nothing more is broken.

    Args:
        cluster: The job's processes.
        striker: Carries the faults out.
        seconds: How long training takes, roughly; the faults are planned for so many.
        sessions: Learns of every process.

    Attributes:
        begun_s: When training began, by the monotonic clock; None before.
    """

    def __init__(self, cluster: Cluster, striker: Striker, seconds: float, sessions: Sessions) -> None:
        self.begun_s: float | None = None
        self._cluster, self._striker, self._seconds, self._sessions = cluster, striker, seconds, sessions
        self._watcher = ChiefWatcher(cluster.chief_address())
        self._made_s = time.monotonic()
        self._ask_at = self._tell_at = 0.0
        self._done = 0.0  # part of the job's steps

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._watcher.close()

    @property
    def seconds(self) -> float:
        """Since training began."""
        return 0.0 if self.begun_s is None else time.monotonic() - self.begun_s

    def over(self) -> bool:
        """One look; whether the chief is done.

        Raises:
            ProcessFailed: It takes far too long.
        """
        self._sessions.note(self._cluster.supervisor.pids())
        if time.monotonic() >= self._ask_at:
            self._ask_at = time.monotonic() + _ASK_EVERY_S
            self._ask()
        if self.begun_s is not None:
            self._striker.tick(self._done * self._seconds)
        elif time.monotonic() > self._made_s + _START_S:
            raise ProcessFailed(1, f"no step within {_START_S:.0f} s")
        if self.seconds > _LATE * self._seconds + _END_S:
            raise ProcessFailed(1, f"not done after {self.seconds:.0f} s, {_LATE:.0f} times what was planned")
        return self._cluster.supervisor.exit_code("chief") is not None

    def _ask(self) -> None:
        reply = self._watcher.ask(_ASK_TIMEOUT_S)
        if reply is None:
            return
        self._done = reply.step / max(1, reply.num_steps)
        if self.begun_s is None and reply.state == ProgressReply.STATE_TRAINING and reply.step:
            self.begun_s = time.monotonic()
        if time.monotonic() >= self._tell_at:
            self._tell_at = time.monotonic() + _TELL_EVERY_S
            print(f"[{self.seconds:.0f} s] {progress.summary(reply)}", file=sys.stderr, flush=True)


def _end(what: Run, cluster: Cluster, outcome: Outcome) -> None:
    """Lets workers and evaluator end, asks the shards for their counters, and counts."""
    late = _late(cluster)
    path = what.job_dir / SUMMARY_FILE
    if path.exists():
        outcome.summary = json.loads(path.read_text())
    statuses = cluster.statuses()
    log_dir = what.run_dir / "logs"
    workers = [
        counting.read_worker(lines) for lines in counting.read_logs(log_dir, "worker", cluster.counts.num_workers)
    ]
    shards = [counting.read_shard(lines) for lines in counting.read_logs(log_dir, "ps", cluster.counts.num_ps)]
    repeated = sum(status.pushes_repeated for status in statuses)
    outcome.count = counting.count(workers, shards, [status.pushes for status in statuses], repeated)
    if late:
        outcome.failure = f"{', '.join(late)} did not end {_END_S:.0f} s after the chief"


def _late(cluster: Cluster) -> list[str]:
    """Workers and evaluator that do not end by themselves.

    One that was started anew as the chief ended finds nobody to ask, and waits for as long as it is told to.
    """
    supervisor, deadline_s = cluster.supervisor, time.monotonic() + _END_S
    while True:
        running = supervisor.drain(cluster.clients(), _ASK_EVERY_S)
        late = [name for name in running if _FINDS_NOBODY not in supervisor.reason(name)]
        if not late or time.monotonic() > deadline_s:
            return late


def _hear(outcome: Outcome, name: str, text: str) -> None:
    """Notes when a push was acknowledged; shows what went wrong."""
    event = counting.parse(text)
    if event and event[0] == "acknowledged":
        outcome.times[event[1].rpartition("/")[0]].append(time.monotonic())
    elif any(word in text for word in _ERRORS) and not progress.is_noise(text):
        print(progress.prefixed(name, text), file=sys.stderr, flush=True)


def _tell(strike: Strike) -> None:
    print(f"[fault] {strike}", file=sys.stderr, flush=True)


def _span(strike: Strike) -> Span:
    assert strike.begun_s is not None and strike.ended_s is not None
    return strike.begun_s, strike.ended_s
