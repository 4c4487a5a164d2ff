from __future__ import annotations

from pathlib import Path

import pytest

from downpour.model.vision.labels import LabelTree
from downpour.model.vision.preparing.csv_table import CsvTable
from downpour.model.vision.preparing.items import HELDOUT, TRAIN


def table(folder: Path, text: str, tree: LabelTree | None = None) -> CsvTable:
    path = folder / "table.csv"
    path.write_bytes(text.encode())
    if tree is None:
        return CsvTable(path)
    tree.save(folder / "labels.json")
    return CsvTable(path, str(folder / "labels.json"))


def described(found: CsvTable) -> dict[str, tuple[dict[str, float], str]]:
    return {
        item.name: (
            dict(zip((found.tree.names[each] for each in item.labels), item.confidences, strict=True)), item.split)
        for item in found.items()
    }  # fmt: skip


def test_labels_may_be_in_one_row_or_in_several(tmp_path):
    lines = [
        "\ufeffSplit,image,label,confidence,photographer",
        "train,a.jpg,dog|outdoors,.9|0.5,Ann",
        "train,./a.jpg,big,,Ann",
        "",
        'val,"x, y.jpg","say ""cat""",1,',
    ]
    found = table(tmp_path, "\r\n".join(lines))
    assert described(found) == {
        "a.jpg": ({"dog": 0.9, "outdoors": 0.5, "big": 1.0}, TRAIN),
        "x, y.jpg": ({'say "cat"': 1.0}, HELDOUT),
    }
    assert {item.path for item in found.items()} == {str(tmp_path / name) for name in ("a.jpg", "x, y.jpg")}


def test_a_column_may_say_what_contains_a_label(tmp_path):
    found = table(tmp_path, "image,label,parent\na.jpg,dog|red,animal|\nb.jpg,animal,thing\n")
    assert found.tree == LabelTree(("animal", "dog", "red", "thing"), (3, 0, -1, -1)) and found.tree.depth == 3


def test_a_given_tree_holds(tmp_path):
    tree = LabelTree(("dog", "animal"), (1, -1))
    found = table(tmp_path, "image,label\na.jpg,dog\n", tree)
    assert found.tree == tree and described(found) == {"a.jpg": ({"dog": 1.0}, "")}


def test_an_id_is_the_name(tmp_path):
    found = table(tmp_path, "id,image,label\n7,a.jpg,dog\n8,b.jpg,dog\n7,a.jpg,cat\n")
    assert described(found) == {"7": ({"dog": 1.0, "cat": 1.0}, ""), "8": ({"dog": 1.0}, "")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; the first line names columns: image, label"),
        ("picture,label\na,b\n", "line 1: column 'image' is missing; the columns are picture, label, and may be image"),
        ("image;label\na;b\n", "line 1: column 'image' is missing; the columns are image;label"),
        ("image,label,label\n", "line 1: a column occurs twice"),
        ("image,label\na,b\nc\n", "line 3: 1 fields, but the table has 2 columns"),
        ("image,label\na,b,c\n", "line 2: 3 fields"),
        ('image,label\na,b\n"c,d\ne,f\ng,h"\n', "line 3: a stray quote"),
        ('image,label\na,b"\n', "line 2: a stray quote; put quotes around the whole field"),
        ('image,label\na,"b"c\n', "line 2: a stray quote"),
        ("image,label\n,b\n", "line 2: the image is empty"),
        ("image,label\na,\n", "line 2: a label is empty"),
        ("image,label\na,b||c\n", "line 2: a label is empty"),
        ("image,label\na,b\na,c|b\n", "line 3: a has the label 'b' in line 2, too"),
        ("id,image,label\n1,a,b\n1,c,b\n", "line 3: id '1' is of c here and of a in line 2"),
        ("id,image,label\n1,a,b\n2,a,c\n", "line 3: a has another id than in line 2; give every row"),
        ("image,label,split\na,b,train\na,c,val\n", "line 3: a has another split than in line 2"),
        ("image,label,split\na,b,dev\n", "line 2: split is 'dev'; give train"),
        ("image,label,confidence\na,b,1.5\n", "line 2: confidence is '1.5'; give a number from 0 to 1"),
        ("image,label,confidence\na,b|c,1\n", "line 2: confidence is '1'; give a number from 0 to 1 for each of 2"),
        ("image,label,confidence\na,b,nan\n", "line 2: confidence is 'nan'"),
        ("image,label,parent\na,b,c\nd,b,e\n", "line 3: the parent of 'b' is 'e' here and 'c' in line 2"),
        ("image,label,parent\na,b|c,d\n", "line 2: parent is 'd'; give one for each of 2 labels"),
        ("image,label,parent\na,b,c\nd,c,b\n", "label tree: .*'?b"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        list(table(tmp_path, text).items())


def test_a_label_that_is_not_in_the_tree_is_refused(tmp_path):
    found = table(tmp_path, "image,label\na,dog\nb,dgo\n", LabelTree(("dog", "cat"), (-1, -1)))
    with pytest.raises(ValueError, match="line 3: label 'dgo' is not in the tree of 2 labels; did you mean 'dog'"):
        list(found.items())


def test_other_encodings_and_missing_files_are_refused(tmp_path):
    (tmp_path / "latin.csv").write_bytes(b"image,label\na.jpg,caf\xe9\n")
    with pytest.raises(ValueError, match=r"is not UTF-8 .*; save it as UTF-8"):
        list(CsvTable(tmp_path / "latin.csv").items())
    with pytest.raises(ValueError, match="is not a file; give a CSV file with the columns image, label"):
        CsvTable(tmp_path / "none.csv")
