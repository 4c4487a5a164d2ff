"""What is worth knowing of a run: nothing of a healthy one, and the cause of what is wrong with another."""

from __future__ import annotations

from typing import Any

import pytest

from downpour.launch.observe.findings import Finding, died, findings
from downpour.launch.observe.outliers import Hottest, Slowest, hottest, slowest
from tests.launch.observe.statuses import entry, event, shard, status, worker

HEALTHY = [entry(number, {"0": 30, "1": 55, "2": 5}) for number in range(1, 26)]


def the_finding(found: dict[str, Any], history: list[dict[str, Any]] | None = None) -> Finding:
    """The only one."""
    (one,) = findings(found, history or [])
    return one


@pytest.mark.parametrize(
    "found",
    [
        status(),
        status(1, 1),
        status(50, 17),
        status(step=0, workers=[worker(0, state="expected", steps=0)], seconds=0.0, state="preparing", shards=[]),
        status(state="preparing", shards=[shard(0, state="silent"), shard(1, state="empty")]),
        status(state="done", workers=[], shards=[], events=[]),
        {"run": "127.0.0.1:5000", "state": "ready", "shard": 0, "faults": {}},
        {"run": "runs/mine", "state": "starting"},
        status(faults={"records_repeated": 32, "steps_skipped": 2, "pushes_dropped": 3}),
        status(state="scoring", workers=[worker(0, state="finished"), worker(1, state="finished")]),
    ],
    ids=lambda found: found["state"],
)
def test_a_healthy_run_has_no_findings(found: dict[str, Any]) -> None:
    assert findings(found, HEALTHY) == []


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"compute": 0.31}, "compute"),
        ({"input": 0.2}, "input"),
        ({"wait": 0.3, "push": 0.28}, "push"),
        ({"wait": 0.3, "pull": 0.28}, "pull"),
    ],
)
def test_a_slow_worker_is_named_with_the_phase_that_is_slow(changes: dict[str, float], part: str) -> None:
    workers = [worker(0), worker(1, compute=0.11), worker(2, **changes), worker(3)]
    found = the_finding(status(workers=workers))
    assert (found.kind, found.subject) == ("slow_worker", "worker 2")
    assert f"; its {part} " in found.text, found.text
    assert "others 0.13 s" in found.text


def test_where_all_wait_for_one_worker_the_one_that_computes_longest_is_slow() -> None:
    """A synchronous pace: every step lasts 0.4 s."""
    workers = [worker(0, wait=0.3, pull=0.29), worker(1, compute=0.38, wait=0.02), worker(2, wait=0.3, pull=0.29)]
    found = the_finding(status(workers=workers))
    assert found.subject == "worker 1" and "; its compute 0.38 s, theirs 0.1 s" in found.text


def test_the_slowest_worker_is_known_without_a_finding() -> None:
    assert slowest(status(workers=[worker(0), worker(1, compute=0.12)])) == Slowest(
        1, "compute", pytest.approx(0.15), 0.12, pytest.approx(0.13), 0.1, False
    )
    single = slowest(status(1))
    assert single == Slowest(0, "compute", pytest.approx(0.13), 0.1)
    assert str(single) == "worker 0 takes 0.13 s a step, most of it compute (0.1 s)"
    assert slowest(status(workers=[worker(0, state="expected"), worker(1, state="lost")])) is None


def test_a_worker_is_compared_when_it_has_done_some_steps() -> None:
    assert findings(status(workers=[worker(0), worker(1, compute=2.0, steps=3)])) == []


def test_steps_of_milliseconds_may_differ() -> None:
    quick = {"input": 0.0, "pull": 0.001, "push": 0.001, "wait": 0.002}
    assert findings(status(workers=[worker(0, compute=0.002, **quick), worker(1, compute=0.006, **quick)])) == []


def test_a_hot_shard_is_named_with_its_load() -> None:
    slow = {"seconds_per_push": {"receive": 0.01, "queue": 0.03, "apply": 0.02}}
    shards = [shard(0), shard(1, **slow, bytes_received_per_second=150_000_000, pushes_waiting=2), shard(2)]
    found = the_finding(status(shards=shards))
    assert (found.kind, found.subject) == ("hot_shard", "shard 1")
    assert found.text == (
        "shard 1 takes 50 ms to queue and apply a push, the others 2.2 ms; 2 pushes wait; it moves 3.9 times the bytes"
    )


def test_a_shard_where_pushes_pile_up_is_hot_and_one_that_takes_little_of_a_step_is_not() -> None:
    slow = {"seconds_per_push": {"receive": 0.0, "queue": 0.006, "apply": 0.004}}
    assert findings(status(shards=[shard(0), shard(1, **slow)])) == []
    assert hottest(status(shards=[shard(0), shard(1, **slow)])) == Hottest(
        1, pytest.approx(0.01), 0, 46_200_000, pytest.approx(0.0022), 46_200_000, False
    )
    found = the_finding(status(shards=[shard(0, pushes_waiting=1), shard(1, **slow, pushes_waiting=12), shard(2)]))
    assert found.kind == "hot_shard" and "12 pushes wait" in found.text
    assert hottest(status(1, 1)) == Hottest(0, pytest.approx(0.0022), 0, 46_200_000)


