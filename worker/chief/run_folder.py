"""What the chief writes of a run: checkpoints' place, history, journal, summary.

    history.jsonl    losses and scores, a line each
    journal.json     everything that a chief which is started again must know: `downpour.worker.chief.journal`
    summary.json     the end
    checkpoints/     or elsewhere: a folder or a URL
    owner.lock, job.json   whose it is: `downpour.worker.chief.owner`

Where the history cannot be written (a full disk), that is logged once, the job goes on, and it is tried again with the
next entry.

Threads: any may add to the history; the rest is for the chief's main thread.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from downpour.proto.errors import CheckpointFailed
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint.manifest import Checkpoint
from downpour.ps.checkpoint.storage import Folder, NoRoom
from downpour.worker.chief import owner
from downpour.worker.chief.journal import Journal, Reluctant, replace
from downpour.worker.chief.owner import JOURNAL, SUMMARY, Identity

_INSIST_EVERY_S = 1.0
_HISTORY = "history.jsonl"


class RunFolder:
    """The folder of one run.

    Args:
        run_dir: On a disk that a chief which is started again finds as it was.
        checkpoint_dir: Path or URL of the checkpoints' folder; shards and evaluator must find the same under it.

    Attributes:
        path: The folder.
        checkpoints: Of the checkpoints.
        journal: Of the chief.

    Raises:
        ValueError: One of them cannot be written, or the folder belongs to another chief.
    """

    def __init__(self, run_dir: Path, checkpoint_dir: str) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self.path = run_dir
        self._noting = threading.Lock()
        self._unwritten: list[str] = []  # lines of the history; guarded by `_noting`
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
        """Lets another chief have it."""
        self._lock.close()

    def _check_room(self) -> None:
        try:
            self.checkpoints.check()
        except NoRoom as error:
            if owner.read_identity(self.path) is None:
                raise
            logging.warning("%s; the run that began here goes on, and tries again", error)

    def begin(self, job_id: str, *, overwrites: bool = False) -> None:
        """A new run: what another one left would be taken for this one's."""
        self.remember(Identity(job_id, begun=False, overwrites=overwrites))
        for name in (SUMMARY, JOURNAL, _HISTORY):
            (self.path / name).unlink(missing_ok=True)
        for name in self.checkpoints.names():
            if name.startswith("step-"):
                self.checkpoints.remove(name)
        self.remember(Identity(job_id, overwrites=overwrites))

    def resume(self, wanted: str, job_id: str = "") -> Checkpoint | None:
        """The newest good checkpoint if it is wanted, `yes` or `if_any`; what was noted after it is forgotten.

        Args:
            wanted: `no`, `yes` or `if_any`.
            job_id: Whose it must be; None for any.

        Raises:
            ValueError: There is none, and `yes` was said; or there are some, and all are damaged.
        """
        if wanted == "no":
            return None
        if wanted == "yes":
            checkpoint.to_resume(self.checkpoints)
        saved = self.newest(job_id=job_id)
        if saved is None:
            return None
        self._remove_torn(checkpoint.complete(self.checkpoints), set_aside_too=False)
        path = self.path / _HISTORY
        if path.exists():
            lines = [line for line in path.read_text(errors="replace").splitlines() if _step(line) <= saved.step]
            self._history.attempt(lambda: replace(path, "".join(f"{line}\n" for line in lines)))
        return saved

    def newest(self, check: Callable[[Checkpoint], None] = Checkpoint.verify, job_id: str = "") -> Checkpoint | None:
        """The newest complete checkpoint that is not damaged, if there is one; see `checkpoint.newest`.

        Damaged ones before it are set aside: no evaluator, export or chief takes them for checkpoints again.

        Args:
            check: Reads what will be needed of one, and raises `Damaged`.
            job_id: Whose it must be; empty for any. Those of older versions name no job, and count as this one's.

        Raises:
            Damaged: All are.
            ValueError: One cannot be read.
        """
        return checkpoint.newest(self.checkpoints, check, checkpoint.set_aside, job_id)

    def checkpoint_dir(self, step: int) -> str:
        """Where the checkpoint of a step belongs."""
        return f"{self.checkpoints.url}/step-{step:010d}"

    def keep(self, keep_last: int, keep_every: int) -> None:
        """Removes the checkpoints that `checkpoint.superseded` names, and what failed or was damaged before the others.

        Those found damaged are no checkpoints any longer and do not count.
        """
        complete = checkpoint.complete(self.checkpoints)
        superseded = checkpoint.superseded(complete, keep_last, keep_every)
        for name in superseded:
            self.checkpoints.remove(name)
        self._remove_torn([name for name in complete if name not in superseded], set_aside_too=True)

    def _remove_torn(self, complete: Sequence[str], *, set_aside_too: bool) -> None:
        """Removes folders without a manifest before the newest complete checkpoint; no shard writes there any more.

        Damaged ones, whose manifest was set aside, stay at least as long as the oldest complete one, to be looked at.
        """
        for name in self.checkpoints.names():
            if name.startswith("step-") and name not in complete:
                damaged = checkpoint.SET_ASIDE in (self.checkpoints / name).names()
                if not damaged or (set_aside_too and name < complete[0]):
                    self.checkpoints.remove(name)

    def note(self, entry: Mapping[str, Any]) -> None:
        """Adds a line to the history, and what could not be added before."""
        with self._noting:
            self._unwritten.append(json.dumps(entry) + "\n")
            if self._history.attempt(lambda: _append(self.path / _HISTORY, "".join(self._unwritten))):
                self._unwritten.clear()

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes the summary.

        Raises:
            OSError: It cannot be written.
        """
        replace(self.path / SUMMARY, json.dumps(summary, indent=1) + "\n")

    def remember(self, identity: Identity) -> None:
        """Notes whose the folder is."""
        if owner.read_identity(self.path) != identity:
            owner.write_identity(self.path, identity)
        self._lock.note(identity.job_id)


def insist(action: Callable[[], None], what: str, within_s: float) -> Exception | None:
    """Does something that needs room on a disk, again and again for so many seconds; returns the error it ends with."""
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
                logging.warning("%s cannot be written: %s; it is tried again for %.0f s", what, error, within_s)
            said = True
        time.sleep(_INSIST_EVERY_S)


def _step(line: str) -> float:
    """Of a line of the history; of one that was cut off, infinite."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _append(path: Path, text: str) -> None:
    """All of a text or nothing."""
    with path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            if file.write(text.encode()) != len(text.encode()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(end)
            raise
