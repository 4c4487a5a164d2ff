"""A label tree and labels of images with the statistics that Sun et al. 2017, section 3, give of JFT-300M.

18,291 labels, 12 levels, at most 2,876 children of a label; 1.26 labels an image; 375 M labels on 300 M images, over
2 M of the most frequent, over 3,000 classes with fewer than 100 images each, about 2,000 with fewer than 20. What the
paper does not say is chosen: 20 trees, and one label in 20 lies in two others.
"""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray

from downpour.model.vision.labels import LabelTree

NUM_LABELS, DEPTH, WIDEST, LABELS_AN_IMAGE, NUM_IMAGES = 18_291, 12, 2_876, 1.26, 300_000_000

_NUM_ROOTS = 20
_CHILDREN_A_LABEL = (
    8  # labels are placed in one of the first eighth so far, which leaves seven eighths without children
)
_SECOND_PARENTS = 0.05
# Images of the class at each rank, interpolated between them on logarithmic axes; their sum is 375 M.
_RANKS, _COUNTS = (1, 12_000, 15_250, 16_280, NUM_LABELS), (2_150_000, 14_300, 99, 19, 1)


def paper_tree(seed: int = 0) -> LabelTree:
    """A random label tree of the paper's size; the same for the same seed. Label 1 has the most children."""
    rng = random.Random(seed)
    parents: list[list[int]] = [[level - 1] if level else [] for level in range(DEPTH)]
    parents += [[] for _ in range(_NUM_ROOTS - 1)]
    parents += [[1] for _ in range(WIDEST - 1)]
    levels = [*range(1, DEPTH + 1), *[1] * (_NUM_ROOTS - 1), *[3] * (WIDEST - 1)]
    inner = [label for label in range(DEPTH + _NUM_ROOTS - 1) if levels[label] < DEPTH and label != 1]
    for label in range(len(parents), NUM_LABELS):
        above = rng.sample(inner, 2 if rng.random() < _SECOND_PARENTS else 1)
        parents.append(above)
        levels.append(1 + max(levels[each] for each in above))
        if levels[label] < DEPTH and rng.random() < 1 / _CHILDREN_A_LABEL:
            inner.append(label)
    return LabelTree([f"label {number:05}" for number in range(NUM_LABELS)], parents)


def images_per_class(tree: LabelTree, seed: int = 0) -> NDArray[np.float64]:
    """[C] images of each label, ancestors not filled in, among 300 M; which label is frequent depends on the seed."""
    ranks = np.linspace(1, NUM_LABELS, len(tree))
    counts = np.exp(np.interp(np.log(ranks), np.log(_RANKS), np.log(_COUNTS)))
    return np.random.default_rng(seed).permutation(counts)


def sample_labels(tree: LabelTree, num_images: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Labels of images, ancestors not filled in: 1 plus a Poisson number of them, by their frequency, each once."""
    rng = np.random.default_rng((seed, num_images))
    frequencies = images_per_class(tree, seed)
    numbers = 1 + rng.poisson(LABELS_AN_IMAGE - 1, num_images)
    cumulative = np.cumsum(frequencies)
    drawn = np.searchsorted(cumulative, rng.random(numbers.sum()) * cumulative[-1], side="right").tolist()
    ends = np.cumsum(numbers).tolist()
    return [tuple(dict.fromkeys(drawn[end - number : end])) for number, end in zip(numbers.tolist(), ends, strict=True)]
