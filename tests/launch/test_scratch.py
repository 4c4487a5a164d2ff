from __future__ import annotations

import pytest

from downpour.launch.scratch import remove_abandoned, scratch_folder


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
from downpour.launch.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "arena").write_text("x")
    os.kill(os.getpid(), 9)
"""
    with scratch_folder(tmp_path) as mine:
        assert run_python(code, tmp_path).returncode == -9
        (abandoned,) = set(tmp_path.iterdir()) - {mine}
        assert remove_abandoned(tmp_path) == [abandoned]
        assert list(tmp_path.iterdir()) == [mine]
