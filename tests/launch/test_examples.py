"""The recipes in docs/examples: each is built and trains a batch; as a whole job, each trains and is scored."""

from __future__ import annotations

import json
import math
import runpy
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras.src.utils.naming import reset_uids

from downpour.launch.job import recipe
from downpour.launch.local import RunConfig, start
from tests.examples import EXAMPLES, FOLDER, recipe_of, verdict
from tests.parity.test_parity import through_shards

EVERY = pytest.mark.parametrize("name", EXAMPLES)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A current folder in which an example may draw its pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("examples"))
        yield


def test_every_recipe_is_an_example_that_is_compared() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == set(EXAMPLES)
    page = FOLDER.with_suffix(".md").read_text()
    for name, example in EXAMPLES.items():
        runbook = runpy.run_path(str(recipe_of(name)))["__doc__"]
        assert f'"{example.title}" of keras.io' in " ".join(runbook.split())
        assert f"--recipe=docs/examples/{name}.py" in runbook and f"(examples/{name}.py)" in page


def test_loading_an_example_imports_no_keras(run_python: Any) -> None:
    code = f"""
import sys
from pathlib import Path
from downpour.launch.job import recipe
for path in Path({str(FOLDER)!r}).glob("*.py"):
    assert recipe.load(path).name == path.stem
assert not {{"tensorflow", "keras", "pandas", "sklearn"}} & set(sys.modules), "imported"
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr


QUICK = ("collaborative_filtering", "structured_data", "text_transformer", "variational_autoencoder")


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[] if one in QUICK else pytest.mark.slow) for one in EXAMPLES]
)
def test_an_example_trains_a_batch(name: str, elsewhere: None) -> None:
    job = recipe.load(recipe_of(name), ["num_steps=1", "batch_size=4"])
    assert job.data.num_records == runpy.run_path(str(recipe_of(name)))["NUM_TRAIN"]
    (loss,), values = through_shards(job)
    assert math.isfinite(loss)
    reset_uids()
    keras.utils.set_random_seed(job.seed)
    before = {variable.path: variable.numpy() for variable in job.model().trainable_variables}
    assert before.keys() <= values.keys()
    assert any(not np.array_equal(before[path], values[path]) for path in before)


@pytest.mark.slow
@pytest.mark.process
@EVERY
def test_an_example_trains_as_a_job(name: str, elsewhere: None, tmp_path: Path) -> None:
    metric = EXAMPLES[name].metric
    with start(RunConfig(recipe_of(name), overrides=("num_steps=6", "batch_size=8"), run_dir=tmp_path / "run")) as run:
        summary = run.wait(240)
    assert summary["global_steps"] >= 6 and summary["num_ps"] == 3
    rows = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert math.isfinite([row for row in rows if row["kind"] == "score"][-1][f"val_{metric}"])


@pytest.mark.parametrize(
    ("metric", "keras", "downpour", "expected"),
    [
        ("accuracy", [0.8, 0.9], [0.8, 0.82], "within"),
        ("accuracy", [0.8, 0.9], [0.95, 0.95], "within"),
        ("accuracy", [0.8, 0.9], [0.7, 0.8], "overlap"),
        ("accuracy", [0.8, 0.9], [0.7, 0.79], "worse"),
        ("loss", [0.8, 0.9], [0.85, 0.93], "within"),
        ("loss", [0.8, 0.9], [0.89, 0.95], "overlap"),
        ("loss", [0.8, 0.9], [0.91, 0.92], "worse"),
    ],
)
def test_a_mean_that_is_worse_than_the_worst_seed_is_said_to_be(
    metric: str, keras: list[float], downpour: list[float], expected: str
) -> None:
    example = next(example for example in EXAMPLES.values() if example.metric == metric)
    assert verdict(example, keras, downpour) == expected
