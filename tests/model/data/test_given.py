"""Which data set is meant by a source."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from downpour.model.data import Examples, Stream
from downpour.model.data.given import data_set

X = np.zeros((9, 2))


def part(worker: int, num_workers: int) -> Iterator[Any]:
    return iter(X[worker::num_workers])


def whole(scale: float = 1) -> Any:
    return X * scale


class Part:
    def __call__(self, worker: int, num_workers: int) -> Iterator[Any]:
        return part(worker, num_workers)


@pytest.mark.parametrize("function", [part, functools.partial(part), Part(), lambda *where: part(*where)])
def test_a_function_of_worker_and_number_of_workers_is_a_stream(function: Any) -> None:
    data = data_set(function, X, {0: 2.0})
    assert isinstance(data, Stream) and data.validation is X and data.class_weight == {0: 2.0}
    data_set(function, part).check()


@pytest.mark.parametrize("source", [X, (X, X), {"a": X}, [1, 2, 3], whole, functools.partial(whole, 2)])
def test_everything_else_is_an_indexed_source(source: Any) -> None:
    data = data_set(source, source)
    assert isinstance(data, Examples) and data.train is data.validation is source
    data.check()


def test_a_data_set_is_taken_as_it_is() -> None:
    for data in (Examples(X), Stream(part)):
        assert data_set(data) is data
        for more in ({"validation": X}, {"class_weight": {0: 1.0}}):
            with pytest.raises(ValueError, match="give validation and class_weight to it, not to fit"):
                data_set(data, **more)
