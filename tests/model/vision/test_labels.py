from __future__ import annotations

import pytest

from downpour.model.vision.labels import LabelTree

TREE = LabelTree(names=("apple", "fruit", "food", "tool"), parents=(1, 2, -1, -1))


def test_missing_ancestors_are_filled_in():
    assert TREE.with_ancestors([0]) == (0, 1, 2)
    assert TREE.with_ancestors([3, 1, 1]) == (1, 2, 3)
    assert TREE.with_ancestors([]) == ()


def test_labels_outside_the_tree_are_refused():
    for label in (-1, 4):
        with pytest.raises(ValueError, match=rf"label {label} is not in the tree; its labels are 0 to 3"):
            TREE.with_ancestors([label])


def test_tree_survives_a_file(tmp_path):
    tree = LabelTree(names=("Essen & Trinken", "日本"), parents=(-1, 0))
    tree.save(tmp_path / "labels.json")
    assert LabelTree.load(tmp_path / "labels.json") == tree


@pytest.mark.parametrize(
    ("names", "parents", "message"),
    [
        (("a", "b", "a"), (-1, -1, -1), "'a' occurs twice"),
        (("a", "b"), (-1,), "2 names but 1 parents"),
        (("a", "b"), (-1, 2), "parent of 'b' is 2"),
        (("a", "b"), (-1, -2), "parent of 'b' is -2"),
        (("a",), (0,), "'a' lies in a circle"),
        (("a", "b", "c"), (-1, 2, 1), "'b' lies in a circle"),
    ],
)
def test_broken_trees_are_refused(names, parents, message):
    with pytest.raises(ValueError, match=message):
        LabelTree(names, parents)


@pytest.mark.parametrize("content", ["", "[]", '{"names": ["a"]}', '{"names": [1], "parents": [-1]}', "\udcff"])
def test_broken_files_are_refused_by_name(tmp_path, content):
    path = tmp_path / "labels.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"labels\.json is not a label tree"):
        LabelTree.load(path)


def test_a_deep_tree_is_checked_in_linear_time():
    count = 100_000
    tree = LabelTree(tuple(map(str, range(count))), tuple(range(-1, count - 1)))
    assert len(tree) == count
