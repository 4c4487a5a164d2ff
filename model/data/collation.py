"""Makes batches `(x, y, sample_weight)` out of items, and checks them.

`x` and `y` are nests of arrays [B, ...]; `y` and `sample_weight` may be None. Floats of 64 bits, which are Python's
and numpy's default, become float32, as Keras has it; every other dtype stays. Strings and bytes are arrays of objects.

Cost of the checks: `np.isfinite` of every array of floats, 0.7 ms for 32 images of 224 x 224 on one core, and a call
for every string and array of objects.

Shapes: `B` examples of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from downpour.model.data.nests import check_strings, describe, flatten, map_leaves, num_examples, stack, to_array

ExampleBatch = tuple[Any, Any, Any]
Collate = Callable[[list[Any]], Any]

_PARTS = ("x", "y", "sample_weight")


@dataclass(frozen=True)
class Parts:
    """Which columns of an item are inputs, targets and weights.

    Attributes:
        inputs: Name of a column, or a nest of names, which becomes the nest `x`. None: an item is `(x, y,
            sample_weight)`, `(x, y)`, or `x` alone, as `keras.utils.unpack_x_y_sample_weight` has it.
        targets: Names of the columns of `y`, likewise; None for no targets.
        weights: Name of the column of `sample_weight`; None for no weights.
    """

    inputs: Any = None
    targets: Any = None
    weights: str | None = None

    def __post_init__(self) -> None:
        if self.inputs is None and (self.targets is not None or self.weights is not None):
            raise ValueError(f"targets are {self.targets!r} and weights {self.weights!r}; name the inputs as well")

    def of(self, item: Any) -> ExampleBatch:
        """Splits an item, or a batch of them, into `(x, y, sample_weight)`.

        Raises:
            ValueError: A column is missing, or the item is a tuple of another length.
        """
        if self.inputs is None:
            return _unpacked(item)
        return (
            _columns(item, self.inputs),
            None if self.targets is None else _columns(item, self.targets),
            None if self.weights is None else _columns(item, self.weights),
        )


@dataclass
class Batcher:
    """Makes batches of one structure out of items.

    Attributes:
        name: What messages call the source: train or heldout.
        parts: Which columns are inputs, targets and weights.
        collate: Makes a batch out of a list of items; None to stack items of one shape.
        finite: Whether NaN and infinity are refused.
        class_weight: Weight of each class; None for none.
    """

    name: str
    parts: Parts = Parts()
    collate: Collate | None = None
    finite: bool = True
    class_weight: Mapping[int, float] | None = None
    _first: dict[str, NDArray[Any]] = field(default_factory=dict, init=False)  # leaves of the first batch, empty

    def stacked(self, items: Sequence[Any], records: Sequence[int] | NDArray[np.int64]) -> ExampleBatch:
        """A batch out of items, of which `records` has the numbers.

        Raises:
            ValueError: Items differ in structure or shape, or the batch is refused by `checked`.
        """
        if self.collate is not None:
            return self.checked(self.collate(list(items)), records)
        leaves = [
            _leaves(self.parts.of(item), self._example(record)) for item, record in zip(items, records, strict=True)
        ]
        for each, record in zip(leaves, records, strict=True):
            for path, array in each.items():
                if array.dtype == object:
                    self._check_objects(path, array[None], [record])
            if each.keys() != leaves[0].keys() or any(a.shape != each[path].shape for path, a in leaves[0].items()):
                raise self._differ(leaves[0], records[0], each, record)
        together = {path: stack([each[path] for each in leaves]) for path in leaves[0]}
        together = self._as_before(together, records)
        return self._finished(_joined(self.parts.of(items[0]), together), records)

    def alone(self, item: Any, record: int, *, batched: bool | None) -> ExampleBatch:
        """A batch of one item, which is an example or itself a batch. Raises as `stacked` and `checked` do."""
        return self.checked(item, [record]) if batched else self.stacked([item], [record])

    def checked(self, batch: Any, records: Sequence[int] | NDArray[np.int64]) -> ExampleBatch:
        """A batch that the source or a collate function made, as `(x, y, sample_weight)`.

        Args:
            batch: The batch.
            records: Numbers of its examples, or of the one item that it is.

        Raises:
            ValueError: Its arrays differ in the number of examples, or have an object, NaN or infinity.
        """
        parts = self.parts.of(batch)
        arrays = _leaves(parts, f"{self.name}, batch with example {records[0]}")
        size = num_examples(tuple(arrays.values()))
        for path, array in arrays.items():
            if not array.ndim or len(array) != size:
                raise ValueError(
                    f"{self.name}, batch with example {records[0]}: {path} is {array.shape} and the first array has "
                    f"{size} examples; give arrays whose first axis counts the examples"
                )
        return self._finished(_joined(parts, arrays), records)

    def _finished(self, batch: ExampleBatch, records: Sequence[int] | NDArray[np.int64]) -> ExampleBatch:
        given = _flat(batch)
        for path, array in given.items():
            if array.dtype == object:
                self._check_objects(path, array, records)
            elif array.dtype.kind in "mM" or array.dtype.type is np.void:
                raise ValueError(
                    f"{self._example(records[0])}: {path} has dtype {array.dtype}; give numbers, booleans or strings"
                )
        self._check_weights(batch[1], batch[2], records)
        with np.errstate(over="ignore"):  # of float64 beyond float32, which is refused
            x, y = map_leaves(lambda _, a: a.astype(np.float32) if _is_float64(a) else a, batch[:2])
            weights = map_leaves(lambda _, a: None if a is None else a.astype(np.float32), batch[2])
        for path, array in _flat((x, y, weights)).items() if self.finite else ():
            if array.dtype.kind in "fc" and not np.isfinite(array).all():
                raise self._not_finite(path, given[path], ~np.isfinite(array), records)
        if self.class_weight is not None:
            weights = class_weighted(y, weights, self.class_weight)
        return x, y, weights

    def check_all(self, pieces: Iterable[tuple[Sequence[int], Any]]) -> None:
        """Checks all examples of a source.

        Args:
            pieces: Numbers of some examples, and their batch.

        Raises:
            ValueError: See `checked`; or no example has a label that `class_weight` names.
        """
        unseen = set(self.class_weight or ())
        num_pieces = 0
        for records, piece in pieces:
            y = self.checked(piece, records)[1]
            num_pieces += 1
            if unseen:
                unseen -= set(np.unique(class_numbers(y)).tolist())
        if num_pieces and unseen:
            raise ValueError(
                f"class_weight has {sorted(unseen)}, and no example of {self.name} has such a label; give the weights "
                "of labels that there are"
            )

    def _check_weights(self, y: Any, weights: Any, records: Sequence[int] | NDArray[np.int64]) -> None:
        """Raises `ValueError` for weights that are no numbers [B] or [B, ...] like the first axes of the targets."""
        targets = [target for target in flatten(y).values() if target is not None]
        for path, array in flatten(weights, "sample_weight").items():
            if array is None:
                continue
            what = f"{self._example(records[0])}: {path} is {array.shape} {array.dtype}"
            if array.dtype.kind in "cSUO":
                raise ValueError(f"{what}; give numbers")
            shape = array.shape
            while len(shape) > 1 and shape[-1] == 1:
                shape = shape[:-1]
            if len(shape) > 1 and targets and not any(target.shape[: len(shape)] == shape for target in targets):
                raise ValueError(
                    f"{what}, and the targets are {describe(y, 'y')}; give one weight an example, [{len(array)}], or "
                    "the first axes of the targets"
                )

    def _check_objects(self, path: str, array: NDArray[Any], records: Sequence[int] | NDArray[np.int64]) -> None:
        for row in range(len(array)):
            try:
                check_strings(np.asarray(array[row], object))
            except TypeError as error:
                where = self._row(records, row, len(array))
                raise ValueError(f"{where}: {path} has dtype object: {error}") from error

    def _not_finite(
        self, path: str, array: NDArray[Any], bad: NDArray[np.bool_], records: Sequence[int] | NDArray[np.int64]
    ) -> ValueError:
        row = int(np.flatnonzero(bad.reshape(len(array), -1).any(axis=1))[0])
        return ValueError(
            f"{self._row(records, row, len(array))}: {path} has {array[bad][0]}; replace what is missing or leave the "
            "example out, or give finite=False if the model takes it"
        )

    def _as_before(
        self, leaves: dict[str, NDArray[Any]], records: Sequence[int] | NDArray[np.int64]
    ) -> dict[str, NDArray[Any]]:
        """The leaves of a batch in the dtypes of the first batch: integers become floats where those were floats."""
        first = self._first = self._first or {path: array[:0] for path, array in leaves.items()}
        if first.keys() != leaves.keys() or any(a.shape[1:] != first[path].shape[1:] for path, a in leaves.items()):
            raise ValueError(
                f"{self._example(records[0])} has {_rows(leaves)}, and the examples before {_rows(first)}; {_ONE_SHAPE}"
            )
        for path, array in leaves.items():
            if array.dtype.kind not in "USO" and not np.can_cast(array.dtype, first[path].dtype, "same_kind"):
                raise ValueError(
                    f"{self._example(records[0])} and those behind it: {path} is {array.dtype}, and "
                    f"{first[path].dtype} before; give all examples the same dtype"
                )
        return {
            path: a if a.dtype.kind in "USO" else a.astype(first[path].dtype, copy=False) for path, a in leaves.items()
        }

    def _differ(self, first: Any, of: int, other: Any, record: int) -> ValueError:
        return ValueError(
            f"{self._example(of)} has {describe_row(first)}, and example {record} has {describe_row(other)}; "
            f"{_ONE_SHAPE}"
        )

    def _example(self, record: int) -> str:
        return f"{self.name}, example {record}"

    def _row(self, records: Sequence[int] | NDArray[np.int64], row: int, num_rows: int) -> str:
        """Names an example: by its number if there is one for each row, else by its row in a batch."""
        if len(records) == num_rows:
            return self._example(records[row])
        return f"{self.name}, row {row} of batch {records[0]}"


def class_weighted(y: Any, sample_weight: Any, class_weight: Mapping[int, float]) -> NDArray[np.float32]:
    """[B] float32: the weight of each example's class, 1 for a class without one, as `class_weight` of Keras' `fit`.

    Args:
        y: Integer labels [B] or [B, 1], or one-hot or probabilities [B, C], whose largest decides.
        sample_weight: Must be None, as in Keras.
        class_weight: Weight by class number.

    Raises:
        ValueError: There are sample weights as well, `y` is not one array, or a class is beyond C.
    """
    if sample_weight is not None:
        raise ValueError("class_weight and sample weights cannot both be given; multiply the sample weights instead")
    numbers = class_numbers(y)
    num_classes = y.shape[-1] if y.ndim > 1 and y.shape[-1] != 1 else None
    if num_classes is not None and max(class_weight, default=0) >= num_classes:
        raise ValueError(
            f"class_weight has class {max(class_weight)}, and targets {describe(y, 'y')} have {num_classes} classes; "
            f"give numbers from 0 to {num_classes - 1}"
        )
    return np.array([class_weight.get(int(label), 1.0) for label in numbers], np.float32)


def class_numbers(y: Any) -> NDArray[np.int64]:
    """[B]: the class of each example; see `class_weighted`.

    Raises:
        ValueError: `y` is not one array, or has no one label an example.
    """
    if y is None or isinstance(y, dict | tuple | list):
        raise ValueError(f"class_weight needs targets that are one array and got {describe(y)}; give sample weights")
    labels = np.asarray(y)
    if labels.ndim > 1:
        labels = labels.argmax(-1) if labels.shape[-1] != 1 else labels[..., 0]
    if labels.ndim != 1:
        raise ValueError(f"class_weight needs one label an example and got {labels.shape}; give sample weights")
    if labels.dtype.kind not in "buif":
        raise ValueError(f"class_weight needs targets that are class numbers and got {describe(y)}; encode them")
    numbers: NDArray[np.int64] = np.round(labels).astype(np.int64)
    return numbers


def check_class_weight(class_weight: Mapping[int, float]) -> None:
    """Raises `ValueError` for a class that is no whole number of at least 0, or a weight that is no finite number."""
    for label, weight in class_weight.items():
        if isinstance(label, bool) or not isinstance(label, int | np.integer) or label < 0:
            raise ValueError(f"class_weight has class {label!r}; give the number of a class, from 0")
        if not isinstance(weight, int | float | np.number) or not 0 <= weight < np.inf:
            raise ValueError(f"class_weight has {weight!r} for class {label}; give a finite number of at least 0")


def describe_row(leaves: Mapping[str, NDArray[Any]]) -> str:
    """One line with path, shape and dtype of every leaf of an example."""
    return ", ".join(f"{path} {a.shape} {a.dtype}" for path, a in leaves.items()) or "nothing"


_ONE_SHAPE = "give all examples one structure and shape (pad or crop in `map`), or give a `collate` function"


def _unpacked(item: Any) -> ExampleBatch:
    if isinstance(item, list):
        flat = flatten(item)
        item = item if "" in flat else tuple(item)  # a list of plain values is one array
    if not isinstance(item, tuple) or hasattr(item, "_make"):
        return item, None, None
    if not 1 <= len(item) <= 3:
        raise ValueError(
            f"an item is a tuple of {len(item)}; give x, (x, y) or (x, y, sample_weight), with several inputs as a "
            "tuple or dict in x"
        )
    return (*item, None, None)[:3]


def _columns(item: Any, names: Any) -> Any:
    if not isinstance(item, Mapping):
        raise ValueError(f"an item is a {type(item).__name__}; inputs and targets name columns of a dict")

    def column(_: str, name: Any) -> Any:
        if isinstance(name, list):
            return tuple(column(_, each) for each in name)
        if name not in item:
            raise ValueError(f"there is no column {name!r}; there are {', '.join(map(repr, item))}")
        return item[name]

    return map_leaves(column, names)


def _flat(parts: ExampleBatch) -> dict[str, Any]:
    """Leaves by path, without targets and weights that are None."""
    return {
        path: leaf
        for name, part in zip(_PARTS, parts, strict=True)
        if part is not None or name == "x"
        for path, leaf in flatten(part, name).items()
    }


def _leaves(parts: ExampleBatch, where: str) -> dict[str, NDArray[Any]]:
    """Leaves by path, as arrays."""
    arrays = {}
    for path, leaf in _flat(parts).items():
        try:
            arrays[path] = to_array(leaf)
        except ValueError as error:
            raise ValueError(f"{where}: {path}: {error}; {_ONE_SHAPE}") from error
    return arrays


def _joined(parts: ExampleBatch, arrays: Mapping[str, NDArray[Any]]) -> ExampleBatch:
    """The structure of `parts` with other leaves."""
    x, y, weights = (
        None if part is None else map_leaves(lambda path, _: arrays[path], part, name)
        for name, part in zip(_PARTS, parts, strict=True)
    )
    return x, y, weights


def _rows(leaves: Mapping[str, NDArray[Any]]) -> str:
    return ", ".join(f"{path} {a.shape[1:]} {a.dtype}" for path, a in leaves.items())


def _is_float64(array: Any) -> bool:
    """Whether an array has floats of 64 bits or more."""
    return array is not None and array.dtype.kind == "f" and array.dtype.itemsize >= 8
