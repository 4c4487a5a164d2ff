"""Nests: dicts, tuples and lists, in each other, whose leaves become arrays.

A list of plain values (numbers, strings, bytes, None, or such lists) is one leaf, since Hugging Face data sets and JSON
give arrays so; any other list is a tuple. A leaf is named by its path: `x['image']`, `y[0]`, `sample_weight`.

Pure numpy. Shapes: `B` examples of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PLAIN = (bool, int, float, complex, str, bytes, np.generic, type(None))


def map_leaves(function: Callable[[str, Any], Any], nest: Any, path: str = "") -> Any:
    """Returns a nest of the same structure whose leaves are `function(path, leaf)`.

    Any mapping becomes a dict, and a list that is not a leaf a tuple; named tuples keep their type.
    """
    if isinstance(nest, Mapping):
        return {key: map_leaves(function, value, f"{path}[{key!r}]") for key, value in nest.items()}
    if isinstance(nest, tuple) or (isinstance(nest, list) and not _is_plain(nest)):
        values = [map_leaves(function, value, f"{path}[{i}]") for i, value in enumerate(nest)]
        return type(nest)._make(values) if hasattr(nest, "_make") else tuple(values)
    return function(path, nest)


def flatten(nest: Any, path: str = "") -> dict[str, Any]:
    """The leaves of a nest by path."""
    leaves: dict[str, Any] = {}
    map_leaves(leaves.__setitem__, nest, path)
    return leaves


def to_array(leaf: Any) -> NDArray[Any]:
    """A leaf as an array; strings and bytes as objects, since numpy's own types drop zero bytes at their ends.

    Raises:
        ValueError: The leaf is a list whose rows differ in length.
    """
    if isinstance(leaf, str | bytes):
        array = np.empty((), object)
        array[()] = leaf
        return array
    if isinstance(leaf, list) and isinstance(_first_of(leaf), str | bytes):
        return np.array(leaf, object)
    return np.asarray(leaf)


def check_strings(array: NDArray[Any]) -> None:
    """Raises `TypeError` when an array of objects has one that is neither a string nor bytes."""
    for value in array.flat:
        if not isinstance(value, str | bytes):
            raise TypeError(
                f"an array of objects has {value!r} ({type(value).__name__}); give numbers of one dtype, or strings"
            )


def describe(nest: Any, path: str = "") -> str:
    """One line with path, shape and dtype of every leaf, for messages."""
    return ", ".join(f"{name or 'value'}: {_kind(leaf)}" for name, leaf in flatten(nest, path).items()) or "nothing"


def num_examples(batch: Any) -> int:
    """Number of examples of a batch, B: the length of its first array.

    Raises:
        ValueError: There is no array, or it has no axis.
    """
    leaves = flatten(batch)
    for leaf in leaves.values():
        if leaf is not None:
            if not np.ndim(leaf):
                break
            return len(leaf)
    raise ValueError(f"a batch has {describe(batch)}; give arrays whose first axis counts the examples")


def stack(values: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """[B, ...] from B arrays of one shape."""
    return np.array(values) if not values[0].ndim and values[0].dtype != object else np.stack(values)


def _is_plain(values: list[Any]) -> bool:
    """Whether a list is a leaf. Only its first value is looked at, so that long lists cost nothing."""
    return not values or isinstance(_first_of(values), _PLAIN)


def _first_of(values: Any) -> Any:
    while isinstance(values, list) and values:
        values = values[0]
    return values


def _kind(leaf: Any) -> str:
    if leaf is None:
        return "None"
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return f"{tuple(leaf.shape)} {leaf.dtype}"
    if isinstance(leaf, list):
        return f"list of {len(leaf)}"
    return type(leaf).__name__
