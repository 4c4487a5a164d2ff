from __future__ import annotations

from pathlib import Path

import pytest

from downpour.model.vision.preparing.folder import Folder
from downpour.model.vision.preparing.items import HELDOUT, TRAIN


def touched(folder: Path, *names: str) -> Path:
    """A folder with these files; a name that ends with a slash is a folder without any."""
    for name in names:
        path = folder / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.touch()
    return folder


def test_folders_are_labels_and_nested_ones_a_tree(tmp_path):
    folder = touched(
        tmp_path, "animals/dog/1.jpg", "animals/cat/2.jpg", "animals/3", "toys/dog/4.jpg", "toys/x/y/5.png"
    )
    found = Folder(folder)
    assert found.tree.names == ("animals", "animals/cat", "animals/dog", "toys", "toys/dog", "toys/x", "toys/x/y")
    named = [tuple(found.tree.names[each] for each in found.tree.lineages[label]) for label in range(len(found.tree))]
    assert named[2] == ("animals/dog", "animals") and named[6] == ("toys/x/y", "toys/x", "toys")
    items = {item.name: item for item in found.items()}
    assert set(items) == {
        "animals/dog/1.jpg", "animals/cat/2.jpg", "animals/3", "toys/dog/4.jpg", "toys/x/y/5.png"}  # fmt: skip
    assert [found.tree.names[label] for label in items["animals/3"].labels] == ["animals"]
    assert all(item.split == "" and Path(item.path).is_file() for item in items.values())


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train/a/1", "val/a/2"), {"train/a/1": TRAIN, "val/a/2": HELDOUT}),
        (("Train/a/1", "Test/a/2"), {"Train/a/1": TRAIN, "Test/a/2": HELDOUT}),
        (("train/a/1", "train/b/3", "validation/a/2"), {
            "train/a/1": TRAIN, "train/b/3": TRAIN, "validation/a/2": HELDOUT}),
        (("train/a/1", "train/a/2"), {"train/a/1": "", "train/a/2": ""}),
        (("train/1", "bus/2"), {"train/1": "", "bus/2": ""}),
    ],
)  # fmt: skip
def test_folders_called_as_splits_are_splits(tmp_path, names, splits):
    found = Folder(touched(tmp_path, *names))
    assert {item.name: item.split for item in found.items()} == splits
    assert "train/a" not in found.tree.names


def test_of_several_heldout_folders_one_is_taken(tmp_path):
    found = Folder(touched(tmp_path, "train/a/1", "val/a/2", "test/a/3"))
    assert [item.name for item in found.items()] == ["train/a/1", "val/a/2"]
    assert found.skipped == {"test/": "val/ is held out; prepare this folder by itself"}


def test_what_has_no_label_is_skipped_by_name(tmp_path):
    found = Folder(touched(tmp_path, "a/1.jpg", "a/.DS_Store", "readme.txt", ".git/x/2"))
    assert [item.name for item in found.items()] == ["a/1.jpg"]
    assert found.skipped == {"a/.DS_Store": "its name begins with a dot", "readme.txt": "in no label's folder"}


def test_links_are_followed_and_names_may_be_any_bytes(tmp_path):
    touched(tmp_path, "elsewhere/x/1.jpg", "set/a/2.jpg")
    (tmp_path / "set" / "b").symlink_to(tmp_path / "elsewhere")
    with open(b"%s/set/a/\xff.jpg" % bytes(tmp_path), "w"):
        pass
    items = list(Folder(tmp_path / "set").items())
    assert [item.name for item in items] == ["a/2.jpg", r"a/\xff.jpg", "b/x/1.jpg"]
    assert all(Path(item.path).is_file() for item in items)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("1.jpg",), "has no folder with pictures; folders are the labels"),
        (("a/1", "b/"), r"folders without a picture in .*: b; a label needs pictures"),
        (("a/1", "b/c/", "b/d/2", "e/.hidden"), "folders without a picture in .*: b/c, e;"),
        (("train/a/1", "val/a/2", "val/b/3"), "labels that training has not: b;"),
        (("features.json", "x-train.tfrecord-00000-of-00001"), "records of TensorFlow Datasets .*ImageFolder"),
    ],
)
def test_a_wrong_tree_is_refused(tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        list(Folder(touched(tmp_path, *names)).items())


def test_a_circle_of_links_and_what_is_no_folder_are_refused(tmp_path):
    touched(tmp_path, "a/1.jpg")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"a/again is a link to a folder that it lies in .*; remove the link"):
        list(Folder(tmp_path).items())
    with pytest.raises(ValueError, match="is not a folder"):
        Folder(tmp_path / "a" / "1.jpg")
