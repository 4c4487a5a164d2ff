"""What TensorBoard shows of a run: names and values of curves, the text page, the layout of "Custom Scalars". Pure.

| curve | of |
|---|---|
| `all/loss`, `all/loss_by_epoch`, `all/learning_rate` | entries `loss`, `epoch`, `progress` |
| `evaluation/NAME` | entries `score`; `evaluation/pictures` is a picture |
| `reference/NAME` | what chance would score, of the same entries |
| `gradients/LAYER`, `weights/LAYER` | `norms` of each layer, and of `all_layers` together |
| `precision_recall/CLASS` | curves of an evaluation, in a tab of their own |
| `speed/examples_per_second`, `speed/steps_per_second` | `progress`; a step is a push |
| `staleness/mean`, and the histogram `staleness/pushes` | `progress`; the histogram is of pushes since the last entry |
| `step/PART` | seconds of a step, the mean of the workers: `input`, `compute` and `wait` add up to the step, `pull` and `push` are what the exchange took, which may overlap |
| `workers/QUANTITY/INDEX`, `shards/QUANTITY/INDEX` | each worker and shard; `lowest`, `median`, `highest` of more than `MOST_EACH` |

TensorBoard sorts what is before the first `/` and opens the first two of these groups: `all`, of all
workers together, and `evaluation`.
"""  # noqa: E501

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

MOST_EACH = 8  # workers or shards that have curves of their own; a page of hundreds is of no use
_MOST_ROWS = 200  # of the layout
_PARTS = ("input", "compute", "wait", "pull", "push")
_PARTS_OF_PUSH = ("receive", "queue", "apply")
PICTURES, CURVES = "evaluation/pictures", "precision_recall"
_ALL_LAYERS = "all_layers"
_NOT_SCORES = ("kind", "step", "seconds")


def scalars(entry: Mapping[str, Any]) -> dict[str, float]:
    """Points of curves, by name, of an entry of the history; what is not a number is left out."""
    kind = entry.get("kind")
    if kind == "loss":
        found = {"all/loss": entry.get("loss")}
    elif kind == "epoch":
        found = {"all/loss_by_epoch": entry.get("loss")}
    elif kind == "score":
        found = {_of_score(name): value for name, value in entry.items() if name not in _NOT_SCORES}
    elif kind == "norms":
        found = dict(_of_layers(entry))
    elif kind == "progress":
        found = {
            "all/learning_rate": entry.get("learning_rate"),
            "speed/examples_per_second": entry.get("examples_per_second"),
            "speed/steps_per_second": entry.get("pushes_per_second"),
            "staleness/mean": entry.get("staleness_mean"),
            **dict(_of_workers(entry.get("workers", {}))),
            **dict(_of_shards(entry.get("shards", []))),
        }
    else:
        found = {}
    return {name: float(value) for name, value in found.items() if _is_number(value)}


def staleness(entry: Mapping[str, Any]) -> list[int]:
    """Pushes by staleness, 0 first, since the last such entry; empty where there are none."""
    counts = {int(steps): int(count) for steps, count in entry.get("staleness", {}).items()}
    return [counts.get(steps, 0) for steps in range(max(counts, default=-1) + 1)]


def pages(job: Mapping[str, Any]) -> dict[str, str]:
    """Pages of the tab "Text", as Markdown by name: `run/job` and `run/layout`; `job` is as in `Sink.on_begin`."""
    head = [("recipe", job["recipe"]), ("job", job["job_id"]), ("folder", job["run_dir"])]
    head += [("steps", f"{job['num_steps']:,}"), ("begins at step", f"{job['step']:,}")]
    rows = job["layout"]
    head += [("shards", job["num_shards"]), ("parameters", f"{sum(math.prod(one['shape']) for one in rows):,}")]
    shown = [(one["name"], " x ".join(map(str, one["shape"])) or "1", one["kind"]) for one in rows[:_MOST_ROWS]]
    more = f"\n\nand {len(rows) - _MOST_ROWS:,} more" if len(rows) > _MOST_ROWS else ""
    fields = sorted(job["fields"].items())
    return {
        "run/job": f"{_table(('run', ''), head)}\n\n{_table(('field', 'value'), fields)}",
        "run/layout": _table(("variable", "shape", "kind"), shown) + more,
    }


