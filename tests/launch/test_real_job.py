"""Whole jobs of real processes: shards, chief, workers and evaluator as `downpour local` starts them."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from downpour.model.data.order import Lease, Order
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.memory.arena import Arena
from downpour.worker.chief.leases import lease_records
from tests.launch import jobs

pytestmark = pytest.mark.process

RESULT_KEYS = {
    *("recipe", "num_ps", "num_workers", "head_slices", "global_steps", "seconds", "examples_per_second"),
    *("map_at_100", "map_at_100_unweighted", "chance", "staleness_mean", "peak_rss_mb"),
    *("pushes_acknowledged", "pushes_applied_min", "pushes_applied_max"),
}

# Worker 1 meets images that are not numbers.
SPOILT = """
from absl import flags


@dataclass(frozen=True)
class Spoilt(GeneratedImages):
    def training(self, *, batch_size, seed, leases):
        good = super().training(batch_size=batch_size, seed=seed, leases=leases)

        def spoil():
            for number, (images, labels) in enumerate(good):
                bad = "index" in flags.FLAGS and flags.FLAGS.index == 1 and number >= 3
                yield (images * np.float32("nan" if bad else 1), labels), good.position

        return Batches(spoil(), good.counts)


def job():
    return tiny(data=Spoilt(image_size=8, num_labels=5, num_heldout=4), num_steps=100_000)
"""

# Workers note the records of every batch, and the positions up to its end, as it is assembled; the pushes that are
# acknowledged are in their logs. `Bounded` lets none run ahead.
NOTED = """
import json
import os
from pathlib import Path

from absl import flags, logging

from downpour.ps.policy.pace import Bounded
from tests.model.data.test_data import number_of


@dataclass(frozen=True)
class Noted(ImageRecords):
    notes: Path = Path()

    def training(self, *, batch_size, seed, leases):
        if "index" not in flags.FLAGS:  # the preflight, before any worker
            return super().training(batch_size=batch_size, seed=seed, leases=leases)
        logging.set_verbosity(logging.DEBUG)
        file = (self.notes / f"worker-{flags.FLAGS.index}-{os.getpid()}.jsonl").open("w", buffering=1)

        def noted():
            for lease in leases:
                print(json.dumps([lease.epoch, lease.start, lease.stop]), file=file)
                yield lease

        batches = super().training(batch_size=batch_size, seed=seed, leases=noted())

        def pass_on():
            for images, labels in batches:
                numbers = [number_of(image) for image in images]
                print(json.dumps({"records": numbers, "position": batches.position}), file=file)
                yield (images, labels), batches.position

        return Batches(pass_on(), batches.counts)
"""

NUM_TRAIN, NUM_STEPS = 240, 150
CUT_OFF, SPOILT_ONE = NUM_TRAIN - 1, 8  # numbers of the two training pictures that cannot be read

StartJob = Callable[..., jobs.LocalJob]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartJob]:
    """`start(more, *arguments)`: a launcher of the tiny recipe with more code at its end; killed after the test."""
    started: list[jobs.LocalJob] = []

    def start(more: str = "", *arguments: str) -> jobs.LocalJob:
        started.append(jobs.LocalJob(jobs.write_recipe(tmp_path, more), tmp_path, *arguments))
        return started[-1]

    yield start
    for job in started:
        job.kill()


def last_checkpoint(run_dir: Path) -> checkpoint.Checkpoint:
    return checkpoint.load(max((run_dir / "checkpoints").iterdir()))


@pytest.fixture(scope="module")
def noted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[jobs.LocalJob]:
    """A job that has ended, with `NOTED`; two records of training and one held out cannot be read."""
    folder = tmp_path_factory.mktemp("noted")
    images = jobs.write_images(folder / "images", NUM_TRAIN, num_heldout=110, spoilt={SPOILT_ONE, 300})
    jobs.cut_off(images / "train-00001.tfrecord")
    more = f"""{NOTED}

def job():
    data = Noted({str(images)!r}, 5, resize=10, crop=8, notes=Path({str(folder)!r}))
    return tiny(data=data, num_steps={NUM_STEPS}, pace=Bounded(2), clip=CLIPPED)
