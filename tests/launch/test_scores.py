"""Scores of image records through the launcher; the best checkpoint is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from downpour.launch.local import RunConfig, start
from downpour.model.vision.labels import LABELS_FILE
from downpour.model.vision.records import write_records
from tests.model.data.test_data import TREE, numbered_image

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(900)]

RECIPE = '''
from pathlib import Path

from downpour.launch.job import Cluster, Job
from downpour.model.data import ImageRecords
from downpour.model.losses import per_label_logistic, softmax_cross_entropy
from downpour.ps.rules import Momentum, SGD
from downpour.ps.schedules import Constant
from downpour.worker.chief.callbacks import KeepBest

HERE = Path(__file__).parent
EXCLUSIVE = ImageRecords(HERE / "train", num_labels=5, resize=9, crop=8, exclusive=True)


class Network:
    """A linear model, compiled or not."""

    def __init__(self, compiled):
        self.compiled = compiled

    def build(self, image_size, num_labels):
        import keras

        from downpour.model.metrics import TopKAccuracy

        layers = [keras.Input((image_size, image_size, 3)), keras.layers.Flatten(), keras.layers.Dense(num_labels)]
        model = keras.Sequential(layers, name="linear")
        if self.compiled:
            model.compile(
                keras.optimizers.SGD(0.01),
                loss=keras.losses.CategoricalCrossentropy(from_logits=True),
                metrics=[TopKAccuracy(1), keras.metrics.TopKCategoricalAccuracy(2, name="top_2_accuracy")],
            )
        return model


def made(monitor, loss, data, sets={}, compiled=False):
    return Job(
        name="scored", model=Network(compiled), data=data, loss=loss, num_steps=40, batch_size=8,
        rule=SGD() if compiled else Momentum(0.9), schedule=Constant(0.01), validation_sets=sets,
        cluster=Cluster(num_ps=2, num_workers=1), checkpoint_every_steps=10, keep_checkpoints=1,
        callbacks=(KeepBest(monitor=monitor),),
    )


def exclusive():
    return made("top_1_accuracy", softmax_cross_entropy, EXCLUSIVE)


def compiled():
    return made("val_top_1_accuracy", None, EXCLUSIVE, compiled=True)


def weighted():
    data = ImageRecords(HERE / "train", num_labels=5, resize=9, crop=8, class_weights=HERE / "weights.json")
    dense = ImageRecords(HERE / "dense", num_labels=5, resize=9, crop=8)
    return made("map_at_100", per_label_logistic, data, {"dense": dense})
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set, one that only is for scoring with two annotated classes, and class weights."""
    for name, first in (("train", 0), ("dense", 2000)):
        data = tmp_path / name
        data.mkdir()
        TREE.save(data / LABELS_FILE)
        write_records(data / "heldout-00000.tfrecord", [numbered_image(first + 1000 + i) for i in range(20)])
    write_records(tmp_path / "train" / "train-00000.tfrecord", [numbered_image(i) for i in range(64)])
    (tmp_path / "dense" / "annotated.json").write_text(json.dumps(["apple", "hammer"]))
    (tmp_path / "weights.json").write_text(json.dumps({"apple": 2, "pear": 1}))
    return tmp_path


@pytest.mark.parametrize(
    ("job", "monitor", "names"),
    [
        ("exclusive", "top_1_accuracy", {"top_1_accuracy", "top_5_accuracy"}),
        ("compiled", "val_top_1_accuracy", {"val_loss", "val_top_1_accuracy", "val_top_2_accuracy"}),
        ("weighted", "map_at_100", {"map_at_100", "val_dense_map_at_100", "val_dense_map_at_100_unweighted"}),
    ],
)
def test_checkpoints_are_scored_and_the_best_is_kept(folder: Path, job: str, monitor: str, names: set[str]) -> None:
    recipe = folder / "recipe.py"
    recipe.write_text(f"{RECIPE}\n\njob = {job}\n")
    summary: dict[str, Any] = start(RunConfig(recipe, run_dir=folder / "run", arena_parent=folder)).wait(800)
    lines = [json.loads(line) for line in (folder / "run" / "history.jsonl").read_text().splitlines()]
    scores = [line for line in lines if line["kind"] == "score"]
    assert scores and all(names <= line.keys() for line in scores)
    assert all(0 <= line[name] <= 1 for line in scores for name in names - {"val_loss"})
    best = max(scores, key=lambda line: float(line[monitor]))
    assert summary["best"][monitor]["score"] == best[monitor]
    kept = {path.name for path in (folder / "run" / "checkpoints").iterdir()}
    assert any(int(name.removeprefix("step-")) == summary["best"][monitor]["step"] for name in kept), kept
