"""A whole job over real gRPC in one process: shards, chief and workers in threads, a step made of numpy."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from downpour.model.data.order import Counted, Lease
from downpour.model.vision.records import RecordCounts
from downpour.proto import codec
from downpour.proto.chief_pb2 import ProgressReply, RegisterRequest
from downpour.proto.errors import DownpourError, JobFailed, LayoutMismatch, Unreachable, WorkerSuperseded
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.layout import STATISTIC, Layout, Slicing, Variable, lay_out
from downpour.ps.policy.pace import Async, Bounded, Sync
from downpour.ps.policy.rules import Momentum
from downpour.ps.policy.schedules import Constant
from downpour.ps.policy.staleness import Keep
from downpour.ps.service.server import ShardServer
from downpour.worker.chief import chief as chief_module
from downpour.worker.chief import watch
from downpour.worker.chief.chief import Chief, JobSettings
from downpour.worker.exchange.clients import ChiefClient
from downpour.worker.exchange.exchange import Exchanger, Gradients, Parameters
from downpour.worker.loop import train
from downpour.worker.norms import StepNorms
from downpour.worker.reporter import Reporter

LAYOUT = lay_out([Variable("w", (40, 9)), Variable("head/kernel", (9, 7)), Variable("m", (5,), STATISTIC)], 3,
              [Slicing("head/*", 5)])  # fmt: skip
GIVE_UP_S = 20.0


@dataclass(frozen=True)
class Result:
    """What `downpour.worker.step.step.StepResult` offers."""

    loss: float
    gradients: Gradients
    gradient_norm: float = 1.0
    loss_scale: float | None = None
    norms: dict[int, float] = field(default_factory=dict)

    def gradient_norms(self) -> dict[int, float]:
        return self.norms

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss)


def toward_one(parameters: Parameters, images: Any, labels: Any) -> Result:
    """Gradient of |w - 1|^2 / 2, and statistics that move by one a step; bfloat16 as bits."""
    trained = [(bits.astype(np.uint32) << 16).view(np.float32) - 1 for bits in parameters.trained]
    bits = [(g.view(np.uint32) >> 16).astype(np.uint16) for g in trained]
    moves = [np.ones_like(s) for s in parameters.statistics]
    loss = sum(float(np.square(g).sum()) for g in trained)
    return Result(loss, Gradients(bits, moves, list(parameters.versions)))


class FakeBatches:
    """Empty batches of 8 records each, of a worker's leases."""

    counts = RecordCounts()

    def __init__(self, leases: Iterator[Lease]) -> None:
        self.position = 0
        self._positions = (position for lease in leases for position in range(lease.start, lease.stop))

    def __next__(self) -> tuple[list[int], None]:
        batch = [next(self._positions) for _ in range(8)]
        self.position += len(batch)
        return batch, None


