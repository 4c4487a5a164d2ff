"""Which arena files are continued, which count as none, and which are refused."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from downpour.proto import parameter_server_pb2 as pb
from downpour.ps.layout import Variable, lay_out
from downpour.ps.memory import arena as arenas
from downpour.ps.memory import mapping
from downpour.ps.memory.arena import Arena
from downpour.ps.policy.averages import Polyak
from downpour.ps.policy.named import to_message
from downpour.ps.policy.rules import RMSProp
from downpour.ps.policy.schedules import Constant
from downpour.ps.shard.shard import Shard
from tests.ps.pushing import push

PAGE = mmap.PAGESIZE
LAYOUT = lay_out([Variable("w", (40, 50)), Variable("b", (50,))], 1)
SPECIFICATION = pb.ShardSpecification(
    fingerprint=LAYOUT.fingerprint,
    layout=LAYOUT.canonical,
    rule=to_message(RMSProp()),
    schedule=to_message(Constant(0.1)),
    average=to_message(Polyak(0.5)),
)
State = dict[str, np.ndarray]


def new_shard(path: Path) -> Shard:
    """A shard after one push, whose arena is open."""
    arena = Arena.create(path, SPECIFICATION)
    arena.start_average()
    arena.mark_complete()
    shard = Shard(arena)
    push(shard, 1, np.linspace(-1, 1, LAYOUT.size(0), dtype=np.float32))
    return shard


def left_by_a_kill(path: Path) -> Path:
    """A copy of an open arena, as the death of its process would leave it."""
    return Path(shutil.copy(path, path.with_suffix(".left")))


def state_of(arena: Arena) -> State:
    return {name: part.copy().view(np.uint8) for name, part in {**arena.vectors, **arena.records}.items()}


def opened_state(path: Path) -> State | None:
    """What an arena holds when it is opened, None if it counts as none; closes it."""
    arena = Arena.open(path)
    if arena is None:
        return None
    state = state_of(arena)
    arena.close()
    return state


def assert_equal(mine: State | None, theirs: State) -> None:
    assert mine is not None
    for name, value in theirs.items():
        np.testing.assert_array_equal(mine[name], value, name)


@pytest.fixture
def boot_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file that says which start of the machine this is."""
    path = tmp_path / "boot_id"
    path.write_text("first\n")
    monkeypatch.setattr(arenas, "_BOOT_ID", path)
    return path


def test_an_arena_in_use_when_the_machine_went_down_counts_as_none(boot_id: Path, tmp_path: Path) -> None:
    path = tmp_path / "arena"
    shard = new_shard(path)
    expected, left = state_of(shard.arena), left_by_a_kill(path)
    shard.close()
    other = Path(shutil.copy(left, tmp_path / "other"))
    assert_equal(opened_state(other), expected)
    boot_id.write_text("second\n")
    assert Arena.open(left) is None
    assert_equal(opened_state(path), expected)
    Arena.create(left, SPECIFICATION).close()  # and nobody holds it: a new one may take its place


def test_closed_once_is_not_closed_for_good(boot_id: Path, tmp_path: Path) -> None:
    """An arena that was closed, opened again and in use when the machine went down counts as none, too."""
    path = tmp_path / "arena"
    new_shard(path).close()
    boot_id.write_text("second\n")
    arena = Arena.open(path)
    assert arena is not None
    left = left_by_a_kill(path)
    boot_id.write_text("third\n")
    assert Arena.open(left) is None


def test_that_it_is_open_is_on_the_disk_before_anything_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "arena"
    new_shard(path).close()
    written: list[tuple[int, int]] = []

    class Recording(mmap.mmap):
        def flush(self, *span: Any) -> None:
            header = np.frombuffer(self, arenas._HEADER, 1)[0]
            written.append((int(header["closed"]), *span[1:]))
            super().flush(*span)

    monkeypatch.setattr(mmap, "mmap", Recording)
    assert Arena.open(path) is not None
    assert written == [(0, PAGE)]


@pytest.mark.parametrize("pages", [1, 2, 10, -1])
def test_an_arena_that_is_cut_off_is_refused(tmp_path: Path, pages: int) -> None:
    path = tmp_path / "arena"
    new_shard(path).close()
    size = path.stat().st_size
    content = path.read_bytes()[: pages * PAGE]
    assert PAGE <= len(content) < size
    path.write_bytes(content)
    for _ in range(2):  # and the refusal leaves it as it is, and unlocked
        with pytest.raises(ValueError, match=r"arena.*remove it or give another --arena"):
            Arena.open(path)
        assert path.read_bytes() == content


@pytest.mark.parametrize("last_bytes", [1, PAGE - 1])
def test_an_arena_that_lacks_some_bytes_is_refused(tmp_path: Path, last_bytes: int) -> None:
    path = tmp_path / "arena"
    new_shard(path).close()
    content = path.read_bytes()[:-last_bytes]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"cut off at {len(content):,} bytes; remove it or give another --arena"):
        Arena.open(path)


def test_a_damaged_specification_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "arena"
    new_shard(path).close()
    whole = path.read_bytes()
    for at in range(0, SPECIFICATION.ByteSize(), 7):
        flip(path, whole, PAGE + at, 0x10)
        with pytest.raises(ValueError, match=r"the header of the arena .* is damaged"):
            Arena.open(path)


