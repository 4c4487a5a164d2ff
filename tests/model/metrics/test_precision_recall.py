"""Counts of scores by bucket against scikit-learn's precision and recall, and what TensorBoard's writer counts."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import precision_score, recall_score
from tensorboardX.summary import compute_curve

from downpour.model.metrics import precision_recall as module
from downpour.model.metrics.precision_recall import NUM_BUCKETS, PrecisionRecall
from downpour.worker.chief.tensorboard_tags import precision_recall

SIZES = (50, 50, 13)


def arrays() -> tuple[np.ndarray, np.ndarray]:
    """Scores of 6 classes, of which class 4 is the most frequent, then 1; nothing is of class 5."""
    rng = np.random.default_rng(0)
    truth = rng.random((sum(SIZES), 6)) < np.array([0.1, 0.4, 0.05, 0.2, 0.6, 0.0])
    scores = np.clip(rng.normal(0.4 + 0.2 * truth, 0.25), 0, 1).astype(np.float32)
    return scores, truth


def counted(scores: np.ndarray, truth: np.ndarray, classes: tuple[int, ...] = ()) -> PrecisionRecall:
    found, start = PrecisionRecall(classes), 0
    for size in SIZES:
        found.add(scores[start : start + size], truth[start : start + size])
        start += size
    return found


def test_the_most_frequent_classes_are_as_scikit_learn_and_tensorboard_say() -> None:
    scores, truth = arrays()
    counts = counted(scores, truth)
    assert list(counts.by_class(3)) == [4, 1, 3] and 5 not in counts.by_class(9)
    for number, of_class in {**counts.by_class(3), -1: counts.all()}.items():
        mine, right = (scores.ravel(), truth.ravel()) if number < 0 else (scores[:, number], truth[:, number])
        curve = precision_recall(of_class.positives.tolist(), of_class.negatives.tolist())
        np.testing.assert_allclose(curve, compute_curve(right, mine, NUM_BUCKETS), rtol=1e-6)
        for bucket in (0, 20, 63, 100):
            said = mine >= np.float32(bucket / (NUM_BUCKETS - 1))
            assert curve[4][bucket] == pytest.approx(precision_score(right, said, zero_division=0))
            assert curve[5][bucket] == pytest.approx(recall_score(right, said))


def test_classes_that_are_named_have_curves_whatever_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, truth = arrays()
    monkeypatch.setattr(module, "MOST_CLASSES", 5)
    assert counted(scores, truth).by_class(3) == {}, "6 are too many to count all"
    named = counted(scores, truth, (5, 1)).by_class(3)
    assert list(named) == [5, 1] and named[5].positives.sum() == 0
    assert named[1].positives.sum() == truth[:, 1].sum()
    assert counted(scores, truth, (5, 1)).all().negatives.sum() == (~truth).sum()


def test_classes_that_nobody_annotated_do_not_count() -> None:
    scores, truth = arrays()
    known = np.array([0, 3, 4])
    some, all_ = PrecisionRecall(known=known), PrecisionRecall()
    some.add(scores, truth)
    all_.add(scores[:, known], truth[:, known])
    assert list(some.by_class(9)) == [4, 3, 0] and list(all_.by_class(9)) == [2, 1, 0]
    for mine, right in zip(
        [some.all(), *some.by_class(9).values()], [all_.all(), *all_.by_class(9).values()], strict=True
    ):
        np.testing.assert_array_equal((mine.positives, mine.negatives), (right.positives, right.negatives))
