"""Frames of the terminal view, of recorded and of made-up runs, as wide and high as a terminal may be."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from downpour.launch.observe.terminal.frame import frame, shares
from downpour.launch.observe.terminal.gauges import ASCII
from downpour.launch.observe.terminal.trail import Trail
from tests.launch.observe.statuses import evaluator, event, shard, status, worker

RECORDED = Path(__file__).parents[1] / "recorded"


def of(*statuses: dict[str, Any]) -> Trail:
    trail = Trail()
    for one in statuses:
        trail.add(one)
    return trail


def drawn(trail: Trail, width: int = 80, height: int = 24, **more: Any) -> list[str]:
    """The lines as a terminal without colours shows them."""
    console = Console(record=True, width=width, file=io.StringIO(), color_system=None)
    for line in frame(trail, width, height, **more):
        console.print(line, no_wrap=True)
    lines = console.export_text().splitlines()
    assert len(lines) <= height and max(map(len, lines)) <= width, lines
    return [line.rstrip() for line in lines]


def recorded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RECORDED / f"{name}.json").read_text())
    return found


def row(lines: list[str], head: str, first: str) -> str:
    """The row that begins with something, below the head of its table."""
    begin = next(number for number, line in enumerate(lines) if line.split()[:1] == [head])
    return next(line for line in lines[begin + 1 :] if line.split()[:1] == [first])


def test_a_run_that_was_recorded_fits_80_columns_and_24_lines() -> None:
    found = recorded("healthy")
    lines = drawn(of(found))
    text = "\n".join(lines)
    assert lines[0].startswith(f"runs/healthy: training, step {found['step']} of {found['num_steps']}, epoch ")
    assert lines[1].endswith(f" {found['step'] / found['num_steps']:.0%}")
    for words in (f"loss       {found['loss']:.4g}", " examples/s, ", " steps/s, learning rate ", "staleness  mean "):
        assert words in text, text
    assert "!" not in text, "a healthy run has no findings"
    for one in found["workers"]:
        assert f" {one['steps']} " in row(lines, "worker", str(one["worker"]))
    for one in found["shards"]:
        cells = row(lines, "shard", str(one["shard"])).split()
        assert cells[1] == str(one["version"]) and cells[2] == f"{one['pushes_per_second']:.1f}"
        assert cells[-1] == "ready"
    assert any(" has joined: " in line for line in lines)


def test_the_slow_worker_of_a_run_that_was_recorded_is_called_out_and_has_the_longest_bar() -> None:
    lines = drawn(of(recorded("slow")), height=30)
    (called,) = [line for line in lines if line.startswith("! worker ")]
    assert called.startswith("! worker 1 takes 0.2") and "; its input 0.18" in called, called
    bars = {index: sum(row(lines, "worker", str(index)).count(glyph) for glyph in "▒█░") for index in range(3)}
    assert max(bars, key=lambda index: bars[index]) == 1 and bars[1] > 2 * bars[0] > 0
    assert row(lines, "worker", "1").count("▒") > 0.8 * bars[1], "most of it is input"


def test_every_evaluator_and_workers_that_wait_to_be_let_in_are_shown() -> None:
    both = [evaluator(0), evaluator(1, state="waiting"), evaluator(2, state="lost", silent_seconds=40.0)]
    lines = drawn(of(status(3, workers=[worker(0), worker(1, state="waiting", seconds_per_step={})], evaluators=both)))
    assert "evaluators 0 scores step 700 for 0:03, 1 waiting, 2 lost" in lines
    assert " waiting " in row(lines, "worker", "1")
    alone = drawn(of(status(evaluators=[evaluator(0, state="waiting")])))
    assert not any(line.startswith("evaluators") for line in alone)


def test_of_200_workers_and_50_shards_the_worst_are_shown_and_the_others_counted() -> None:
    workers = [worker(index) for index in range(200)]
    workers[17] = worker(17, compute=0.3)
    workers[42] = worker(42, state="lost", silent_seconds=31.0, seconds_per_step={})
    shards = [shard(index) for index in range(50)]
    shards[7] = shard(7, state="silent", seconds_per_push={})
    lines = drawn(of(status(workers=workers, shards=shards)))
    text = "\n".join(lines)
    first = lines.index(next(line for line in lines if line.startswith("worker  steps")))
    assert lines[first + 1].split()[0] == "42" and " lost " in lines[first + 1]
    assert lines[first + 2].split()[0] == "17"
    called = [" ".join(line.split()[:4]) for line in lines if line.startswith("! ")]
    assert called == ["! worker 42 has", "! shard 7 at", "! worker 17 takes"], text
    short = drawn(of(status(workers=workers, shards=shards)), height=16)
    assert [line for line in short if line.startswith("! ")][1] == "! and 2 more: downpour status shows all"
    counted = [line for line in lines if line.startswith("   and ")]
    assert len(counted) == 2 and "running; median step 0.13 s" in counted[0] and "ready; median queue" in counted[1]
    shown = sum(line.split()[0].isdigit() for line in lines[first:])
    hidden = sum(int(line.split()[1]) for line in counted)
    assert shown + hidden == 250
    large = drawn(of(status(workers=workers, shards=shards)), width=200, height=300)
    assert not [line for line in large if line.startswith("   and ")], "a large terminal shows all"
    assert max(map(len, large)) > 150


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 240])
@pytest.mark.parametrize("height", [10, 16, 24, 50])
def test_every_size_has_the_state_the_workers_and_the_shards(width: int, height: int) -> None:
    changes = {"workers": [worker(0), worker(1, compute=0.5), worker(2)], "faults": {"updates_lost": 3}}
    lines = drawn(of(status(**changes)), width, height)
    assert lines[0].startswith("runs/mine: training")
    if height >= 16:
        assert [line for line in lines if line.lstrip().startswith("worker ")]
        assert [line for line in lines if line.lstrip().startswith("shard")]


def test_a_chief_that_does_not_answer_is_said_at_the_top() -> None:
    lines = drawn(of(status()), silent_s=75.0)
    assert lines[1] == "! the chief has not answered for 1:15; this is what it said last"


def test_what_is_not_known_yet_is_left_out() -> None:
    starting = drawn(of({"run": "runs/mine", "state": "starting"}))
    assert starting[0] == "runs/mine: starting" and len(starting) == 2
    expected = [worker(0, state="expected", seconds_per_step={}, steps=0), worker(1, seconds_per_step={}, steps=0)]
    preparing = status(state="preparing", step=0, loss=None, workers=expected, scores={}, checkpoint=None, events=[])
    lines = drawn(of(preparing | {"seconds_left": None, "staleness_histogram": []}))
    assert "loss" not in "\n".join(lines) and "expected" in row(lines, "worker", "0")


def test_a_failed_run_says_why() -> None:
    lines = drawn(of(status(state="failed", failure="worker 1: loss nan", events=[event("failed", 800)])))
    assert "failure    worker 1: loss nan" in lines


def test_a_terminal_without_unicode_gets_ascii() -> None:
    text = "\n".join(drawn(of(status(workers=[worker(0), worker(1, compute=0.5)])), glyphs=ASCII))
    assert text.isascii() and "! worker 1 takes" in text


def test_lines_are_shared_out() -> None:
    assert shares(20, 5, 8) == (5, 8)
    assert shares(10, 200, 50) == (5, 5)
    assert shares(10, 2, 50) == (2, 8)
    assert shares(10, 200, 3) == (7, 3)
    assert shares(-1, 4, 4) == (0, 0)
