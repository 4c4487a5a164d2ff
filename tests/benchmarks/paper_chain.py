"""The paper's label tree from a table to scores: prepare, training at `paper_shape`, and scoring of 14,000 pictures.

    python -m tests.benchmarks.paper_chain [--images=14000] [--side=64] [--steps=4] [--out=runs/paper_chain]

1. Pictures of one colour and some noise, JPEG, with labels of the paper's statistics (`tests.benchmarks.paper_labels`:
   18,291 labels, 12 levels, a label with 2,876 children, 1.26 labels an image, over 3,000 classes of under 100 images
   in 300 M), as files, a table and `labels.json`.
2. `downpour prepare csv` of them: processor milliseconds a picture, and what its manifest says of the tree.
3. Closure: what filling in ancestors adds to a batch's targets, beside the same labels without a tree.
4. `downpour local` of `tests/benchmarks/paper_tree_job.py`: a few steps of ResNet-101 on 17 shards, its checkpoint
   scored by its evaluator on all held-out pictures.

The last line is `RESULT {json}`: `evaluator_peak_rss_mb` (the kernel's mark), images a second of the evaluator by the
clock and by its processor time, seconds of a step, and closure's microseconds and share of a step.
"""

from __future__ import annotations

import csv
import io
import json
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

from downpour.launch.observe.report import SUMMARY_FILE
from downpour.launch.roles import entry
from downpour.model.data.batches import multi_hot
from downpour.model.vision.labels import LABELS_FILE, LabelTree
from tests.benchmarks.paper_labels import paper_tree, sample_labels
from tests.benchmarks.shape import ROOT

_IMAGES = flags.DEFINE_integer("images", 14_000, "Pictures that are scored.", 1)
_TRAINED = flags.DEFINE_integer("trained", 512, "Pictures to train on.", 1)
_SIDE = flags.DEFINE_integer("side", 64, "Pixels of a side of a picture.", 8)
_STEPS = flags.DEFINE_integer("steps", 4, "Steps of training.", 1)
_SET = flags.DEFINE_multi_string("set", [], "Fields of the recipe, for a smaller model or cluster.")
_OUT = flags.DEFINE_string("out", "runs/paper_chain", "Folder of pictures, data and run; made anew.")

RECIPE = ROOT / "tests/benchmarks/paper_tree_job.py"
BATCH, BATCHES = 32, 100  # for closure
_SCORED = re.compile(r"(\d+) examples in ([\d.]+) s")


def write_pictures(folder: Path, tree: LabelTree) -> None:
    """Writes the pictures' files, the table `pictures.csv`, and the tree."""
    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir(parents=True)
    tree.save(folder / LABELS_FILE)
    splits = ["train"] * _TRAINED.value + ["heldout"] * _IMAGES.value
    with (folder / "pictures.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("image", "label", "split"))
        for number, (labels, split) in enumerate(zip(sample_labels(tree, len(splits)), splits, strict=True)):
            name = f"pictures/{number:06d}.jpg"
            (folder / name).write_bytes(_picture(rng))
            rows.writerow((name, "|".join(tree.names[label] for label in labels), split))


def _picture(rng: np.random.Generator) -> bytes:
    side = _SIDE.value
    pixels = rng.integers(40, 216, 3) + rng.integers(-40, 40, (side, side, 1))
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def prepare(folder: Path) -> dict[str, Any]:
    """Runs `downpour prepare csv`; its cost, and what its manifest says."""
    before, began = _cpu_s(), time.monotonic()
    table, tree = folder / "pictures.csv", folder / LABELS_FILE
    _run("prepare", "csv", table, f"--tree={tree}", f"--out={folder / 'data'}")
    found = json.loads((folder / "data" / "manifest.json").read_text())
    pictures = sum(found["pictures"].values())
    own = {int(number): count for number, count in found["labels_an_image"]["own"].items()}
    return {
        "prepare_cpu_ms": 1000 * (_cpu_s() - before) / pictures,
        "prepare_seconds": time.monotonic() - began,
        "pictures": found["pictures"],
        "num_labels": found["num_labels"],
        "depth": found["depth"],
        "widest": found["widest"]["children"],
        "labels_an_image": sum(number * count for number, count in own.items()) / pictures,
    }


def closure(tree: LabelTree) -> dict[str, float]:
    """Microseconds of processor that ancestors add to the targets of a batch of 32, and to those of one image."""
    flat = LabelTree(tree.names, [-1] * len(tree))
    labels = sample_labels(tree, BATCH * BATCHES)
    batches = [labels[first : first + BATCH] for first in range(0, len(labels), BATCH)]
    for one in (tree, flat):
        multi_hot(one, batches[0])  # reads the ancestors of all labels
    with_tree, without = (statistics.median(_seconds(one, batch) for batch in batches) for one in (tree, flat))
    return {"targets_us": with_tree * 1e6, "closure_us": (with_tree - without) * 1e6}


def _seconds(tree: LabelTree, batch: list[tuple[int, ...]]) -> float:
    before = time.thread_time()
    multi_hot(tree, batch).sum()
    return time.thread_time() - before


def train(folder: Path) -> dict[str, Any]:
    """Trains and scores as `downpour local` does; what its summary and the evaluator's log say."""
    side, run_dir = _SIDE.value, folder / "run"
    settings = [f"data.folder={folder / 'data'}", f"data.resize={side}", f"data.crop={side}", *_SET.value]
    arguments = [f"--set={one}" for one in settings]
    _run("local", f"--recipe={RECIPE}", f"--steps={_STEPS.value}", f"--run_dir={run_dir}", *arguments)
    summary = json.loads((run_dir / SUMMARY_FILE).read_text())
    log = (run_dir / "logs" / "evaluator.log").read_text()
    scored, seconds = _SCORED.findall(log)[-1]
    return {
        "evaluator_peak_rss_mb": summary["peak_rss_mb"]["evaluator"],
        "scored": int(scored),
        "images_per_s": int(scored) / float(seconds),
        "evaluator_cpu_s": summary["processor_seconds"]["evaluator"],
        "global_steps": summary["global_steps"],
        "step_seconds": statistics.mean(one["seconds"] for one in summary["worker_steps"].values()),  # after the first
        "peak_pss_mb": summary["peak_pss_mb"],
        "map_at_100": summary["map_at_100"],
        "chance": summary["chance"],
    }


def _run(*arguments: object) -> None:
    line = [sys.executable, "-m", "downpour.launch.cli", *map(str, arguments)]
    subprocess.run(line, check=True, stdout=sys.stderr)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _main() -> None:
    folder, tree = Path(_OUT.value), paper_tree()
    shutil.rmtree(folder, ignore_errors=True)
    write_pictures(folder, tree)
    found = prepare(folder) | closure(tree) | train(folder)
    found["closure_share"] = found["closure_us"] / 1e6 / found["step_seconds"]
    found = {name: round(value, 6) if isinstance(value, float) else value for name, value in found.items()}
    print(f"RESULT {json.dumps(found)}")


if __name__ == "__main__":
    entry.run(_main, role="paper_chain")
