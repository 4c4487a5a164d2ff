"""What a report shows of a run in tables and figures, as text. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from downpour.launch.observe.reports.figures import IN_A_STEP, OVERLAPPING, staleness_counts, worker_parts
from downpour.launch.observe.reports.html import number, seconds, size
from downpour.launch.observe.reports.recorded import Recorded

NO_COST = (
    "Processor seconds and memory peaks are recorded by local runs that end by themselves; "
    "of others the cluster may know them."
)
_BYTES_A_PARAMETER = 4
_FAULTS = {
    "updates_lost": "updates of a shard that lost its memory and went back to a checkpoint",
    "shards_restored": "shards that lost their memory and were restored from a checkpoint",
    "pushes_dropped": "pushes that a shard left out, being too stale or from a worker that had lost its lease",
    "pushes_refused": "pushes with numbers that are not finite",
    "steps_skipped": "steps that overflowed under loss scaling and were not pushed",
    "records_skipped": "records that could not be read",
    "records_repeated": "records trained on again, since the worker that had them was lost",
}
_NAMES = {"downpour": "Downpour", "python": "Python", "keras": "Keras", "tensorflow": "TensorFlow", "numpy": "numpy"}


@dataclass(frozen=True)
class Table:
    """Names of columns, rows of cells, and where more is found."""

    head: list[str]
    rows: list[list[str]]
    more: str = ""


def examples_per_second(run: Recorded) -> float | None:
    """Over the whole run, or as far as it is known."""
    known = run.summary.get("examples_per_second", run.summary.get("images_per_second"))
    examples = sum(totals["examples"] for totals in run.workers.values())
    return float(known) if known else examples / run.seconds if examples and run.seconds else None


def staleness_mean(run: Recorded) -> float | None:
    """Of all pushes, as far as they are known."""
    if run.summary.get("staleness_mean") is not None:
        return float(run.summary["staleness_mean"])
    counts = staleness_counts(run)
    total = sum(counts.values())
    return sum(value * count for value, count in counts.items()) / total if total else None


def what_ran(run: Recorded) -> Iterator[tuple[str, str]]:
    """Name and value of what describes a run."""
    last: dict[str, Any] = dict(run.environments[-1]) if run.environments else {}
    layout, machine = last.get("layout") or {}, last.get("machine") or {}
    yield "Recipe", run.name
    if last:
        yield "Overrides", ", ".join(f"--set={one}" for one in last.get("overrides", ())) or "none"
    yield "Job id", str(run.status.get("job_id", ""))
    yield "Workers", str(run.summary.get("num_workers") or run.job.get("cluster.num_workers", ""))
    yield "Batch size", str(run.summary.get("batch_size") or run.job.get("batch_size", ""))
    for name, field in (
        ("Update rule", "rule"),
        ("Schedule", "schedule"),
        ("Pace", "pace"),
        ("Staleness", "staleness"),
    ):
        yield name, described(run, field)
    yield "Layout", _layout(layout)
    yield "Versions", ", ".join(f"{_NAMES.get(name, name)} {one}" for name, one in versions(run).items())
    yield "Chief's machine", machine_words(machine)
    if run.summary.get("resumed_from") is not None:
        yield "Resumed from", f"the checkpoint of step {run.summary['resumed_from']:,}"


def described(run: Recorded, field: str) -> str:
    """A field of the job with what it holds: `Momentum (momentum 0.9)`; "" if it is not known."""
    inside = {name.removeprefix(f"{field}."): value for name, value in run.job.items() if name.startswith(f"{field}.")}
    more = ", ".join(f"{name} {value}" for name, value in inside.items())
    return run.job.get(field, "") + (f" ({more})" if more else "")


def versions(run: Recorded) -> dict[str, str]:
    """Of the newest chief; where those of an earlier one differ, they are named, too."""
    found: dict[str, list[str]] = {}
    for one in run.environments:
        for name, version in dict(one.get("versions") or {}).items():
            if str(version) not in found.setdefault(str(name), []):
                found[str(name)].append(str(version))
    return {name: " then ".join(known) for name, known in found.items()}


def machine_words(machine: dict[str, Any]) -> str:
    """`Intel(R) Xeon(R), 2 cores, 7.8 GB, Linux x86_64`."""
    memory = size(machine["memory_bytes"]) if machine.get("memory_bytes") else ""
    cores = f"{machine['cores']} cores" if machine.get("cores") else ""
    parts = (machine.get("processor"), cores, memory, machine.get("system"))
    return ", ".join(str(part) for part in parts if part)


def _layout(layout: dict[str, Any]) -> str:
    if not layout:
        return ""
    kinds = layout["parameters"]
    total = sum(kinds.values())
    shares = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
    on = layout["shard_parameters"]
    return (
        f"{layout['variables']:,} variables of {total:,} parameters ({shares}), {size(_BYTES_A_PARAMETER * total)} in "
        f"float32, on {len(on)} shards of {size(_BYTES_A_PARAMETER * min(on))} to {size(_BYTES_A_PARAMETER * max(on))}"
    )


def workers(run: Recorded) -> Table:
    """A row for each worker, the slowest first."""
    parts = worker_parts(run)
    columns = (*IN_A_STEP, *OVERLAPPING)
    rows = {
        worker: [
            str(worker),
            f"{one['steps']:,.0f}",
            f"{one['examples']:,.0f}",
            seconds(sum(parts[worker][part] for part in IN_A_STEP)),
            *(seconds(parts[worker][part]) for part in columns),
            number(round(one["staleness_sum"] / one["steps"], 3)),
        ]
        for worker, one in run.workers.items()
    }
    order = sorted(rows, key=lambda worker: -sum(parts[worker][part] for part in IN_A_STEP))
    head = ["worker, slowest first", "steps", "examples", "a step", *columns, "staleness"]
    return Table(head, [rows[worker] for worker in order], "history.jsonl has them over time")


def shards(run: Recorded) -> Table:
    """A row for each shard: its size, and how it did in the last seconds that were recorded."""
    placed = (run.environments[-1].get("layout") or {}).get("shard_parameters", []) if run.environments else []
    progress = run.of_kind("progress")
    last = list(progress[-1].get("shards") or []) if progress else []
    rows = []
    for index in range(max(len(placed), len(last))):
        one = last[index] if index < len(last) else {}
        per_push = one.get("seconds_per_push") or {}
        rows.append(
            [
                str(index),
                f"{placed[index]:,}" if index < len(placed) else "",
                number(round(one["pushes_per_second"], 2)) if "pushes_per_second" in one else "",
                *(seconds(per_push[part]) if part in per_push else "" for part in ("receive", "queue", "apply")),
                *(
                    f"{size(one[name])}{unit}" if name in one else ""
                    for name, unit in (
                        ("bytes_received_per_second", "/s"),
                        ("bytes_sent_per_second", "/s"),
                        ("memory_bytes", ""),
                    )
                ),
            ]
        )
    head = ["shard", "parameters", "pushes/s", "receive", "queue", "apply", "received", "sent", "memory"]
    return Table(head, rows, "history.jsonl has them")


def faults(run: Recorded) -> list[list[str]]:
    """Name, count and meaning of the faults that were counted."""
    found = dict(run.status.get("faults") or {})
    return [[name.replace("_", " "), f"{count:,}", _FAULTS.get(name, "")] for name, count in found.items() if count]


def cost(run: Recorded) -> list[list[str]]:
    """A row for each role: number of processes, processor seconds, peaks of memory."""
    pss, rss = run.summary.get("peak_pss_mb") or {}, run.summary.get("peak_rss_mb") or {}
    spent = run.summary.get("processor_seconds") or {}
    counts = {"ps": run.summary.get("num_ps"), "worker": run.summary.get("num_workers"), "chief": 1, "evaluator": 1}
    names = {"ps": "shards"}
    return [
        [
            names.get(role, role),
            str(counts.get(role) or ""),
            f"{spent[role]:,.1f}" if role in spent else "unknown",
            *(f"{known[role]:,.0f} MB" if role in known else "unknown" for known in (pss, rss)),
        ]
        for role in rss or pss
    ]


def bytes_moved(run: Recorded) -> Iterator[tuple[str, str]]:
    """What a step moves, and what all of them have."""
    steps = sum(one["steps"] for one in run.workers.values())
    pulled, pushed = (sum(one[f"bytes_{which}"] for one in run.workers.values()) for which in ("pulled", "pushed"))
    if steps:
        yield "Bytes of a step", f"{size(pulled / steps)} pulled, {size(pushed / steps)} pushed"
        yield "Bytes of the run", f"{size(pulled)} pulled, {size(pushed)} pushed"
    elif run.summary.get("bytes_per_step"):
        yield "Bytes of a step", size(run.summary["bytes_per_step"])
