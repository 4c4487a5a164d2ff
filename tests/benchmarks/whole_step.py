"""A whole training step of the paper's model through 17 shards, beside the same model in one plain process.

    python -m tests.benchmarks.whole_step [--batch_size=32] [--steps=3]

ResNet-101, 299 x 299, 18,291 labels, one worker with all cores. plain: Keras' model, gradient and Keras' RMSprop in one
process, compiled. downpour: the same through shard processes, bfloat16 with factors, the exchange overlapped, as
`worker.loop` trains. Both compute the same made-up batch again and again; each runs in a process of its own, one after
the other, and the first steps, which compile, are not counted.

The last line is `RESULT {json}`: images a second of both and their ratio.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from downpour.launch.roles import entry
from downpour.model.vision.losses import per_label_logistic
from downpour.model.vision.records import RecordCounts
from downpour.proto import codec
from downpour.ps.layout import Slicing, lay_out
from downpour.ps.policy.rules import RMSProp
from downpour.ps.policy.schedules import Constant

_PART = flags.DEFINE_enum("part", None, ["plain", "downpour"], "Measure this one only; in this process.")
_BATCH = flags.DEFINE_integer("batch_size", 32, "Images in a batch.", 1)
_STEPS = flags.DEFINE_integer("steps", 3, "Steps that are counted.", 1)
_DEPTH = flags.DEFINE_integer("depth", 101, "Of the ResNet.", 18)
_SIZE = flags.DEFINE_integer("image_size", 299, "Height and width.", 32)
_LABELS = flags.DEFINE_integer("labels", 18_291, "Labels.", 50)
_WARMUP = 2
_RATE, _RHO, _MOMENTUM = 1e-4, 0.9, 0.9


def batch() -> tuple[np.ndarray, np.ndarray]:
    """Noise, and one label in a thousand."""
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (_BATCH.value, _SIZE.value, _SIZE.value, 3)).astype(np.float32)
    return images, (rng.random((_BATCH.value, _LABELS.value)) < 1e-3).astype(np.float32)


def model() -> Any:
    """The network, built."""
    from downpour.model.vision.resnet import ResNet

    return ResNet(depth=_DEPTH.value).build(image_size=_SIZE.value, num_labels=_LABELS.value)


def plain() -> float:
    """Images a second of one process."""
    import keras
    import tensorflow as tf

    network, (images, labels) = model(), batch()
    optimizer = keras.optimizers.RMSprop(_RATE, rho=_RHO, momentum=_MOMENTUM)
    optimizer.build(network.trainable_variables)

    @tf.function
    def step(images: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = per_label_logistic(labels, network(images, training=True))
        optimizer.apply(tape.gradient(loss, network.trainable_variables))
        return loss

    for number in range(_WARMUP + _STEPS.value):
        if number == _WARMUP:
            begin = time.monotonic()
        assert np.isfinite(step(tf.convert_to_tensor(images), tf.convert_to_tensor(labels)).numpy())
    return _STEPS.value * _BATCH.value / (time.monotonic() - begin)


class _Clock:
    """Stands where a worker's reporter does: notes when each step was computed, and ends the training."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.moments: list[float] = []

    def computed(self, **_: Any) -> None:
        self.moments.append(time.monotonic())
        if len(self.moments) == _WARMUP + _STEPS.value:
            self.stop.set()

    def read(self, counts: RecordCounts, input_s: float) -> None: ...

    def exchanged(self, answer: Any, records_done: int, course: Any) -> None: ...


class _SameBatch:
    """One batch for ever."""

    counts = RecordCounts()
    position = 0

    def __init__(self) -> None:
        self._batch = batch()

    def __next__(self) -> tuple[np.ndarray, np.ndarray]:
        return self._batch


def downpour() -> float:
    """Images a second of one worker with 17 shard processes."""
    from downpour.worker.exchange.exchange import Exchanger
    from downpour.worker.loop import train
    from downpour.worker.step.step import TrainingStep
    from downpour.worker.step.variables import factored_names, initial_values, variables_of
    from tests.conftest import ShardProcesses
    from tests.worker.cluster import initialize

    network, clock = model(), _Clock()
    variables = variables_of(network, 1e-4, factored=factored_names(network, _BATCH.value))
    layout = lay_out(variables, 17, [Slicing("head/*", num_slices=50)])
    with tempfile.TemporaryDirectory(prefix="downpour-", dir="/dev/shm") as folder:
        shards = ShardProcesses(Path(folder))
        try:
            addresses = shards.start(layout.num_shards)
            rule = RMSProp(rho=_RHO, momentum=_MOMENTUM)
            initialize(addresses, layout, initial_values(network), rule, Constant(_RATE))
            exchange = Exchanger(addresses, layout, wire=codec.BFLOAT16, worker=0, incarnation=1, give_up_after_s=300)
            step = TrainingStep(network, per_label_logistic, layout, codec.BFLOAT16)
            train(step, exchange, _SameBatch(), clock, num_steps=1 << 40, overlap=True)  # type: ignore[arg-type]
            exchange.close()
        finally:
            shards.stop()
    return _STEPS.value * _BATCH.value / (clock.moments[-1] - clock.moments[_WARMUP - 1])


def _main() -> None:
    if _PART.value:
        print(f"RESULT {json.dumps({'plain': plain, 'downpour': downpour}[_PART.value]())}", flush=True)
        return
    speeds = {}
    for part in ("plain", "downpour"):
        command = [sys.executable, "-m", "tests.benchmarks.whole_step", f"--part={part}", *sys.argv[1:]]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise ValueError(f"the part {part} ended with exit code {done.returncode}")
        speeds[part] = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
        print(f"{part:<10} {speeds[part]:8.3f} images/s", flush=True)
    print(f"RESULT {json.dumps(speeds | {'ratio': round(speeds['downpour'] / speeds['plain'], 3)})}", flush=True)


if __name__ == "__main__":
    entry.run(_main, role="whole step")
