"""Sub-vocabularies of a data set: how often its labels occur, and which of them are kept. No TensorFlow of its own.

Shapes: `C` classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from downpour.model.data import Dataset
from downpour.model.data.order import Lease
from downpour.model.vision.labels import LabelTree

MOST_COUNTED = 20_000  # examples


def counts_of(data: Dataset, batch_size: int) -> NDArray[np.int64]:
    """[C] examples that carry each label, ancestors included, among at most `MOST_COUNTED` training examples.

    Raises:
        ValueError: The targets are not one array [B, C].
    """
    num = min(data.num_records, max(MOST_COUNTED, batch_size))
    total: NDArray[np.int64] | None = None
    with data.training(batch_size=batch_size, seed=0, leases=iter([Lease(0, 0, num)])) as batches:
        for batch in batches:
            targets: Any = batch[1]
            if not isinstance(targets, np.ndarray) or targets.ndim != 2:
                raise ValueError("labels: the targets are not one array [examples, labels] of 0 and 1; give such ones")
            found = (targets > 0.5).sum(axis=0)
            total = found if total is None else total + found
    assert total is not None, "a data set has at least one batch"
    return total


def most_frequent(counts: NDArray[np.int64], sizes: Sequence[int], tree: LabelTree | None) -> list[tuple[int, ...]]:
    """The most frequent labels, so many of them: each set holds the smaller ones, and the ancestors of its labels.

    An ancestor occurs at least as often as what it contains, and comes first where both occur equally often.

    Args:
        counts: [C], ancestors included.
        sizes: Numbers of labels, ascending.
        tree: The label tree; None for labels without one.

    Raises:
        ValueError: There are fewer labels than the largest size.
    """
    check_sizes(sizes, len(counts))
    depth = [len(line) for line in tree.lineages] if tree else [0] * len(counts)
    order = sorted(range(len(counts)), key=lambda label: (-counts[label], depth[label], label))
    return [tuple(sorted(order[:size])) for size in sizes]


def check_sizes(sizes: Sequence[int], num_labels: int) -> None:
    """Raises `ValueError` for a size, the last being the largest, beyond the number of labels."""
    if sizes[-1] > num_labels:
        raise ValueError(f"--sizes: {sizes[-1]} is more than the {num_labels} labels that there are")


def subtrees(counts: NDArray[np.int64], sizes: Sequence[int], tree: LabelTree | None) -> list[tuple[int, ...]]:
    """The labels below the most frequent roots, so many roots. Arguments as of `most_frequent`, sizes counting roots.

    Raises:
        ValueError: There is no tree, or it has fewer roots than the largest size.
    """
    if tree is None:
        raise ValueError("--by=subtree: the recipe's data have no label tree; give --by=frequency")
    roots = [label for label, line in enumerate(tree.lineages) if len(line) == 1]
    if sizes[-1] > len(roots):
        raise ValueError(f"--sizes: {sizes[-1]} is more than the {len(roots)} roots of the label tree")
    roots.sort(key=lambda label: (-counts[label], label))
    below = [(label, set(line)) for label, line in enumerate(tree.lineages)]
    return [tuple(label for label, line in below if line & set(roots[:size])) for size in sizes]
