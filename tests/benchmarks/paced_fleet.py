"""A fleet of workers with real shards and a given speed each: gradients and exchange are real, time is paced.

The workers are threads of one process, each with its own connections, and take turns with one compiled step. A step is
drawn out by sleeping to the seconds that its worker is said to need, so that eight fit on two cores. An observer pulls
the parameters meanwhile and scores them on the test pictures.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from downpour.launch.job import job
from downpour.model.vision.losses import softmax_cross_entropy
from downpour.model.vision.records import RecordCounts
from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.ps.layout import Layout, Slicing, lay_out
from downpour.ps.policy.pace import Mode
from downpour.ps.policy.rules import Rule
from downpour.ps.policy.schedules import Schedule
from downpour.ps.policy.staleness import Compensate, Treatment
from downpour.worker.exchange.cadence import Cadence
from downpour.worker.exchange.clients import ShardClient
from downpour.worker.exchange.exchange import Exchanger, Parameters
from downpour.worker.loop import train
from downpour.worker.step.step import StepResult, TrainingStep
from downpour.worker.step.variables import initial_values, variables_of
from tests.benchmarks.fashion_mnist import FashionMnist, network
from tests.conftest import ShardProcesses
from tests.worker.cluster import initialize

NUM_SHARDS = 4
_GIVE_UP_S = 60.0
_FLOAT32 = job.Exchanger(codec="float32", factors=False, overlap=False)


@dataclass(frozen=True)
class Speed:
    """Seconds a step of one worker takes; with probability `pause` it takes `pause_s` more."""

    step_s: float
    pause: float = 0.0
    pause_s: float = 0.0


@dataclass(frozen=True)
class Method:
    """One way to update, and to exchange; `exchange.publish_every` is taken as it is."""

    pace: Mode
    staleness: Treatment
    cadence: Cadence
    rule: Rule
    schedule: Schedule
    exchange: job.Exchanger = _FLOAT32


@dataclass
class Outcome:
    """What one run gave.

    Attributes:
        seconds: From the first step to the target, or to the end if it was not reached.
        examples: Computed by then, dropped gradients included.
        steps: Version of the slowest shard by then.
        reached: Whether the target was reached.
        curve: (seconds, version, examples, accuracy) of every look at the parameters.
        staleness_mean: Of every push, in updates.
        staleness_p99: The 99th percentile.
        dropped: Pushes that a shard left out in part or whole, the most of any shard.
        pushes: Acknowledged.
        mb: Bytes pulled and pushed, in MB.
    """

    seconds: float = 0.0
    examples: int = 0
    steps: int = 0
    reached: bool = False
    curve: list[tuple[float, int, int, float]] = field(default_factory=list)
    staleness_mean: float = 0.0
    staleness_p99: int = 0
    dropped: int = 0
    pushes: int = 0
    mb: float = 0.0


class _Batches:
    """Endless shuffled batches of one worker."""

    counts = RecordCounts()
    position = 0

    def __init__(self, data: FashionMnist, batch_size: int, seed: int) -> None:
        self._batches = self._shuffled(data, batch_size, np.random.default_rng(seed))

    def __next__(self) -> tuple[np.ndarray, np.ndarray]:
        return next(self._batches)

    def _shuffled(
        self, data: FashionMnist, size: int, rng: np.random.Generator
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        while True:
            order = rng.permutation(len(data.train_images))
            for i in range(0, len(order) - size + 1, size):
                yield data.train_images[order[i : i + size]], data.train_labels[order[i : i + size]]


class _Totals:
    """Stands where a worker's reporter does, for all workers."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.examples = self.pushes = self.num_bytes = 0
        self._lock = threading.Lock()

    def computed(self, *, loss: float, num_examples: int, seconds: float, version: int) -> None:
        with self._lock:
            self.examples += num_examples

    def read(self, counts: RecordCounts, input_s: float) -> None: ...

    def exchanged(self, answer: Any, records_done: int, course: Any) -> None:
        with self._lock:
            self.pushes += answer.acknowledged
            self.num_bytes += answer.bytes_pushed + answer.bytes_pulled


