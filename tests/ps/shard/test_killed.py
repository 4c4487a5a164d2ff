"""A shard that is killed at any named point loses nothing and doubles nothing.

Each test kills a process (`tests.ps.killable`) with SIGKILL, starts another on the same arena, has every push that was
not answered sent again, as its worker would, and compares with a run that nobody disturbed: parameters, slots, average,
sum, rounds, counters and ledger, what the workers were answered, and the checkpoint's file, bit for bit.
"""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from downpour.ps.memory.arena import Arena
from downpour.ps.shard.shard import Shard
from tests.ps import killable
from tests.ps.killable import SCENARIOS, new_arena

pytestmark = pytest.mark.process

# What a run passes that creates its arena, has one push dropped or late, and comes to its end.
EXPECTED = {
    *("arena.emptied", "arena.reserved", "arena.described", "arena.slots", "arena.averaged", "arena.complete"),
    *("ledger.reopened", "ledger.incarnation", "ledger.begun", "ledger.dropped", "ledger.counted"),
    *(f"bookkeeping.{when}" for when in ("described", "armed", "changed", "disarmed")),
    *(f"step.{when}" for when in ("described", "armed", "copied", "saved", "changed", "advanced", "disarmed")),
    *("apply.decoded", "apply.updated", "apply.logged", "apply.advanced", "apply.skipped", "update.unconstrained"),
    *("sync.arrived", "sync.summed", "sync.completed", "sync.updated", "sync.version"),
    *("complete.counted", "complete.version", "complete.ledger", "finish.done"),
    *(f"storage.{when}" for when in ("opened", "piece", "written", "renamed")),
    *("arena.flushed", "arena.closed"),
}
# Those that always pass the same points equally often.
IN_ORDER = [name for name, scenario in SCENARIOS.items() if not scenario.exact]
ALL_IN_ORDER = pytest.mark.parametrize("scenario", IN_ORDER)
# What each of these has, pairs of the others have, too: gradients of this kind, an average, and pushes in this order.
_PAIRED = ("interleaved", "sparse", "constrained")
PAIRS_IN_ORDER = pytest.mark.parametrize(
    "scenario", [pytest.param(name, marks=[pytest.mark.slow] * (name in _PAIRED)) for name in IN_ORDER]
)
AT_ONCE = "at once"


