"""Data sets of Keras, Grain, tf.data and TFRecord folders beside each other."""

from __future__ import annotations

import itertools
import threading
from collections import Counter

import keras
import numpy as np
import pytest

from downpour.model.data import Examples, Stream
from downpour.model.data.collation import class_weighted
from downpour.model.data.order import Lease, Order, forever


class Batches(keras.utils.PyDataset):
    """13 batches of 8, the last of 4."""

    num = 100

    def __len__(self):
        return -(-self.num // 8)

    def __getitem__(self, index):
        numbers = np.arange(index * 8, min(index * 8 + 8, self.num))
        return {"a": numbers[:, None] * 1.0}, numbers


def test_leases_of_a_py_dataset_count_its_batches():
    data = Examples(Batches(), Batches())
    data.check()
    assert data.num_records == 13
    assert data.positions_in_batch(8) == 1
    seen = Counter()
    leases = [[Lease(0, 0, 3), Lease(0, 9, 13)], [Lease(0, 3, 9)]]
    for mine in leases:
        with data.training(batch_size=8, seed=2, leases=iter(mine)) as batches:
            found = [(y.tolist(), batches.position) for _, y, _ in batches]
        assert [position for _, position in found] == list(range(1, len(found) + 1))
        expected = [place.record for place in Order(13, 2).places(mine)]
        assert [numbers[0] // 8 for numbers, _ in found] == expected
        seen.update(number for numbers, _ in found for number in numbers)
    assert seen == Counter(range(100))
    assert [number for _, y, _ in data.heldout(batch_size=3) for number in y] == list(range(100))


@pytest.mark.parametrize("batch_size", [4, 32])
def test_another_batch_size_than_the_py_datasets(batch_size):
    with pytest.raises(ValueError, match=f"batch 0 has 8 examples and batch_size is {batch_size}; .*give batch_size=8"):
        Examples(Batches()).training(batch_size=batch_size, seed=0, leases=forever(13, 1))


def test_the_workers_of_a_py_dataset_are_threads():
    threads = set()

    class Watched(Batches):
        def __getitem__(self, index):
            threads.add(threading.current_thread().name)
            return super().__getitem__(index)

    data = Examples(Watched(workers=3))
    with data.training(batch_size=8, seed=0, leases=forever(13, 1)) as batches:
        list(itertools.islice(batches, 20))
    assert {name for name in threads if name.startswith("reading_")}


def test_a_py_dataset_that_reacts_to_epochs():
    class Shuffled(Batches):
        def on_epoch_end(self):
            pass

    with pytest.raises(ValueError, match=r"Shuffled.on_epoch_end is never called"):
        Examples(Shuffled()).check()


def test_class_weights_are_those_of_keras():
    from keras.src.trainers.data_adapters.data_adapter_utils import class_weight_to_sample_weights

    rng = np.random.default_rng(0)
    weights = {0: 2.0, 1: 0.5, 3: 7.0}
    integers = rng.integers(0, 5, 40)
    for y in (integers, integers[:, None], integers.astype(np.float32), np.eye(5, dtype=np.float32)[integers]):
        assert class_weighted(y, None, weights).tolist() == class_weight_to_sample_weights(y, weights).tolist()


class TestGrain:
    """The real package."""

    @pytest.fixture(autouse=True)
    def grain(self):
        return pytest.importorskip("grain")

    def numbers(self, grain, num: int = 60):
        return grain.MapDataset.source([(np.full(2, i), i) for i in range(num)])

    def test_a_map_dataset_is_read_exactly_once_an_epoch(self, grain):
        data = Examples(self.numbers(grain).map(lambda item: (item[0] * 2, item[1])), self.numbers(grain, 7))
        data.check()
        for shuffle in (True, False):
            again = Examples(data.train, shuffle=shuffle)
            with again.training(batch_size=60, seed=1, leases=forever(60, 7)) as batches:
                epochs = [next(batches)[1].tolist() for _ in range(3)]
            assert all(sorted(epoch) == list(range(60)) for epoch in epochs)
        assert [i for _, y, _ in data.heldout(batch_size=3) for i in y] == list(range(7))

    def test_its_own_shuffle_and_random_numbers_differ_by_epoch_and_not_by_worker(self, grain):
        dataset = (
            self.numbers(grain).shuffle(seed=3).random_map(lambda item, rng: (item[0], item[1], rng.random()), seed=4)
        )
        data = Examples(dataset, shuffle=False)
        given = {}
        for mine in ([Lease(e, 0, 25) for e in range(3)], [Lease(e, 25, 60) for e in range(3)]):
            positions = [(lease.epoch, p) for lease in mine for p in range(lease.start, lease.stop)]
            with data.training(batch_size=1, seed=0, leases=iter(mine)) as batches:
                given |= {place: (int(y[0]), float(w[0])) for place, (_, y, w) in zip(positions, batches, strict=True)}
        epochs = [[given[e, p] for p in range(60)] for e in range(3)]
        assert all(sorted(i for i, _ in epoch) == list(range(60)) for epoch in epochs)
        assert len({tuple(i for i, _ in epoch) for epoch in epochs}) == 3
        assert len({w for epoch in epochs for _, w in epoch}) == 180
        assert epochs[2][5] == (dataset[2 * 60 + 5][1], np.float32(dataset[2 * 60 + 5][2]))

    def test_a_filter_leaves_positions_out(self, grain):
        data = Examples(self.numbers(grain).filter(lambda item: item[1] % 3 == 0))
        assert data.num_records == 60
        with data.training(batch_size=20, seed=1, leases=iter([Lease(0, 0, 60)])) as batches:
            assert sorted(next(batches)[1].tolist()) == list(range(0, 60, 3))
            assert batches.position > 50

    def test_its_batches_stay_whole(self, grain):
        data = Examples(self.numbers(grain).shuffle(seed=1).batch(8), batched=True)
        assert (data.num_records, data.positions_in_batch(8)) == (8, 1)
        with data.training(batch_size=8, seed=1, leases=iter([Lease(0, 0, 8)])) as batches:
            given = [y.tolist() for _, y, _ in batches]
        assert sorted(map(len, given)) == [4] + [8] * 7
        assert sorted(i for y in given for i in y) == list(range(60))

    def test_an_endless_one_is_refused(self, grain):
        with pytest.raises(ValueError, match=r"train is endless; leave repeat\(\) out"):
            Examples(self.numbers(grain).repeat()).check()

    def test_an_iter_dataset_is_a_stream(self, grain):
        def part(index, num_workers):
            return self.numbers(grain)[index::num_workers].map(lambda item: item).to_iter_dataset()

        with Stream(part).for_worker(1, 3).training(batch_size=4, seed=0, leases=forever(60, 7)) as batches:
            assert [i for _, y, _ in itertools.islice(batches, 10) for i in y] == list(range(1, 60, 3)) * 2

    def test_its_sources_are_indexed(self, grain):
        data = Examples(grain.sources.RangeDataSource(0, 40, 2))
        data.check()
        with data.training(batch_size=20, seed=0, leases=forever(20, 7)) as batches:
            assert sorted(next(batches)[0].tolist()) == list(range(0, 40, 2))
