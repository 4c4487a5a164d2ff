"""What `fit` writes into a recipe is what another process reads: values, arrays and data sources."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from downpour.launch.job import digests
from downpour.launch.job.written import Writer
from downpour.model.data import Examples
from downpour.model.data.order import Lease
from downpour.model.data.pickled import Pickled


class Rows:
    """As a torch or Hugging Face data set."""

    def __init__(self, values: Any, transform: Any = None) -> None:
        self.values, self.again, self.transform = values, values, transform

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Any:
        return self.values[index], index


def twice(value: Any) -> Any:
    return value * 2


def read(source: str, writer: Writer, folder: Path) -> Any:
    """What the recipe makes of the source."""
    names: dict[str, Any] = {"HERE": folder}
    exec("\n".join(sorted(writer.imports)), names)
    return eval(source, names)


def written(value: Any, folder: Path) -> Any:
    writer = Writer(folder / "data")
    source = writer.source(value, "data.train")
    assert not (folder / "data").exists(), "nothing is written before all values have a source"
    writer.save()
    return read(source, writer, folder)


def examples_of(source: Any) -> list[Any]:
    data = Examples(source)
    data.check()
    with data.training(batch_size=1, seed=0, leases=iter([Lease(0, 0, data.num_records)])) as batches:
        return sorted((int(y[0]), float(np.sum(x))) for x, y, _ in batches)


@pytest.mark.parametrize(
    "source",
    [
        Rows(np.arange(300.0)),
        Rows([np.full(3, i) for i in range(50)], transform=twice),
        [(np.full(3, i), i) for i in range(150)],
        (np.arange(40.0), np.arange(40)),
        ([f"{i}" for i in range(3)], np.arange(3)),
    ],
    ids=["object", "object of a list", "long list", "arrays", "short list"],
)
def test_a_source_is_read_as_it_was_given(tmp_path: Path, source: Any) -> None:
    if isinstance(source, tuple) and isinstance(source[0], list):
        assert written(source, tmp_path)[0] == source[0]
    else:
        assert examples_of(written(source, tmp_path)) == examples_of(source)


def test_a_column_may_be_a_long_list(tmp_path: Path) -> None:
    words = [f"word {i}" for i in range(200)]
    data = Examples(written((words, np.arange(200)), tmp_path), shuffle=False)
    with data.training(batch_size=200, seed=0, leases=iter([Lease(0, 0, 200)])) as batches:
        assert next(batches)[0].tolist() == words


class Cached(Rows):
    @functools.cached_property
    def read(self) -> Any:
        return lambda index: self.values[index]

    def __getitem__(self, index: int) -> Any:
        return self.read(index), index


def test_a_source_that_has_been_read_is_as_before(tmp_path: Path) -> None:
    source = Cached([np.full(3, i) for i in range(50)])
    before = examples_of(source)
    assert "read" in vars(source) and examples_of(written(source, tmp_path)) == before


def test_large_arrays_of_a_source_are_files_that_are_mapped_once(tmp_path: Path) -> None:
    values = np.arange(1 << 18, dtype=np.float64)
    pickled = written(Rows(values), tmp_path)
    assert isinstance(pickled, Pickled) and pickled.path.stat().st_size < 2000
    assert [path.name for path in (tmp_path / "data").glob("*.npy")] == ["0.npy"]
    found = pickled()
    assert isinstance(found.values.base, np.memmap) and np.array_equal(found.values, values)
    found.values[3] = 7  # as a source may; in this process alone
    assert pickled().values[3] == 3


def test_a_file_that_has_changed_is_refused(tmp_path: Path) -> None:
    pickled = written(Rows([1]), tmp_path)
    written(Rows([2]), tmp_path / "other")
    pickled.path.write_bytes((tmp_path / "other" / "data" / pickled.path.name).read_bytes())
    with pytest.raises(ValueError, match=r"0\.pickle has changed since the recipe beside it was written"):
        pickled()


def test_keys_of_numpy_are_numbers(tmp_path: Path) -> None:
    assert written({np.int64(3): np.float32(0.5), "a": 1}, tmp_path) == {3: 0.5, "a": 1}


def test_files_of_an_earlier_recipe_are_replaced_and_removed(tmp_path: Path) -> None:
    for values in ([np.arange(3), np.arange(4), Rows([1])], [np.arange(5)]):
        writer = Writer(tmp_path / "data")
        writer.source(values, "data")
        writer.save()
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["0.npy", digests.SUMS]


@pytest.mark.process
def test_a_class_of_a_script_is_found_where_the_script_is(tmp_path: Path) -> None:
    """Another process imports the script, and neither as `__main__` nor with what it runs."""
    writes = (
        "import sys\nfrom pathlib import Path\nfrom downpour.launch.job.written import Writer\n"
        "def twice(x):\n    return 2 * x\n"
        "class Own:\n"
        "    def __init__(self):\n        self.function = twice\n"
        "    def __len__(self):\n        return 9\n"
        "    def __getitem__(self, i):\n        return self.function(i)\n"
        "if __name__ == '__main__':\n"
        "    writer = Writer(Path(sys.argv[1]) / 'data')\n"
        "    source = writer.source(Own(), 'data')\n    writer.save()\n    print(source)\n"
    )
    reads = (
        "import sys\nfrom pathlib import Path\nfrom downpour.model.data.pickled import Pickled\n"
        "HERE = Path(sys.argv[1])\nfound = eval(sys.argv[2])()\nprint(type(found).__module__, found[4])\n"
    )
    (tmp_path / "script.py").write_text(writes)
    (tmp_path / "reads.py").write_text(reads)

    def run(name: str, *arguments: str) -> str:
        command: Sequence[str] = [sys.executable, str(tmp_path / name), str(tmp_path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert run("reads.py", run("script.py")) == f"downpour_script:{tmp_path / 'script.py'} 8"


def refused(value: Any, folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        Writer(folder / "data").source(value, "data.train")
    assert not (folder / "data").exists()
    return str(caught.value)


def test_what_another_process_cannot_have_is_named_with_the_way_out(tmp_path: Path) -> None:
    local = type("Here", (Rows,), {"__qualname__": "test.<locals>.Here"})
    message = refused(Rows([threading.Lock()]), tmp_path)
    assert message.startswith("data.train is a Rows, which cannot be pickled (cannot pickle '_thread.lock' object); ")
    assert "give arrays, or a function at the top level of a file that returns it: every process" in message
    assert "data.train is a Here, of which a part is test.<locals>.Here, a lambda or local" in refused(
        local([1]), tmp_path
    )
    assert "of which a part is test_what" in refused(Rows([1], lambda item: item), tmp_path)
    assert "data.train is a generator, which lives in this process only" in refused((i for i in [1]), tmp_path)
