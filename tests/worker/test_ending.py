"""How a job ends for its shards, and what becomes of workers that come late, leave or are too many. One process."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from downpour.proto import codec
from downpour.proto.chief_pb2 import ProgressReply, RegisterRequest, Score, WorkerReport
from downpour.proto.errors import JobFailed, LayoutMismatch, TooManyWorkers
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint.storage import Folder
from downpour.ps.layout import Variable, lay_out
from downpour.ps.policy.pace import Bounded
from downpour.ps.service.server import ShardServer
from downpour.worker.exchange.clients import ChiefClient, ShardClient
from downpour.worker.exchange.exchange import Exchanger, Parameters
from downpour.worker.loop import train
from downpour.worker.reporter import Reporter
from tests.conftest import wait_until
from tests.worker.test_job import GIVE_UP_S, LAYOUT, Cluster, FakeBatches, Result, serving, toward_one


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with serving(tmp_path) as cluster:
        yield cluster


@contextlib.contextmanager
def asking(cluster: Cluster) -> Iterator[ChiefClient]:
    client = ChiefClient(f"127.0.0.1:{cluster.chief.port}", GIVE_UP_S)
    try:
        yield client
    finally:
        client.close()


def ends(server: ShardServer) -> threading.Thread:
    """A thread that waits for the server's end, as the process of a shard does."""
    thread = threading.Thread(target=server.wait, daemon=True)
    thread.start()
    return thread


def run_and_stop(cluster: Cluster) -> Future[dict[str, Any]]:
    values = [np.zeros(v.shape, np.float32) for v in LAYOUT.variables]
    return cluster.pool.submit(
        cluster.chief.run, LAYOUT, cluster.addresses, lambda: values, GIVE_UP_S, stop_shards=True
    )


def hello(worker: int) -> RegisterRequest:
    return RegisterRequest(worker=worker, fingerprint=LAYOUT.fingerprint)


def test_shards_end_when_the_job_is_done(cluster: Cluster) -> None:
    ended = [ends(server) for server in cluster.servers]
    chief = run_and_stop(cluster)
    cluster.work(0)
    chief.result(GIVE_UP_S)
    for thread in ended:
        thread.join(GIVE_UP_S)
        assert not thread.is_alive()
    assert (cluster.run_dir / "summary.json").exists()


def test_shards_end_when_the_job_has_failed(cluster: Cluster) -> None:
    def breaks(parameters: Parameters, images: Any, labels: Any) -> Result:
        return replace(toward_one(parameters, images, labels), loss=math.nan)

    ended = [ends(server) for server in cluster.servers]
    chief = run_and_stop(cluster)
    with pytest.raises(JobFailed):
        cluster.work(0, step=breaks)
    with pytest.raises(JobFailed):
        chief.result(GIVE_UP_S)
    for thread in ended:
        thread.join(GIVE_UP_S)
        assert not thread.is_alive()


def test_without_being_asked_to_a_chief_lets_the_shards_serve(cluster: Cluster) -> None:
    chief = cluster.run_chief()
    cluster.work(0)
    chief.result(GIVE_UP_S)
    client = ShardClient(0, cluster.addresses[0], LAYOUT, GIVE_UP_S)
    assert client.status().ready
    client.close()


def test_a_shard_is_stopped_by_its_own_job_only_unless_it_holds_nothing(cluster: Cluster) -> None:
    other = lay_out([Variable("w", (3,))], 1)
    chief = cluster.run_chief()
    cluster.work(0)
    chief.result(GIVE_UP_S)
    client = ShardClient(0, cluster.addresses[0], other, GIVE_UP_S)
    with pytest.raises(LayoutMismatch, match="shard 0 holds layout"):
        client.stop(GIVE_UP_S)
    assert client.status().ready
    client.close()
    with ShardServer(0) as empty:
        client = ShardClient(0, f"127.0.0.1:{empty.port}", other, GIVE_UP_S)
        client.stop(GIVE_UP_S)
        empty.wait()
        client.close()


def test_a_worker_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path, max_workers=3) as cluster, asking(cluster) as client:
        chief = cluster.run_chief()
        client.register(hello(2))
        with pytest.raises(TooManyWorkers, match=r"job takes 3 workers; .* 0 to 2, .* --set=cluster.max_workers=4"):
            client.register(hello(3))
        client.report(WorkerReport(worker=2, incarnation=1, finished=True))
        cluster.work(0)
        chief.result(GIVE_UP_S)


def test_a_worker_that_comes_when_training_is_over_is_told_so_and_does_nothing(cluster: Cluster) -> None:
    with asking(cluster) as client:
        chief = cluster.run_chief()
        client.next_checkpoint(-1)  # an evaluator, whose last score the chief waits for
        cluster.work(0)
        wait_until(lambda: client.progress().state == ProgressReply.STATE_SCORING, "the end of training")
        assert client.register(hello(1)).stop
        pushes = [ShardClient(i, a, LAYOUT, GIVE_UP_S).status().pushes for i, a in enumerate(cluster.addresses)]
        cluster.work(1, num_steps=1000)
        wait_until(lambda: client.next_checkpoint(-1).last, "the last checkpoint")
        client.report_score(Score(step=client.next_checkpoint(-1).step))
        summary = chief.result(GIVE_UP_S)
        assert summary["pushes_applied_max"] == max(pushes), "the late one has pushed nothing"


