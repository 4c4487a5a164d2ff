"""The status of a run or shard, of `downpour.launch.observe.status`, as a text for people. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from downpour.launch.observe.findings import died, findings
from downpour.launch.observe.report import step_words

_MOST_ROWS = 20  # of workers, and of shards
_LABEL = 12  # columns
_MB = 1e6


def text(status: Mapping[str, Any], history: Sequence[Mapping[str, Any]] = ()) -> str:
    """Returns the lines that `downpour status` prints.

    Args:
        status: The run's status.
        history: Entries of its history, for what is found in it; see `downpour.launch.observe.findings`.
    """
    found = [f"  {'finding':<{_LABEL}}{finding.text}" for finding in findings(status, history)]
    return "\n".join(
        [headline(status), *_facts(status, history), *found, *_workers(status), *_evaluators(status), *_shards(status)]
    )


def line(status: Mapping[str, Any]) -> str:
    """The state in one line: `runs/mine: training, step 321 of 700, ...; loss 0.4213; 492.0 examples/s, ...`."""
    known = dict(_labelled(status))
    return "; ".join(
        filter(
            None,
            (
                headline(status),
                f"loss {known['loss']}" if known["loss"] else "",
                f"held-out {known['held-out']}" if known["held-out"] else "",
                known["speed"],
            ),
        )
    )


def duration(seconds: float) -> str:
    """`0:42`, `12:05`, `3:07:00` or `61 days`."""
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:.0f} days"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def headline(status: Mapping[str, Any]) -> str:
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


def _facts(status: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for label, fact in (*_labelled(status), ("died", died(status, history))):
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
    yield "memory", ", ".join(f"{role} {size:.0f} MB" for role, size in (status.get("peak_pss_mb") or {}).items())
    saved = status.get("checkpoint")
    yield "checkpoint", f"{checkpoint_text(saved)}, {saved['directory']}" if saved else ""
    every = status.get("checkpoint_every_steps")
    yield "", f"one every {every:,} steps" if every and saved else ""
    best = (f"{name} {_number(one['score'])} (step {one['step']})" for name, one in status.get("best", {}).items())
    yield "best", ", ".join(best)
    if "version" in status:
        yield (
            "version",
            f"{status['version']}, {status['pushes']} pushes, {status['state_bytes'] / _MB:.1f} MB of state",
        )
    faults = ", ".join(f"{name} {count}" for name, count in status.get("faults", {}).items())
    yield "faults", faults or ("none" if "faults" in status else "")


def checkpoint_text(saved: Mapping[str, Any]) -> str:
    """`step 700, 0:06 ago, whole`; what was not asked is left out."""
    parts = [f"step {saved['step']}"]
    if saved.get("age_seconds") is not None:
        parts.append(f"{duration(saved['age_seconds'])} ago")
    if "whole" in saved:
        words = {True: "whole", False: "with files missing", None: "written whole, and not readable from here"}
        parts.append(words[saved["whole"]])
    return ", ".join(parts)


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
        lease = status.get("lease_seconds")
        silent = f"silent (of {lease:g} s)" if lease else "silent"
        yield from _table(("worker", "state", "steps", "examples", silent, "host"), rows)


def _evaluators(status: Mapping[str, Any]) -> Iterator[str]:
    """Where there are several: `held-out` says what one has found."""
    rows = [
        (
            str(one["evaluator"]),
            one["state"] + (f" step {one['step']} for {duration(one['seconds'])}" if one["state"] == "scoring" else ""),
            str(one["scored"]),
            f"{one['silent_seconds']:.0f} s",
        )
        for one in status.get("evaluators", ())
    ]
    if len(rows) > 1:
        yield from _table(("evaluator", "state", "scored", "silent"), rows)


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
