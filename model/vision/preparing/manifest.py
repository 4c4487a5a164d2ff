"""The manifest of a prepared set: what came in, what was left out or changed, and why. Plain numbers, no pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from downpour import __version__
from downpour.model.vision.labels import LabelTree
from downpour.model.vision.preparing.items import TRAIN
from downpour.model.vision.preparing.pictures import CONVERTED, KINDS
from downpour.model.vision.preparing.plan import SPLITS, Plan
from downpour.model.vision.preparing.shards import Facts


def make(planned: Plan, facts: Mapping[str, Facts]) -> dict[str, Any]:
    """The content of `manifest.json`.

    Args:
        planned: What was to be written.
        facts: What was written, by split.
    """
    tree = planned.tree
    label, num_children = tree.widest
    carriers = {split: _carriers(tree, facts[split].labels) for split in SPLITS}
    skipped = sorted([*planned.skipped, *(each for split in SPLITS for each in facts[split].skipped)])
    changed = sorted(each for split in SPLITS for each in facts[split].changed)
    total = Facts()
    for split in SPLITS:
        total.add(facts[split])
    return {
        "version": __version__,
        "fingerprint": planned.fingerprint,
        "settings": asdict(planned.settings),
        "pictures": {split: facts[split].num_written for split in SPLITS},
        "bytes": {split: facts[split].num_bytes for split in SPLITS},
        "num_labels": len(tree),
        "depth": tree.depth,
        "widest": {"label": label, "children": num_children},
        "labels_an_image": {
            "own": _by_count(total.labels, len),
            "with_ancestors": _by_count(total.labels, lambda labels: len(tree.with_ancestors(labels))),
        },
        "formats": dict(sorted(total.formats.items())),
        "longer_sides": {str(side): count for side, count in sorted(total.sides.items())},
        "num_skipped": _counted(kind for _, kind, _ in skipped),
        "num_changed": _counted(kind for _, kinds in changed for kind in kinds),
        "without_training_pictures": [name for i, name in enumerate(tree.names) if not carriers[TRAIN][i]],
        "labels": {
            name: {split: carriers[split][i] for split in SPLITS} for i, name in enumerate(tree.names)
        },
        "skipped": [{"name": name, "kind": kind, "why": why} for name, kind, why in skipped],
        "changed": [
            {"name": name, "kinds": kinds, "why": "; ".join(KINDS[kind].text for kind in kinds)}
            for name, kinds in changed
        ],
    }  # fmt: skip


def summary(manifest: Mapping[str, Any]) -> str:
    """One line."""
    train, heldout = (manifest["pictures"][split] for split in SPLITS)
    empty, skipped = manifest["without_training_pictures"], sum(manifest["num_skipped"].values())
    converted = sum(any(KINDS[kind].outcome == CONVERTED for kind in each["kinds"]) for each in manifest["changed"])
    parts = [
        f"{train} training and {heldout} held-out pictures",
        f"{manifest['num_labels']} labels, at most {manifest['depth']} deep",
        f"{skipped} pictures skipped" + _by_kind(manifest["num_skipped"]),
        f"{converted} converted",
    ]
    if empty:
        parts.append(f"{len(empty)} labels without a training picture, such as {empty[0]!r}")
    return "; ".join(parts)


def mean(by_count: Mapping[str, int]) -> float:
    """The mean of `labels_an_image`, whose keys are numbers of labels."""
    return sum(int(number) * count for number, count in by_count.items()) / max(1, sum(by_count.values()))


def _by_kind(counts: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{count} {kind}' for kind, count in counts.items())})" if counts else ""


def _carriers(tree: LabelTree, labels: Counter[tuple[int, ...]]) -> list[int]:
    """Number of pictures of each label, ancestors filled in."""
    found = [0] * len(tree)
    for own, count in labels.items():
        for label in tree.with_ancestors(own):
            found[label] += count
    return found


def _by_count(labels: Counter[tuple[int, ...]], number: Any) -> dict[str, int]:
    counts = Counter[int]()
    for own, count in labels.items():
        counts[number(own)] += count
    return {str(each): count for each, count in sorted(counts.items())}


def _counted(kinds: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(kinds).items()))
