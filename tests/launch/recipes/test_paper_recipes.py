"""The paper's recipes: every number is traced, layouts have their counts, and each trains at toy size."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from downpour.launch import chief
from downpour.launch.job import Job, overrides, recipe
from downpour.launch.job.build import build
from downpour.launch.local import prepared
from downpour.launch.planning.simulation import simulate
from downpour.ps.layout import FROZEN, Layout, Variable, lay_out
from tests import pictures

PAGE = (Path(__file__).parents[3] / "docs" / "recipes.md").read_text()
# Each recipe, and the one whose numbers it has but for its own.
BASES = {
    "jft300m": "",
    "jft300m_from_imagenet": "jft300m",
    "open_images": "jft300m",
    "imagenet": "",
    "imagenet_finetune": "imagenet",
    "imagenet_frozen": "imagenet_finetune",
}
CLASSES = "zero one two three four five six seven eight nine"
DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
# keras.applications.ResNet50, 101 and 152 with their head of 1,000 classes: `count_params()`.
KERAS = {50: 25_636_712, 101: 44_707_176, 152: 60_419_944}


def docstring(name: str) -> str:
    return importlib.import_module(f"downpour.launch.recipes.{name}").__doc__ or ""


def settings(cell: str) -> Iterator[tuple[str, str]]:
    """Key and value of what a cell of a table has in backticks, `a.b=1, c=x,y`."""
    for span in re.findall(r"`([a-z_][\w.]*=[^`]*)`", cell):
        for setting in re.split(r", (?=[a-z_][\w.]*=)", span):
            key, _, value = setting.partition("=")
            yield key, value


def own_rows(name: str) -> dict[str, tuple[str, str]]:
    """Value and section of every key in the table of a recipe's docstring."""
    rows = re.findall(r"^\| (.*?) \| (.*?) \| .* \|$", docstring(name), re.MULTILINE)
    return {key: (value, where) for cell, where in rows for key, value in settings(cell)}


def traced(name: str) -> dict[str, str]:
    """The value of every key that a recipe traces, those of its base included."""
    base = traced(BASES[name]) if BASES[name] else {}
    return base | {key: value for key, (value, _) in own_rows(name).items()}


def page_rows() -> list[tuple[str, str, set[str], str]]:
    """Key, value, recipes and section of every number of docs/recipes.md."""
    section = PAGE[PAGE.index("### Where the numbers come from") :]
    rows = re.findall(r"^\| (.*?) \| (.*?) \| (.*?) \| .* \|$", section, re.MULTILINE)
    return [
        (key, value, set(re.findall(r"`(\w+)`", recipes)), where)
        for cell, recipes, where in rows
        for key, value in settings(cell)
    ]


def numbers_of(value: Any, prefix: str = "") -> Iterator[str]:
    """Keys of numbers that are not a field's default, truth values and texts left out."""
    for field in dataclasses.fields(value):
        given = getattr(value, field.name)
        several = given if isinstance(given, tuple) else ()
        inner = {f"{field.name}.{i}": one for i, one in enumerate(several)} or {field.name: given}
        for name, one in inner.items():
            if dataclasses.is_dataclass(one):
                yield from numbers_of(one, f"{prefix}{name}.")
            elif type(one) in (int, float) and one != field.default:
                yield prefix + name


def test_the_page_lists_all_recipes_of_the_paper() -> None:
    assert set(recipe.names()) == {*BASES, "paper_shape", "quickstart"}
    listed = re.findall(r"^\| `(\w+)` \|", PAGE[PAGE.index("## The paper's recipes") :], re.MULTILINE)
    assert sorted(listed) == sorted(BASES)


@pytest.mark.parametrize("name", BASES)
def test_every_number_of_a_docstring_is_the_jobs_and_is_on_the_page(name: str) -> None:
    job = recipe.load(name)
    leaves = {leaf.key: leaf for leaf in overrides.leaves(job)}
    for key, value in traced(name).items():
        if key == "loss":
            assert job.loss.__name__ == value
        else:
            assert leaves[key].parse(value) == leaves[key].value, key
    for key, (value, where) in own_rows(name).items():
        if key != "loss":
            found = [row for row in page_rows() if row[:2] == (key, value) and name in row[2]]
            assert len(found) == 1 and found[0][3] == where, (key, value, where)
    base = BASES[name]
    assert not base or re.search(rf"numbers are those of `{base}`", docstring(name))


@pytest.mark.parametrize("name", BASES)
def test_every_number_of_a_job_is_in_its_docstring(name: str) -> None:
    untraced = set(numbers_of(recipe.load(name))) - traced(name).keys()
    assert not untraced
    for word in ("Data:", "Hours:", "Expected:", "Deviations", "1707.02968", "a rehearsal"):
        assert word in docstring(name) or (word == "Deviations" and name == "jft300m"), word


