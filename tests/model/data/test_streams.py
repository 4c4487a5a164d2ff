"""Streams: counted leases, passes, parts of workers."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter

import numpy as np
import pytest

from downpour.model.data import Stream
from downpour.model.data.order import Counted, Lease, forever
from downpour.model.data.streams import ENDLESS


def part(index: int, num_workers: int):
    """A finite part of 50 examples."""
    for i in range(index, 50, num_workers):
        yield np.full((2,), i, np.float32), i


def endless(index: int, num_workers: int):
    for i in itertools.count(index, num_workers):
        yield np.full((2,), i, np.float32), i


def in_batches(index: int, num_workers: int):
    """Batches of 8 of a part, the last one short."""
    numbers = np.arange(index, 50, num_workers)
    for start in range(0, len(numbers), 8):
        yield numbers[start : start + 8, None], numbers[start : start + 8]


def tf_part(index: int, num_workers: int):
    import tensorflow as tf

    return tf.data.Dataset.range(50).shard(num_workers, index).map(lambda i: ({"a": tf.fill([2], i)}, i))


def noisy(item, rng):
    return item[0], item[1], 0.0 if rng is None else rng.random()


def targets(batches) -> list[int]:
    return [int(label) for _, y, _ in batches for label in y]


def leases(*counts: int):
    """Leases of so many positions; which ones these are does not matter."""
    return iter([Lease(0, 7, 7 + count) for count in counts])


@pytest.mark.parametrize("function", [part, tf_part], ids=["generator", "tf.data"])
def test_three_workers_read_their_parts_again_and_again(function):
    stream = Stream(function, num_examples=50)
    stream.check()
    assert stream.num_records == 50
    for index in range(3):
        mine = list(range(index, 50, 3))
        with stream.for_worker(index, 3).training(batch_size=4, seed=0, leases=forever(50, 7)) as batches:
            seen = targets(itertools.islice(batches, 13))
        assert seen == (mine * 4)[: 13 * 4]


def test_the_position_counts_examples_within_the_leases():
    counted = Counted(leases(5, 9, 2, 10), "stream")
    with Stream(part).training(batch_size=4, seed=0, leases=counted) as batches:
        positions = []
        for _ in batches:
            counted.check(batches.position)
            positions.append(batches.position)
    assert positions == [4, 8, 12, 16, 20, 24]  # of 26


def test_an_endless_stream_has_one_epoch():
    stream = Stream(endless)
    assert stream.num_records == ENDLESS
    assert stream.positions_in_batch(32) == 32
    with stream.for_worker(1, 2).training(batch_size=5, seed=0, leases=forever(ENDLESS, 20)) as batches:
        assert targets(itertools.islice(batches, 100)) == list(range(1, 1001, 2))


def test_batches_of_the_stream_stay_whole():
    with Stream(in_batches, batched=True).training(batch_size=8, seed=0, leases=leases(60, 40)) as batches:
        given = [(len(y), batches.position) for _, y, _ in batches]
    assert given == [(8, 8 * k) for k in range(1, 7)] + [(2, 50)] + [(8, 50 + 8 * k) for k in range(1, 7)] + [(2, 100)]


def test_batches_of_another_size_are_refused():
    for batch_size in (4, 16):
        with pytest.raises(ValueError, match=f"batch 0 has 8 examples and batch_size is {batch_size}; .* batch_size=8"):
            next(Stream(in_batches, batched=True).training(batch_size=batch_size, seed=0, leases=leases(100)))


def test_heldout_is_one_pass():
    stream = Stream(endless, part)
    for _ in range(2):
        given = list(stream.for_worker(1, 2).heldout(batch_size=15))
        assert [len(y) for _, y, _ in given] == [15, 15, 15, 5]
        assert targets(given) == list(range(50))
    assert [len(y) for _, y, _ in Stream(endless, in_batches, batched=True).heldout(batch_size=3)] == [8] * 6 + [2]
    assert list(Stream(endless).heldout(batch_size=3)) == []


@pytest.mark.parametrize(
    "heldout",
    [(np.zeros((7, 2)), np.arange(7)), [(np.zeros(2), i) for i in range(7)], lambda: (np.zeros((7, 2)), np.arange(7))],
    ids=["arrays", "list", "function"],
)
def test_heldout_examples_of_a_stream_may_be_indexed(heldout):
    stream = Stream(part, heldout)
    stream.check_all()
    for _ in range(2):
        given = list(stream.for_worker(1, 2).heldout(batch_size=3))
        assert [y.tolist() for _, y, _ in given] == [[0, 1, 2], [3, 4, 5], [6]]
    with pytest.raises(ValueError, match="give both the same structure"):
        Stream(part, np.zeros((7, 2))).check()


def test_items_that_are_batches_say_their_size():
    assert Stream(in_batches, batched=True).batch_size_of_items() == 8
    assert Stream(part).batch_size_of_items() is None


def test_random_numbers_differ_by_worker_pass_and_example():
    drawn = Counter()
    for index in range(2):
        stream = Stream(part, part, map=noisy).for_worker(index, 2)
        with stream.training(batch_size=25, seed=1, leases=leases(75)) as batches:
            given = [float(w) for _, _, weights in batches for w in weights]
        with stream.training(batch_size=25, seed=1, leases=leases(75)) as batches:
            assert given == [float(w) for _, _, weights in batches for w in weights]
        drawn.update(given)
        assert {float(w) for _, _, weights in stream.heldout(batch_size=9) for w in weights} == {0.0}
    assert set(drawn.values()) == {1}
    assert len(drawn) == 150


def test_a_stream_is_closed_with_the_batches():
    closed = []

    def watched(index, num_workers):
        try:
            yield from endless(index, num_workers)
        finally:
            closed.append(True)

    stream = Stream(watched)
    with stream.training(batch_size=2, seed=0, leases=forever(100, 7)) as batches:
        next(batches)
    assert closed == [True]
    stream.check()
    assert closed == [True, True]


def test_a_job_with_a_stream_can_be_sent():
    assert pickle.loads(pickle.dumps(Stream(part, num_examples=50))).num_records == 50


# What is refused.


def refusal(stream: Stream, batch_size: int = 4) -> str:
    with pytest.raises(ValueError) as caught:
        with stream.training(batch_size=batch_size, seed=0, leases=forever(50, 7)) as batches:
            for _ in itertools.islice(batches, 100):
                pass
        stream.check()
    return str(caught.value)


def test_a_worker_without_data_or_with_less_than_a_batch():
    def nothing_for_two(index, num_workers):
        return [] if index == 2 else part(index, num_workers)

    assert "train(2, 3) gives 0 examples, fewer than 4; give every worker" in refusal(
        Stream(nothing_for_two).for_worker(2, 3)
    )
    assert "train(1, 10) gives 5 examples, fewer than 6" in refusal(Stream(part).for_worker(1, 10), 6)
    with pytest.raises(ValueError, match=r"train\(2, 3\) gives 0 examples"):
        Stream(nothing_for_two).for_worker(2, 3).check()


def test_an_epoch_smaller_than_a_batch():
    assert "batch_size is 60 and there are only 50 training examples" in refusal(Stream(part, num_examples=50), 60)


def test_an_iterator_that_can_be_used_once():
    once = part(0, 1)
    assert "gave examples once and now none; return a new iterator" in refusal(Stream(lambda index, num: once))


def test_a_map_that_leaves_all_out():
    assert "gives 50 examples and `map` leaves all out" in refusal(Stream(part, map=lambda item: None))


def test_what_is_no_function_or_no_iterable():
    with pytest.raises(ValueError, match="train is a list; give a function of"):
        Stream([1, 2])
    assert "validation is a builtins.int, which has no length and index" in refusal(Stream(part, 3))
    assert "train(0, 1) returns a int; return an iterable" in refusal(Stream(lambda index, num: 3))


def test_values_that_are_not_finite():
    def one_missing(index, num_workers):
        for i in range(50):
            yield np.array([1.0, np.nan if i == 17 else 1.0]), i

    assert "train, example 17: x has nan" in refusal(Stream(one_missing))

    def in_a_batch(index, num_workers):
        for i in range(5):
            yield np.array([[1.0], [np.inf if i == 3 else 1.0], [1.0], [1.0]]), np.zeros(4)

    assert "train, row 1 of batch 3: x has inf" in refusal(Stream(in_a_batch, batched=True))


def test_items_of_other_shape():
    def ragged(index, num_workers):
        for i in range(50):
            yield np.zeros(2 + (i == 13)), i

    assert "example 12 has x (2,) float64, y () int64, and example 13 has x (3,)" in refusal(Stream(ragged))


def test_parts_of_a_batch_of_other_lengths():
    assert "y is (3,) and the first array has 4 examples" in refusal(
        Stream(lambda index, num: [(np.zeros((4, 2)), np.zeros(3))], batched=True)
    )


def test_an_error_of_the_stream_is_raised_by_next():
    def fails(index, num_workers):
        yield np.zeros(2), 0
        raise OSError("gone")

    with pytest.raises(OSError, match="gone") as caught:
        next(Stream(fails).for_worker(1, 2).training(batch_size=4, seed=0, leases=forever(50, 7)))
    assert caught.value.__notes__ == ["while reading train(1, 2), item 1"]


def test_an_error_of_map_names_the_item():
    def fails(item):
        return 1 // (item[1] - 4), 0

    with pytest.raises(ZeroDivisionError) as caught:
        next(Stream(part, map=fails).for_worker(0, 2).training(batch_size=4, seed=0, leases=forever(50, 7)))
    assert caught.value.__notes__ == ["while mapping train(0, 2), item 2"]


def test_numbers_out_of_range():
    with pytest.raises(ValueError, match="num_examples is 0"):
        Stream(part, num_examples=0)
    with pytest.raises(ValueError, match="worker_index is 2 of 2"):
        Stream(part).for_worker(2, 2)
