"""What tests of real jobs share: a recipe small enough to train in seconds, its images, and a running launcher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import psutil

from downpour.model.vision.labels import LABELS_FILE
from downpour.model.vision.records import LabelledImage, write_records
from downpour.proto.chief_pb2 import ProgressReply
from downpour.worker.exchange.clients import ChiefClient
from tests.model.data.test_data import TREE, numbered_image

# Workers take their time while a file is there: what a test does to the job comes before its end.
PACED = """
import time
from pathlib import Path


@dataclass(frozen=True)
class Paced(GeneratedImages):
    slow: Path = Path()

    def training(self, *, batch_size, seed, leases):
        fast = super().training(batch_size=batch_size, seed=seed, leases=leases)

        def pace():
            for images, labels in fast:
                time.sleep(0.3 if self.slow.exists() else 0.01)
                yield (images, labels), fast.position

        return Batches(pace(), fast.counts)


def job():
    data = Paced(image_size=8, num_labels=5, num_heldout=4, slow=Path(__file__).with_name("slow"))
    return tiny(data=data, num_steps=600, checkpoint_every_steps=50, clip=CLIPPED)
"""

START_S = 120.0  # for all processes to have loaded TensorFlow, on a busy machine

RECIPE = """
from dataclasses import dataclass, replace

import numpy as np

from downpour.launch.job import Cluster, Exchange, Job
from downpour.model.data import Batches, GeneratedImages, ImageRecords
from downpour.model.vision.losses import per_label_logistic
from downpour.ps.layout import Slicing
from downpour.ps.policy.rules import Momentum
from downpour.ps.policy.schedules import Constant
from downpour.worker.step.clip import Clip

# Two channels wide: where both have died, gradients explode.
CLIPPED = Clip(by_global_norm=1.0)


# A convolution with batch norm, and the head: every process traces it in a fraction of a second.
@dataclass(frozen=True)
class Small:
    width: int = 2

    def build(self, image_size, num_labels):
        from keras import Input, Model, layers

        images = Input((image_size, image_size, 3))
        x = layers.Conv2D(self.width, 3, strides=2, use_bias=False, name="stem_conv")(images)
        x = layers.ReLU()(layers.BatchNormalization(name="stem_bn")(x))
        x = layers.GlobalAveragePooling2D()(x)
        return Model(images, layers.Dense(num_labels, name="head")(x))


def tiny(**changes):
    return replace(
        Job(
            name="tiny",
            model=Small(),
            data=GeneratedImages(image_size=8, num_labels=5, num_heldout=4),
            loss=per_label_logistic,
            rule=Momentum(0.9),
            schedule=Constant(0.001),
            num_steps=40,
            batch_size=4,
            slicing=(Slicing("head/*", num_slices=3),),
            cluster=Cluster(num_ps=2, num_workers=2, threads_per_worker=1),
            exchange=Exchange(give_up_after_s=30.0),
        ),
        **changes,
    )


def job():
    return tiny()
