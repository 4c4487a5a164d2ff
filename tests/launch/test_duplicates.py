"""The command, as it is typed, with a process a core."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from downpour.model.vision.labels import LABELS_FILE, LabelTree
from downpour.model.vision.records import LabelledImage, write_records
from tests.model.vision.photos import encoded, photograph


@pytest.mark.process
def test_the_command_lists_and_removes(tmp_path: Path) -> None:
    photo = photograph("china.jpg")
    tiles = [photo.crop((x, 0, x + 150, 400)) for x in (0, 160, 320, 480)]
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        LabelTree(("china",), (-1,)).save(folder / LABELS_FILE)
    for number, tile in enumerate(tiles):
        image = LabelledImage(encoded(tile), (0,), f"tile {number}")
        write_records(tmp_path / "a" / f"train-{number:05}-of-00004.tfrecord", [image])
    write_records(tmp_path / "b/heldout-00000-of-00001.tfrecord", [LabelledImage(encoded(tiles[2]), (0,), "copy")])

    command = [sys.executable, "-m", "downpour.launch.cli", "duplicates", "a", "b", "--report=json", "--remove=clean"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["duplicates"] == [{"first": "tile 2", "second": "copy", "distance": 0}]
    assert "a:train: 4 of 4 files hashed" in done.stderr
    assert len(list((tmp_path / "clean").glob("train-*.tfrecord"))) == 4
