"""A real job whose environment is that of a TrainJob, whose processes log JSON and whose first steps are traced.

One job for all assertions, those of its event files too. It learns so slowly that its weights stay what they were.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from downpour.launch.job import recipe
from downpour.launch.job.build import build
from downpour.model import weights
from downpour.ps.checkpoint import manifest as checkpoint
from tests import perfetto, traces
from tests.launch import jobs
from tests.launch.trainer import Trainer

pytestmark = pytest.mark.process

NUM_STEPS, NUM_TRACED = 400, 3

# The learning rate is too small to matter: every worker comes to the traced steps before the job has its own.
WARNS = f"""
from absl import logging


def job():
    logging.warning("of the recipe")
    data = GeneratedImages(image_size=8, num_labels=5, num_heldout=24)
    fresh = Exchange(overlap=False)
    return tiny(num_steps={NUM_STEPS}, data=data, schedule=Constant(1e-9), exchange=fresh)
"""


@dataclass(frozen=True)
class Ended:
    """A job that has ended.

    Attributes:
        job: The job.
        told: What Trainer has accepted, in order.
        refused: What it has refused.
    """

    job: jobs.LocalJob
    told: list[dict[str, Any]]
    refused: list[tuple[int, str]]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    folder = tmp_path_factory.mktemp("observed")
    with Trainer(folder) as trainer:
        given = jobs.write_recipe(folder, WARNS)
        job = jobs.LocalJob(given, folder, "--log_format=json", f"--trace={NUM_TRACED}", **trainer.environment)
        try:
            assert job.end() == 0, job.stderr
            yield Ended(job, trainer.accepted, trainer.refused)
        finally:
            job.kill()


def metrics(status: dict[str, Any]) -> dict[str, float]:
    return {metric["name"]: float(metric["value"]) for metric in status["metrics"]}


def test_trainer_is_told_of_begin_and_end(ended: Ended) -> None:
    result = ended.job.result()
    assert not ended.refused
    first, last = ended.told[0], ended.told[-1]
    assert first["progressPercentage"] == 0
    assert "estimatedRemainingSeconds" not in first
    assert (last["progressPercentage"], last["estimatedRemainingSeconds"]) == (100, 0)
    told = [status["progressPercentage"] for status in ended.told]
    assert told == sorted(told), "a post that comes at the end has 100 already, as the last one has"
    found = metrics(last)
    assert found["step"] == result["global_steps"]
    assert found["map_at_100"] == pytest.approx(result["map_at_100"], rel=1e-5)
    assert found["num_steps"] == NUM_STEPS
    assert found["epochs"] == pytest.approx(result["epochs"], abs=1e-3)


def test_every_line_of_the_launcher_is_an_object(ended: Ended) -> None:
    entries = [json.loads(line) for line in ended.job.stderr.splitlines()]
    assert {"ps", "chief", "worker", "evaluator", "progress"} <= {entry["role"] for entry in entries}
    assert {0, 1} <= {entry.get("index") for entry in entries if entry["role"] == "worker"}
    progress = [entry["message"] for entry in entries if entry["role"] == "progress"]
    assert any(message.startswith(f"preparing 0/{NUM_STEPS}") for message in progress), progress


@pytest.mark.parametrize("name", ["ps-0", "ps-1", "chief", "worker-0", "worker-1", "evaluator"])
def test_every_role_logs_objects(ended: Ended, name: str) -> None:
    role, _, index = name.partition("-")
    lines = (ended.job.run_dir / "logs" / f"{name}.log").read_text().splitlines()
    entries = [json.loads(line) for line in lines if line.startswith("{")]  # C++ of TensorFlow writes text
    assert entries
    for entry in entries:
        assert entry["role"] == role
        assert entry.get("index", "") == (int(index) if index else "")
        assert entry["time"].endswith("Z")
        assert Path(entry["source"].rpartition(":")[0]).name
    assert not [line for line in lines if line.startswith("[")]
    if role != "ps":
        warnings = [entry for entry in entries if entry["severity"] == "WARNING"]
        assert "of the recipe" in {entry["message"] for entry in warnings}
        assert any(Path(entry["source"].rpartition(":")[0]).name == "tiny.py" for entry in warnings)


def test_the_trace_has_every_phase_of_every_process_on_one_clock(ended: Ended) -> None:
    trace = traces.read(ended.job.run_dir / "trace.json")
    traces.check(trace, num_workers=2, num_shards=2, num_steps=NUM_TRACED)
    assert trace.about["recipe"] == "tiny" and trace.about["steps_of_a_worker"] == NUM_TRACED


@pytest.mark.slow  # the small version is the one above, which reads the file as the viewer does
def test_perfetto_itself_reads_every_row_and_arrow(ended: Ended) -> None:
    mine = traces.read(ended.job.run_dir / "trace.json")
    with perfetto.viewer(ended.job.run_dir / "trace.json") as viewer:
        rows = viewer.query(
            "select process.name as process, thread.name as row, count(*) as spans, sum(dur) as ns from slice "
            "join thread_track on slice.track_id = thread_track.id join thread using (utid) join process using (upid) "
            "group by process, row"
        )
        assert {(process, row): spans for process, row, spans, _ in rows} == {
            (process, row): len(spans) for process, found in mine.spans.items() for row, spans in found.items()
        }
        for process, row, spans, ns in rows:
            lengths = sum(span["dur"] for span in mine.spans[process][row])
            assert ns == pytest.approx(1e3 * lengths, abs=spans), "no span is cut, though spans must be nested"
        arrows = viewer.query(
            "select a.name as a, b.name as b, count(*) as arrows from flow join slice a on slice_out = a.id "
            "join slice b on slice_in = b.id group by 1, 2"
        )
        assert arrows == [["push", "receive", len(mine.flows)]]
        assert viewer.query("select name, value from stats where severity in ('error', 'data_loss') and value") == []


def test_clocks_of_one_machine_are_found_to_be_the_same_within_the_stated_error(ended: Ended) -> None:
    for process in traces.read(ended.job.run_dir / "trace.json").about["processes"].values():
        assert abs(process["offset_s"]) <= process["error_s"] + 1e-6


def test_the_log_says_where_the_trace_is_and_what_opens_it(ended: Ended) -> None:
    where = f"are in {ended.job.run_dir}/trace.json; open it at https://ui.perfetto.dev"
    assert any(where in json.loads(line)["message"] for line in ended.job.stderr.splitlines())


@pytest.fixture(scope="module")
def events(ended: Ended) -> EventAccumulator:
    found = EventAccumulator(str(ended.job.run_dir / "tensorboard"), size_guidance={"tensors": 0, "images": 0})
    found.Reload()
    return found


@pytest.fixture(scope="module")
def saved(ended: Ended) -> checkpoint.Checkpoint:
    return checkpoint.load(max((ended.job.run_dir / "checkpoints").iterdir()))


def test_norms_of_weights_are_those_of_the_checkpoint(events: EventAccumulator, saved: checkpoint.Checkpoint) -> None:
    names = [variable.name for variable in saved.layout.variables]
    values = dict(zip(names, saved.layout.gather(saved.parameters()), strict=True))
    layers = {"stem_conv": ("kernel",), "stem_bn": ("gamma", "beta"), "head": ("kernel", "bias")}
    squares = {name: sum(np.square(values[f"{name}/{part}"]).sum() for part in of) for name, of in layers.items()}
    for name, square in squares.items():
        for point in events.Scalars(f"weights/{name}"):
            assert point.value == pytest.approx(np.sqrt(square), rel=4e-3), "they travel in bfloat16"
        assert all(point.value > 0 for point in events.Scalars(f"gradients/{name}"))
    assert events.Scalars("weights/all_layers")[-1].value == pytest.approx(np.sqrt(sum(squares.values())), rel=4e-3)
    shown = {tag for tag in events.Tags()["scalars"] if tag.startswith("gradients/")}
    assert shown == {f"gradients/{name}" for name in (*layers, "all_layers")}


def test_precision_and_recall_are_those_of_the_checkpoint(
    ended: Ended, events: EventAccumulator, saved: checkpoint.Checkpoint
) -> None:
    job = recipe.load(ended.job.run_dir.parent / "tiny.py", ())
    model, _ = build(job)
    weights.load(model, saved, False)
    batches = zip(*job.data.heldout(batch_size=job.batch_size), strict=True)
    images, labels = (np.concatenate(parts) for parts in batches)
    scores, truth = 1 / (1 + np.exp(-np.asarray(model(images, training=False)))), labels > 0.5
    names = {"all classes": slice(None), **{f"generated {i}": slice(i, i + 1) for i in range(5)}}
    tags = [tag for tag in events.Tags()["tensors"] if tag.startswith("precision_recall/")]
    assert sorted(tags) == sorted(f"precision_recall/{name}" for name in names)
    for name, columns in names.items():
        point = events.Tensors(f"precision_recall/{name}")[-1]
        tp, fp, _, fn, precision, recall = make_ndarray(point.tensor_proto)
        assert point.step == saved.step and len(tp) == 127
        at = np.stack([scores[:, columns] >= i / 126 for i in range(127)])
        true, said = (at & truth[:, columns]).sum((1, 2)), at.sum((1, 2))
        np.testing.assert_array_equal((tp, fp, fn), (true, said - true, true[0] - true), name)
        np.testing.assert_allclose((precision, recall), (true / np.maximum(said, 1), true / true[0]), rtol=1e-6)


def test_pictures_are_shown_with_their_labels(events: EventAccumulator, saved: checkpoint.Checkpoint) -> None:
    picture = events.Images("evaluation/pictures")[-1]
    assert picture.step == saved.step == events.Scalars("evaluation/map_at_100")[-1].step
    shown = np.asarray(Image.open(io.BytesIO(picture.encoded_image_string)))
    assert shown.shape == (picture.height, picture.width, 3) and shown.std() > 20


def test_a_refusal_of_the_launcher_is_one_object(ended: Ended, tmp_path: Path) -> None:
    again = jobs.LocalJob(jobs.write_recipe(tmp_path), tmp_path, "--log_format=json", f"--run_dir={ended.job.run_dir}")
    assert again.end() == 2
    (line,) = again.stderr.splitlines()
    entry = json.loads(line)
    assert (entry["severity"], entry["role"]) == ("ERROR", "local")
    assert "holds another run" in entry["message"], entry
