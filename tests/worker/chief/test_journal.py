"""The journal: what is committed, in how many writes, and who waits for the disk."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from downpour import files
from downpour.proto.errors import NotReady
from downpour.worker.chief.journal import Journal
from downpour.worker.chief.state import JobState
from tests.worker.test_job import plan_in


class SlowDisk:
    """Counts writes, and holds each until it may go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.may_end = threading.Semaphore(0), threading.Semaphore(0)
        self.texts: list[str] = []
        self._replace = files.write
        monkeypatch.setattr(files, "write", self._write)

    def _write(self, path: Path, text: str) -> None:
        self.texts.append(text)
        self.begun.release()
        assert self.may_end.acquire(timeout=20)
        self._replace(path, text)


def test_states_that_are_staged_during_a_write_are_committed_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, journal = SlowDisk(monkeypatch), Journal(tmp_path / "journal.json")
    with ThreadPoolExecutor(12) as pool:
        first = pool.submit(journal.commit, journal.stage({"step": 0}))
        assert disk.begun.acquire(timeout=20)
        others = [pool.submit(journal.commit, journal.stage({"step": step})) for step in range(1, 11)]
        assert not any(other.done() for other in others)
        disk.may_end.release(2)
        for done in (first, *others):
            done.result(20)
    assert [json.loads(text)["step"] for text in disk.texts] == [0, 10]
    found = journal.read()
    assert found is not None and found["step"] == 10


def test_the_lock_is_free_while_the_disk_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shared folder that answered after a second once held up every answer of the chief as long."""
    disk, journal = SlowDisk(monkeypatch), Journal(tmp_path / "journal.json")
    state = JobState(replace(plan_in(tmp_path), num_workers=1), journal)

    def change() -> None:
        with state.journaled():
            state.job_id = "a"

    with ThreadPoolExecutor(1) as pool:
        changed = pool.submit(change)
        assert disk.begun.acquire(timeout=20)
        with state.changed:  # as an answer takes it
            assert state.job_id == "a"
        assert not changed.done(), "what must be in the journal is not told before it is"
        disk.may_end.release()
        changed.result(20)
    assert json.loads((tmp_path / "journal.json").read_text())["job_id"] == "a"


def test_what_fails_is_not_journaled(tmp_path: Path) -> None:
    state = JobState(plan_in(tmp_path), Journal(tmp_path / "journal.json"))
    with pytest.raises(NotReady), state.journaled():
        state.ready()
    assert not (tmp_path / "journal.json").exists()
