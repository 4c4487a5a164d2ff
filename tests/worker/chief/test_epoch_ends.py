"""A chief that stops and one that continues its job: every epoch is once in the history, with its own score."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from downpour.model.data.epochs import Epochs
from downpour.proto import chief_pb2 as pb
from downpour.worker.chief import epoch_ends, service
from downpour.worker.chief.checkpoints import Checkpoints
from downpour.worker.chief.epoch_ends import EpochEnds
from downpour.worker.chief.events import Events
from downpour.worker.chief.run_folder import RunFolder
from downpour.worker.chief.scores import Scores
from downpour.worker.chief.state import JobState
from tests.conftest import wait_until
from tests.worker.chief.test_checkpoints import LAYOUT, FakeShards, new_plan


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_CHECKPOINT_WITHIN_S", 0.0)
    monkeypatch.setattr(epoch_ends, "_LAST_REPORTS_WITHIN_S", 0.0)


class Chief:
    """The parts of a chief that note epochs of ten steps; continues from the newest checkpoint, or the journal."""

    def __init__(self, run_dir: Path, *, from_journal: bool = False) -> None:
        settings = dataclasses.replace(
            new_plan(run_dir), epochs=Epochs(100, 10), checkpoint_every_epoch=True, expects_evaluator=True
        )
        self.folder = RunFolder(run_dir, settings.checkpoint_dir)
        self.state = JobState(settings, self.folder.journal)
        if from_journal:
            journal = self.folder.journal.read()
            assert journal is not None
            self.state.journal_state.load(journal, time.monotonic())
        elif (saved := self.folder.resume("if_any")) is not None:
            self.state.journal_state.resume(saved, time.monotonic())
        self.state.layout = LAYOUT
        shards: Any = FakeShards()
        self.scores = Scores(settings, self.state, self.folder, Events((), self.state))
        self.checkpoints = Checkpoints(settings, self.state, self.folder, shards, self.scores)
        self.ends = EpochEnds(self.state, self.folder, shards, self.scores)
        self.service = service.Service(settings, self.state, self.scores)

    def train(self, *steps: int) -> None:
        """Reaches each step, and writes a checkpoint there."""
        for step in steps:
            self.report(step)
            self.checkpoints.write()

    def report(self, step: int) -> None:
        """The worker reports so many steps; the loss of a step is its epoch's number."""
        report = pb.WorkerReport(worker=0, incarnation=1, version=step, steps=step)
        for epoch in range(step // 10 + 1):
            done = min(step - 10 * epoch, 10)
            report.epochs.add(epoch=epoch, steps=done, loss_sum=done * epoch)
        context: Any = None
        self.service.Report(report, context)

    def score(self, *, number: int = 99) -> list[int]:
        """Scores checkpoints as an evaluator that has just started does; returns their steps."""
        found: list[int] = []
        context: Any = None
        while len(found) < number:
            after = found[-1] if found else -1
            given = self.service.NextCheckpoint(pb.NextCheckpointRequest(after_step=after), context)
            if not given.directory:
                break
            found.append(given.step)
            self.scores.take(pb.Score(step=given.step, metrics={"val_loss": given.step}))
        return found

    def stop(self) -> None:
        """As at SIGTERM; another chief may have the folder then."""
        self.ends.hold()
        with self.state.journaled():
            pass
        self.folder.close()

    @property
    def epochs(self) -> list[tuple[int, float, int | None]]:
        """The history."""
        return [(row["epoch"], row["loss"], row.get("val_loss")) for row in self.folder.entries("epoch")]


@pytest.mark.parametrize("from_journal", [False, True], ids=["empty shards", "shards that hold parameters"])
def test_a_chief_that_stops_before_scores_come_loses_no_epoch(tmp_path: Path, from_journal: bool) -> None:
    chief = Chief(tmp_path)
    chief.train(12)
    assert chief.score() == [12]
    chief.ends.look()
    chief.train(21, 31, 43)
    assert chief.score(number=1) == [21]
    chief.report(55)  # without a checkpoint: a job that is resumed repeats these steps
    chief.stop()
    noted = [(0, 0.0, 12), (1, 1.0, 21)]
    assert chief.epochs == [*noted, (2, 2.0, None), (3, 3.0, None)]
    chief = Chief(tmp_path, from_journal=from_journal)
    assert chief.epochs == noted  # the others are noted when they have their scores
    chief.ends.look()
    assert chief.score() == [31, 43]
    chief.ends.look()
    assert chief.epochs == [*noted, (2, 2.0, 31), (3, 3.0, 43)]


def test_scores_that_came_in_time_are_those_of_epochs_that_a_killed_chief_did_not_note(tmp_path: Path) -> None:
    chief = Chief(tmp_path)
    chief.train(12)
    assert chief.score() == [12]
    chief.train(23)
    assert chief.score() == [23]
    chief.train(33)
    chief.folder.close()
    chief = Chief(tmp_path)
    chief.ends.look()
    assert chief.score() == [33]
    chief.ends.hold()
    assert chief.epochs == [(0, 0.0, 12), (1, 1.0, 23), (2, 2.0, 33)]


def test_what_is_noted_at_the_end_is_noted_once(tmp_path: Path) -> None:
    chief = Chief(tmp_path)
    chief.train(12)
    chief.state.coordinator.failure = "a worker failed"
    chief.ends.end()
    chief.stop()
    assert chief.epochs == [(0, 0.0, None)]


def test_losses_that_workers_report_while_they_stop_are_in_the_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs of a few milliseconds end after a worker's last report of a second ago."""
    monkeypatch.setattr(epoch_ends, "_LAST_REPORTS_WITHIN_S", 30.0)
    chief = Chief(tmp_path)
    chief.report(3)
    with chief.state.changed:
        chief.state.coordinator.saw(23)
    chief.checkpoints.write()
    stop = threading.Thread(target=chief.stop)
    stop.start()
    wait_until(lambda: chief.state.coordinator.epochs._ended != {}, "the stop", 10)
    assert stop.is_alive() and not chief.epochs
    chief.report(24)
    stop.join(20)
    assert chief.epochs == [(0, 0.0, None), (1, 1.0, None)]
    chief = Chief(tmp_path)
    assert not chief.epochs and chief.score() == [23]
    chief.ends.look()
    assert chief.epochs == [(0, 0.0, 23), (1, 1.0, 23)]


def test_a_chief_that_stops_before_its_first_checkpoint_notes_nothing(tmp_path: Path) -> None:
    chief = Chief(tmp_path)
    chief.report(25)
    chief.ends.look()
    chief.stop()
    assert chief.epochs == []
