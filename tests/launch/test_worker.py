"""A worker whose data are made by TensorFlow, as far as it comes without a chief."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.newcomer import ROOT, files_of

SCRIPT = """
import keras
from downpour.launch import worker
from downpour.launch.job import Cluster, Exchange, Job
from downpour.launch.roles.topology import Topology
from downpour.proto.errors import Unreachable
from downpour.ps.policy.rules import SGD
from downpour.ps.policy.schedules import Constant
from downpour.model.data import Stream
from pictures import held_out, pictures, training


def network():
    return keras.Sequential([keras.Input((64, 64, 3)), keras.layers.GlobalMaxPooling2D(), keras.layers.Dense(2)])


def loss(labels, outputs):
    return keras.ops.mean(keras.losses.sparse_categorical_crossentropy(labels, outputs, from_logits=True))


job = Job(
    name="pictures", model=network, data=Stream(training, held_out, num_examples=16), loss=loss,
    num_steps=1, batch_size=4, rule=SGD(), schedule=Constant(0.1),
    cluster=Cluster(1, 1, threads_per_worker=3), exchange=Exchange(give_up_after_s=0.5),
)
try:
    worker.run(worker.WorkerConfig(job, Topology(("localhost:1",), "localhost:2", 1), 0))
except Unreachable as error:
    import tensorflow as tf

    threads = tf.config.threading
    assert pictures().num_examples == 16
    print(threads.get_intra_op_parallelism_threads(), threads.get_inter_op_parallelism_threads(), error)
"""


@pytest.mark.process
def test_a_worker_opens_a_folder_of_classes_and_has_its_number_of_threads(tmp_path: Path) -> None:
    """TensorFlow computes when the folder is opened; after that its threads cannot be set."""
    (tmp_path / "pictures.py").write_text(files_of(ROOT / "docs" / "data.md")["pictures.py"])
    for number in range(20):
        file = tmp_path / "pictures" / ("cat", "dog")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        keras.utils.save_img(file, np.full((8, 8, 3), 255 * (number % 2)))
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path
    )
    assert "\n3 3 " in done.stdout, done.stdout + done.stderr[-3000:]
