"""Files of features: one row a picture, written as they come, in memory that does not grow with their number.

| ending | what it is |
|---|---|
| `.parquet` | columns `name`, `split`, `labels` (a list of numbers) and `features` (a list of fixed length, float32) |
| `.npz` | arrays `names`, `splits`, `features` [N, ...] float32; `labels` of picture i end before `ends[i]` |

Both hold what `About` says as JSON: under the key `downpour` of the Parquet schema, as the array `about`. Labels are
those of the record, without their ancestors. Parquet needs pyarrow, which is imported when such a file is opened.

Shapes: `N` pictures, `F` numbers in a picture's features.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from downpour import files, how_to_install
from downpour.model.vision.labels import LabelTree

PARQUET, NPZ = ".parquet", ".npz"
_KEY = b"downpour"


@dataclass(frozen=True)
class About:
    """What the features of a file are.

    Attributes:
        layer: Name of the layer whose output they are.
        shape: Shape of one picture's features.
        checkpoint: Where the network's values came from.
        labels: The label tree, as its file `labels.json` holds it.
    """

    layer: str
    shape: tuple[int, ...]
    checkpoint: str
    labels: Mapping[str, Any]

    @classmethod
    def of(cls, layer: str, shape: Sequence[int], checkpoint: str, tree: LabelTree) -> About:
        """Returns it, with a label tree as JSON."""
        return cls(layer, tuple(shape), checkpoint, tree.as_json())

    @property
    def tree(self) -> LabelTree:
        """The label tree.

        Raises:
            ValueError: It is not valid.
        """
        return LabelTree.of_json(self.labels, "the label tree of the features")


@dataclass(frozen=True)
class Features:
    """The features of a set of pictures.

    Attributes:
        names: Name of each picture.
        splits: `train`, `heldout` or "" for each.
        labels: Labels of each, without ancestors.
        values: [N, F] float32.
        about: What they are.
    """

    names: list[str]
    splits: list[str]
    labels: list[tuple[int, ...]]
    values: np.ndarray
    about: About


class Writer(Protocol):
    """Writes rows."""

    def add(self, names: list[str], splits: list[str], labels: list[tuple[int, ...]], values: np.ndarray) -> None:
        """Writes the rows of some pictures; `values` is [n, *shape]."""
        ...


def check_ending(path: Path) -> None:
    """Raises `ValueError` for an ending that is neither of the two, or for Parquet without pyarrow."""
    if path.suffix not in (PARQUET, NPZ):
        raise ValueError(f"{path} ends in {path.suffix!r}; accepted are {PARQUET} and {NPZ}")
    if path.suffix == PARQUET:
        _pyarrow()


@contextlib.contextmanager
def writing(path: Path, about: About) -> Iterator[Writer]:
    """Yields the writer of a new file, which appears under its name when the block has succeeded.

    Raises:
        ValueError: The ending is unknown, or Parquet's package is missing.
        OSError: The file cannot be written.
    """
    check_ending(path)
    kind = _ParquetWriter if path.suffix == PARQUET else _NpzWriter
    with files.replacing(path, ending=path.suffix) as temporary, kind(temporary, about) as writer:
        yield writer


def read(path: Path) -> Features:
    """Reads a whole file.

    Raises:
        ValueError: It is missing, or no file of features.
    """
    check_ending(path)
    if not path.is_file():
        raise ValueError(f"{path} is missing; write it with downpour features")
    try:
        return _read_parquet(path) if path.suffix == PARQUET else _read_npz(path)
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no file that downpour features has written: {error}") from None


class _ParquetWriter(contextlib.AbstractContextManager["_ParquetWriter"]):
    def __init__(self, path: Path, about: About) -> None:
        pa, parquet = _pyarrow()
        columns = [("name", pa.string()), ("split", pa.string()), ("labels", pa.list_(pa.int32()))]
        columns.append(("features", pa.list_(pa.float32(), int(np.prod(about.shape)))))
        self._schema = pa.schema(columns, metadata={_KEY: json.dumps(asdict(about))})
        self._pa, self._writer = pa, parquet.ParquetWriter(path, self._schema)

    def add(self, names: list[str], splits: list[str], labels: list[tuple[int, ...]], values: np.ndarray) -> None:
        flat = self._pa.array(np.ascontiguousarray(values, np.float32).ravel())
        rows = self._pa.FixedSizeListArray.from_arrays(flat, values[0].size)
        numbers = self._pa.array([list(of) for of in labels], self._pa.list_(self._pa.int32()))
        self._writer.write_batch(self._pa.record_batch([names, splits, numbers, rows], schema=self._schema))

    def __exit__(self, *_: object) -> None:
        self._writer.close()


class _NpzWriter(contextlib.AbstractContextManager["_NpzWriter"]):
    """Collects the features in a file beside, since the header of an array has its length, which is known last."""

    def __init__(self, path: Path, about: About) -> None:
        self._path, self._about = path, about
        self._names, self._splits = list[str](), list[str]()
        self._labels, self._ends = list[int](), list[int]()
        self._raw = tempfile.TemporaryFile(dir=path.parent)  # closed by __exit__

    def add(self, names: list[str], splits: list[str], labels: list[tuple[int, ...]], values: np.ndarray) -> None:
        self._names += names
        self._splits += splits
        for of in labels:
            self._labels += of
            self._ends.append(len(self._labels))
        self._raw.write(np.ascontiguousarray(values, np.float32).data)

    def __exit__(self, kind: type | None, *_: object) -> None:
        with self._raw:
            if kind is None:
                self._finish()

    def _finish(self) -> None:
        arrays = {
            "about": np.array(json.dumps(asdict(self._about))),
            "names": np.array(self._names, np.str_),
            "splits": np.array(self._splits, np.str_),
            "labels": np.array(self._labels, np.int32),
            "ends": np.array(self._ends, np.int64),
        }
        with zipfile.ZipFile(self._path, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w") as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)
            with archive.open("features.npy", "w", force_zip64=True) as file:
                shape = (len(self._names), *self._about.shape)
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_2_0(file, header)
                self._raw.seek(0)
                shutil.copyfileobj(self._raw, file, 1 << 20)


def _about(text: str | bytes) -> About:
    content = json.loads(text)
    return About(**{**content, "shape": tuple(content["shape"])})


def _read_parquet(path: Path) -> Features:
    _, parquet = _pyarrow()
    table = parquet.read_table(path)
    about = _about((table.schema.metadata or {})[_KEY])
    values = table["features"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    labels = [tuple(of) for of in table["labels"].to_pylist()]
    rows = values.reshape(table.num_rows, -1)
    return Features(table["name"].to_pylist(), table["split"].to_pylist(), labels, rows, about)


def _read_npz(path: Path) -> Features:
    with np.load(path) as found:
        ends = found["ends"].tolist()
        numbers = found["labels"].tolist()
        labels = [tuple(numbers[begin:end]) for begin, end in zip([0, *ends], ends, strict=False)]
        values = found["features"].reshape(len(ends), -1)
        about = _about(str(found["about"]))
        return Features(found["names"].tolist(), found["splits"].tolist(), labels, values, about)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f"Parquet files need pyarrow: {how_to_install('images')}; or write {NPZ}") from None
    return pyarrow, parquet
