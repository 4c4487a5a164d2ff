"""Looks at the job once a second, and adds what has happened and how fast it goes to the history.

Threads: for the chief's main thread. The events that the service shows are guarded by the condition of `JobState`.
"""

from __future__ import annotations

import time
from typing import Any

from downpour.proto import chief_pb2 as pb
from downpour.worker.chief.changes import changes
from downpour.worker.chief.progress import as_json, progress
from downpour.worker.chief.run_folder import RunFolder
from downpour.worker.chief.settings import JobSettings
from downpour.worker.chief.state import JobState

_LEAST_S, _OF_TIME = 2.0, 0.01  # between two entries on speed: some seconds, or so much of the time so far


class Observer:
    """Observes one job.

    Args:
        settings: The job's settings.
        state: The job's state; events are added to it.
        folder: The run's folder; its history gets events, and progress and norms now and then.
    """

    def __init__(self, settings: JobSettings, state: JobState, folder: RunFolder) -> None:
        self._settings, self._state, self._folder = settings, state, folder
        self._last: pb.ProgressReply.Details | None = None
        self._counts: list[int] = []  # the staleness histogram at the last entry
        self._noted_s = 0.0  # seconds of training at the last entry
        self._normed, self._normed_s = -1, -_LEAST_S  # version and seconds of training of the last norms in the history
        with state.changed:
            state.events.extend(_event(entry) for entry in folder.entries("event")[-(state.events.maxlen or 0) :])

    def look(self) -> None:
        """Adds what has happened since the last look; and progress and norms, if it is time."""
        state = self._state
        with state.changed:
            reply = progress(self._settings, state, detailed=True)
            before, said = self._last, state.happened
            if before is None:
                before = pb.ProgressReply.Details(faults=reply.details.faults, shards=reply.details.shards)
                before.checkpoint_step = reply.details.checkpoint_step
            state.happened = []
            found = [*changes(before, reply.details), *said]
            events = [
                pb.ProgressReply.Event(time=time.time(), step=reply.step, kind=kind, text=text) for kind, text in found
            ]
            state.events.extend(events)
            norms = state.coordinator.reports.norms
        self._last = reply.details
        seconds = round(reply.details.train_seconds, 2)
        for event in events:
            self._folder.note(
                {
                    "kind": "event",
                    "step": event.step,
                    "seconds": seconds,
                    "time": round(event.time, 3),
                    "event": event.kind,
                    "text": event.text,
                }
            )
        if reply.step and seconds - self._noted_s >= _pause_s(seconds):
            self._folder.note(self._progress(reply, seconds))
            self._noted_s = seconds
        if norms is not None and norms.version > self._normed and seconds - self._normed_s >= _pause_s(seconds):
            self._folder.note(_norms(norms, seconds))
            self._normed, self._normed_s = norms.version, seconds

    def _progress(self, reply: pb.ProgressReply, seconds: float) -> dict[str, Any]:
        """The entry: rates, means and counts since the last one."""
        values = as_json(reply)
        counts = list(reply.details.staleness_histogram) or self._counts  # none while no shard answers
        before, self._counts = self._counts or [0] * len(counts), counts
        same = ("learning_rate", "examples_per_second", "pushes_per_second", "staleness_mean")
        workers = ("state", "steps", "examples_per_second", "staleness_mean", "seconds_per_step")
        shards = (
            *("state", "version", "pushes_per_second", "pushes_waiting", "seconds_per_push", "memory_bytes"),
            *("bytes_received_per_second", "bytes_sent_per_second"),
        )
        return {
            "kind": "progress",
            "step": reply.step,
            "seconds": seconds,
            **{name: values[name] for name in same},
            "staleness": {
                str(i): count - old
                for i, (count, old) in enumerate(zip(counts, before, strict=True))
                if count > old  # a shard that was restored counts less
            },
            "workers": {str(one["worker"]): {name: one[name] for name in workers} for one in values["workers"]},
            "shards": [{name: one[name] for name in shards} for one in values["shards"]],
        }


def _pause_s(train_s: float) -> float:
    return max(_LEAST_S, _OF_TIME * train_s)


def _norms(norms: pb.Norms, seconds: float) -> dict[str, Any]:
    """The entry, whose step is the one that the norms are of."""
    by_layer = {name: dict(sorted(getattr(norms, name).items())) for name in ("gradients", "weights")}
    return {"kind": "norms", "step": norms.version, "seconds": seconds, **by_layer}


def _event(entry: dict[str, Any]) -> pb.ProgressReply.Event:
    return pb.ProgressReply.Event(
        time=float(entry.get("time", 0.0)),
        step=int(entry.get("step", 0)),
        kind=str(entry.get("event", "")),
        text=str(entry.get("text", "")),
    )