"""
    job = jobs.LocalJob(jobs.write_recipe(folder, more), folder)
    try:
        assert job.end() == 0, job.stderr
        yield job
    finally:
        job.kill()


def test_a_job_runs_to_its_end_and_names_the_few_records_it_skipped(noted: jobs.LocalJob) -> None:
    job, images = noted, noted.run_dir.parent / "images"
    result = job.result()
    assert RESULT_KEYS <= set(result)
    assert (result["recipe"], result["num_ps"], result["num_workers"], result["head_slices"]) == ("tiny", 2, 2, 3)
    most = NUM_STEPS + 4
    assert NUM_STEPS <= result["global_steps"] <= most, "each worker may have two pushes under way when the job is done"
    assert result["ended_by"] == "steps" and "ended " not in job.stdout
    said = (job.run_dir / "logs" / "chief.log").read_text().splitlines()[-1]
    assert said.startswith("[chief] done: ") and said.endswith(f"steps, loss {result['loss']:.4g}, ended by steps")
    assert result["pushes_acknowledged"] == result["pushes_applied_min"] == result["pushes_applied_max"]
    assert result["pushes_applied_max"] == result["global_steps"]
    assert set(result["peak_rss_mb"]) == {"ps", "chief", "worker", "evaluator"}
    assert json.loads((job.run_dir / "summary.json").read_text()) == result
    assert (job.run_dir / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert "Traceback" not in job.stderr
    assert result["records_skipped"] >= 3, "two of training, in each worker that read any, and one held out"
    for place in (
        "train-00000.tfrecord, record 4 (picture 8): ",
        "train-00001.tfrecord, record 119: file cut off at byte",
        "heldout-00000.tfrecord, record 60 (picture 300): ",
    ):
        assert any(f"{images}/{place}" in example for example in result["skipped_examples"]), place
    assert not job.left_behind()


class Notes:
    """What the workers of a finished job with `NOTED` have trained on.

    Args:
        folder: Where they are.
        acknowledged: Acknowledged pushes by worker: of the batches noted, the last one may only have been assembled.

    Attributes:
        records: Numbers of all records they met.
        positions: For each worker, (epoch, position) of its leases up to the end of its last batch.
        open: Those of its leases behind them.
        num_batches: Over all workers.
    """

    def __init__(self, folder: Path, acknowledged: Mapping[str, int]) -> None:
        self.records: list[int] = []
        self.positions: list[list[tuple[int, int]]] = []
        self.open: list[tuple[int, int]] = []
        self.num_batches = 0
        for path in sorted(folder.glob("worker-*.jsonl")):
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            leases = [line for line in lines if isinstance(line, list)]
            assembled = [line for line in lines if isinstance(line, dict)]
            batches = assembled[: acknowledged[path.name.split("-")[1]]]
            assert len(assembled) - len(batches) <= 1, "a batch that was trained on was not pushed"
            given = [(epoch, position) for epoch, start, stop in leases for position in range(start, stop)]
            self.records += [number for batch in batches for number in batch["records"]]
            self.positions.append(given[: batches[-1]["position"]])
            self.open += given[batches[-1]["position"] :]
            self.num_batches += len(batches)


def test_two_workers_train_on_every_record_of_an_epoch_exactly_once(noted: jobs.LocalJob) -> None:
    acknowledged = Counter(re.findall(r"push (\d+)/\d+/\d+ acknowledged", noted.stderr))
    result, notes = noted.result(), Notes(noted.run_dir.parent, acknowledged)
    assert notes.num_batches == result["pushes_acknowledged"], "every batch became an acknowledged push"
    assert len(notes.positions) == 2 and all(len(mine) > 101 for mine in notes.positions), "both took part"
    trained = [place for mine in notes.positions for place in mine]
    granted = sorted(trained + notes.open)
    assert len(granted) == len(set(granted)), "each position was granted to one worker only"
    # A lease that is granted as the job ends may reach no worker; nothing of it is trained on.
    last_epoch, last_position = granted[-1]
    given = [divmod(i, NUM_TRAIN) for i in range(NUM_TRAIN * last_epoch + last_position + 1)]
    unread = sorted(set(given) - set(granted))
    assert len(unread) <= result["num_workers"] * lease_records(NUM_TRAIN, 4, result["num_workers"])
    notes.open += unread
    assert result["records_repeated"] == 0
    assert result["epochs"] == pytest.approx(len(trained) / NUM_TRAIN, abs=1e-4)
    finished = min((epoch for epoch, _ in notes.open), default=int(result["epochs"]))
    assert finished >= 2
    # Files in turn: the first half of the records are the even pictures. The bad ones are met, and are in no batch.
    order = Order(NUM_TRAIN, seed=0)
    pictures = [*range(0, NUM_TRAIN, 2), *range(1, NUM_TRAIN, 2)]
    met = Counter(pictures[order.records(Lease(epoch, at, at + 1))[0]] for epoch, at in trained)
    assert set(met) == set(range(NUM_TRAIN)) and min(met.values()) >= finished
    readable = met.keys() - {SPOILT_ONE, CUT_OFF}
    assert Counter(notes.records) == Counter({number: met[number] for number in readable})


@pytest.mark.slow
def test_a_job_that_ended_by_its_time_says_so_and_trains_on(start: StartJob) -> None:
    job = start("", "--set=num_steps=100000", "--set=max_train_s=3", "--noevaluator")
    assert job.end() == 0, job.stderr
    first = job.result()
    assert first["ended_by"] == "max_train_s"
    step = first["global_steps"]
    words = (
        f"ended after max_train_s, 3 s of training, at step {step} of 100000; the same command with --resume trains on"
    )
    assert words == job.stdout.splitlines()[-2]
    job = start("", f"--set=num_steps={step + 20}", "--set=max_train_s=3", "--noevaluator", "--resume")
    assert job.end() == 0, job.stderr
    assert job.result()["global_steps"] >= step + 20
    assert job.result()["ended_by"] == "steps"


class Ledgers:
    """What the shards of a running job know of worker 0, read from copies of their arenas."""

    def __init__(self, job: jobs.LocalJob) -> None:
        self._arenas = sorted(job.scratch.glob("*/shard-*.arena"))
        assert len(self._arenas) == 2
        job.wait(lambda: all(pushes > 0 for _, pushes in self.read()), "pushes of worker 0")
        self.first = self.read()

    def read(self) -> list[tuple[int, int]]:
        """For each shard, the worker's incarnation and how many of its pushes have been applied."""
        found = []
        for arena in self._arenas:
            copy = Arena.open(Path(shutil.copy(arena, arena.with_suffix(".copy"))))
            assert copy is not None
            entry = copy.ledger[0]
            found.append((int(entry["incarnation"]), int(entry["sequence"]) - (not entry["complete"])))
            copy.close()
        return found

    def replaced(self) -> bool:
        """Whether every shard has pushes of a newer incarnation; until then, notes those of the first one."""
        now = self.read()
        self.first = [new if new[0] == old[0] else old for old, new in zip(self.first, now, strict=True)]
        return all(new[0] > old[0] for old, new in zip(self.first, now, strict=True))


