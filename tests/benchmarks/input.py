"""Images a second of `ImageRecords` beside the leanest tf.data pipeline that does the same, on one core and on more.

    python -m tests.benchmarks.input [--photographs=FOLDER] [--cores=1,2] [--rounds=7]

JPEGs of ImageNet's usual size, 500 x 375 pixels and about 110 KB, in TFRecord files: decode, resize to 340 x 340, cut
a random window of 299 x 299, mirror half of them, scale to [-1, 1], batches of 32 float tensors, labels as multi-hot
rows. The pictures are cut out of the JPEGs below `--photographs`, each in several ways, or of scikit-learn's two.

| pipeline  | what                                                                                             |
|-----------|--------------------------------------------------------------------------------------------------|
| ours      | `ImageRecords.training`, read by leases, and its bytes as a float tensor, as a worker has it     |
| tf.data   | TFRecordDataset, parse, decode_jpeg, resize, crop, flip, scale, batch, prefetch, by hand         |
| bilinear  | the same with a resize that does not low-pass what it shrinks: less work, and other pixels       |

All decode with TensorFlow's defaults: the fast integer DCT (`INTEGER_FAST`), smooth upsampling of chroma. tf.data has a
private pool of as many threads as there are cores, order does not matter to it, and nothing is shuffled; ours reads in
random order and checks the CRC of every record. Each number of cores is a process of its own, held to them by its
affinity. The pipelines take turns, a slice each, and swap places from round to round; a slice begins with a new
iterator and is timed from its fifth batch on.

Images per core-second are images by the processor time of the process, which other load of the machine changes less
than the clock. The last line is `RESULT {json}`: for each number of cores both rates, and medians of the ratios of
rounds.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from downpour.launch.roles import entry
from downpour.model.data import ImageRecords
from downpour.model.data.order import forever
from downpour.model.data.prefetch import Prefetch
from downpour.model.vision.labels import LABELS_FILE, LabelTree
from downpour.model.vision.records import IMAGE_KEY, LABELS_KEY, LabelledImage, write_records

_PHOTOGRAPHS = flags.DEFINE_string("photographs", None, "Folder of JPEGs; scikit-learn's samples by default.")
_PICTURES = flags.DEFINE_integer("pictures", 400, "Different pictures.", 1)
_QUALITY = flags.DEFINE_integer("quality", 97, "Of the JPEGs; by default such that they have about 110 KB.", 1, 100)
_CORES = flags.DEFINE_list("cores", ["1", "2"], "Numbers of cores, and of decoding threads, to measure on.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Slices of each pipeline.", 1)
_BATCHES = flags.DEFINE_integer("batches", 12, "Batches that are timed in a slice.", 1)
_DATA = flags.DEFINE_string("data", None, "Measure on these records only, on the cores of this process.")

_WIDTH, _HEIGHT, _RESIZE, _CROP, _BATCH, _NUM_LABELS = 500, 375, 340, 299, 32, 10
_WARMUP = 4  # batches: those that are assembled before the first is taken, and some

Next = Callable[[], Any]


def prepare(folder: Path) -> dict[str, float]:
    """Writes the records; returns their number and the mean size of their JPEGs."""
    sizes = []

    def images() -> Iterator[LabelledImage]:
        for number, encoded in enumerate(itertools.islice(_pictures(), _PICTURES.value)):
            sizes.append(len(encoded))
            yield LabelledImage(encoded, (number % _NUM_LABELS,), str(number))

    made = list(images())
    for part in range(4):
        write_records(folder / f"train-{part}.tfrecord", made[part::4])
    write_records(folder / "heldout-0.tfrecord", made[:1])
    LabelTree(tuple(map(str, range(_NUM_LABELS))), (-1,) * _NUM_LABELS).save(folder / LABELS_FILE)
    return {"pictures": len(sizes), "jpeg_kb": round(statistics.mean(sizes) / 1000, 1)}


def _pictures() -> Iterator[bytes]:
    """Yields JPEGs without end: each photograph as it is, then each time another part of it."""
    from PIL import Image, ImageOps

    rng = np.random.default_rng(0)
    photographs = _photographs()
    for turn in itertools.count():
        for photograph in photographs:
            shown = photograph
            if turn:
                width, height = (round(side * rng.uniform(0.6, 0.9)) for side in photograph.size)
                left, top = (
                    int(rng.integers(0, a - b + 1)) for a, b in zip(photograph.size, (width, height), strict=True)
                )
                shown = photograph.crop((left, top, left + width, top + height))
            fitted = ImageOps.fit(shown, (_WIDTH, _HEIGHT), Image.Resampling.LANCZOS)
            fitted.save(buffer := io.BytesIO(), "JPEG", quality=_QUALITY.value)
            yield buffer.getvalue()


def _photographs() -> list[Any]:
    from PIL import Image

    if _PHOTOGRAPHS.value:
        files = sorted(Path(_PHOTOGRAPHS.value).rglob("*.jpg"))
        if not files:
            raise ValueError(f"--photographs={_PHOTOGRAPHS.value} has no *.jpg; give a folder of photographs")
        return [Image.open(file).convert("RGB") for file in files]
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(image) for image in load_sample_images().images]


class _Ours:
    """A new iterator over our batches."""

    def __init__(self, folder: Path) -> None:
        self._data = ImageRecords(folder, _NUM_LABELS, _RESIZE, _CROP, memory_bytes=0)

    def start(self) -> tuple[Next, Callable[[], None]]:
        """Returns what gives the next batch, and what ends it."""
        import tensorflow as tf

        batches = self._data.training(batch_size=_BATCH, seed=0, leases=forever(self._data.num_records, 128))
        prefetched = Prefetch(batches)

        def take() -> Any:
            images, labels = next(prefetched)
            return tf.convert_to_tensor(images), tf.convert_to_tensor(labels)

        return take, prefetched.close


class _TensorFlows:
    """A new iterator over the batches of tf.data."""

    def __init__(self, folder: Path, num_threads: int, *, antialias: bool) -> None:
        import tensorflow as tf

        features = {IMAGE_KEY: tf.io.FixedLenFeature([], tf.string), LABELS_KEY: tf.io.FixedLenFeature([1], tf.int64)}

        def read(record: Any) -> Any:
            example = tf.io.parse_single_example(record, features)
            image = tf.io.decode_jpeg(example[IMAGE_KEY], channels=3)
            image = tf.image.resize(image, [_RESIZE, _RESIZE], antialias=antialias)
            corner = tf.random.uniform([2], 0, _RESIZE - _CROP + 1, tf.int32)
            image = tf.slice(image, [corner[0], corner[1], 0], [_CROP, _CROP, 3])
            image = tf.image.random_flip_left_right(image)
            return image * (1 / 127.5) - 1, tf.one_hot(example[LABELS_KEY][0], _NUM_LABELS)

        data = tf.data.TFRecordDataset(sorted(map(str, folder.glob("train-*")))).repeat()
        data = data.map(read, num_parallel_calls=num_threads, deterministic=False)
        data = data.batch(_BATCH, drop_remainder=True).prefetch(1)
        options = tf.data.Options()
        options.threading.private_threadpool_size = num_threads
        options.threading.max_intra_op_parallelism = 1
        options.autotune.enabled = False
        self._data = data.with_options(options)

    def start(self) -> tuple[Next, Callable[[], None]]:
        """Returns what gives the next batch, and what ends it."""
        iterator = iter(self._data)
        return lambda: next(iterator), lambda: None


def _slice(pipeline: Any) -> tuple[float, float]:
    """Images by seconds of the clock, and by seconds of the processor, of one slice."""
    take, end = pipeline.start()
    try:
        for _ in range(_WARMUP):
            take()
        began, began_cpu = time.perf_counter(), time.process_time()
        for _ in range(_BATCHES.value):
            images, _ = take()
        num = _BATCHES.value * _BATCH
        rates = num / (time.perf_counter() - began), num / (time.process_time() - began_cpu)
    finally:
        end()
    assert images.shape == (_BATCH, _CROP, _CROP, 3) and images.dtype == np.float32
    return rates


def measure(folder: Path) -> dict[str, Any]:
    """Measures on the cores of this process."""
    import tensorflow as tf

    num_threads = len(os.sched_getaffinity(0))
    tf.config.threading.set_intra_op_parallelism_threads(num_threads)
    tf.config.threading.set_inter_op_parallelism_threads(num_threads)
    pipelines = {
        "ours": _Ours(folder),
        "tf.data": _TensorFlows(folder, num_threads, antialias=True),
        "bilinear": _TensorFlows(folder, num_threads, antialias=False),
    }
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in pipelines}
    for number in range(_ROUNDS.value):
        names = list(pipelines)
        for name in names if number % 2 == 0 else reversed(names):
            rates[name].append(_slice(pipelines[name]))
    return _summary(rates)


def _summary(rates: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for column, what in enumerate(("per_second", "per_core_second")):
        of_name = {name: [pair[column] for pair in pairs] for name, pairs in rates.items()}
        found[what] = {name: round(statistics.median(values), 1) for name, values in of_name.items()}
        for name in ("tf.data", "bilinear"):
            ratios = [round(a / b, 3) for a, b in zip(of_name["ours"], of_name[name], strict=True)]
            found[what] |= {f"ratio_to_{name}": statistics.median(ratios), f"ratios_to_{name}": ratios}
    return found


def _main() -> None:
    if _DATA.value:
        print(f"RESULT {json.dumps(measure(Path(_DATA.value)))}", flush=True)
        return
    cores = sorted(os.sched_getaffinity(0))
    numbers = [int(number) for number in _CORES.value]
    if any(not 1 <= number <= len(cores) for number in numbers):
        raise ValueError(f"--cores={','.join(_CORES.value)}; give numbers from 1 to {len(cores)}, the cores there are")
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="downpour-") as folder:
        result |= prepare(Path(folder))
        for number in numbers:
            command = ["taskset", "--cpu-list", ",".join(map(str, cores[:number])), sys.executable, "-m"]
            command += ["tests.benchmarks.input", f"--data={folder}", *sys.argv[1:]]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                raise ValueError(f"the measurement on {number} cores ended with exit code {done.returncode}")
            found = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
            result[f"cores_{number}"] = found
            for what in ("per_second", "per_core_second"):
                rates = "  ".join(f"{name} {found[what][name]:7.1f}" for name in ("ours", "tf.data", "bilinear"))
                ratios = ", ".join(f"{found[what][f'ratio_to_{name}']:.2f}" for name in ("tf.data", "bilinear"))
                print(f"{number} cores, images {what:<16} {rates}   ours by theirs {ratios}", flush=True)
    print(f"RESULT {json.dumps(result)}", flush=True)


if __name__ == "__main__":
    entry.run(_main, role="input")
