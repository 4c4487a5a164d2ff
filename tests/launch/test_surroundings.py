"""A real job where much is unusual: a proxy in the environment, Keras' settings, names of folders, an own network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from downpour.launch.export import export
from downpour.launch.job import recipe
from tests.launch.jobs import LocalJob, write_recipe

pytestmark = pytest.mark.process

# It leaves the names of layers and the data format to Keras.
OWN_NETWORK = """


@dataclass(frozen=True)
class Own:
    def build(self, image_size, num_labels):
        import keras

        return keras.Sequential(
            [
                keras.Input((image_size, image_size, 3)),
                keras.layers.Conv2D(4, 3),
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(num_labels),
            ]
        )


def job():
    return tiny(model=Own(), slicing=())
"""


@pytest.mark.slow
def test_a_job_behind_a_proxy_with_keras_set_otherwise_in_a_folder_with_colons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras" / "keras.json").write_text('{"image_data_format": "channels_first"}')
    folder = tmp_path / "a::b"
    folder.mkdir()
    own = write_recipe(folder, OWN_NETWORK)
    job = LocalJob(own, folder, "--steps=10", "--set=cluster.num_workers=1")
    try:
        assert job.end(240) == 0, job.stderr
    finally:
        job.kill()
    assert "[progress] " in job.stderr, "the launcher has asked the chief"
    assert job.result()["global_steps"] >= 10 and "map_at_100" in job.result()
    assert list((job.run_dir / "checkpoints").glob("step-*"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a::b", "keras"]
    for name in ("first.keras", "second.keras"):  # in one process
        export(recipe.load(own), str(job.run_dir), str(tmp_path / name))
        assert (tmp_path / name).exists()


@pytest.mark.parametrize("relative", [True, False])
def test_a_folder_whose_name_is_not_utf8_is_refused_in_one_line(tmp_path: Path, relative: bool) -> None:
    odd = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(odd)
    where = [] if relative else [b"--run_dir=" + odd]
    command = [sys.executable, "-m", "downpour.launch.local", "--recipe=paper_shape", *where]
    done = subprocess.run(command, cwd=odd if relative else tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is not UTF-8; rename" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not os.listdir(odd)
