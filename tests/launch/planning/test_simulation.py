"""Simulated trainings: equal to a real worker bit for bit, equal to themselves, and bounded in memory."""

from __future__ import annotations

import math
import threading
import tracemalloc
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from downpour.launch.job import Cluster, Exchange, Job
from downpour.launch.job.build import build
from downpour.launch.job.step import training_step
from downpour.launch.planning import footprint
from downpour.launch.planning.assumptions import Assumptions
from downpour.launch.planning.simulation import digest_of, simulate
from downpour.launch.planning.trainable import Trainable
from downpour.model import weights
from downpour.model.data import GeneratedImages
from downpour.model.data.order import forever
from downpour.model.vision.losses import per_label_logistic
from downpour.model.vision.metrics import NotFinite
from downpour.proto.codec import BLOCK_CODECS, CODECS
from downpour.ps.layout import Slicing
from downpour.ps.policy.pace import Async, Bounded, Sync
from downpour.ps.policy.rules import SGD, KerasAdam
from downpour.ps.policy.schedules import Constant, StaircaseExponential
from downpour.ps.policy.staleness import Compensate, Divide, Drop
from downpour.worker.exchange.cadence import Accumulate, Downpour, LocalSteps
from downpour.worker.exchange.exchange import Exchanger
from downpour.worker.loop import train
from downpour.worker.step.variables import initial_values
from tests.conftest import ServedShards
from tests.worker.cluster import initialize

LABELS = 5


@dataclass(frozen=True)
class Small:
    """Batch norm, whose statistics are pushed as differences, and dropout, whose seed is each worker's."""

    def build(self, image_size: int, num_labels: int) -> Any:
        from keras import Input, Model, layers

        images = Input((image_size, image_size, 3))
        x = layers.Conv2D(4, 3, strides=2, use_bias=False, name="stem_conv")(images)
        x = layers.ReLU()(layers.BatchNormalization(name="stem_bn")(x))
        x = layers.Dropout(0.2, seed=1)(layers.GlobalAveragePooling2D()(x))
        return Model(images, layers.Dense(num_labels, name="head")(x))


JOB = Job(
    name="small",
    model=Small(),
    data=GeneratedImages(image_size=8, num_labels=LABELS, num_heldout=8),
    loss=per_label_logistic,
    rule=KerasAdam(),
    schedule=StaircaseExponential(3e-3, factor=0.5, every=20),
    num_steps=24,
    batch_size=4,
    slicing=(Slicing("head/*", num_slices=3),),
    cluster=Cluster(num_ps=2, num_workers=1, threads_per_worker=1),
    exchange=Exchange(codec="float32", overlap=False),
)


@pytest.fixture(scope="module", autouse=True)
def _deterministic() -> None:
    tf.config.experimental.enable_op_determinism()


@pytest.fixture(scope="module")
def trainable() -> Trainable:
    return Trainable(JOB)


def changed(**changes: Any) -> Job:
    exchange = {key: changes.pop(key) for key in ("codec", "overlap", "push", "pull") if key in changes}
    return replace(JOB, exchange=replace(JOB.exchange, **exchange), **changes)


class Silent:
    """Stands where a worker reports to the chief."""

    def __init__(self) -> None:
        self.stop = threading.Event()

    def computed(self, **_: Any) -> None: ...

    def exchanged(self, *_: Any) -> None: ...

    def read(self, *_: Any) -> None: ...