def num_scores(job: jobs.LocalJob) -> int:
    return (job.run_dir / "history.jsonl").read_text().count('"score"')


@pytest.mark.slow
def test_shard_worker_and_evaluator_are_replaced_in_the_middle_of_training(start: StartJob, tmp_path: Path) -> None:
    job, slow = start(jobs.PACED), tmp_path / "slow"
    watcher = jobs.Watcher(job)
    watcher.wait_for_step(50)
    job.role("ps/1").kill()
    job.wait(lambda: "[ps/1] ended with signal SIGKILL; restart 1 of 3" in job.stderr, "the shard's end")
    watcher.wait_for_step(watcher.progress().step + 100)
    slow.touch()

    job.wait(lambda: num_scores(job), "the first score")
    ledgers = Ledgers(job)
    job.role("worker/0").kill()
    job.role("evaluator").kill()
    for name in ("worker/0", "evaluator"):
        notice = f"[{name}] ended with signal SIGKILL; restart 1 of 3"
        job.wait(lambda notice=notice: notice in job.stderr, notice)
    scores = num_scores(job)
    job.wait(ledgers.replaced, "a push of the new worker")
    job.wait(lambda: num_scores(job) > scores, "a score of the new evaluator")
    watcher.assert_training()
    watcher.close()
    slow.unlink()

    assert job.end() == 0, job.stderr
    result = job.result()
    versions = [shard.version for shard in last_checkpoint(job.run_dir).shards]
    assert (result["pushes_applied_min"], result["pushes_applied_max"]) == (min(versions), max(versions))
    killed = [pushes for _, pushes in ledgers.first]
    assert min(killed) > 0 and max(killed) - min(killed) <= 1, "one push of the killed worker was under way"
    # All others are known to the last: every shard applied each of them once, the killed shard too.
    others = {version - pushes for version, pushes in zip(versions, killed, strict=True)}
    assert len(others) == 1, (versions, killed)
    # The killed worker could not report its last ones.
    assert 0 < result["pushes_acknowledged"] - others.pop() <= min(killed)
    assert job.stderr.count("ended with") == 3, "something else ended"
    assert not job.left_behind()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_job_and_keeps_finite_parameters(start: StartJob) -> None:
    job = start(SPOILT, "--set=checkpoint_every_steps=10")
    assert job.end() == 2
    message = r"\[local\] error: worker 1: loss nan and gradient norm nan at step \d+ are not finite; lower "
    assert re.match(message, job.the_error())
    assert str(job.run_dir / "checkpoints") in job.the_error()
    saved = last_checkpoint(job.run_dir)
    assert saved.step > 0
    assert all(np.isfinite(vector).all() for vector in saved.parameters())
    assert not job.left_behind()
