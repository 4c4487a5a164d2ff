from __future__ import annotations

import pytest

from downpour.model.vision.preparing.items import members, read_bytes
from tests.model.vision.preparing.tars import tar_of


def test_a_file_and_members_of_tars_in_tars_are_read(tmp_path):
    (tmp_path / "a#1.jpg").write_bytes(b"plain")
    assert read_bytes(str(tmp_path / "a#1.jpg")) == b"plain"
    inner = {"n01/one.jpg": b"1" * 700, "two.jpg": b""}
    outer = tmp_path / "train.tar"
    outer.write_bytes(tar_of({"n02.tar": tar_of({"other.jpg": b"0"}), "n01.tar": tar_of(inner), "loose.jpg": b"loose"}))
    assert members(str(outer)) == [f"{outer}#n02.tar", f"{outer}#n01.tar", f"{outer}#loose.jpg"]
    assert members(f"{outer}#n01.tar") == [f"{outer}#n01.tar#n01/one.jpg", f"{outer}#n01.tar#two.jpg"]
    assert [read_bytes(path) for path in members(f"{outer}#n01.tar")] == list(inner.values())
    assert read_bytes(f"{outer}#loose.jpg") == b"loose"


def test_an_archive_that_changes_is_read_anew(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(tar_of({"x": b"old"}))
    assert read_bytes(f"{path}#x") == b"old"
    path.write_bytes(tar_of({"y": b"longer" * 2000, "x": b"new"}))
    assert read_bytes(f"{path}#x") == b"new"


def test_what_is_missing_or_compressed_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "a.tar"
    with pytest.raises(FileNotFoundError, match=r"a\.tar"):
        read_bytes(f"{path}#x")
    path.write_bytes(tar_of({"x": b"1"}, mode="w:gz"))
    with pytest.raises(OSError, match=r"a\.tar is not an uncompressed tar file"):
        read_bytes(f"{path}#x")
    path.write_bytes(tar_of({"x": b"1"}))
    with pytest.raises(FileNotFoundError, match=r"a\.tar has no member y"):
        read_bytes(f"{path}#y")
