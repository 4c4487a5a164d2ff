"""What scoring takes at the paper's size: mAP@100 over 14,000 images and 18,291 labels, and the evaluator's process.

    python -m tests.benchmarks.scoring [--images=14000] [--scored=32]

metric: labels of the paper's statistics (`tests.benchmarks.paper_labels`), their ancestors filled in, and made-up
logits go through what the evaluator computes scores with, in a process of its own without a model. evaluator: the
role's own process scores a checkpoint of ResNet-101 at 299 x 299 (recipe paper_shape) on a few generated images, asked
by a chief that stands in for a job's. Of both, the peak of resident memory is the kernel's own mark.

The last line is `RESULT {json}`: `peak_rss_mb` of the evaluator with the predictions of all images kept, that is, the
evaluator's own peak and the growth of the metric's process; images a second of the metric and of the evaluator; and
the share of the metric's time that filling in ancestors takes.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from absl import flags

from downpour.launch.job import recipe
from downpour.launch.roles import entry
from downpour.launch.roles.topology import command
from downpour.model.data.batches import multi_hot
from downpour.model.vision.metrics import BestPredictions
from downpour.proto import chief_pb2 as pb
from downpour.proto import chief_pb2_grpc
from downpour.proto.rpc.server import Server, handler_of
from tests.benchmarks.paper_labels import paper_tree, sample_labels

_PART = flags.DEFINE_enum("part", None, ["metric", "checkpoint"], "This one only, in this process.")
_OUT = flags.DEFINE_string("out", None, "Folder of the checkpoint.")
_IMAGES = flags.DEFINE_integer("images", 14_000, "Images that the metric is computed over.", 1)
_SCORED = flags.DEFINE_integer("scored", 32, "Images that the evaluator scores.", 1)
_BATCH = flags.DEFINE_integer("batch_size", 32, "Images in a batch.", 1)
_SET = flags.DEFINE_multi_string("set", [], "Fields of paper_shape, for a smaller model.")
_MB = 1 << 20


def metric() -> dict[str, Any]:
    """Scores made-up logits, in this process: mAP, images a second, share of the closure, and memory."""
    tree = paper_tree(seed=0)
    labels = sample_labels(tree, _IMAGES.value, seed=0)
    rng = np.random.default_rng(0)
    multi_hot(tree, labels[:1])  # reads the ancestors of all labels
    best, spent, closure = BestPredictions(), 0.0, 0.0
    before = _peak_mb()
    for first in range(0, _IMAGES.value, _BATCH.value):
        rows = labels[first : first + _BATCH.value]
        logits = rng.standard_normal((len(rows), len(tree)), np.float32)
        start = time.perf_counter()
        hot = multi_hot(tree, rows)
        filled = time.perf_counter()
        best.add(logits + 2 * hot, hot)
        spent += time.perf_counter() - start
        closure += filled - start
    start = time.perf_counter()
    found = best.mean()
    spent += time.perf_counter() - start
    return {
        "map_at_100": found.weighted,
        "classes": found.num_classes,
        "metric_images_per_s": _IMAGES.value / spent,
        "closure_share": closure / spent,
        "metric_rss_mb": _peak_mb(),
        "kept_mb": _peak_mb() - before,
    }


def checkpoint(folder: str) -> None:
    """Writes a checkpoint of fresh values, as 17 shards would; and its layout is that of the recipe's model."""
    from downpour.launch.job.build import build
    from downpour.worker.step.variables import initial_values
    from tests.ps.checkpoint.saving import save

    model, layout = build(_job())
    save(folder, layout, [{"parameters": vector} for vector in layout.scatter(initial_values(model, layout))])


class Chief(chief_pb2_grpc.ChiefServicer):
    """Offers one checkpoint, and keeps its score."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self.offered_s = 0.0
        self.scored_s = 0.0
        self.metrics: dict[str, float] = {}
        self.done = threading.Event()

    def NextCheckpoint(self, request: pb.NextCheckpointRequest, context: Any) -> pb.NextCheckpointReply:
        """See `downpour/proto/chief.proto`."""
        if request.job:
            return pb.NextCheckpointReply()
        self.offered_s = time.monotonic()
        return pb.NextCheckpointReply(directory=self._directory, step=1, last=True)

    def ReportScore(self, request: pb.Score, context: Any) -> pb.ReportScoreReply:
        """See `downpour/proto/chief.proto`."""
        self.scored_s, self.metrics = time.monotonic(), dict(request.metrics)
        self.done.set()
        return pb.ReportScoreReply()


def evaluator(folder: Path) -> dict[str, Any]:
    """Has the evaluator's own process score the checkpoint; its speed, loading included, and memory."""
    chief = Chief(str(folder))
    handler = handler_of(functools.partial(chief_pb2_grpc.add_ChiefServicer_to_server, chief))
    server = Server(handler, "127.0.0.1", 0, 2)
    values = {
        "recipe": "paper_shape",
        "set": _settings(),
        "ps": ",".join(f"127.0.0.1:{port}" for port in range(1, _job().cluster.num_ps + 1)),  # never called
        "chief": f"127.0.0.1:{server.port}",
        "run_dir": folder.parent,
    }
    process = psutil.Popen(command("evaluator", 0, values))
    marks: dict[str, float] = {}
    try:
        while process.poll() is None and not chief.done.wait(0.2):
            marks["loaded" if not chief.offered_s else "scored"] = _peak_mb(process.pid)
        marks["scored"] = _peak_mb(process.pid) or marks.get("scored", 0.0)
        if not chief.done.is_set():
            raise ValueError(f"the evaluator ended with {process.returncode} before it scored")
        process.wait(60)
    finally:
        if process.poll() is None:
            process.kill()
        server.stop(1.0)
    return {
        "evaluator_rss_mb": marks["scored"],
        "built_rss_mb": marks.get("loaded", 0.0),
        "evaluator_images_per_s": _SCORED.value / (chief.scored_s - chief.offered_s),
        "scores": chief.metrics,
    }


def _settings() -> list[str]:
    return [f"data.num_heldout={_SCORED.value}", f"batch_size={_BATCH.value}", *_SET.value]


def _job() -> Any:
    return recipe.load("paper_shape", _settings())


def _peak_mb(pid: int | str = "self") -> float:
    """The kernel's mark of the most memory that a process has had resident; 0 once it has ended."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 1024 if found else 0.0


def _child(part: str, *more: str) -> str:
    asked = [f"--{name}={flags.FLAGS[name].value}" for name in ("images", "scored", "batch_size")]
    asked += [f"--set={one}" for one in _SET.value]
    run = [sys.executable, "-m", "tests.benchmarks.scoring", f"--part={part}", *asked, *more]
    return subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]


def _main() -> None:
    if _PART.value == "metric":
        print(json.dumps(metric()))
        return
    if _PART.value == "checkpoint":
        checkpoint(_OUT.value)
        print("written")
        return
    found = json.loads(_child("metric"))
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder, "step-1")
        _child("checkpoint", f"--out={at}")
        found |= evaluator(at)
    found["peak_rss_mb"] = found["evaluator_rss_mb"] + found["kept_mb"]
    found = {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}
    print(f"RESULT {json.dumps(found)}")


if __name__ == "__main__":
    entry.run(_main, role="scoring")
