"""Event files of real jobs over gRPC, read by TensorBoard's own reader: a run, the same one resumed, and bad input.

What an evaluator shows is read in `tests/launch/test_observed_job.py`.
"""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from downpour.worker import norms
from downpour.worker.chief import observer
from downpour.worker.chief import tensorboard_tags as tags
from downpour.worker.chief.chief import Chief
from downpour.worker.chief.run_folder import RunFolder
from downpour.worker.chief.tensorboard import TensorBoard
from downpour.worker.evaluator.grid import Example, draw
from tests.worker.test_job import GIVE_UP_S, LAYOUT, plan_in, serving, toward_one

NUM_STEPS, MORE_STEPS = 120, 200
FIELDS = {"rule.momentum": "0.5|x"}


def history(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines()]


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0, "images": 0})
    found.Reload()
    return found


def curve(events: EventAccumulator, name: str) -> list[tuple[int, float]]:
    return [(one.step, one.value) for one in events.Scalars(name)]


Weights = list[tuple[int, dict[str, float]]]  # version of a step's parameters, and their norms by layer


def weight_norms(parameters: Any) -> dict[str, float]:
    """By layer, of the whole variables."""
    wide = [(bits.astype(np.uint32) << 16).view(np.float32) for bits in parameters.trained]
    pairs = zip(wide, parameters.statistics, strict=True)
    w, head, _ = LAYOUT.gather([np.concatenate(pair) for pair in pairs])
    return {"w": float(np.linalg.norm(w)), "head": float(np.linalg.norm(head))}


def run(folder: Path, steps: Weights, **changes: Any) -> dict[str, Any]:
    """A job of two workers, each step of which takes a while, so that the chief notes progress a few times."""

    def step(parameters: Any, *batch: Any) -> Any:
        time.sleep(0.06)
        steps.append((max(parameters.versions), weight_norms(parameters)))
        return replace(toward_one(parameters, *batch), norms={0: 3.0, 1: 4.0 + max(parameters.versions)})

    with serving(folder, sinks=(TensorBoard(),), job=FIELDS, **changes) as cluster:
        chief = cluster.run_chief()
        workers = [
            cluster.pool.submit(cluster.work, i, step, num_steps=changes["num_steps"], job=FIELDS) for i in range(2)
        ]
        for worker in workers:
            worker.result(60)
        return dict(chief.result(GIVE_UP_S))