def test_staleness_grows_while_the_number_of_workers_stays() -> None:
    grown = [*HEALTHY, *(entry(number, {"3": 40, "4": 50}) for number in range(26, 40))]
    found = the_finding(status(), grown)
    assert found == Finding("staleness_grows", "staleness", "staleness grows: a mean of 3.6, and 0.7 before")
    joined = [*HEALTHY, *(entry(number, {"5": 40, "6": 50}, num_workers=8) for number in range(26, 40))]
    assert findings(status(), joined) == [], "more workers are more stale"
    assert findings(status(), HEALTHY[:4] + grown[-2:]) == [], "too little is known"


def test_a_checkpoint_is_old_by_the_steps_between_those_before() -> None:
    found = the_finding(status(step=1100, events=[*status()["events"], event("worker_joined", 900)]))
    assert found.kind == "checkpoint_old"
    assert found.text == "the last checkpoint is 400 steps old, and one came every 100 steps so far"
    assert findings(status(step=990)) == []
    failed = status(events=[*status()["events"], event("checkpoint_failed", 800, "the one at step 800 ...: no space")])
    assert the_finding(failed).text == "no checkpoint: the one at step 800 ...: no space"
    once = {"step": 100, "directory": "d", "age_seconds": 3700.0}
    assert "more than an hour" in the_finding(status(checkpoint=once, events=[event("checkpoint", 100)])).text
    assert "for an hour" in the_finding(status(checkpoint=None, events=[], seconds=4000.0)).text
    damaged = status(checkpoint=status()["checkpoint"] | {"whole": False})
    assert the_finding(damaged).text == "the checkpoint in runs/mine/checkpoints/step-700 lacks files"


def test_workers_that_wait_for_data_are_one_finding() -> None:
    found = the_finding(status(input_bound={"1": 0.34, "0": 0.41}))
    assert (found.kind, found.subject) == ("input_bound", "workers 0, 1")
    assert found.text.startswith("workers 0, 1 wait for data for 41% of a step;")
    many = the_finding(status(input_bound={str(index): 0.3 for index in range(50)}, state="done"))
    assert many.subject == "workers 0, 1, 2, 3 and 46 more"


def test_a_run_without_steps_is_stalled() -> None:
    idle = [worker(index, examples_per_second=0.0, seconds_per_step={}) for index in range(2)]
    history = [*HEALTHY, *(entry(number, {}, step=750) for number in range(26, 50))]
    found = the_finding(status(workers=idle, pushes_per_second=0.0, seconds=98.0, step=750), history)
    assert found == Finding("stalled", "run", "no step for 48 s; so far one took 0.131 s")
    assert the_finding(status(workers=idle, pushes_per_second=0.0, seconds=98.0)).kind == "stalled"
    assert findings(status(workers=idle, pushes_per_second=0.0, seconds=52.0), HEALTHY) == [], "not for long enough"
    slow = [entry(1, {"0": 3}, step=3, seconds=60.0)]
    assert findings(status(workers=idle, pushes_per_second=0.0, seconds=100.0, step=4), slow) == [], (
        "its steps are long"
    )


def test_what_is_gone_and_what_was_lost_is_said_first() -> None:
    workers = [worker(0), worker(1, state="lost", silent_seconds=34.2), worker(2, compute=0.9), worker(3)]
    shards = [shard(0), shard(1, state="silent", seconds_per_push={}), shard(2, state="empty", seconds_per_push={})]
    found = findings(status(workers=workers, shards=shards, faults={"updates_lost": 1200, "pushes_dropped": 80}))
    assert [one.text for one in found if one.kind == "lost"] == [
        "worker 1 has not reported for 34 s; others train on the records",
        "shard 1 at 127.0.0.1:5001 does not answer; workers wait for it",
        "shard 2 at 127.0.0.1:5002 has lost its memory, and is to be restored",
        "1,200 updates were lost with a shard's memory; it was restored from a checkpoint",
        "80 pushes were dropped, of 800",
    ]
    assert found[-1].subject == "worker 2"
    alone = findings(status(workers=[worker(0, state="lost", silent_seconds=60.0)]))
    assert [(one.kind, one.subject) for one in alone] == [("lost", "worker 0"), ("stalled", "run")]


def test_what_has_died_is_said_when_it_is_back_too() -> None:
    assert died(status()) == "nothing" and died(status(events=[])) == ""
    replaced = event("worker_replaced", 310, "worker 1 was taken over by host-7 process 1")
    restarted = event("shard_restarted", 1420, "shard 3 was started again 2 s ago")
    once = died(status(events=[*status()["events"], replaced]))
    assert once == "once, at step 310: worker 1 was taken over by host-7 process 1; no updates lost"
    twice = died(status(events=[replaced, restarted], faults={"updates_lost": 12}))
    assert twice == "2 times, last at step 1,420: shard 3 was started again 2 s ago; 12 updates lost"
    gone = event("worker_lost", 300, "worker 1 has not reported for 31 s; others take its records")
    assert died(status(events=[gone, replaced])).startswith("once, at step 300: worker 1 has not reported for 31 s")
    back = event("worker_back", 305, "worker 1 reports again")
    assert died(status(events=[gone, back, replaced])).startswith("2 times")
    ended = [{"kind": "loss", "step": 1}, {"kind": "event", **replaced}]
    assert died({"state": "done"}, ended) == once
