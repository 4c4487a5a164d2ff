"""One worker, float32, no overlap: 20 steps of a compiled model through shards equal 20 steps of plain Keras.

Losses and final weights agree within 1e-5 of the largest, in mixed precision within 2e-2. All models run in the slow
tests; a few of different kinds in the fast ones.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import keras
import numpy as np
import pytest
from keras.src.utils.naming import reset_uids

from downpour.launch.job import Cluster, Exchange, Job
from downpour.launch.job.build import build
from downpour.launch.job.compiled import from_compiled
from downpour.model import weights
from downpour.model.data import Examples
from downpour.model.data.order import forever
from downpour.proto import codec
from downpour.ps.service.server import ShardServer
from downpour.worker.exchange import exchange as exchanges
from downpour.worker.exchange.cadence import EveryStep
from downpour.worker.loop import train
from downpour.worker.step.step import TrainingStep
from downpour.worker.step.variables import initial_values
from tests.parity.models import BATCH, MODELS, data_of
from tests.worker.cluster import initialize
from tests.worker.test_golden import Recorder

NUM_STEPS, SEED = 20, 3
FAST = (
    "regression", "convolutions_batch_norm", "lstm", "dict_inputs_two_losses", "masked_sequences", "sample_weights",
    "variational_autoencoder", "text_vectorization",
)  # fmt: skip


def job_of(name: str) -> Job:
    data = Examples(data_of(name), shuffle=False)
    fields = from_compiled(plain(name)).job_fields()
    return Job(
        name=name,
        model=MODELS[name],
        data=data,
        loss=None,
        num_steps=NUM_STEPS,
        batch_size=BATCH,
        cluster=Cluster(num_ps=2, num_workers=1),
        exchange=Exchange(codec="float32", overlap=False),
        seed=SEED,
        **fields,
    )


def plain(name: str) -> keras.Model:
    """The model in plain Keras, with the job's initial values."""
    reset_uids()
    keras.utils.set_random_seed(SEED)
    return MODELS[name]()


def through_shards(job: Job) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses of one worker of a job, and the values of the model's variables at the end."""
    model, layout = build(job)
    recorder: Any = Recorder()
    with ExitStack() as stack:
        servers = [stack.enter_context(ShardServer(i)) for i in range(job.cluster.num_ps)]
        addresses = [f"127.0.0.1:{server.port}" for server in servers]
        initialize(addresses, layout, initial_values(model), job.rule, job.schedule, average=job.average)
        exchange = exchanges.Exchanger(
            addresses, layout, wire=codec.FLOAT32, worker=0, incarnation=1, give_up_after_s=20, joined=True
        )
        stack.callback(exchange.close)
        exchange.connect()
        leases = forever(job.data.num_records, job.batch_size)
        with job.data.training(batch_size=job.batch_size, seed=job.seed, leases=leases) as batches:
            step = TrainingStep(model, None, layout, clip=job.clip, sparse=isinstance(job.cadence, EveryStep))
            train(step, exchange, batches, recorder, num_steps=job.num_steps, overlap=False, cadence=job.cadence)
        parameters = exchange.start().result().parameters
        assert parameters is not None
        parts = zip(parameters.trained, parameters.statistics, parameters.frozen, strict=True)
        values = layout.gather([np.concatenate(of_shard) for of_shard in parts])
    named = {v.name: value for v, value in zip(layout.variables, values, strict=True)}
    return recorder.losses, weights.added(named)


def of_keras(name: str) -> tuple[list[float], dict[str, np.ndarray]]:
    model = plain(name)
    parts = data_of(name)
    losses = []
    for i in range(NUM_STEPS):
        begin = i * BATCH % 80
        batch = keras.tree.map_structure(lambda a, begin=begin: a[begin : begin + BATCH], parts)
        model.reset_metrics()
        losses.append(float(model.train_on_batch(*batch, return_dict=True)["loss"]))
    return losses, {v.path: v.numpy() for v in model.variables}


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_a_model_trains_as_in_plain_keras(name: str) -> None:
    tolerance = 2e-2 if name.startswith("mixed") else 1e-5
    losses, values = through_shards(job_of(name))
    expected, theirs = of_keras(name)
    scale = max(map(abs, expected))
    np.testing.assert_allclose(losses, expected, rtol=0, atol=tolerance * scale, err_msg=name)
    assert expected[-1] != expected[0], "nothing was learned"
    for path, value in values.items():
        largest = max(1e-3, np.abs(theirs[path]).max(initial=0))
        np.testing.assert_allclose(
            value, theirs[path], rtol=0, atol=max(1e-5, tolerance) * largest, err_msg=f"{name}: {path}"
        )
