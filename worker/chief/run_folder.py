"""The folder of a run, as the chief writes it: history, journal, summary, place of the checkpoints.

    history.jsonl    losses, scores, speed and events, a line each: docs/runs.md
    journal.json     everything that a restarted chief needs: `downpour.worker.chief.journal`
    summary.json     final figures: `downpour.worker.chief.summary`
    checkpoints/     or elsewhere: a folder or a URL
    owner.lock, job.json   lock and job of the folder: `downpour.worker.chief.owner`

If the history cannot be written (a full disk), that is logged once, the job continues, and the next entry tries again.

Threads: any may add to the history; the healer's thread calls `newest` and `kept`; the rest is for the chief's main
thread.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from downpour import files
from downpour.proto.errors import CheckpointFailed
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint.manifest import Checkpoint
from downpour.ps.checkpoint.storage import Folder, NoRoom
from downpour.worker.chief import owner
from downpour.worker.chief.journal import Journal, Reluctant
from downpour.worker.chief.owner import JOURNAL, SUMMARY, Identity

_INSIST_EVERY_S = 1.0
_HISTORY = "history.jsonl"


class RunFolder:
    """The folder of one run.

    Args:
        run_dir: Path of the folder, on a disk that a restarted chief finds unchanged.
        checkpoint_dir: Path or URL of the checkpoints' folder; it must be the same place for shards and evaluator.

    Attributes:
        path: Path of the folder.
        checkpoints: Folder of the checkpoints.
        journal: The chief's journal.
        heard: Called with every entry of the history; must return at once.

    Raises:
        ValueError: One of the folders cannot be written, or the run's belongs to another chief.
    """

    def __init__(self, run_dir: Path, checkpoint_dir: str) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self.path = run_dir
        self._noting, self._reading = threading.Lock(), threading.Lock()
        self.heard: Callable[[Mapping[str, Any]], None] = lambda entry: None
        self._unwritten: list[str] = []  # lines not yet in the history; guarded by `_noting`
        self._history = Reluctant(run_dir / _HISTORY)
        self.journal = Journal(run_dir / JOURNAL)
        self._lock = owner.Lock(run_dir / owner.LOCK, "chief")
        try:
            self.checkpoints = Folder(checkpoint_dir)
            self._check_room()
        except BaseException:
            self._lock.close()
            raise

    def close(self) -> None:
        """Releases the folder's lock."""
        owner.remove_address(self.path)
        self._lock.close()

    def _check_room(self) -> None:
        try:
            self.checkpoints.check()
        except NoRoom as error:
            if owner.read_identity(self.path) is None:
                raise
            logging.warning("%s; the run in this folder continues, and the write is retried", error)

    def begin(self, job_id: str, *, overwrites: bool = False) -> None:
        """Begins a new run: removes what an earlier one left, which would be taken for this one's."""
        self.remember(Identity(job_id, begun=False, overwrites=overwrites))
        for name in (SUMMARY, JOURNAL, _HISTORY):
            (self.path / name).unlink(missing_ok=True)
        for name in self.checkpoints.names():
            if name.startswith("step-"):
                self.checkpoints.remove(name)
        self.remember(Identity(job_id, overwrites=overwrites))

    def resume(self, wanted: str, job_id: str = "") -> Checkpoint | None:
        """Returns the newest good checkpoint if one is wanted; removes later lines of the history.

        Args:
            wanted: `no`, `yes` or `if_any`.
            job_id: Job that it must belong to; empty for any.

        Raises:
            ValueError: There is none, and `wanted` is `yes`; or there are some, and all are damaged.
        """
        if wanted == "no":
            return None
        if wanted == "yes":
            checkpoint.to_resume(self.checkpoints)
        saved = self.newest(job_id=job_id)
        if saved is None:
            return None
        self._remove_torn(checkpoint.complete(self.checkpoints), set_aside_too=False)
        self.remove_entries(lambda entry: _step(entry) > saved.step)
        return saved

    def newest(
        self,
        check: Callable[[Checkpoint], None] = Checkpoint.verify,
        job_id: str = "",
        damaged: Callable[[str], None] = lambda directory: None,
    ) -> Checkpoint | None:
        """Returns the newest complete checkpoint that is not damaged, or None; see `checkpoint.newest`.

        Damaged ones found before it are set aside: no evaluator, export or chief uses them as checkpoints again.

        Args:
            check: Reads the parts of a checkpoint that will be needed, and raises `Damaged`.
            job_id: Job that it must belong to; empty for any. Checkpoints of older versions name none and match any.
            damaged: Called with the folder of each that is set aside.

        Raises:
            Damaged: There are complete ones, and all are damaged.
            ValueError: A checkpoint cannot be read.
        """

        def passed_over(directory: str) -> None:
            checkpoint.set_aside(directory)
            damaged(directory)

        return checkpoint.newest(self.checkpoints, check, passed_over, job_id)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Keeps all checkpoints while the block lasts, in which shards read one; then `keep` removes none."""
        with self._reading:
            yield

    def checkpoint_dir(self, step: int) -> str:
        """Returns the path or URL for the checkpoint of a step."""
        return f"{self.checkpoints.url}/step-{step:010d}"

    def keep(self, keep_last: int, keep_every: int, kept: Collection[int] = ()) -> None:
        """Removes the checkpoints that `checkpoint.superseded` names, and failed or damaged ones before the others.

        Damaged checkpoints do not count towards `keep_last` and `keep_every`. Nothing is removed during `kept`.
        """
        if self._reading.acquire(blocking=False):
            try:
                self._remove_old(keep_last, keep_every, kept)
            finally:
                self._reading.release()

    def _remove_old(self, keep_last: int, keep_every: int, kept: Collection[int]) -> None:
        complete = checkpoint.complete(self.checkpoints)
        superseded = checkpoint.superseded(complete, keep_last, keep_every, kept)
        for name in superseded:
            self.checkpoints.remove(name)
        left = [name for name in complete if name not in superseded]
        self._remove_torn(left, set_aside_too=True)
        for name in left[-1:]:
            checkpoint.discard(f"{self.checkpoints.url}/{name}")  # what an earlier one of the same step had written

    def _remove_torn(self, complete: Sequence[str], *, set_aside_too: bool) -> None:
        """Removes checkpoint folders without a manifest; called while no shard writes a checkpoint.

        Damaged ones, whose manifest was set aside, stay at least as long as the oldest complete one, for inspection.
        """
        for name in self.checkpoints.names():
            if name.startswith("step-") and name not in complete:
                damaged = checkpoint.SET_ASIDE in (self.checkpoints / name).names()
                if not damaged or (set_aside_too and name < complete[0]):
                    self.checkpoints.remove(name)

    def note(self, entry: Mapping[str, Any]) -> None:
        """Adds a line to the history, after those that could not be added before."""
        with self._noting:
            self._unwritten.append(json.dumps(entry) + "\n")
            self.heard(entry)
            if self._history.attempt(lambda: _append(self.path / _HISTORY, "".join(self._unwritten))):
                self._unwritten.clear()

    def entries(self, kind: str) -> list[dict[str, Any]]:
        """Lines of the history of one kind."""
        return [entry for line in self._lines() if (entry := _parsed(line)).get("kind") == kind]

    def remove_entries(self, unwanted: Callable[[dict[str, Any]], bool]) -> None:
        """Removes lines of the history, before any is added; a line that was cut off has no keys."""
        lines = self._lines()
        kept = [line for line in lines if not unwanted(_parsed(line))]
        if len(kept) < len(lines):
            text = "".join(f"{line}\n" for line in kept)
            self._history.attempt(lambda: files.write(self.path / _HISTORY, text, durable=True))

    def _lines(self) -> list[str]:
        path = self.path / _HISTORY
        return path.read_text(errors="replace").splitlines() if path.exists() else []

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes the summary.

        Raises:
            OSError: It cannot be written.
        """
        files.write(self.path / SUMMARY, json.dumps(summary, indent=1) + "\n", durable=True)

    def remember(self, identity: Identity) -> None:
        """Records the job of the folder."""
        if owner.read_identity(self.path) != identity:
            owner.write_identity(self.path, identity)
        self._lock.note(identity.job_id)


def insist(action: Callable[[], None], what: str, within_s: float) -> Exception | None:
    """Retries an action that needs room on a disk for up to `within_s` seconds; returns its last error, or None."""
    deadline = time.monotonic() + within_s
    said = False
    while True:
        try:
            action()
            return None
        except (CheckpointFailed, OSError) as error:
            if time.monotonic() > deadline:
                return error
            if not said:
                logging.warning("%s cannot be written: %s; the write is retried for %.0f s", what, error, within_s)
            said = True
        time.sleep(_INSIST_EVERY_S)


def _step(entry: Mapping[str, Any]) -> float:
    """Returns the step of a line of the history; infinity for one without."""
    try:
        return float(entry["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _parsed(line: str) -> dict[str, Any]:
    """Returns a line of the history; {} for one that was cut off."""
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _append(path: Path, text: str) -> None:
    """Appends all of a text or nothing."""
    with path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            if file.write(text.encode()) != len(text.encode()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(end)
            raise
