"""Indexed sources: exactly once, one order, and every kind of source."""

from __future__ import annotations

import importlib.util
import itertools
import os
import pickle
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from downpour.model.data import Examples, indexed
from downpour.model.data.order import Lease, Order, augmentation, forever
from tests.conftest import wait_until

NUM = 101


class Items:
    """As a torch data set: `__len__`, and `__getitem__` that gives a tuple."""

    def __init__(self, num: int = NUM) -> None:
        self.num = num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int):
        if index >= self.num:
            raise IndexError(index)
        return np.full((2,), index, np.float32), index


class Rows(Items):
    """As a Hugging Face data set: an item is a dict of columns, and several are read by one call."""

    num_calls = 0

    def __getitem__(self, index: int):
        return {"tokens": [index, index + 1], "text": f"row {index}", "label": index, "w": index / 2, "id": None}

    def __getitems__(self, indices: list[int]):
        self.num_calls += 1
        return [self[index] for index in indices]


def arrays(num: int = NUM):
    numbers = np.arange(num)
    return {"a": numbers.astype(np.float32), "b": (np.stack([numbers] * 3, 1),)}, numbers


def opened_items() -> Items:
    return Items()


def twice(item):
    return item[0] * 2, item[1]


def noisy(item, rng):
    return item[0], item[1], 0.0 if rng is None else rng.random()


def only_even(item):
    return None if item[1] % 2 else item


def in_process(item):
    return item[0], item[1], os.getpid()


ALL_KINDS = {
    "arrays": Examples(arrays()),
    "items": Examples(Items()),
    "list": Examples([(np.float32(i), i) for i in range(NUM)]),
    "rows": Examples(Rows(), inputs={"t": "tokens", "s": "text"}, targets="label"),
    "function": Examples(opened_items),
    "mapped": Examples(Items(), map=twice),
    "threads": Examples(Items(), num_threads=3),
    "class": Examples(Items),
}
all_kinds = pytest.mark.parametrize("data", ALL_KINDS.values(), ids=ALL_KINDS.keys())


def targets(batches) -> list[int]:
    return [int(label) for _, y, _ in batches for label in y]


def first(data: Examples, batch_size: int = 5, seed: int = 0):
    with data.training(batch_size=batch_size, seed=seed, leases=forever(data.num_records, 7)) as batches:
        return next(batches)


