"""Files that safetensors itself reads, complete or not at all, on a disk and in an object store."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from downpour import files
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import CheckpointFailed
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint import storage
from downpour.ps.checkpoint.shard_file import Damaged, write_shard
from downpour.ps.checkpoint.storage import Folder
from downpour.ps.layout import Variable, lay_out
from downpour.ps.layout.chunks import BLOCK_ELEMENTS
from downpour.ps.memory.ledger import COUNTERS
from downpour.ps.memory.snapshot import Snapshot
from downpour.ps.policy.rules import RMSProp
from tests.ps.checkpoint.saving import save

LAYOUT = lay_out([Variable("a", (3, 5)), Variable("b", (7,))], 2)


def vectors(shard: int, offset: float = 0) -> dict[str, np.ndarray]:
    names = ("parameters", "slot.ms", "slot.mom")
    return {name: np.arange(LAYOUT.size(shard), dtype=np.float32) + 100 * i + offset for i, name in enumerate(names)}


def write(folder: Path | str, offset: float = 0) -> checkpoint.Checkpoint:
    return save(folder, LAYOUT, [vectors(0, offset), vectors(1, offset)], step=9, rule=RMSProp(), progress={"x": 1})


def test_round_trip_and_format(tmp_path: Path) -> None:
    saved = write(tmp_path)
    assert checkpoint.load(tmp_path) == saved
    for shard, vector in enumerate(checkpoint.load(tmp_path).parameters()):
        np.testing.assert_array_equal(vector, vectors(shard)["parameters"])
    tensors = load_file(tmp_path / saved.shards[1].file)
    assert sorted(tensors) == ["counters", "parameters", "slot.mom", "slot.ms"]
    np.testing.assert_array_equal(tensors["slot.mom"], vectors(1)["slot.mom"])
    names = sorted([*(shard.file for shard in saved.shards), checkpoint.MANIFEST])
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_part_of_a_long_vector_is_read_and_checked_by_blocks(tmp_path: Path) -> None:
    """The second half of a checkpoint may be damaged without harm for who needs the first."""
    size = 5 * BLOCK_ELEMENTS + 3
    layout = lay_out([Variable("a", (size,))], 1)
    values = np.arange(size, dtype=np.float32)
    saved = save(tmp_path, layout, [{"parameters": values}])
    file = saved.open(0)
    for start, stop in ((0, size), (5, 6), (BLOCK_ELEMENTS - 1, 3 * BLOCK_ELEMENTS + 1)):
        np.testing.assert_array_equal(file.vector("parameters", start, stop), values[start:stop])
    path = tmp_path / saved.shards[0].file
    content = bytearray(path.read_bytes())
    content[-9 * 4] ^= 1
    path.write_bytes(content)
    np.testing.assert_array_equal(saved.open(0).vector("parameters", 0, 9), values[:9])


def test_without_a_manifest_it_is_no_checkpoint(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / checkpoint.MANIFEST).unlink()
    with pytest.raises(ValueError, match="not a complete checkpoint"):
        checkpoint.load(tmp_path)


def test_every_flipped_bit_and_every_cut_is_found_and_named(tmp_path: Path) -> None:
    saved = write(tmp_path)
    path = tmp_path / saved.shards[0].file
    content = path.read_bytes()
    data = 8 + int.from_bytes(content[:8], "little")
    size = 4 * LAYOUT.size(0)
    for at in range(data, data + 3 * size, 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        tensor = list(vectors(0))[(at - data) // size]
        with pytest.raises(ValueError, match=rf"{saved.shards[0].file} is damaged: {tensor}"):
            saved.open(0).vector(tensor)
    for length in range(0, data + size, 11):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=rf"{saved.shards[0].file} is damaged"):
            saved.parameters()
    path.unlink()
    with pytest.raises(ValueError, match=rf"{saved.shards[0].file} is missing"):
        saved.parameters()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document.update(format=9), "has format 9, this version reads format 2; a newer version"),
        (lambda document: document.update(format=1), "has format 1, this version reads format 2; an older one"),
        (lambda document: document.pop("shards"), "is damaged: KeyError"),
        (lambda document: document.update(shards=[3]), "is damaged: TypeError"),
    ],
)
def test_a_manifest_that_cannot_be_read(tmp_path: Path, change: Any, message: str) -> None:
    write(tmp_path)
    path = tmp_path / checkpoint.MANIFEST
    document = json.loads(path.read_text())
    del document["crc32c"]
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=message):
        checkpoint.load(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointFailed, match="shard 0: cannot write shard-00000-of-00002"):
        write(tmp_path / "file" / "folder")
    with pytest.raises(ValueError, match="give another folder, or permission to write there"):
        Folder(tmp_path / "file" / "folder").check()
    with pytest.raises(ValueError, match="cannot use nosuch://bucket"):
        Folder("nosuch://bucket/folder")


def test_looking_whether_a_folder_can_be_written_leaves_none_and_disturbs_nobody(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "run" / "checkpoints")

    def look(_: int) -> None:
        for _ in range(50):
            folder.check()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(look, range(4)))
    assert not list(tmp_path.iterdir())


def test_a_folder_by_its_url(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/checkpoints"
    saved = write(f"{url}/step-1")
    assert checkpoint.load(f"{url}/step-1") == saved
    Folder(f"{url}/step-2").write("half", [b"no manifest"])
    assert checkpoint.complete(Folder(url)) == ["step-1"]
    np.testing.assert_array_equal(saved.parameters()[0], vectors(0)["parameters"])
    Folder(url).remove("step-1")
    assert Folder(url).names() == ["step-2"]


def test_a_checkpoint_stays_until_another_of_the_same_step_is_complete(tmp_path: Path) -> None:
    first = write(tmp_path)
    snapshot = Snapshot(vectors(0, 0.5), {"counters": np.zeros(1, COUNTERS)}, threading.Lock())
    told = pb.ShardSpecification(layout=LAYOUT.canonical)
    torn = write_shard(tmp_path, told, snapshot)  # then the process ends
    assert checkpoint.load(tmp_path) == first
    first.verify()
    checkpoint.discard(tmp_path)
    assert torn.file not in Folder(tmp_path).names()
    second = write(tmp_path, offset=0.5)
    assert checkpoint.load(tmp_path) == second != first
    second.verify()
    checkpoint.discard(tmp_path)
    assert len(Folder(tmp_path).names()) == 3


class Fails(OSError):
    """The fault that was planned."""


class FaultyDisk:
    """A disk of which one operation fails; with `dies` every later one as well, as in a process that has ended."""

    def __init__(self, dies: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        self.countdown, self._dies = -1, dies
        for where, name in ((os, "fsync"), (os, "replace"), (files, "remove")):
            if where is os or dies:
                monkeypatch.setattr(where, name, self._faulty(getattr(where, name)))
        monkeypatch.setattr(storage, "open", self._open, raising=False)

    def count(self) -> None:
        if self.countdown == 0 and not self._dies:
            self.countdown = -1
            raise Fails(28, "No space left on device")
        if self.countdown == 0:
            raise Fails(5, "the process has died")
        self.countdown -= self.countdown > 0

    def _faulty(self, operation: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            self.count()
            operation(*arguments)

        return call

    def _open(self, path: str | Path, mode: str) -> Any:
        if mode == "rb":
            return open(path, mode)
        self.count()
        return FaultyFile(self, path, mode)


class FaultyFile(io.FileIO):
    def __init__(self, disk: FaultyDisk, path: str | Path, mode: str) -> None:
        super().__init__(path, mode)
        self._disk = disk

    def write(self, content: Any) -> int:
        self._disk.count()
        return super().write(content)


@pytest.mark.parametrize("dies", [False, True])
def test_interrupted_at_any_operation_the_previous_checkpoint_restores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    """Each open, write, fsync and rename fails in turn: the disk is full, or the process ends there."""
    first, second = tmp_path / "step-1", tmp_path / "step-2"
    write(first)
    before = checkpoint.load(first)
    disk = FaultyDisk(dies, monkeypatch)
    faults = 0
    for number in range(200):
        disk.countdown = number
        try:
            write(second, offset=0.5)
        except CheckpointFailed:
            faults += 1
        else:
            break
        finally:
            disk.countdown = -1
        assert checkpoint.complete(Folder(tmp_path)) in (["step-1"], ["step-1", "step-2"])
        assert checkpoint.load(first) == before
        np.testing.assert_array_equal(before.parameters()[1], vectors(1)["parameters"])
        if not dies:
            assert not [name for name in Folder(second).names() if name.startswith(".")], "nothing half-written is left"
    assert faults >= 20, "every operation failed once"
    np.testing.assert_array_equal(checkpoint.load(second).parameters()[0], vectors(0, 0.5)["parameters"])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def retell(path: Path) -> None:
    """Valid JSON that says something else."""
    path.write_text(path.read_text().replace('"step": 9', '"step": 8'))


DAMAGES = {
    "a flipped bit": ("shard-00001-of-00002.safetensors", flip, "shard-00001-of-00002.safetensors is damaged"),
    "a file cut off": ("shard-00000-of-00002.safetensors", cut, "shard-00000-of-00002.safetensors is damaged"),
    "a missing file": ("shard-00001-of-00002.safetensors", Path.unlink, "shard-00001-of-00002.safetensors is missing"),
    "a manifest cut off": (checkpoint.MANIFEST, cut, "manifest.json is damaged"),
    "an empty manifest": (checkpoint.MANIFEST, lambda path: path.write_text(""), "manifest.json is damaged"),
    "no object": (checkpoint.MANIFEST, lambda path: path.write_text("[3]"), "manifest.json is damaged"),
    "another step": (checkpoint.MANIFEST, retell, "manifest.json is damaged: its checksum differs"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_ones_are_passed_over_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    name, spoil, message = DAMAGES[damage]
    for step in ("step-1", "step-2", "step-3"):
        write(tmp_path / step)
    for step in ("step-2", "step-3"):
        spoil(tmp_path / step / name)
    passed_over: list[str] = []
    found = checkpoint.newest(Folder(tmp_path), passed_over=passed_over.append)
    assert found is not None and found.directory == str(tmp_path / "step-1")
    (record,) = caplog.records
    for step in ("step-2", "step-3"):
        assert f"{step}/{message}" in record.getMessage()
    assert passed_over == [str(tmp_path / "step-3"), str(tmp_path / "step-2")]
    for directory in passed_over:
        checkpoint.set_aside(directory)
    assert checkpoint.complete(Folder(tmp_path)) == ["step-1"], "nobody is offered them again"
    again = write(tmp_path / "step-3")
    assert checkpoint.newest(Folder(tmp_path)) == again, "a new one in the same place counts"
    assert checkpoint.SET_ASIDE not in Folder(again.directory).names()


def test_all_damaged_is_one_sentence_that_names_them(tmp_path: Path) -> None:
    for step in ("step-1", "step-2"):
        flip(tmp_path / step / write(tmp_path / step).shards[0].file)
    with pytest.raises(Damaged, match=r"all 2 are damaged: \S+/step-2/shard-00000\S+ is.*step-1/shard-0000"):
        checkpoint.newest(Folder(tmp_path))
    assert checkpoint.complete(Folder(tmp_path)) == ["step-1", "step-2"], "left for somebody to look at"
    assert checkpoint.newest(Folder(tmp_path / "none")) is None


def test_no_flipped_bit_of_a_manifest_goes_unnoticed(tmp_path: Path) -> None:
    saved = write(tmp_path)
    path = tmp_path / checkpoint.MANIFEST
    content = path.read_bytes()
    for at in range(0, len(content), 3):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 7]) + content[at + 1 :])
        try:
            assert checkpoint.load(tmp_path) == saved, f"byte {at}"  # blanks between values, or the checksum's name
        except Damaged:
            pass


def test_what_was_written_of_one_that_failed_is_removed_and_a_complete_one_stays(tmp_path: Path) -> None:
    write(tmp_path / "step-1")
    (tmp_path / "step-2").mkdir()
    for torn in ("step-1/.shard-00000.part", "step-2/shard-00000-of-00002.safetensors"):
        (tmp_path / torn).touch()
    for step in ("step-1", "step-2", "step-3"):
        checkpoint.discard(tmp_path / step)
    assert Folder(tmp_path).names() == ["step-1"]
    assert len(Folder(tmp_path / "step-1").names()) == 3
    checkpoint.load(tmp_path / "step-1").verify()
