"""Which trainings a study has: pure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from downpour.launch.job import recipe
from downpour.launch.studying import grid, vocabulary
from downpour.launch.studying.grid import Trial
from downpour.model.data import Examples
from downpour.model.vision.labels import LabelTree

QUICKSTART = recipe.load("quickstart")


def test_every_setting_has_every_seed_seed_by_seed() -> None:
    trials = grid.with_seeds([Trial(1, ("a=1",)), Trial(2, ("a=2",))], 7, 2)
    assert [(trial.size, trial.seed) for trial in trials] == [(1, 7), (2, 7), (1, 8), (2, 8)]
    assert trials[3].overrides == ("a=2", "seed=8")
    with pytest.raises(ValueError, match="--seeds=0; give at least 1"):
        grid.with_seeds([Trial(1)], 0, 0)


def test_sizes_are_numbers_or_fractions_of_the_data() -> None:
    assert grid.data_sizes(60_000, [], ["6000", "600", "60000"], 32) == [600, 6000, 60_000]
    assert grid.data_sizes(3059, ["0.1", "1", "0.333"], [], 32) == [306, 1019, 3059]


@pytest.mark.parametrize(
    ("fractions", "sizes", "message"),
    [
        (["0", "1"], [], "--fractions: '0' is not a number above 0 and at most 1, such as 0.1"),
        (["0.5", "1.5"], [], "--fractions: '1.5' is not a number above 0 and at most 1"),
        (["half", "1"], [], "--fractions: 'half' is not a number"),
        (["nan", "1"], [], "--fractions: 'nan' is not a number"),
        ([], ["500", "1001"], "--sizes: 1001 is more than the 1000 training examples that there are"),
        ([], ["500", "0"], "--sizes: '0' is not a whole number of at least 1"),
        ([], ["500", "1e3"], "--sizes: '1e3' is not a whole number"),
        ([], ["500"], "one size, 500; a study needs at least two"),
        ([], ["500", "500"], "size 500 occurs twice"),
        (["0.5", "0.5001"], [], "size 500 occurs twice"),
        ([], ["31", "500"], "31 examples are fewer than a batch, 32; give larger sizes, or --set=batch_size"),
        ([], [], "give one of --fractions=0.01,0.1,1 and --sizes=600,6000,60000"),
        (["0.5", "1"], ["500", "1000"], "give one of --fractions"),
    ],
)
def test_wrong_sizes_are_refused(fractions: list[str], sizes: list[str], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        grid.data_sizes(1000, fractions, sizes, 32)
    assert str(raised.value).startswith(message)


def test_trainings_on_fewer_examples_have_equal_steps_or_equal_epochs() -> None:
    assert grid.of_data_sizes(QUICKSTART, [306, 3059], 3059, "steps") == [
        Trial(306, ("data.num_examples=306",)),
        Trial(3059, ("data.num_examples=3059",)),
    ]
    small, whole = grid.of_data_sizes(QUICKSTART, [306, 3059], 3059, "epochs")
    assert small.overrides == (
        "data.num_examples=306", "num_steps=70", "checkpoint_every_steps=70", "schedule.every=30",
    )  # fmt: skip
    job = recipe.load("quickstart", whole.overrides)
    assert (job.num_steps, job.schedule, job.checkpoint_every_steps) == (700, QUICKSTART.schedule, 100)


def test_every_schedule_can_be_shortened() -> None:
    for text in (
        "Piecewise(boundaries=(100,400),rates=(1.0,0.1,0.01),warmup_steps=20)",
        "CosineRestarts(learning_rate=0.1,first_steps=100)",
        "KerasCosine(learning_rate=0.1,steps=700)",
        "Constant(learning_rate=0.1)",
    ):
        base = recipe.load("quickstart", [f"schedule={text}"])
        (trial,) = grid.of_data_sizes(base, [306], 3059, "epochs")
        short = recipe.load("quickstart", [f"schedule={text}", *trial.overrides])
        assert short.schedule.rate(25) == pytest.approx(base.schedule.rate(250), rel=0.02)


def test_data_without_such_a_field_are_refused() -> None:
    job = recipe.load("paper_shape")
    message = "the recipe's data, GeneratedImages, have no field data.num_examples; data.num_examples and data"
    with pytest.raises(ValueError, match=message):
        grid.of_data_sizes(job, [100, 200], 1000, "steps")
    with pytest.raises(ValueError, match=r"have no field data\.only_labels"):
        grid.of_labels(job, [(0,), (0, 1)], "kept")


def test_capacities_are_values_of_a_field() -> None:
    assert grid.of_capacities(QUICKSTART, "model.depth", ["50", "18"]) == [
        Trial(18, ("model.depth=18",)), Trial(50, ("model.depth=50",)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("field", "values", "message"),
    [
        ("model.dept", ["18", "50"], "unknown key 'model.dept'; did you mean model.depth=18"),
        ("model.depth", ["18", "deep"], "override model.depth=deep: 'deep' is not a whole number"),
        ("model.width", ["8", "-8"], "width is -8; give at least 1 channel"),
        ("seed", ["0", "8"], "--sizes: '0' is no number above 0; a size has a place on the axis"),
        ("exchange.codec", ["float32", "float16"], "--sizes: 'float32' is no number above 0"),
        ("model.width", ["8"], "--sizes=8; give at least two, all different"),
        ("model.width", ["8", "8"], "--sizes=8,8; give at least two, all different"),
    ],
)
def test_wrong_capacities_are_refused(field: str, values: list[str], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        grid.of_capacities(QUICKSTART, field, values)
    assert message in str(raised.value)


def test_checkpoints_of_a_training_are_points() -> None:
    study = grid.of_checkpoints(QUICKSTART, 7)
    assert (study.kind, study.every, study.num_steps, len(study.trials)) == ("epochs", 100, 700, 1)
    changes = ("steps_per_epoch=100", "checkpoint_every_epoch=true", "checkpoint_every_steps=700")
    assert study.trials[0].overrides == changes, "each is scored, however busy the evaluator is"
    both = grid.of_checkpoints(QUICKSTART, 7, "runs/first", ("stem_*",))
    assert [(one.curve, one.init_from, one.init_only) for one in both.trials] == [
        ("random", "", ()), ("checkpoint", "runs/first", ("stem_*",)),
    ]  # fmt: skip
    for number in (1, 701):
        with pytest.raises(ValueError, match=f"--scores={number}; give from 2 to 700"):
            grid.of_checkpoints(QUICKSTART, number)


TREE = LabelTree(("fruit", "apple", "pear", "tool", "hammer"), (-1, 0, 0, -1, 3))
COUNTS = np.array([5, 4, 1, 6, 6])


def test_the_most_frequent_labels_hold_their_ancestors_and_the_smaller_sets() -> None:
    found = vocabulary.most_frequent(COUNTS, [1, 2, 3, 5], TREE)
    assert found == [(3,), (3, 4), (0, 3, 4), (0, 1, 2, 3, 4)]
    assert vocabulary.most_frequent(COUNTS[::-1], [2], None) == [(0, 1)]
    with pytest.raises(ValueError, match="--sizes: 6 is more than the 5 labels that there are"):
        vocabulary.most_frequent(COUNTS, [2, 6], TREE)


def test_subtrees_are_those_of_the_most_frequent_roots() -> None:
    assert vocabulary.subtrees(COUNTS, [1, 2], TREE) == [(3, 4), (0, 1, 2, 3, 4)]
    with pytest.raises(ValueError, match="--sizes: 3 is more than the 2 roots of the label tree"):
        vocabulary.subtrees(COUNTS, [1, 3], TREE)
    with pytest.raises(ValueError, match="no label tree; give --by=frequency"):
        vocabulary.subtrees(COUNTS, [1], None)


def test_labels_are_kept_in_targets_and_the_common_ones_scored() -> None:
    small, large = grid.of_labels(QUICKSTART, [(3, 4), (0, 3, 4)], "common")
    assert (small.size, small.overrides) == (2, ("data.only_labels=3,4", "data.scored_labels=3,4"))
    assert (large.size, large.overrides) == (3, ("data.only_labels=0,3,4", "data.scored_labels=3,4"))
    assert recipe.load("quickstart", large.overrides).data.only_labels == (0, 3, 4)
    assert grid.of_labels(QUICKSTART, [(3, 4), (0, 3, 4)], "kept")[1].overrides == ("data.only_labels=0,3,4",)


def test_labels_are_counted_over_an_epoch() -> None:
    targets = np.array([[1, 0, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0]], np.float32)
    data: Any = Examples((np.zeros((5, 1), np.float32), targets))
    assert vocabulary.counts_of(data, 1).tolist() == [5, 1, 1]
    with pytest.raises(ValueError, match=r"the targets are not one array \[examples, labels\]"):
        vocabulary.counts_of(Examples((np.zeros((5, 1)), np.zeros(5))), 1)
