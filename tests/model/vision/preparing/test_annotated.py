"""A densely annotated held-out set, from a table to what the evaluator reads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from downpour.model.data import ImageRecords
from downpour.model.vision.labels import LabelTree
from downpour.model.vision.preparing import annotated
from downpour.model.vision.preparing.csv_table import CsvTable
from tests.model.data.test_data import png

TREE = LabelTree(("fruit", "apple", "pear", "tool"), (-1, 0, 0, -1))


@pytest.fixture
def table(tmp_path: Path) -> CsvTable:
    """Three pictures with labels, one that is none, and the tree of four labels."""
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(np.full((9, 12, 3), 40 * number, np.uint8)))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    TREE.save(tmp_path / "labels.json")
    rows = ["image,label", "0.png,apple", "1.png,pear|apple", "2.png,pear", "broken.png,pear"]
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    return CsvTable(tmp_path / "table.csv", tree=str(tmp_path / "labels.json"))


def test_all_pictures_are_held_out_and_the_classes_that_occur_are_scored(table: CsvTable, tmp_path: Path) -> None:
    said = annotated.prepare(table, tmp_path / "set")
    assert "3 held-out pictures, 3 of 4 classes annotated, 2.3 labels a picture; 1 left out: broken.png: " in said
    data = ImageRecords(tmp_path / "set", num_labels=4, resize=10, crop=8)
    data.check()
    assert data.labels == TREE
    assert data.scored_classes.annotated is not None and data.scored_classes.annotated.tolist() == [0, 1, 2]
    ((images, labels),) = list(data.heldout(batch_size=8))
    assert np.shape(images) == (3, 8, 8, 3)
    assert labels.tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 0]]
    with pytest.raises(ValueError, match=r"no records in .*train-"):
        _ = data.num_records


def test_classes_may_be_listed_and_a_label_outside_the_list_is_refused(table: CsvTable, tmp_path: Path) -> None:
    listed = tmp_path / "classes.json"
    listed.write_text(json.dumps(["pear", "apple", "tool"]))
    annotated.prepare(table, tmp_path / "set", listed)
    assert json.loads((tmp_path / "set" / "annotated.json").read_text()) == ["apple", "pear", "tool"]
    listed.write_text(json.dumps(["apple"]))
    with pytest.raises(ValueError, match=r"1.png has the label 'pear', which .*classes.json does not list"):
        annotated.prepare(table, tmp_path / "other", listed)
    assert not (tmp_path / "other").exists()
    with pytest.raises(ValueError, match="set exists already"):
        annotated.prepare(table, tmp_path / "set", listed)


def test_the_command_converts_a_table(table: CsvTable, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "downpour.launch.cli", "prepare", "csv", "table.csv", "--tree=labels.json"]
    more = ["--annotated=labels", "--out=data/fasteval"]
    done = subprocess.run([*command, *more], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "3 of 4 classes annotated" in done.stdout, done.stderr
    names = sorted(path.name for path in (tmp_path / "data" / "fasteval").iterdir())
    assert names == ["annotated.json", "heldout-00000-of-00001.tfrecord", "labels.json"]
    (tmp_path / "unknown.json").write_text('["aple"]')
    more = ["--annotated=unknown.json", "--out=other"]
    done = subprocess.run([*command, *more], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "did you mean 'apple'" in done.stderr
