"""Examples a second of `downpour.fit` beside plain `model.fit`: same model, data and processor cores, in turn.

    python -m tests.benchmarks.throughput [--models=resnet,lstm,mlp,small_mlp] [--seconds=10] [--rounds=3]

| model     | what                                                             | batch | data                     |
|-----------|------------------------------------------------------------------|-------|--------------------------|
| resnet    | the quickstart's ResNet-18, 32 x 32, per-label logistic, RMSprop | 128   | 3,840 pictures           |
| lstm      | two bidirectional LSTMs of 64, as Keras' example for IMDB; Adam  | 32    | 2,048 texts of 200 words |
| mlp       | three hidden layers of 256 for 54 columns and 7 classes; Adam    | 256   | 400,000 rows             |
| small_mlp | two hidden layers of 64 and 32 for the same                      | 256   | 400,000 rows             |

Data are arrays of made-up numbers in memory. No metric is computed, since workers compute none. Keras trains with its
default threads, downpour with two workers of one TensorFlow thread each and two shards, everything else by default:
float32, no overlap, a checkpoint an epoch. Both have two processor cores. The parts of a round run one after the other,
each in a process of its own, and swap places from round to round. Rates are of the steady state: whole epochs of Keras
after the first; for downpour what the shards have counted from `--warmup` seconds after the first push on. Start-up,
from the start of the process to the first trained step, is given apart.

The last line is `RESULT {json}`: for each model the ratio of every round and its median, the rates, the parts of a
worker's step, and the processor time of a step by role.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from absl import flags
from google.protobuf import json_format

from downpour.launch.roles import entry
from downpour.model.vision.losses import per_label_logistic
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.chief_pb2 import WorkerReport
from downpour.proto.rpc.client import Channel
from downpour.worker.chief.journal import Journal
from downpour.worker.chief.owner import JOURNAL

_MODELS = flags.DEFINE_list("models", ["resnet", "lstm", "mlp", "small_mlp"], "Which to measure.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Pairs of runs of each model.", 1)
_SECONDS = flags.DEFINE_float("seconds", 10.0, "Seconds that are measured; Keras takes whole epochs.", 0.1)
_WARMUP = flags.DEFINE_float("warmup", 4.0, "Seconds of training of downpour that are not counted.", 0.0)
_EXAMPLES = flags.DEFINE_integer("examples", 0, "Training examples; 0 for those of the table.", 0)
_PART = flags.DEFINE_enum("part", None, ["keras", "downpour"], "Measure this one only; in this process.")
_CORES = 2
_WORKERS, _SHARDS = 2, 2
_PATIENCE_S = 300.0  # for the first push
_ROLES = ("ps", "worker", "chief")

Arrays = tuple[np.ndarray, np.ndarray]


def resnet() -> Any:
    """The quickstart's network, compiled with its loss and rule."""
    import keras

    from downpour.model.vision.resnet import ResNet

    model = ResNet(depth=18, width=16, stem="3x3/2", head_bias=-4.0, norm_momentum=0.9).build(32, 130)
    model.compile(keras.optimizers.RMSprop(5e-4, rho=0.9, momentum=0.9), per_label_logistic)
    return model


def lstm() -> Any:
    """A classifier of texts with two bidirectional LSTMs."""
    import keras
    from keras import layers

    parts = [
        keras.Input((200,), dtype="int32"),
        layers.Embedding(20_000, 128, name="embedding"),
        layers.Bidirectional(layers.LSTM(64, return_sequences=True), name="first"),
        layers.Bidirectional(layers.LSTM(64), name="second"),
        layers.Dense(1, activation="sigmoid", name="head"),
    ]
    model = keras.Sequential(parts, name="lstm")
    model.compile("adam", "binary_crossentropy")
    return model


def mlp(*widths: int) -> Callable[[], Any]:
    """Returns a function that makes a classifier of rows with hidden layers of these widths."""

    def model() -> Any:
        import keras
        from keras import layers

        hidden = [layers.Dense(width, activation="relu", name=f"hidden{i}") for i, width in enumerate(widths)]
        made = keras.Sequential([keras.Input((54,)), *hidden, layers.Dense(7, name="head")], name="mlp")
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        made.compile("adam", loss)
        return made

    return model


