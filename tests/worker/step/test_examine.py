"""What a model's training call does to its variables: kept, or refused by the variable's name before training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from downpour.launch.export import export
from downpour.launch.job import Cluster, Exchange, Job
from downpour.launch.job.build import build
from downpour.launch.roles import initial
from downpour.model.data import GeneratedImages
from downpour.model.vision.losses import per_label_logistic
from downpour.ps.layout import FACTORED, FROZEN, STATISTIC, TRAINED, Layout, Slicing
from downpour.ps.policy.rules import SGD
from downpour.ps.policy.schedules import Constant
from tests.ps.checkpoint.saving import save
from tests.worker.step.exactness import Batch, downpour, layout_of, plain_keras, squares

BATCH, WIDTH = 4, 8


class Centred(layers.Layer):
    """Subtracts a moving mean that it keeps itself."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.norm = self.add_weight(shape=(), trainable=False, name="unassigned")

    def build(self, shape: Any) -> None:
        self.mean = self.add_weight(shape=(shape[-1],), initializer="zeros", trainable=False, name="mean")

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            self.mean.assign(0.9 * self.mean + 0.1 * ops.mean(x, 0))
        return x - self.mean


def centred() -> keras.Model:
    images = keras.Input((WIDTH,))
    return keras.Model(images, layers.Dense(3, name="dense")(Centred(name="centred")(images)))


class Halving(layers.Wrapper):
    """Assigns the kernel of its layer."""

    def call(self, x: Any) -> Any:
        self.layer.kernel.assign(self.layer.kernel / 2)
        return self.layer(x)


def halving() -> keras.Model:
    images = keras.Input((WIDTH,))
    return keras.Model(images, Halving(layers.Dense(3, name="dense"), name="halving")(images))


class Initialised(layers.Layer):
    """Sets its scale from the first batch."""

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")
        self.done = self.add_weight(shape=(), dtype="bool", initializer="zeros", trainable=False, name="done")

    def call(self, x: Any) -> Any:
        self.scale.assign(ops.where(self.done, self.scale, 1 / ops.std(x, 0)))
        self.done.assign(True)
        return x * self.scale


def initialised() -> keras.Model:
    images = keras.Input((WIDTH,))
    return keras.Model(images, layers.Dense(3, name="dense")(Initialised(name="initialised")(images)))


def several(num: int = 3) -> list[Batch]:
    rng = np.random.default_rng(0)
    return [
        (rng.normal(1, 1, (BATCH, WIDTH)).astype(np.float32), rng.normal(size=(BATCH, 3)).astype(np.float32))
        for _ in range(num)
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            halving,
            r"halving/dense/kernel is trained, and a training call assigns it "
            r"\(Dense 'dense' in Halving 'halving'\).*take that layer out",
        ),
        (initialised, r"initialised/scale is trained, .*\(Initialised 'initialised'\)"),
        (centred, r"centred/mean is not trained, and a training call assigns it.*`statistics` .*`local` .*`frozen`"),
    ],
)
def test_an_assignment_that_would_be_lost_is_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layout_of(make(), squares, several()[0])


