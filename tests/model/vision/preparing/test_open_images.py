"""Tiny tables in the formats that Open Images publishes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from downpour.model.vision.preparing.items import Item
from downpour.model.vision.preparing.open_images import OpenImages

# V4 to V6 have no first line; V7 has.
DESCRIPTIONS = (
    '/m/0k4j,Car\n/m/0pg52,Taxi\n/m/0199g,"Land vehicle, wheeled"\n/m/083wq,Wheel\n/m/01bat,Bat\n/m/02bat,Bat\n'
)
HIERARCHY = {
    "LabelName": "/m/0bl9f",
    "Subcategory": [
        {
            "LabelName": "/m/0199g",
            "Subcategory": [
                {
                    "LabelName": "/m/0k4j",
                    "Part": [{"LabelName": "/m/083wq"}],
                    "Subcategory": [{"LabelName": "/m/0pg52"}],
                }
            ],
        },
        {"LabelName": "/m/01bat", "Subcategory": [{"LabelName": "/m/0pg52"}]},
    ],
}
HEADER = "ImageID,Source,LabelName,Confidence\n"
HUMAN = (
    "000026e7ee790996,verification,/m/0k4j,1\n"
    "000026e7ee790996,crowdsource-verification,/m/0pg52,0\n"
    "000062a39995e348,verification,/m/0pg52,0\n"
    "00006bdb1eb5cd74,verification,/m/01bat,1\n"
)
MACHINE = (
    "000002b66c9c498e,machine,/m/083wq,0.7\n"
    "000026e7ee790996,machine,/m/0pg52,0.9\n"
    "000026e7ee790996,machine,/m/083wq,0.6\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "class-descriptions.csv").write_text(DESCRIPTIONS)
    (tmp_path / "bbox_labels_600_hierarchy.json").write_text(json.dumps(HIERARCHY))
    (tmp_path / "train-annotations-human-imagelabels.csv").write_text(HEADER + HUMAN)
    (tmp_path / "train-annotations-machine-imagelabels.csv").write_text(HEADER + MACHINE)
    (tmp_path / "validation-annotations-human-imagelabels.csv").write_text(HEADER + "0001eeaf4aed83f9,v,/m/02bat,1\n")
    for name in (
        "train/000002b66c9c498e",
        "train/000026e7ee790996",
        "train/000062a39995e348",
        "validation/0001eeaf4aed83f9",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.jpg").touch()
    return tmp_path


def test_labels_confidences_and_subsets_are_read(folder: Path) -> None:
    importer = OpenImages(folder)
    assert list(importer.items()) == [
        Item("train/000002b66c9c498e.jpg", str(folder / "train/000002b66c9c498e.jpg"), (3,), "train", (0.7,)),
        # A machine sees a taxi, which people have denied.
        Item("train/000026e7ee790996.jpg", str(folder / "train/000026e7ee790996.jpg"), (3, 0), "train", (0.6, 1.0)),
        Item("validation/0001eeaf4aed83f9.jpg", str(folder / "validation/0001eeaf4aed83f9.jpg"), (5,), "heldout"),
    ]
    assert importer.skipped == {
        "train/000062a39995e348.jpg": "no label with a confidence above 0",
        "train/00006bdb1eb5cd74.jpg": f"its file is missing from {folder / 'train'}",
    }


def test_the_hierarchy_is_a_tree_of_subcategories(folder: Path) -> None:
    tree = OpenImages(folder).tree
    assert tree.names == ("Car", "Taxi", "Land vehicle, wheeled", "Wheel", "Bat (/m/01bat)", "Bat (/m/02bat)")
    assert tree.parents == ((2,), (0, 4), (), (), (), ())
    (folder / "bbox_labels_600_hierarchy.json").unlink()
    assert not any(OpenImages(folder).tree.parents)
    (folder / "oidv7-class-descriptions.csv").write_text("LabelName,DisplayName\n/m/0k4j,Car\n")
    (folder / "class-descriptions.csv").rename(folder / "class-descriptions-boxable.csv")
    assert OpenImages(folder).tree.names == ("Car",)


def test_without_a_heldout_subset_the_pipeline_divides(folder: Path) -> None:
    assert {item.split for item in OpenImages(folder, heldout=("test",)).items()} == {""}


def test_labels_without_a_description_can_be_left_out(folder: Path) -> None:
    (folder / "class-descriptions.csv").write_text("LabelName,DisplayName\n/m/083wq,Wheel\n")
    importer = OpenImages(folder, described_only=True, heldout=())
    assert [item.labels for item in importer.items()] == [(0,), (0,)]


DESCRIBED, HUMANS, TREE = "class-descriptions.csv", "train-annotations-human-imagelabels.csv", "x_hierarchy.json"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (HUMANS, HEADER + "0a,v,/m/0k4j,1\n0b,v,/m/9,1\n", "csv, line 3: label /m/9 is not in class-descriptions.csv;"),
        (
            HUMANS,
            "ImageID,Source,LabelName\n0a,v,/m/0k4j\n",
            "line 1: column Confidence is missing; it has ImageID, Sou",
        ),
        (HUMANS, "", "line 1: column ImageID is missing; it has none, and needs ImageID, LabelName, Confidence"),
        (HUMANS, HEADER + "0a,v,/m/0k4j\n", "line 2: 3 fields instead of 4"),
        (HUMANS, HEADER + '0a,v,"/m/0k4j,1\n0b,v,/m/0k4j,1\n', "line 2: unexpected end of data; is a quote stray"),
        (HUMANS, HEADER + '0a,v,"/m/0k4j"",1\n0b,v,"/m/0k4j",1\n', "line 2: ',' expected after '\"'; is a quote stray"),
        (HUMANS, HEADER + "0a,v,/m/0k4j,high\n", "line 2: Confidence is 'high'; give a number from 0 to 1"),
        (HUMANS, HEADER + "0a,v,/m/0k4j,nan\n", "line 2: Confidence is 'nan'; give a number from 0 to 1"),
        (HUMANS, HEADER + "0b,v,/m/0k4j,1\n0a,v,/m/0k4j,1\n", "line 3: ImageID '0a' comes after 0b; sort the lines"),
        (HUMANS, HEADER + "../0a,v,/m/0k4j,1\n0b,v,/m/0k4j,1\n", "line 2: ImageID '../0a' has letters"),
        (HUMANS, HEADER + "0a,v,/m/\udcff,1\n", "not a text in UTF-8"),
        (DESCRIBED, "/m/0k4j,Car\n/m/0k4j,Auto\n", "csv, line 2: label /m/0k4j is described twice"),
        (DESCRIBED, "/m/0k4j,Car,Auto\n", "csv, line 1: 3 fields instead of 2"),
        (TREE, '{"LabelName": "/m/0k4j",\n}', "x_hierarchy.json, line 2: not JSON"),
        (
            TREE,
            '{"LabelName": "/m/0k4j", "Subcategory": [{}]}',
            "not a hierarchy of Open Images: KeyError('LabelName')",
        ),
        (
            TREE,
            '{"LabelName": "e", "Part": [{"LabelName": "/m/1"}]}',
            "json: label /m/1 is not in class-descriptions.csv",
        ),
        (
            TREE,
            '{"LabelName": "/m/0k4j", "Subcategory": [{"LabelName": "/m/0pg52", "Subcategory": [{"LabelName": "/m/0k4j"}'
            "]}]}",
            'json: label tree: labels contain each other, "Car" -> "Taxi" -> "Car"',
        ),
    ],
)
def test_a_mistake_is_named_by_file_and_line(folder: Path, file: str, content: str, message: str) -> None:
    (folder / "bbox_labels_600_hierarchy.json").unlink()
    (folder / file).write_bytes(content.encode("utf-8", "surrogateescape"))
    importer = OpenImages(folder)
    with pytest.raises(ValueError) as raised:
        _ = importer.tree, list(importer.items())
    assert message in str(raised.value)
    assert str(folder / file) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_tables_are_named(folder: Path) -> None:
    (folder / "train-annotations-human-imagelabels.csv").unlink()
    (folder / "train-annotations-machine-imagelabels.csv").unlink()
    with pytest.raises(ValueError, match=r"has no train-annotations-human-imagelabels\.csv"):
        list(OpenImages(folder).items())
    (folder / "class-descriptions.csv").unlink()
    with pytest.raises(ValueError, match=r"has no class-descriptions\.csv"):
        OpenImages(folder)
