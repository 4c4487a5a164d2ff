"""`downpour features` and `downpour probe`: from records and from plain pictures, from checkpoints and Keras files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from downpour.launch import features
from downpour.launch.features import FeaturesConfig
from downpour.launch.job import Job, recipe
from downpour.launch.job.build import build
from downpour.model import weights
from downpour.model.vision import feature_files
from downpour.ps.layout import lay_out
from downpour.worker.step.variables import initial_values, variables_of
from tests import pictures
from tests.ps.checkpoint.saving import save

CLASSES = "zero one two three four five six seven eight nine"
SMALL = (
    "model.depth=18",
    "model.width=2",
    "data.num_labels=10",
    "data.resize=32",
    "data.crop=28",
    "slicing.0.num_slices=2",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as records and as plain files, and a network: a run's checkpoint and a file of Keras."""
    place = tmp_path_factory.mktemp("features")
    pixels, classes = pictures.digits()
    pictures.write(place / "records", pixels, classes, range(30), range(30, 40), CLASSES)
    for split, numbers in (("train", range(30)), ("test", range(30, 40))):
        for i in numbers:
            of_class = place / "plain" / split / ("even" if classes[i] % 2 == 0 else "odd") / str(classes[i])
            of_class.mkdir(parents=True, exist_ok=True)
            (of_class / f"{i}.png").write_bytes(pictures.png(pixels[i]))
    model = trained_on(job(place))
    layout = lay_out(variables_of(model), 2)
    vectors = [{"parameters": vector} for vector in layout.scatter(initial_values(model))]
    save(f"{place}/run/checkpoints/step-0000000020", layout, vectors, step=20)
    weights.save(model, place / "net.keras", weights.KERAS)
    (place / "empty").mkdir()
    (place / "no_labels").mkdir()
    (place / "no_labels" / "train-0.tfrecord").touch()
    return place


def job(place: Path) -> Job:
    return recipe.load("quickstart", [*SMALL, f"data.folder={place / 'records'}"])


def trained_on(of: Job) -> keras.Model:
    """The job's network, with moving averages as after some training."""
    model, _ = build(of)
    keras.utils.set_random_seed(5)
    for variable in model.variables:
        variable.assign_add(keras.random.uniform(variable.shape, 0, 0.1))
    return model


def expected(place: Path, layer: str = "features") -> np.ndarray:
    """What the evaluator would compute up to a layer, of all pictures in order."""
    model = trained_on(job(place))
    part = keras.Model(model.input, model.get_layer(layer).output)
    pixels, _ = pictures.digits()
    images = np.repeat(pixels[:40, 2:30, 2:30, None].astype(np.float32) / 127.5 - 1, 3, axis=3)
    return part.predict(images, verbose=0)


@pytest.mark.slow
def test_features_of_records_are_those_of_the_checkpoint(folder: Path) -> None:
    out = folder / "records.parquet"
    said = features.run(FeaturesConfig(folder / "records", str(folder / "run"), out, job(folder), batch_size=16))
    assert said == f"wrote 16 features of 40 pictures, output of features, to {out}; 0 skipped"
    found = feature_files.read(out)
    np.testing.assert_allclose(found.values, expected(folder), rtol=1e-4, atol=1e-4)
    assert found.names == [*(f"train-{i}" for i in range(30)), *(f"heldout-{i}" for i in range(30, 40))]
    assert found.splits == ["train"] * 30 + ["heldout"] * 10
    assert found.labels == [(int(c),) for c in pictures.digits()[1][:40]]
    assert found.about.tree.names == tuple(CLASSES.split())


