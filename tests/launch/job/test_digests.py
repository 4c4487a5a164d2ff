"""Digests of arrays: of the file once, of a few pages at every start, and of all bytes where there is no record."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from downpour.launch.job import digests
from downpour.launch.job.written import Writer, array


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with two arrays, as `fit` writes it."""
    writer = Writer(tmp_path)
    writer.source((np.arange(100_000, dtype=np.float32).reshape(-1, 4), np.arange(9)), "data")
    writer.save()
    return tmp_path


def test_the_record_is_read_in_place_of_the_bytes(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = digests.of_array(array(files / "0.npy"))
    monkeypatch.setattr(digests, "_of_file", lambda path: pytest.fail("the whole file is read"))
    assert digests.of_array(array(files / "0.npy")) == computed
    assert len({digests.of_array(array(files / name)) for name in ("0.npy", "1.npy")}) == 2


def test_without_the_record_the_file_is_digested_to_the_same_text(files: Path) -> None:
    recorded = digests.of_array(array(files / "0.npy"))
    (files / digests.SUMS).unlink()
    assert digests.of_array(array(files / "0.npy")) == recorded


def test_data_that_were_replaced_since_are_noticed(files: Path) -> None:
    before = digests.of_array(array(files / "0.npy"))
    np.save(files / "0.npy", np.arange(100_000, dtype=np.float32).reshape(-1, 4) + 1)
    assert digests.of_array(array(files / "0.npy")) != before


def test_sha256sum_checks_every_byte(files: Path) -> None:
    check = ["sha256sum", "--check", "--quiet", digests.SUMS]
    assert subprocess.run(check, cwd=files, check=False).returncode == 0
    with (files / "0.npy").open("r+b") as file:
        file.seek(200_001)
        file.write(b"\x01")
    assert subprocess.run(check, cwd=files, check=False, capture_output=True).returncode == 1


def test_parts_of_a_file_and_arrays_in_memory_are_digested_whole(files: Path) -> None:
    mapped = array(files / "0.npy")
    texts = {
        digests.of_array(value)
        for value in (mapped, mapped[1:], mapped[::2], mapped.T, np.array(mapped), mapped.view(np.int32))
    }
    assert len(texts) == 5, "a copy and another view of the same bytes in the same order have one digest"
    assert digests.of_array(np.zeros((0, 3))) == digests.of_array(np.zeros(0))


def test_arrays_of_any_shape_have_one(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    values = (np.zeros((0, 3)), np.asfortranarray(np.arange(12.0).reshape(3, 4)), np.array(["a", None], object))
    writer.source(values, "data")
    writer.save()
    texts = [digests.of_array(array(tmp_path / f"{number}.npy")) for number in range(len(values))]
    assert len(set(texts)) == len(values)


def test_objects_are_digested_by_type_and_value_in_every_process() -> None:
    def of(*objects: Any) -> str:
        value = np.empty(len(objects), object)
        value[:] = objects
        return digests.of_array(value)

    script = (
        "import numpy, downpour.launch.job.digests as d; "
        "print(d.of_array(numpy.array([['a' * 9], ['\u00e9'], [b'a'], [None], [1.5]], object)))"
    )
    there = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert there == of("a" * 9, "\u00e9", b"a", None, 1.5)
    assert len({of("a", "b"), of("ab", ""), of("b", "a"), of("a", b"b"), of("1"), of(1), of(1.0), of(np.ones(1))}) == 8
    assert of(np.arange(9999), "a") == of(np.arange(9999), "a") != of(np.arange(9999) + 1, "a")