def a_real_worker(job: Job, served: ServedShards) -> tuple[str, int]:
    """Trains as `downpour worker` does, through real shards; digest and version of what they hold in the end."""
    model, layout = build(job)
    addresses = served.start(job.cluster.num_ps)
    initialize(addresses, layout, initial_values(model), job.rule, job.schedule, pace=job.pace, staleness=job.treatment)
    settings: Any = {"worker": 0, "incarnation": 1, "give_up_after_s": 30.0}
    exchange = Exchanger(
        addresses, layout, wire=CODECS[job.exchange.codec], push=BLOCK_CODECS.get(job.exchange.push),
        publish_every=job.publish_every, differences=BLOCK_CODECS.get(job.exchange.pull),
        send_base=isinstance(job.treatment, Compensate), joined=isinstance(job.pace, Async), **settings,
    )  # fmt: skip
    # Reads what the shards hold, as numbers that are not rounded.
    reader = Exchanger(addresses, layout, wire=CODECS["float32"], **settings | {"incarnation": 0})
    reporter: Any = Silent()
    try:
        exchange.connect()
        leases = forever(job.data.num_records, 4 * job.batch_size)
        with job.data.training(batch_size=job.batch_size, seed=job.seed, leases=leases) as batches:
            train(training_step(job, model, layout), exchange, batches, reporter, num_steps=job.num_steps,
                  overlap=job.overlap, cadence=job.cadence)  # fmt: skip
        held = reader.start().result().parameters
        assert held is not None
        vectors = [np.concatenate(parts) for parts in zip(held.trained, held.statistics, held.frozen, strict=True)]
        return digest_of(weights.by_name(layout, vectors)), min(held.versions)
    finally:
        exchange.close()
        reader.close()


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="float32"),
        pytest.param({"overlap": True}, id="overlap", marks=pytest.mark.slow),
        pytest.param({"codec": "bfloat16", "push": "int8", "pull": "int4"}, id="codecs", marks=pytest.mark.slow),
        pytest.param({"codec": "bfloat16", "staleness": Compensate(0.5)}, id="base", marks=pytest.mark.slow),
        pytest.param({"pace": Sync(1)}, id="sync", marks=pytest.mark.slow),
        pytest.param({"cadence": Accumulate(3)}, id="accumulate", marks=pytest.mark.slow),
        pytest.param({"cadence": LocalSteps(3, SGD(), 1e-2)}, id="local", marks=pytest.mark.slow),
        pytest.param({"cadence": Downpour(2, 3, 1e-2)}, id="downpour", marks=pytest.mark.slow),
    ],
)
def test_one_simulated_worker_is_a_real_one_bit_for_bit(changes: dict[str, Any], served: ServedShards) -> None:
    job = changed(**changes)
    digest, version = a_real_worker(job, served)
    assert version in (job.num_steps, job.num_steps + 1), "with overlap a push was in flight"
    assert simulate(job, 1, version, num_scores=2).digest == digest


def test_the_same_seed_gives_the_same_result_and_another_one_another(trainable: Trainable) -> None:
    one, again, other = (simulate(JOB, 5, seed=seed, model=trainable, num_scores=2) for seed in (0, 0, 1))
    assert one == again
    assert one.digest != other.digest


def test_the_more_workers_the_staler_and_the_faster(trainable: Trainable) -> None:
    job = replace(JOB, pace=Async(ramp=0))
    found = [simulate(job, num_workers, 150, num_scores=1, model=trainable) for num_workers in (1, 4, 16)]
    assert [one.staleness_mean for one in found] == pytest.approx([0, 3, 15], rel=0.1)
    assert [one.steps_per_second for one in found] == pytest.approx([1, 4, 16], rel=0.1)
    assert all(one.last.examples == pytest.approx(150 * 4, rel=0.1) for one in found)


def test_workers_are_let_in_one_after_another(trainable: Trainable) -> None:
    found = [simulate(replace(JOB, pace=Async(ramp)), 16, 150, num_scores=1, model=trainable) for ramp in (50, 5, 0)]
    assert found[0].staleness_mean < 5.5 < found[1].staleness_mean < found[2].staleness_mean
    assert found[0].last.seconds > found[1].last.seconds > found[2].last.seconds


def test_an_exchange_that_takes_time_and_overlaps_is_staler(trainable: Trainable) -> None:
    job = changed(overlap=True)
    slow = Assumptions(1, gbit=1e-5, seconds_per_step=0.2)
    found = simulate(job, 4, 60, cluster=slow, core_ms_per_step=20.0, num_scores=1, model=trainable)
    assert found.staleness_mean > 5, "the own gradient that is in flight, and those of others"
    assert found.steps_per_second < 4 / 0.2