@pytest.mark.slow
def test_the_head_of_the_checkpoint_does_not_matter(folder: Path) -> None:
    other = recipe.load("quickstart", [*SMALL, "data.num_labels=7", f"data.folder={folder / 'records'}"])
    out = folder / "other_head.npz"
    features.run(FeaturesConfig(folder / "records", str(folder / "run"), out, other))
    np.testing.assert_allclose(feature_files.read(out).values, expected(folder), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_maps_are_written_whole_or_averaged(folder: Path) -> None:
    """conv4 is the third stage of blocks: 4 x 4 positions of 8 channels here."""
    maps = expected(folder, "stage3_block2_relu")
    for pool, values in ((False, maps), (True, maps.mean(axis=(1, 2)))):
        out = folder / f"conv4-{pool}.npz"
        config = FeaturesConfig(folder / "records", str(folder / "run"), out, job(folder), "conv4", pool)
        assert "output of stage3_block2_relu" in features.run(config)
        found = feature_files.read(out)
        assert found.about.shape == values.shape[1:]
        np.testing.assert_allclose(found.values, values.reshape(40, -1), rtol=1e-4, atol=1e-4)


def test_plain_pictures_and_a_keras_file_need_no_recipe(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Folders are a tree of labels, those at the top are splits; what cannot be read is named."""
    broken = folder / "plain" / "train" / "odd" / "broken.png"
    broken.write_bytes(b"no picture")
    out = folder / "plain.parquet"
    said = features.run(FeaturesConfig(folder / "plain", str(folder / "net.keras"), out))
    broken.unlink()
    assert said == f"wrote 16 features of 40 pictures, output of features, to {out}; 1 skipped"
    assert "broken.png" in caplog.text
    found = feature_files.read(out)
    tree = found.about.tree
    assert {"even", "odd", "even/0", "odd/9"} <= set(tree.names) and len(tree) == 12
    assert found.splits == ["train"] * 30 + ["heldout"] * 10
    for name, labels in zip(found.names, found.labels, strict=True):
        assert tree.names[labels[0]] == Path(name).parent.relative_to(Path(name).parts[0]).as_posix()
        assert len(tree.with_ancestors(labels)) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "nowhere"}, "data folder .*nowhere is missing; give a prepared folder, or one of pictures"),
        ({"data": "empty"}, "empty has no folder with pictures; folders are the labels"),
        ({"data": "no_labels"}, "labels.json is missing; prepare the folder again"),
        ({"out": "f.csv"}, "ends in '.csv'; accepted are .parquet and .npz"),
        ({"checkpoint": "nowhere.keras"}, "nowhere.keras is missing; give a .keras"),
        ({"layer": "conv9"}, "--layer=conv9: the model 'resnet18' has no such layer; give pooled, conv2 to conv5"),
    ],
)
def test_what_cannot_be_used_is_refused_and_nothing_is_written(
    folder: Path, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    given = {"data": "records", "checkpoint": "net.keras", "layer": "pooled", "out": "f.npz"} | changes
    config = FeaturesConfig(
        folder / given["data"], str(folder / given["checkpoint"]), tmp_path / given["out"], layer=given["layer"]
    )
    with pytest.raises(ValueError, match=message):
        features.run(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_checkpoint_of_another_network_is_refused_with_the_first_difference(folder: Path, tmp_path: Path) -> None:
    other = recipe.load("quickstart", [*SMALL, "model.width=3", f"data.folder={folder / 'records'}"])
    with pytest.raises(
        ValueError, match=r"of another network than the recipe's, .*: stem_conv/kernel is \[3, 3, 3, 3\]"
    ):
        features.run(FeaturesConfig(folder / "records", str(folder / "run"), tmp_path / "f.npz", other))
    with pytest.raises(ValueError, match=r"has no network of its own; give --recipe, or a .keras or .h5 file"):
        FeaturesConfig(folder / "records", str(folder / "run"), tmp_path / "f.npz")


@pytest.mark.process
@pytest.mark.slow
def test_both_commands(folder: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "downpour.launch.cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)

    out = tmp_path / "f.npz"
    done = run("features", folder / "records", f"--checkpoint={folder / 'net.keras'}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("0 skipped\n")
    done = run("probe", out)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert (result["num_train"], result["num_heldout"], result["num_labels"]) == (30, 10, 10)
    assert 0 <= result["scores"]["top_1"] <= result["scores"]["top_5"] <= 1
    for arguments, message in (
        (("features", folder / "records"), "features lacks --checkpoint and --out; give FOLDER --checkpoint=RUN"),
        (("probe",), "no features; give the file that downpour features has written"),
    ):
        done = run(*arguments)
        assert done.returncode == 2 and message in done.stderr
