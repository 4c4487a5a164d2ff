"""Which jobs are the same, however they were spelled and wherever they run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from downpour.launch.job import recipe
from downpour.launch.job.same_job import MAY_DIFFER, same_fields
from downpour.model.data import Examples
from tests.launch import jobs


def fields(folder: Path, *overrides: str) -> dict[str, str]:
    return same_fields(recipe.load(jobs.write_recipe(folder), overrides))


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=5", "seed"),
        ("batch_size=8", "batch_size"),
        ("steps_per_epoch=8", "steps_per_epoch"),
        ("rule=RMSProp()", "rule"),
        ("rule.momentum=0.8", "rule.momentum"),
        ("model.width=4", "model.width"),
        ("data.image_size=16", "data.image_size"),
        ("data.num_records=7", "data.num_records"),
        ("exchange.codec=float32", "exchange.codec"),
        ("slicing.0.num_slices=2", "slicing.0.num_slices"),
        ("cluster.num_workers=3", "cluster.num_workers"),
    ],
)
def test_a_field_that_matters_is_compared(tmp_path: Path, override: str, key: str) -> None:
    mine, theirs = fields(tmp_path), fields(tmp_path, override)
    assert key in {name for name in mine | theirs if mine.get(name) != theirs.get(name)}


def test_spelling_and_what_may_differ_is_not_compared(tmp_path: Path) -> None:
    changes = ("cluster.threads_per_worker=7", "cluster.max_workers=9", "exchange.give_up_after_s=1")
    changes += ("callbacks=(EarlyStopping(patience=3),)",)
    assert fields(tmp_path, "seed=3", "batch_size=8", *changes) == fields(tmp_path, "batch_size=8", "seed=3")
    assert not set(MAY_DIFFER) & set(fields(tmp_path))


def test_a_list_of_examples_is_one_field(tmp_path: Path) -> None:
    def of(examples: list[Any]) -> dict[str, str]:
        found = same_fields(replace(job, data=Examples(examples)))
        assert len(found) < 200
        return found

    job = recipe.load(jobs.write_recipe(tmp_path))
    examples = [(np.full(3, i, np.float32), i) for i in range(5000)]
    other = [*examples[:-1], (np.full(3, 4999.5, np.float32), 4999)]
    assert of(examples) == of([(x.copy(), y) for x, y in examples]) != of(other)


def test_functions_are_compared_by_name_and_not_by_address(tmp_path: Path) -> None:
    job = recipe.load(jobs.write_recipe(tmp_path))
    made = [replace(job, loss=lambda labels, logits: 0.0) for _ in range(2)]
    assert same_fields(made[0]) == same_fields(made[1]) != same_fields(job)
    assert not any("0x" in text for text in same_fields(made[0]).values())


def test_the_place_of_the_data_may_differ_and_their_number_may_not(tmp_path: Path) -> None:
    few, as_many, more = (
        jobs.write_images(tmp_path / name, num_train=count, num_heldout=2)
        for name, count in (("a", 4), ("b", 4), ("c", 6))
    )

    def of(folder: Path) -> dict[str, str]:
        more = f"\n\ndef job():\n    return tiny(data=ImageRecords({str(folder)!r}, 5, resize=8, crop=8))\n"
        return same_fields(recipe.load(jobs.write_recipe(tmp_path, more)))

    assert of(few) == of(as_many) != of(more)