def odd_leases(num: int, epoch: int, seed: int) -> list[Lease]:
    """An epoch cut at random places."""
    cuts = np.random.default_rng(seed).choice(np.arange(1, num), num // 6, replace=False)
    edges = [0, *sorted(cuts.tolist()), num]
    return [Lease(epoch, start, stop) for start, stop in itertools.pairwise(edges)]


@all_kinds
def test_three_workers_see_every_example_exactly_once_an_epoch(data):
    """Leases are cut at odd places and dealt out; no batch fits them."""
    data.check()
    assert data.num_records == NUM
    leases = [lease for epoch in range(3) for lease in odd_leases(NUM, epoch, epoch)]
    dealt = np.random.default_rng(1).integers(3, size=len(leases)).tolist()
    seen, dropped = Counter(), 0
    for worker in range(3):
        mine = [lease for lease, owner in zip(leases, dealt, strict=True) if owner == worker]
        places = [place.record for place in Order(NUM, 5).places(mine)]
        with data.training(batch_size=4, seed=5, leases=iter(mine)) as batches:
            found = targets(batches)
            assert batches.position == len(found) == batches.counts.read // 4 * 4
        assert found == places[: len(found)]  # the last ones fill no batch
        seen.update(found + places[len(found) :])
        dropped += len(places) - len(found)
    assert dropped < 3 * 4
    assert seen == Counter(dict.fromkeys(range(NUM), 3))


@all_kinds
def test_the_order_is_that_of_the_seed_however_leases_are_cut(data):
    orders = []
    for leases in (odd_leases(NUM, 0, 1), odd_leases(NUM, 0, 2), [Lease(0, 0, NUM)]):
        with data.training(batch_size=NUM, seed=3, leases=iter(leases)) as batches:
            orders.append(targets(batches))
    assert orders[0] == orders[1] == orders[2] == Order(NUM, 3).records(Lease(0, 0, NUM)).tolist()


@all_kinds
def test_batches_run_across_leases_and_epochs_and_have_one_size(data):
    with data.training(batch_size=16, seed=1, leases=forever(NUM, 7)) as batches:
        given = [next(batches) for _ in range(50)]
        assert batches.position == 800
    assert {len(y) for _, y, _ in given} == {16}
    seen = targets(given)
    assert all(sorted(seen[k * NUM : (k + 1) * NUM]) == list(range(NUM)) for k in range(7))


def test_without_shuffling_the_order_is_the_sources():
    data = Examples(Items(), shuffle=False)
    with data.training(batch_size=10, seed=1, leases=forever(NUM, 7)) as batches:
        assert targets(itertools.islice(batches, 20)) == [i % NUM for i in range(200)]


def test_heldout_is_one_ordered_pass_with_a_short_end():
    data = Examples(Items(), Items(7))
    for _ in range(2):
        given = list(data.heldout(batch_size=3))
        assert [len(y) for _, y, _ in given] == [3, 3, 1]
        assert targets(given) == list(range(7))
    assert targets(Examples(arrays(), arrays(7)).heldout(batch_size=3)) == list(range(7))
    assert [len(y) for _, y, _ in Examples(arrays(), arrays(2)).heldout(batch_size=8)] == [2]


def test_no_heldout_source_gives_no_batch():
    assert list(Examples(Items()).heldout(batch_size=3)) == []


def test_nests_of_arrays_keep_structure_and_dtype():
    numbers = np.arange(6)
    x = {
        "int": numbers.astype(np.int32),
        "small": numbers.astype(np.uint8),
        "half": numbers.astype(np.float16),
        "double": numbers.astype(np.float64),
        "bool": numbers > 2,
        "text": np.array([f"word {i}" for i in range(6)]),
        "bytes": [b"a\0", b"b", b"c", b"d", b"e", b"f"],
        "pair": (numbers, numbers[:, None]),
    }
    (given, y, weights) = first(Examples((x, None, numbers)), 6)
    assert y is None
    assert {key: str(given[key].dtype) for key in x if key != "pair"} == {
        "int": "int32",
        "small": "uint8",
        "half": "float16",
        "double": "float32",
        "bool": "bool",
        "text": "<U6",
        "bytes": "object",
    }
    assert isinstance(given["pair"], tuple)
    assert given["pair"][1].shape == (6, 1)
    assert weights.dtype == np.float32
    assert b"a\0" in given["bytes"].tolist()
    assert given["int"].tolist() == weights.tolist() == given["pair"][0].tolist()


def test_one_array_is_inputs_alone():
    x, y, weights = first(Examples(np.arange(20)[:, None]))
    assert (x.shape, y, weights) == ((5, 1), None, None)


def test_a_list_inside_a_tuple_is_a_column_or_several():
    x, y, _ = first(Examples(([np.arange(9), np.arange(9)], ["a"] * 9)))
    assert [len(each) for each in x] == [5, 5]
    assert y.tolist() == ["a"] * 5


def test_what_is_indexed_like_an_array_is_not_read_whole():
    class Stored:
        """As an h5py data set: no unordered indices."""

        shape, dtype = (50, 2), np.dtype(np.int64)

        def __len__(self):
            return 50

        def __getitem__(self, index):
            assert isinstance(index, int)
            return np.array([index, index])

    x, y, _ = first(Examples((Stored(), np.arange(50))))
    assert x[:, 0].tolist() == y.tolist()


def test_columns_are_chosen_by_name_and_read_by_one_call():
    rows = Rows(40)
    data = Examples(rows, inputs=("tokens", {"s": "text"}), targets="label", weights="w")
    x, y, weights = first(data, 40)
    assert x[0].shape == (40, 2)
    assert x[0][:, 0].tolist() == y.tolist()
    assert x[1]["s"].tolist() == [f"row {i}" for i in y]
    assert weights.tolist() == (y / 2).tolist()
    assert rows.num_calls < 10


def test_a_list_of_names_is_a_tuple_of_inputs():
    x, _, _ = first(Examples(Rows(), inputs=["label", "w"]))
    assert isinstance(x, tuple)
    assert x[1].dtype == np.float32


def test_columns_of_a_dict_of_arrays():
    x, y, _ = first(Examples({"a": np.arange(9), "b": np.arange(9) * 2}, inputs="a", targets="b"))
    assert (x * 2).tolist() == y.tolist()


@pytest.mark.parametrize("how", [{}, {"num_threads": 4}, {"num_processes": 2}])
def test_map_gets_random_numbers_of_the_place_alone(how):
    data = Examples(Items(), Items(), map=noisy, **how)
    given = {}
    for mine in ([Lease(2, 0, 40)], [Lease(2, 40, NUM)]):
        with data.training(batch_size=1, seed=7, leases=iter(mine)) as batches:
            given |= {int(y[0]): float(weights[0]) for _, y, weights in batches}
    records = Order(NUM, 7).records(Lease(2, 0, NUM)).tolist()
    expected = {record: augmentation(7, 2, position).random() for position, record in enumerate(records)}
    assert given == {record: np.float32(value) for record, value in expected.items()}
    if not how:
        assert all(weights.tolist() == [0] * len(y) for _, y, weights in data.heldout(batch_size=20))


def test_processes_read_in_order_and_end_with_the_iteration():
    data = Examples(opened_items, map=in_process, num_processes=2)
    data.check()
    with data.training(batch_size=10, seed=1, leases=forever(NUM, 7)) as batches:
        given = list(itertools.islice(batches, 12))
    pids = {int(pid) for _, _, weights in given for pid in weights}
    assert targets(given)[:NUM] == Order(NUM, 1).records(Lease(0, 0, NUM)).tolist()
    assert len(pids) in (1, 2)
    assert os.getpid() not in pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_processes_import_the_file_of_a_recipe(tmp_path):
    """Whose module no name leads to."""
    path = tmp_path / "own.py"
    path.write_text("def double(item):\n    return item[0], item[1] * 2\n")
    spec = importlib.util.spec_from_file_location("downpour_recipe_own", path)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        assert sorted(first(Examples(Items(), map=module.double, num_processes=1), NUM)[1]) == list(
            range(0, 2 * NUM, 2)
        )
    finally:
        del sys.modules[spec.name]


@pytest.mark.process
def test_processes_end_with_a_killed_parent():
    code = (
        "from tests.model.data.test_examples import Examples, Items, in_process, forever\n"
        "if __name__ == '__main__':\n"
        "    data = Examples(Items(), map=in_process, num_processes=1, batched=False)\n"
        "    batches = data.training(batch_size=1, seed=0, leases=forever(101, 7))\n"
        "    print(int(next(batches)[2][0]), flush=True)\n"
        "    input()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.kill()
    wait_until(lambda: not _lives(pid), "the end of the reading process")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("how", [{}, {"num_threads": 2}])
def test_what_map_leaves_out_has_a_position(how):
    data = Examples(Items(10), Items(10), map=only_even, **how)
    with data.training(batch_size=5, seed=1, leases=iter([Lease(0, 0, 10), Lease(1, 0, 10)])) as batches:
        positions = [(sorted(y.tolist()), batches.position) for _, y, _ in batches]
    assert [numbers for numbers, _ in positions] == [[0, 2, 4, 6, 8]] * 2
    order = Order(10, 1)
    last = [int(np.flatnonzero(order.records(Lease(e, 0, 10)) % 2 == 0)[-1]) for e in range(2)]
    assert [position for _, position in positions] == [last[0] + 1, 10 + last[1] + 1]
    assert targets(data.heldout(batch_size=2)) == [0, 2, 4, 6, 8]


def test_own_collate_pads():
    def pad(items):
        length = max(len(words) for words, _ in items)
        return np.array([words + [0] * (length - len(words)) for words, _ in items]), np.array([y for _, y in items])

    data = Examples([([7] * (1 + i % 4), i) for i in range(40)], collate=pad)
    data.check()
    with data.training(batch_size=4, seed=1, leases=forever(40, 7)) as batches:
        for x, y, _ in itertools.islice(batches, 10):
            assert (x > 0).sum(axis=1).tolist() == (1 + y % 4).tolist()


def test_class_weights_are_for_training_only():
    data = Examples((np.arange(9), np.arange(9) % 3), (np.arange(9), np.arange(9)), class_weight={0: 5, 2: 0.5})
    _, y, weights = first(data, 9)
    assert weights.tolist() == [{0: 5, 1: 1, 2: 0.5}[label] for label in y.tolist()]
    assert next(data.heldout(batch_size=9))[2] is None


def test_a_job_with_its_data_can_be_sent_before_and_after_it_was_opened():
    data = Examples(opened_items, opened_items)
    data.check()
    sent = pickle.loads(pickle.dumps(data))
    assert sorted(vars(sent)) == sorted(data.__getstate__())
    assert targets([first(sent)]) == targets([first(data)])


def test_a_function_is_called_once():
    calls = []

    def opening():
        calls.append(1)
        return Items()

    data = Examples(opening)
    data.check()
    first(data)
    first(data)
    assert len(calls) == 1


# What is refused.


def refusal(data: Examples, batch_size: int = 5) -> str:
    with pytest.raises(ValueError) as caught:
        data.check()
        with data.training(batch_size=batch_size, seed=0, leases=forever(data.num_records, 50)) as batches:
            for _ in itertools.islice(batches, 2 * data.num_records):
                pass
    return str(caught.value)


def test_lengths_of_arrays_differ():
    message = refusal(Examples(({"a": np.zeros(4), "b": np.zeros((5, 2))}, np.zeros(4))))
    assert "train: arrays differ in length: x['a'] has 4, x['b'] has 5, y has 4 examples" in message
    assert "x has 4, y has 4, sample_weight has 3 examples" in refusal(Examples((np.zeros(4), np.zeros(4), [1, 2, 3])))
    assert "train: arrays differ in length: ['a'] has 4, ['b'] has 5" in refusal(
        Examples({"a": np.zeros(4), "b": np.zeros(5)}, inputs="a", targets="b")
    )


@pytest.mark.parametrize(
    "source", [[], (np.zeros((0, 3)), np.zeros(0)), Items(0), {}], ids=["list", "array", "own", "no"]
)
def test_empty(source):
    assert "train is empty" in (message := refusal(Examples(source))) or "has no arrays" in message


@pytest.mark.parametrize("source", [None, 3, "text", iter([1]), {1, 2}])
def test_no_source(source):
    assert "train is a " in refusal(Examples(source))


def test_streams_are_sent_to_stream():
    import tensorflow as tf

    assert "give downpour.model.data.Stream(function)" in refusal(Examples(tf.data.Dataset.range(3)))
    assert "give downpour.model.data.Stream(function)" in refusal(Examples(x for x in range(3)))


def test_a_batch_larger_than_the_data():
    assert "batch_size is 8 and there are only 5 training examples" in refusal(Examples(Items(5)), 8)
    assert "batch_size is 0" in refusal(Examples(Items(5)), 0)


def test_a_source_that_grows_or_shrinks_later():
    for change in (1, -1):
        items = Items()
        data = Examples(items)
        with data.training(batch_size=5, seed=0, leases=forever(NUM, 50)) as batches:
            next(batches)
            items.num += change
            with pytest.raises(ValueError, match=rf"train has {NUM + change} items now and had {NUM}"):
                for _ in range(100):
                    next(batches)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["arrays", "items"])
def test_values_that_are_not_finite(kind, value):
    x = np.ones((50, 3, 2), np.float32)
    x[37, 1, 1] = value
    source = ({"a": x}, np.arange(50)) if kind == "arrays" else [({"a": a}, i) for i, a in enumerate(x)]
    assert f"train, example 37: x['a'] has {value}" in refusal(Examples(source))
    first(Examples(source, finite=False), 50)


def test_values_that_float32_has_not():
    x = np.ones((50, 2))
    x[37, 1] = 1e300
    assert "train, example 37: x has 1e+300" in refusal(Examples(x))
    assert "train, example 37: sample_weight has 1e+300" in refusal(Examples((x[:, :1], x[:, 0], x[:, 1])))


def test_large_finite_values_pass():
    first(Examples((np.full((50, 9), 3e38, np.float32), np.arange(50))), 50)


def test_objects_among_numbers():
    column = np.arange(30).astype(object)
    column[11] = None
    assert "train: y has dtype object: an array of objects has 0 (int)" in refusal(Examples((np.arange(30), column)))
    words = np.array(["a"] * 30, object)
    words[29] = 3.5
    assert "example 29: y has dtype object: an array of objects has 3.5" in refusal(Examples((np.arange(30), words)))
    rows = [({"a": 1}, 2)] * 30
    rows[12] = ({"a": None}, 2)
    assert "example 12: x['a'] has dtype object: an array of objects has None" in refusal(Examples(rows))


def test_items_of_other_shape_or_structure():
    items = [({"a": np.zeros(3)}, 1) for _ in range(30)]
    items[17] = ({"a": np.zeros(4)}, 1)
    message = refusal(Examples(items), 30)
    assert "example 17 has x['a'] (4,) float64" in message
    assert "x['a'] (3,) float64" in message
    items[17] = ({"a": np.zeros(3), "b": 1}, 1)
    assert "x['b'] () int64" in refusal(Examples(items), 30)
    items[17] = ({"a": np.zeros(3)},)
    assert "example 17" in refusal(Examples(items), 1)
    items[17] = ({"a": [[1], [2, 3]]}, 1)
    assert "train, example 17: x['a']: " in refusal(Examples(items), 1)
    assert "tuple of 4" in refusal(Examples([(1, 2, 3, 4)] * 5))


def test_items_of_other_dtype():
    assert "float64, and int64 before" in refusal(Examples([(1, i) for i in range(9)] + [(2.5, 9)], shuffle=False), 5)


def test_integers_among_floats_become_floats():
    data = Examples([(1.5, 0)] * 4 + [(2, 0)] * 4, shuffle=False)
    with data.training(batch_size=4, seed=0, leases=forever(8, 8)) as batches:
        assert [next(batches)[0].dtype for _ in range(3)] == [np.float32] * 3


def test_columns_that_are_missing():
    assert "no column 'image'; there are 'tokens', 'text', 'label', 'w', 'id'" in refusal(
        Examples(Rows(), inputs="image")
    )
    assert "name columns of a dict" in refusal(Examples(Items(), inputs="image"))
    with pytest.raises(ValueError, match="name the inputs as well"):
        Examples(Rows(), targets="label")


def test_heldout_of_other_structure():
    assert "give both the same structure" in refusal(Examples(arrays(), Items()))


def test_what_another_process_cannot_have():
    message = refusal(Examples(Items(), map=lambda item: item, num_processes=1))
    assert "map cannot be sent to a worker process" in message
    items = Items()
    items.lock = threading.Lock()
    assert "train cannot be sent to a worker process" in refusal(Examples(items, num_processes=1))


def test_errors_of_the_source_and_of_map_name_the_example():
    def fails(item):
        return 1 // (item[1] - 50), 0

    with pytest.raises(ZeroDivisionError) as caught:
        first(Examples(Items(), map=fails), NUM)
    assert caught.value.__notes__ == ["while mapping train, item 50"]


class Broken(Items):
    """Item 37 cannot be read."""

    def __getitem__(self, index: int):
        if index == 37:
            raise OSError("gone")
        return super().__getitem__(index)


class BrokenTogether(Broken):
    def __getitems__(self, indices: list[int]):
        return [self[index] for index in indices]


class BrokenPairs(Items):
    """Items cannot be read together."""

    def __getitems__(self, indices: list[int]):
        if len(indices) > 1:
            raise OSError("gone")
        return [self[index] for index in indices]


@pytest.mark.parametrize("how", [{}, {"num_threads": 2}, {"num_processes": 1}])
@pytest.mark.parametrize("kind", [Broken, BrokenTogether])
def test_an_item_that_cannot_be_read_is_named(kind, how):
    with pytest.raises(OSError, match="gone") as caught:
        first(Examples(kind(), **how), NUM)
    assert caught.value.__notes__ == ["while reading train, item 37"]


def test_items_that_cannot_be_read_together_are_named():
    with pytest.raises(OSError, match="gone") as caught:
        first(Examples(BrokenPairs(), shuffle=False), 3)
    assert caught.value.__notes__ == ["while reading train, one of items 0, 1, 2"]


def test_a_map_that_leaves_all_out():
    assert "all of 101 examples are left out" in refusal(Examples(Items(), map=lambda item: None))


def test_class_weights_that_cannot_be():
    x = np.arange(9)
    assert "cannot both be given" in refusal(Examples((x, x, x), class_weight={0: 2}))
    assert "targets that are one array" in refusal(Examples((x, {"a": x}), class_weight={0: 2}))
    assert "one label an example" in refusal(Examples((x, np.zeros((9, 2, 2))), class_weight={0: 2}))
    assert "class_weight has class 2, and targets y: (1, 2) float32 have 2 classes" in refusal(
        Examples((x, np.zeros((9, 2))), class_weight={2: 2})
    )
    assert "targets that are class numbers" in refusal(Examples((x, ["a"] * 9), class_weight={0: 2}))
    for weights, message in (
        ({"cat": 2.0}, "class 'cat'; give the number"),
        ({-1: 1}, "class -1"),
        ({0: np.nan}, "has nan for class 0"),
        ({0: -1.0}, "has -1.0 for class 0"),
        ({0: "2"}, "has '2' for class 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Examples((x, x), class_weight=weights)


def test_sample_weights_that_cannot_be():
    x, pixels = np.zeros((9, 4)), np.zeros((9, 5, 5, 1))
    for good in (np.ones(9), np.ones((9, 1)), np.arange(9) > 3):
        first(Examples((x, x[:, :1], good)), 9)
    for good in (np.ones(9), np.ones((9, 5)), np.ones((9, 5, 5)), np.ones((9, 5, 5, 1))):
        first(Examples((x, pixels, good)), 9)
    first(Examples((x, {"a": x, "b": pixels}, {"a": np.ones(9), "b": np.ones((9, 5))})), 9)
    first(Examples((x, None, np.ones((9, 7)))), 9)  # the model's own loss takes them
    message = refusal(Examples((x, pixels, np.ones((9, 4)))))
    assert "train, example 0: sample_weight is (1, 4) float64, and the targets are y: (1, 5, 5, 1) float64" in message
    assert "sample_weight['b'] is (1, 4)" in refusal(
        Examples((x, {"a": pixels, "b": pixels}, {"a": np.ones(9), "b": np.ones((9, 4))}))
    )
    assert "sample_weight is (1,) object; give numbers" in refusal(Examples((x, x, np.array(["a"] * 9))))


def test_dtypes_that_no_model_takes():
    days = np.array(["2026-01-01"] * 9, "datetime64[D]")
    assert "train, example 0: x['day'] has dtype datetime64[D]; give numbers" in refusal(
        Examples(({"day": days}, np.arange(9)))
    )
    records = np.zeros(9, [("a", "f4")])
    assert "x has dtype [('a', '<f4')]" in refusal(Examples(records))
    assert first(Examples(np.zeros((9, 2), np.longdouble)))[0].dtype == np.float32


class TestAllOfTheArrays:
    """What `check_all` sees before anything is trained, and `check` does not."""

    def refused(self, *given, **more) -> str:
        data = Examples(*given, **more)
        data.check()
        with pytest.raises(ValueError) as caught:
            data.check_all()
        return str(caught.value)

    def test_good_ones_pass(self, monkeypatch):
        monkeypatch.setattr(indexed, "_PIECE_BYTES", 100)
        Examples(arrays(), arrays(7)).check_all()
        x = np.arange(50)
        Examples((x, x % 3), (x, x * 9), class_weight={0: 2, 2: 1}).check_all()
        Examples({"a": x, "b": x}, inputs="a", targets="b").check_all()

    @pytest.mark.parametrize("piece_bytes", [1, 100, 1 << 20])
    def test_values_that_are_not_finite(self, monkeypatch, piece_bytes):
        monkeypatch.setattr(indexed, "_PIECE_BYTES", piece_bytes)
        y = np.zeros((50, 3), np.float32)
        y[37, 1] = np.inf
        assert "train, example 37: y['b'] has inf" in self.refused((np.zeros(50), {"b": y}))
        assert "validation, example 37: y['b'] has inf" in self.refused(
            (np.zeros(9), {"b": y[:9]}), (np.zeros(50), {"b": y})
        )
        Examples((np.zeros(50), {"b": y}), finite=False).check_all()

    def test_objects(self):
        words = np.array(["a"] * 30, object)
        words[19] = None
        assert "train, example 19: x has dtype object: an array of objects has None" in self.refused(words)

    def test_class_weights_without_a_label(self):
        x = np.arange(50)
        message = self.refused((x, x % 3), class_weight={0: 1, 3: 2, 7: 1})
        assert "class_weight has [3, 7], and no example of train has such a label" in message
        assert "class_weight has [2]" in self.refused((x, np.eye(3)[x % 2]), class_weight={2: 2})

    def test_what_a_function_changes_is_read_when_it_is_trained_on(self):
        x = np.arange(50.0)
        x[3] = np.nan
        Examples((x, x), map=twice).check_all()
        Examples(Items()).check_all()


def test_tensors_are_arrays():
    import tensorflow as tf

    x, y, _ = first(Examples((tf.reshape(tf.range(40.0), (20, 2)), {"a": tf.range(20)})))
    assert x[:, 0].tolist() == (2 * y["a"]).tolist()


def test_a_column_may_be_a_function_that_returns_it():
    x, y, _ = first(Examples((lambda: np.arange(20), np.arange(20))))
    assert x.tolist() == y.tolist()


def looks_like(module: str, name: str, *bases: type, **names) -> type:
    """A class that is called like one of a package."""
    return type(name, bases, {"__module__": module, **names})


def test_what_is_nearly_a_source_names_what_is():
    loader = looks_like("torch.utils.data.dataloader", "DataLoader", __len__=lambda self: 3, __iter__=lambda self: None)
    assert "train is a DataLoader; give its dataset" in refusal(Examples(loader()))
    splits = looks_like("datasets.dataset_dict", "DatasetDict", dict)
    assert "train is a DatasetDict; give one of its splits: train, test" in refusal(
        Examples(splits(train=Rows(), test=Rows()))
    )
    for module, name in (("polars.dataframe.frame", "DataFrame"), ("pyarrow.lib", "Table")):
        table = looks_like(module, name, Items)
        assert "give its columns as arrays" in refusal(Examples(table()))


def test_settings_out_of_range():
    for name, value in (("num_threads", 0), ("num_processes", -1)):
        with pytest.raises(ValueError, match=f"{name} is {value}"):
            Examples(Items(), **{name: value})
