"""Reads indexed sources: nests of arrays, and anything with `__len__` and `__getitem__`.

`Source` tells the kind of a source by what it is: columns (a dict or tuple of arrays, or one array,
indexed along axis 0), `keras.utils.PyDataset` (an item is a batch), Grain's `MapDataset` (an index beyond the length
means a later epoch, for which it draws other random numbers), or items, as of torch and Hugging Face. Neither Keras
nor Grain is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from downpour.model.data.nests import check_strings, describe, flatten, map_leaves, stack, to_array
from downpour.model.data.order import Place
from downpour.model.data.pickled import Pickled

_PARTS = ("x", "y", "sample_weight")  # of a tuple
_PIECE_BYTES = 1 << 25


class Opened(Protocol):
    """An open source.

    Attributes:
        batched: Whether its items are batches.
    """

    batched: bool

    def __len__(self) -> int:
        """Number of items."""
        ...

    def read(self, places: Sequence[Place]) -> Iterable[Any]:
        """The items at some places of an epoch; None for one that a filter of the source leaves out.

        One that cannot be read is named by how many were given before it, unless the source reads all in one call.
        """
        ...


class Columns:
    """A nest of arrays of the same length; an item is the nest of their rows.

    Raises:
        ValueError: There is no array, an array has no axis, or lengths differ.
    """

    batched = False

    def __init__(self, nest: Any, name: str) -> None:
        self._nest = map_leaves(lambda path, leaf: _column(f"{name}: {_part(nest, path)}", leaf), nest)
        leaves = {_part(nest, path): leaf for path, leaf in flatten(self._nest).items() if leaf is not None}
        if not leaves:
            raise ValueError(f"{name} has no arrays; give arrays that are indexed along axis 0")
        if len({len(leaf) for leaf in leaves.values()}) > 1:
            lengths = ", ".join(f"{path} has {len(leaf)}" for path, leaf in leaves.items())
            raise ValueError(f"{name}: arrays differ in length: {lengths} examples; give as many of each")

    def __len__(self) -> int:
        return len(next(self._arrays()))

    def read(self, places: Sequence[Place]) -> list[Any]:
        """See `Opened.read`."""
        return [self._rows(place.record) for place in places]

    def take(self, records: NDArray[np.int64]) -> Any:
        """The nest of arrays [B, ...] of some rows [B]: all rows of an array in one call."""
        return self._rows(records)

    def pieces(self) -> Iterator[tuple[range, Any]]:
        """Yields all rows in order, some at a time: their numbers and the nest of arrays, which are views.

        Nothing is yielded where an array is not numpy's: reading all of it may take hours.
        """
        if not all(isinstance(leaf, np.ndarray) for leaf in self._arrays()):
            return
        row_bytes = sum(leaf.nbytes // max(len(leaf), 1) for leaf in self._arrays())
        size = max(1, _PIECE_BYTES // max(row_bytes, 1))
        for start in range(0, len(self), size):
            rows = range(start, min(start + size, len(self)))
            yield rows, self._rows(slice(rows.start, rows.stop))

    def _arrays(self) -> Iterator[Any]:
        return (leaf for leaf in flatten(self._nest).values() if leaf is not None)

    def _rows(self, index: Any) -> Any:
        return map_leaves(lambda _, leaf: _rows_of(leaf, index), self._nest)


class Items:
    """A source whose `__getitem__` gives an item; read in one call where it has `__getitems__`.

    Args:
        source: The source.
        batched: Whether its items are batches.
    """

    def __init__(self, source: Any, batched: bool) -> None:
        self.batched = batched
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def read(self, places: Sequence[Place]) -> Iterable[Any]:
        """See `Opened.read`."""
        if hasattr(self._source, "__getitems__"):
            together: Iterable[Any] = self._source.__getitems__([place.record for place in places])
            return together
        return (self._source[place.record] for place in places)


class GrainItems(Items):
    """A Grain `MapDataset`, indexed by epoch and record, so that its `shuffle` and `random_map` differ by epoch."""

    def read(self, places: Sequence[Place]) -> Iterable[Any]:
        """See `Opened.read`."""
        length = len(self)
        return (self._source[place.epoch * length + place.record] for place in places)


@dataclass(frozen=True, eq=False)
class Source:
    """A source, opened once in every process that it is sent to.

    Attributes:
        given: A source, or a function without arguments that returns one.
        name: What messages call it: train or validation.
        batched: Whether its items are batches; None for what its kind says.
    """

    given: Any
    name: str
    batched: bool | None

    def __getstate__(self) -> dict[str, Any]:
        """The fields, without the open source."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def __len__(self) -> int:
        """Number of items; a source in a file need not be opened for it. Raises as `opened` does."""
        return self.given.num_items if isinstance(self.given, Pickled) else len(self.opened)

    @property
    def has_batches(self) -> bool:
        """Whether its items are batches; a source in a file need not be opened for it. Raises as `opened` does."""
        if not isinstance(self.given, Pickled):
            return self.opened.batched
        return self.batched is not False if self.given.batched else bool(self.batched)

    @cached_property
    def value(self) -> Any:
        """The source itself: what the function returns, if one is given."""
        given = self.given
        return given() if callable(given) and (isinstance(given, type) or not hasattr(given, "__getitem__")) else given

    @cached_property
    def opened(self) -> Opened:
        """The open source.

        Raises:
            ValueError: It is no indexed source, its arrays differ in length, or it has no or endless items.
        """
        found = _adapter(self.value, self.name, self.batched)
        if not len(found):
            raise ValueError(f"{self.name} is empty; give at least one example")
        if len(found) > sys.maxsize // 2:
            raise ValueError(
                f"{self.name} is endless; leave repeat() out, since the job's epochs repeat it"
                ", or use downpour.model.data.Stream"
            )
        return found