class Runs:
    """One run in a folder: as it ended, and as it ended once more after it was resumed with more steps."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.began_s = folder, time.time()
        self.steps: Weights = []
        self.summary = run(folder, self.steps, num_steps=NUM_STEPS)
        self.first, self.history = read(folder / "tensorboard"), history(folder)
        # What a chief that was killed had written after its last checkpoint.
        lost = TensorBoard()
        last = self.history[-1]["step"]
        identity = json.loads((folder / "job.json").read_text())["job_id"]
        job = {"recipe": "test", "job_id": identity, "run_dir": str(folder), "step": last, "num_steps": 1}
        lost.on_begin(job | {"num_shards": 3, "fields": {}, "layout": []})
        lost.on_entry({"kind": "loss", "step": last + 50, "seconds": 9.0, "loss": 77.0})
        assert curve(read(folder / "tensorboard"), "all/loss")[-1] == (last + 50, 77.0)
        time.sleep(1.1)  # files are named by the second
        run(folder, [], num_steps=MORE_STEPS, resume="yes")
        self.resumed, self.ended_s = read(folder / "tensorboard"), time.time()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observer, "_LEAST_S", 0.5)
        patch.setattr(norms, "_LEAST_S", 0.5)
        yield Runs(tmp_path_factory.mktemp("run"))


def expected(entries: list[dict[str, Any]], kind: str, key: str) -> list[tuple[int, Any]]:
    return [(one["step"], pytest.approx(one[key], rel=1e-6)) for one in entries if one["kind"] == kind]


@pytest.mark.parametrize(
    ("name", "kind", "key"),
    [
        ("all/loss", "loss", "loss"),
        ("all/learning_rate", "progress", "learning_rate"),
        ("speed/examples_per_second", "progress", "examples_per_second"),
        ("speed/steps_per_second", "progress", "pushes_per_second"),
        ("staleness/mean", "progress", "staleness_mean"),
    ],
)
def test_curves_are_those_of_the_history(runs: Runs, name: str, kind: str, key: str) -> None:
    assert len(expected(runs.history, kind, key)) >= 2
    assert curve(runs.first, name) == expected(runs.history, kind, key)
    assert curve(runs.resumed, name) == expected(history(runs.folder), kind, key), "what was lost is void"
    assert curve(runs.resumed, name)[-1][0] > NUM_STEPS


def test_steps_by_part_and_worker(runs: Runs) -> None:
    entries = [one for one in runs.history if one["kind"] == "progress"]
    entry = next(e for e in entries if all("compute" in one["seconds_per_step"] for one in e["workers"].values()))
    for part in ("input", "compute", "wait", "pull", "push"):
        by_worker = {i: one["seconds_per_step"][part] for i, one in entry["workers"].items()}
        for index, value in by_worker.items():
            assert dict(curve(runs.first, f"workers/{part}/{index}"))[entry["step"]] == pytest.approx(value, rel=1e-5)
        mean = sum(by_worker.values()) / len(by_worker)
        assert dict(curve(runs.first, f"step/{part}"))[entry["step"]] == pytest.approx(mean, rel=1e-5, abs=1e-9)
    assert curve(runs.first, "step/compute")[0][1] >= 0.05


def test_pushes_by_part_and_shard(runs: Runs) -> None:
    entries = [one for one in runs.history if one["kind"] == "progress"]
    entries = [one for one in entries if len(one["shards"]) == 3]  # none before the first look at them
    entries = [one for one in entries if all("apply" in shard["seconds_per_push"] for shard in one["shards"])]
    assert entries
    for index in range(3):
        found = dict(curve(runs.first, f"shards/apply/{index}"))
        for one in entries:
            assert found[one["step"]] == pytest.approx(one["shards"][index]["seconds_per_push"]["apply"], abs=1e-9)


def test_staleness_is_a_histogram_with_a_bucket_each(runs: Runs) -> None:
    entries = [one for one in runs.history if one["kind"] == "progress" and one["staleness"]]
    found = runs.first.Histograms("staleness/pushes")
    assert [one.step for one in found] == [entry["step"] for entry in entries]
    for one, entry in zip(found, entries, strict=True):
        value, counts = one.histogram_value, {int(i): n for i, n in entry["staleness"].items()}
        shown = {limit - 0.5: n for limit, n in zip(value.bucket_limit, value.bucket, strict=True) if n}
        assert shown == counts
        assert (value.num, value.min, value.max) == (sum(counts.values()), min(counts), max(counts))
        assert value.sum == sum(i * n for i, n in counts.items())


def test_norms_are_those_of_whole_variables_by_layer(runs: Runs) -> None:
    entries = [one for one in runs.history if one["kind"] == "norms"]
    assert len(entries) >= 3 and [one["step"] for one in entries] == sorted({one["step"] for one in entries})
    for entry in entries:
        assert entry["gradients"] == {"w": 3.0, "head": 4.0 + entry["step"]}
        candidates = [found for version, found in runs.steps if version == entry["step"]]
        assert any(entry["weights"] == pytest.approx(found, rel=1e-6) for found in candidates), entry
        for name in ("gradients", "weights"):
            shown = {layer: dict(curve(runs.first, f"{name}/{layer}"))[entry["step"]] for layer in ("w", "head")}
            assert shown == pytest.approx(entry[name], rel=1e-6)
            total = dict(curve(runs.first, f"{name}/all_layers"))[entry["step"]]
            assert total == pytest.approx(math.hypot(*shown.values()), rel=1e-6)
    assert entries[-1]["weights"]["w"] > entries[0]["weights"]["w"]


def test_pages_have_the_job_and_the_layout(runs: Runs) -> None:
    def page(name: str) -> str:
        return str(runs.first.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode())

    assert "| rule.momentum | 0.5&#124;x |" in page("run/job") and f"| steps | {NUM_STEPS} |" in page("run/job")
    assert "| head/kernel | 9 x 7 |" in page("run/layout")
    assert '"ended_by": "steps"' in page("run/summary")
    assert "**worker_joined** worker " in page("run/events")
    assert "custom_scalars__config__" in runs.first.Tags()["tensors"]


def test_wall_times_are_those_of_the_run(runs: Runs) -> None:
    times = [one.wall_time for one in runs.resumed.Scalars("all/loss")]
    assert times == sorted(times) and runs.began_s < times[0] and times[-1] < runs.ended_s


def test_a_clock_that_is_set_moves_no_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board, began_s = TensorBoard(), time.time()
    job = {"recipe": "r", "run_dir": str(tmp_path), "step": 0, "num_steps": 9, "num_shards": 1}
    board.on_begin(job | {"job_id": "one", "fields": {}, "layout": []})
    for step, ahead_s in enumerate((0.0, 3600.0, -3600.0)):
        monkeypatch.setattr(time, "time", lambda ahead_s=ahead_s: began_s + ahead_s)
        board.on_entry({"kind": "loss", "step": step, "seconds": 0.1, "loss": 1.0})
    board.on_end({"global_steps": 3})
    times = [one.wall_time for one in read(tmp_path / "tensorboard").Scalars("all/loss")]
    assert times == sorted(times) and times[-1] - times[0] < 60 and len(times) == 3


def test_a_new_run_replaces_the_files_of_an_earlier_one(tmp_path: Path) -> None:
    job = {"recipe": "r", "run_dir": str(tmp_path), "step": 0, "num_steps": 9, "num_shards": 1}
    for job_id in ("one", "two"):
        board = TensorBoard()
        board.on_begin(job | {"job_id": job_id, "fields": {}, "layout": []})
        board.on_entry({"kind": "loss", "step": 1, "seconds": 0.1, "loss": math.nan})
        board.on_end({"global_steps": 1})
        (tmp_path / "tensorboard" / "events.out.tfevents.1.of.others").touch()
    names = [path.name for path in (tmp_path / "tensorboard").iterdir()]
    assert len(names) == 2 and sum(name.endswith(".downpour-two") for name in names) == 1
    shared = TensorBoard(folder=str(tmp_path / "all"))
    shared.on_begin(job | {"job_id": "three", "fields": {}, "layout": []})
    assert (tmp_path / "all" / "r-three").is_dir()


def test_a_folder_that_cannot_be_written_is_refused_before_the_job(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    wanted = tmp_path / "file" / "inside"
    with pytest.raises(ValueError, match=rf"TensorBoard's folder {wanted}: {tmp_path / 'file'} is no folder; give"):
        Chief(
            replace(plan_in(tmp_path), sinks=(TensorBoard(folder=str(wanted)),)), tmp_path / "run",
            host="127.0.0.1", port=0,
        )  # fmt: skip
    assert not (tmp_path / "run" / "history.jsonl").exists(), "nothing is begun"
    RunFolder(tmp_path / "run", str(tmp_path / "run" / "checkpoints")).close()  # its lock is free


def test_without_the_package_the_default_writes_nothing_and_a_wish_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    default = TensorBoard(if_installed=True)
    default.check(tmp_path)
    default.on_begin({})
    default.on_entry({"kind": "loss"})
    default.on_end({})
    with pytest.raises(ValueError, match=r"needs the package tensorboardX: pip install '.*\[tensorboard\]'"):
        TensorBoard().check(tmp_path)


def test_an_evaluation_is_a_picture_and_curves_of_precision_and_recall(tmp_path: Path) -> None:
    board = TensorBoard()
    job = {"recipe": "r", "run_dir": str(tmp_path), "step": 0, "num_steps": 9, "num_shards": 1}
    board.on_begin(job | {"job_id": "one", "fields": {}, "layout": []})
    example = Example(np.zeros((4, 6), np.float32), ("a cat",), (("a dog", 0.6),), is_right=False)
    counts = {"positives": [1, 0, 3], "negatives": [5, 1, 0]}
    board.on_evaluation({"step": 7, "seconds": 1.0, "pictures": draw([example]), "curves": {"a cat": counts}})
    board.on_evaluation({"step": 8, "seconds": 1.0, "pictures": b"", "curves": {}})
    board.on_end({"global_steps": 9})
    found = read(tmp_path / "tensorboard")
    (picture,) = found.Images("evaluation/pictures")
    assert (picture.step, Image.open(io.BytesIO(picture.encoded_image_string)).size) == (
        7, (picture.width, picture.height),
    )  # fmt: skip
    (curve,) = found.Tensors("precision_recall/a cat")
    tp, fp, tn, fn, precision, recall = make_ndarray(curve.tensor_proto)
    np.testing.assert_array_equal([tp, fp, tn, fn], [[4, 3, 3], [6, 1, 0], [0, 5, 6], [0, 1, 1]])
    np.testing.assert_allclose([precision, recall], [[0.4, 0.75, 1], [1, 0.75, 0.75]])


@pytest.mark.parametrize(("classes", "said"), [((-1,), "-1"), (("cat",), "'cat'"), (tuple(range(21)), "21 classes")])
def test_classes_that_are_no_numbers_of_classes_are_refused(classes: Any, said: str) -> None:
    with pytest.raises(ValueError, match=rf"TensorBoard\(classes=...\) has {said}; give up to 20 numbers"):
        TensorBoard(classes=classes)


def test_many_workers_have_three_curves_a_quantity() -> None:
    one = {"state": "running", "examples_per_second": 5.0, "staleness_mean": 1.0}
    workers = {str(i): one | {"seconds_per_step": {"input": i / 10}} for i in range(200)}
    found = tags.scalars({"kind": "progress", "workers": workers, "shards": []})
    assert len(found) == 10
    wanted = {"workers/input/lowest": 0.0, "workers/input/median": 9.95, "workers/input/highest": 19.9}
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)


def test_it_imports_no_framework() -> None:
    code = "import sys, tensorboardX.summary; print([m for m in ('tensorflow', 'torch', 'keras') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
