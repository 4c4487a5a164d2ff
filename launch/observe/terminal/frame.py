"""One frame of the live view of a run in a terminal: lines of text of any width and number. Pure: no clock, no I/O.

From the top: the state, what is done and left, the loss as a curve, scores, speed, staleness, the checkpoint; what was
found; a row a worker and a row a shard, of too many the worst and a count of the rest; the newest events.
"""

from __future__ import annotations

import statistics
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.text import Text

from downpour.launch.observe import outliers
from downpour.launch.observe.findings import died
from downpour.launch.observe.status_text import checkpoint_text, duration, headline
from downpour.launch.observe.terminal import gauges
from downpour.launch.observe.terminal.columns import Column, table
from downpour.launch.observe.terminal.gauges import BLOCKS, Glyphs, short, size, time_text
from downpour.launch.observe.terminal.trail import Trail

_TALL = 34  # lines from which the loss has a curve of several
_CURVE_ROWS = 4
_LABEL = 11  # characters
_MOST_EVENTS = 8
_PARTS = (("input", "yellow"), ("compute", "green"), ("wait", "blue"))
_STATES = {
    **dict.fromkeys(("lost", "silent", "empty"), "bold red"),
    **dict.fromkeys(("finished", "expected", "waiting"), "dim"),
}
_URGENCY = {"lost": 0, "silent": 0, "empty": 1, "running": 2, "ready": 2, "waiting": 3, "expected": 3, "finished": 4}
_BAD_EVENTS = ("lost", "silent", "failed", "dropped", "refused", "skipped")