def rows_directly(source: Opened) -> Columns | None:
    """The source if a batch of it can be read without making its examples, else None."""
    return source if isinstance(source, Columns) else None


def is_batched(source: Any) -> bool:
    """Whether the items of a source are batches by its kind: `keras.utils.PyDataset`."""
    return is_a(source, "keras", "PyDataset")


def is_a(value: Any, package: str, name: str) -> bool:
    """Whether a value is an instance of a package's class, without importing the package."""
    return any(c.__name__ == name and c.__module__.split(".")[0] == package for c in type(value).__mro__)


_STREAMS = (
    "for tf.data, generators and other iterables give downpour.model.data.Stream(function), whose function of "
    "(worker_index, num_workers), at the top level of a file, makes and returns the part of one worker (docs/data.md)"
)
_TABLES = (("polars", "DataFrame"), ("pyarrow", "Table"))
_SPLITS = (("datasets", "DatasetDict"), ("datasets", "IterableDatasetDict"))


def _adapter(given: Any, name: str, batched: bool | None) -> Opened:
    if any(is_a(given, *splits) for splits in _SPLITS):
        raise ValueError(f"{name} is a {type(given).__name__}; give one of its splits: {', '.join(given)}")
    if is_a(given, "torch", "DataLoader"):
        raise ValueError(f"{name} is a DataLoader; give its dataset, which is batched and shuffled here")
    if isinstance(given, Mapping | tuple | np.ndarray) or (hasattr(given, "shape") and hasattr(given, "dtype")):
        if batched:
            raise ValueError(f"{name} is arrays and batched=True; leave batched out, arrays are cut into batches here")
        return Columns(given, name)
    kind = f"{type(given).__module__}.{type(given).__qualname__}"
    if not (hasattr(given, "__len__") and hasattr(given, "__getitem__")) or isinstance(given, str | bytes):
        raise ValueError(
            f"{name} is a {kind}, which has no length and index; give arrays, or an object with __len__ and "
            f"__getitem__; {_STREAMS}"
        )
    if hasattr(given, "iloc") or any(is_a(given, *table) for table in _TABLES):
        raise ValueError(
            f"{name} is a {kind}; give its columns as arrays: {{name: table[name].to_numpy() for name in columns}}"
        )
    if is_batched(given):
        _check_py_dataset(given, name)
        return Items(given, batched is not False)
    if is_a(given, "grain", "MapDataset"):
        return GrainItems(given, bool(batched))
    return Items(given, bool(batched))


def _check_py_dataset(given: Any, name: str) -> None:
    """Refuses hooks that cannot be called, since workers are in different epochs at one time."""
    base = next(c for c in type(given).__mro__ if c.__name__ == "PyDataset")
    for hook in ("on_epoch_begin", "on_epoch_end"):
        if getattr(type(given), hook) is not getattr(base, hook):
            raise ValueError(
                f"{name}: {type(given).__qualname__}.{hook} is never called, since workers read parts of several "
                "epochs at one time; remove it: the order of the batches is shuffled here, the same in every worker"
            )


def _part(nest: Any, path: str) -> str:
    """What messages call a leaf of a nest: `x`, `y` and `sample_weight` for the parts of a tuple of these."""
    if type(nest) is not tuple or len(nest) > len(_PARTS):
        return path or "x"
    number, _, rest = path[1:].partition("]")
    return f"{_PARTS[int(number)]}{rest}"


def _rows_of(leaf: Any, index: Any) -> Any:
    """A row, or rows [B, ...]; one by one of what is not numpy's, since h5py takes no unordered indices."""
    if leaf is None:
        return None
    if isinstance(leaf, np.ndarray) or np.ndim(index) == 0:
        return leaf[index]
    return stack([to_array(leaf[int(i)]) for i in index])


def _column(path: str, leaf: Any) -> Any:
    """An array, or what is indexed like one (h5py, zarr, memory-mapped): that is not read here."""
    if hasattr(leaf, "iloc"):
        raise ValueError(f"{path} is a {type(leaf).__name__}, indexed by labels; give an array, its .to_numpy()")
    if leaf is None:
        return None
    if callable(leaf) and not hasattr(leaf, "__getitem__"):
        leaf = leaf()
    is_array = hasattr(leaf, "shape") and hasattr(leaf, "dtype") and hasattr(leaf, "__getitem__")
    if not is_array or hasattr(leaf, "__dlpack__"):  # in memory: of TensorFlow, torch, JAX, numpy
        try:
            leaf = to_array(leaf)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    if not len(leaf.shape):
        raise ValueError(f"{path} is {describe(leaf)}, one value; give an array that is indexed along axis 0")
    if leaf.dtype == object:
        try:
            check_strings(np.asarray(leaf[:1], object))
        except TypeError as error:
            raise ValueError(f"{path} has dtype object: {error}") from error
    return leaf
