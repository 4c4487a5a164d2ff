"""A mistake in a recipe is one error with exit code 2 before any role starts, with the line of the user's own code."""

from __future__ import annotations

from pathlib import Path

import pytest

from downpour.launch.job import mistakes, recipe
from downpour.launch.local import preflight
from tests.launch import slips
from tests.launch.slips import SLIPS, THROUGH_THE_LAUNCHER, Slip

_AT_ONCE = ("a wrong name in the loss", "a rule by name")  # one that the preflight finds, and one found before it
_WITHIN_S = 60.0  # on a busy machine; alone, under 20


def through_the_launcher(name: str) -> object:
    slow = () if name in _AT_ONCE else (pytest.mark.slow,)
    return pytest.param(SLIPS[name], marks=[pytest.mark.process, *slow], id=name)


@pytest.mark.parametrize("slip", [through_the_launcher(name) for name in THROUGH_THE_LAUNCHER])
def test_the_launcher_ends_with_one_error_and_leaves_nothing(
    slip: Slip, tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    job, seconds = slips.run(slip, tmp_path)
    record_property("seconds", round(seconds, 1))
    assert job.process.returncode == 2, job.stderr
    assert slip.message in job.the_error()
    assert not slip.names_line or job.the_error().endswith(f"mine.py:{slip.line()})")
    assert seconds < _WITHIN_S
    assert not job.left_behind()
    if job.run_dir.exists():
        assert {path.name for path in job.run_dir.iterdir()} == {"logs", "launcher.lock", "failure.txt"}
        assert {path.name for path in (job.run_dir / "logs").iterdir()} == {"kernels.log", "preflight.log"}


@pytest.mark.parametrize("slip", list(SLIPS.values()), ids=list(SLIPS))
def test_a_job_with_a_mistake_is_refused(slip: Slip, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(slip.recipe())
    with pytest.raises(ValueError) as refused:
        preflight.check(recipe.load(path), evaluator=True)
    message = mistakes.describe(refused.value)
    assert slip.message in message
    assert len(message) < 700
    assert not slip.names_line or message.endswith(f"mine.py:{slip.line()})"), message


@pytest.mark.parametrize("evaluator", [True, False])
def test_a_job_without_one_is_not(tmp_path: Path, evaluator: bool) -> None:
    path = tmp_path / "mine.py"
    path.write_text(Slip("def job():\n    return tiny()\n", "").recipe())
    model, layout = preflight.check(recipe.load(path), evaluator=evaluator)
    assert [variable.path for variable in model.variables] == ["head/kernel", "head/bias"]
    assert layout.num_shards == 2


def test_labels_of_a_regression_train_without_an_evaluator(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(SLIPS["a regression"].recipe())
    preflight.check(recipe.load(path), evaluator=False)


@pytest.mark.parametrize("evaluator", [True, False])
def test_a_subclass_that_is_not_built_and_takes_no_training_argument_is_accepted(
    tmp_path: Path, evaluator: bool
) -> None:
    path = tmp_path / "mine.py"
    code = """
class Mine(keras.Model):
    def __init__(self, labels):
        super().__init__()
        self.head = keras.layers.Dense(labels, name="head")

    def call(self, images):
        return self.head(keras.ops.reshape(images, (-1, 8 * 8 * 3)))


def job():
    return tiny(model=Net(lambda size, labels: Mine(labels)))
"""
    path.write_text(Slip(code, "").recipe())
    model, _ = preflight.check(recipe.load(path), evaluator=evaluator)
    assert model.built
