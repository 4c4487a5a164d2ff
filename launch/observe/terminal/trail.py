"""What a view has seen of a run so far: its newest status, losses, staleness, and since when its chief is silent.

Pure: times are passed in. Entered by one thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from downpour.launch.observe.findings import Finding, findings

_MOST_LOSSES, _MOST_ENTRIES = 4000, 1000
_EVERY_S = 2.0  # seconds of training between two entries that are made of statuses
_RECENT = 5  # entries whose staleness is shown


class Trail:
    """What is known of one run.

    Args:
        history: Entries of its history, if that can be read.

    Attributes:
        status: The newest status; empty before the first.
        losses: Of the run so far, one each look, in order; thinned out when there are many.
        findings: What is worth knowing now.
        silent_since_s: Since when the chief has not answered, on the clock of the caller; None while it answers.
    """

    def __init__(self, history: Iterable[Mapping[str, Any]] = ()) -> None:
        self.status: Mapping[str, Any] = {}
        self.findings: list[Finding] = []
        self.silent_since_s: float | None = None
        known = list(history)
        self.losses = [float(entry["loss"]) for entry in known if entry.get("kind") == "loss" and entry.get("loss")]
        self._progress = deque((e for e in known if e.get("kind") == "progress"), maxlen=_MOST_ENTRIES)
        self._counts: list[int] | None = None  # the staleness histogram at the last entry made here
        self._noted_s = 0.0  # seconds of training at that entry
        self._step = -1  # of the last loss
        self._seen = set[tuple[str, int, str]]()

    def add(self, status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Takes a status of a chief that answers; returns the events since the last one, none of the first one's."""
        is_first, self.silent_since_s = not self.status, None
        self.status = status
        step, loss = int(status.get("step") or 0), status.get("loss")
        if loss is not None and step > self._step:
            self._step = step
            self.losses.append(float(loss))
            if len(self.losses) > _MOST_LOSSES:
                self.losses = self.losses[::2]
        self._note(status, step)
        self.findings = findings(status, self._progress)
        events = [event for event in status.get("events", ()) if _key(event) not in self._seen]
        self._seen.update(map(_key, events))
        return [] if is_first else events

    def missed(self, now_s: float) -> float:
        """Notes that the chief has not answered; returns for how many seconds it has not."""
        self.silent_since_s = now_s if self.silent_since_s is None else self.silent_since_s
        return now_s - self.silent_since_s

    def staleness(self) -> list[int]:
        """Counts of pushes by their staleness, over the last seconds; of all pushes while no others are known."""
        recent = [entry["staleness"] for entry in list(self._progress)[-_RECENT:] if entry.get("staleness")]
        counts = [0] * (1 + max((int(value) for entry in recent for value in entry), default=-1))
        for entry in recent:
            for value, count in entry.items():
                counts[int(value)] += int(count)
        return counts or list(self.status.get("staleness_histogram", ()))

    def _note(self, status: Mapping[str, Any], step: int) -> None:
        """Adds an entry on staleness, as the chief adds them to the history, every two seconds."""
        seconds, counts = float(status.get("seconds") or 0.0), list(status.get("staleness_histogram", ()))
        since = seconds - self._noted_s
        if not counts or status.get("state") != "training" or (self._counts and 0 <= since < _EVERY_S):
            return
        before, self._counts, self._noted_s = self._counts, counts, seconds
        if before is None or len(before) != len(counts) or since < 0:
            return
        grown = {str(i): new - old for i, (new, old) in enumerate(zip(counts, before, strict=True)) if new > old}
        workers = {str(worker["worker"]): {"state": worker["state"]} for worker in status.get("workers", ())}
        self._progress.append(
            {"kind": "progress", "step": step, "seconds": seconds, "staleness": grown, "workers": workers}
        )


def _key(event: Mapping[str, Any]) -> tuple[str, int, str]:
    """What an event is known by; its time is rounded by a chief that reads it again."""
    return str(event["event"]), int(event["step"]), str(event["text"])