def charts() -> dict[str, dict[str, list[Any]]]:
    """Charts of several curves for the tab "Custom Scalars": kind and patterns of names, by title and heading."""
    workers = {f"{part}, seconds a step": f"workers/{part}/.*" for part in _PARTS}
    workers |= {"examples a second": "workers/examples_per_second/.*", "staleness": "workers/staleness/.*"}
    shards = {f"{part}, seconds a push": f"shards/{part}/.*" for part in _PARTS_OF_PUSH}
    training = {
        "loss": "all/loss.*",
        "scores": "(evaluation|reference)/.*",
        "learning rate": "all/learning_rate",
        "where a step's time goes, seconds": "step/(input|compute|wait)",
    }
    found = {
        "Training": training,
        "Layers": {"norm of the gradient": "gradients/.*", "norm of the weights": "weights/.*"},
        "Workers": workers,
        "Shards": {**shards, "pushes a second": "shards/pushes_per_second/.*"},
    }
    return {head: {title: ["Multiline", [names]] for title, names in of.items()} for head, of in found.items()}


def precision_recall(positives: Sequence[int], negatives: Sequence[int]) -> tuple[list[float], ...]:
    """True positives, false positives, true and false negatives, precision and recall, at the beginning of each bucket.

    Args:
        positives: Examples of a class by bucket of their score.
        negatives: The others.
    """
    tp, fp = ([float(sum(counts[i:])) for i in range(len(counts))] for counts in (positives, negatives))
    tn, fn = [fp[0] - each for each in fp], [tp[0] - each for each in tp]
    precision = [true / max(true + false, 1.0) for true, false in zip(tp, fp, strict=True)]
    return tp, fp, tn, fn, precision, [true / max(tp[0], 1.0) for true in tp]


def _of_score(name: str) -> str:
    return f"{'reference' if name.startswith('chance') else 'evaluation'}/{name}"


def _of_layers(entry: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name in ("gradients", "weights"):
        values = {layer: value for layer, value in entry.get(name, {}).items() if _is_number(value)}
        yield from ((f"{name}/{layer}", value) for layer, value in values.items())
        yield f"{name}/{_ALL_LAYERS}", math.hypot(*values.values())


def _of_workers(workers: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    known = {index: one for index, one in workers.items() if one.get("state") == "running"}
    for part in _PARTS:
        seconds = {index: one.get("seconds_per_step", {}).get(part) for index, one in known.items()}
        numbers = {index: value for index, value in seconds.items() if _is_number(value)}
        if numbers:
            yield f"step/{part}", statistics.fmean(numbers.values())
        yield from _each(f"workers/{part}", numbers)
    for name, key in (("examples_per_second", "examples_per_second"), ("staleness", "staleness_mean")):
        yield from _each(f"workers/{name}", {index: one.get(key) for index, one in known.items()})


def _of_shards(shards: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    known = {str(index): one for index, one in enumerate(shards) if one.get("state") == "ready"}
    yield from _each("shards/pushes_per_second", {index: one.get("pushes_per_second") for index, one in known.items()})
    for part in _PARTS_OF_PUSH:
        values = {index: one.get("seconds_per_push", {}).get(part) for index, one in known.items()}
        yield from _each(f"shards/{part}", values)


def _each(name: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    numbers = {index: value for index, value in values.items() if _is_number(value)}
    if len(numbers) <= MOST_EACH:
        yield from ((f"{name}/{index}", value) for index, value in numbers.items())
    else:
        found = numbers.values()
        yield from ((f"{name}/lowest", min(found)), (f"{name}/highest", max(found)))
        yield f"{name}/median", statistics.median(found)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in row)} |" for row in lines)