class Fleet:
    """Runs methods one after another, each on fresh shards.

    Args:
        data: The pictures.
        speeds: One a worker.
        batch_size: Pictures in a batch.
        folder: For arenas and ports.
    """

    def __init__(self, data: FashionMnist, speeds: Sequence[Speed], batch_size: int, folder: Path) -> None:
        self._data, self._speeds, self._batch_size = data, speeds, batch_size
        self._model = network()
        self._layout: Layout = lay_out(variables_of(self._model), NUM_SHARDS, [Slicing("*head/kernel", NUM_SHARDS)])
        self._steps = {
            wire: TrainingStep(self._model, softmax_cross_entropy, self._layout, wire) for wire in codec.CODECS.values()
        }
        self._step_lock = threading.Lock()
        self._predict = tf.function(lambda images: tf.argmax(self._model(images, training=False), axis=1))
        self._shards = ShardProcesses(folder)

    def close(self) -> None:
        """Ends the shards."""
        self._shards.stop()

    def run(self, method: Method, *, target: float, max_s: float, seed: int) -> Outcome:
        """Trains until the observer sees the target, or for `max_s` seconds."""
        addresses = self._shards.start(NUM_SHARDS)
        values = initial_values(network(seed))
        initialize(
            addresses, self._layout, values, method.rule, method.schedule,
            pace=method.pace, staleness=method.staleness, num_workers=len(self._speeds),
        )  # fmt: skip
        totals, outcome = _Totals(), Outcome()
        threads = [
            threading.Thread(target=self._work, args=(addresses, method, index, seed, totals), daemon=True)
            for index in range(len(self._speeds))
        ]
        for thread in threads:
            thread.start()
        try:
            self._observe(addresses, totals, outcome, target, max_s)
        finally:
            self._release(addresses, totals)
            for thread in threads:
                thread.join(_GIVE_UP_S)
        self._count(addresses, outcome)
        outcome.pushes, outcome.mb = totals.pushes, totals.num_bytes / 1e6
        return outcome

    def _work(self, addresses: list[str], method: Method, index: int, seed: int, totals: _Totals) -> None:
        settings = method.exchange
        exchange = Exchanger(
            addresses, self._layout, wire=codec.CODECS[settings.codec], worker=index, incarnation=1,
            give_up_after_s=_GIVE_UP_S, send_base=isinstance(method.staleness, Compensate),
            push=codec.BLOCK_CODECS.get(settings.push), differences=codec.BLOCK_CODECS.get(settings.pull),
            publish_every=settings.publish_every,
        )  # fmt: skip
        try:
            train(
                self._paced(self._steps[exchange.wire], self._speeds[index], seed * 1000 + index, totals),
                exchange,
                _Batches(self._data, self._batch_size, seed * 1000 + index),  # type: ignore[arg-type]
                totals,  # type: ignore[arg-type]
                num_steps=1 << 40,
                overlap=False,
                cadence=method.cadence,
            )
        finally:
            exchange.close()

    def _paced(
        self, compiled: TrainingStep, speed: Speed, seed: int, totals: _Totals
    ) -> Callable[[Parameters, Any, Any], StepResult]:
        rng = np.random.default_rng(seed)

        def step(parameters: Parameters, images: Any, labels: Any) -> StepResult:
            end = time.monotonic() + speed.step_s + speed.pause_s * (rng.random() < speed.pause)
            with self._step_lock:
                result = compiled(parameters, images, labels)
            totals.stop.wait(max(0.0, end - time.monotonic()))
            return result

        return step

    def _observe(self, addresses: list[str], totals: _Totals, outcome: Outcome, target: float, max_s: float) -> None:
        observer = Exchanger(
            addresses, self._layout, wire=codec.FLOAT32, worker=0, incarnation=0, give_up_after_s=_GIVE_UP_S
        )
        start = time.monotonic()
        try:
            while not outcome.reached and outcome.seconds < max_s:
                totals.stop.wait(0.5)
                examples = totals.examples
                pulled = observer.start().result().parameters
                assert pulled is not None
                outcome.seconds = time.monotonic() - start
                outcome.examples, outcome.steps = examples, min(pulled.versions)
                accuracy = self._accuracy(pulled)
                outcome.curve.append((outcome.seconds, outcome.steps, examples, accuracy))
                outcome.reached = accuracy >= target
        finally:
            observer.close()

    def _accuracy(self, parameters: Parameters) -> float:
        vectors = [np.concatenate(p) for p in zip(parameters.trained, parameters.statistics, strict=True)]
        for variable, value in zip(self._model.trainable_variables, self._layout.gather(vectors), strict=True):
            variable.assign(value)
        predicted = self._predict(self._data.test_images).numpy()
        return float((predicted == self._data.test_labels.argmax(1)).mean())

    def _release(self, addresses: list[str], totals: _Totals) -> None:
        """Ends the run: nobody waits for anybody any longer."""
        totals.stop.set()
        for shard, address in enumerate(addresses):
            client = ShardClient(shard, address, self._layout, _GIVE_UP_S)
            client.absent([(index, 1) for index in range(len(self._speeds))])
            client.close()

    def _count(self, addresses: list[str], outcome: Outcome) -> None:
        """Adds what the shards counted."""
        statuses: list[pb.StatusReply] = []
        for shard, address in enumerate(addresses):
            client = ShardClient(shard, address, self._layout, _GIVE_UP_S)
            statuses.append(client.status())
            client.close()
        histogram = np.sum([status.staleness_histogram for status in statuses], axis=0)
        share = np.cumsum(histogram) / max(histogram.sum(), 1)
        outcome.staleness_mean = float(histogram @ np.arange(histogram.size) / max(histogram.sum(), 1))
        outcome.staleness_p99 = int(np.searchsorted(share, 0.99))
        outcome.dropped = max(status.pushes_dropped for status in statuses)
