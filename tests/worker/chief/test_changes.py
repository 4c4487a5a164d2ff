"""Every kind of event, from two looks at a job; what has not changed is no event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from downpour.worker.chief import changes as changes_module
from downpour.worker.chief.changes import FAULTS, Details, Shard, Worker, changes

RUNNING = {"index": 3, "state": Worker.STATE_RUNNING, "incarnation": 5, "steps": 1200, "host": "box process 9"}
READY = {"address": "a:1", "state": Shard.STATE_READY, "uptime_seconds": 50.0}
LOST = RUNNING | {"state": Worker.STATE_LOST, "silent_seconds": 31.4}
SILENT = {"address": "a:1", "state": Shard.STATE_SILENT}


def of_worker(fields: Mapping[str, Any] | None) -> Details:
    return Details(workers=[] if fields is None else [Worker(**fields)])


def of_shard(fields: Mapping[str, Any] | None) -> Details:
    return Details(shards=[] if fields is None else [Shard(**fields)])


WORKERS = {
    "worker_joined": (None, RUNNING, "worker 3 has joined: box process 9"),
    "worker_replaced": (RUNNING, RUNNING | {"incarnation": 6}, "worker 3 was taken over by box process 9"),
    "worker_lost": (RUNNING, LOST, "worker 3 has not reported for 31 s; others take its records"),
    "worker_back": (LOST, RUNNING, "worker 3 reports again"),
    "worker_finished": (
        RUNNING, RUNNING | {"state": Worker.STATE_FINISHED}, "worker 3 has ended after 1,200 steps",
    ),
    "worker_input_bound": (
        RUNNING | {"input_share": 0.1}, RUNNING | {"input_share": 0.4},
        "worker 3 has waited for data for 40% of a hundred steps",
    ),
}  # fmt: skip
SHARDS = {
    "shard_silent": (READY, SILENT, "shard 0 at a:1 does not answer"),
    "shard_back": (SILENT, READY | {"uptime_seconds": 2.0}, "shard 0 answers; its process is 2 s old"),
    "shard_restarted": (READY, READY | {"uptime_seconds": 4.0}, "shard 0 was started again 4 s ago"),
}


@pytest.mark.parametrize("kind", sorted(WORKERS))
def test_of_a_worker(kind: str) -> None:
    before, after, text = WORKERS[kind]
    assert list(changes(of_worker(before), of_worker(after))) == [(kind, text)]
    assert list(changes(of_worker(after), of_worker(after))) == []


def test_of_a_worker_that_was_lost_and_whose_index_another_process_takes_over() -> None:
    after = of_worker(RUNNING | {"incarnation": 6})
    assert list(changes(of_worker(LOST), after)) == [("worker_replaced", "worker 3 was taken over by box process 9")]


@pytest.mark.parametrize("kind", sorted(SHARDS))
def test_of_a_shard(kind: str) -> None:
    before, after, text = SHARDS[kind]
    assert list(changes(of_shard(before), of_shard(after))) == [(kind, text)]
    assert list(changes(of_shard(after), of_shard(after))) == []


def test_a_shard_that_comes_back_empty_says_so_and_one_that_is_new_is_no_event() -> None:
    ((_, text),) = changes(of_shard(SILENT), of_shard(READY | {"state": Shard.STATE_EMPTY}))
    assert text == "shard 0 answers; its process is 50 s old, which holds no parameters"
    assert list(changes(of_shard(None), of_shard(READY))) == []


@pytest.mark.parametrize("kind", sorted(FAULTS))
def test_of_faults(kind: str) -> None:
    ((found, text),) = changes(Details(faults={kind: 1000}), Details(faults={kind: 1234}))
    assert found == kind and text.startswith("1,234 ") and text.endswith(", in all")
    assert list(changes(Details(faults={kind: 5}), Details(faults={kind: 5}))) == []


def test_of_a_checkpoint_that_is_complete() -> None:
    before = Details(checkpoint="step-10", checkpoint_step=10, checkpoint_age_seconds=9.0)
    after = Details(checkpoint="step-1200", checkpoint_step=1200, checkpoint_age_seconds=0.1)
    assert list(changes(before, after)) == [("checkpoint", "the checkpoint at step 1,200 is complete")]
    after.checkpoint_age_seconds = -1.0  # known, but not written in this life of the chief
    assert list(changes(before, after)) == []


def test_the_table_names_every_kind_and_no_other() -> None:
    rows = [line.split("|")[1] for line in str(changes_module.__doc__).splitlines() if line.startswith("| `")]
    said = {"checkpoint_failed", "learning_rate", "stopped", "failed"}  # by other parts of the chief
    named = {name.strip(" `") for row in rows for name in row.split(",")}
    assert named == {*WORKERS, *SHARDS, *FAULTS, "checkpoint", *said}
