"""A job's fields are checked when it is made: what was given, what is accepted, an example."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from downpour.launch.job import Cluster, Exchange, Job, recipe
from downpour.launch.job.step import overlap_of
from downpour.model.vision.resnet import ResNet
from downpour.ps.layout import Rate, Slicing
from downpour.ps.policy.averages import Polyak
from downpour.ps.policy.pace import Async, Bounded, Sync
from downpour.ps.policy.rules import SGD, KerasAdam, Momentum
from downpour.ps.policy.schedules import Constant
from downpour.ps.policy.staleness import Divide, Keep, Lookahead
from downpour.worker.exchange.cadence import Accumulate, Downpour, LocalSteps


@dataclass(frozen=True)
class Mine(SGD):
    """A rule of one's own."""


@dataclass(frozen=True)
class Warm:
    """A schedule of one's own."""

    def rate(self, version: int) -> float:
        return 0.1


@pytest.fixture(scope="module")
def job() -> Job:
    return recipe.load("quickstart")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": "adam"}, r"rule is 'adam', a text; give one of SGD, .*, such as KerasAdam\(\)"),
        ({"rule": KerasAdam}, r"rule is the class KerasAdam, not an object of it; .*, such as KerasAdam\(\)"),
        ({"rule": Mine()}, "rule is a Mine, a class of your own; shards run compiled rules, which they know by name"),
        ({"schedule": Warm()}, "schedule is a Warm, a class of your own; shards run compiled schedules"),
        ({"schedule": 0.001}, r"schedule is 0.001, a number; .*, such as Constant\(learning_rate=0.001\)"),
        ({"average": 0.999}, r"average is 0.999, a number; give one of .* or None, such as Polyak\(decay=0.999\)"),
        ({"pace": None}, r"pace is None, nothing; .*, such as Bounded\(lead=4\)"),
        ({"clip": 1.0}, r"clip is 1.0, .* or None, such as Clip\(by_global_norm=1.0\)"),
        ({"model": ResNet}, r"model is the class ResNet, not an object of it; .*, such as ResNet\(depth=18\)"),
        (
            {"model": lambda size, labels: None},
            "model is .* without build; give a function that returns a new",
        ),
        (
            {"loss": "categorical_crossentropy"},
            r"loss is 'categorical_crossentropy', a text; give a function loss\(labels,",
        ),
        ({"data": [1, 2]}, "data is .*, a list without image_size, num_labels, num_records, check, training, heldout"),
        ({"cluster": {"num_ps": 3}}, r"cluster is {'num_ps': 3}, a dict; .*, such as Cluster\(num_ps=2"),
        ({"exchange": None}, "exchange is None, nothing; give one of Exchange, such as"),
        (
            {"local": "*/counter"},
            r"local is '\*/counter', a text; give a tuple of name patterns, .*\('\*/counter',\) is a tuple of one",
        ),
        ({"statistics": ["*/mean"]}, r"statistics is \['\*/mean'\], a list; give a tuple of name patterns"),
        (
            {"frozen": "stem/*"},
            r"frozen is 'stem/\*', a text; give a tuple of name patterns, .*\('stem/\*',\) is a tuple of one",
        ),
        ({"undecayed": ["*/bias"]}, "undecayed is .*, a list; give a tuple of name patterns"),
        (
            {"slicing": Slicing("head/*", 3)},
            r"slicing is .*; give a tuple of Slicing\(pattern, num_slices\), .* is a tuple of one",
        ),
        ({"slicing": (Slicing("head/*", "3"),)}, "slicing.0.num_slices is '3', a text; give a whole number"),  # type: ignore[arg-type]
        ({"rates": (Rate("head/*", True),)}, "rates.0.multiplier is True, a truth value; give a number"),
        ({"num_steps": "700"}, "num_steps is '700', a text; give a whole number"),
        ({"num_steps": 1e3}, "num_steps is 1000.0, a number; give a whole number"),
        ({"batch_size": True}, "batch_size is True, a truth value; give a whole number"),
        ({"weight_decay": "1e-4"}, "weight_decay is '1e-4', a text; give a number"),
        ({"evaluate_average": 1}, "evaluate_average is 1, a whole number; give True or False"),
        ({"name": None}, "name is None, nothing; give a text"),
        ({"staleness": Lookahead(), "rule": SGD()}, r"staleness: Lookahead extrapolates .*, and SGD\(\) has none"),
    ],
)
def test_what_a_field_does_not_take_is_refused(job: Job, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(job, **changes)


def test_a_cluster_is_of_a_size_for_one_machine_by_default() -> None:
    assert (Cluster().num_ps, Cluster().num_workers, Cluster().most_workers) == (2, 2, 2)


def test_so_are_fields_of_its_parts() -> None:
    with pytest.raises(ValueError, match=r"cluster.num_ps is '3', a text; give a whole number"):
        Cluster(num_ps="3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"exchange.overlap is 0; accepted are True, False and 'auto'"):
        Exchange(overlap=0)  # type: ignore[arg-type]


def test_what_the_step_of_a_model_depends_on_is_not_left_to_the_chief(job: Job) -> None:
    import keras

    dense = keras.layers.Dense(2)
    plain, normalised = (
        keras.Sequential([keras.Input((3,)), layer])
        for layer in (keras.layers.Dense(2), keras.layers.SpectralNormalization(dense))
    )
    assert overlap_of(job, plain) is None and overlap_of(job, normalised) is False


def test_a_built_model_is_refused_with_the_way_out(job: Job) -> None:
    import keras

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match=r"model is a Sequential that is built already; .* such as ResNet\(depth=18\)"):
        replace(job, model=model)


def test_numbers_of_numpy_are_numbers(job: Job) -> None:
    made = replace(job, num_steps=np.int64(7), weight_decay=np.float32(0.5), schedule=Constant(0.1), average=None)
    assert (made.num_steps, made.weight_decay) == (7, 0.5)


def test_the_default_treatment_looks_ahead_where_gradients_meet_a_momentum(job: Job) -> None:
    assert job.treatment == Lookahead()
    steps = replace(job.exchange, overlap=False)
    for changes in (
        {"rule": SGD()},
        {"rule": KerasAdam(beta_1=0.0)},
        {"pace": Sync(2), "exchange": steps},
        {"cadence": LocalSteps(4, SGD(), 0.1), "exchange": steps},
    ):
        assert replace(job, **changes).treatment == Keep(), changes
    assert replace(job, cadence=Accumulate(2)).treatment == Lookahead()
    two = replace(job.cluster, num_workers=2)
    assert replace(job, rule=KerasAdam(), cluster=two).treatment == replace(job, cluster=two).treatment == Lookahead()
    assert replace(job, staleness=Divide()).treatment == Divide()
    for number, gradients in ((15, 1), (16, 2), (50, 6), (200, 25)):
        many = replace(job, cluster=replace(two, num_workers=number), num_steps=50 * number)
        assert many.treatment == Lookahead(gradients=gradients), "means for what divides"
        assert replace(many, average=Polyak(0.9)).treatment == Lookahead(), "an average decays with updates"
        assert replace(many, rule=Momentum(0.9)).treatment == Lookahead()
        assert replace(many, num_steps=10).treatment == many.treatment, "grows with the workers that are let in"
        at_once = replace(many, pace=Async(ramp=0))
        assert at_once.treatment == many.treatment
        assert replace(at_once, num_steps=50 * number - 1).treatment == Lookahead(), "too short for fewer updates"


def test_overlap_is_left_to_the_chief_where_pace_and_cadence_permit_it(job: Job) -> None:
    assert job.overlap is None
    assert replace(job, exchange=Exchange(overlap=True)).overlap is True
    for changes in ({"pace": Sync(2)}, {"pace": Bounded(0)}, {"cadence": Downpour(1, 2, 0.1)}):
        assert replace(job, **changes).overlap is False
    assert replace(job, pace=Bounded(1)).overlap is None