def test_a_declared_statistic_is_that_of_plain_keras() -> None:
    trained = []
    for train in (downpour, plain_keras):
        keras.utils.set_random_seed(3)
        model = centred()
        layout = layout_of(model, squares, several()[0], statistics=("*/mean",))
        trained.append(train(model, squares, several(), 0.05, layout))
    assert {v.name: v.kind for v in layout.variables if not v.is_trained} == {
        "centred/unassigned": FROZEN,
        "centred/mean": STATISTIC,
    }
    np.testing.assert_allclose(trained[0].losses, trained[1].losses, rtol=1e-5)
    for a, b in zip(trained[0].values, trained[1].values, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_declared_local_variable_stays_in_the_worker_from_step_to_step() -> None:
    keras.utils.set_random_seed(3)
    model = centred()
    layout = layout_of(model, squares, several()[0], local=("*/mean",))
    assert "centred/mean" not in [v.name for v in layout.variables]
    mine = downpour(model, squares, several(), 0.05, layout)
    assert not model.get_layer("centred").mean.numpy().any(), "the model's own variable is left as it is"
    keras.utils.set_random_seed(3)
    again = centred()
    assert mine.losses == pytest.approx(plain_keras(again, squares, several(), 0.05, layout).losses, rel=1e-5)


def test_a_declared_frozen_variable_stays_as_it_is() -> None:
    model = centred()
    layout = layout_of(model, squares, several()[0], frozen=("*/mean",))
    values = downpour(model, squares, several(), 0.05, layout).values
    [mean] = [value for v, value in zip(layout.variables, values, strict=True) if v.name == "centred/mean"]
    assert not mean.any()


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ({"statistics": ("*/maen",)}, r"statistics: pattern '\*/maen' matches no variable; .*centred/mean"),
        ({"local": ("dense/*",)}, r"local: pattern 'dense/\*' matches no variable"),
        ({"local": ("*/mean",), "statistics": ("*mean",)}, "statistics and local both match centred/mean"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(patterns: dict[str, Sequence[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layout_of(centred(), squares, several()[0], **patterns)


@dataclass(frozen=True)
class Net:
    """One of several networks, for a whole job."""

    kind: str = "frozen"

    def build(self, size: int, labels: int) -> keras.Model:
        images = keras.Input((size, size, 3))
        flat = layers.Flatten()(images)
        if self.kind == "unbuilt":
            return keras.Sequential([layers.Flatten(), layers.Dense(labels, name="head")], name="net")
        if self.kind == "unbuilt_subclass":
            return Recurrent(labels)
        if self.kind == "uncallable":
            return keras.Sequential([layers.Conv1D(3, 3), layers.Dense(labels, name="head")], name="net")
        if self.kind == "same_names":
            return keras.Model(images, Two(labels, name="two")(flat))
        if self.kind == "masked":
            return keras.Model(images, layers.Dense(labels, name="head")(layers.Masking(name="mask")(flat)), name="net")
        if self.kind == "own_loss":
            return OwnLoss(images, layers.Dense(labels, name="head")(flat), name="net")
        if self.kind == "unreached":
            aside = ops.stop_gradient(layers.Dense(labels, name="aside")(flat))
            looped = layers.LSTM(labels, return_sequences=True, name="lstm")(layers.Reshape((size, size * 3))(images))
            return keras.Model(images, layers.Dense(labels, name="head")(flat) + aside + looped[:, 2])
        if self.kind == "all":
            scaling = layers.Normalization(name="scaling")
            scaling.adapt(np.random.default_rng(1).normal(3, 2, (50, size * size * 3)).astype(np.float32))
            normed = layers.BatchNormalization(name="norm")(Centred(name="centred")(scaling(flat)))
            return keras.Model(images, layers.Dense(labels, name="head")(normed))
        backbone = layers.Dense(512, activation="relu", name="backbone")
        hidden = backbone(flat)
        backbone.trainable = self.kind != "frozen"
        return keras.Model(images, layers.Dense(labels, name="head")(hidden))


class OwnLoss(keras.Model):
    """Computes its loss in its own way."""

    def compute_loss(self, *arguments: Any, **keywords: Any) -> Any:
        return 2 * super().compute_loss(*arguments, **keywords)


class Recurrent(keras.Model):
    """Keeps its states from batch to batch."""

    def __init__(self, num_labels: int) -> None:
        super().__init__(name="net")
        self.lstm, self.head = layers.LSTM(4, stateful=True), layers.Dense(num_labels, name="head")

    def call(self, images: Any) -> Any:
        return self.head(self.lstm(ops.reshape(images, (BATCH, 64, 3))))


class Two(layers.Layer):
    """Two weights of one name."""

    def __init__(self, num_labels: int, **more: Any) -> None:
        super().__init__(**more)
        self.num_labels = num_labels

    def build(self, shape: Any) -> None:
        self.first = self.add_weight(shape=(shape[-1], 16), name="w")
        self.second = self.add_weight(shape=(16, self.num_labels), name="w")

    def call(self, x: Any) -> Any:
        return ops.relu(x @ self.first) @ self.second


def job(kind: str, **changes: Any) -> Job:
    made = Job(
        name="examined",
        model=Net(kind),
        data=GeneratedImages(image_size=8, num_labels=5),
        loss=per_label_logistic,
        rule=SGD(),
        schedule=Constant(0.01),
        num_steps=3,
        batch_size=BATCH,
        cluster=Cluster(num_ps=2, num_workers=1),
        exchange=Exchange(codec="float32"),
    )
    return dataclasses.replace(made, **changes)


def num_pushed(layout: Layout) -> int:
    return sum(layout.num_pushed(shard) for shard in range(layout.num_shards))


def test_a_layer_that_is_not_trainable_is_not_pushed() -> None:
    backbone, head = 512 * (8 * 8 * 3 + 1), 5 * (512 + 1)
    assert num_pushed(build(job("trained"))[1]) == backbone + head
    assert num_pushed(build(job("frozen"))[1]) == head
    kinds = {v.name: v.kind for v in build(job("frozen"))[1].variables}
    assert kinds["backbone/kernel"] == kinds["backbone/bias"] == FROZEN


def test_a_variable_that_no_gradient_reaches_is_not_pushed() -> None:
    """Nor decayed, therefore: as in plain Keras."""
    kinds = {v.name: v.kind for v in build(job("unreached", weight_decay=0.1))[1].variables}
    assert {name for name, kind in kinds.items() if kind == FROZEN} == {"aside/kernel", "aside/bias"}
    assert "lstm/lstm_cell/kernel" in kinds, "which a gradient reaches through a loop of the graph"


@pytest.mark.parametrize(("axis", "kind"), [(0, TRAINED), (1, FACTORED), (-1, FACTORED), (-2, TRAINED)])
def test_a_kernel_that_is_cut_along_its_inputs_is_pushed_whole(axis: int, kind: str) -> None:
    layout = build(job("trained", slicing=(Slicing("head/kernel", 2, axis),), batch_size=1))[1]
    assert {v.name: v.kind for v in layout.variables}["head/kernel"] == kind


@pytest.mark.parametrize(("kind", "kernel"), [("unbuilt", (192, 5)), ("unbuilt_subclass", (4, 5))])
def test_a_model_that_is_not_built_is_built_by_a_call(kind: str, kernel: tuple[int, int]) -> None:
    model, layout = build(job(kind))
    shapes = {v.name: v.shape for v in layout.variables}
    assert (shapes["net/head/kernel"], shapes["net/head/bias"]) == (kernel, (5,))
    for state in (s for layer in model.layers for s in getattr(layer, "states", ())):
        assert not state.numpy().any(), "the call has left no state"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "uncallable",
            r"model: Sequential 'net' is not built, and its call on zeros, value: \(4, 8, 8, 3\) float32",
        ),
        ("masked", r"a mask reaches the output of Functional 'net': plain Keras leaves what is masked out of the loss"),
        ("own_loss", r"OwnLoss 'net' has its own compute_loss, which workers do not call"),
        ("same_names", r"two variables are named two/w, of shapes \[192, 16\] and \[16, 5\]; give .* its own name"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(job(kind))


def test_an_export_has_every_kind_of_variable(tmp_path: Path) -> None:
    """Local ones with their initial value, the others with the checkpoint's."""
    given = job("all", local=("centred/mean",))
    model, layout = build(given)
    kinds = {v.name: v.kind for v in layout.variables}
    assert (kinds["centred/unassigned"], kinds["norm/moving_mean"]) == (FROZEN, STATISTIC)
    assert {"centred/mean", "scaling/mean", "scaling/variance"}.isdisjoint(kinds)
    start = initial.values(model, layout, None)
    assert [value.shape for value in start] == [v.shape for v in layout.variables]
    saved = [value + 1 for value in start]
    save(tmp_path / "saved", layout, [{"parameters": vector} for vector in layout.scatter(saved)])
    export(given, str(tmp_path / "saved"), str(tmp_path / "model.weights.h5"))
    fresh = Net("all").build(8, 5)
    fresh.load_weights(tmp_path / "model.weights.h5")
    by_name = {v.path: v.numpy() for v in fresh.variables}
    assert not by_name["centred/mean"].any()
    np.testing.assert_array_equal(by_name["scaling/mean"], model.get_layer("scaling").adapt_mean.numpy())
    for variable, value in zip(layout.variables, saved, strict=True):
        np.testing.assert_allclose(by_name[variable.name], value, rtol=1e-6, err_msg=variable.name)


def test_every_process_of_a_job_makes_the_same_layout() -> None:
    first, second = (build(job("trained"))[1] for _ in range(2))
    assert first.fingerprint == second.fingerprint
