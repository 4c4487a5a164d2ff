"""Exports of a real job's checkpoint, loaded by Keras alone; and their use as another job's initial values."""

from __future__ import annotations

import os
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from downpour.launch import export
from downpour.launch.job import Job, recipe
from downpour.launch.job.build import build
from downpour.launch.roles import initial
from downpour.launch.roles.initial import Source
from downpour.model import weights
from downpour.proto.errors import LayoutMismatch
from downpour.worker.evaluator import evaluator
from downpour.worker.step.forward import infer
from downpour.worker.step.variables import initial_values
from tests.launch import jobs
from tests.ps.checkpoint import saving

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("export")]  # one training for all

MORE = """
from downpour.ps.policy.averages import Polyak


def job():
    schedule = Constant(0.05)
    return tiny(num_steps=12, checkpoint_every_steps=5, average=Polyak(0.5), weight_decay=1e-4, schedule=schedule)
"""

# What somebody does who has never heard of Downpour: arguments are the file, the images and where the logits go.
PLAIN_KERAS = """
import sys
sys.modules["downpour"] = None  # cannot be imported
import keras
import numpy as np
import tensorflow as tf
model = keras.saving.load_model(sys.argv[1])
logits = tf.function(lambda images: model(images, training=False))(np.load(sys.argv[2]))
np.save(sys.argv[3], logits.numpy())
assert not [name for name in sys.modules if name.startswith("downpour.")]
"""

EXPORT = "import sys; from downpour.launch.cli import main; sys.argv[1:1] = ['export']; main()"


class Trained:
    """A tiny job that has run: its recipe and its folder.

    Attributes:
        images: [8, 8, 8, 3] float32, for comparisons.
        logits: What the evaluator's model makes of them with the last checkpoint's parameters, and with their average.
    """

    def __init__(self, folder: Path) -> None:
        self.recipe = jobs.write_recipe(folder, MORE)
        job = jobs.LocalJob(self.recipe, folder, "--noevaluator", "--set=cluster.num_workers=1")
        try:
            assert job.end() == 0, job.stderr
        finally:
            job.kill()
        self.run_dir = job.run_dir
        self.images = np.random.default_rng(0).uniform(-1, 1, (8, 8, 8, 3)).astype(np.float32)
        self.logits = {average: self._logits(average) for average in (False, True)}
        (job.run_dir / "checkpoints" / "step-9999999999").mkdir()  # not complete: it must not be taken

    def job(self, *overrides: str) -> Job:
        return recipe.load(self.recipe, overrides)

    def _logits(self, average: bool) -> np.ndarray:
        job = self.job("cluster.num_workers=1")
        model, layout = build(job)
        scorer = evaluator.Evaluator(model, layout, job.data, job.batch_size, job.loss, average)
        scorer.score(str(max((self.run_dir / "checkpoints").iterdir())))
        result: np.ndarray = tf.function(lambda images: infer(model, images), autograph=False)(self.images).numpy()
        return result


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    yield Trained(tmp_path_factory.mktemp("trained"))


def predict(model: Any, images: np.ndarray) -> np.ndarray:
    result: np.ndarray = tf.function(lambda images: model(images, training=False))(images).numpy()
    return result


def test_keras_alone_loads_the_export_and_scores_the_same_numbers(
    trained: Trained, run_python: Any, tmp_path: Path
) -> None:
    """The export names another cluster and batch than trained the model: they do not matter."""
    out = tmp_path / "exports" / "tiny.keras"
    done: subprocess.CompletedProcess[str] = run_python(
        EXPORT, f"--checkpoint={trained.run_dir}", f"--recipe={trained.recipe}", f"--out={out}",
        "--set=cluster.num_ps=3", "--set=batch_size=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}\n"
    assert [path.name for path in out.parent.iterdir()] == ["tiny.keras"]
    np.save(tmp_path / "images.npy", trained.images)
    code = f"import os; os.chdir({str(tmp_path)!r})\n{PLAIN_KERAS}"
    alone = run_python(code, out, tmp_path / "images.npy", tmp_path / "logits.npy")
    assert alone.returncode == 0, alone.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), trained.logits[False])


