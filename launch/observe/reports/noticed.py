"""What `downpour.launch.observe.findings` finds in a whole run: its slow worker, its hot shard, what was lost. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from downpour.launch.observe.findings import findings
from downpour.launch.observe.outliers import hottest, slowest
from downpour.launch.observe.reports.figures import worker_parts
from downpour.launch.observe.reports.recorded import Recorded

_OF_A_WHOLE_RUN = ("lost", "slow_worker", "input_bound", "hot_shard", "staleness_grows")


def noticed(run: Recorded) -> list[str]:
    """Findings of a run as sentences, the most urgent first; none of a healthy one."""
    found = findings(_status(run), run.entries)
    return [f"{one.text[0].upper()}{one.text[1:]}." for one in found if one.kind in _OF_A_WHOLE_RUN]


def extremes(run: Recorded) -> Iterator[str]:
    """The slowest worker and the hottest shard as sentences, whether or not they are findings."""
    status = _status(run)
    for name, one in (("Slowest worker", slowest(status)), ("Hottest shard", hottest(status))):
        if one:
            yield f"{name}: {one}."


def _status(run: Recorded) -> dict[str, Any]:
    """The run as the status of one that trains, whose last seconds are the whole run."""
    parts = worker_parts(run)
    running = {"state": "running", "examples_per_second": 1.0, "silent_seconds": 0.0}
    return {
        "state": "training",
        "step": run.step,
        "seconds": 0.0,
        "faults": run.status.get("faults") or {},
        "input_bound": run.status.get("input_bound") or {},
        "workers": [
            {**running, "worker": worker, "steps": totals["steps"], "seconds_per_step": parts[worker]}
            for worker, totals in run.workers.items()
        ],
        "shards": _shards(run),
    }


def _shards(run: Recorded) -> list[dict[str, Any]]:
    """The shards with the mean of what was recorded of each."""
    entries = [one.get("shards") or [] for one in run.of_kind("progress")]
    found = []
    for index in range(max(map(len, entries), default=0)):
        known = [shards[index] for shards in entries if index < len(shards) and shards[index].get("seconds_per_push")]
        if not known:
            continue
        mean = {part: sum(one["seconds_per_push"].get(part, 0.0) for one in known) / len(known) for part in
                ("receive", "queue", "apply")}  # fmt: skip
        rates = ("bytes_received_per_second", "bytes_sent_per_second")
        found.append(
            {
                **{"shard": index, "state": "ready", "address": "", "pushes": run.step, "pushes_waiting": 0},
                **{name: sum(float(one.get(name, 0.0)) for one in known) / len(known) for name in rates},
                "seconds_per_push": mean,
            }
        )
    return found
