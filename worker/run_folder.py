"""What the chief writes of a run: checkpoints' place, history, journal, summary.

    history.jsonl    losses and scores, a line each
    journal.json     everything that a chief which is started again must know, replaced whole
    summary.json     the end
    checkpoints/     or elsewhere: a folder or a URL

Threads: the chief holds its lock around the journal; the rest is written by whoever has something to write.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from downpour.ps import checkpoint
from downpour.ps.checkpoint import Checkpoint
from downpour.ps.storage import Folder

_HISTORY, _JOURNAL, _SUMMARY = "history.jsonl", "journal.json", "summary.json"


class RunFolder:
    """The folder of one run.

    Args:
        run_dir: On a disk that a chief which is started again finds as it was.
        checkpoint_dir: Path or URL of the checkpoints' folder; shards and evaluator must find the same under it.

    Attributes:
        checkpoints: Of the checkpoints.

    Raises:
        ValueError: One of them cannot be written.
    """

    def __init__(self, run_dir: Path, checkpoint_dir: str) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self._path = run_dir
        self.checkpoints = Folder(checkpoint_dir)
        self.checkpoints.check()

    def begin(self) -> None:
        """A new run: what another one left would be taken for this one's."""
        for name in (_HISTORY, _JOURNAL, _SUMMARY):
            (self._path / name).unlink(missing_ok=True)
        for name in self.checkpoints.names():
            if name.startswith("step-"):
                self.checkpoints.remove(name)

    def resume(self, wanted: str) -> Checkpoint | None:
        """The newest complete checkpoint if it is wanted, `yes` or `if_any`; what was noted after it is forgotten.

        Raises:
            ValueError: There is none, and `yes` was said.
        """
        complete = checkpoint.complete(self.checkpoints)
        if wanted == "no" or (wanted == "if_any" and not complete):
            return None
        saved = checkpoint.load(checkpoint.to_resume(self.checkpoints))
        for name in self.checkpoints.names():
            if name.startswith("step-") and name not in complete:
                self.checkpoints.remove(name)
        path = self._path / _HISTORY
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if _step(line) <= saved.step]
            _replace(path, "".join(f"{line}\n" for line in lines))
        return saved

    def newest(self) -> str | None:
        """Folder of the newest complete checkpoint, if there is one."""
        complete = checkpoint.complete(self.checkpoints)
        return f"{self.checkpoints.url}/{complete[-1]}" if complete else None

    def checkpoint_dir(self, step: int) -> str:
        """Where the checkpoint of a step belongs."""
        return f"{self.checkpoints.url}/step-{step:010d}"

    def keep(self, keep_last: int, keep_every: int) -> None:
        """Removes the checkpoints that `checkpoint.superseded` names."""
        for name in checkpoint.superseded(checkpoint.complete(self.checkpoints), keep_last, keep_every):
            self.checkpoints.remove(name)

    def note(self, entry: Mapping[str, Any]) -> None:
        """Adds a line to the history."""
        with (self._path / _HISTORY).open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def write_journal(self, state: Mapping[str, Any]) -> None:
        """Replaces the journal."""
        _replace(self._path / _JOURNAL, json.dumps({**state, "written_at": time.time()}))

    def journal(self) -> dict[str, Any] | None:
        """The journal, with `gap_s`, the seconds since it was written; None if there is none that can be read."""
        path = self._path / _JOURNAL
        try:
            journal: dict[str, Any] = json.loads(path.read_text())
            journal["gap_s"] = max(0.0, time.time() - journal["written_at"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            logging.warning("%s cannot be read (%r); workers will start anew", path, error)
            return None
        return journal

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes the summary."""
        _replace(self._path / _SUMMARY, json.dumps(summary, indent=1) + "\n")


def _step(line: str) -> float:
    """Of a line of the history; of one that was cut off, infinite."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text)
    temporary.replace(path)