def test_every_number_of_the_page_is_a_recipes() -> None:
    rows = page_rows()
    assert len(rows) > 25
    for key, value, names, where in rows:
        for name in names:
            assert own_rows(name).get(key) == (value, where), (name, key)


def num_parameters(depth: int, num_labels: int, width: int = 64, stem: int = 7) -> tuple[int, int]:
    """Trained parameters, and channels of all convolutions, of a ResNet of bottlenecks by He et al. 2015, table 1."""
    weights, channels = stem * stem * 3 * width, width
    inputs = width
    for stage, blocks in enumerate(DEPTHS[depth]):
        inner = width * 2**stage
        for block in range(blocks):
            weights += inputs * inner + 9 * inner * inner + inner * 4 * inner + (4 * inner * inputs if not block else 0)
            channels += 6 * inner + (4 * inner if not block else 0)
            inputs = 4 * inner
    return weights + 2 * channels + inputs * num_labels + num_labels, channels


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_published_counts(depth: int) -> None:
    """Keras' convolutions have a bias each, which batch norm cancels; two moving statistics a channel are counted."""
    trained, channels = num_parameters(depth, 1000)
    biases, statistics = channels, 2 * channels
    assert trained + statistics + biases == KERAS[depth]


@pytest.mark.slow
def test_the_formula_is_the_network() -> None:
    job = recipe.load("imagenet", ["model.depth=50", "model.width=2", "model.stem=3x3", "data.num_labels=7"])
    model = job.model.build(16, 7)
    trained, channels = num_parameters(50, 7, width=2, stem=3)
    assert sum(int(np.prod(v.shape)) for v in model.trainable_variables) == trained
    assert model.count_params() == trained + 2 * channels


def counts(layout: Layout) -> tuple[int, int, int]:
    """Parameters pushed, as statistics or gradients; frozen ones; and slices of the head's kernel."""
    sizes = [(v.kind == FROZEN, int(np.prod(v.shape))) for v in layout.variables]
    head = next(i for i, v in enumerate(layout.variables) if v.name == "head/kernel")
    slices = sum(r.variable == head for ranges in layout.by_shard for r in ranges)
    return sum(n for still, n in sizes if not still), sum(n for still, n in sizes if still), slices


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", BASES)
def test_a_layout_has_the_counts_of_the_paper(name: str) -> None:
    job = recipe.load(name)
    labels = job.data.num_labels
    trained, channels = num_parameters(101, labels)
    head = 2049 * labels
    pushed, frozen, slices = counts(build(job)[1])
    if name == "imagenet_frozen":
        assert (pushed, frozen) == (head, trained - head + 2 * channels)
    else:
        assert (pushed, frozen) == (trained + 2 * channels, 0)
    assert slices == (50 if job.slicing else 1)


TOY = (
    *("data.num_labels=10", "data.resize=34", "data.crop=32", "model.depth=18", "model.width=2", "model.stem=3x3/2"),
    *("batch_size=8", "cluster.num_ps=3"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 handwritten digits to train on, 40 held out."""
    pixels, classes = pictures.digits()
    made = tmp_path_factory.mktemp("digits") / "data"
    return pictures.write(made, pixels, classes, range(120), range(120, 160), CLASSES)


def toy(name: str, folder: Path) -> Job:
    slices = ["slicing.0.num_slices=5"] if recipe.load(name).slicing else []
    return recipe.load(name, [*TOY, *slices, f"data.folder={folder}"])


def check_two_steps(job: Job) -> None:
    done = simulate(job, num_workers=2, num_steps=2, num_scores=1)
    assert (done.failure, done.last.step) == ("", 2)
    assert np.isfinite(done.last.loss)
    assert all(np.isfinite(score) for score in done.last.scores.values()) and done.last.scores


@pytest.mark.slow  # as the other recipes: 5 s
def test_two_steps_on_frozen_features(folder: Path) -> None:
    """The head alone is pushed, and batch norm below it computes as in inference: nothing of it is assigned."""
    job = toy("imagenet_frozen", folder)
    layout = build(job)[1]
    assert counts(layout)[0] == (16 + 1) * 10 == sum(layout.num_pushed(shard) for shard in range(3))
    assert {v.name for v in layout.variables if v.kind != FROZEN} == {"head/kernel", "head/bias"}
    check_two_steps(job)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BASES if name != "imagenet_frozen"])
def test_two_steps_at_toy_size(name: str, folder: Path) -> None:
    check_two_steps(toy(name, folder))


@pytest.mark.parametrize("name", ["imagenet_frozen", "imagenet_finetune"])
def test_frozen_layers_that_begin_at_random_are_warned_of(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepared.write(tmp_path / "prepared.npz", lay_out([Variable("head/kernel", (2,))], 1), [np.zeros(2)])
    chief._Model(recipe.load(name), None, tmp_path / "prepared.npz").initial_values()
    warned = "model.frozen without --init_from: frozen layers keep random values" in caplog.text
    assert warned == (name == "imagenet_frozen")
