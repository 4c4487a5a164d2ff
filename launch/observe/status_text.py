"""The status of a run or shard, of `downpour.launch.observe.status`, as a text for people. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from downpour.launch.observe.report import step_words

_MOST_ROWS = 20  # of workers, and of shards
_MOST_NAMED = 4  # workers that wait for data
_LABEL = 12  # columns
_MB = 1e6


def text(status: Mapping[str, Any]) -> str:
    """Returns the lines that `downpour status` prints."""
    return "\n".join([_headline(status), *_facts(status), *_workers(status), *_shards(status)])


def duration(seconds: float) -> str:
    """`0:42`, `12:05`, `3:07:00` or `61 days`."""
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:.0f} days"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _headline(status: Mapping[str, Any]) -> str:
    """`runs/mine: training, step 321 of 700, epoch 3.21, 0:42 left`."""
    parts = [f"{status['run']}: {status['state']}"]
    if status.get("shard") is not None:
        parts = [f"{status['run']}: shard {status['shard']}, {status['state']}"]
    if status.get("step") is not None and status["state"] != "starting":
        total = status.get("num_steps")
        parts.append(f"step {status['step']}{f' of {total}' if total else ''}")
    if status.get("epochs"):
        parts.append(f"epoch {status['epochs']:.2f}")
    if status.get("seconds_left") is not None and status["state"] == "training":
        parts.append(f"{duration(status['seconds_left'])} left")
    return ", ".join(parts)


def _facts(status: Mapping[str, Any]) -> Iterator[str]:
    for label, fact in _labelled(status):
        if fact:
            yield f"  {label:<{_LABEL}}{fact}"


def _labelled(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "problem", status.get("problem", "")
    yield "failure", status.get("failure", "")
    yield "ended by", _ended(status)
    yield "job", " ".join(filter(None, (status.get("recipe"), status.get("job_id"))))
    yield "trained for", duration(status["seconds"]) if status.get("seconds") else ""
    yield "loss", f"{status['loss']:.4g}" if status.get("loss") is not None else ""
    scores = ", ".join(f"{name} {_number(value)}" for name, value in status.get("scores", {}).items())
    yield "held-out", f"{scores} (step {status['score_step']})" if scores else ""
    yield "speed", _speed(status)
    seconds = status.get("seconds_per_step") or {}
    yield "a step", f"{step_words(seconds)} s of a worker" if seconds else ""
    yield "input", _input(status.get("input_bound") or {})
    yield "memory", ", ".join(f"{role} {size:.0f} MB" for role, size in (status.get("peak_pss_mb") or {}).items())
    saved = status.get("checkpoint")
    yield "checkpoint", f"step {saved['step']}, {saved['directory']}" if saved else ""
    best = (f"{name} {_number(one['score'])} (step {one['step']})" for name, one in status.get("best", {}).items())
    yield "best", ", ".join(best)
    if "version" in status:
        yield (
            "version",
            f"{status['version']}, {status['pushes']} pushes, {status['state_bytes'] / _MB:.1f} MB of state",
        )
    faults = ", ".join(f"{name} {count}" for name, count in status.get("faults", {}).items())
    yield "faults", faults or ("none" if "faults" in status else "")


def _input(shares: Mapping[str, float]) -> str:
    """Which workers compute faster than they read."""
    if not shares:
        return ""
    shown = sorted(shares, key=lambda worker: -shares[worker])[:_MOST_NAMED]
    names = ", ".join(f"worker {worker} for {shares[worker]:.0%}" for worker in shown)
    more = f" and {len(shares) - len(shown)} more" if len(shares) > len(shown) else ""
    return f"waits for data: {names} of a step{more}; more threads or less to decode (docs/data.md)"


def _ended(status: Mapping[str, Any]) -> str:
    then = "--resume continues it" if status.get("checkpoint") else "no checkpoint was written"
    if status["state"] == "stopped":
        return f"a signal or a crash, before the end of training; {then}"
    if status.get("failure"):
        return "" if status.get("ended_by") else f"the failure; {then}"
    reason = {"steps": "its number of steps"}.get(status.get("ended_by", ""), status.get("ended_by", ""))
    because = status.get("ended_because")
    return f"{reason}: {because}" if because else reason


def _speed(status: Mapping[str, Any]) -> str:
    parts = (
        ("examples_per_second", "{:.1f} examples/s"),
        ("pushes_per_second", "{:.2f} pushes/s"),
        ("staleness_mean", "staleness {:.2f}"),
    )
    return ", ".join(
        words.format(status[key]) for key, words in parts if status.get(key) is not None and _began(status)
    )


def _began(status: Mapping[str, Any]) -> bool:
    return bool(status.get("step") or status.get("version"))


def _number(value: float | None) -> str:
    return "nan" if value is None else f"{value:.4g}"


def _workers(status: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        (str(w["worker"]), w["state"], str(w["steps"]), str(w["examples"]), f"{w['silent_seconds']:.0f} s", w["host"])
        for w in status.get("workers", ())
    ]
    if rows:
        yield from _table(("worker", "state", "steps", "examples", "silent", "host"), rows)


def _shards(status: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        (str(i), s["state"], str(s["version"]), str(s["pushes"]), f"{s['state_bytes'] / _MB:.1f} MB", s["address"])
        for i, s in enumerate(status.get("shards", ()))
    ]
    if rows:
        yield from _table(("shard", "state", "version", "pushes", "memory", "address"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table after an empty line; of more than 20 rows, those in another state than the first come first."""
    usual = rows[0][1]
    shown = sorted(rows, key=lambda row: row[1] == usual)[:_MOST_ROWS] if len(rows) > _MOST_ROWS else rows
    widths = [max(len(row[column]) for row in (head, *shown)) for column in range(len(head))]
    yield ""
    for row in (head, *shown):
        yield "  " + "  ".join(map(str.ljust, row, widths)).rstrip()
    if len(rows) > len(shown):
        yield f"  and {len(rows) - len(shown)} more; --json has all"
