"""Workers without a model: each pushes the same gradients again and again, through the real exchange.

Started by `tests.benchmarks.cluster`, never by hand. The gradients are made once, and all processes map them; every
step really encodes, sends and pulls them, and what comes back is decoded into the buffers a training step would read.
Several workers share a process, each with its own connections and buffers. No TensorFlow.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from absl import flags

from downpour.launch import certs
from downpour.launch.roles import entry
from downpour.proto import codec
from downpour.proto.security.config import PLAIN, Security
from downpour.ps.layout import Layout
from downpour.worker.exchange.exchange import Answer, Exchanger, Factors, Gradients
from tests.benchmarks.measure import Steps, Window, take_steps, wait_for_window, write_result
from tests.benchmarks.shape import BATCH_SIZE, layout_of

_SETTINGS = flags.DEFINE_string("settings", None, "A `Settings` as JSON.")


@dataclass(frozen=True)
class Settings:
    """What a process of workers must know.

    Attributes:
        variables: File that lists them.
        addresses: `host:port` of every shard, in order.
        gradients: File that `save_gradients` has written.
        codec: Name of the wire codec.
        push: Name of the codec of pushed gradients: `same` or `int8`.
        pull: What is pulled: `live`, or the name of the codec of differences to publications.
        publish_every: Pushes between two publications.
        compute_s: What computing a gradient would take, slept; each time up to a tenth more or less.
        factored: Whether the head's gradient travels as factors.
        first: Index of the first worker of this process.
        num_workers: Workers of this process.
        give_up_after_s: Deadline of a call.
        certificates: Folder with the job's certificates, one folder a role in it; empty for plain text.
    """

    variables: str
    addresses: list[str]
    gradients: str
    codec: str
    push: str
    pull: str
    publish_every: int
    compute_s: float
    factored: bool
    first: int
    num_workers: int
    give_up_after_s: float = 120.0
    certificates: str = ""

    def flag(self) -> str:
        """For the command line."""
        return f"--settings={json.dumps(asdict(self))}"


class EmulatedWorker:
    """One worker: its exchange and the gradients it pushes.

    Args:
        settings: Of the process.
        layout: The layout.
        index: Index of this worker.
        gradients: What every step pushes.
        security: Of the process.
    """

    def __init__(
        self, settings: Settings, layout: Layout, index: int, gradients: Gradients, security: Security = PLAIN
    ) -> None:
        self._gradients = gradients
        self._compute_s = settings.compute_s
        self._random = random.Random(index)
        self._exchange = Exchanger(
            settings.addresses,
            layout,
            wire=codec.CODECS[settings.codec],
            worker=index,
            incarnation=1,
            push=codec.BLOCK_CODECS.get(settings.push),
            publish_every=0 if settings.pull == "live" else settings.publish_every,
            differences=codec.BLOCK_CODECS.get(settings.pull),
            give_up_after_s=settings.give_up_after_s,
            security=security,
        )
        self._exchange.connect()
        self._versions = self._pulled(self._exchange.start().result())
        self._pushes = 0

    def step(self) -> tuple[float, float]:
        """Computes nothing for as long as it takes, then pushes and pulls everything; returns the seconds of both."""
        # The first one is cut short, so that workers that begin together do not stay together.
        part = self._random.uniform(0.9, 1.1) if self._pushes else self._random.random()
        time.sleep(part * self._compute_s)
        answer = self._exchange.start(replace(self._gradients, versions=self._versions)).result()
        self._versions = self._pulled(answer)
        self._pushes += answer.acknowledged
        return answer.push_s, answer.pull_s

    def _pulled(self, answer: Answer) -> list[int]:
        """Versions of what the next gradients would be computed from."""
        assert answer.parameters is not None
        return answer.parameters.versions

    def run(self, window: Window) -> Steps:
        """Takes steps through the window."""
        steps = take_steps(self.step, window)
        steps.pushes = self._pushes
        return steps

    def close(self) -> None:
        """Ends its connections."""
        self._exchange.close()


def save_gradients(file: Path, layout: Layout, wire: int) -> None:
    """Writes random gradients of a realistic size, for the workers of any number of processes."""
    generator = np.random.default_rng(1)
    with file.open("wb") as out:
        for count, is_wire in _arrays(layout):
            numbers = generator.standard_normal(count, np.float32) * np.float32(1e-3)
            (_to_wire(numbers, wire) if is_wire else numbers).tofile(out)


def mapped_gradients(file: Path, layout: Layout, wire: int) -> Gradients:
    """Those gradients, in memory that all processes share."""
    mapped, at, arrays = np.memmap(file, np.uint8, "r"), 0, []
    for count, is_wire in _arrays(layout):
        dtype = codec.WIRE_DTYPES[wire] if is_wire else np.dtype(np.float32)
        arrays.append(np.asarray(mapped[at : at + count * dtype.itemsize]).view(dtype))
        at += count * dtype.itemsize
    rest = iter(arrays)
    trained, statistics, factors = [], [], []
    for shard in range(layout.num_shards):
        trained.append(next(rest))
        statistics.append(next(rest))
        factors.append([_pair(next(rest), group.num_inputs) for group in layout.factored(shard)])
    return Gradients(trained, statistics, [0] * layout.num_shards, factors=factors)


def _pair(both: np.ndarray, num_inputs: int) -> Factors:
    """Both factors of a variable, one after the other in one array."""
    x, d = both[: BATCH_SIZE * num_inputs], both[BATCH_SIZE * num_inputs :]
    return x.reshape(BATCH_SIZE, -1), d.reshape(BATCH_SIZE, -1)


def _arrays(layout: Layout) -> Iterator[tuple[int, bool]]:
    """Elements of each array of a push, shard by shard, and whether they are in the wire dtype or in float32."""
    for shard in range(layout.num_shards):
        num_trained = layout.num_trained(shard)
        yield num_trained - layout.num_factored(shard), True
        yield layout.num_pushed(shard) - num_trained, False
        for group in layout.factored(shard):
            yield BATCH_SIZE * (group.num_inputs + group.num_outputs), True


def _to_wire(vector: np.ndarray, wire: int) -> np.ndarray:
    if wire != codec.BFLOAT16:
        return vector.astype(codec.WIRE_DTYPES[wire])
    # Cut off instead of rounded, which is as good here.
    return (vector.view(np.uint32) >> 16).astype(np.uint16)


def run(settings: Settings) -> None:
    """Makes the workers, waits for the times, lets all of them run."""
    layout = layout_of(Path(settings.variables), len(settings.addresses), factored=settings.factored)
    gradients = mapped_gradients(Path(settings.gradients), layout, codec.CODECS[settings.codec])
    indices: Sequence[int] = range(settings.first, settings.first + settings.num_workers)
    security = certs.security_of("worker", Path(settings.certificates) if settings.certificates else None)
    workers = [EmulatedWorker(settings, layout, index, gradients, security) for index in indices]
    window = wait_for_window()
    with ThreadPoolExecutor(len(workers), thread_name_prefix="worker") as pool:
        write_result(list(pool.map(lambda worker: worker.run(window), workers)))
    for worker in workers:
        worker.close()


def _main() -> None:
    if _SETTINGS.value is None:
        raise ValueError("started without --settings; run tests.benchmarks.exchange instead")
    run(Settings(**json.loads(_SETTINGS.value)))


def main() -> None:
    """See the module."""
    entry.run(_main, role="emulated workers")


if __name__ == "__main__":
    main()
