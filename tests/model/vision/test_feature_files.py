"""Files of features: what is written batch by batch is read back, and half a file is none."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from downpour.model.vision import feature_files
from downpour.model.vision.feature_files import About
from downpour.model.vision.labels import LabelTree

TREE = LabelTree(("fruit", "apple"), (-1, 0))
LABELS = [(1,), (), (0, 1)]
VALUES = np.arange(3 * 2 * 4, dtype=np.float32).reshape(3, 2, 4) / 7
ENDINGS = [feature_files.PARQUET, feature_files.NPZ]


def write(path: Path) -> None:
    with feature_files.writing(path, About.of("stage1", (2, 4), "runs/first", TREE)) as writer:
        writer.add(["a.png", "b.png"], ["train", "train"], LABELS[:2], VALUES[:2])
        writer.add(["ç.png"], ["heldout"], LABELS[2:], VALUES[2:])


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_written_is_read(tmp_path: Path, ending: str) -> None:
    write(tmp_path / f"f{ending}")
    found = feature_files.read(tmp_path / f"f{ending}")
    assert (found.names, found.splits) == (["a.png", "b.png", "ç.png"], ["train", "train", "heldout"])
    assert found.labels == LABELS
    np.testing.assert_array_equal(found.values, VALUES.reshape(3, 8))
    assert (found.about.layer, found.about.shape, found.about.checkpoint) == ("stage1", (2, 4), "runs/first")
    assert found.about.tree == TREE
    assert [path.name for path in tmp_path.iterdir()] == [f"f{ending}"]


def test_other_programs_read_them(tmp_path: Path) -> None:
    import pandas as pd

    for ending in ENDINGS:
        write(tmp_path / f"f{ending}")
    with np.load(tmp_path / "f.npz") as arrays:
        np.testing.assert_array_equal(arrays["features"], VALUES)
        assert arrays["ends"].tolist() == [1, 1, 3] and arrays["labels"].tolist() == [1, 0, 1]
    table = pd.read_parquet(tmp_path / "f.parquet")
    assert list(table.columns) == ["name", "split", "labels", "features"]
    np.testing.assert_array_equal(np.stack(table["features"]), VALUES.reshape(3, 8))


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_error_in_the_middle_leaves_what_was_there(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"f{ending}"
    path.write_bytes(b"before")
    with pytest.raises(KeyError), feature_files.writing(path, About.of("x", (1,), "", TREE)) as writer:
        writer.add(["a"], [""], [()], np.zeros((1, 1), np.float32))
        raise KeyError
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [(f"f{ending}", b"before")]


@pytest.mark.parametrize("ending", ENDINGS)
def test_other_files_are_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"f{ending}"
    with pytest.raises(ValueError, match=r"is missing; write it with downpour features"):
        feature_files.read(path)
    path.write_bytes(b"PAR1 or not")
    with pytest.raises(ValueError, match=r"is no file that downpour features has written"):
        feature_files.read(path)
    write(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"is no file that downpour features has written"):
        feature_files.read(path)


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in '.csv'; accepted are .parquet and .npz"):
        feature_files.check_ending(tmp_path / "f.csv")


def test_parquet_without_its_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"need pyarrow: pip install 'downpour-training\[images\]'; or write .npz"):
        write(tmp_path / "f.parquet")
    write(tmp_path / "f.npz")
