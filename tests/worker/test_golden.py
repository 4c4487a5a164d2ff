"""Fifty losses of one deterministic worker, recorded: a refactoring leaves them as they are.

Through real shard processes, in float32, without overlap, so that nothing depends on time. After a change that is
meant to alter numbers (a formula, the initial values, the generated images), record them again and say why.
Measured: one thread or two leave them bit for bit, oneDNN held to SSE4.1 moves them by 2.5e-5 at most.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from downpour.launch.job import Cluster, Exchange, Job
from downpour.launch.job.build import build
from downpour.model.data import GeneratedImages
from downpour.model.data.order import forever
from downpour.model.vision.losses import per_label_logistic
from downpour.model.vision.resnet import ResNet
from downpour.proto import codec
from downpour.ps.layout import Slicing
from downpour.ps.policy.rules import Momentum
from downpour.ps.policy.schedules import StaircaseExponential
from downpour.worker.exchange import exchange as exchanges
from downpour.worker.loop import train
from downpour.worker.step.step import TrainingStep
from downpour.worker.step.variables import initial_values
from tests.conftest import ShardProcesses
from tests.worker.cluster import initialize

JOB = Job(
    name="golden",
    model=ResNet(depth=18, width=8, stem="3x3/2"),
    data=GeneratedImages(image_size=16, num_labels=6),
    loss=per_label_logistic,
    rule=Momentum(0.9),
    schedule=StaircaseExponential(0.002, factor=0.5, every=20),
    num_steps=50,
    batch_size=16,
    slicing=(Slicing("head/*", num_slices=3),),
    weight_decay=1e-4,
    cluster=Cluster(num_ps=2, num_workers=1, threads_per_worker=1),
    exchange=Exchange(codec="float32", overlap=False),
    seed=5,
)
# fmt: off
GOLDEN = [
    4.710019, 5.015202, 4.373994, 3.982268, 4.200985, 3.711982, 3.777906, 2.899034, 2.928035, 2.206513,
    1.657024, 2.152991, 1.702160, 2.056440, 1.844805, 3.034534, 1.446790, 0.970662, 1.220454, 0.795880,
    0.940337, 1.084251, 1.184072, 0.927189, 1.121980, 1.001452, 1.117651, 1.347252, 0.803756, 0.909172,
    0.750589, 1.125427, 1.176433, 0.819151, 0.652073, 0.677287, 0.557265, 0.492769, 0.510076, 0.855867,
    0.577460, 0.396546, 0.561546, 0.697669, 0.862767, 0.530367, 0.629490, 0.467792, 0.539042, 0.632716,
]
# fmt: on


class Recorder:
    """Stands where a worker reports to the chief; keeps the losses."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.losses: list[float] = []

    def computed(self, *, loss: float, **_: Any) -> None:
        self.losses.append(loss)

    def exchanged(self, *_: Any) -> None: ...

    def read(self, *_: Any) -> None: ...


def trace(job: Job, shards: ShardProcesses) -> list[float]:
    """Losses of a job's only worker, from first to last."""
    model, layout = build(job)
    addresses = shards.start(job.cluster.num_ps)
    initialize(addresses, layout, initial_values(model), job.rule, job.schedule)
    settings: Any = {"wire": codec.FLOAT32, "worker": 0, "incarnation": 1, "joined": True}
    exchange = exchanges.Exchanger(addresses, layout, give_up_after_s=job.exchange.give_up_after_s, **settings)
    recorder: Any = Recorder()
    try:
        exchange.connect()
        leases = forever(job.data.num_records, 4 * job.batch_size)
        with job.data.training(batch_size=job.batch_size, seed=job.seed, leases=leases) as batches:
            step = TrainingStep(model, job.loss, layout)
            train(step, exchange, batches, recorder, num_steps=job.num_steps, overlap=job.overlap)
    finally:
        exchange.close()
    losses: list[float] = recorder.losses
    return losses


@pytest.mark.process
def test_the_losses_are_the_recorded_ones(shards: ShardProcesses) -> None:
    tf.config.experimental.enable_op_determinism()
    losses = trace(JOB, shards)
    np.testing.assert_allclose(losses, GOLDEN, rtol=3e-4, err_msg=f"recorded now: {losses}")