def load(trained: Trained, out: Path) -> Any:
    """What Keras has for each kind of export."""
    if out.is_dir():
        return keras.layers.TFSMLayer(str(out), call_endpoint="serve")
    if not out.name.endswith(".weights.h5"):
        return keras.saving.load_model(out)
    model, _ = build(trained.job())
    model.load_weights(out)
    return model


def put_earlier_export(out: Path) -> None:
    """Something small in its place, which counts as an export."""
    if out.suffix == ".keras":
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("config.json", "earlier")
    elif out.suffix == ".h5":
        with h5py.File(out, "w") as file:
            file.create_group("layers")
    else:
        out.mkdir()
        (out / "saved_model.pb").write_bytes(b"earlier")


def content(out: Path) -> bytes:
    return (out / "saved_model.pb" if out.is_dir() else out).read_bytes()


@pytest.mark.parametrize(
    ("name", "average"), [("a.keras", True), ("a.weights.h5", False), ("a.h5", False), ("v1.2/", False)]
)
def test_every_kind_of_export_scores_the_same_numbers_and_replaces_only_when_told(
    trained: Trained, tmp_path: Path, name: str, average: bool
) -> None:
    put_earlier_export(tmp_path / name)
    out = f"{tmp_path}/{name}"
    with pytest.raises(ValueError, match="is already there; give another, or add --overwrite"):
        export.export(trained.job(), str(trained.run_dir), out, average)
    export.export(trained.job(), str(trained.run_dir), out, average, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [name.rstrip("/")]
    got = predict(load(trained, tmp_path / name), trained.images)
    np.testing.assert_array_equal(got, trained.logits[average])


def test_parameters_and_average_differ(trained: Trained) -> None:
    assert np.abs(trained.logits[False] - trained.logits[True]).max() > 1e-4


def test_another_number_of_labels_begins_with_the_exported_backbone(trained: Trained, tmp_path: Path) -> None:
    """From the export and from the checkpoint alike; the new head is fresh."""
    out = tmp_path / "tiny.keras"
    export.export(trained.job(), str(trained.run_dir), str(out))
    source = {variable.path: variable.numpy() for variable in keras.saving.load_model(out).variables}
    model, layout = build(trained.job("data.num_labels=9"))
    fresh = initial_values(model)
    newest = max((trained.run_dir / "checkpoints").glob("step-00*"))
    for path in (out, trained.run_dir, newest):
        got = initial.values(model, layout, Source(str(path), ("stem_*",)))
        for variable, value, before in zip(layout.variables, got, fresh, strict=True):
            is_head = variable.name.startswith("head/")
            np.testing.assert_array_equal(value, before if is_head else source[variable.name], variable.name)


@pytest.fixture(scope="module")
def second(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job with other labels and no average, whose backbone begins as the first and hardly moves."""
    folder = tmp_path_factory.mktemp("second")
    arguments = ["--noevaluator", "--set=cluster.num_workers=1", "--set=data.num_labels=9", "--steps=2"]
    arguments += ["--set=schedule.learning_rate=1e-30", f"--init_from={trained.run_dir}", "--init_only=stem_*"]
    job = jobs.LocalJob(jobs.write_recipe(folder), folder, *arguments)
    try:
        assert job.end() == 0, job.stderr
    finally:
        job.kill()
    return job.run_dir


@pytest.mark.slow  # README.md has such a job, and the test above has the values
def test_a_job_begins_with_the_values_of_a_checkpoint(trained: Trained, second: Path) -> None:
    before, after = (initial.load_checkpoint(str(folder)) for folder in (trained.run_dir, second))
    pairs = zip(before.layout.variables, before.layout.gather(before.parameters()), strict=True)
    expected = {variable.name: value for variable, value in pairs}
    compared = 0
    for variable, value in zip(after.layout.variables, after.layout.gather(after.parameters()), strict=True):
        if variable.is_trained and not variable.name.startswith("head/"):
            np.testing.assert_array_equal(value, expected[variable.name], variable.name)
            compared += 1
    assert compared == 3
    assert f"5 of 7 variables begin as in {trained.run_dir}" in (second / "logs" / "chief.log").read_text()


def test_a_missing_average_is_refused(trained: Trained, tmp_path: Path) -> None:
    job, folder = trained.job(), tmp_path / "without"
    model, layout = build(job)
    saving.save(folder, layout, [{"parameters": vector} for vector in layout.scatter(initial_values(model))])
    with pytest.raises(ValueError, match=r"--average: .*slot.average.*; without --average the parameters themselves"):
        export.export(job, str(folder), str(tmp_path / "a.keras"), average=True)
    assert [path.name for path in tmp_path.iterdir()] == ["without"]


def test_a_folder_that_is_no_export_is_never_replaced(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    with pytest.raises(ValueError, match="is already there and is no SavedModel, so it is not replaced"):
        export.export(trained.job(), str(trained.run_dir), str(tmp_path / "precious"), overwrite=True)
    assert (tmp_path / "precious" / "file").exists()


@pytest.mark.parametrize("name", ["notes.keras", "data.h5", "data.weights.h5"])
def test_a_file_that_is_no_export_is_never_replaced(trained: Trained, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    if name == "data.h5":
        with h5py.File(out, "w") as file:
            file.create_dataset("precious", data=[1, 2, 3])
    else:
        out.write_bytes(b"precious")
    before = out.read_bytes()
    with pytest.raises(ValueError, match=r"is already there and is no \S+ file of Keras, so it is not replaced"):
        export.export(trained.job(), str(trained.run_dir), str(out), overwrite=True)
    assert out.read_bytes() == before


@pytest.mark.parametrize("name", ["a.keras", "a.weights.h5", "a.h5", "saved"])
def test_an_export_may_replace_one_of_its_own(trained: Trained, tmp_path: Path, name: str) -> None:
    for _ in range(2):
        export.export(trained.job(), str(trained.run_dir), str(tmp_path / name), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_earlier_saved_model_keeps_its_name_if_the_new_one_cannot_be_renamed(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, failures = tmp_path / "saved", []
    put_earlier_export(out)

    def fail(*paths: Path) -> None:
        failures.append(paths)
        raise OSError("no rename")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ValueError, match="no rename; give another --out"):
        export.export(trained.job(), str(trained.run_dir), str(out), overwrite=True)
    assert failures
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    assert (out / "saved_model.pb").read_bytes() == b"earlier"


@pytest.mark.parametrize("name", ["a.keras", "saved"])
def test_an_export_that_fails_leaves_nothing_and_keeps_what_was_there(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    out, failures = tmp_path / name, []
    put_earlier_export(out)
    before = content(out)

    def fail(model: keras.Model, path: Path, ending: str) -> None:
        put_earlier_export(path)
        failures.append(path)
        raise OSError("no space left")

    monkeypatch.setattr(weights, "save", fail)
    with pytest.raises(ValueError, match=rf"cannot write --out={out}: no space left; give another --out"):
        export.export(trained.job(), str(trained.run_dir), str(out), overwrite=True)
    assert failures and failures != [out]
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert content(out) == before


def test_a_checkpoint_of_another_network_is_refused(trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "a.keras"
    with pytest.raises(LayoutMismatch, match=r"stem_conv/kernel is \[3, 3, 3, 4\] here, \[3, 3, 3, 2\] there"):
        export.export(trained.job("model.width=4"), str(trained.run_dir), str(out))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "export lacks --checkpoint and --out; give --checkpoint=FOLDER and --out=FILE"),
        (["--checkpoint=.", "--out=a.onnx"], "a.onnx has the ending '.onnx'; accepted are .keras, .weights.h5, .h5, "),
        (["--checkpoint=.", "--out=a.keras"], ". is not a complete checkpoint and holds none; give a checkpoint's fol"),
        (["--checkpoint=.", "--out=a.keras", "--average=7"], "flag --average=7"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(
    run_python: Any, tmp_path: Path, arguments: list[str], message: str
) -> None:
    code = f"import os; os.chdir({str(tmp_path)!r})\n{EXPORT}"
    done = run_python(code, "--recipe=paper_shape", *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--init_from=no.keras"], "--init_from=no.keras is missing; give a .keras, .weights.h5 or .h5 file"),
        (["--init_only=head/*"], "--init_only=head/* without --init_from"),
    ],
)
def test_a_launcher_refuses_a_wrong_source_before_any_process_starts(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    job = jobs.LocalJob(jobs.write_recipe(tmp_path), tmp_path, *arguments)
    assert job.end() == 2
    assert message in job.the_error()
    assert job.stderr == job.the_error() + "\n"
    assert not job.run_dir.exists()
