"""Parts of a data set: which examples and labels remain, whichever source they come from."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from downpour.model.data import Examples
from downpour.model.data.batches import multi_hot
from downpour.model.data.order import Lease, Order, forever
from downpour.model.data.restriction import Restriction
from tests.launch.jobs import write_images
from tests.model.data.test_data import TREE, both_ways, image_records, number_of

NUM = 40


def arrays(num: int = NUM) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [n, 1] that tell their number, targets [n, 4] of ones."""
    return np.arange(num, dtype=np.float32)[:, None], np.ones((num, 4), np.float32)


def items(num: int = NUM) -> list[tuple[np.ndarray, np.ndarray]]:
    """The same as a list of examples."""
    return list(zip(*arrays(num), strict=True))


def epoch(data: Any, epoch: int = 0, seed: int = 0) -> list[Any]:
    """All batches of an epoch, in batches of 1."""
    leases = iter([Lease(epoch, 0, data.num_records)])
    return list(data.training(batch_size=1, seed=seed, leases=leases))


def numbers(data: Examples, **of: int) -> list[int]:
    """Numbers of the examples of an epoch, in order."""
    return [int(batch[0][0, 0]) for batch in epoch(data, **of)]


@pytest.mark.parametrize("source", [arrays, items])
def test_an_epoch_has_the_drawn_examples_once(source: Callable[[], Any]) -> None:
    data = Examples(source, num_examples=10)
    assert data.num_records == 10
    first, second = numbers(data), numbers(data, epoch=1)
    assert len(set(first)) == 10 and set(first) == set(second) and first != second
    assert set(first) != set(range(10)), "drawn from all"
    assert set(numbers(data, seed=1)) != set(first), "another seed draws others"


def test_fewer_examples_are_among_more() -> None:
    drawn = [set(numbers(Examples(arrays, num_examples=num))) for num in (5, 12, 39, NUM, 0)]
    for fewer, more in itertools.pairwise(drawn):
        assert fewer <= more
    assert [len(one) for one in drawn] == [5, 12, 39, NUM, NUM]


def test_without_a_restriction_nothing_changes() -> None:
    order = Order(NUM, 3).records(Lease(2, 0, NUM))
    assert numbers(Examples(arrays), epoch=2, seed=3) == order.tolist()
    assert numbers(Examples(arrays, num_examples=NUM), epoch=2, seed=3) == order.tolist()


def test_the_order_of_a_source_stays() -> None:
    found = numbers(Examples(arrays, shuffle=False, num_examples=7))
    assert found == sorted(found) and len(found) == 7


@both_ways
def test_images_are_those_that_are_drawn(tmp_path: Path, memory_bytes: int) -> None:
    data = image_records(
        write_images(tmp_path / "images", 50, 7),
        resize=12,
        crop=12,
        memory_bytes=memory_bytes,
        num_examples=20,
        only_labels=(0, 1),
    )
    expected = Restriction(num_examples=20).chosen(50, 0)
    assert expected is not None and data.num_records == 20
    batches = data.training(batch_size=4, seed=0, leases=forever(20, 7))
    seen: list[int] = []
    for images, labels in itertools.islice(batches, 5):
        here = [number_of(image) for image in images]
        full = multi_hot(TREE, [[(1, 2, 4)[number % 3]] for number in here])
        full[:, 2:] = 0
        assert (labels == full).all()
        seen += here
    batches.close()
    by_file = [number for file in range(2) for number in range(file, 50, 2)]  # two files in turn
    assert sorted(seen) == sorted(by_file[record] for record in expected)
    assert batches.counts.read >= 20


def test_heldout_targets_keep_the_scored_labels(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 10, 7)
    for more, kept in (({"only_labels": (0, 1, 2)}, [0, 1, 2]), ({"only_labels": (0, 1), "scored_labels": (0,)}, [0])):
        ((_, labels),) = image_records(folder, resize=12, crop=12, **more).heldout(batch_size=7)
        assert labels.shape == (7, len(TREE))
        assert labels[:, kept].any(axis=0).all() and not np.delete(labels, kept, axis=1).any()


def test_other_parts_of_a_batch_and_the_source_stay() -> None:
    x, y = arrays()
    data = Examples((x, y, np.full(NUM, 0.5, np.float32)), only_labels=(2,))
    for inputs, targets, weights in epoch(data):
        assert inputs.shape == (1, 1) and weights.tolist() == [0.5] and targets.tolist() == [[0, 0, 1, 0]]
    assert y.all(), "the source's array is not changed"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_examples": -1}, "num_examples is -1; give a whole number of at least 0"),
        ({"only_labels": (0, -2)}, "only_labels has -2; labels are numbered from 0"),
    ],
)
def test_values_below_0_are_refused(fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Examples(arrays, **fields)


def test_what_the_data_do_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="num_examples is 41, but there are only 40 training examples"):
        epoch(Examples(arrays, num_examples=41))
    with pytest.raises(ValueError, match="only_labels has 4; the data have labels 0 to 3"):
        epoch(Examples(arrays, only_labels=(1, 4)))
    with pytest.raises(ValueError, match=r"only_labels needs targets of 0 and 1, \[examples, labels\], and these are"):
        epoch(Examples((np.zeros((4, 1)), np.zeros(4)), only_labels=(1,)))
