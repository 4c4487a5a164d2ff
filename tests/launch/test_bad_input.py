"""What a user or a cluster can get wrong: one clear message on stderr, exit code 2, nothing half-written."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from downpour.launch.job import recipe
from downpour.launch.local import RunConfig, preflight, start
from downpour.launch.roles import topology
from downpour.model.vision.labels import LABELS_FILE
from downpour.proto.chief_pb2 import ProgressReply
from downpour.worker.exchange.clients import ChiefClient
from tests.conftest import ShardProcesses, wait_until
from tests.launch import jobs
from tests.launch.slips import SLIPS
from tests.model.data.test_data import TREE

pytestmark = pytest.mark.process

StartRole = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def run_refused(tmp_path: Path) -> Iterator[Callable[..., tuple[jobs.LocalJob, str]]]:
    """`run_refused(more, *arguments)`: runs the tiny recipe, which must end with exit code 2; the job and its error."""
    started: list[jobs.LocalJob] = []

    def run(more: str = "", *arguments: str) -> tuple[jobs.LocalJob, str]:
        job = jobs.LocalJob(jobs.write_recipe(tmp_path, more), tmp_path, *arguments)
        started.append(job)
        assert job.end() == 2, job.stderr
        assert not job.left_behind()
        return job, job.the_error()

    yield run
    for job in started:
        job.kill()


def test_a_wrong_argument_is_refused_before_any_process_starts(run_refused: Any) -> None:
    job, error = run_refused("", "--set=cluster.num_p=3")
    assert "unknown key 'cluster.num_p'; did you mean cluster.num_ps=2 (a whole number)" in error
    assert job.stderr == error + "\n"
    assert not job.run_dir.exists()


def check_refused(tmp_path: Path, message: str, **settings: Any) -> None:
    """A run is refused, with nothing written."""
    values = {"recipe": tmp_path / "tiny.py", "run_dir": tmp_path / "run"} | settings
    with pytest.raises(ValueError, match=re.escape(message)):
        start(RunConfig(**values))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("nonsense=3", "unknown key 'nonsense'; `--set=help` lists all "),
        ("average=Polyak(0.9)", "'Polyak(0.9)' does not name its fields; give Polyak(decay=0.9)"),
        ("num_steps", "override 'num_steps' is not of the form key=value"),
        ("num_steps=many", "num_steps=many: 'many' is not a whole number; it is now num_steps=40"),
        ("cluster.num_workers=0", "cluster.num_workers is 0; give a whole number of at least 1"),
        ("cluster.num_ps=0", "cluster.num_ps is 0; give a whole number of at least 1"),
        ("slicing.0.num_slices=0", "slicing.0.num_slices is 0; give a whole number of at least 1"),
    ],
)
def test_a_wrong_override_is_refused(tmp_path: Path, override: str, message: str) -> None:
    jobs.write_recipe(tmp_path)
    check_refused(tmp_path, message, overrides=(override,))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "recipe",
            "tinny",
            "no recipe 'tinny'; the recipes are imagenet, imagenet_finetune, imagenet_frozen, ",
        ),
        ("arena_parent", Path("/missing"), "folder /missing is missing or not writable; give another --arena_parent"),
    ],
)
def test_a_wrong_setting_is_refused(tmp_path: Path, name: str, value: Any, message: str) -> None:
    jobs.write_recipe(tmp_path)
    check_refused(tmp_path, message, **{name: value})


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "data folder {folder} is missing; it should hold train-*.tfrecord, heldout-*.tfrecord and labels.json"),
        ([], "no records in {folder}/heldout-*.tfrecord; it should hold"),
        (["heldout-00000.tfrecord"], "no records in {folder}/heldout-*.tfrecord; it should hold"),
    ],
)
def test_data_that_are_not_there_are_refused(tmp_path: Path, files: list[str] | None, message: str) -> None:
    folder = tmp_path / "images"
    if files is not None:
        folder.mkdir()
        TREE.save(folder / LABELS_FILE)
        for name in files:
            (folder / name).touch()
    data = f"ImageRecords({str(folder)!r}, num_labels=5, resize=8, crop=8)"
    jobs.write_recipe(tmp_path, f"\n\ndef job():\n    return tiny(data={data})\n")
    check_refused(tmp_path, message.format(folder=folder))


def test_data_with_another_number_of_labels_are_refused_with_both_numbers(tmp_path: Path) -> None:
    folder = jobs.write_images(tmp_path / "images", num_train=4, num_heldout=4)
    data = f"ImageRecords({str(folder)!r}, num_labels=9, resize=8, crop=8)"
    jobs.write_recipe(tmp_path, f"\n\ndef job():\n    return tiny(data={data})\n")
    check_refused(tmp_path, f"{folder}/labels.json has 5 labels, but the recipe's data.num_labels is 9; give")


def test_too_many_bad_records_end_the_job_with_their_number_and_the_first(run_refused: Any, tmp_path: Path) -> None:
    images = jobs.write_images(tmp_path / "images", num_train=120, num_heldout=4, spoilt={6})
    jobs.cut_off(images / "train-00001.tfrecord")
    job, error = run_refused(
        f"\n\ndef job():\n    return tiny(data=ImageRecords({str(images)!r}, 5, resize=8, crop=8))\n",
        *("--noevaluator", "--set=cluster.num_workers=1", "--set=cluster.num_ps=1"),
    )
    assert "worker 0: 2 of 120 records cannot be read, and more than 1% is refused; replace these files" in error
    assert f"For example: {images}/train-00000.tfrecord, record 3 (picture 6): " in error
    assert not (job.run_dir / "learning_curve.png").exists()


TOO_MANY_SLICES = "asks for 99 slices of head/kernel, whose axis 1 has 5 columns; give 1 to 5"


def test_more_slices_than_columns_are_refused_by_the_preflight(tmp_path: Path) -> None:
    job = recipe.load(jobs.write_recipe(tmp_path), ["slicing.0.num_slices=99"])
    with pytest.raises(ValueError, match=TOO_MANY_SLICES):
        preflight.check(job, evaluator=False)


@pytest.mark.slow  # tests/launch/test_slips.py has a mistake of a recipe that ends a run likewise
def test_more_slices_than_columns_leave_logs_and_nothing_else(run_refused: Any) -> None:
    arguments = ("--noevaluator", "--set=cluster.num_workers=1", "--set=cluster.num_ps=1")
    job, error = run_refused("", "--set=slicing.0.num_slices=99", *arguments)
    assert TOO_MANY_SLICES in error
    assert {path.name for path in job.run_dir.iterdir()} == {"logs", "launcher.lock", "failure.txt"}


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port that is bound but does not listen: nobody else can have it, nobody answers there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture
def start_role(tmp_path: Path) -> Iterator[StartRole]:
    """`start_role(role, index, values)`: a process as production starts it; killed after the test."""
    started = []

    def start(role: str, index: int, values: dict[str, Any]) -> subprocess.Popen[str]:
        command = topology.command(role, index, values)
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def refusal(process: subprocess.Popen[str], code: int = 2) -> str:
    """The message of a role that must end with this exit code."""
    _, err = process.communicate(timeout=jobs.START_S)
    assert process.returncode == code, err
    assert "Traceback" not in err
    lines = err.splitlines()
    assert [line for line in lines if "] error: " in line] == lines[-1:], err
    return lines[-1]


def test_a_shard_whose_port_is_taken_says_so(start_role: StartRole, taken_port: int) -> None:
    shard = start_role("ps", 3, {"host": "127.0.0.1", "port": taken_port})
    _, err = shard.communicate(timeout=120)
    assert shard.returncode == 2
    expected = (
        rf"\[ps/3\] error: cannot listen on 127.0.0.1:{taken_port}: the port is taken .*; give another --port .*\n"
    )
    assert re.fullmatch(expected, err), err


def test_a_worker_without_a_chief_names_the_chief(
    shards: ShardProcesses, start_role: StartRole, taken_port: int, tmp_path: Path
) -> None:
    job = {"recipe": jobs.write_recipe(tmp_path), "ps": ",".join(shards.start(2)), "chief": f"127.0.0.1:{taken_port}"}
    message = refusal(start_role("worker", 0, job | {"set": ["exchange.give_up_after_s=2"]}), code=69)
    assert f"the chief at 127.0.0.1:{taken_port} did not answer for" in message


@pytest.mark.slow
def test_a_mistake_in_the_loss_ends_roles_that_are_started_by_hand_at_once(
    shards: ShardProcesses, start_role: StartRole, tmp_path: Path
) -> None:
    slip, recipe, port_file = SLIPS["a wrong name in the loss"], tmp_path / "mine.py", tmp_path / "chief.port"
    recipe.write_text(slip.recipe())
    job = {"recipe": recipe, "ps": ",".join(shards.start(2)), "run_dir": tmp_path / "run"}
    listens = {"host": "127.0.0.1", "port": 0, "port_file": port_file, "evaluator": False}
    chief = start_role("chief", 0, job | listens)
    wait_until(port_file.exists, "the chief's port", jobs.START_S)
    worker = start_role("worker", 0, job | {"chief": f"127.0.0.1:{port_file.read_text().strip()}"})
    for message in (refusal(worker), refusal(chief)):
        assert f"{slip.message} ({recipe}:{slip.line()})" in message


@pytest.mark.slow  # tests/worker/test_job.py and tests/worker/chief/test_owner.py have each of them in one process
def test_workers_that_do_not_belong_to_a_job_are_refused_and_leave_it_alone(
    shards: ShardProcesses, start_role: StartRole, taken_port: int, tmp_path: Path
) -> None:
    (tmp_path / "slow").touch()
    recipe, port_file = jobs.write_recipe(tmp_path, jobs.PACED), tmp_path / "chief.port"
    addresses = shards.start(2)
    job = {"recipe": recipe, "ps": ",".join(addresses), "run_dir": tmp_path / "run"}
    listens = {"host": "127.0.0.1", "port": 0, "evaluator": False}
    running = start_role("chief", 0, job | listens | {"port_file": port_file})
    wait_until(port_file.exists, "the chief's port", jobs.START_S)
    job["chief"] = f"127.0.0.1:{port_file.read_text().strip()}"
    older = start_role("worker", 0, job)
    chief = ChiefClient(job["chief"], jobs.START_S)
    wait_until(lambda: chief.progress().step > 0, "the first step", jobs.START_S)

    newer = start_role("worker", 0, job)
    wider = start_role("worker", 1, job | {"set": ["model.width=4"]})
    wider_chief = start_role("chief", 0, job | listens | {"set": ["model.width=4"], "run_dir": tmp_path / "other"})
    nowhere = {"ps": f"{addresses[0]},127.0.0.1:{taken_port}", "set": ["exchange.give_up_after_s=2"]}
    lost = start_role("worker", 1, job | nowhere)

    message = refusal(older)
    assert re.match(r"\[worker/0\b.*\] error: .*worker 0 .*--index", message), message
    message = refusal(wider)
    assert re.search("worker 1 runs another job: model.width is 4 there and 2 in the chief; start every role", message)
    message = refusal(wider_chief)
    assert re.search(r"shard 0 holds parameters of job [0-9a-f]{16}, and .*/other is the folder of no job", message)
    message = refusal(lost, code=69)
    assert re.search(rf"shard 1 at 127.0.0.1:{taken_port} did not answer for [2-9] s \(\d+ tries\)", message), message
    step = chief.progress().step
    wait_until(lambda: chief.progress().step > step, "a step of the newer worker", jobs.START_S)
    assert (chief.progress().state, chief.progress().failure) == (ProgressReply.STATE_TRAINING, "")
    assert running.poll() is None and newer.poll() is None
    chief.close()
