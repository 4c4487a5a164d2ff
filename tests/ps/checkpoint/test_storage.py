"""Where a folder of checkpoints is: paths are paths, whatever they hold, and URLs are URLs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from downpour.ps.checkpoint.storage import Folder


@pytest.mark.parametrize("name", ["a::b", "file:x", "memory::x", "[a]*?", "a:b", "a b%20", "~x"])
def test_a_path_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """fsspec would take some of these for file systems."""
    monkeypatch.chdir(tmp_path)
    for given in (Path(name), name if name != "~x" else f"./{name}", tmp_path / name):
        folder = Folder(given)
        folder.check()
        (folder / "step").write("file", [b"content"])
        assert (tmp_path / name / "step" / "file").read_bytes() == b"content"
        assert (folder / "step").read("file") == b"content"
        assert folder.names() == ["step"]
        folder.remove("step")
        assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_url_is_a_url() -> None:
    folder = Folder("memory://somewhere/run/")
    folder.write("file", [b"content"])
    assert folder.url == "memory://somewhere/run"
    assert Folder("memory://somewhere/run").read("file") == b"content"
    with pytest.raises(ValueError, match=r"cannot use nothing://x: .*pip install 'downpour-training\[s3\]'"):
        Folder("nothing://x")


def test_a_path_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot use '.*caf\\udce9': it is not UTF-8; rename"):
        Folder(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
