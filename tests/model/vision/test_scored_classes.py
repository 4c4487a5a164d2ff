"""Files of annotated classes and of class weights, and mAP of what they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from downpour.model.vision import scored_classes
from downpour.model.vision.labels import LabelTree
from downpour.model.vision.metrics import BestPredictions
from downpour.model.vision.scored_classes import ScoredClasses

TREE = LabelTree(("fruit", "apple", "pear", "tool"), (-1, 0, 0, -1))


def written(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [("w.json", {"apple": 3, "tool": 0.5}), ("w.csv", "label,weight\napple,3\ntool,0.5\n")],
)
def test_weights_are_read_from_json_and_csv_and_classes_without_one_have_none(
    tmp_path: Path, name: str, content: object
) -> None:
    found = scored_classes.read(TREE, weights=written(tmp_path, name, content))
    assert found.annotated is None and found.weights is not None
    assert found.weights.tolist() == [0, 3, 0, 0.5]


def test_without_files_all_classes_count_by_popularity() -> None:
    assert scored_classes.read(TREE) == ScoredClasses(None, None)


def test_annotated_classes_are_read_in_the_order_of_the_tree(tmp_path: Path) -> None:
    found = scored_classes.read(TREE, written(tmp_path, "a.json", ["tool", "apple"]))
    assert found.annotated is not None and found.annotated.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.json", {"aple": 1}, r"w.json names 'aple' \(did you mean 'apple'\?\), which is not among the 4 labels"),
        ("w.json", {"x1": 1, "x2": 1, "x3": 1, "x4": 1}, r"'x1', 'x2', 'x3' and 1 more, which are not"),
        ("w.json", {"apple": -1}, r"the weight of 'apple' is -1; give a finite number of at least 0"),
        ("w.json", '{"apple": NaN}', "is nan; give a finite number"),
        ("w.json", {"apple": "much"}, "is 'much'; give a finite number"),
        ("w.json", '{"apple": 1, "apple": 2}', "names 'apple' twice"),
        ("w.json", {"apple": 0}, "no class that is scored has a weight above 0"),
        ("w.json", [1], r"holds \[1\]; give a JSON object"),
        ("w.json", "{", "w.json is not JSON"),
        ("w.csv", "name,weight\napple,1\n", "the first line is not label,weight"),
        ("w.csv", "label,weight\napple,1\npear\n", "line 3: 1 columns"),
        ("w.csv", "label,weight\napple,1\napple,2\n", "names 'apple' twice"),
        ("w.csv", "label,weight\napple,much\n", "the weight of 'apple' is 'much'"),
        ("missing.json", None, "missing.json cannot be read: No such file"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(tmp_path: Path, name: str, content: object, message: str) -> None:
    path = tmp_path / name if content is None else written(tmp_path, name, content)
    with pytest.raises(ValueError, match=message):
        scored_classes.read(TREE, weights=path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (["pare"], r"names 'pare' \(did you mean 'pear'\?\)"),
        (["pear", "pear"], "names 'pear' twice"),
        ([], r"holds \[\]; give a JSON list"),
        ({"pear": 1}, "give a JSON list"),
    ],
)
def test_annotated_classes_that_cannot_be_used_are_refused(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scored_classes.read(TREE, written(tmp_path, "annotated.json", content))


def drawn(num: int = 60, num_classes: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = (rng.random((num, num_classes)) < 0.3).astype(np.float32)
    return rng.standard_normal(labels.shape) + labels, labels


def each_precision(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    from sklearn.metrics import average_precision_score

    return np.array([average_precision_score(labels[:, c], scores[:, c]) for c in range(labels.shape[1])])


def test_the_weighted_mean_is_of_the_weights_given() -> None:
    scores, labels = drawn()
    weights = np.array([0, 1, 2, 3, 0.5, 0, 0, 9])
    labels[:, 7] = 0  # on no image: its weight does not count
    best = BestPredictions(100, ScoredClasses(weights=weights))
    best.add(scores, labels)
    each = each_precision(scores[:, :7], labels[:, :7])
    assert best.mean().weighted == pytest.approx(np.average(each, weights=weights[:7]), abs=1e-12)
    assert best.mean().unweighted == pytest.approx(each.mean(), abs=1e-12)


@pytest.mark.parametrize("cut", [2, 100])
def test_only_annotated_classes_are_labels_and_predictions(cut: int) -> None:
    scores, labels = drawn()
    annotated, weights = np.array([1, 2, 5]), np.arange(8.0)
    best = BestPredictions(cut, ScoredClasses(annotated, weights))
    for start in range(0, 60, 7):
        best.add(scores[start : start + 7], labels[start : start + 7])
    alone = BestPredictions(cut, ScoredClasses(weights=weights[annotated]))
    alone.add(scores[:, annotated], labels[:, annotated])
    assert best.mean() == alone.mean() and best.chance() == alone.chance()
    assert best.mean().num_classes == 3


def test_images_whose_classes_have_no_weight_are_refused() -> None:
    best = BestPredictions(100, ScoredClasses(weights=np.array([0.0, 1.0])))
    best.add(np.zeros((2, 2)), np.array([[1, 0], [1, 0]]))
    assert not best.has_labels()
    with pytest.raises(ValueError, match="all classes that images carry have weight 0"):
        best.mean()


def test_weights_of_another_number_of_classes_are_refused() -> None:
    best = BestPredictions(100, ScoredClasses(weights=np.ones(3)))
    with pytest.raises(ValueError, match="weights of 3 classes, but scores of 2"):
        best.add(np.zeros((2, 2)), np.ones((2, 2)))
