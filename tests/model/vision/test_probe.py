"""The linear probe: beside scikit-learn's own regression, and on labels that do not exclude each other."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import pytest

from downpour.model.vision.feature_files import About, Features
from downpour.model.vision.labels import LabelTree
from downpour.model.vision.probe import probe

RNG = np.random.default_rng(0)


def features(
    values: np.ndarray, labels: Sequence[tuple[int, ...]], splits: Sequence[str], parents: Sequence[int]
) -> Features:
    tree = LabelTree(tuple(f"label{i}" for i in range(len(parents))), tuple(parents))
    names = [str(i) for i in range(len(values))]
    return Features(names, list(splits), list(labels), values, About.of("x", values.shape[1:], "", tree))


def test_classes_are_told_apart_as_scikit_learn_does() -> None:
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    values, classes = load_digits(return_X_y=True)
    values = values[:300].astype(np.float32)
    classes = classes[:300]
    splits = ["train"] * 100 + ["heldout"] * 200
    found = probe(features(values, [(int(c),) for c in classes], splits, [-1] * 10))
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=found.strength, max_iter=1000))
    expected = fitted.fit(values[:100], classes[:100]).score(values[100:], classes[100:])
    assert found.scores["top_1"] == pytest.approx(expected)
    assert 0.8 < expected < found.scores["top_5"] <= 1
    assert (found.num_train, found.num_heldout, found.num_labels) == (100, 200, 10)


def test_pictures_without_a_class_are_left_out_and_a_fifth_is_held_out_without_splits() -> None:
    classes = RNG.integers(0, 2, 100)
    values = (classes[:, None] * 4 + RNG.normal(size=(100, 3))).astype(np.float32)
    labels = [(int(c),) for c in classes]
    labels[7] = ()
    found = probe(features(values, labels, [""] * 100, [-1, -1]))
    assert found.num_train + found.num_heldout == 99 and found.num_heldout == 19
    assert found.scores["top_1"] > 0.9 and found.scores["top_5"] == 1


def test_several_labels_are_scored_by_precision_with_ancestors_filled_in() -> None:
    """Label 0 contains 1 and 2; 3 is on no training picture."""
    hot = RNG.integers(0, 2, (300, 2)).astype(bool)
    values = (hot * 3 + RNG.normal(size=hot.shape)).astype(np.float32)
    labels = [tuple(1 + np.flatnonzero(row)) for row in hot]
    labels[250] = (*labels[250], 3)
    found = probe(features(values, labels, ["train"] * 200 + ["heldout"] * 100, [-1, 0, 0, -1]))
    assert found.scores.keys() == {"map_at_100", "map_at_100_unweighted", "chance_weighted"}
    assert 0.9 < found.scores["map_at_100"] < 1 and found.scores["chance_weighted"] < 0.7
    assert found.scores["map_at_100_unweighted"] < found.scores["map_at_100"]


@pytest.mark.parametrize(
    ("labels", "splits", "message"),
    [
        ([()] * 10, ["train"] * 10, "no picture has a label"),
        ([(0,)] * 10, ["train"] * 9 + ["heldout"], "the training pictures have a single class"),
        ([(0,), (1,)] * 5, ["train"] * 10, "10 labelled pictures are to train on and 0 held out"),
        ([(0,), (1,)] * 5, ["train"] * 3 + ["heldout"] * 7, "3 labelled pictures are to train on and 7 held out"),
    ],
)
def test_what_cannot_be_probed_is_refused(labels: list[tuple[int, ...]], splits: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        probe(features(np.zeros((10, 2), np.float32), labels, splits, [-1, -1]))


def test_features_that_are_not_finite_are_refused() -> None:
    values = np.full((10, 2), np.nan, np.float32)
    with pytest.raises(ValueError, match="features are not finite"):
        probe(features(values, [(0,), (1,)] * 5, ["train"] * 5 + ["heldout"] * 5, [-1, -1]))


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"] or ["sklearn"]:
        monkeypatch.setitem(sys.modules, name, None)
    values = np.zeros((10, 2), np.float32)
    with pytest.raises(ValueError, match=r"needs scikit-learn: pip install 'downpour-training\[images\]'"):
        probe(features(values, [(0,), (1,)] * 5, ["train"] * 5 + ["heldout"] * 5, [-1, -1]))