@pytest.mark.parametrize("was_closed", [True, False])
@pytest.mark.parametrize("bits", [0x01, 0x80, 0xFF])
def test_any_damaged_byte_of_the_header_refuses_counts_as_none_or_does_no_harm(
    tmp_path: Path, was_closed: bool, bits: int
) -> None:
    path, damaged = tmp_path / "arena", tmp_path / "damaged"
    shard = new_shard(path)
    expected, left = state_of(shard.arena), left_by_a_kill(path)
    shard.close()
    whole = (path if was_closed else left).read_bytes()
    fields = arenas._HEADER.fields
    assert fields is not None
    for at in range(100):
        flip(damaged, whole, at, bits)
        if at < fields["boot"][1]:  # the magic, the length and the checksum of the specification, the marks
            with pytest.raises(
                ValueError, match=r"is not an arena of this version|the header of the arena .* is damaged"
            ):
                Arena.open(damaged)
        elif (state := opened_state(damaged)) is not None:
            assert_equal(state, expected)
        else:
            assert at < arenas._HEADER.itemsize, "beyond the header nothing is looked at"


def test_the_arena_of_another_shard_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "arena"
    new_shard(path).close()
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"the arena .*/arena is of shard 0, and this is shard 1; give every shard"
        ):
            Arena.open(path, 1)
    assert Arena.open(path, 0) is not None


def flip(path: Path, whole: bytes, at: int, bits: int) -> None:
    """Writes a file in which some bits of a byte are the opposite."""
    content = bytearray(whole)
    content[at] ^= bits
    path.write_bytes(content)


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_arena_for_which_there_is_no_room_is_unlocked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "arena"
    new_shard(path).close()
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="no room for the arena") as caught:
        patch.setattr(os, "posix_fallocate", full)
        Arena.open(path)
    assert caught.tb is not None, "keeps the mapping, and with it a descriptor of the file"
    assert opened_state(path) is not None


def test_an_arena_that_cannot_be_flushed_is_unlocked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Full(mmap.mmap):
        flush = full

    path = tmp_path / "arena"
    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", Full)
        shard = new_shard(path)
    with pytest.raises(OSError, match="No space left"):
        shard.close()
    assert opened_state(path) is not None


def test_the_room_an_arena_needs_is_known_beforehand() -> None:
    assert arenas.bytes_needed(SPECIFICATION) == Arena.create(None, SPECIFICATION).num_bytes


@pytest.fixture
def shared_memory() -> Iterator[Path]:
    """A folder on tmpfs, where arenas mostly are."""
    if not Path("/dev/shm").is_dir():
        pytest.skip("no tmpfs here")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def described(size: int) -> pb.ShardSpecification:
    """A shard of so many parameters."""
    layout = lay_out([Variable("w", (size,))], 1)
    return pb.ShardSpecification(
        fingerprint=layout.fingerprint,
        layout=layout.canonical,
        rule=to_message(RMSProp()),
        schedule=to_message(Constant(0.1)),
    )


def huge_kb(memory: int) -> int:
    """Of the mapping at this address, what the kernel has mapped as huge pages."""
    is_here, mapped = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if "-" in first:
            begin, _, end = first.partition("-")
            is_here = int(begin, 16) <= memory < int(end, 16)
        elif is_here and first == "ShmemPmdMapped:":
            mapped += int(rest.split()[0])
    return mapped


def supports_huge_pages(folder: Path) -> bool:
    """Whether the kernel makes huge pages of a file there when it is asked to."""
    length = 2 * mapping.HUGE_PAGE
    with (folder / "probe").open("w+b") as file:
        file.write(bytes(length))
        file.flush()
        memory = mapping.map_aligned(file.fileno(), length)
        try:
            memory.madvise(mapping.COLLAPSE)
        except BlockingIOError:  # only not just now
            return True
        except OSError:
            return False
    return True


@pytest.mark.parametrize("hollow", [False, True])
def test_an_arena_in_shared_memory_has_huge_pages(shared_memory: Path, hollow: bool) -> None:
    if not supports_huge_pages(shared_memory):
        pytest.skip("this kernel makes no huge pages on request")
    values = np.arange(3_000_000, dtype=np.float32)
    path = shared_memory / "arena"
    arena = Arena.create(path, described(values.size), hollow=hollow)
    arena.write("parameters", 0, values.view(np.uint8))
    arena.mark_complete()
    assert huge_kb(arena.parameters.ctypes.data) > 10_000  # of 42 MB; some may not be had just now
    assert (arena.parameters == values).all()
    assert hollow or (arena.slots[0] == 1).all()
    left = Arena.open(left_by_a_kill(path))
    assert left is not None
    assert (left.parameters == values).all()
    for each in (arena, left):
        each.close()


@pytest.mark.parametrize("megabytes", [3, 30])
def test_an_arena_without_room_is_refused(tmp_path: Path, megabytes: int) -> None:
    """And does not end the process, as writing to a mapping without room would."""
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", tmp_path], check=False)
    if mount.returncode:
        pytest.skip("only root may limit a file system")
    try:
        with pytest.raises(ValueError, match="no room for the arena"):
            Arena.create(tmp_path / "arena", described(3_000_000))
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)
