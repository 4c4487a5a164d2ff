from __future__ import annotations

import time

import numpy as np
import pytest

from downpour.model.vision.metrics import BestPredictions, MeanPrecision


def mean_average_precision_at(scores: np.ndarray, labels: np.ndarray, cut: int = 100) -> MeanPrecision:
    """Of all images in one batch."""
    best = BestPredictions(cut)
    best.add(scores, labels)
    return best.mean()


def chance(labels: np.ndarray) -> MeanPrecision:
    """Of images with these labels; scores do not matter."""
    best = BestPredictions(1)
    best.add(np.zeros(labels.shape), labels)
    return best.chance()


def some(rng, num_images: int, num_classes: int, density: float = 0.1):
    labels = (rng.random((num_images, num_classes)) < density).astype(np.float32)
    scores = rng.standard_normal((num_images, num_classes)) + labels
    return scores, labels


@pytest.mark.parametrize("decimals", [None, 1, 0], ids=["distinct", "some ties", "many ties"])
@pytest.mark.parametrize("cut", [40, 100])
def test_equals_scikit_learn_where_the_cut_does_not_bite(decimals, cut):
    from sklearn.metrics import average_precision_score

    scores, labels = some(np.random.default_rng(0), 200, 40)
    labels[:, 7] = 0
    scores = scores if decimals is None else scores.round(decimals)
    present = labels.sum(axis=0) > 0
    each = [average_precision_score(labels[:, c], scores[:, c]) for c in np.nonzero(present)[0]]
    result = mean_average_precision_at(scores, labels, cut)
    assert result.num_classes == 39
    assert result.unweighted == pytest.approx(np.mean(each), abs=1e-12)
    assert result.weighted == pytest.approx(np.average(each, weights=labels.sum(axis=0)[present]), abs=1e-12)


def test_hand_computed_case_where_the_cut_bites():
    scores = np.array([[0.9, 0.8, 0.1], [0.7, 0.2, 0.6], [0.3, 0.4, 0.5], [0.6, 0.1, 0.2]])
    labels = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1], [1, 1, 0]])
    # Kept with a cut of 2: image 0 {0, 1}, image 1 {0, 2}, image 2 {1, 2}, image 3 {0, 2}.
    # Class 0 (on 3 images) ranks 0.9 hit, 0.7, 0.6 hit: (1 + 2/3) / 3. Class 1 (on 1) ranks 0.8, 0.4: image 3 did not
    # keep it: 0. Class 2 (on 3) ranks 0.6 hit, 0.5 hit, 0.2: (1 + 1) / 3.
    each = np.array([5 / 9, 0, 2 / 3])
    result = mean_average_precision_at(scores, labels, cut=2)
    assert result.unweighted == pytest.approx(each.mean())
    assert result.weighted == pytest.approx((each * [3, 1, 3]).sum() / 7)
    assert result.num_classes == 3


def test_ties_at_the_cut_keep_exactly_that_many():
    scores = np.zeros((2, 5))
    labels = np.array([[0, 1, 0, 0, 0], [0, 0, 0, 0, 1]])
    # Both images keep classes 0 and 1: class 1 is hit by one of two equal scores, class 4 never found.
    result = mean_average_precision_at(scores, labels, cut=2)
    assert result.unweighted == pytest.approx((0.5 + 0) / 2)


def test_perfect_scores_are_one_whatever_the_cut_leaves_room_for():
    labels = np.eye(30)[np.random.default_rng(0).integers(0, 30, 300)]
    result = mean_average_precision_at(labels * 2 - 1, labels, cut=1)
    assert (result.weighted, result.unweighted) == (1.0, 1.0)


def test_chance_is_the_mean_over_random_scores():
    rng = np.random.default_rng(0)
    labels = np.zeros((60, 4))
    for c, count in enumerate((1, 5, 30, 60)):
        labels[:count, c] = 1
    results = [mean_average_precision_at(rng.random(labels.shape), labels) for _ in range(3000)]
    expected = chance(labels)
    assert expected.unweighted == pytest.approx(np.mean([r.unweighted for r in results]), rel=0.01)
    assert expected.weighted == pytest.approx(np.mean([r.weighted for r in results]), rel=0.01)


def test_paper_sized_scores_take_seconds():
    rng = np.random.default_rng(0)
    scores = rng.random((1000, 18291), np.float32)
    labels = np.zeros(scores.shape, np.float32)
    labels[np.arange(1000), rng.integers(0, 18291, 1000)] = 1
    start = time.process_time()
    result = mean_average_precision_at(scores, labels)
    assert time.process_time() - start < 20
    assert result.weighted < 0.02


@pytest.mark.parametrize(
    ("scores", "labels", "cut", "message"),
    [
        (np.zeros((2, 3)), np.ones((2, 4)), 100, r"scores are \(2, 3\) and labels \(2, 4\)"),
        (np.zeros(3), np.ones(3), 100, "give both as"),
        (np.zeros((2, 3)), np.ones((2, 3)), 0, "cut is 0"),
        (np.full((2, 3), np.nan), np.ones((2, 3)), 100, "6 scores are not finite"),
        (np.zeros((2, 3)), np.zeros((2, 3)), 100, "no image carries any label"),
    ],
)
def test_bad_input_is_refused(scores, labels, cut, message):
    with pytest.raises(ValueError, match=message):
        mean_average_precision_at(scores, labels, cut)
