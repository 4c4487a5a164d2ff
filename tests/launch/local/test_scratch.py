from __future__ import annotations

import pytest

from downpour.launch.local.scratch import find_kept, keep, remove_abandoned, scratch_folder


def test_folder_lives_as_long_as_its_block(tmp_path):
    with pytest.raises(RuntimeError), scratch_folder(tmp_path) as folder:
        (folder / "arena").write_text("x")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


@pytest.mark.process
def test_folder_of_a_killed_launcher_is_removed_by_the_next(tmp_path, run_python):
    code = """
import os, sys
from pathlib import Path
from downpour.launch.local.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "arena").write_text("x")
    os.kill(os.getpid(), 9)
"""
    with scratch_folder(tmp_path) as mine:
        assert run_python(code, tmp_path).returncode == -9
        (abandoned,) = set(tmp_path.iterdir()) - {mine}
        assert remove_abandoned(tmp_path) == [abandoned]
        assert list(tmp_path.iterdir()) == [mine]


def test_a_kept_folder_stays_until_a_run_in_it_ends_well(tmp_path):
    run_dir, other = tmp_path / "run", tmp_path / "other"
    with pytest.raises(RuntimeError), scratch_folder(tmp_path) as folder:
        (folder / "arena").write_text("x")
        kept = keep(folder, run_dir)
        raise RuntimeError
    assert find_kept(tmp_path, run_dir) == kept and find_kept(tmp_path, other) is None
    with scratch_folder(tmp_path):
        assert kept.exists(), "nobody takes it for abandoned"
    with pytest.raises(RuntimeError), scratch_folder(tmp_path, kept) as folder:
        assert folder == kept == keep(folder, run_dir)
        raise RuntimeError
    with scratch_folder(tmp_path, kept) as folder:
        assert (folder / "arena").read_text() == "x"
        with pytest.raises(ValueError, match="is in use by another run"), scratch_folder(tmp_path, kept):
            pass
    assert not list(tmp_path.iterdir())