"""


def write_recipe(folder: Path, more: str = "") -> Path:
    """The tiny recipe as a file, with more code at its end."""
    path = folder / "tiny.py"
    path.write_text(RECIPE + more)
    return path


def write_images(folder: Path, num_train: int, num_heldout: int, spoilt: Collection[int] = ()) -> Path:
    """A data folder of real pictures, training ones in two files in turn; those numbered `spoilt` do not decode."""

    def image(number: int) -> LabelledImage:
        good = numbered_image(number)
        return good._replace(encoded=b"no picture") if number in spoilt else good

    folder.mkdir()
    for i in range(2):
        write_records(folder / f"train-{i:05d}.tfrecord", [image(n) for n in range(i, num_train, 2)])
    write_records(folder / "heldout-00000.tfrecord", [image(num_train + n) for n in range(num_heldout)])
    TREE.save(folder / LABELS_FILE)
    return folder


def cut_off(path: Path) -> None:
    """Truncates a file in the middle of its last record."""
    path.write_bytes(path.read_bytes()[:-20])


class LocalJob:
    """A `downpour local` of its own process, with more arguments and environment, whose output goes into files.

    Attributes:
        run_dir: Where the job writes.
        process: The launcher.
        scratch: Holds the folder that holds the shards' arenas.
    """

    def __init__(self, recipe: Path, folder: Path, *arguments: str, **environment: str) -> None:
        self.run_dir = folder / "run"
        self._folder = folder
        self._out, self._err = folder / "stdout", folder / "stderr"
        self.scratch = folder / "scratch"
        self.scratch.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "downpour.launch.local", f"--recipe={recipe}", f"--run_dir={self.run_dir}"]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*command, f"--arena_parent={self.scratch}", *arguments],
                stdout=out,
                stderr=err,
                env=os.environ | environment,
            )

    @property
    def stderr(self) -> str:
        """What the launcher has written so far."""
        return self._err.read_text()

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self._out.read_text()

    def end(self, timeout_s: float = 120.0) -> int:
        """Waits for the end of the launcher; its exit code."""
        return self.process.wait(timeout_s)

    def result(self) -> dict[str, Any]:
        """The object in the last line of stdout, which must be `RESULT {json}`."""
        last = self._out.read_text().splitlines()[-1]
        assert last.startswith("RESULT {"), last
        found: dict[str, Any] = json.loads(last.removeprefix("RESULT "))
        return found

    def the_error(self) -> str:
        """The one error message on stderr, its last line; nothing may look like a traceback or come on stdout."""
        lines = self.stderr.splitlines()
        assert "Traceback" not in self.stderr, self.stderr
        assert [line for line in lines if "] error: " in line] == lines[-1:], self.stderr
        assert "RESULT" not in self._out.read_text()
        return lines[-1]

    def role(self, name: str) -> psutil.Process:
        """The running process of a role, such as `ps/1` or `evaluator`; waits for its start."""
        role, _, index = name.partition("/")
        wanted = {f"downpour.launch.{role}", *([f"--index={index}"] if index else [])}
        self.wait((self.run_dir / "logs" / f"{name.replace('/', '-')}.log").exists, f"the start of {name}")
        found: list[psutil.Process] = []

        def seen() -> bool:
            children = psutil.Process(self.process.pid).children()
            found[:] = [child for child in children if wanted <= set(_command_line(child))]
            return bool(found)

        self.wait(seen, f"the start of {name}")
        return found[0]

    def chief_address(self) -> str:
        """Out of a worker's command line."""
        words = _command_line(self.role("worker/0"))
        return next(word for word in words if word.startswith("--chief=")).removeprefix("--chief=")

    def wait(self, condition: Callable[[], object], what: str, timeout_s: float = START_S) -> None:
        """Waits for a condition; fails at once when the launcher ends before."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, f"the job ended before {what}:\n{self.stderr}"
            assert time.monotonic() < deadline, f"{what} did not come within {timeout_s:.0f} s:\n{self.stderr}"
            time.sleep(0.1)

    def left_behind(self) -> list[object]:
        """Processes that mention this job's folder in their command line, and what is left in the scratch folder."""
        processes = [p for p in psutil.process_iter() if any(str(self._folder) in word for word in _command_line(p))]
        return [*processes, *self.scratch.iterdir()]

    def kill(self) -> None:
        """Ends it if it still runs; its roles end with it."""
        self.process.kill()
        self.process.wait()


class Watcher:
    """Asks the chief of a job how far it is."""

    def __init__(self, job: LocalJob) -> None:
        self._job = job
        self._chief = ChiefClient(job.chief_address(), START_S)

    def progress(self) -> ProgressReply:
        """The chief's answer."""
        return self._chief.progress()

    def wait_for_step(self, step: int) -> None:
        """Waits until the job has trained so far, and asserts that it is not done."""
        self._job.wait(lambda: self.progress().step >= step, f"step {step}")
        self.assert_training()

    def assert_training(self) -> None:
        """Fails when the job has all its steps: what a test did came too late."""
        state = self.progress().state
        assert state == ProgressReply.STATE_TRAINING, ProgressReply.State.Name(state)

    def close(self) -> None:
        """Ends the connection."""
        self._chief.close()


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return []
