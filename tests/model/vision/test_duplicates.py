from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import ImageOps

from downpour.launch import duplicates as command
from downpour.model.vision import duplicates
from downpour.model.vision.duplicates import Split
from downpour.model.vision.labels import LABELS_FILE, LabelTree
from downpour.model.vision.records import LabelledImage, from_example, read_records, write_records
from tests.model.vision.photos import encoded, photograph


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six training pictures in two files, of which `b` and `e` are held out, too, one mirrored, one made smaller."""
    photo = photograph("china.jpg")
    a, b, c, d, e, f = (photo.crop((x, y, x + 200, y + 200)) for x in (0, 210, 420) for y in (0, 210))
    path = tmp_path / "data"
    path.mkdir()
    LabelTree(("china",), (-1,)).save(path / LABELS_FILE)
    (path / "dataset.json").write_text("{}")
    for number, pictures in enumerate(({"a": a, "b": b, "c": c}, {"d": d, "e": e, "f": f})):
        images = [LabelledImage(encoded(each), (0,), name) for name, each in pictures.items()]
        write_records(path / f"train-{number:05}-of-00002.tfrecord", images)
    heldout = {"small e": e.resize((90, 90)), "mirrored b": ImageOps.mirror(b)}
    images = [LabelledImage(encoded(each), (0,), name) for name, each in heldout.items()]
    images.append(LabelledImage(b"no picture", (0,), "broken"))
    write_records(path / "heldout-00000-of-00001.tfrecord", images)
    return path


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates.os, "cpu_count", lambda: 1)


def names(folder: Path, split: str) -> list[str]:
    records = (record for path in sorted(folder.glob(f"{split}-*")) for record in read_records(path))
    return [from_example(record.data).name for record in records if record.data]


def find(folder: Path) -> duplicates.Found:
    return duplicates.find(Split(folder, "train"), Split(folder, "heldout"), 6, lambda line: None)


def test_copies_are_found_and_what_is_broken_is_named(folder: Path) -> None:
    found = find(folder)
    assert {(pair.first.name, pair.second.name) for pair in found.pairs} == {("b", "mirrored b"), ("e", "small e")}
    assert (found.num_first, found.num_second) == (6, 2)
    (unreadable,) = found.unreadable
    assert unreadable.startswith(f"{folder}/heldout-00000-of-00001.tfrecord, record 2 (broken): cannot identify")
    report = found.report()
    assert report == json.loads(json.dumps(report))
    assert report["num_duplicates"] == 2


def test_a_damaged_record_is_named_and_the_others_are_compared(folder: Path) -> None:
    path = folder / "train-00000-of-00002.tfrecord"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    found = find(folder)
    assert found.num_first == 5
    assert f"{path}, record 0: checksum does not match the data at byte 0" in found.unreadable
    assert len(found.pairs) == 2


def test_a_copy_without_them_is_a_prepared_folder(folder: Path, tmp_path: Path) -> None:
    clean = tmp_path / "new" / "clean"
    found = find(folder)
    duplicates.remove(found, clean)
    assert names(clean, "train") == ["a", "c", "d", "f"]
    assert names(clean, "heldout") == names(folder, "heldout")
    assert names(folder, "train") == list("abcdef")
    assert LabelTree.load(clean / LABELS_FILE) == LabelTree.load(folder / LABELS_FILE)
    assert json.loads((clean / "duplicates.json").read_text()) == found.report()
    assert not (clean / "dataset.json").exists()
    assert not find(clean).pairs
    with pytest.raises(ValueError, match="clean exists; give a folder that does not"):
        duplicates.remove(found, clean)


def test_held_out_pictures_can_be_the_ones_that_are_left_out(folder: Path, tmp_path: Path) -> None:
    found = duplicates.find(Split(folder, "heldout"), Split(folder, "train"), 6, lambda line: None)
    assert {pair.first.name for pair in found.pairs} == {"mirrored b", "small e"}
    with pytest.raises(ValueError, match=r"each of the 2 pictures of .*:heldout recurs; nothing would remain"):
        duplicates.remove(found, tmp_path / "clean")
    assert not (tmp_path / "clean").exists()


def test_the_same_set_twice_and_folders_without_records_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="are the same pictures; give two folders, or two splits of one"):
        duplicates.find(Split(folder, "train"), Split(folder / ".." / "data", "train"), 6)
    with pytest.raises(
        ValueError, match=r"no .*nowhere/train-\*\.tfrecord; give a folder that `downpour prepare` wrote"
    ):
        duplicates.find(Split(tmp_path / "nowhere", "train"), Split(folder, "heldout"), 6)


def test_splits_are_written_behind_a_colon() -> None:
    assert Split.parse("a/b:heldout", "train") == Split(Path("a/b"), "heldout")
    assert Split.parse("a:b/c", "train") == Split(Path("a:b/c"), "train")
    assert str(Split.parse("a", "train")) == "a:train"


def test_the_list_is_a_line_a_picture_and_a_summary(folder: Path) -> None:
    *lines, summary = command.text_of(find(folder), Path("clean")).splitlines()
    assert sorted(line.split()[1] for line in lines) == ["b", "e"]
    assert summary == (
        f"2 of 6 pictures of {folder}:train are near one of the 2 of {folder}:heldout; 1 records cannot be read; "
        "clean has the other 4"
    )
