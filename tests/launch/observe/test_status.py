"""`downpour status` of real chiefs and shards, in one process, and of the folders that they leave."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from downpour import files
from downpour.launch import certs, chief, status, top
from downpour.launch.observe import status as status_module
from downpour.launch.observe import status_text
from downpour.launch.observe.status import is_whole, of_address, of_folder
from downpour.launch.roles import entry
from downpour.proto.errors import Unauthenticated, Unreachable
from downpour.proto.security.config import PLAIN
from downpour.ps.checkpoint.storage import Folder
from downpour.ps.service.server import ShardServer
from downpour.worker.chief import owner
from tests import certificates
from tests.launch.observe import statuses
from tests.worker.test_job import GIVE_UP_S, Cluster, Parameters, serving, toward_one


@pytest.fixture
def halfway(tmp_path: Path) -> Iterator[tuple[Cluster, Any]]:
    """A job of 30 steps whose only worker waits at step 15 until the second value is set."""
    go_on = threading.Event()

    def step(parameters: Parameters, images: Any, labels: Any) -> Any:
        if max(parameters.versions) >= 15:
            halted.set()
            go_on.wait(GIVE_UP_S)
        return toward_one(parameters, images, labels)

    halted = threading.Event()
    with serving(tmp_path, description={"job": {"num_steps": "30"}}) as cluster:
        cluster.run_chief()
        worker = cluster.pool.submit(cluster.work, 0, step=step, overlap=False)
        assert halted.wait(GIVE_UP_S)
        yield cluster, go_on
        go_on.set()
        worker.result(GIVE_UP_S)


def looked(run: object, until: Any) -> dict[str, Any]:
    """The status, once it is as expected: reports come once a second."""
    deadline = GIVE_UP_S
    while not until(found := status.look(str(run), PLAIN)):
        threading.Event().wait(0.1)
        deadline -= 0.1
        assert deadline > 0, found
    return found


def test_a_run_that_goes_on_is_described_by_its_chief_and_one_that_is_done_by_its_files(
    halfway: tuple[Cluster, Any],
) -> None:
    cluster, go_on = halfway
    found = looked(cluster.run_dir, lambda found: found["step"] >= 15 and found["shards"] and found["checkpoint"])
    assert found["chief"] == f"127.0.0.1:{cluster.chief.port}"
    assert (found["state"], found["recipe"], found["num_steps"]) == ("training", "test", 30)
    assert found["job_id"] == cluster.chief._state.job_id
    assert found["epochs"] == pytest.approx(15 * 8 / 160, abs=8 / 160)
    assert found["loss"] > 0 and found["checkpoint"]["step"] >= 10
    assert [(worker["worker"], worker["state"]) for worker in found["workers"]] == [(0, "running"), (1, "expected")]
    assert found["workers"][0]["steps"] >= 14
    assert (found["lease_seconds"], found["checkpoint_every_steps"]) == (30.0, 10)
    assert [(shard["address"], shard["state"]) for shard in found["shards"]] == [
        (address, "ready") for address in cluster.addresses
    ]
    text = status_text.text(found)
    assert f"{cluster.run_dir}: training, step {found['step']} of 30, epoch 0.7" in text
    for words in ("loss", "examples/s", "input 0.", "running", "expected", cluster.addresses[2], "faults      none"):
        assert words in text, text
    assert status.exit_code(found) == entry.OK
    by_address = of_address(found["chief"])
    assert by_address["step"] == found["step"] and by_address["run"] == found["chief"]
    go_on.set()
    looked(cluster.run_dir, lambda found: found["state"] == "done")
    cluster.chief.close()
    done = of_folder(cluster.run_dir)
    summary = json.loads((cluster.run_dir / "summary.json").read_text())
    assert (done["state"], done["step"], done["ended_by"]) == ("done", summary["global_steps"], "steps")
    assert done["loss"] == summary["loss"] and done["num_steps"] == 30
    assert done["checkpoint"]["step"] == summary["global_steps"]
    assert "its number of steps" in status_text.text(done)
    assert not (cluster.run_dir / owner.ADDRESS).exists(), "nobody is asked any more"


def test_a_run_that_was_killed_is_stopped_and_says_how_to_continue(
    halfway: tuple[Cluster, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    cluster, _ = halfway
    looked(cluster.run_dir, lambda found: found["step"] >= 15 and found["checkpoint"])
    left = tmp_path_factory.mktemp("left") / "run"
    shutil.copytree(cluster.run_dir, left)  # as SIGKILL leaves it, with the address of its chief
    found = of_folder(left)
    assert (found["state"], found["num_steps"]) == ("stopped", 30)
    assert found["step"] >= 10 and found["checkpoint"]["step"] >= 10
    assert "chief" not in found and not found["workers"]
    assert status.exit_code(found) == status.NOT_GOING_ON
    assert "--resume continues it" in status_text.text(found)
    owner.write_failure(left, "worker/1 crashed 4 times")
    text = status_text.text(of_folder(left))
    assert "failure     worker/1 crashed 4 times" in text and "ended by    the failure; --resume continues it" in text


@pytest.mark.parametrize("was_ahead", [True, False])
def test_a_launcher_that_begins_is_told_from_one_that_ends(was_ahead: bool, tmp_path: Path) -> None:
    summary = tmp_path / "summary.json"
    files.write(summary, json.dumps({"recipe": "a", "global_steps": 7}))
    if was_ahead:  # the clock was, and was set back before the launcher began
        os.utime(summary, (time.time() + 3600, time.time() + 3600))
    lock = owner.Lock(tmp_path / owner.LAUNCHER_LOCK, "launcher")
    lock.note("of a job")
    assert of_folder(tmp_path)["state"] == "starting"
    assert not owner.holder(tmp_path / owner.LAUNCHER_LOCK).count("\n")
    files.write(summary, json.dumps({"recipe": "a", "global_steps": 7}))
    if not was_ahead:  # the clock is set back while the job runs
        os.utime(summary, (1e9, 1e9))
    assert of_folder(tmp_path)["state"] == "done"
    lock.close()


def test_a_chief_that_does_not_answer_is_a_problem(tmp_path: Path) -> None:
    lock = owner.Lock(tmp_path / owner.LOCK, "chief")
    owner.write_address(tmp_path, "127.0.0.1", 1)
    found = of_folder(tmp_path)
    lock.close()
    assert found["state"] == "unknown"
    assert "belongs to the chief on" in found["problem"] and "127.0.0.1:1 does not answer" in found["problem"]
    assert status.exit_code(found) == entry.UNREACHABLE


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    summary = {"recipe": "a", "global_steps": 7, "failure": "worker 1: loss nan", "ended_by": "failure", "loss": np.nan}
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"updates_lost": {"0": 3}, "images_per_second": 2.5}))
    found = of_folder(tmp_path)
    assert json.loads(json.dumps(found, allow_nan=False))["loss"] is None
    assert (found["state"], found["step"], found["examples_per_second"]) == ("failed", 7, 2.5)
    assert found["faults"] == {"updates_lost": 3}
    assert status.exit_code(found) == status.NOT_GOING_ON
    assert "failure     worker 1: loss nan" in status_text.text(found)


def test_a_chief_that_is_refused_leaves_the_reason_until_the_next_one_begins(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="no data"), chief._recorded_failure(tmp_path):
        owner.Lock(tmp_path / owner.LOCK, "chief").close()
        raise Unreachable("no data")
    found = of_folder(tmp_path)
    assert found["state"] == "failed" and "no data" in found["failure"]
    with chief._recorded_failure(tmp_path):
        assert of_folder(tmp_path)["state"] == "stopped"


def test_what_was_found_is_said_before_the_tables() -> None:
    workers = [statuses.worker(0), statuses.worker(1, compute=0.4), statuses.worker(2)]
    found = statuses.status(workers=workers, input_bound={str(worker): 0.2 + worker / 100 for worker in range(6)})
    lines = status_text.text(found).splitlines()
    assert lines[lines.index("") - 2 : lines.index("")] == [
        "  finding     worker 1 takes 0.43 s a step, others 0.13 s; its compute 0.4 s, theirs 0.1 s",
        "  finding     workers 5, 4, 3, 2 and 1 more wait for data for 25% of a step; give the data more threads, or "
        "less to decode (docs/data.md)",
    ]
    grown = [statuses.entry(number, {str(number // 10): 40}) for number in range(40)]
    assert "staleness grows" in status_text.text(statuses.status(), grown)
    assert "finding" not in status_text.text(statuses.status())


def test_a_checkpoint_is_said_to_be_whole_or_not(halfway: tuple[Cluster, Any]) -> None:
    cluster, _ = halfway
    found = looked(cluster.run_dir, lambda found: found.get("checkpoint"))
    folder = Path(found["checkpoint"]["directory"])
    assert is_whole(str(folder)) is True
    found["checkpoint"] |= {"whole": True, "age_seconds": 6.2}
    assert f"checkpoint  step {found['checkpoint']['step']}, 0:06 ago, whole, {folder}" in status_text.text(found)
    shutil.copytree(folder, copy := cluster.run_dir.parent / "copy")
    next(copy.glob("shard-*")).unlink()
    assert is_whole(str(copy)) is False
    (copy / "manifest.json").write_text("{")
    assert is_whole(str(copy)) is False
    assert is_whole(str(copy / "elsewhere")) is None
    found["checkpoint"] |= {"whole": None}
    assert "0:06 ago, written whole, and not readable from here, " in status_text.text(found)


def test_a_checkpoint_in_an_object_store_is_examined_too(halfway: tuple[Cluster, Any]) -> None:
    cluster, _ = halfway
    found = looked(cluster.run_dir, lambda found: found.get("checkpoint"))
    store, url = Folder("memory://bucket/step-10"), "memory://bucket/step-10"
    for file in Path(found["checkpoint"]["directory"]).iterdir():
        if file.name != "manifest.json":
            store.write(file.name, [file.read_bytes()])
    assert is_whole(url) is None, "without a manifest it is no checkpoint"
    store.write("manifest.json", [(Path(found["checkpoint"]["directory"]) / "manifest.json").read_bytes()])
    assert is_whole(url) is True
    store.remove(store.names()[-1])
    assert is_whole(url) is False
    assert is_whole("no-such-kind://bucket/step-10") is None


def test_a_store_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    monkeypatch.setattr(status_module, "_WITHIN_S", 0.1)
    monkeypatch.setattr(Folder, "read", lambda *_: never.wait(GIVE_UP_S))
    assert is_whole("memory://bucket/step-10") is None
    never.set()


def test_a_shard_is_described_too(halfway: tuple[Cluster, Any]) -> None:
    cluster, _ = halfway
    found = of_address(cluster.addresses[1])
    assert (found["state"], found["shard"], found["pushes"]) == ("ready", 1, found["version"])
    assert f"{cluster.addresses[1]}: shard 1, ready" in status_text.text(found)
    with pytest.raises(ValueError, match=f"{cluster.addresses[1]} is a shard; give its chief's address"):
        top.show(cluster.addresses[1], PLAIN, once=True)
    assert status.exit_code(found) == entry.OK


def test_what_is_no_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for run, message in (
        ("", "no run; give the folder of a run, or host:port of its chief or of a shard; there are runs/mine"),
        ("other", "'other' is no folder and no host:port"),
        ("host:0", "'host:0' is no folder and no host:port"),
        ("mine", "runs/mine holds no run"),
    ):
        with pytest.raises(ValueError, match=message):
            status.look(run, PLAIN)
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1 does not answer: .*refused; check the address"):
        status.look("127.0.0.1:1", PLAIN)


def test_a_job_with_certificates_is_asked_with_those_of_any_role(tmp_path: Path) -> None:
    certs.make(certificates.JOB, tmp_path)
    token_file = tmp_path / "token"
    token_file.write_text(certificates.TOKEN)
    server = ShardServer(0, "127.0.0.1", security=certificates.security(tmp_path, "ps", token_file))
    address = f"127.0.0.1:{server.port}"
    try:
        from downpour.launch.roles import security

        assert of_address(address, security.load("", tmp_path / "evaluator", token_file))["state"] == "empty"
        with pytest.raises(Unauthenticated, match="token"):
            of_address(address, security.load("", tmp_path / "worker", None))
        with pytest.raises(Unreachable, match=f"{address} does not answer: .*--tls and --token_file"):
            of_address(address)
    finally:
        server.stop(0)
