"""Sinks: all hear everything in order in one thread, nobody waits for them, and errors of theirs are theirs alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from downpour.worker.chief import deliveries, sinks
from downpour.worker.chief.sinks import Sink, Sinks

WITHIN_S = 20.0


class Listens(Sink):
    """Notes what it hears; its first entry waits for `go`."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []
        self.go, self.waits = threading.Event(), threading.Event()

    def on_begin(self, job: dict[str, Any]) -> None:
        self.heard.append((threading.current_thread().name, job["step"]))

    def on_entry(self, entry: dict[str, Any]) -> None:
        self.waits.set()
        assert self.go.wait(WITHIN_S)
        self.heard.append(("entry", entry["step"]))
        entry.clear()  # no other sink must see that

    def on_end(self, summary: dict[str, Any]) -> None:
        self.heard.append(("end", summary["loss"]))


class Raises(Sink):
    def __init__(self, error: BaseException) -> None:
        self.error, self.calls = error, 0

    def on_entry(self, entry: dict[str, Any]) -> None:
        self.calls += 1
        raise self.error

    def on_end(self, summary: dict[str, Any]) -> None:
        self.calls += 1


@pytest.fixture
def made() -> Iterator[Callable[..., Sinks]]:
    all_made: list[Sinks] = []

    def make(*given: Sink) -> Sinks:
        all_made.append(Sinks(given))
        return all_made[-1]

    yield make
    for one in all_made:
        one.close()


def test_all_hear_everything_in_order_and_nobody_waits(made: Callable[..., Sinks]) -> None:
    first, second = Listens(), Listens()
    heard = made(first, second)
    heard.entry({"step": -1})  # before the begin: dropped
    begin = time.monotonic()
    heard.begin({"step": 7})
    for step in range(3):
        heard.entry({"step": step})
    assert time.monotonic() - begin < WITHIN_S / 2 and first.waits.wait(WITHIN_S)
    assert first.heard == [("sinks", 7)], "its first entry is still waiting"
    first.go.set()
    second.go.set()
    heard.end({"loss": 0.5})
    assert first.heard == second.heard == [("sinks", 7), *(("entry", step) for step in range(3)), ("end", 0.5)]


def test_a_slow_sink_loses_entries_and_not_the_end(
    made: Callable[..., Sinks], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(deliveries, "MOST_WAITING", 3)
    slow = Listens()
    heard = made(slow)
    heard.begin({"step": 0})
    heard.entry({"step": 0})
    assert slow.waits.wait(WITHIN_S)
    for step in range(1, 9):
        heard.entry({"step": step})
    slow.go.set()
    heard.end({"loss": 1.0})
    assert slow.heard[1:] == [("entry", 0), ("entry", 1), ("entry", 2), ("entry", 3), ("end", 1.0)]
    assert caplog.text.count("sinks are slower than the job: 3 events wait") == 1


@pytest.mark.parametrize("waiting", [0, 5])
def test_a_sink_that_hangs_is_waited_for_once(
    made: Callable[..., Sinks], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, waiting: int
) -> None:
    monkeypatch.setattr(deliveries, "MOST_WAITING", 3)
    monkeypatch.setattr(sinks, "FINISH_WITHIN_S", 2.0)
    hangs = Listens()
    heard = made(hangs)
    heard.begin({"step": 0})
    heard.entry({"step": 0})
    assert hangs.waits.wait(WITHIN_S)
    for step in range(waiting):
        heard.entry({"step": step})
    begin = time.monotonic()
    heard.end({"loss": 1.0})
    assert 1.9 < time.monotonic() - begin < 3.9
    assert "sinks have not returned within 2 s; the job ends without them" in caplog.text
    hangs.go.set()


@pytest.mark.parametrize("error", [ZeroDivisionError("no\nway"), SystemExit(3)])
def test_a_sink_that_raises_is_called_no_more_and_others_go_on(
    made: Callable[..., Sinks], caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    raises, other = Raises(error), Listens()
    other.go.set()
    heard = made(raises, other)
    heard.begin({"step": 0})
    heard.entry({"step": 1})
    heard.entry({"step": 2})
    heard.end({"loss": 0.0})
    assert raises.calls == 1
    assert other.heard[1:] == [("entry", 1), ("entry", 2), ("end", 0.0)]
    said = [record.getMessage() for record in caplog.records if "called no more" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith(f"Raises.on_entry raised {type(error).__name__}: ")
    assert "(test_sinks.py:" in said[0] and said[0].endswith("it is called no more, and the job goes on")


def test_without_sinks_there_is_no_thread(made: Callable[..., Sinks]) -> None:
    before = threading.active_count()
    heard = made()
    heard.begin({"step": 0})
    heard.entry({"step": 1})
    heard.end({})
    assert threading.active_count() == before


@pytest.mark.parametrize(("given", "named"), [(Listens, "the class Listens"), (len, "<built-in function len>")])
def test_what_is_no_sink_is_refused(given: Any, named: str) -> None:
    with pytest.raises(ValueError, match=f"sinks.1 is {named}; give objects of subclasses of downpour.Sink"):
        sinks.check([Listens(), given])