def test_slow_workers_are_staler_than_others(trainable: Trainable) -> None:
    stragglers = Assumptions(1, math.inf, 1.0, stragglers=0.25, slowdown=8.0)
    at_once = replace(JOB, pace=Async(ramp=0))
    found = simulate(at_once, 8, 120, cluster=stragglers, num_scores=1, model=trainable)
    assert found.steps_per_second == pytest.approx(6 + 2 / 8, rel=0.1)
    assert len(found.staleness) > 25, "a straggler's push follows about 50 others"
    bounded = simulate(replace(JOB, pace=Bounded(2)), 8, 60, cluster=stragglers, num_scores=1, model=trainable)
    assert bounded.steps_per_second < 1.5, "all wait for the stragglers"
    assert len(bounded.staleness) <= 1 + 3 * 7


def test_sync_averages_and_backups_are_dropped(trainable: Trainable) -> None:
    job = replace(JOB, cluster=replace(JOB.cluster, num_workers=4), pace=Sync(3, backups=1))
    found = simulate(job, 4, 20, num_scores=1, model=Trainable(job))
    assert found.last.examples == pytest.approx(20 * 4 * 4, rel=0.1)
    assert found.last.step == 20 and found.staleness_mean < 1


def test_treatments_change_what_is_learned(trainable: Trainable) -> None:
    keep, divide, drop = (
        simulate(replace(JOB, staleness=treatment), 6, 60, num_scores=1, model=trainable)
        for treatment in (JOB.staleness, Divide(), Drop(4))
    )
    assert keep.staleness == divide.staleness and keep.digest != divide.digest
    assert keep.dropped == 0 < drop.dropped


def test_a_diverging_training_says_where(trainable: Trainable) -> None:
    job = replace(JOB, rule=SGD(), schedule=Constant(1e30))
    found = simulate(job, 3, model=trainable)
    assert "not finite" in found.failure
    assert found.last.step < JOB.num_steps and found.last.scores == {}


def test_parameters_whose_predictions_are_not_finite_end_that_training_only(
    trainable: Trainable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverged(values: object) -> dict[str, float]:
        raise NotFinite("16640 scores are not finite")

    monkeypatch.setattr(trainable, "score", diverged)
    found = simulate(JOB, 2, model=trainable)
    assert found.failure == "the held-out predictions at step 6 are not finite" and len(found.points) == 1


def test_memory_does_not_grow_with_steps(trainable: Trainable) -> None:
    simulate(JOB, 6, 10, model=trainable)  # traces, and what is kept once

    def peak(num_steps: int) -> int:
        tracemalloc.start()
        try:
            simulate(JOB, 6, num_steps, num_scores=1, model=trainable)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(200) < 1.1 * peak(40)


def test_too_little_memory_is_refused_before_training(trainable: Trainable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "available", lambda: 10**5)
    with pytest.raises(ValueError, match=r"needs .* MB of memory at most .* this machine has 0 MB available; simulate"):
        simulate(JOB, 4, model=trainable)


def test_the_footprint_grows_with_what_workers_hold() -> None:
    layout = build(JOB)[1]

    def workers(num_workers: int, instant: bool = True, **changes: Any) -> int:
        job = changed(**changes)
        job = replace(job, cluster=replace(job.cluster, num_workers=num_workers))
        return footprint.of(job, layout, instant=instant).workers

    assert workers(8) > 1.6 * workers(4)
    assert workers(8, instant=False) > 1.5 * workers(8)
    assert workers(8, overlap=True) > 1.3 * workers(8)
    assert workers(8, cadence=LocalSteps(3, KerasAdam(), 1e-2)) > 3 * workers(8)


@pytest.mark.parametrize(
    ("job", "num_workers", "message"),
    [
        (JOB, 0, "--workers=0; give 1 to 1024"),
        (changed(pace=Sync(1)), 4, r"num_gradients \+ backups is 1; cluster.num_workers is 4"),
    ],
)
def test_what_cannot_be_simulated_is_refused(job: Job, num_workers: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(job, num_workers)