def pictures(count: int) -> Arrays:
    """Noise, and three labels of 130 each."""
    rng = np.random.default_rng(0)
    labels = np.zeros((count, 130), np.float32)
    labels[np.arange(count)[:, None], rng.integers(0, 130, (count, 3))] = 1
    return rng.uniform(-1, 1, (count, 32, 32, 3)).astype(np.float32), labels


def texts(count: int) -> Arrays:
    """Words of which the early ones are frequent; two classes."""
    rng = np.random.default_rng(0)
    words = (20_000 * rng.random((count, 200)) ** 3).astype(np.int32)
    return words, rng.integers(0, 2, (count, 1)).astype(np.float32)


def rows(count: int) -> Arrays:
    """Columns, and the class that a random projection gives a row."""
    rng = np.random.default_rng(0)
    columns = rng.standard_normal((count, 54), np.float32)
    return columns, (columns @ rng.standard_normal((54, 7), np.float32)).argmax(1).astype(np.int32)


@dataclass(frozen=True)
class Setting:
    """A model, its data, and the size of a batch."""

    model: Callable[[], Any]
    data: Callable[[int], Arrays]
    num_examples: int
    batch_size: int

    def arrays(self) -> Arrays:
        """The training examples."""
        return self.data(_EXAMPLES.value or self.num_examples)


SETTINGS = {
    "resnet": Setting(resnet, pictures, 3_840, 128),
    "lstm": Setting(lstm, texts, 2_048, 32),
    "mlp": Setting(mlp(256, 256, 256), rows, 400_000, 256),
    "small_mlp": Setting(mlp(64, 32), rows, 400_000, 256),
}


def plain(setting: Setting) -> dict[str, Any]:
    """Trains by `model.fit` for some epochs."""
    import keras

    class Clock(keras.callbacks.Callback):  # type: ignore[misc]
        """Notes when epochs end, and ends the training. Without a method for batches, which would hold up Keras."""

        def on_train_begin(self, logs: Any = None) -> None:
            self.ends: list[float] = []

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.ends.append(_since_start_s())
            if self.ends[-1] - self.ends[0] >= _SECONDS.value:
                self.model.stop_training = True

    clock, (x, y) = Clock(), setting.arrays()
    setting.model().fit(x, y, batch_size=setting.batch_size, epochs=1 << 30, verbose=0, callbacks=[clock])
    epoch_s = (clock.ends[-1] - clock.ends[0]) / (len(clock.ends) - 1)
    return {"rate": len(x) / epoch_s, "start_up_s": clock.ends[0] - epoch_s}


def downpour(setting: Setting) -> dict[str, Any]:
    """Trains by `downpour.fit` until enough was measured."""
    from downpour.launch.fit import fit
    from downpour.launch.job.job import Cluster

    cluster = Cluster(_SHARDS, _WORKERS, threads_per_worker=1)
    sizes: dict[str, Any] = {"batch_size": setting.batch_size, "workers": _WORKERS, "shards": _SHARDS}
    with tempfile.TemporaryDirectory(prefix="downpour-") as folder:
        run = fit(setting.model(), setting.arrays(), epochs=1e6, run_dir=folder, cluster=cluster, **sizes)
        try:
            version = _versions()
            while not version():
                time.sleep(0.02)
            start_up_s = _since_start_s()
            time.sleep(_WARMUP.value)
            before = _Totals.now(version(), folder)
            time.sleep(_SECONDS.value)
            after = _Totals.now(version(), folder)
        finally:
            run.stop(save=False)
    return {"start_up_s": start_up_s, **after.since(before, setting.batch_size)}