def test_the_chief_waits_for_an_evaluator_that_is_to_come(tmp_path: Path) -> None:
    with serving(tmp_path, expects_evaluator=True) as cluster, asking(cluster) as client:
        chief = cluster.run_chief()
        cluster.work(0)
        wait_until(lambda: client.progress().state == ProgressReply.STATE_SCORING, "the end of training")
        with pytest.raises(TimeoutError):
            chief.result(2.0)
        wait_until(lambda: client.next_checkpoint(-1).last, "the last checkpoint")
        client.report_score(Score(step=client.next_checkpoint(-1).step, metrics={"map_at_100": 0.5}))
        assert chief.result(GIVE_UP_S)["map_at_100"] == 0.5


def test_a_shard_that_leaves_gets_a_checkpoint_of_that_moment(tmp_path: Path) -> None:
    gate = threading.Event()

    def slow(parameters: Parameters, images: Any, labels: Any) -> Result:
        if max(parameters.versions) >= 5:
            gate.wait(GIVE_UP_S)
        return toward_one(parameters, images, labels)

    with serving(tmp_path, checkpoint_every_steps=1000) as cluster, asking(cluster) as client:
        chief = cluster.run_chief()
        worker = cluster.pool.submit(cluster.work, 0, step=slow, overlap=False)
        shard = ShardClient(1, cluster.addresses[1], LAYOUT, GIVE_UP_S)
        wait_until(lambda: shard.status().version >= 5, "the steps before the gate")
        assert not client.leaving(1, 7, 5.0), "answered before it is written"
        wait_until(lambda: client.leaving(1, 7, 5.0), "the checkpoint")
        (name,) = checkpoint.complete(Folder(tmp_path / "checkpoints"))
        saved = checkpoint.load(tmp_path / "checkpoints" / name)
        assert [file.version for file in saved.shards] == [5, 5, 5] and saved.step == 5
        assert client.leaving(1, 7, 5.0)
        assert not client.leaving(0, 8, 5.0)
        wait_until(lambda: client.leaving(0, 8, 5.0), "the next shard's checkpoint")
        assert checkpoint.complete(Folder(tmp_path / "checkpoints")) == [name], "nothing has changed since"
        gate.set()
        worker.result(GIVE_UP_S)
        chief.result(GIVE_UP_S)
        assert client.leaving(2, 9, 5.0), "the last checkpoint is written"
        shard.close()


def test_a_worker_that_leaves_waits_for_its_push_and_for_nobody(tmp_path: Path) -> None:
    """Under a pace, a leading worker's pull waits for the others; they are released as soon as it has said good-bye."""
    with serving(tmp_path, pace=Bounded(1), lease_s=60, num_workers=2) as cluster, asking(cluster) as client:
        chief = cluster.run_chief()
        leaving: Future[None] = Future()
        reporter = Reporter(client, 0, LAYOUT.fingerprint)
        exchange = Exchanger(
            cluster.addresses, LAYOUT, wire=codec.BFLOAT16, worker=0, incarnation=reporter.incarnation,
            give_up_after_s=GIVE_UP_S,
        )  # fmt: skip
        exchange.connect()
        batches: Any = FakeBatches(reporter.leases())
        loop = cluster.pool.submit(
            train, toward_one, exchange, batches, reporter, num_steps=30, overlap=False, leaving=leaving
        )
        shard = ShardClient(0, cluster.addresses[0], LAYOUT, GIVE_UP_S)
        wait_until(lambda: shard.status().pushes >= 2, "the pushes that it may make")
        assert not loop.done(), "worker 1 has not come, and it may not lead by more"
        leaving.set_result(None)
        loop.result(3.0)
        assert reporter.leave(5.0)
        pushes = shard.status().pushes
        assert cluster.chief._state.coordinator.reports.total(lambda r: r.pushes_acknowledged) == pushes
        begin = time.monotonic()
        cluster.work(1, overlap=False)
        assert time.monotonic() - begin < 30, "nobody waited for its lease to run out"
        summary = chief.result(GIVE_UP_S)
        assert summary["pushes_acknowledged"] == summary["pushes_applied_min"] == summary["pushes_applied_max"]
        assert summary["epochs"] * 160 == pytest.approx(8 * summary["pushes_acknowledged"], abs=0.01)
        assert summary["records_repeated"] > 0
        shard.close()
        exchange.close()


def test_a_report_that_was_overtaken_does_not_bring_a_worker_back(cluster: Cluster) -> None:
    coordinator = cluster.chief._state.coordinator
    coordinator.report(WorkerReport(worker=0, incarnation=1, steps=3, finished=True), 1.0)
    coordinator.report(WorkerReport(worker=0, incarnation=1, steps=2), 1.1)
    assert coordinator.members.all_gone(1.2) and coordinator.reports.total(lambda r: r.steps) == 3
