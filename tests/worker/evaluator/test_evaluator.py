"""The evaluator scores a checkpoint's parameters, or their average if the job says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from downpour.launch.job import recipe
from downpour.model.data import Examples
from downpour.model.vision.losses import per_label_logistic, softmax_cross_entropy
from downpour.model.vision.metrics import NotFinite
from downpour.model.vision.records import RecordCounts
from downpour.model.vision.scored_classes import ScoredClasses
from downpour.proto.errors import LayoutMismatch
from downpour.ps.layout import Slicing, Variable, lay_out
from downpour.ps.policy.averages import Polyak
from downpour.worker.evaluator.evaluator import Evaluator
from downpour.worker.evaluator.scoring import score_names
from downpour.worker.step.variables import initial_values, variables_of
from tests.ps.checkpoint.saving import save


class Batches:
    counts = RecordCounts()

    def __init__(self) -> None:
        self._left = [(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32))]

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self._left:
            raise StopIteration
        return self._left.pop()


class Data:
    """Three images of three numbers; image i has label i."""

    image_size, num_labels = 3, 3

    @contextmanager
    def heldout(self, *, batch_size: int) -> Iterator[Batches]:
        yield Batches()


@pytest.mark.parametrize(("average", "score"), [(False, 1.0), (True, 1 / 3)])
def test_it_scores_the_parameters_or_the_average(tmp_path: Path, average: bool, score: float) -> None:
    """The parameters rank every image's label first, the average last."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, use_bias=False, name="head")])
    layout = lay_out(variables_of(model), 1)
    right = np.eye(3, dtype=np.float32).ravel()
    save(tmp_path, layout, [{"parameters": right, "slot.average": -right}])
    metrics, _ = Evaluator(model, layout, Data(), 8, per_label_logistic, average).score(str(tmp_path))  # type: ignore[arg-type]
    assert metrics["map_at_100_unweighted"] == pytest.approx(score)


def test_images_of_exclusive_classes_are_scored_by_top_1_and_top_5(tmp_path: Path) -> None:
    class Exclusive(Data):
        exclusive = True

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, use_bias=False, name="head")])
    layout = lay_out(variables_of(model), 1)
    shifted = np.roll(np.eye(3, dtype=np.float32), 1, axis=1)
    shifted[0] = 1, 0, 0  # right for the first image alone
    save(tmp_path, layout, [{"parameters": shifted.ravel()}])
    data: Any = Exclusive()
    evaluator = Evaluator(model, layout, data, 8, softmax_cross_entropy)
    for _ in range(2):
        scores, _ = evaluator.score(str(tmp_path))
        assert scores == pytest.approx({"top_1_accuracy": 1 / 3, "top_5_accuracy": 1.0})
    assert score_names(model, data, softmax_cross_entropy) == list(scores)
    save(tmp_path / "diverged", layout, [{"parameters": np.full(9, np.nan, np.float32)}])
    with pytest.raises(NotFinite, match="9 scores are not finite"):
        evaluator.score(str(tmp_path / "diverged"))