def _versions() -> Callable[[], int]:
    """Waits for the workers; returns a function that asks a shard for the pushes it has counted."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        for process in _processes("worker"):
            for argument in process.cmdline():
                if argument.startswith("--ps="):
                    channel = Channel(argument.removeprefix("--ps=").split(",")[0])
                    path = "/downpour.v1.ParameterServer/Status"
                    ask = channel.unary_unary(path, pb.StatusRequest.SerializeToString, pb.StatusReply.FromString)
                    return lambda: int(ask(pb.StatusRequest(), timeout=10.0).pushes)
        time.sleep(0.1)
    raise ValueError(f"no worker has started within {_PATIENCE_S:.0f} s")


@dataclass(frozen=True)
class _Totals:
    """Of a run up to a moment."""

    at_s: float
    pushes: int
    cpu_s: Mapping[str, float]
    reports: Mapping[str, float]

    @classmethod
    def now(cls, pushes: int, folder: str) -> _Totals:
        at_s = time.monotonic()
        cpu_s = {role: sum(sum(p.cpu_times()[:2]) for p in _processes(role)) for role in _ROLES}
        journal = Journal(Path(folder) / JOURNAL).read() or {"coordinator": {"reports": []}}
        found = [json_format.ParseDict(one, WorkerReport()) for one in journal["coordinator"]["reports"]]
        names = ("input", "pull", "compute", "push")
        totals = {name: sum(getattr(one, f"{name}_seconds") for one in found) for name in names}
        return cls(at_s, pushes, cpu_s, totals | {"steps": sum(one.steps for one in found)})

    def since(self, other: _Totals, batch_size: int) -> dict[str, Any]:
        """Rates and parts of a step between two moments."""
        pushes, seconds = self.pushes - other.pushes, self.at_s - other.at_s
        parts = {name: value - other.reports[name] for name, value in self.reports.items()}
        steps = max(parts.pop("steps"), 1)
        return {
            "rate": pushes * batch_size / seconds,
            "ms_per_step": {name: round(1000 * value / steps, 2) for name, value in parts.items()},
            "core_ms_per_step": {r: round(1000 * (self.cpu_s[r] - other.cpu_s[r]) / pushes, 2) for r in _ROLES},
        }


def _processes(role: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if f"downpour.launch.{role}" in process.cmdline():
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def _since_start_s() -> float:
    return time.time() - psutil.Process().create_time()


def _measure(part: str, model: str) -> dict[str, Any]:
    """Runs one part in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.throughput",
        *sys.argv[1:],
        f"--part={part}",
        f"--models={model}",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{part} with {model} ended with exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    return found


def _compare(model: str) -> dict[str, Any]:
    """Measures both, in turn."""
    found: dict[str, list[dict[str, Any]]] = {"keras": [], "downpour": []}
    for number in range(_ROUNDS.value):
        for part in sorted(found, reverse=number % 2 == 0):
            found[part].append(_measure(part, model))
            print(f"{model:<10} {part:<9} {json.dumps(found[part][-1])}", flush=True)
    ratios = [d["rate"] / k["rate"] for d, k in zip(found["downpour"], found["keras"], strict=True)]

    def median(part: str, *keys: str) -> float:
        def value(one: Any) -> float:
            for key in keys:
                one = one[key]
            return float(one)

        return statistics.median(map(value, found[part]))

    first = found["downpour"][0]
    of_steps = {
        key: {name: round(median("downpour", key, name), 2) for name in first[key]}
        for key in ("ms_per_step", "core_ms_per_step")
    }
    return {
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        **{f"{part}_examples_per_second": round(median(part, "rate")) for part in found},
        **{f"{part}_start_up_s": round(median(part, "start_up_s"), 1) for part in found},
        **of_steps,
    }


def _main() -> None:
    unknown = set(_MODELS.value) - SETTINGS.keys()
    if unknown:
        raise ValueError(f"no model {', '.join(sorted(unknown))}; there are {', '.join(SETTINGS)}")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:_CORES])
    if _PART.value:
        measured = {"keras": plain, "downpour": downpour}[_PART.value](SETTINGS[_MODELS.value[0]])
        print(f"RESULT {json.dumps(measured)}", flush=True)
        return
    results = {model: _compare(model) for model in _MODELS.value}
    for model, found in results.items():
        print(f"{model:<10} {found['ratio']:.3f} of model.fit", flush=True)
    print(f"RESULT {json.dumps(results)}", flush=True)


if __name__ == "__main__":
    entry.run(_main, role="throughput")