@dataclass
class Cluster:
    """Three shards and a chief that serve; the chief's `run` is a future."""

    servers: list[ShardServer]
    chief: Chief
    pool: ThreadPoolExecutor
    run_dir: Path

    @property
    def addresses(self) -> list[str]:
        return [f"127.0.0.1:{server.port}" for server in self.servers]

    def run_chief(self, addresses: list[str] | None = None) -> Any:
        values = [np.zeros(v.shape, np.float32) for v in LAYOUT.variables]
        return self.pool.submit(self.chief.run, LAYOUT, addresses or self.addresses, lambda: values, GIVE_UP_S)

    def work(
        self, index: int, step: Callable[..., Any] = toward_one, *, layout: Layout = LAYOUT,
        overlap: bool = True, num_steps: int = 30, job: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        client = ChiefClient(f"127.0.0.1:{self.chief.port}", GIVE_UP_S)
        reporter = Reporter(client, index, layout.fingerprint, job, self.chief._settings.epochs)
        exchange = Exchanger(
            self.addresses,
            layout,
            wire=codec.BFLOAT16,
            worker=index,
            incarnation=reporter.incarnation,
            give_up_after_s=GIVE_UP_S,
            job_id=reporter.job_id,
            tracer=reporter.tracer,
        )
        try:
            exchange.connect()
            failure = ""
            try:
                batches: Any = FakeBatches(reporter.leases())
                given: Any = {"num_steps": num_steps, "overlap": overlap, "tracer": reporter.tracer}
                given["norms"] = StepNorms(layout)
                train(step, exchange, batches, reporter, **given)
            except JobFailed as error:
                failure = str(error)
                raise
            except Killed:
                reporter.finish = lambda failure: reporter._ending.set()  # type: ignore[method-assign]
                raise
            finally:
                reporter.finish(failure)
        finally:
            exchange.close()
            client.close()


class Killed(Exception):
    """Stands for SIGKILL: the worker falls silent without a last report."""


def plan_in(folder: Path) -> JobSettings:
    """A plan of two workers."""
    return JobSettings(
        recipe="test", rule=Momentum(0.5), schedule=Constant(0.05), pace=Async(),
        treatment=Keep(), num_workers=2, lease_s=30, num_steps=30,
        checkpoint_every_steps=10, max_train_s=math.inf, num_records=160, lease_records=20, facts={},
        checkpoint_dir=str(folder / "checkpoints"),
    )  # fmt: skip


@contextlib.contextmanager
def serving(folder: Path, **changes: Any) -> Iterator[Cluster]:
    """Three shards and a chief of two workers, whose plan has some changes."""
    servers = [ShardServer(index) for index in range(3)]
    job = plan_in(folder)
    chief = Chief(replace(job, **changes), folder, host="127.0.0.1", port=0)
    pool = ThreadPoolExecutor(8)
    try:
        yield Cluster(servers, chief, pool, folder)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # after a failed test, the chief may still wait for workers
        chief.close()
        for server in servers:
            server.stop(0)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with serving(tmp_path) as cluster:
        yield cluster


@pytest.mark.parametrize("pace", [Bounded(1), Sync(2)], ids=["bounded", "sync"])
def test_a_worker_that_never_comes_or_dies_holds_others_up_for_a_lease_only(tmp_path: Path, pace: Any) -> None:
    def dies(parameters: Parameters, images: Any, labels: Any) -> Result:
        if max(parameters.versions) >= 5:
            raise Killed
        return toward_one(parameters, images, labels)

    with serving(tmp_path, pace=pace, lease_s=2, num_workers=3) as cluster:
        chief = cluster.run_chief()
        overlap = isinstance(pace, Bounded)
        living = cluster.pool.submit(cluster.work, 0, overlap=overlap)
        with pytest.raises(Killed):
            cluster.work(1, step=dies, overlap=overlap)
        living.result(GIVE_UP_S)
        summary = chief.result(GIVE_UP_S)
        assert summary["global_steps"] >= 30
        assert summary["records_repeated"] > 0, "what the dead one held was given to the other"


@pytest.mark.parametrize("overlap", [True, False])
def test_two_workers_train_and_every_acknowledged_push_is_applied(cluster: Cluster, overlap: bool) -> None:
    chief = cluster.run_chief()
    workers = [cluster.pool.submit(cluster.work, index, overlap=overlap) for index in range(2)]
    for worker in workers:
        worker.result()
    summary = chief.result()
    assert summary == json.loads((cluster.run_dir / "summary.json").read_text())
    assert summary["pushes_acknowledged"] == summary["pushes_applied_min"] == summary["pushes_applied_max"]
    assert 30 <= summary["global_steps"] <= 30 + 2 * (1 + overlap)
    assert summary["num_ps"] == 3 and summary["failure"] == ""
    assert summary["epochs"] * 160 == pytest.approx(8 * summary["pushes_acknowledged"], abs=0.01)
    assert summary["records_repeated"] == 0
    for report in cluster.chief._state.coordinator.reports._newest.values():
        assert len(report.versions) == 3 and max(report.versions) == report.version
    saved = checkpoint.load(max((cluster.run_dir / "checkpoints").iterdir()))
    w, head, m = LAYOUT.gather(saved.parameters())
    assert abs(w - 1).max() < 0.5 and abs(head - 1).max() < 0.5
    assert (m == summary["global_steps"]).all(), "each push moved each statistic by one"


def test_workers_are_let_in_one_after_another_and_begin_with_fresh_parameters(tmp_path: Path) -> None:
    begun: dict[int, int] = {}  # worker -> version of the parameters of its first step

    with serving(tmp_path, pace=Async(4), num_workers=7, num_steps=100) as cluster:
        slots = threading.local()

        def step(parameters: Parameters, images: Any, labels: Any) -> Result:
            begun.setdefault(slots.index, min(parameters.versions))
            time.sleep(0.05)
            return toward_one(parameters, images, labels)

        def work(index: int) -> None:
            slots.index = index
            cluster.work(index, step=step, overlap=False, num_steps=100)

        chief = cluster.run_chief()
        with ThreadPoolExecutor(7) as pool:
            for worker in [pool.submit(work, index) for index in range(7)]:
                worker.result()
        summary = chief.result()
    assert len(begun) == 7 and summary["failure"] == ""
    assert all(version >= due for version, due in zip(sorted(begun.values())[-3:], (4, 8, 12), strict=True)), begun
    assert summary["pushes_acknowledged"] == summary["pushes_applied_min"] == summary["pushes_applied_max"]
    assert summary["records_repeated"] == 0


def test_waiting_for_a_slow_source_is_the_input_of_a_step(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    given = FakeBatches.__next__
    monkeypatch.setattr(FakeBatches, "__next__", lambda self: time.sleep(0.05) or given(self))
    chief = cluster.run_chief()
    for worker in [cluster.pool.submit(cluster.work, index) for index in range(2)]:
        worker.result()
    parts = chief.result()["seconds_per_step"]
    assert 0.03 < parts["input"] < 0.3 and parts["input"] == max(parts.values()), parts


def test_a_worker_that_comes_before_the_chief_has_its_model_waits(cluster: Cluster) -> None:
    client = ChiefClient(f"127.0.0.1:{cluster.chief.port}", GIVE_UP_S)
    hello = RegisterRequest(worker=0, fingerprint=LAYOUT.fingerprint, process="a")
    registered = cluster.pool.submit(client.register, hello)
    assert client.progress().state == ProgressReply.STATE_PREPARING
    assert not registered.done()
    chief = cluster.run_chief()
    assert registered.result().incarnation == 1 == client.register(hello).incarnation, "the reply may be lost"
    assert client.lease(0, 1, 0) == client.lease(0, 1, 0) == Lease(0, 0, 20), "asked twice, since a reply may be lost"
    cluster.work(0)
    chief.result()
    client.close()


def test_a_new_run_in_the_folder_of_an_old_one_starts_afresh_if_it_may_overwrite(tmp_path: Path) -> None:
    left = tmp_path / "checkpoints" / "step-0000009999"
    left.mkdir(parents=True)
    (tmp_path / "history.jsonl").write_text("left by an earlier run\n")
    with serving(tmp_path) as cluster, pytest.raises(ValueError, match="holds another run: 1 checkpoints in"):
        cluster.run_chief().result()
    assert left.exists()
    with serving(tmp_path, overwrite=True) as cluster:
        chief = cluster.run_chief()
        cluster.work(0)
        chief.result()
    assert not left.exists()
    assert list((tmp_path / "checkpoints").iterdir())
    history = tmp_path / "history.jsonl"
    assert not history.exists() or "earlier run" not in history.read_text()


def test_own_gradient_is_one_step_stale_with_overlap_and_fresh_without(cluster: Cluster) -> None:
    chief = cluster.run_chief()
    cluster.work(0, overlap=True, num_steps=15)
    cluster.work(0, overlap=False, num_steps=30)
    summary = chief.result()
    assert 0.4 < summary["staleness_mean"] < 0.6
    by_cause = summary["staleness_by_cause"]
    assert by_cause == {"own_push": summary["staleness_mean"], "others_before_step": 0, "others_during_step": 0}
    assert 14 <= summary["exchanges_ahead"] <= 16 and summary["seconds_per_step"]["wait"] > 0


def test_a_loss_that_is_not_finite_ends_the_job_and_keeps_the_state_before(cluster: Cluster) -> None:
    def breaks(parameters: Parameters, images: Any, labels: Any) -> Result:
        result = toward_one(parameters, images, labels)
        return replace(result, loss=math.nan) if max(parameters.versions) >= 9 else result

    chief = cluster.run_chief()
    good = cluster.pool.submit(cluster.work, 0)
    with pytest.raises(JobFailed, match=r"loss nan .* at step"):
        cluster.work(1, step=breaks)
    with pytest.raises(JobFailed, match=r"worker 1: loss nan .* at step \d+ are not finite.*checkpoints"):
        chief.result()
    good.result()
    saved = checkpoint.load(max((cluster.run_dir / "checkpoints").iterdir()))
    assert saved.step >= 9
    assert all(np.isfinite(vector).all() for vector in saved.parameters())


def test_a_step_that_overflows_is_skipped_and_counted(cluster: Cluster) -> None:
    calls = itertools.count()

    def overflows(parameters: Parameters, images: Any, labels: Any) -> Result:
        result = toward_one(parameters, images, labels)
        return replace(result, loss=math.inf, loss_scale=8.0) if next(calls) % 4 == 1 else result

    chief = cluster.run_chief()
    cluster.work(0, step=overflows)
    summary = chief.result(GIVE_UP_S)
    assert summary["steps_skipped"] >= 10 and summary["failure"] == ""
    assert summary["pushes_acknowledged"] == summary["pushes_applied_min"] >= 30
    assert math.isfinite(summary["loss"])


def test_a_step_that_overflows_with_the_least_scale_ends_the_job(cluster: Cluster) -> None:
    scales = (2.0**-n for n in itertools.count())

    def diverged(parameters: Parameters, images: Any, labels: Any) -> Result:
        return replace(toward_one(parameters, images, labels), loss=math.nan, loss_scale=next(scales))

    chief = cluster.run_chief()
    with pytest.raises(JobFailed, match=r"loss nan .*with a loss scale of only 6.1e-05; .*mixed_bfloat16"):
        cluster.work(0, step=diverged)
    with pytest.raises(JobFailed, match="worker 0: loss nan"):
        chief.result(GIVE_UP_S)


def test_two_workers_with_one_index_the_older_ends(cluster: Cluster) -> None:
    chief = cluster.run_chief()
    newer_begins = threading.Event()

    def slow(parameters: Parameters, images: Any, labels: Any) -> Result:
        newer_begins.wait(GIVE_UP_S)
        return toward_one(parameters, images, labels)

    older = cluster.pool.submit(cluster.work, 0, slow)
    while not cluster.chief._state.coordinator.members._workers:  # the older one must register first
        assert not older.done()
    newer = cluster.pool.submit(cluster.work, 0)
    newer.result()
    newer_begins.set()
    with pytest.raises(WorkerSuperseded, match=r"two workers run with --index=0|give every running worker its own"):
        older.result()
    assert chief.result()["pushes_acknowledged"] >= 30


def test_a_worker_with_another_layout_is_refused(cluster: Cluster) -> None:
    chief = cluster.run_chief()
    other = lay_out([replace(LAYOUT.variables[0], shape=(40, 8)), *LAYOUT.variables[1:]], 3, [Slicing("head/*", 5)])
    with pytest.raises(LayoutMismatch) as caught:
        cluster.work(0, layout=other)
    for part in (other.fingerprint.hex()[:16], LAYOUT.fingerprint.hex()[:16]):
        assert part in str(caught.value)
    cluster.work(0)
    chief.result()


def test_addresses_in_another_order_are_refused(cluster: Cluster) -> None:
    with pytest.raises(LayoutMismatch, match="check the order of the addresses"):
        cluster.run_chief(cluster.addresses[::-1]).result()


def test_an_unreachable_shard_is_named_with_its_address_and_the_time(tmp_path: Path) -> None:
    with ShardServer(0) as server:
        address = f"127.0.0.1:{server.port}"
    exchange = Exchanger([address], lay_out([Variable("w", (3,))], 1), wire=codec.FLOAT32, worker=0, incarnation=1,
                        give_up_after_s=1.0)  # fmt: skip
    with pytest.raises(Unreachable, match=rf"shard 0 at {address} did not answer for [12] s"):
        exchange.connect()
    exchange.close()


def test_a_checkpoint_that_cannot_be_written_is_one_clear_error(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is in the way when the job begins; meanwhile a file takes the folder's place."""
    monkeypatch.setattr(chief_module, "_INSIST_S", 0.5)

    def replaces(parameters: Parameters, images: Any, labels: Any) -> Result:
        folder = cluster.run_dir / "checkpoints"
        if not folder.is_file() and max(parameters.versions) >= 25:
            shutil.rmtree(folder, ignore_errors=True)
            folder.write_text("a file where a folder is needed")
        return toward_one(parameters, images, labels)

    chief = cluster.run_chief()
    cluster.work(0, step=replaces)
    with pytest.raises(DownpourError, match=r"shard \d: cannot write"):
        chief.result()


def test_the_chief_logs_its_progress_now_and_then(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_SAY_EVERY_S", 0.0)
    with caplog.at_level("INFO", "absl"):
        chief = cluster.run_chief()
        cluster.work(0)
        chief.result(GIVE_UP_S)
    assert re.search(r"step \d+ of 30, loss \d\S*, \d+\.\d examples/s", caplog.text), caplog.text


def test_a_source_that_goes_beyond_its_leases_is_refused_by_name() -> None:
    leases = Counted(iter([Lease(0, 0, 8), Lease(0, 8, 16)]), "data source Mine")
    with pytest.raises(ValueError, match="data source Mine is at position 4 and has taken leases of 0 positions"):
        leases.check(4)
    next(leases)
    leases.check(8)
    for position in (0, 9):
        with pytest.raises(ValueError, match=r"`training\(leases=\)` must read the records that the leases name"):
            leases.check(position)