class Killer:
    """Runs jobs in processes of their own, and compares what they leave with an undisturbed run.

    Attributes:
        passed: By scenario, how often an undisturbed run passes each point.
        num_kills: Processes killed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.ps.killable"],
            cwd=Path(__file__).parents[3],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.num_kills = 0
        self.passed: dict[str, dict[str, int]] = {}
        for scenario in SCENARIOS:
            self.passed[scenario] = passed_in(self.undisturbed(scenario))

    def undisturbed(self, scenario: str, repeated: int = 0) -> Path:
        """The folder of an undisturbed run in which so many times a push came again."""
        folder = self._folder / f"{scenario}-{repeated}"
        if not folder.exists():
            self._run(folder, scenario, repeated=repeated)
        return folder

    def new_folder(self) -> Path:
        return self._folder / str(next(self._numbers))

    def kill(self, folder: Path, scenario: str, point: str, passing: int) -> None:
        """Runs until a point is passed for the `passing`-th time, at which the process must have died."""
        code = self._exit_code(folder, scenario, point, passing, 0)
        assert code == -signal.SIGKILL, f"{scenario} should die at {point}, passing {passing}; exit code {code}"
        self.num_kills += 1

    def finish(self, folder: Path, scenario: str, where: str) -> dict[str, int]:
        """Runs to the end, compares, and removes the folder; returns how often each point was passed."""
        self._run(folder, scenario)
        mine, repeated = state(folder), num_repeated(folder)
        if scenario in IN_ORDER:
            assert told(folder) == told(self.undisturbed(scenario)), where
            assert repeated == sum(answer[-1] for answer in killable.answers(folder)) <= 1, where
        theirs = self.undisturbed(scenario, repeated)
        for name, value in state(theirs).items():
            np.testing.assert_array_equal(mine[name], value, f"{where}: {name}")
        assert checkpoint_files(folder) == checkpoint_files(theirs), where
        passed = passed_in(folder)
        shutil.rmtree(folder)
        return passed

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(60) == 0

    def _run(self, folder: Path, scenario: str, repeated: int = 0) -> None:
        assert self._exit_code(folder, scenario, "", 0, repeated) == 0

    def _exit_code(self, folder: Path, *job: str | int) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(folder), *job]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    # In memory if possible: kills do not reach the disk, but thousands of fsyncs would.
    memory = Path("/dev/shm")
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder,
    ):
        killable.shrink(patch.setattr)  # arenas are opened here, too
        killer = Killer(Path(folder))
        yield killer
        killer.stop()


def passed_in(folder: Path) -> dict[str, int]:
    """How often the last run to its end has passed each point."""
    counts: dict[str, int] = json.loads((folder / "passed.json").read_text())
    return counts


def told(folder: Path) -> dict[tuple[int, ...], tuple[int, ...]]:
    """What workers were answered to each push: version, staleness, dropped; not whether it had come before."""
    return {answer[:2]: answer[2:-1] for answer in killable.answers(folder)}


def checkpoint_files(folder: Path) -> dict[str, bytes]:
    """Files under their own names; a write that was cut off leaves one whose name begins with a dot."""
    files = (folder / "checkpoint").glob("[!.]*")
    return {path.name: path.read_bytes() for path in files}


def num_repeated(folder: Path) -> int:
    """How often a push came after it had been counted, because the answer was lost."""
    arena = Arena.open(folder / "arena")
    assert arena is not None
    arena.close()
    return int(arena.counters["repeated"])


def state(folder: Path) -> dict[str, np.ndarray]:
    """Bits of all that an arena holds."""
    arena = Arena.open(folder / "arena")
    assert arena is not None
    copies = {name: part.copy().view(np.uint8) for name, part in {**arena.vectors, **arena.records}.items()}
    arena.close()
    return copies


def some(count: int) -> list[int]:
    """The first, the middle and the last of passings 1 to `count`."""
    return sorted({1, (count + 1) // 2, count})


def kill_at(killer: Killer, scenario: str, passings: Callable[[int], list[int]]) -> None:
    """Kills a run at each of some passings of every point, and lets another finish it."""
    whole = checkpoint_files(killer.undisturbed(scenario))
    for point, count in killer.passed[scenario].items():
        for passing in passings(count):
            folder, where = killer.new_folder(), f"{scenario} killed at {point}, passing {passing} of {count}"
            killer.kill(folder, scenario, point, passing)
            assert checkpoint_files(folder) in ({}, whole), f"{where}: a file that is not whole has its name"
            killer.finish(folder, scenario, where)


def test_norms_are_within_pieces_and_what_is_left_holds(killer: Killer) -> None:
    layout = killable.CONSTRAINED
    regions = Shard(new_arena(None, SCENARIOS["constrained"])).vector.regions
    assert [len(region.pieces) for region in regions] == [4, 2, 2, 1, 1]
    pieces = [piece for region in regions for piece in region.pieces]
    for begin, end in layout.uncut(0):
        assert sum(start <= begin and end <= stop for start, stop in pieces) == 1
    vector = state(killer.undisturbed("constrained"))["parameters"].view(np.float32)
    values = dict(zip([v.name for v in layout.variables], layout.gather([vector]), strict=True))
    assert np.linalg.norm(values["k"], axis=0).max() <= 1 and values["b"].min() == 0
    np.testing.assert_allclose(np.linalg.norm(values["u"], axis=1), 1, rtol=1e-6)


def test_the_scenarios_pass_every_point(killer: Killer) -> None:
    assert len(EXPECTED) >= 20
    assert set().union(*killer.passed.values()) == EXPECTED


@PAIRS_IN_ORDER
def test_killed_at_each_point(killer: Killer, scenario: str) -> None:
    before = killer.num_kills
    kill_at(killer, scenario, some)
    assert killer.num_kills - before >= 2 * len(killer.passed[scenario])


@pytest.mark.slow
@ALL_IN_ORDER
def test_killed_at_each_passing_of_each_point(killer: Killer, scenario: str) -> None:
    kill_at(killer, scenario, lambda count: list(range(1, count + 1)))


@PAIRS_IN_ORDER
def test_killed_again_during_recovery(killer: Killer, scenario: str) -> None:
    middle = {"ledger.incarnation", "complete.ledger", "step.saved", "sync.summed", "sync.updated"}
    seen = kill_twice(killer, scenario, [point for point in killer.passed[scenario] if point in middle])
    expected = {"undo.vector", "undo.vectors", "undo.counters", "undo.ledger", "undo.disarmed"}
    assert seen == expected | ({"undo.round"} if "sync" in scenario.split() else set())


@pytest.mark.slow
@ALL_IN_ORDER
def test_killed_anywhere_and_again_during_recovery(killer: Killer, scenario: str) -> None:
    kill_twice(killer, scenario, killer.passed[scenario])


def kill_twice(killer: Killer, scenario: str, points: Iterable[str]) -> set[str]:
    """Kills a run at each of some points, and its recovery wherever it can be; returns the points of the recoveries."""
    seen: set[str] = set()
    for point in points:
        first = point, (killer.passed[scenario][point] + 1) // 2
        folder = killer.new_folder()
        killer.kill(folder, scenario, *first)
        passed = killer.finish(folder, scenario, f"{scenario} killed at {first}")
        recovery = {name: count for name, count in passed.items() if name.startswith("undo.")}
        seen |= set(recovery)
        for second in [(name, passing) for name, count in recovery.items() for passing in sorted({1, count})]:
            folder = killer.new_folder()
            killer.kill(folder, scenario, *first)
            killer.kill(folder, scenario, *second)
            killer.finish(folder, scenario, f"{scenario} killed at {first}, then at {second}")
    return seen


@PAIRS_IN_ORDER
def test_killed_again_and_again(killer: Killer, scenario: str) -> None:
    """Every process gets one piece further than the one before."""
    folder, num_lives = killer.new_folder(), 12
    for _ in range(num_lives):
        killer.kill(folder, scenario, "step.changed", 2)
    killer.finish(folder, scenario, f"killed {num_lives} times")


@pytest.mark.parametrize("passing", [1, 9, 25])
@pytest.mark.parametrize("point", ["step.armed", "apply.decoded", "apply.logged", "apply.advanced", "step.changed"])
def test_killed_while_pushes_come_at_once(killer: Killer, point: str, passing: int) -> None:
    """Steps of several threads are cut off together; the numbers do not depend on the order of pushes."""
    for kills in (1, 2):
        folder = killer.new_folder()
        killer.kill(folder, AT_ONCE, point, passing)
        if kills == 2:
            killer.kill(folder, AT_ONCE, point, 5)
        killer.finish(folder, AT_ONCE, f"killed at {point}, passing {passing}, {kills} times")
