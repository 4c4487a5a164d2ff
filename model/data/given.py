"""The data set that somebody means who gives a source, as to Keras' `fit`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from downpour.model.data.examples import Examples
from downpour.model.data.streams import Stream, takes_worker

_ARGUMENTS = {"train": "data", "validation": "validation_data"}  # of `fit`, by field of a data set
_FIELD = re.compile(r"(^|, and )(?:data\.)?(train|validation)\b")  # where messages name one


@contextlib.contextmanager
def named_as_given(data: Any) -> Iterator[None]:
    """Within it, an error names a source as the argument of `fit` that it was given as, unless `data` is a data set."""
    try:
        yield
    except ValueError as error:
        if not isinstance(data, Examples | Stream):
            error.args = (_FIELD.sub(lambda found: found[1] + _ARGUMENTS[found[2]], str(error)),)
        raise


def data_set(data: Any, validation: Any = None, class_weight: Mapping[int, float] | None = None) -> Examples | Stream:
    """Returns a data set of sources.

    Args:
        data: A data set, which is returned; a function of (worker index, number of workers), for a `Stream`; or an
            indexed source, for `Examples`.
        validation: Held-out examples: an indexed source, or with a stream such a function.
        class_weight: Weight by class number of the training examples.

    Raises:
        ValueError: `data` is a data set and something else is given as well, or a setting is refused.
    """
    if isinstance(data, Examples | Stream):
        if validation is not None or class_weight is not None:
            raise ValueError(f"data is {type(data).__name__}; give validation and class_weight to it, not to fit")
        return data
    kind = Stream if takes_worker(data) else Examples
    return kind(data, validation, class_weight=class_weight)
