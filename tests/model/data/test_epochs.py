from __future__ import annotations

import pytest

from downpour.model.data.epochs import num_steps


@pytest.mark.parametrize(
    ("epochs", "num", "batch", "steps"),
    [
        (1, 100, 10, 10),
        (2, 100, 64, 4),
        (3, 100, 64, 5),
        (0.1, 100, 10, 1),
        (0.3, 1000, 100, 3),
        (1, 5, 5, 1),
        (1, 9, 1, 9),
    ],
)
def test_steps_of_epochs(epochs, num, batch, steps):
    assert num_steps(epochs, num, batch) == steps


@pytest.mark.parametrize(
    "wrong", [(0, 9, 3), (-1, 9, 3), (float("nan"), 9, 3), (float("inf"), 9, 3), (1, 9, 0), (1, 9, 10)]
)
def test_what_is_refused(wrong):
    with pytest.raises(ValueError, match="give"):
        num_steps(*wrong)
