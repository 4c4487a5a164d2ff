"""What somebody who looks at a run should know: the slow worker, the hot shard, what was lost. Pure: no clock, no I/O.

    for finding in findings(status.of_folder(Path("runs/mine"))):
        print(finding.text)

A status is what `downpour.worker.chief.progress.as_json` and `downpour.launch.observe.status` give. Every view says the
same, because every view takes it from here. A healthy run has no findings; `slowest` and `hottest` of
`downpour.launch.observe.outliers` answer for it, too.

| kind | when |
|---|---|
| `lost` | a worker or a shard is gone, or updates, pushes or records were lost |
| `stalled` | no step for `STALLED_S` and for five usual steps |
| `checkpoint_old` | the last one failed, lacks files, or is three usual intervals old; without two of them, an hour |
| `slow_worker` | a step takes 1.5 times as long as the median of the others', or what it does itself of a step |
| `input_bound` | workers waited for data for more than `input_share.LIMIT` of a hundred steps |
| `hot_shard` | a push queues and is applied for twice as long as on the others: a tenth of a step, or pushes wait |
| `staleness_grows` | the mean of the history's last entries is 1.5 times that of the earlier ones, and one more |
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from downpour.launch.observe.outliers import hottest, seconds_text, slowest
from downpour.worker.input_share import LIMIT

STALLED_S = 30.0
_ENDING_S = 10.0  # between the last report of a worker and the end of training
_GROWS = 1.5  # times what was usual
_OLD_INTERVALS, _OLD_S = 3, 3600.0
_LEAST_ENTRIES = 6  # of the history, before staleness can grow
_DROPPED = 0.01  # of all pushes; below it they are what the pace or treatment means to drop
_MOST_NAMED = 4
_DEATHS = ("worker_lost", "worker_replaced", "shard_restarted")
_GOES_ON = ("training", "scoring")
_LOST = {
    "updates_lost": "{} updates were lost with a shard's memory; it was restored from a checkpoint",
    "pushes_refused": "{} pushes with numbers that are not finite were refused",
    "records_skipped": "{} records that cannot be read were skipped",
}


@dataclass(frozen=True)
class Finding:
    """One thing to know.

    Attributes:
        kind: One of the kinds that the module lists.
        subject: What it is about: `worker 3`, `shard 0`, `checkpoint`, `staleness`, `run`.
        text: A sentence without its stop, which names the subject.
    """

    kind: str
    subject: str
    text: str


def findings(status: Mapping[str, Any], history: Sequence[Mapping[str, Any]] = ()) -> list[Finding]:
    """Returns what is worth knowing of a run, the most urgent first; nothing of a healthy one.

    Args:
        status: The run's status.
        history: Entries of its history; those of the kind `progress` are used. Without any, whether staleness grows is
            not known, and a run whose steps take more than some seconds is never said to be stalled.
    """
    progress = [entry for entry in history if entry.get("kind") == "progress"]
    found = [*_lost(status)]
    if status.get("state") == "training":
        found += [*_stalled(status, progress), *_checkpoint(status)]
        if (slow := slowest(status)) and slow.is_slow:
            found.append(Finding("slow_worker", f"worker {slow.worker}", str(slow)))
    found += _input(status)
    if status.get("state") == "training":
        if (hot := hottest(status)) and hot.is_hot:
            found.append(Finding("hot_shard", f"shard {hot.shard}", str(hot)))
        found += _staleness(progress)
    return found


def died(status: Mapping[str, Any], history: Sequence[Mapping[str, Any]] = ()) -> str:
    """What has died since the run began, and whether anything was lost with it; "" if no event is known.

    Args:
        status: The run's status.
        history: Entries of its history, for a run that does not go on, whose status has no events.
    """
    events = status.get("events") or [entry for entry in history if entry.get("kind") == "event"]
    if not events:
        return ""
    deaths = _deaths(events)
    lost = int(status.get("faults", {}).get("updates_lost", 0))
    if not deaths:
        return f"{lost:,} updates were lost" if lost else "nothing"
    last = deaths[-1]
    times = f"{len(deaths)} times, last" if len(deaths) > 1 else "once,"
    return f"{times} at step {last['step']:,}: {last['text']}; {f'{lost:,}' if lost else 'no'} updates lost"


def _deaths(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The events of deaths; a worker that was lost and whose index another process took over has died once."""
    found, lost = list[Mapping[str, Any]](), set[str]()
    for event in events:
        subject = " ".join(event["text"].split()[:2])  # `worker 3`
        if event["event"] in _DEATHS and not (event["event"] == "worker_replaced" and subject in lost):
            found.append(event)
        if event["event"] == "worker_lost":
            lost.add(subject)
        elif event["event"] in ("worker_back", "worker_replaced"):
            lost.discard(subject)
    return found