def test_classes_count_as_each_set_says(tmp_path: Path) -> None:
    """Of three images, the model ranks the labels of classes 0 and 1 first, and class 2's last."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, use_bias=False, name="head")])
    layout = lay_out(variables_of(model), 1)
    save(tmp_path, layout, [{"parameters": np.diag(np.float32([1, 1, -1])).ravel()}])

    class Weighted(Data):
        scored_classes = ScoredClasses(weights=np.array([1.0, 0.0, 3.0]))

    class Annotated(Data):
        scored_classes = ScoredClasses(annotated=np.array([0, 1]))

    sets: Any = {"weighted": Weighted(), "annotated": Annotated()}
    scores, _ = Evaluator(model, layout, Data(), 8, per_label_logistic, sets=sets).score(str(tmp_path))  # type: ignore[arg-type]
    assert scores["map_at_100"] == pytest.approx(7 / 9)
    assert scores["val_weighted_map_at_100"] == pytest.approx((1 + 3 / 3) / 4)
    assert scores["val_weighted_map_at_100_unweighted"] == pytest.approx(7 / 9)
    assert scores["val_annotated_map_at_100"] == scores["val_annotated_map_at_100_unweighted"] == 1.0


def test_large_images_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("downpour.worker.evaluator.scoring._VALUES_AT_ONCE", 6)
    sizes: list[Any] = []

    class Watched(keras.layers.Dense):
        def call(self, x: Any) -> Any:
            tf.py_function(lambda given: sizes.append(len(given)), [x], [])
            return super().call(x)

    model = keras.Sequential([keras.Input((3,)), Watched(3, use_bias=False, name="head")])
    layout = lay_out(variables_of(model), 1)
    save(tmp_path, layout, [{"parameters": np.eye(3, dtype=np.float32).ravel()}])
    scores, _ = Evaluator(model, layout, Data(), 8, per_label_logistic).score(str(tmp_path))  # type: ignore[arg-type]
    assert sizes == [2, 1] and scores["map_at_100"] == pytest.approx(1.0)


def test_every_score_begins_with_the_states_of_a_fresh_recurrent_layer(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    images = keras.Input(batch_shape=(3, 3))
    states = keras.layers.LSTM(4, stateful=True)(keras.layers.Reshape((3, 1))(images))
    model = keras.Model(images, keras.layers.Dense(3)(states))
    layout = lay_out(variables_of(model), 1)
    save(tmp_path, layout, [{"parameters": vector} for vector in layout.scatter(initial_values(model))])
    evaluator = Evaluator(model, layout, Data(), 3, per_label_logistic)  # type: ignore[arg-type]
    seen = []
    for _ in range(2):
        evaluator.score(str(tmp_path))
        seen.append([state.numpy() for state in model.layers[-2].states])
    np.testing.assert_array_equal(*seen)
    assert np.any(seen[0])


def test_it_scores_a_checkpoint_of_another_number_of_shards_and_refuses_another_model(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, use_bias=False, name="head")], name="m")
    scorer = Evaluator(model, lay_out(variables_of(model), 1), Data(), 8, per_label_logistic)  # type: ignore[arg-type]
    theirs = lay_out(variables_of(model), 3, [Slicing("*", 3)])
    vectors = theirs.scatter([np.eye(3, dtype=np.float32)])
    save(tmp_path / "three", theirs, [{"parameters": vector} for vector in vectors])
    metrics, _ = scorer.score(str(tmp_path / "three"))
    assert metrics["map_at_100_unweighted"] == pytest.approx(1.0)
    other = lay_out([Variable("m/head/kernel", (3, 4))], 1)
    save(tmp_path / "other", other, [{"parameters": np.ones(12, np.float32)}])
    with pytest.raises(LayoutMismatch, match=r"m/head/kernel is \[3, 3\] here, \[3, 4\] there"):
        scorer.score(str(tmp_path / "other"))


def test_a_job_that_scores_an_average_must_keep_one() -> None:
    job = recipe.load("quickstart", ["average=Polyak(decay=0.99)", "evaluate_average=true"])
    assert job.average == Polyak(0.99)
    with pytest.raises(ValueError, match="evaluate_average is True without an average"):
        replace(job, average=None)


def test_further_sets_are_scored_by_their_names(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False, name="head")])
    model.compile(loss="mse", metrics=["mae"])
    layout = lay_out(variables_of(model), 1)
    save(tmp_path, layout, [{"parameters": np.ones(3, np.float32)}])
    x = np.eye(3, dtype=np.float32)  # all outputs are 1

    def data(target: float | None) -> Examples:
        train = x, np.ones((3, 1), np.float32)
        return Examples(train, None if target is None else (x, np.full((3, 1), target, np.float32)))

    sets = {"two": data(3.0), "three": data(4.0)}
    found, counts = Evaluator(model, layout, data(2.0), 2, sets=sets).score(str(tmp_path))
    expected = {"val_loss": 1.0, "val_mae": 1.0, "val_two_loss": 4.0, "val_two_mae": 2.0}
    assert found == pytest.approx(expected | {"val_three_loss": 9.0, "val_three_mae": 3.0}) and counts.read == 9
    assert score_names(model, data(2.0), None, sets) == list(found)
    alone, _ = Evaluator(model, layout, data(None), 2, sets={"two": data(3.0)}).score(str(tmp_path))
    assert alone == pytest.approx({"val_two_loss": 4.0, "val_two_mae": 2.0})
    with pytest.raises(ValueError, match="gives no held-out batch to score"):
        Evaluator(model, layout, data(2.0), 2, sets={"two": data(None)}).score(str(tmp_path))
