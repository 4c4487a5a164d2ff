"""Whose a run folder is, which job goes on in it, and that no shard is given another job's parameters."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from downpour.proto.chief_pb2 import RegisterRequest
from downpour.proto.errors import CheckpointFailed, LayoutMismatch, WorkerSuperseded
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint.storage import Folder
from downpour.worker.chief import journal as journals
from downpour.worker.chief import owner, scores
from downpour.worker.chief.chief import Chief
from downpour.worker.chief.owner import Identity, Lock
from downpour.worker.chief.run_folder import RunFolder
from downpour.worker.chief.settling import settle
from downpour.worker.exchange.clients import ChiefClient, ShardClient
from tests.conftest import wait_until
from tests.ps.checkpoint import saving
from tests.worker.test_job import GIVE_UP_S, LAYOUT, Cluster, plan_in, serving

_HOLDER = """
import sys, time
import time
from pathlib import Path
from downpour.worker.chief.owner import Lock
lock = Lock(Path(sys.argv[1]), "chief")
lock.note("abc")
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of `tmp_path`."""
    command = [sys.executable, "-c", _HOLDER, str(tmp_path / owner.LOCK)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_held_folder_is_refused_with_its_owner_until_that_has_died(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "_WAIT_S", 0.2)
    who = rf"belongs to the chief of job abc on .*, process {holder.pid}, since 20.*; .* or give another --run_dir"
    for number in (None, signal.SIGSTOP):
        if number:
            holder.send_signal(number)
        with pytest.raises(ValueError, match=who):
            Lock(tmp_path / owner.LOCK, "chief")
        with pytest.raises(ValueError, match=who):
            owner.check_free(tmp_path)
        with pytest.raises(ValueError, match=who):
            RunFolder(tmp_path, str(tmp_path / "checkpoints"))
    holder.kill()
    holder.wait()
    owner.check_free(tmp_path)
    Lock(tmp_path / owner.LOCK, "chief").close()


def test_without_locks_there_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(owner.fcntl, "flock", unsupported)
    Lock(tmp_path / owner.LOCK, "chief").close()
    assert "has no locks; a second chief would not be noticed" in caplog.text


PLAN = plan_in(Path("/nowhere"))

# What a folder holds, what the flags say -> the id that a chief which finds empty shards goes on or begins with, and
# whether with a checkpoint.
Case = tuple[Callable[[Path], object], dict[str, Any], tuple[str, bool] | str]


def save(folder: Path, step: int, job_id: str) -> None:
    directory = folder / "checkpoints" / f"step-{step:010d}"
    vectors = LAYOUT.scatter([np.zeros(v.shape, np.float32) for v in LAYOUT.variables])
    saved = saving.save(directory, LAYOUT, [{"parameters": vector} for vector in vectors], step=step)
    saved.specification.job_id = job_id
    checkpoint.write_manifest(saved)


def begun(*steps: int, journal: bool = False, finished: bool = False, **identity: Any) -> Callable[[Path], None]:
    """A folder of job "a" with checkpoints of some steps."""

    def make(folder: Path) -> None:
        owner.write_identity(folder, Identity("a", **identity))
        for step in steps:
            save(folder, step, "a")
        if journal:
            (folder / "journal.json").write_text(json.dumps({"job_id": "a", "written_at": 0}))
        if finished:
            (folder / "summary.json").write_text("{}")

    return make


CASES: dict[str, Case] = {
    "new": (lambda folder: None, {"job_id": "b"}, ("b", False)),
    "new, with a random id": (lambda folder: None, {}, ("", False)),
    "cut off while it began": (begun(), {}, ("a", False)),
    "cut off while it began, another id": (begun(), {"job_id": "b"}, ("b", False)),
    "cut off before another run was removed": (begun(3, begun=False), {"job_id": "a"}, "holds another run"),
    "the same, with overwrite": (begun(3, begun=False), {"job_id": "a", "overwrite": True}, ("a", False)),
    "a second run": (
        begun(3, journal=True),
        {"job_id": "b"},
        "1 checkpoints in .*, journal.json; continue it by --res",
    ),
    "a second run by hand": (begun(3, journal=True), {}, "continue it by --resume, remove it by --overwrite, or give"),
    "a second run after the end": (begun(finished=True), {}, "holds another run: summary.json"),
    "overwrites": (begun(3, finished=True), {"job_id": "b", "overwrite": True}, ("b", False)),
    "overwrites by hand": (begun(3), {"overwrite": True}, ("", False)),
    "its chief again": (begun(3), {"job_id": "a"}, ("a", True)),
    "its chief again, that overwrites": (begun(3), {"job_id": "a", "overwrite": True}, ("a", True)),
    "the same by hand": (begun(3, overwrites=True), {"overwrite": True}, ("a", True)),
    "the same by hand, after its end": (begun(3, overwrites=True, finished=True), {"overwrite": True}, ("", False)),
    "its chief again, nothing saved": (begun(journal=True), {"job_id": "a", "overwrite": True}, ("a", False)),
    "if any, nothing saved": (begun(journal=True), {"resume": "if_any"}, ("a", False)),
    "if any, the end without a checkpoint": (begun(finished=True), {"resume": "if_any"}, "holds another run"),
    "resumed": (begun(3), {"resume": "yes", "job_id": "b"}, ("a", True)),
    "resumed, job.json is lost": (lambda folder: save(folder, 3, "a"), {"resume": "yes", "job_id": "b"}, ("a", True)),
    "resumed of an older version": (lambda folder: save(folder, 3, ""), {"resume": "yes", "job_id": "b"}, ("b", True)),
    "nothing to resume": (begun(), {"resume": "yes"}, "has no complete checkpoint"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_chief_that_finds_empty_shards(tmp_path: Path, name: str) -> None:
    make, flags, expected = CASES[name]
    make(tmp_path)
    plan = replace(PLAN, **flags)
    folder = RunFolder(tmp_path, str(tmp_path / "checkpoints"))
    before = sorted(tmp_path.rglob("*"))
    try:
        if isinstance(expected, str):
            with pytest.raises(ValueError, match=expected):
                settle(folder, [], plan)
            assert sorted(tmp_path.rglob("*")) == before
            return
        job_id, saved = settle(folder, [], plan)
        assert (job_id == expected[0] or not expected[0]) and job_id != ("" if expected[0] else "a")
        assert (saved is not None) == expected[1]
    finally:
        folder.close()


@pytest.mark.parametrize(
    ("held", "flags", "message"),
    [
        ([(0, "a"), (2, "z")], {}, "parameters of different jobs: shard 0 of job a, shard 2 of job z"),
        ([(1, "z")], {}, r"shard 1 holds parameters of job z, and .* is the folder of job a; give the --run_dir"),
        ([(1, "")], {}, "shard 1 holds parameters of job without an id"),
        ([(1, "a")], {"job_id": "b"}, "a new run was asked for; continue that job by --resume"),
    ],
)
def test_a_chief_is_not_let_onto_other_shards(
    tmp_path: Path, held: list[tuple[int, str]], flags: dict[str, Any], message: str
) -> None:
    begun()(tmp_path)
    folder = RunFolder(tmp_path, str(tmp_path / "checkpoints"))
    with pytest.raises(ValueError, match=message):
        settle(folder, held, replace(PLAN, **flags))
    assert settle(folder, [(0, "a")], PLAN) == ("a", None)
    folder.close()


def test_a_chief_without_its_folder_may_name_the_job(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, str(tmp_path / "checkpoints"))
    with pytest.raises(ValueError, match=r"folder of no job; .* if its folder is lost, --job_id=a lets this one take"):
        settle(folder, [(0, "a")], PLAN)
    assert settle(folder, [(0, "a")], replace(PLAN, job_id="a")) == ("a", None)
    folder.close()


def test_checkpoints_of_another_job_are_passed_over_and_those_of_older_versions_are_not(tmp_path: Path) -> None:
    for step, job_id in ((1, ""), (2, "a"), (3, "z")):
        save(tmp_path, step, job_id)
    (tmp_path / "checkpoints" / "step-0000000003" / "more").touch()
    folder = RunFolder(tmp_path, str(tmp_path / "checkpoints"))
    found = [folder.newest(job_id=job_id) for job_id in ("a", "b")]
    assert [saved and saved.step for saved in found] == [2, 1]
    folder.close()


@pytest.mark.parametrize(("shift_s", "other_machine", "gap_s"), [
    (0.0, False, 0.0), (86_400.0, False, 0.0), (-7200.0, False, 0.0),
    (86_400.0, True, 300.0), (-7200.0, True, 0.0), (20.0, True, 20.0),
])  # fmt: skip
def test_a_clock_that_jumps_ends_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift_s: float, other_machine: bool, gap_s: float
) -> None:
    folder = RunFolder(tmp_path, str(tmp_path / "checkpoints"))
    now = time.time()
    folder.journal.commit(folder.journal.stage({}))
    monkeypatch.setattr(journals.time, "time", lambda: now + shift_s)
    if other_machine:
        monkeypatch.setattr(journals, "_boot_id", lambda: "another")
    journal = folder.journal.read()
    assert journal is not None and journal["gap_s"] == pytest.approx(gap_s, abs=5.0)
    folder.close()


def test_a_journal_of_the_version_before_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "journal.json").write_text(json.dumps({"written_at": time.time() - 4, "fingerprint": ""}))
    folder = RunFolder(tmp_path, str(tmp_path / "checkpoints"))
    journal = folder.journal.read("a")
    assert journal is not None and 3 < journal["gap_s"] < 60
    folder.close()


def register(cluster: Cluster, process: str) -> int:
    client = ChiefClient(f"127.0.0.1:{cluster.chief.port}", GIVE_UP_S)
    reply = client.register(RegisterRequest(worker=0, fingerprint=LAYOUT.fingerprint, process=process))
    client.close()
    return reply.incarnation


@pytest.mark.parametrize("journal", ["kept", "lost", "old"])
def test_a_chief_gives_out_higher_incarnations_than_the_one_before(tmp_path: Path, journal: str) -> None:
    path = tmp_path / "journal.json"
    with serving(tmp_path) as cluster:
        chief = cluster.run_chief()
        first = register(cluster, "a")
        old = path.read_bytes()
        cluster.work(0)
        chief.result(GIVE_UP_S)
        last = register(cluster, "b")  # which no shard hears of
        assert last == register(cluster, "b") > first + 1, "its reply may be lost"
        cluster.chief.close()
        if journal == "lost":
            path.unlink()
        elif journal == "old":
            path.write_bytes(old)
        cluster.chief = Chief(cluster.chief._settings, tmp_path, host="127.0.0.1", port=0)
        chief = cluster.run_chief()
        assert register(cluster, "c") > last
        cluster.work(0)
        chief.result(GIVE_UP_S)


def test_shards_of_another_job_with_the_same_layout_are_refused(tmp_path: Path) -> None:
    with serving(tmp_path / "first") as cluster:
        chief = cluster.run_chief()
        cluster.work(0)
        chief.result(GIVE_UP_S)
        values = [np.zeros(v.shape, np.float32) for v in LAYOUT.variables]
        other = Chief(cluster.chief._settings, tmp_path / "second", host="127.0.0.1", port=0)
        with pytest.raises(ValueError, match=r"shard 0 holds parameters of job \w{16}, and .* is the folder of no job"):
            other.run(LAYOUT, cluster.addresses, lambda: values, GIVE_UP_S)
        other.close()
        client = ShardClient(0, cluster.addresses[0], LAYOUT, GIVE_UP_S, job_id="other")
        with pytest.raises(LayoutMismatch, match=r"holds parameters of job \w{16}, and this is job other"):
            client.wait_ready()
        with pytest.raises(LayoutMismatch, match=r"holds parameters of job \w{16}, the call is of job other"):
            client.stop(GIVE_UP_S)
        client.close()
        wrong = ShardClient(1, cluster.addresses[0], LAYOUT, GIVE_UP_S)
        for call in (wrong.wait_ready, lambda: wrong.absent([])):
            with pytest.raises(LayoutMismatch, match="check the order of the addresses in --ps"):
                call()
        wrong.close()


def test_a_shard_is_not_filled_from_another_jobs_checkpoint(tmp_path: Path) -> None:
    with serving(tmp_path / "first") as cluster:
        chief = cluster.run_chief()
        cluster.work(0)
        chief.result(GIVE_UP_S)
        told = cluster.chief._shards
        assert told is not None
        theirs = f"{tmp_path}/first/checkpoints/{checkpoint.complete(Folder(tmp_path / 'first' / 'checkpoints'))[-1]}"
    with serving(tmp_path / "second") as cluster:
        client = ShardClient(0, cluster.addresses[0], LAYOUT, GIVE_UP_S)
        specification = told._specification_for(client)
        specification.job_id = "other"
        with pytest.raises(CheckpointFailed, match=r"is of job \w{16}, and this is job other"):
            client.restore(specification, theirs, with_slots=True)
        assert not client.status().ready
        client.close()


def test_a_chief_that_overwrites_goes_on_from_its_own_checkpoint_when_every_shard_has_lost_its_memory(
    tmp_path: Path,
) -> None:
    save(tmp_path, 999, "another")
    with serving(tmp_path, overwrite=True, num_steps=25) as cluster:
        chief = cluster.run_chief()
        cluster.work(0, num_steps=25)
        job_id = chief.result(GIVE_UP_S) and cluster.chief._state.job_id
    (tmp_path / "summary.json").unlink()  # it was killed before its end
    names = checkpoint.complete(Folder(tmp_path / "checkpoints"))
    assert "step-0000000999" not in names
    with serving(tmp_path, overwrite=True, num_steps=40) as cluster:
        chief = cluster.run_chief()
        cluster.work(0, num_steps=40)
        summary = chief.result(GIVE_UP_S)
        assert cluster.chief._state.job_id == job_id and summary["resumed_from"] >= 25
        assert cluster.chief._state.coordinator.members.incarnation > 1 << 20


def test_a_worker_that_runs_another_job_is_refused_with_the_first_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "_SCORE_WITHIN_S", 0.0)  # the evaluator below scores nothing
    with serving(tmp_path, job={"rule": "Momentum", "seed": "0"}) as cluster:
        chief = cluster.run_chief()
        client = ChiefClient(f"127.0.0.1:{cluster.chief.port}", GIVE_UP_S)
        wait_until(lambda: cluster.chief.ready, "the chief")
        for job, message in (
            ({"rule": "Momentum", "seed": "1"}, "worker 1 runs another job: seed is 1 there and 0 in the chief; start"),
            ({"rule": "Momentum"}, "seed is missing there"),
            ({"rule": "Momentum", "seed": "0", "clip": "None"}, "clip is None there and missing in the chief"),
        ):
            with pytest.raises(LayoutMismatch, match=message):
                client.register(RegisterRequest(worker=1, fingerprint=LAYOUT.fingerprint, job=job))
            with pytest.raises(LayoutMismatch, match=message.replace("worker 1", "the evaluator")):
                client.check_job(job)
        same = {"seed": "0", "rule": "Momentum"}
        client.check_job(same)
        client.close()
        worker = cluster.pool.submit(cluster.work, 0, job=same)
        worker.result(GIVE_UP_S)
        chief.result(GIVE_UP_S)


def test_the_process_that_registers_last_wins(tmp_path: Path) -> None:
    with serving(tmp_path) as cluster:
        chief = cluster.run_chief()
        older = register(cluster, "a")
        assert register(cluster, "b") > older
        with pytest.raises(WorkerSuperseded, match="taken over"):
            cluster.chief._state.coordinator.lease(0, older, 0, 0.0)
        cluster.work(0)
        chief.result(GIVE_UP_S)
