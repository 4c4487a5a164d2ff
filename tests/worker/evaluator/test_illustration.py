"""What evaluations show: labels of any form, logits and probabilities, always the same pictures, and nothing else."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from downpour.worker.evaluator import illustration
from downpour.worker.evaluator.grid import Example
from downpour.worker.evaluator.illustration import NUM_CLASSES, NUM_PICTURES, Illustrator, truth_of

SHAPE = (3, 4)
HOT = np.eye(4, dtype=np.float32)[[2, 0, 3]]


@pytest.mark.parametrize("labels", [HOT, HOT.astype(int), [2, 0, 3], [[2], [0], [3]], [2.0, 0.0, 3.0]])
def test_labels_of_any_form_say_which_class(labels: Any) -> None:
    found = truth_of(np.asarray(labels), SHAPE)
    assert found is not None
    np.testing.assert_array_equal(found, HOT > 0)


@pytest.mark.parametrize(
    ("labels", "shape"),
    [
        (np.full(SHAPE, 0.5), SHAPE),  # of a regression
        (np.array([2, 0, 4]), SHAPE),
        (np.array([2.5, 0, 1]), SHAPE),
        (np.array([-1, 0, 1]), SHAPE),
        (np.array(["a", "b", "c"]), SHAPE),
        (np.zeros((3, 5)), SHAPE),
        (None, SHAPE),
        ({"a": HOT}, SHAPE),
        (np.zeros((3, 8, 8)), (3, 8, 8, 4)),  # of a segmentation
    ],
)
def test_what_is_no_classification_shows_nothing(labels: Any, shape: tuple[int, ...]) -> None:
    assert truth_of(labels, shape) is None
    shown = Illustrator()
    shown.add(np.zeros((3, 8, 8, 3)), labels, np.zeros(shape))
    shown.add(np.zeros((3, 8, 8, 3)), HOT, np.zeros(SHAPE))
    assert shown.message().ByteSize() == 0


def test_two_classes_may_have_one_output() -> None:
    found = truth_of(np.array([1, 0, 1]), (3, 1))
    assert found is not None and found.tolist() == [[True], [False], [True]]
    shown = Illustrator()
    shown.add(np.zeros((3, 5)), np.array([1, 0, 1]), np.array([[3.0], [-2.0], [-1.0]]))
    curves = {curve.name: curve for curve in shown.message().curves}
    assert list(curves) == ["all classes", "class 1", "class 0"]
    second = curves["class 1"]
    assert (sum(second.positives), sum(second.negatives)) == (2, 1)
    assert list(np.flatnonzero(second.positives)) == [33, 120], "126 times the logistic function of the two"


def example(number: int) -> np.ndarray:
    return np.full((8, 8, 3), number, np.float32)


def chosen(shown: Illustrator, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> list[Example]:
    """The pictures of an evaluation of numbered examples."""
    kept: list[Example] = []
    monkeypatch.setattr(illustration.grid, "draw", lambda examples: kept.extend(examples) or b"png")
    shown.begin()
    start = 0
    for size in sizes:
        numbers = np.arange(start, start + size)
        logits = np.where(np.arange(7) == (numbers % 5)[:, None], 2.0, -2.0)
        shown.add({"x": np.stack([example(i) for i in numbers])}, numbers % 7, logits)
        start += size
    assert shown.message().pictures == b"png"
    return kept


def test_every_evaluation_shows_the_same_pictures_however_they_are_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Illustrator()
    first = chosen(shown, (40, 40, 3), monkeypatch)
    second = chosen(shown, (7,) * 11 + (6,), monkeypatch)
    numbers = [int(one.picture[0, 0, 0]) for one in first]
    assert len(set(numbers)) == NUM_PICTURES and max(numbers) > 40
    assert numbers == [int(one.picture[0, 0, 0]) for one in second]
    for one, number in zip(first, numbers, strict=True):
        assert one.true == (f"class {number % 7}",) and one.is_right == (number % 7 == number % 5)
        ((name, score),) = one.predicted
        assert name == f"class {number % 5}" and score == pytest.approx(1 / (1 + 6 * np.exp(-4)))
    assert len(chosen(shown, (5,), monkeypatch)) == 5


def test_several_labels_are_shown_with_their_names_and_only_of_annotated_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: list[Example] = []
    monkeypatch.setattr(illustration.grid, "draw", lambda examples: kept.extend(examples) or b"png")
    shown = Illustrator((), ("animal", "cat", "dog", "tree"), False, np.array([0, 1, 2]))
    truth = np.array([[1, 1, 0, 1]] * 4, np.float32)
    shown.add(np.zeros((4, 8, 8, 1)), truth, np.array([[0.9, 0.2, 0.6, 0.95]] * 4))
    message = shown.message()
    assert kept[0].true == ("animal", "cat") and kept[0].is_right
    assert kept[0].predicted == (("animal", pytest.approx(0.9)), ("dog", pytest.approx(0.6)))
    assert [curve.name for curve in message.curves] == ["all classes", "animal", "cat"]


def test_a_class_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"classes=...\) names class 4, and the model has 4; give numbers from 0 to 3"):
        Illustrator((1, 4)).add(np.zeros((3, 8, 8, 3)), HOT, np.zeros(SHAPE))


@pytest.mark.parametrize(
    ("shape", "scale"), [((32, 48, 3), 255), ((9, 9, 1), 1), ((28, 28), 1), ((400, 300, 3), 2)], ids=str
)
def test_the_message_is_small_whatever_the_pictures(shape: tuple[int, ...], scale: float) -> None:
    rng = np.random.default_rng(0)
    shown = Illustrator()
    for _ in range(3):
        noise = (scale * rng.random((20, *shape)) - (scale == 2)).astype(np.float32)
        shown.add(noise, rng.integers(0, 50, 20), rng.normal(size=(20, 50)))
    message = shown.message()
    assert len(message.curves) == NUM_CLASSES + 1
    assert message.ByteSize() < 2_000_000, "gRPC takes 4 MB"
    picture = np.asarray(Image.open(io.BytesIO(message.pictures)))
    assert picture.shape[0] > 500 and picture.shape[1] > 900
    assert 100 < picture[20:100, 20:100].mean() < 155, "noise, in the whole range of a byte"
