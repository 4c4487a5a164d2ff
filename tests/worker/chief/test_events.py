"""Own callbacks: called in order in a thread of their own, which nothing waits for, and whose errors end the job."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from downpour.ps.policy.pace import Async
from downpour.ps.policy.rules import SGD
from downpour.ps.policy.schedules import Constant
from downpour.ps.policy.staleness import Keep
from downpour.worker.chief import deliveries
from downpour.worker.chief import events as events_module
from downpour.worker.chief.callbacks import Callback, EarlyStopping
from downpour.worker.chief.events import Events
from downpour.worker.chief.journal import Journal
from downpour.worker.chief.settings import JobSettings
from downpour.worker.chief.state import JobState

WITHIN_S = 20.0


class Listens(Callback):
    """Notes what is called; the first call waits for `go`."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.go, self.waits = threading.Event(), threading.Event()

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        self.waits.set()
        assert self.go.wait(WITHIN_S)
        self.heard.append((threading.current_thread().name, epoch, dict(logs)))
        logs.clear()  # no other callback must see that

    def on_train_end(self, logs: dict[str, float]) -> None:
        self.heard.append(("end", logs))


class Breaks(Callback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_checkpoint(self, step: int, path: str) -> None:
        raise self.error


class Ends(Callback):
    def on_checkpoint(self, step: int, path: str) -> None:
        self.stop_training = step >= 20


@pytest.fixture
def state(tmp_path: Path) -> JobState:
    settings = JobSettings(
        recipe="test", rule=SGD(), schedule=Constant(0.1), pace=Async(), treatment=Keep(), num_workers=1, lease_s=9,
        num_steps=99, checkpoint_every_steps=9, max_train_s=math.inf, num_records=9, lease_records=9, facts={},
        checkpoint_dir="",
    )  # fmt: skip
    return JobState(settings, Journal(tmp_path / "journal.json"))


@pytest.fixture
def made(state: JobState) -> Iterator[Callable[..., Events]]:
    all_made = []

    def make(*callbacks: Callback) -> Events:
        all_made.append(Events(callbacks, state))
        return all_made[-1]

    yield make
    for one in all_made:
        one.close()


def test_calls_come_in_order_in_one_thread_and_nobody_waits(made: Callable[..., Events]) -> None:
    first, second = Listens(), Listens()
    events = made(first, EarlyStopping(), second)
    begin = time.monotonic()
    for epoch in range(3):
        events.epoch(epoch, {"val_loss": float(epoch)})
        events.checkpoint(epoch, "nobody overrides this")
    assert time.monotonic() - begin < WITHIN_S / 2 and not first.heard, "the first call is still waiting"
    first.go.set()
    second.go.set()
    events.finish({"loss": 0.5})
    expected = [("callbacks", epoch, {"val_loss": float(epoch)}) for epoch in range(3)]
    assert first.heard == second.heard == [*expected, ("end", {"loss": 0.5})]


def test_a_slow_callback_loses_events_and_not_the_end(
    made: Callable[..., Events], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(deliveries, "MOST_WAITING", 3)
    slow = Listens()
    events = made(slow)
    events.epoch(0, {})
    assert slow.waits.wait(WITHIN_S)
    for epoch in range(1, 9):
        events.epoch(epoch, {})
    slow.go.set()
    events.finish({})
    assert [entry[1] for entry in slow.heard[:-1]] == [0, 1, 2, 3] and slow.heard[-1] == ("end", {})
    assert caplog.text.count("callbacks are slower than the job: 3 events wait") == 1


@pytest.mark.parametrize("error", [ZeroDivisionError("no\nway"), SystemExit(3)])
def test_an_exception_is_the_jobs_failure_and_the_last_call(
    made: Callable[..., Events], state: JobState, error: BaseException
) -> None:
    other = Listens()
    other.go.set()
    events = made(Breaks(error), other)
    events.epoch(0, {})
    events.checkpoint(10, "somewhere")
    assert state.wait(lambda: bool(state.coordinator.failure), WITHIN_S)
    said = {"ZeroDivisionError": "ZeroDivisionError: no way", "SystemExit": "SystemExit: 3"}[type(error).__name__]
    line = Breaks.on_checkpoint.__code__.co_firstlineno + 1
    assert state.coordinator.failure == f"Breaks.on_checkpoint raised {said} ({Path(__file__).name}:{line})"
    assert state.coordinator.should_stop(0.0) and state.coordinator.ended_by() == "failure"
    events.epoch(1, {})
    events.finish({})
    assert [entry[1] for entry in other.heard] == [0]


def test_a_callback_may_end_training(made: Callable[..., Events], state: JobState) -> None:
    events = made(Ends())
    events.checkpoint(10, "")
    events.checkpoint(20, "")
    assert state.wait(lambda: state.coordinator.stopped is not None, WITHIN_S)
    assert state.coordinator.should_stop(0.0) and state.coordinator.ended_by() == "callback"
    assert state.coordinator.stopped == ("callback", "Ends set stop_training")


def test_a_callback_that_never_returns_does_not_keep_the_job(
    made: Callable[..., Events], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(events_module, "FINISH_WITHIN_S", 0.2)
    hangs = Listens()
    events = made(hangs)
    events.epoch(0, {})
    events.finish({})
    assert "callbacks have not returned within 0 s; the job ends without them" in caplog.text
    hangs.go.set()


def test_without_own_callbacks_there_is_no_thread(made: Callable[..., Events]) -> None:
    before = threading.active_count()
    events = made(EarlyStopping())
    events.epoch(0, {})
    events.finish({})
    assert threading.active_count() == before
