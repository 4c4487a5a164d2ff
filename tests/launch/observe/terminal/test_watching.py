"""When a view ends, and what it prints where there is no terminal."""

from __future__ import annotations

import io
import itertools
import signal
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from downpour.launch.observe.terminal import watching
from downpour.launch.observe.terminal.trail import Trail
from downpour.launch.observe.terminal.watching import Ending, follow
from downpour.proto.errors import Unreachable
from tests.launch.observe.statuses import event, status, worker


class Script:
    """Gives statuses one after another, and the last one from then on; None is a chief that does not answer."""

    def __init__(self, *statuses: dict[str, Any] | None) -> None:
        self._left: Iterator[dict[str, Any] | None] = itertools.chain(statuses, itertools.repeat(statuses[-1]))

    def __call__(self) -> Mapping[str, Any]:
        if (found := next(self._left)) is None:
            raise Unreachable("refused")
        return found


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("_EVERY_S", 0.05), ("_KEYS_EVERY_S", 0.01), ("_SILENT_S", 0.05), ("_ENDED_S", 0.3)):
        monkeypatch.setattr(watching, name, seconds)
    monkeypatch.setattr(watching, "_PLAIN_EVERY_S", 1000.0)
    monkeypatch.setattr(watching, "_GONE_S", 1.0)


def followed(*statuses: dict[str, Any] | None) -> tuple[Mapping[str, Any] | None, list[str]]:
    trail, out = Trail(), io.StringIO()
    trail.add(statuses[0])
    return follow(trail, Script(*statuses), out), out.getvalue().splitlines()


def test_lines_are_one_a_state_one_an_event_and_one_a_finding() -> None:
    slow = [worker(0), worker(1, compute=0.5), worker(2)]
    lost = event("worker_lost", 801, "worker 3 has not reported for 30 s")
    last, lines = followed(
        status(), status(workers=slow, events=[*status()["events"], lost]), status(workers=slow), status(state="done")
    )
    assert last is not None and last["state"] == "done"
    assert [line.split()[0] for line in lines] == ["[run]", "[event]", "[finding]", "[run]"]
    assert lines[0] == (
        "[run] runs/mine: training, step 800 of 2000, epoch 1.60, 1:18 left; loss 0.4213; held-out accuracy 0.871 "
        "(step 700); 492.0 examples/s, 15.40 pushes/s, staleness 0.98"
    )
    assert lines[1].endswith("step 801: worker 3 has not reported for 30 s")
    assert lines[2].startswith("[finding] worker 1 takes 0.53 s a step")
    assert lines[3].startswith("[run] runs/mine: done")


def test_a_chief_that_is_started_again_is_waited_for() -> None:
    away: list[dict[str, Any] | None] = [None, None, {"run": "runs/mine", "state": "starting"}, status(state="stopped")]
    last, lines = followed(status(), *away, status(step=900), status(state="failed", failure="x"))
    assert last is not None and last["state"] == "failed"
    assert [line.split(":")[0].partition(" for ")[0] for line in lines] == [
        "[run] runs/mine",
        "[run] the chief has not answered",
        "[run] runs/mine",
        "[run] runs/mine",
    ]


def test_a_chief_that_does_not_come_back_is_a_problem_and_one_that_has_trained_is_done() -> None:
    last, _ = followed(status(), None)
    assert last is not None and last["state"] == "unknown" and "has not answered for" in last["problem"]
    last, _ = followed(status(step=2000), None)
    assert last is not None and last["state"] == "done"
    last, _ = followed(status(), status(state="stopped"))
    assert last is not None and last["state"] == "stopped"


def test_a_run_that_is_over_is_not_waited_for() -> None:
    assert Ending().answered(status(state="stopped")) == "ended"
    assert Ending().answered(status(state="done")) == "ended"
    assert Ending().answered({"state": "starting"}) == ""
    ending = Ending()
    assert ending.answered(status()) == "" and ending.answered({"state": "starting"}) == "silent"


def test_a_dumb_terminal_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    assert watching.is_terminal(Terminal()) and not watching.is_terminal(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not watching.is_terminal(Terminal())


def test_ctrl_c_is_not_lost_where_an_exception_would_be() -> None:
    class Dropped:
        def __del__(self) -> None:  # Python ignores what is raised here
            signal.raise_signal(signal.SIGINT)

    dropped = [Dropped()]

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            dropped.clear()
            return super().write(text)

    trail, stream = Trail(), Stream()
    trail.add(status())
    assert follow(trail, Script(status(), status(), status(state="done")), stream) is None
    assert stream.getvalue() and not dropped