def _lost(status: Mapping[str, Any]) -> Iterator[Finding]:
    if status.get("state") in _GOES_ON:
        gone = [worker for worker in status.get("workers", ()) if worker["state"] == "lost"]
        if gone:
            longest = max(worker["silent_seconds"] for worker in gone)
            have = "has" if len(gone) == 1 else "have"
            names = named("worker", [worker["worker"] for worker in gone])
            yield Finding(
                "lost", names, f"{names} {have} not reported for {longest:.0f} s; others train on the records"
            )
        for shard in status.get("shards", ()):
            name = f"shard {shard['shard']}"
            if shard["state"] == "silent":
                yield Finding("lost", name, f"{name} at {shard['address']} does not answer; workers wait for it")
            if shard["state"] == "empty":
                yield Finding("lost", name, f"{name} at {shard['address']} has lost its memory, and is to be restored")
    faults = status.get("faults", {})
    for kind, text in _LOST.items():
        if faults.get(kind):
            yield Finding("lost", "run", text.format(f"{faults[kind]:,}"))
    pushes = max((shard["pushes"] for shard in status.get("shards", ())), default=status.get("step") or 0)
    if faults.get("pushes_dropped", 0) > _DROPPED * max(pushes, 1):
        yield Finding("lost", "run", f"{faults['pushes_dropped']:,} pushes were dropped, of {pushes:,}")


def _stalled(status: Mapping[str, Any], progress: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    step, seconds = int(status.get("step") or 0), float(status.get("seconds") or 0.0)
    workers = status.get("workers", ())
    if workers and all(
        worker["state"] in ("lost", "finished") and worker["silent_seconds"] > _ENDING_S for worker in workers
    ):
        yield Finding("stalled", "run", "no worker runs; start one, and training goes on")
        return
    if not step or any(worker.get("examples_per_second") for worker in workers):
        return
    usual_s = seconds / step
    same = list(itertools.takewhile(lambda entry: entry["step"] == step, reversed(progress)))
    since = float(same[-1]["seconds"]) if same else None
    quiet_s = STALLED_S / 2 if since is None else seconds - since  # workers' rates are those of the last 15 s
    if since is None and (seconds < 2 * STALLED_S or 5 * usual_s > quiet_s or status.get("pushes_per_second")):
        return
    if since is not None and quiet_s < max(STALLED_S, 5 * usual_s):
        return
    yield Finding("stalled", "run", f"no step for {quiet_s:.0f} s; so far one took {seconds_text(usual_s)}")


def _checkpoint(status: Mapping[str, Any]) -> Iterator[Finding]:
    saved, events = status.get("checkpoint"), status.get("events", ())
    tries = [event for event in events if event["event"] in ("checkpoint", "checkpoint_failed")]
    if tries and tries[-1]["event"] == "checkpoint_failed":
        yield Finding("checkpoint_old", "checkpoint", f"no checkpoint: {tries[-1]['text']}")
        return
    if saved and saved.get("whole") is False:
        yield Finding("checkpoint_old", "checkpoint", f"the checkpoint in {saved['directory']} lacks files")
        return
    if not saved:
        if float(status.get("seconds") or 0.0) > _OLD_S:
            yield Finding("checkpoint_old", "checkpoint", "no checkpoint has been written for an hour of training")
        return
    steps = [event["step"] for event in tries if event["event"] == "checkpoint"]
    gaps = [after - before for before, after in itertools.pairwise(steps) if after > before]
    behind = (status.get("step") or 0) - saved["step"]
    if gaps and behind > _OLD_INTERVALS * statistics.median(gaps):
        usual = f"one came every {statistics.median(gaps):,.0f} steps so far"
        yield Finding("checkpoint_old", "checkpoint", f"the last checkpoint is {behind:,} steps old, and {usual}")
    elif not gaps and (saved.get("age_seconds") or 0.0) > _OLD_S:
        yield Finding("checkpoint_old", "checkpoint", "the last checkpoint is more than an hour old")


def _input(status: Mapping[str, Any]) -> Iterator[Finding]:
    shares = {int(worker): float(share) for worker, share in (status.get("input_bound") or {}).items() if share > LIMIT}
    if shares:
        most = sorted(shares, key=lambda worker: -shares[worker])
        names, waits = named("worker", most), "waits" if len(most) == 1 else "wait"
        help_ = "give the data more threads, or less to decode (docs/data.md)"
        yield Finding("input_bound", names, f"{names} {waits} for data for {shares[most[0]]:.0%} of a step; {help_}")


def _staleness(progress: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Compares the last quarter with the first half of the entries since the number of workers last changed."""
    known = [entry for entry in progress if entry.get("staleness")]
    number, count = _num_running(known[-1]) if known else 0, 0
    while count < len(known) and _num_running(known[-1 - count]) == number:
        count += 1
    same = known[len(known) - count + 1 :]  # the first one has pushes from before the change, too
    if len(same) < _LEAST_ENTRIES:
        return
    before, now = _mean(same[: len(same) // 2]), _mean(same[-max(len(same) // 4, 2) :])
    if now >= _GROWS * before + 1.0:
        yield Finding("staleness_grows", "staleness", f"staleness grows: a mean of {now:.1f}, and {before:.1f} before")


def _num_running(entry: Mapping[str, Any]) -> int:
    return sum(worker["state"] == "running" for worker in entry.get("workers", {}).values())


def _mean(entries: Sequence[Mapping[str, Any]]) -> float:
    pairs = [(int(value), int(count)) for entry in entries for value, count in entry["staleness"].items()]
    return sum(value * count for value, count in pairs) / max(sum(count for _, count in pairs), 1)


def named(noun: str, numbers: Sequence[int]) -> str:
    """`worker 3`, or `workers 3, 1 and 7 more`."""
    if len(numbers) == 1:
        return f"{noun} {numbers[0]}"
    shown = ", ".join(str(number) for number in numbers[:_MOST_NAMED])
    return f"{noun}s {shown}" + (f" and {len(numbers) - _MOST_NAMED} more" if len(numbers) > _MOST_NAMED else "")
