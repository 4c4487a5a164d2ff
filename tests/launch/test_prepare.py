"""The commands of docs/prepare.md, as they stand there, on photographs and one of each awkward file."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.model.vision.preparing.awkward import FILES, photo
from tests.newcomer import ROOT, commands_of, files_of

PAGE = ROOT / "docs" / "prepare.md"
CLASSES = ("animals/dog", "animals/cat", "things/mug", "things/mug/blue", "places")
SHORTER = "--steps=2 --batch_size=16 --set=cluster.num_ps=2 --set=cluster.num_workers=1 --set=model.width=4"


def run(folder: Path, command: str) -> str:
    """What a command of the page prints."""
    program, *arguments = shlex.split(command)
    assert program == "downpour"
    line = [sys.executable, "-m", "downpour.launch.cli", *arguments]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(1200)
def test_the_commands_of_the_page_prepare_photographs_and_train_on_them(tmp_path: Path) -> None:
    rows = ["image,label,confidence,split"]
    for number in range(200):
        path = Path("photos", CLASSES[number % len(CLASSES)], f"{number:03d}.jpg")
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(photo(number))
        rows.append(f"{path},{CLASSES[number % len(CLASSES)]}|any,0.9|1,{'val' if number % 7 else 'train'}")
    for name, (data, _) in FILES.items():
        (tmp_path / "photos" / "places" / name).write_bytes(data)
    (tmp_path / "photos.csv").write_text("\n".join(rows))

    for name, text in files_of(PAGE).items():
        (tmp_path / name).write_text(text)
    for command in commands_of(PAGE):
        trains = command.startswith("downpour train")
        said = run(tmp_path, f"{command} {SHORTER}" if trains else command)
        assert said.splitlines()[-1].startswith("RESULT {" if trains else "prepared ")
    summary = json.loads(next((tmp_path / "runs").glob("*/summary.json")).read_text())
    assert summary["global_steps"] >= 2

    manifest = json.loads((tmp_path / "data" / "photos" / "manifest.json").read_text())
    named = {each["name"] for each in [*manifest["skipped"], *manifest["changed"]]}
    assert named == {f"places/{name}" for name, (_, kinds) in FILES.items() if kinds}
    page = (tmp_path / "data" / "photos" / "report.html").read_text()
    assert all(f"<td>{name}</td>" in page for name in named)
