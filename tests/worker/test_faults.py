"""Damaged checkpoints, lost journals and full disks in the middle of a job. One process, real gRPC."""

from __future__ import annotations

import json
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from downpour.proto.errors import JobFailed, LeaseUnknown, NotSaved
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint.storage import Folder
from downpour.ps.service.server import ShardServer
from downpour.worker.chief import chief as chiefs
from downpour.worker.chief.chief import Chief
from downpour.worker.exchange.exchange import Parameters
from tests.conftest import SmallDisk, wait_until
from tests.worker.test_job import GIVE_UP_S, Cluster, Killed, Result, serving, toward_one


class Gate:
    """A step that waits at a version until it is opened."""

    def __init__(self, version: int) -> None:
        self._version = version
        self.open = threading.Event()
        self.reached = threading.Event()

    def __call__(self, parameters: Parameters, images: Any, labels: Any) -> Result:
        if max(parameters.versions) >= self._version and not self.open.is_set():
            self.reached.set()
            self.open.wait(GIVE_UP_S)
        return toward_one(parameters, images, labels)


def work(cluster: Cluster, gate: Gate) -> Future[None]:
    return cluster.pool.submit(cluster.work, 0, gate, overlap=False)


def complete(cluster: Cluster) -> list[str]:
    return checkpoint.complete(Folder(cluster.run_dir / "checkpoints"))


def spoil(cluster: Cluster, name: str, shard: int) -> None:
    path = cluster.run_dir / "checkpoints" / name / f"shard-{shard:05d}-of-00003.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def lose_memory(cluster: Cluster, shard: int) -> None:
    """The shard's process ends with its memory, and another one takes its place."""
    port = cluster.servers[shard].port
    cluster.servers[shard].stop(0)
    cluster.servers[shard] = ShardServer(shard, port=port)


class Slow:
    """Three gates in a row, so that checkpoints are written at two of them."""

    def __init__(self, *versions: int) -> None:
        self.gates = [Gate(version) for version in versions]

    def __call__(self, parameters: Parameters, images: Any, labels: Any) -> Result:
        for gate in self.gates:
            gate(parameters, images, labels)
        return toward_one(parameters, images, labels)


def three_checkpoints(cluster: Cluster) -> tuple[Future[Any], Future[None], Gate]:
    """A job that waits at version 27; checkpoints are there of steps from 10, and from 20, on."""
    slow = Slow(10, 20, 27)
    chief, worker = cluster.run_chief(), cluster.pool.submit(cluster.work, 0, slow, overlap=False, num_steps=40)
    for number, gate in enumerate(slow.gates[:2], 1):
        assert gate.reached.wait(GIVE_UP_S)
        wait_until(lambda number=number: len(complete(cluster)) == number, "a checkpoint")  # type: ignore[misc]
        gate.open.set()
    assert slow.gates[2].reached.wait(GIVE_UP_S)
    return chief, worker, slow.gates[2]


def test_a_lost_shard_comes_back_from_the_checkpoint_before_a_damaged_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(tmp_path) as cluster:
        chief, worker, gate = three_checkpoints(cluster)
        before, damaged = complete(cluster)
        spoil(cluster, damaged, 1)
        lose_memory(cluster, 1)
        version = checkpoint.load(tmp_path / "checkpoints" / before).shards[1].version
        wait_until(lambda: f"shard 1 lost its memory: back at version {version}" in caplog.text, "its return")
        assert complete(cluster) == [before], "the damaged one is offered to nobody"
        offered = cluster.chief._state.journal_state.checkpoint
        assert offered is not None and offered.directory.endswith(before)
        gate.open.set()
        worker.result(GIVE_UP_S)
        summary = chief.result(GIVE_UP_S)
        assert summary["updates_lost"] == {"1": 27 - version}
        said = [r.getMessage() for r in caplog.records if "damaged" in r.getMessage()]
        assert len(said) == 1 and f"{damaged}/shard-00001-of-00003.safetensors is damaged" in said[0]


def test_damage_in_another_shards_file_costs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(tmp_path) as cluster:
        chief, worker, gate = three_checkpoints(cluster)
        newest = complete(cluster)[-1]
        spoil(cluster, newest, 2)
        lose_memory(cluster, 0)
        wait_until(lambda: f"from {tmp_path}/checkpoints/{newest}" in caplog.text, "its return")
        gate.open.set()
        worker.result(GIVE_UP_S)
        assert list(chief.result(GIVE_UP_S)["updates_lost"]) == ["0"]


def test_where_all_are_damaged_the_job_ends_with_one_sentence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(tmp_path) as cluster:
        chief, _, _ = three_checkpoints(cluster)
        for name in complete(cluster):
            spoil(cluster, name, 1)
        lose_memory(cluster, 1)
        with pytest.raises(JobFailed, match=r"a shard has lost its memory, and no checkpoint in .* all 2 are damaged"):
            chief.result(GIVE_UP_S)
        assert not [r for r in caplog.records if "shards cannot be restored" in r.getMessage()]


