from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest

from downpour.launch.job import recipe


@pytest.mark.parametrize("name", recipe.names())
def test_every_recipe_loads_and_has_a_runbook(name):
    assert recipe.load(name).name == name
    module = __import__(f"downpour.launch.recipes.{name}", fromlist=["job"])
    for word in ("1707.02968", "--recipe=", "Expected", "private"):
        assert word in module.__doc__, word


def test_recipes_do_not_import_tensorflow(run_python):
    code = """
import sys
from downpour.launch.local import run as local
from downpour.launch.job import recipe
for name in recipe.names():
    recipe.load(name)
assert not {"tensorflow", "keras"} & set(sys.modules), "imported"
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_jft300m_is_the_published_configuration():
    job = recipe.load("jft300m")
    assert (job.model.depth, job.data.resize, job.data.crop, job.data.mirror) == (101, 340, 299, True)
    assert job.data.num_labels == 18_291
    assert (job.rule.momentum, job.weight_decay, job.batch_size, job.num_steps) == (0.9, 1e-4, 32, 36_000_000)
    assert (job.cluster.num_ps, job.cluster.num_workers, job.slicing[0].num_slices) == (17, 50, 50)
    assert job.schedule.rate(0) == job.schedule.rate(2_999_999) == 1e-3
    assert math.isclose(job.schedule.rate(35_999_999), 1e-3 * 0.9**11)


def test_overrides_reach_the_job():
    job = recipe.load("quickstart", ["cluster.num_ps=11", "slicing.0.num_slices=20", "data.folder=/pictures"])
    assert (job.cluster.num_ps, job.slicing[0].num_slices, job.data.folder) == (11, 20, Path("/pictures"))


@pytest.mark.parametrize("override", ["cluster.num_ps=0", "cluster.num_workers=0", "cluster.nmu_ps=3"])
def test_refused_overrides_name_the_key(override):
    with pytest.raises(ValueError, match=r"cluster\.n"):
        recipe.load("quickstart", [override])


@pytest.mark.parametrize("name", ["quikstart", "missing.py", ""])
def test_unknown_recipe_lists_the_known_ones(name):
    with pytest.raises(ValueError, match="jft300m_from_imagenet, open_images, paper_shape, quickstart, or give"):
        recipe.load(name)


def test_recipe_from_a_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from downpour.launch.recipes import quickstart\n\n\ndef job():\n    return quickstart.job()\n")
    assert recipe.load(path, ["batch_size=3"]).batch_size == 3


@pytest.mark.parametrize(
    ("short", "path", "name"),
    [
        ("ps.rules", "ps.policy.rules", "RMSProp"),
        ("ps.schedules", "ps.policy.schedules", "Constant"),
        ("ps.pace", "ps.policy.pace", "Bounded"),
        ("ps.staleness", "ps.policy.staleness", "Compensate"),
        ("ps.averages", "ps.policy.averages", "Polyak"),
        ("ps.layout", "ps.layout.cuts", "Slicing"),
        ("model.data", "model.data.images", "ImageRecords"),
        ("model.labels", "model.vision.labels", "LABELS_FILE"),
        ("model.losses", "model.vision.losses", "per_label_logistic"),
        ("model.records", "model.vision.records", "write_records"),
        ("model.resnet", "model.vision.resnet", "ResNet"),
        ("worker.clip", "worker.step.clip", "Clip"),
        ("launch.job", "launch.job.job", "Job"),
    ],
)
def test_recipes_use_short_names(short, path, name):
    """As they were before the folders had rooms."""
    there = importlib.import_module(f"downpour.{path}")
    assert getattr(importlib.import_module(f"downpour.{short}"), name) is getattr(there, name)


@pytest.mark.parametrize(
    ("content", "message"), [("x = 1", r"no function job\(\)"), ("def job():\n    return 3", "returned int")]
)
def test_file_that_is_no_recipe_is_refused(tmp_path, content, message):
    path = tmp_path / "mine.py"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        recipe.load(path)


EPOCHS = """
from dataclasses import replace

import numpy as np

from downpour.launch.recipes import quickstart
from downpour.model.data import Examples, Stream

rows = np.zeros((100, 2), np.float32)


def job():
    return replace(quickstart.job(), data=Examples((rows, rows)), batch_size=10)
"""


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (["epochs=3"], 30),
        (["epochs=3", "batch_size=20"], 15),
        (["epochs=0.25"], 3),
        (["epochs=2", "cadence=Accumulate(num_batches=4)"], 5),
        (["epochs=3", "pace=Sync(num_gradients=2,backups=1)", "exchange.overlap=false", "cluster.num_workers=3"], 10),
    ],
)
def test_epochs_are_steps_by_the_length_of_the_data(tmp_path, overrides, steps):
    path = tmp_path / "mine.py"
    path.write_text(EPOCHS)
    assert recipe.load(path, overrides).num_steps == steps


def test_epochs_of_data_without_a_length_are_refused(tmp_path):
    path = tmp_path / "mine.py"
    stream = "data=Stream(lambda worker, workers: [(rows[0], rows[0])] * 20)"
    path.write_text(EPOCHS.replace("data=Examples((rows, rows))", stream))
    with pytest.raises(ValueError, match="epochs is 3, and an epoch of this stream has no length"):
        recipe.load(path, ["epochs=3"])
    with pytest.raises(ValueError, match="unknown key 'epoch'; did you mean epochs="):
        recipe.load(path, ["epoch=3"])
