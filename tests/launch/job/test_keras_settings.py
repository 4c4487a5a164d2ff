"""Settings of Keras that a job cannot work with are refused in one line, before anything starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from downpour.launch.job import keras_settings
from tests.launch.jobs import LocalJob, write_recipe


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home for Keras."""
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    (tmp_path / "keras").mkdir()
    return tmp_path / "keras"


@pytest.mark.parametrize(
    "settings",
    [
        None,
        "{}",
        "no JSON",
        '{"backend": "tensorflow", "floatx": "float32"}',
        '{"image_data_format": "channels_first"}',
    ],
)
def test_what_a_job_can_work_with_is_accepted(home: Path, settings: str | None) -> None:
    if settings is not None:
        (home / "keras.json").write_text(settings)
    keras_settings.check()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "jax"}, """the backend 'jax' by "backend" in {file}; Downpour works with 'tensorflow'"""),
        ({"floatx": "float16"}, """'float16' by "floatx" in {file}; Downpour keeps parameters as float32"""),
        ([], "{file} is not a JSON object"),
    ],
)
def test_what_it_cannot_is_refused(home: Path, settings: object, message: str) -> None:
    (home / "keras.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError) as caught:
        keras_settings.check()
    assert message.format(file=home / "keras.json") in str(caught.value)


def test_the_environment_counts_before_the_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "keras.json").write_text('{"backend": "jax"}')
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    keras_settings.check()
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    with pytest.raises(ValueError, match="'torch' by the environment variable KERAS_BACKEND"):
        keras_settings.check()


def test_without_settings_of_its_own_the_users_home_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras" / "keras.json").write_text('{"backend": "jax"}')
    with pytest.raises(ValueError, match=r"\.keras/keras\.json"):
        keras_settings.check()


@pytest.mark.process
def test_no_process_starts(home: Path, tmp_path: Path) -> None:
    (home / "keras.json").write_text('{"backend": "jax"}')
    job = LocalJob(write_recipe(tmp_path), tmp_path)
    assert job.end() == 2
    assert "[local] error: Keras is set to the backend 'jax'" in job.the_error()
    assert not job.run_dir.exists()
    layout = [sys.executable, "-m", "downpour.launch.layout_table", f"--recipe={tmp_path / 'tiny.py'}"]
    done = subprocess.run(layout, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