def frame(trail: Trail, width: int, height: int, glyphs: Glyphs = BLOCKS, silent_s: float | None = None) -> list[Text]:
    """Returns the lines of a frame.

    Args:
        trail: What is known of the run.
        width: Characters of a line, at most.
        height: Lines, at most; at least 10.
        glyphs: The characters of curves and bars.
        silent_s: For how many seconds the chief has not answered; None while it answers.
    """
    status, lines = trail.status, [Text(headline(trail.status), style="bold")]
    if silent_s is not None:
        words = f"! the chief has not answered for {duration(silent_s)}; this is what it said last"
        lines.append(Text(words, style="bold red"))
    lines += [_done(status, width, glyphs), *_loss(trail, width, height, glyphs)]
    lines += [_labelled(label, text) for label, text in _facts(trail, width - _LABEL, glyphs) if text]
    lines += _found(trail, width, max(height // 8, 2))
    workers, shards, events = status.get("workers", ()), status.get("shards", ()), status.get("events", ())
    room = height - len(lines) - (1 if workers else 0) - (1 if shards else 0)
    num_events = min(len(events), max(min(room // 5, _MOST_EVENTS), 1), max(room - 2, 0))
    for_workers, for_shards = shares(room - num_events, len(workers), len(shards))
    if for_workers:
        lines += _workers(workers, width, for_workers, glyphs, status.get("lease_seconds"))
    if for_shards:
        lines += _shards(shards, width, for_shards)
    lines += [event_line(event) for event in events[-num_events:]] if num_events else []
    for line in lines:
        line.truncate(width, overflow="ellipsis")
        line.no_wrap = True
    return lines[:height]


def event_line(event: Mapping[str, Any]) -> Text:
    """`04:51:02 step 700: the checkpoint at step 700 is complete`, with the time of this machine's zone."""
    clock = time.strftime("%H:%M:%S", time.localtime(event["time"])) if event["time"] else "--:--:--"
    bad = any(word in event["event"] for word in _BAD_EVENTS)
    return Text.assemble((f"{clock} step {event['step']}: ", "dim"), (event["text"], "red" if bad else ""))


def shares(room: int, num_workers: int, num_shards: int) -> tuple[int, int]:
    """Lines for workers and for shards: all if they fit; else half for each, and what one leaves for the other."""
    if num_workers + num_shards <= room:
        return num_workers, num_shards
    for_workers = min(num_workers, max((room + 1) // 2, room - num_shards))
    return max(for_workers, 0), max(min(num_shards, room - for_workers), 0)


def _labelled(label: str, text: Text) -> Text:
    return Text.assemble((f"{label:<{_LABEL}}", "dim"), text)


def _done(status: Mapping[str, Any], width: int, glyphs: Glyphs) -> Text:
    """A bar of the steps that are done."""
    total, step = status.get("num_steps") or 0, status.get("step") or 0
    share = min(step / total, 1.0) if total else 0.0
    room = max(width - 6, 1)
    done = int(room * share)
    bar = Text(glyphs.done * done, style="green").append(glyphs.left * (room - done), style="dim")
    return bar.append(f" {share:4.0%}")


def _loss(trail: Trail, width: int, height: int, glyphs: Glyphs) -> list[Text]:
    loss = trail.status.get("loss")
    if loss is None:
        return []
    words = f"{loss:.4g}"
    rows = gauges.curve(trail.losses, width - _LABEL - 10, _CURVE_ROWS if height >= _TALL else 1, glyphs)
    heads = [*[""] * (len(rows) - 1), words]
    return [
        _labelled("" if number < len(rows) - 1 else "loss", Text(f"{head:<10}").append(row, style="cyan"))
        for number, (head, row) in enumerate(zip(heads, rows, strict=True))
    ]


def _facts(trail: Trail, width: int, glyphs: Glyphs) -> list[tuple[str, Text]]:
    status = trail.status
    known = {name: value for name, value in status.get("scores", {}).items() if value is not None}
    scores = ", ".join(f"{name} {value:.4g}" for name, value in known.items() if not name.startswith("chance"))
    speed, counts, mean = "", trail.staleness(), status.get("staleness_mean")
    if status.get("step") and status.get("examples_per_second") is not None:
        speed = f"{short(status['examples_per_second'])} examples/s"
        speed += f", {status['pushes_per_second']:.2f} steps/s" if status.get("pushes_per_second") else ""
        speed += f", learning rate {status['learning_rate']:.3g}" if status.get("learning_rate") else ""
    staleness = Text()
    if sum(counts) and mean is not None:
        least, _, rest = gauges.distribution(counts, min(width - 10, 60), glyphs).partition(" ")
        columns, _, most = rest.rpartition(" ")
        staleness = Text.assemble(f"mean {mean:<5.2f}{least} ", (columns, "magenta"), f" {most}")
    saved = status.get("checkpoint")
    faults = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in status.get("faults", {}).items())
    return [
        ("held-out", Text(f"{scores} (step {status['score_step']})" if scores else "")),
        ("speed", Text(speed)),
        ("staleness", staleness),
        ("checkpoint", Text(checkpoint_text(saved) if saved else "")),
        ("evaluators", _evaluators(status.get("evaluators", ()))),
        ("faults", Text(faults, style="red")),
        ("died", Text("" if (dead := died(status)) == "nothing" else dead, style="red")),
        ("failure", Text(status.get("failure") or "", style="bold red")),
        ("problem", Text(status.get("problem") or "", style="bold red")),
    ]


def _evaluators(evaluators: Sequence[Mapping[str, Any]]) -> Text:
    """What each does; nothing of a single one that waits for checkpoints."""
    if len(evaluators) == 1 and evaluators[0]["state"] in ("waiting", "expected"):
        return Text()
    parts = list[Text]()
    for one in evaluators:
        state, seconds = one["state"], duration(one["seconds"] or 0.0)
        does = f"scores step {one['step']} for {seconds}" if state == "scoring" else state
        parts.append(Text(f"{one['evaluator']} {does}", style=_STATES.get(state, "")))
    return Text(", ").join(parts)


def _found(trail: Trail, width: int, most: int) -> list[Text]:
    """The findings, at most so many lines."""
    lines = list[str]()
    for finding in trail.findings:
        more = textwrap.wrap(finding.text, max(width - 2, 10))
        lines += [f"! {more[0]}", *(f"  {line}" for line in more[1:])]
    if len(lines) > most:
        hidden = sum(line.startswith("!") for line in lines[most - 1 :])
        lines = [*lines[: most - 1], f"! and {hidden} more: downpour status shows all"]
    return [Text(line, style="bold yellow") for line in lines]


def _workers(
    workers: Sequence[Mapping[str, Any]], width: int, most: int, glyphs: Glyphs, lease_s: float | None
) -> list[Text]:
    longest = max((outliers.step_s(worker.get("seconds_per_step", {})) for worker in workers), default=0.0)

    def step(worker: Mapping[str, Any]) -> float:
        return outliers.step_s(worker.get("seconds_per_step", {}))

    def bar(worker: Mapping[str, Any], room: int) -> Text:
        if worker["state"] != "running":
            return Text(worker["state"], style=_STATES.get(worker["state"], ""))
        parts = worker.get("seconds_per_step", {})
        lengths = gauges.lengths((parts.get(name, 0.0) for name, _ in _PARTS), longest, room)
        text = Text()
        for glyph, length, (_, style) in zip(glyphs.parts, lengths, _PARTS, strict=True):
            text.append(glyph * length, style)
        return text

    legend = " ".join(f"{glyph}{name}" for glyph, (name, _) in zip(glyphs.parts, _PARTS, strict=True))
    columns = [
        Column("worker", 6, 0, lambda one, _: str(one["worker"])),
        Column("steps", 6, 1, lambda one, _: short(one["steps"])),
        Column("ex/s", 6, 5, lambda one, _: short(one["examples_per_second"])),
        Column("stale", 5, 6, lambda one, _: f"{one['staleness_mean']:.1f}"),
        Column("step", 7, 2, lambda one, _: time_text(step(one) or None)),
        Column(legend, 0, 3, bar),
        Column("pull", 7, 7, lambda one, _: time_text(one.get("seconds_per_step", {}).get("pull"))),
        Column("push", 7, 8, lambda one, _: time_text(one.get("seconds_per_step", {}).get("push"))),
        Column("heard", 7 if lease_s else 6, 4, lambda one, _: _heard(one, lease_s)),
    ]
    worst, rest = _worst(workers, most, lambda one: (_URGENCY[one["state"]], -step(one), -one["silent_seconds"]))
    usual = [step(one) for one in rest if step(one)]
    more = f"; median step {time_text(statistics.median(usual))}" if usual else ""
    return [*table(columns, worst, width), *_rest(rest, more)]


def _shards(shards: Sequence[Mapping[str, Any]], width: int, most: int) -> list[Text]:
    def seconds(shard: Mapping[str, Any], *parts: str) -> float | None:
        known = shard.get("seconds_per_push", {})
        return sum(known[part] for part in parts) if all(part in known for part in parts) else None

    def state(shard: Mapping[str, Any], room: int) -> Text:
        return Text(shard["state"], style=_STATES.get(shard["state"], ""))

    columns = [
        Column("shard", 6, 0, lambda one, _: str(one["shard"])),
        Column("version", 7, 1, lambda one, _: short(one["version"])),
        Column("push/s", 6, 2, lambda one, _: f"{one['pushes_per_second']:.1f}"),
        Column("in/s", 8, 5, lambda one, _: size(one["bytes_received_per_second"])),
        Column("out/s", 8, 6, lambda one, _: size(one["bytes_sent_per_second"])),
        Column("waits", 5, 7, lambda one, _: str(one["pushes_waiting"])),
        Column("queue", 7, 4, lambda one, _: time_text(seconds(one, "queue"))),
        Column("apply", 7, 3, lambda one, _: time_text(seconds(one, "apply"))),
        Column("memory", 8, 8, lambda one, _: size(one["memory_bytes"])),
        Column("state", 0, 2, state),
    ]
    worst, rest = _worst(
        shards,
        most,
        lambda one: (_URGENCY[one["state"]], -(seconds(one, "queue", "apply") or 0.0), -one["pushes_waiting"]),
    )
    usual = [value for one in rest if (value := seconds(one, "queue", "apply")) is not None]
    more = f"; median queue and apply {time_text(statistics.median(usual))}" if usual else ""
    return [*table(columns, worst, width), *_rest(rest, more)]


def _heard(worker: Mapping[str, Any], lease_s: float | None) -> str:
    """How long ago, of its lease: `4/30s`."""
    if worker["state"] == "expected":
        return ""
    of = f"/{lease_s:.0f}" if lease_s and worker["state"] != "finished" else " "
    return f"{short(worker['silent_seconds'])}{of}s"


def _worst(
    rows: Sequence[Mapping[str, Any]], most: int, badness: Callable[[Mapping[str, Any]], tuple[float, ...]]
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """All rows in their order, if they fit; else the worst, with a line left for the rest."""
    if len(rows) <= most:
        return list(rows), []
    ordered = sorted(rows, key=badness)
    return ordered[: most - 1], ordered[most - 1 :]


def _rest(rows: Sequence[Mapping[str, Any]], more: str) -> list[Text]:
    """How many are not shown, and what they do."""
    if not rows:
        return []
    states = ", ".join(f"{count} {state}" for state, count in Counter(one["state"] for one in rows).most_common())
    return [Text(f"   and {len(rows)} more: {states}{more}", style="dim")]
