from __future__ import annotations

import json

import pytest

from downpour.model.vision.labels import LabelTree

TREE = LabelTree(names=("apple", "fruit", "food", "tool"), parents=(1, 2, -1, -1))
# "police dog" lies in "dog" and in "police"; "animal" contains it by two paths, one of them longer.
GRAPH = LabelTree(("police dog", "dog", "police", "animal", "pet"), ((1, 2, 3), (4,), -1, (), 3))


def test_missing_ancestors_are_filled_in():
    assert TREE.with_ancestors([0]) == (0, 1, 2)
    assert TREE.with_ancestors([3, 1, 1]) == (1, 2, 3)
    assert TREE.with_ancestors([]) == ()


def test_labels_outside_the_tree_are_refused():
    for label in (-1, 4):
        with pytest.raises(ValueError, match=rf"label {label} is not in the tree; its labels are 0 to 3"):
            TREE.with_ancestors([label])


def test_a_label_may_lie_in_several_others():
    assert GRAPH.parents == ((1, 2, 3), (4,), (), (), (3,))
    assert GRAPH.lineages[0] == (0, 1, 4, 3, 2)
    assert GRAPH.with_ancestors([0]) == (0, 1, 2, 3, 4)
    assert GRAPH.with_ancestors([1, 2]) == (1, 2, 3, 4)
    assert LabelTree(("a", "b"), (-1, (0, 0))) == LabelTree(["a", "b"], [[], [0]])


def test_depth_is_of_the_longest_path_and_the_widest_label_is_named():
    assert (TREE.depth, TREE.widest) == (3, ("fruit", 1))
    assert (GRAPH.depth, GRAPH.widest) == (4, ("animal", 2))
    assert (LabelTree(("a", "b"), (-1, -1)).depth, LabelTree(("a",), (-1,)).widest) == (1, ("", 0))
    assert (LabelTree((), ()).depth, LabelTree((), ()).widest) == (0, ("", 0))


@pytest.mark.parametrize("tree", [GRAPH, TREE])
def test_files_hold_a_number_or_a_list_of_numbers(tmp_path, tree):
    path = tmp_path / "labels.json"
    tree.save(path)
    parents = [[1, 2, 3], 4, -1, -1, 3] if tree is GRAPH else [1, 2, -1, -1]
    assert json.loads(path.read_text()) == {"names": list(tree.names), "parents": parents}
    assert LabelTree.load(path) == tree


def test_files_of_single_parents_are_as_they_always_were(tmp_path):
    text = '{\n"names": [\n"fruit",\n"Äpfel"\n],\n"parents": [\n-1,\n0\n]\n}\n'
    path = tmp_path / "labels.json"
    path.write_text(text)
    LabelTree.load(path).save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == text


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
        (("a", "b"), (-1, (0, 2)), "parent of 'b' is 2"),
        (("a", "b"), (-1, (0, -1)), "parent of 'b' is -1"),
        (("a",), (0,), 'each other, "a" -> "a";'),
        (("a", "b", "c"), (-1, 2, 1), 'each other, "b" -> "c" -> "b";'),
        (("d", "c", "b", "a", "r"), (3, (4, 3), 1, (4, 2), -1), 'each other, "a" -> "b" -> "c" -> "a";'),
    ],
)
def test_broken_trees_are_refused(names, parents, message):
    with pytest.raises(ValueError, match=message):
        LabelTree(names, parents)


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"names": ["a"]}', '{"names": [1], "parents": [-1]}', '{"names": ["a"], "parents": [["a"]]}', "\udcff"],
)
def test_broken_files_are_refused_by_name(tmp_path, content):
    path = tmp_path / "labels.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"labels\.json is not a label tree"):
        LabelTree.load(path)


def test_a_deep_tree_is_checked_in_linear_time():
    count = 30_000
    tree = LabelTree(tuple(map(str, range(count))), tuple(range(-1, count - 1)))
    assert len(tree) == tree.depth == count
