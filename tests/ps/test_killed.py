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
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from downpour.ps.arena import Arena
from tests.ps import killable
from tests.ps.killable import SCENARIOS

pytestmark = pytest.mark.process

# What a run passes that creates its arena, has one push dropped or late, and comes to its end.
EXPECTED = {
    *("arena.emptied", "arena.reserved", "arena.described", "arena.slots", "arena.averaged", "arena.complete"),
    *("ledger.reopened", "ledger.incarnation", "ledger.begun", "ledger.dropped", "ledger.counted"),
    *(f"bookkeeping.{when}" for when in ("described", "armed", "changed", "disarmed")),
    *(f"step.{when}" for when in ("copied", "described", "armed", "changed", "disarmed")),
    *("apply.decoded", "apply.updated", "apply.advanced", "apply.skipped"),
    *("sync.arrived", "sync.summed", "sync.completed", "sync.updated", "sync.version"),
    *("complete.counted", "complete.version", "complete.ledger", "finish.done"),
    *(f"storage.{when}" for when in ("opened", "piece", "flushed", "written", "renamed", "synced")),
    *("arena.flushed", "arena.closed"),
}
ALL_SCENARIOS = pytest.mark.parametrize("scenario", SCENARIOS)


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
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.num_kills = 0
        self.passed: dict[str, dict[str, int]] = {}
        for scenario, repeated in itertools.product(SCENARIOS, (0, 1)):
            folder = self.undisturbed(scenario, repeated)
            self._run(folder, scenario, repeated=repeated)
            if not repeated:
                self.passed[scenario] = passed_in(folder)

    def undisturbed(self, scenario: str, repeated: int = 0) -> Path:
        """The folder of an undisturbed run in which so many pushes were sent twice."""
        return self._folder / f"{scenario}-{repeated}"

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
        theirs = self.undisturbed(scenario, sum(answer[-1] for answer in killable.answers(folder)))
        assert told(folder) == told(self.undisturbed(scenario)), where
        assert checkpoint_files(folder) == checkpoint_files(theirs), where
        for name, value in state(folder).items():
            np.testing.assert_array_equal(value, state(theirs)[name], f"{where}: {name}")
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
def killer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killer]:
    with pytest.MonkeyPatch.context() as patch:
        killable.shrink(patch.setattr)  # arenas are opened here, too
        killer = Killer(tmp_path_factory.mktemp("killed"))
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


def state(folder: Path) -> dict[str, np.ndarray]:
    """Bits of all that an arena holds."""
    arena = Arena.open(folder / "arena")
    assert arena is not None
    records = {"counters": arena.counters_record, "ledger": arena.ledger, "rounds": arena.rounds}
    copies = {name: part.copy().view(np.uint8) for name, part in {**arena.vectors, **records}.items()}
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


def test_the_scenarios_pass_every_point(killer: Killer) -> None:
    assert len(EXPECTED) >= 20
    assert set().union(*killer.passed.values()) == EXPECTED


@ALL_SCENARIOS
def test_killed_at_each_point(killer: Killer, scenario: str) -> None:
    before = killer.num_kills
    kill_at(killer, scenario, some)
    assert killer.num_kills - before >= 2 * len(killer.passed[scenario])


@pytest.mark.slow
@ALL_SCENARIOS
def test_killed_at_each_passing_of_each_point(killer: Killer, scenario: str) -> None:
    kill_at(killer, scenario, lambda count: list(range(1, count + 1)))


@ALL_SCENARIOS
def test_killed_again_during_recovery(killer: Killer, scenario: str) -> None:
    seen: set[str] = set()
    for point, count in killer.passed[scenario].items():
        first = scenario, point, (count + 1) // 2
        folder = killer.new_folder()
        killer.kill(folder, *first)
        passed = killer.finish(folder, scenario, f"killed at {first}")
        during = {name: times for name, times in passed.items() if name.startswith("undo.")}
        seen |= set(during)
        for name, times in during.items():
            for passing in sorted({1, times}):
                folder = killer.new_folder()
                killer.kill(folder, *first)
                killer.kill(folder, scenario, name, passing)
                killer.finish(folder, scenario, f"killed at {first}, then at {name}, passing {passing}")
    expected = {"undo.vector", "undo.vectors", "undo.counters", "undo.ledger", "undo.disarmed"}
    assert seen == expected | ({"undo.round"} if scenario == "sync" else set())


@ALL_SCENARIOS
def test_killed_again_and_again(killer: Killer, scenario: str) -> None:
    """Every process gets one piece further than the one before."""
    folder, num_lives = killer.new_folder(), 12
    for _ in range(num_lives):
        killer.kill(folder, scenario, "step.changed", 2)
    killer.finish(folder, scenario, f"killed {num_lives} times")
