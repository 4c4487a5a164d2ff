"""What the folder of a run has recorded, for its report and for comparisons. Reads only; asks no process.

A run that was killed has no summary: what is known of it is up to the last line of its history and its journal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from downpour.launch.observe import report, status
from downpour.launch.observe.reports.saved import Saved, checkpoints_of
from downpour.proto import chief_pb2 as pb
from downpour.worker.chief import owner
from downpour.worker.chief.journal import Journal
from downpour.worker.chief.reports import PARTS

GOES_ON = "goes on"
_TOTALS = ("steps", "examples", "bytes_pulled", "bytes_pushed", "staleness_sum", *(f"{part}_seconds" for part in PARTS))
_OTHER_METRICS = ("kind", "step", "seconds")


@dataclass(frozen=True)
class Recorded:
    """What is recorded of a run.

    Attributes:
        folder: Its folder.
        status: See `downpour.launch.observe.status`; `state` is `done`, `failed`, `stopped`, or `goes on`.
        summary: Its summary; empty if it has not ended by itself.
        job: Fields of its job, as text by name; empty for one by an earlier version.
        entries: Its history.
        num_unreadable: Lines of the history that are no entries.
        workers: Totals of every worker that has reported: steps, examples, bytes and seconds.
        checkpoints: Its checkpoints, oldest first.
        written: When the history was last written.
    """

    folder: Path
    status: Mapping[str, Any]
    summary: Mapping[str, Any]
    job: Mapping[str, str]
    entries: Sequence[Mapping[str, Any]]
    num_unreadable: int = 0
    workers: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    checkpoints: Sequence[Saved] = ()
    written: datetime | None = None

    def of_kind(self, kind: str) -> list[Mapping[str, Any]]:
        """Entries of the history of one kind, in the order of their steps."""
        return sorted((one for one in self.entries if one["kind"] == kind), key=lambda one: float(one["step"]))

    @property
    def name(self) -> str:
        """Name of the recipe, or else of the folder."""
        return str(self.status.get("recipe") or self.job.get("name", "").strip("'") or self.folder.name)

    @property
    def state(self) -> str:
        """See `status`."""
        return str(self.status["state"])

    @property
    def step(self) -> int:
        """The last global step that is known."""
        last = max((int(one["step"]) for one in self.entries), default=0)
        return int(self.status.get("step") or 0) if self.summary else max(last, int(self.status.get("step") or 0))

    @property
    def seconds(self) -> float:
        """Seconds of training that are known."""
        last = max((float(one["seconds"]) for one in self.entries), default=0.0)
        return float(self.summary.get("seconds") or max(last, float(self.status.get("seconds") or 0.0)))

    @property
    def environments(self) -> list[Mapping[str, Any]]:
        """What the chiefs of the run have begun with, in order; none of a run by an earlier version."""
        return [one for one in self.entries if one["kind"] == "environment"]

    @property
    def scores(self) -> dict[str, list[tuple[float, float]]]:
        """Step and value of every score, by its name."""
        found: dict[str, list[tuple[float, float]]] = {}
        for entry in self.of_kind("score"):
            for name, value in entry.items():
                if name not in _OTHER_METRICS and isinstance(value, int | float):
                    found.setdefault(name, []).append((float(entry["step"]), float(value)))
        return found


def read(run_dir: Path) -> Recorded:
    """Reads the folder of a run.

    Raises:
        ValueError: The folder holds no run, or one of which nothing can be shown yet.
    """
    found: dict[str, Any] = {"run": str(run_dir)}
    if not run_dir.is_dir() or not any((run_dir / name).exists() for name in status.FILES):
        raise ValueError(f"{run_dir} holds no run; give the folder of one, such as runs/quickstart")
    found |= status.of_files(run_dir)
    if owner.holder(run_dir / owner.LOCK):
        found["state"] = GOES_ON
    path = run_dir / report.HISTORY_FILE
    entries, num_unreadable = report.read_entries(run_dir) if path.exists() else ([], 0)
    # A summary is older than the run where it was resumed and then killed.
    summary = _read_object(run_dir / owner.SUMMARY) if found["state"] in ("done", "failed") else {}
    summary = summary if "global_steps" in summary else {}
    if not entries and not summary:
        why = f": {found['failure']}" if found.get("failure") else ""
        raise ValueError(
            f"the run in {run_dir} has nothing to show yet: neither a history nor a summary{why}; "
            f"logs of its processes are in {run_dir / 'logs'}"
        )
    journal = Journal(run_dir / owner.JOURNAL).read() or {}
    return Recorded(
        run_dir,
        found,
        summary,
        {str(key): str(value) for key, value in (journal.get("job") or {}).items()},
        entries,
        num_unreadable,
        _workers(journal),
        checkpoints_of(run_dir, str((journal.get("checkpoint") or {}).get("directory", ""))),
        datetime.fromtimestamp(path.stat().st_mtime, UTC) if path.exists() else None,
    )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _workers(journal: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """Totals over the incarnations of every worker."""
    found: dict[int, dict[str, float]] = {}
    for one in (journal.get("coordinator") or {}).get("reports", ()):
        try:
            given = json_format.ParseDict(one, pb.WorkerReport(), ignore_unknown_fields=True)
        except json_format.ParseError:
            continue
        totals = found.setdefault(given.worker, dict.fromkeys(_TOTALS, 0.0))
        for name in _TOTALS:
            totals[name] += getattr(given, name)
    return {worker: found[worker] for worker in sorted(found) if found[worker]["steps"]}
