"""Whole preparations of small sets: what is written, what is said of it, and what is refused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from downpour.model.data import ImageRecords
from downpour.model.vision.decode import Decoder
from downpour.model.vision.labels import LabelTree
from downpour.model.vision.preparing import pipeline, plan, report
from downpour.model.vision.preparing.csv_table import CsvTable
from downpour.model.vision.preparing.folder import Folder
from downpour.model.vision.preparing.items import Item
from downpour.model.vision.preparing.pictures import KINDS
from downpour.model.vision.preparing.plan import Settings
from downpour.model.vision.preparing.runners import Beam, Local
from downpour.model.vision.records import RecordCounts, read_records
from tests.conftest import wait_until
from tests.model.vision.preparing.awkward import FILES, photo

LABELS = ("animals/dog", "animals/cat/tabby", "animals/cat", "things")
ALONE = Local(num_processes=1)


def photos(folder: Path, number: int, labels: Sequence[str] = LABELS) -> Path:
    """A nested tree of photographs."""
    for each in range(number):
        path = folder / labels[each % len(labels)] / f"{each:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(each))
    return folder


def prepared(folder: Path, out: Path, runner: Any = ALONE, **settings: Any) -> dict[str, Any]:
    """The manifest of a folder's preparation."""
    pipeline.prepare(Folder(folder), out, Settings(**settings), runner, say=lambda line: None)
    found: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names(out: Path, split: str) -> list[str]:
    decoder = Decoder(resize=8, num_labels=99)
    files = sorted(out.glob(f"{split}-*.tfrecord"))
    return [decoder.name(record.data or b"") for path in files for record in read_records(path)]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without plots, which take half a second a page."""
    monkeypatch.setattr(report, "_plots", lambda manifest: ())


def test_two_hundred_photographs_and_one_of_each_awkward_file(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 200)
    for name, (data, _) in FILES.items():
        (folder / "things" / name).write_bytes(data)
    found = prepared(folder, tmp_path / "out", images_per_file=64)

    page, gone = (tmp_path / "out" / "report.html").read_text(), {each["name"] for each in found["skipped"]}
    said = {each["name"]: tuple(each["kinds"]) for each in found["changed"]}
    said |= {each["name"]: (each["kind"],) for each in found["skipped"]}
    ordinary = {name for name, (_, kinds) in FILES.items() if not kinds}
    assert said == {f"things/{name}": kinds for name, (_, kinds) in FILES.items() if name not in ordinary}
    rows = dict(re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td>", page.partition("left out or changed")[2]))
    assert rows == {name: ", ".join(f"{KINDS[kind].outcome}: {kind}" for kind in kinds) for name, kinds in said.items()}
    assert not re.search(r'(?:src|href)="(?!data:image/)', page) and page.count("<img") == 3 + 48

    written = {split: names(tmp_path / "out", split) for split in ("train", "heldout")}
    assert sorted(written["train"] + written["heldout"]) == sorted(
        [f"{LABELS[i % 4]}/{i:03d}.jpg" for i in range(200)] + [f"things/{each}" for each in FILES
         if f"things/{each}" not in gone])  # fmt: skip
    assert found["pictures"] == {split: len(each) for split, each in written.items()}
    assert (found["depth"], found["widest"]) == (3, {"label": "animals", "children": 2})
    assert found["labels_an_image"]["own"] == {"1": sum(found["pictures"].values())}
    data = ImageRecords(tmp_path / "out", num_labels=found["num_labels"], resize=40, crop=32)
    batches = data.heldout(batch_size=500)
    ((images, targets),) = batches
    assert len(images) == found["pictures"]["heldout"] and batches.counts.skipped == 0
    carriers = [found["labels"][name]["heldout"] for name in data.labels.names]
    assert np.asarray(targets).sum(axis=0).tolist() == carriers


@pytest.mark.usefixtures("undrawn")
def test_every_record_of_awkward_files_decodes(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 2, ["a"])
    for name, (data, _) in FILES.items():
        (folder / "a" / name).write_bytes(data)
    found = prepared(folder, tmp_path / "out", heldout=0.3)
    counts, decoder = RecordCounts(), Decoder(resize=8, num_labels=1)
    records = ((record, None) for path in (tmp_path / "out").glob("*.tfrecord") for record in read_records(path))
    assert all(picture is not None for picture in decoder.decode_all(records, counts))
    assert counts.read == sum(found["pictures"].values()) > 15


def test_files_depend_on_pictures_and_settings_alone(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 30)
    prepared(folder, tmp_path / "a", images_per_file=7)
    (tmp_path / "moved").mkdir()
    folder = folder.rename(tmp_path / "moved" / "elsewhere")
    prepared(folder, tmp_path / "b", images_per_file=7)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    same, other = (plan.make(Folder(folder), Settings(seed=seed)).items for seed in (0, 1))
    written = [item.name for item in same if item.split == "train"]
    assert written == names(tmp_path / "a", "train") != [item.name for item in other if item.split == "train"]


@pytest.mark.usefixtures("undrawn")
def test_a_picture_keeps_its_part_when_the_set_grows(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 40)
    prepared(folder, tmp_path / "a", heldout=0.3)
    before = set(names(tmp_path / "a", "heldout"))
    photos(folder, 60)
    prepared(folder, tmp_path / "b", heldout=0.3)
    after = set(names(tmp_path / "b", "heldout"))
    assert 4 < len(before) < 20 and before < after and all(name[-7:] >= "040.jpg" for name in after - before)


@pytest.mark.usefixtures("undrawn")
def test_what_is_prepared_stays_and_what_is_something_else_is_refused(tmp_path: Path) -> None:
    folder, out = photos(tmp_path / "photos", 12), tmp_path / "out"
    prepared(folder, out, heldout=0.3)
    before = contents(out)
    again = pipeline.prepare(Folder(folder), out, Settings(heldout=0.3), ALONE, say=lambda line: None)
    assert again.startswith("is prepared already:") and contents(out) == before
    with pytest.raises(ValueError, match="holds a set of other pictures or with other settings"):
        prepared(folder, out, heldout=0.4)
    with pytest.raises(ValueError, match="exists and is not a prepared set"):
        prepared(folder, tmp_path, heldout=0.3)
    assert contents(out) == before


@pytest.mark.process
def test_a_killed_run_is_continued_and_gives_the_same_files(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 60)
    prepared(folder, tmp_path / "whole", images_per_file=2)
    arguments = ["prepare", "folder", str(folder), f"--out={tmp_path / 'out'}", "--images_per_file=2", "--processes=2"]
    command = [sys.executable, "-m", "downpour.launch.cli", *arguments]
    tasks = tmp_path / "out.unfinished" / "tasks"
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True)
    wait_until(lambda: len(list(tasks.glob("*.done.json"))) >= 2, "two files of records")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not processes_of(process.pid), "the end of the workers")
    done = {path: path.stat().st_mtime_ns for path in tasks.glob("*.done.json")}
    assert 2 <= len(done) < len(list(tasks.glob("*[0-9].json"))) and not (tmp_path / "out").exists()

    with pytest.raises(ValueError, match=r"out.unfinished is what an interrupted run with other settings"):
        prepared(folder, tmp_path / "out", images_per_file=3)
    said: list[str] = []
    pipeline.prepare(Folder(folder), tmp_path / "out", Settings(images_per_file=2), ALONE, say=said.append)
    assert said[0].startswith(f"continuing: {len(done)} of ")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not (tmp_path / "out.unfinished").exists()


def processes_of(session: int) -> list[str]:
    """Processes of a session that still run."""
    lines = subprocess.run(["ps", "-eo", "sid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    found = (line.split(None, 2) for line in lines.splitlines())
    return [args for sid, state, args in found if sid == str(session) and not state.startswith("Z")]


@pytest.mark.slow
def test_beam_writes_the_same_files(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 40)
    prepared(folder, tmp_path / "a", images_per_file=7)
    prepared(folder, tmp_path / "b", Beam("DirectRunner"), images_per_file=7)
    workers = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")
    prepared(folder, tmp_path / "c", Beam("DirectRunner", workers), images_per_file=7)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("kind", ["given", "own"])
def test_a_file_in_both_splits(tmp_path: Path, kind: str) -> None:
    """Of splits that are given it is refused or removed; our own division keeps copies together."""
    folder = tmp_path / "photos"
    if kind == "own":
        photos(folder, 30, ["a"])
        for each in range(30):
            (folder / "a" / f"copy_of_{each:03d}.jpg").write_bytes(photo(each))
        prepared(folder, tmp_path / "out", heldout=0.4)
        heldout = {name[-7:] for name in names(tmp_path / "out", "heldout")}
        assert 5 < len(heldout) < 25
        assert not heldout & {name[-7:] for name in names(tmp_path / "out", "train")}
        return
    photos(folder / "train", 10, ["a"])
    (folder / "val" / "a").mkdir(parents=True)
    (folder / "val" / "a" / "x.jpg").write_bytes(photo(3))
    (folder / "val" / "a" / "y.jpg").write_bytes(photo(77))
    with pytest.raises(ValueError, match=r"1 training pictures are held out, too .* train/a/003.jpg is val/a/x.jpg"):
        prepared(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.unfinished").exists()
    found = prepared(folder, tmp_path / "out", on_leak="remove")
    assert found["pictures"] == {"train": 9, "heldout": 2}
    (leak,) = found["skipped"]
    assert leak == {"name": "train/a/003.jpg", "kind": "leak", "why": "the same file as the held-out val/a/x.jpg"}


@pytest.mark.usefixtures("undrawn")
def test_a_table_with_confidences(tmp_path: Path) -> None:
    photos(tmp_path / "photos", 12, ["p"])
    rows = [f"photos/p/{i:03d}.jpg,common|{'odd' if i % 2 else 'even'},1|{i / 12}" for i in range(12)]
    (tmp_path / "table.csv").write_text("\n".join(["image,label,confidence", *rows, "photos/none.jpg,odd,1"]))
    table, out = CsvTable(tmp_path / "table.csv"), tmp_path / "out"
    pipeline.prepare(table, out, Settings(heldout=0.3, min_confidence=0.5), ALONE, say=lambda line: None)
    found = json.loads((out / "manifest.json").read_text())
    assert found["labels_an_image"]["own"] == {"1": 6, "2": 6}
    assert {name: sum(counts.values()) for name, counts in found["labels"].items()} == {
        "common": 12, "even": 3, "odd": 3}  # fmt: skip
    assert found["num_skipped"] == {"missing": 1}
    assert found["skipped"][0]["name"] == "photos/none.jpg"


class Listed:
    """An importer of given items."""

    def __init__(self, *items: Item) -> None:
        self.tree, self.skipped, self._items = LabelTree(("a",), (-1,)), dict[str, str](), items

    def items(self):
        return iter(self._items)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ((), "no pictures"),
        ((Item("x", "/none/x.jpg", (0,)),), "no pictures; the first of 1 left out is x: /none/x.jpg: No such file"),
        ((Item("x", "a.jpg", (0,)), Item("x", "b.jpg", (0,))), "two pictures are called x: a.jpg and b.jpg; rename"),
        ((Item("x", "a.jpg", (1,)),), "x: label 1 is not in the tree of 1 labels"),
        ((Item("x", "a.jpg", (0,), "dev"),), "x: split is 'dev'; give train or heldout"),
        ((Item("x", __file__, (0,)),), "none of 1 pictures is in 'heldout' with --heldout=0.1; give another"),
        (
            (Item("x", __file__, (0,), "train"), Item("y", pipeline.__file__, (0,), "heldout")),
            "none of the 1 pictures of 'train' can be used; the first is x: not a picture",
        ),
    ],
)
def test_what_cannot_be_prepared_is_refused_and_leaves_nothing(tmp_path: Path, items, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        pipeline.prepare(Listed(*items), tmp_path / "out", runner=ALONE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong", [{"heldout": 1.5}, {"images_per_file": 0}, {"max_side": -1}, {"on_leak": "no"}, {"min_confidence": -1}]
)
def test_wrong_settings_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is {next(iter(wrong.values()))!r}; give"):
        Settings(**wrong)
