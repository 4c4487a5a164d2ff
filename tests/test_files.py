"""Files are replaced whole or not at all, and where it is asked for the disk has the content and the name."""

from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path

import pytest

from downpour import files


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    for content in ("first", b"second", "dritt\u00e4"):
        files.write(tmp_path / "a", content)
        expected = content if isinstance(content, bytes) else content.encode()
        assert (tmp_path / "a").read_bytes() == expected
    assert os.listdir(tmp_path) == ["a"]


def test_permissions_hold_from_the_first_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    real_replace = os.replace

    def replace(temporary: Path, path: Path) -> None:
        modes.append(stat.S_IMODE(temporary.stat().st_mode))
        real_replace(temporary, path)

    monkeypatch.setattr(os, "replace", replace)
    (tmp_path / "key").write_text("readable by all")
    files.write(tmp_path / "key", "secret", mode=0o600)
    assert modes == [0o600] and stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


@pytest.mark.parametrize("durable", [False, True])
def test_what_is_synced_and_when(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool) -> None:
    done: list[str] = []
    real_replace = os.replace

    def fsync(descriptor: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")

    def replace(temporary: Path, path: Path) -> None:
        done.append("renamed")
        real_replace(temporary, path)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    files.write(tmp_path / "a", "x", durable=durable)
    assert done == (["file", "renamed", "folder"] if durable else ["renamed"])


@pytest.mark.parametrize("fault", ["the block", "the sync", "the rename"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    faults = []

    def fail(*_: object) -> None:
        faults.append(fault)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if fault != "the block":
        monkeypatch.setattr(os, "fsync" if fault == "the sync" else "replace", fail)
    (tmp_path / "a").write_text("old")
    with pytest.raises(OSError, match="No space left"), files.replacing(tmp_path / "a", durable=True) as temporary:
        temporary.write_text("half")
        if fault == "the block":
            fail()
    assert faults == [fault]
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = []

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            refused.append(descriptor)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", fsync)
    files.write(tmp_path / "a", "x", durable=True)
    assert len(refused) == 1 and (tmp_path / "a").read_text() == "x"


def test_what_a_killed_process_left_is_removed_once_it_is_old(tmp_path: Path) -> None:
    """What may still be written, or is of another file, stays."""
    old = time.time() - 3700
    for name in (".a.0123abcd.part", ".a.x.0123abcd.part", ".a.0123abcd.part.x", ".a.0123abcde.part", "a.part"):
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (old, old))
    (tmp_path / ".a.01234567.part").write_text("half")
    (tmp_path / ".a.ffffffff.part").mkdir()
    (tmp_path / ".a.ffffffff.part" / "inside").touch()
    os.utime(tmp_path / ".a.ffffffff.part", (old, old))
    files.write(tmp_path / "a", "whole")
    kept = {".a.x.0123abcd.part", ".a.0123abcd.part.x", ".a.0123abcde.part", "a.part", ".a.01234567.part", "a"}
    assert set(os.listdir(tmp_path)) == kept


def test_a_folder_appears_whole_or_is_removed(tmp_path: Path) -> None:
    def make(*, fails: bool) -> None:
        with files.replacing(tmp_path / "folder", ending=".x") as temporary:
            assert temporary.name.endswith(".x")
            temporary.mkdir()
            (temporary / "file").touch()
            if fails:
                raise RuntimeError("planned")

    with pytest.raises(RuntimeError, match="planned"):
        make(fails=True)
    assert not os.listdir(tmp_path)
    make(fails=False)
    assert os.listdir(tmp_path) == ["folder"] and os.listdir(tmp_path / "folder") == ["file"]