JOURNALS = {
    "missing": None,
    "cut off": lambda text: text[: len(text) // 2],
    "another shape": lambda text: json.dumps(json.loads(text) | {"coordinator": {"leases": [3]}}),
}


@pytest.mark.parametrize("change", JOURNALS)
def test_a_chief_without_its_journal_goes_on_from_the_shards_and_the_newest_checkpoint(
    tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(tmp_path, num_workers=1, num_steps=40) as cluster:
        killed, worker, gate = three_checkpoints(cluster)
        saved = checkpoint.load(tmp_path / "checkpoints" / complete(cluster)[-1])
        first = cluster.chief
        wait_until(
            lambda: first._state.coordinator.reports.total(lambda r: r.pushes_acknowledged) >= 26, "the worker's report"
        )
        kill(first, killed)
        path, spoilt = tmp_path / "journal.json", JOURNALS[change]
        path.unlink() if spoilt is None else path.write_text(spoilt(path.read_text()))
        cluster.chief = Chief(first._settings, tmp_path, host="127.0.0.1", port=first.port)
        chief = cluster.run_chief()
        wait_until(lambda: "there is no journal of this job" in caplog.text, "the new chief")
        gate.open.set()
        with pytest.raises(LeaseUnknown, match="so this worker must restart as well"):
            worker.result(GIVE_UP_S)
        cluster.work(0, overlap=False, num_steps=40)
        summary = chief.result(GIVE_UP_S)
        assert summary["global_steps"] >= 40
        assert summary["pushes_acknowledged"] == summary["pushes_applied_min"] == summary["pushes_applied_max"]
        since = 8 * (27 - saved.shards[0].pushes)
        assert (
            since <= summary["records_repeated"] <= since + 2 * 80 + 8 * 3
        ), (  # a lease of fast steps has up to 80 here
            "those since then, and two leases at most"
        )
        assert summary["updates_lost"] == {}


def kill(chief: Chief, run: Future[Any]) -> None:
    """Ends a chief in the middle: shards, workers and files stay as they are."""

    def killed(number: int) -> None:
        raise Killed

    chief.server.stop(None).wait()
    chief._ending.set()
    chief._folder.close()  # a process that dies lets go of its lock
    chief._folder.journal.commit = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        run.result(GIVE_UP_S)


def test_the_last_checkpoint_is_tried_again_and_then_left_to_the_next_chief(
    small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The disk of the checkpoints is full; the shards keep the parameters until there is room."""
    monkeypatch.setattr(chiefs, "_INSIST_S", 2.0)
    with serving(tmp_path, checkpoint_dir=str(small_disk.path / "checkpoints"), checkpoint_every_steps=20) as cluster:
        gate = Gate(25)
        chief, worker = cluster.run_chief(), work(cluster, gate)
        assert gate.reached.wait(GIVE_UP_S)
        folder = Folder(small_disk.path / "checkpoints")
        wait_until(lambda: bool(checkpoint.complete(folder)), "a checkpoint")
        before = folder.names()
        small_disk.fill()
        gate.open.set()
        worker.result(GIVE_UP_S)
        with pytest.raises(NotSaved, match=r"the last checkpoint, of step 30, cannot be written: shard \d: .*No space"):
            chief.result(GIVE_UP_S)
        assert folder.names() == before == checkpoint.complete(folder), "nothing torn stays"
        small_disk.make_room()
        first = cluster.chief
        first.close()
        cluster.chief = Chief(first._settings, tmp_path, host="127.0.0.1", port=0)
        summary = cluster.run_chief().result(GIVE_UP_S)
        assert summary["global_steps"] == summary["pushes_acknowledged"] == 30
        assert [name[-2:] for name in checkpoint.complete(folder)][-1] == "30"


def test_the_last_checkpoint_is_written_when_room_is_made_in_time(small_disk: SmallDisk, tmp_path: Path) -> None:
    with serving(tmp_path, checkpoint_dir=str(small_disk.path / "checkpoints"), checkpoint_every_steps=90) as cluster:
        gate = Gate(25)
        chief, worker = cluster.run_chief(), work(cluster, gate)
        assert gate.reached.wait(GIVE_UP_S)
        small_disk.fill()
        gate.open.set()
        worker.result(GIVE_UP_S)
        small_disk.make_room()
        assert chief.result(GIVE_UP_S)["global_steps"] == 30


def test_training_goes_on_while_the_run_folder_is_full(
    small_disk: SmallDisk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(small_disk.path, checkpoint_dir=str(tmp_path / "checkpoints")) as cluster:
        gate = Gate(10)
        chief, worker = cluster.run_chief(), work(cluster, gate)
        assert gate.reached.wait(GIVE_UP_S)
        small_disk.fill()
        wait_until(lambda: "journal.json cannot be written" in caplog.text, "the warning")
        gate.open.set()
        worker.result(GIVE_UP_S)
        wait_until(lambda: "the summary cannot be written" in caplog.text, "the end")
        small_disk.make_room()
        assert chief.result(GIVE_UP_S)["pushes_acknowledged"] == 30
        assert caplog.text.count("journal.json cannot be written") == 1


def test_a_summary_that_cannot_be_written_is_one_sentence(
    small_disk: SmallDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chiefs, "_INSIST_S", 1.0)
    with serving(small_disk.path, checkpoint_dir=str(tmp_path / "checkpoints")) as cluster:
        gate = Gate(10)
        chief, worker = cluster.run_chief(), work(cluster, gate)
        assert gate.reached.wait(GIVE_UP_S)
        small_disk.fill()
        gate.open.set()
        worker.result(GIVE_UP_S)
        with pytest.raises(
            JobFailed,
            match=r"training is over, but the summary cannot be written: .*No space left.*the parameters are in",
        ):
            chief.result(GIVE_UP_S)
        assert Folder(tmp_path / "checkpoints").names()
