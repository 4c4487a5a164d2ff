"""A random model of each special kind: each trains as in plain Keras through three shards, or is refused by name.

`make exact` runs 2,000. A failure prints the model and the command that draws it again.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest

from tests.exact import against_keras
from tests.exact.against_keras import Outcome, Trained, outcome_of
from tests.exact.kinds import KINDS
from tests.exact.models import Drawn, Network
from tests.exact.run import report, summary
from tests.exact.special import REFUSABLE, SPECIAL

SEED = 0
NUM_MODELS = len(SPECIAL)  # which are drawn in turn
PARTS = 5
SMALL = 1  # that of which the plain suite trains every model; `make slow` trains all


@functools.cache
def outcome(number: int) -> Outcome:
    return outcome_of(Drawn(SEED, number))


@pytest.mark.parametrize(
    "part", [pytest.param(part, marks=[pytest.mark.slow] * (part != SMALL)) for part in range(PARTS)]
)
@pytest.mark.xdist_group("exact")
def test_trains_as_plain_keras_or_is_refused_by_name(part: int) -> None:
    outcomes = [outcome(number) for number in range(part, NUM_MODELS, PARTS)]
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    for each in failed:
        report(each, SEED)
    assert not failed, f"models {[each.number for each in failed]}; see above"


@pytest.mark.parametrize("parts", [(SMALL,), pytest.param(tuple(range(PARTS)), marks=pytest.mark.slow)], ids=len)
@pytest.mark.xdist_group("exact")
def test_few_are_refused_and_many_have_factors(parts: tuple[int, ...]) -> None:
    outcomes = [outcome(number) for part in parts for number in range(part, NUM_MODELS, PARTS)]
    found = summary(outcomes, 0.0)
    assert sum(outcome.status == "refused" for outcome in outcomes) <= 0.2 * len(outcomes), found
    assert sum(outcome.factored for outcome in outcomes) >= 0.25 * len(outcomes), found


def test_there_are_many_kinds() -> None:
    assert len(KINDS) >= 40 and len(SPECIAL) >= 30 and REFUSABLE <= set(SPECIAL)
    assert {Drawn(SEED, number).special for number in range(NUM_MODELS)} == set(SPECIAL)


def test_a_number_draws_the_same_model_again() -> None:
    recipes = []
    for _ in range(2):
        drawn = Drawn(SEED, 12)
        network = Network(drawn)
        against_keras.fresh(drawn)
        network.build(drawn.image_size, drawn.num_labels)
        recipes.append([*network.sketches[0].recipe, drawn.training])
    assert recipes[0] == recipes[1]


def test_the_comparison_can_fail() -> None:
    """A hundredth of one variable's change, or of a loss, is seen."""
    drawn = next(d for n in range(99) if (d := Drawn(SEED, n)).policy == "float32")
    before = {"head/kernel": np.full((4, 3), 0.1, np.float32)}
    plain = Trained([1.0, 0.9], {"head/kernel": before["head/kernel"] + np.float32(0.01)})
    other = Trained([1.0, 0.9], {"head/kernel": before["head/kernel"] + np.float32(0.0101)})
    assert against_keras.largest(plain, plain, before, drawn)[0] == 0
    assert against_keras.largest(plain, other, before, drawn)[0] > 1
    assert against_keras.largest(plain, replace(plain, losses=[1.0, 0.901]), before, drawn)[0] > 1
    assert against_keras.largest(plain, replace(plain, losses=[1.0, float("nan")]), before, drawn)[0] > 1


def test_a_refusal_without_a_name_is_a_failure() -> None:
    names = frozenset({"dense1/kernel"})
    assert isinstance(against_keras.refusal(ValueError("dense1/kernel: give another"), names), against_keras.Refused)
    assert not isinstance(against_keras.refusal(ValueError("shapes differ"), names), against_keras.Refused)
