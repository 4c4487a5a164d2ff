"""Event files for TensorBoard, which the chief writes without TensorFlow, by the package tensorboardX.

Threads: the one that calls sinks. Files are written there, so that an error of the disk is this sink's, which is then
called no more while the job goes on; tensorboardX's `SummaryWriter` has a thread of its own, whose death would make the
next call wait for ever.
"""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from downpour import how_to_install
from downpour.worker.chief import tensorboard_tags as tags
from downpour.worker.chief.sinks import Sink

MOST_CLASSES = 20  # that have a curve
_FOLDER = "tensorboard"
_PACKAGE = "tensorboardX"


@dataclass
class TensorBoard(Sink):
    """Writes curves of a run, norms by layer, what evaluations show and the job's settings as event files.

    Steps are global steps. A restarted chief and a resumed run continue the curves: what was written of later steps
    is marked as void.

    Attributes:
        folder: Folder of many runs; this one's is `NAME-ID` in it. "" for `tensorboard` in the folder of the run.
        if_installed: Whether a missing package tensorboardX is no mistake: then nothing is written.
        classes: Numbers of the classes whose precision and recall are shown, at most `MOST_CLASSES`; empty for the most
            frequent ones of the held-out examples.

    Raises:
        ValueError: `classes` are not such numbers.
    """

    folder: str = ""
    if_installed: bool = False
    classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.classes = tuple(dict.fromkeys(self.classes))
        wrong = [each for each in self.classes if not (type(each) is int and each >= 0)]
        if wrong or len(self.classes) > MOST_CLASSES:
            given = repr(wrong[0]) if wrong else f"{len(self.classes)} classes"
            raise ValueError(
                f"TensorBoard(classes=...) has {given}; give up to {MOST_CLASSES} numbers of classes from 0 on"
            )
        self._events: Any = None  # tensorboardX's EventsWriter, from `on_begin` to `on_end`
        # What to add to the monotonic clock: TensorBoard's relative time must not jump where the clock is set.
        self._epoch_s = time.time() - time.monotonic()

    def check(self, run_dir: Path) -> None:
        """Raises `ValueError` if the package is missing or the folder cannot be written."""
        if importlib.util.find_spec(_PACKAGE) is None:
            if self.if_installed:
                return
            raise ValueError(f"sinks: TensorBoard needs the package {_PACKAGE}: {how_to_install('tensorboard')}")
        folder = wanted = Path(self.folder) if self.folder else run_dir / _FOLDER
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
            why = "is not writable" if folder.is_dir() else "is no folder"
            where = "" if folder == wanted else f": {folder}"
            raise ValueError(
                f"sinks: TensorBoard's folder {wanted}{where} {why}; give another, TensorBoard(folder=...), or none: "
                "--set=sinks=()"
            )

    def on_begin(self, job: dict[str, Any]) -> None:
        """Begins a file; the curves go on after the last step that the history has."""
        if importlib.util.find_spec(_PACKAGE) is None and self.if_installed:
            return
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        run_dir = Path(job["run_dir"])
        folder = Path(self.folder) / f"{job['recipe']}-{job['job_id']}" if self.folder else run_dir / _FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        ending = f".downpour-{job['job_id']}"
        if not self.folder:  # an earlier run's, which this one has replaced
            for path in folder.glob("events.out.tfevents.*.downpour-*"):
                if not path.name.endswith(ending):
                    path.unlink()
        self._events = EventsWriter(str(folder / "events"), f".{os.getpid()}{ending}")
        last = max(job["step"], _last_step(run_dir))
        if last:
            self._write(Event(step=last + 1, session_log=SessionLog(status=SessionLog.START)))
        for name, text in tags.pages(job).items():
            self._summary(summary.text(name, text), job["step"])
        self._summary(summary.custom_scalars(tags.charts()))
        self._events.flush()

    def on_entry(self, entry: dict[str, Any]) -> None:
        """Adds the points of an entry."""
        if self._events is None:
            return
        from tensorboardX import summary

        step = int(entry["step"])
        for name, value in tags.scalars(entry).items():
            self._summary(summary.scalar(name, value), step)
        counts = tags.staleness(entry) if entry["kind"] == "progress" else []
        if counts:
            self._summary(_histogram("staleness/pushes", counts), step)
        if entry["kind"] == "event":
            self._summary(summary.text("run/events", f"**{entry['event']}** {entry['text']}"), step)
        self._events.flush()

    def on_evaluation(self, evaluation: dict[str, Any]) -> None:
        """Adds pictures, and the curves of precision and recall."""
        if self._events is None:
            return
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.summary import pr_curve_raw

        step, pictures = int(evaluation["step"]), evaluation["pictures"]
        if pictures:
            width, height = struct.unpack(">II", pictures[16:24])  # of the header of a PNG
            image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=pictures)
            self._summary(Summary(value=[Summary.Value(tag=tags.PICTURES, image=image)]), step)
        for name, counts in evaluation["curves"].items():
            self._summary(pr_curve_raw(f"{tags.CURVES}/{name}", *tags.precision_recall(**counts)), step)
        self._events.flush()

    def on_end(self, summary: dict[str, Any]) -> None:
        """Adds the summary as a page, and closes the file."""
        if self._events is None:
            return
        from tensorboardX.summary import text

        lines = json.dumps(summary, indent=1).splitlines()
        self._summary(text("run/summary", "\n".join(f"    {line}" for line in lines)), int(summary["global_steps"]))
        self._events.close()
        self._events = None

    def _summary(self, summary: Any, step: int = 0) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._write(Event(step=step, summary=summary))

    def _write(self, event: Any) -> None:
        event.wall_time = self._epoch_s + time.monotonic()
        self._events.write_event(event)


def _histogram(name: str, counts: list[int]) -> Any:
    """A histogram of whole numbers from 0 on, a bucket each."""
    from tensorboardX import summary

    total = sum(i * count for i, count in enumerate(counts))
    squares = sum(i * i * count for i, count in enumerate(counts))
    least = next(i for i, count in enumerate(counts) if count)
    # Limits are the upper ends; an empty first bucket ends where that of 0 begins.
    limits = [i - 0.5 for i in range(len(counts) + 1)]
    return summary.histogram_raw(name, least, len(counts) - 1, sum(counts), total, squares, limits, [0, *counts])


def _last_step(run_dir: Path) -> int:
    """The last step of the history, from which a resumed run's later lines have been removed; 0 without one."""
    path, last = run_dir / "history.jsonl", 0
    if not path.exists():
        return last
    for line in path.read_text(errors="replace").splitlines():
        try:
            last = max(last, int(json.loads(line)["step"]))
        except (ValueError, KeyError, TypeError):  # a line that was cut off
            continue
    return last
