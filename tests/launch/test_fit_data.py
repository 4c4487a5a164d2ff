"""What people have as data, given to `fit`: written so that the processes of a job read the same examples."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import downpour
from downpour.launch.job import recipe
from downpour.launch.job.same_job import same_fields
from downpour.model.data import Examples, Stream
from downpour.model.data.batches import positions_in_batch
from downpour.model.data.order import forever
from downpour.model.data.pickled import Pickled

NUM = 48


def row(number: int) -> np.ndarray:
    return np.full(6, number, np.float32)


X = np.stack([row(number) for number in range(NUM)])
Y = X[:, :1]


class Batches(keras.utils.PyDataset):
    def __len__(self) -> int:
        return NUM // 8

    def __getitem__(self, index: int) -> Any:
        part = slice(8 * index, 8 * index + 8)
        return X[part], Y[part]


class Rows:
    """As a torch data set."""

    def __init__(self, transform: Callable[[Any], Any]) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return NUM

    def __getitem__(self, index: int) -> Any:
        return self.transform(row(index)), row(index)[:1]


class Columns(Rows):
    """As a Hugging Face data set."""

    def __getitem__(self, index: int) -> Any:
        return {"a": row(index).tolist(), "b": [float(index)], "id": index}

    def __getitems__(self, indices: list[int]) -> Any:
        return [self[index] for index in indices]


def same(value: Any) -> Any:
    return value


def rows() -> Any:
    return Rows(same)


def part(worker: int, num_workers: int) -> Iterator[Any]:
    return iter([(row(i), row(i)[:1]) for i in range(worker, NUM, num_workers)])


def tf_part(worker: int, num_workers: int) -> Any:
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((X, Y)).shard(num_workers, worker)


def grain_source() -> Any:
    grain = pytest.importorskip("grain")
    return grain.MapDataset.source(Rows(same)).map(same)


def tensors() -> Any:
    import tensorflow as tf

    return tf.constant(X), tf.constant(Y)


KINDS: dict[str, Callable[[], Any]] = {
    "arrays": lambda: (X, Y),
    "tensors": tensors,
    "list": lambda: [(row(i), row(i)[:1]) for i in range(NUM)],
    "torch": lambda: Rows(same),
    "Hugging Face": lambda: Examples(Columns(same), inputs="a", targets="b"),
    "PyDataset": Batches,
    "Grain": grain_source,
    "Grain's batches": lambda: Examples(grain_source().shuffle(seed=1).batch(8), shuffle=False, batched=True),
    "function": lambda: rows,
    "generator": lambda: Stream(part, (X, Y), num_examples=NUM),
    "tf.data": lambda: Stream(tf_part, part, num_examples=NUM),
}


def compiled() -> keras.Model:
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile(loss="mse", optimizer="sgd")
    return model


def dry(tmp_path: Path, data: Any, **more: Any) -> Any:
    return downpour.fit(compiled(), data, run_dir=tmp_path / "run", dry_run=True, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_from_the_recipe(tmp_path: Path, kind: str) -> None:
    run = dry(tmp_path, KINDS[kind](), batch_size=None if "atch" in kind or kind == "PyDataset" else 8, epochs=2)
    job = recipe.load(run.recipe)
    assert (job.num_steps, job.batch_size) == (2 * NUM // 8, 8)
    data: Any = job.data
    data.check()
    with data.training(batch_size=8, seed=1, leases=forever(data.num_records, 4)) as batches:
        given = [next(batches) for _ in range(NUM // 8)]
    assert sorted(int(label) for _, y, _ in given for label in y[:, 0]) == list(range(NUM))
    assert all((x == y).all() and x.shape == (8, 6) for x, y, _ in given)


def test_a_process_that_reads_no_data_unpickles_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards and chief import neither Keras nor what else a source needs."""
    run = dry(tmp_path, Batches(), validation_data=Rows(same))
    monkeypatch.setattr(Pickled, "__call__", lambda self: pytest.fail("unpickled"))
    job = recipe.load(run.recipe)
    assert job.batch_size == 8 and isinstance(job.data.train, Pickled)  # type: ignore[attr-defined]
    assert isinstance(job.data.validation, Pickled)  # type: ignore[attr-defined]
    assert (job.data.num_records, positions_in_batch(job.data, 8)) == (NUM // 8, 1) and same_fields(job)


BAD = X.copy()
BAD[31, 2] = np.nan


@pytest.mark.parametrize(
    ("data", "more", "message"),
    [
        (lambda: (BAD, Y), {}, r"^data, example 31: x has nan"),
        (lambda: (X, Y, np.ones((NUM, 3))), {}, r"sample_weight is \(1, 3\) float64, and the targets are y: \(1, 1\)"),
        (lambda: (X, X, Y[:9]), {}, "x has 48, y has 48, sample_weight has 9 examples"),
        (lambda: (X, np.arange(NUM) % 3), {"class_weight": {0: 1.0, 5: 2.0}}, r"class_weight has \[5\], and no"),
        (lambda: (X, Y), {"class_weight": {"cat": 1.0}}, "class_weight has class 'cat'"),
        (lambda: Rows(lambda value: value), {}, "data is a Rows, of which a part is .*<lambda>, a lambda"),
        (lambda: tf_part(0, 1), {}, r"^data is a tensorflow.*Dataset, which .* downpour\.model\.data\.Stream\("),
        (lambda: (X, Y), {"validation_data": tf_part(0, 1)}, "^validation_data is a tensorflow.*no length and index"),
        (lambda: (X, Y), {"validation_data": X}, "^data has x: .*, and validation_data x: "),
        (lambda: part, {}, "an epoch of this stream has no length; give Stream its num_examples"),
        (lambda: Batches(), {"batch_size": 16}, "batch_size is 16, and items of the data are batches of 8"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named_before_anything_is_written(
    tmp_path: Path, data: Any, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dry(tmp_path, data(), **more)
    assert not (tmp_path / "run").exists()


SCRIPT = """
import sys, time
import keras, numpy as np
import downpour


def examples(numbers):
    x = np.stack([np.random.default_rng(number).standard_normal(6).astype("f") for number in numbers])
    return x, x.sum(1, keepdims=True)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 50

    def __getitem__(self, index):
        time.sleep(0.01)
        return examples(range(16 * index, 16 * index + 16))


class Rows:
    def __init__(self, bad=None):
        self.bad = bad

    def __len__(self):
        return 100

    def __getitem__(self, index):
        if index == self.bad:
            return {}["an image"]
        x, y = examples([1000 + index])
        return x[0], y[0]


if __name__ == "__main__":
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)], name="sum")
    model.compile(optimizer=keras.optimizers.Adam(0.05), loss="mse", metrics=["mae"])
    kind, folder = sys.argv[1:]
    if kind == "good":
        run = downpour.fit(model, Batches(), validation_data=Rows(), epochs=4, run_dir=folder)
        summary = run.wait(240)
        assert summary["epochs"] >= 4 and run.history["val_mae"][-1] < 0.5, (summary, run.history)
        parts = summary["seconds_per_step"]
        assert 0.001 < parts["input"] < 0.2, parts
    else:
        run = downpour.fit(model, Rows(bad=37), batch_size=10, epochs=400, run_dir=folder)
        try:
            run.wait(240)
        except Exception as error:
            print(error)
"""


def script(tmp_path: Path, kind: str) -> str:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), kind, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.process
@pytest.mark.slow
def test_sources_of_a_script_are_trained_on_and_scored(tmp_path: Path) -> None:
    script(tmp_path, "good")


@pytest.mark.process
@pytest.mark.slow
def test_an_item_that_cannot_be_read_ends_the_run_by_its_number(tmp_path: Path) -> None:
    assert "KeyError: 'an image' (" in (said := script(tmp_path, "bad")) and "reading train, item 37)" in said
