"""A shard process under fuzzing, two real workers beside it, and what must hold all the while.

After every batch of cases, and some of it during one:

- the process is alive, and answers `Status` to a new connection within `shard.ANSWER_S`;
- once the fuzzer's connections have ended, it holds no more descriptors than before the first case, and no more threads
  than its pool may have;
- its resident memory is flat: after the warm-up, a fifth of the time, it grows by at most `_MOST_GROWTH_MB` from batch
  to batch, and never by `_MOST_PEAK_MB` at any moment;
- its log has no traceback, and few lines;
- the workers have gone on, and nothing that they asked for was refused;
- every connection that the fuzzer half closed was ended by the server, and every case that was not changed was answered
  as recorded.

At the end the shard's ledger must have exactly the workers' acknowledged pushes, those of unchanged cases, and what
else the fuzzer's own names got in: mutated pushes of an admitted peer may well be valid. Recorded are the methods
Status, Push, Pull, Initialize, Restore (both answered `kept`) and Absent. `Stop` and `WriteCheckpoint` are left out: an
admitted chief may end the job and write where it likes, and mutated paths do not come to these names by chance.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import psutil

from tests.fuzz import batch
from tests.fuzz.batch import Plan, Player, Report
from tests.fuzz.record import Session
from tests.fuzz.shard import CONTROL_INCARNATION, CONTROLS, NUM_CONTROLS, Books, FuzzedShard
from tests.fuzz.workers import WORKERS, Worker, push_zeros

_BATCH_S, _BATCH_SHARE = 30.0, 0.15  # how long a batch takes, at most, and of the time
_FIRST_BATCH = 200
_MOST_BATCH = 20_000
_WARM_UP = 0.2  # of the time
_MOST_GROWTH_MB, _MOST_PEAK_MB, _FATAL_MB = 32.0, 256.0, 1024.0
_MOST_THREADS = 150  # 128 run calls
_MORE_FILES = 4  # than before the first case: a worker may hold a connection more
_SETTLE_S = 20.0  # longer than any deadline of the server's
_LOG_LINES, _LOG_LINES_A_MINUTE = 100, 10.0
_LOOK_EVERY_S = 0.25
_PIN_S, _PIN_SETTLE_S = 60.0, 1.0
_MOST_FAILURES, _MOST_PINNED = 12, 4


class Fatal(Exception):
    """The campaign cannot go on."""


@dataclass
class Outcome:
    """What a campaign came to.

    Attributes:
        report: Of all cases.
        failures: One line each.
        has_crashed: Whether the process ended by itself, or by a signal when it was told to stop.
        rss_growth_mb: Between warm-up and end.
        most_rss_mb: Seen.
        acknowledged: Pushes of the workers.
        fuzzers_pushes: What else was counted.
        log_lines: Of the shard.
        longest_step_s: Of a worker.
    """

    report: Report = field(default_factory=Report)
    failures: list[str] = field(default_factory=list)
    has_crashed: bool = False
    rss_growth_mb: float = 0.0
    most_rss_mb: float = 0.0
    acknowledged: int = 0
    fuzzers_pushes: int = 0
    log_lines: int = 0
    longest_step_s: float = 0.0


class Campaign:
    """Cases of one seed against one shard.

    Args:
        seed: Of the cases.
        sessions: They are drawn from.
        tls: Whether connections are encrypted.
    """

    def __init__(self, seed: int, sessions: Sequence[Session], tls: bool) -> None:
        self._seed, self._sessions, self._tls = seed, sessions, tls
        self._name = f"{'tls' if tls else 'plain'}, seed {seed}"
        self._outcome = Outcome()
        self._known: set[str] = set()  # failures that were seen before, without numbers
        self._workers: list[Worker] = []
        self._files = self._num_pinned = 0
        self._warm_mb = 0.0

    def describe(self, number: int) -> str:
        """A case and the command that plays it again."""
        mode = "--tls" if self._tls else "--plain"
        case = self._plan(None).case(number).describe()
        return f"case {number} ({case}): python -m tests.fuzz.run {mode} --seed={self._seed} --only={number}"

    def run(self, seconds: float) -> Outcome:
        """Plays cases for so long."""
        with self._shard() as shard, ExitStack() as stack:
            self._workers = [stack.enter_context(Worker(shard, number)) for number in WORKERS]
            _prime(shard)
            self._files = shard.vitals().num_files
            with ProcessPoolExecutor(1, get_context("spawn"), batch.begin, (self._plan(shard),)) as pool:
                try:
                    self._play(shard, pool, seconds)
                except Fatal as error:
                    self._fail(str(error))
                except psutil.NoSuchProcess:  # between two looks
                    self._outcome.has_crashed = True
                    self._fail(f"the shard has ended: {shard.log()[-500:]}")
            stack.close()  # the workers end before the books are read
            self._audit(shard)
        return self._outcome

    def reason_of(self, number: int) -> str:
        """What goes wrong when a case is played alone; empty if nothing does."""
        return self._first_to_fail([number])[1]

    def _plan(self, shard: FuzzedShard | None) -> Plan:
        port, certificates = (shard.port, shard.certificates) if shard else (0, Path() if self._tls else None)
        return Plan(self._seed, self._sessions, port, certificates)

    @contextmanager
    def _shard(self) -> Iterator[FuzzedShard]:
        with tempfile.TemporaryDirectory() as folder, FuzzedShard(Path(folder), self._tls) as shard:
            yield shard

    def _play(self, shard: FuzzedShard, pool: ProcessPoolExecutor, seconds: float) -> None:
        first, size, passed = 0, _FIRST_BATCH, 0.0
        while passed < seconds:
            numbers = range(first, first + size)
            begin = time.monotonic()
            self._play_batch(shard, pool, numbers)
            took_s = time.monotonic() - begin  # to look for the cause of a failure does not count
            passed += took_s
            self._check(shard, numbers, is_warm=passed > _WARM_UP * seconds, minutes=passed / 60)
            if len(self._outcome.failures) >= _MOST_FAILURES:
                raise Fatal("too many failures")
            self._progress(shard, numbers, took_s)
            first += size
            batch_s = min(_BATCH_S, _BATCH_SHARE * seconds, seconds - passed)
            size = max(20, min(_MOST_BATCH, 4 * size, int(size / took_s * batch_s)))

    def _play_batch(self, shard: FuzzedShard, pool: ProcessPoolExecutor, numbers: range) -> None:
        """A process of its own plays, and meanwhile the shard is watched."""
        future = pool.submit(batch.play, numbers)
        while not future.done():
            wait([future], _LOOK_EVERY_S)
            self._watch(shard, numbers)
        try:
            self._outcome.report.add(future.result())
        except BrokenProcessPool:
            raise Fatal("the process of the fuzzer has died") from None

    def _watch(self, shard: FuzzedShard, numbers: range) -> None:
        try:
            rss_mb = shard.vitals().rss_mb
        except psutil.NoSuchProcess:
            rss_mb = 0.0
        if not shard.is_alive:
            self._outcome.has_crashed = True
            raise Fatal(f"the shard has ended: {shard.log()[-500:]}; {self._pinned(numbers)}")
        self._outcome.most_rss_mb = max(self._outcome.most_rss_mb, rss_mb)
        if self._warm_mb and rss_mb > self._warm_mb + _FATAL_MB:
            shard.kill()
            raise Fatal(f"memory: {rss_mb:.0f} MB, {self._warm_mb:.0f} after the warm-up; {self._pinned(numbers)}")

    def _check(self, shard: FuzzedShard, numbers: range, *, is_warm: bool, minutes: float) -> None:
        """What must hold after a batch."""
        for number, reason in self._outcome.report.wrong:
            self._fail(reason, number)
        self._outcome.report.wrong.clear()
        if not shard.answers():
            shard.has_ended(1.0)  # a process that is being killed breaks its connections first
            self._watch(shard, numbers)
            raise Fatal(f"the shard does not answer; {self._pinned(numbers)}")
        for traceback in set(shard.tracebacks()) - self._known:
            self._known.add(traceback)
            self._fail(f"traceback {traceback}; {self._pinned(numbers, traceback)}")
        vitals = shard.settle(self._files + _MORE_FILES, _SETTLE_S)
        if vitals.num_files > self._files + _MORE_FILES:
            self._fail(f"descriptors: {vitals.num_files}, {self._files} before the first case")
        if vitals.num_threads > _MOST_THREADS:
            self._fail(f"threads: {vitals.num_threads}")
        self._check_memory(vitals.rss_mb, is_warm)
        self._outcome.log_lines = shard.log().count("\n")
        if self._outcome.log_lines > _LOG_LINES + _LOG_LINES_A_MINUTE * minutes:
            self._fail(f"log: {self._outcome.log_lines} lines after {minutes:.1f} minutes")
        self._check_workers()

    def _check_memory(self, rss_mb: float, is_warm: bool) -> None:
        if not is_warm or not self._warm_mb:
            self._warm_mb = max(self._warm_mb, rss_mb)
            return
        growth, peak = rss_mb - self._warm_mb, self._outcome.most_rss_mb - self._warm_mb
        self._outcome.rss_growth_mb = growth
        if growth > _MOST_GROWTH_MB or peak > _MOST_PEAK_MB:
            self._fail(
                f"memory: {self._warm_mb:.0f} MB after the warm-up, then {growth:+.0f} MB, at most {peak:+.0f} MB"
            )

    def _check_workers(self) -> None:
        for worker in self._workers:
            if worker.error:
                raise Fatal(f"worker {worker.number} has ended: {worker.error}")
        now = sum(worker.acknowledged for worker in self._workers)
        if now == self._outcome.acknowledged:
            raise Fatal("the workers did not make a step during a batch")
        self._outcome.acknowledged = now
        self._outcome.longest_step_s = max(worker.longest_s for worker in self._workers)

    def _audit(self, shard: FuzzedShard) -> None:
        """Compares what was acknowledged with what the shard has counted."""
        outcome = self._outcome
        outcome.acknowledged = sum(worker.acknowledged for worker in self._workers)
        if not shard.is_alive:
            return
        books = shard.stop()
        if books.exit_code:
            outcome.has_crashed = books.exit_code < 0
            self._fail(f"the shard, told to stop, ended with {books.exit_code}: {shard.log()[-200:]}")
        outcome.fuzzers_pushes = books.pushes - sum(books.of_worker.get(worker, 0) for worker in WORKERS)
        told = {worker.number: worker.acknowledged for worker in self._workers}
        for reason in miscounts(books, told, outcome.report.acknowledged):
            self._fail(f"counts: {reason}")

    def _fail(self, reason: str, number: int | None = None) -> None:
        """Notes a failure, and prints it, unless one like it was noted before."""
        kind = re.sub(r"[0-9]+", "N", reason)
        if kind in self._known:
            return
        self._known.add(kind)
        whole = f"{self._name}: {reason}" if number is None else f"{reason}; {self.describe(number)}"
        self._outcome.failures.append(whole)
        print(f"FAILED {whole}", flush=True)

    def _pinned(self, numbers: range, traceback: str | None = None) -> str:
        """The case of a batch that fails when all are played again one after another, as far as there is time."""
        if self._num_pinned == _MOST_PINNED:
            return f"one of {numbers}"
        self._num_pinned += 1
        print(f"looking for the case in {numbers}", flush=True)
        number, reason = self._first_to_fail(numbers, traceback)
        if number is None:
            return f"none of {numbers} fails alone"
        return f"alone: {reason[:200]}; {self.describe(number)}"

    def _first_to_fail(self, numbers: Sequence[int], traceback: str | None = None) -> tuple[int | None, str]:
        """Plays cases one after another to a shard of their own, and looks after each."""
        end = time.monotonic() + _PIN_S
        with self._shard() as shard:
            player, before = Player(self._plan(shard)), shard.vitals()
            for number in numbers:
                report = player.play_one(number)
                if shard.is_alive:  # what a closed connection has left behind may come later
                    shard.settle(before.num_files, _PIN_SETTLE_S)
                if reason := _reason(shard, report, before.rss_mb, traceback):
                    return number, reason
                if time.monotonic() > end:
                    break
        return None, ""

    def _progress(self, shard: FuzzedShard, numbers: range, seconds: float) -> None:
        vitals = shard.vitals()
        holds = f"{vitals.rss_mb:.0f} MB, {vitals.num_threads} threads, {vitals.num_files} files"
        cases = f"{numbers.stop} cases, {len(numbers) / seconds:.0f} a second"
        print(f"{self._name}: {cases}; {holds}; workers' pushes {self._outcome.acknowledged}", flush=True)


def run_all(seed: int, sessions: Sequence[Session], modes: Sequence[bool], num_shards: int, s: float) -> list[Outcome]:
    """Campaigns at the same time, for so many seconds: so many shards in each mode (TLS or not), each of its own seed.

    A shard spends a twentieth of a processor on connections that are not admitted yet, so one alone takes some 120
    cases a second, or 30 with TLS.
    """
    campaigns = [Campaign(seed + i, sessions, tls) for tls in modes for i in range(num_shards)]
    with ThreadPoolExecutor(len(campaigns)) as pool:
        return list(pool.map(lambda campaign: campaign.run(s), campaigns))


def miscounts(books: Books, told: dict[int, int], acknowledged: int) -> list[str]:
    """What is wrong with a shard's books, given the workers' acknowledged pushes and those of unchanged cases."""
    found = []
    for worker, pushes in told.items():
        if books.of_worker.get(worker, 0) != pushes:
            found.append(
                f"worker {worker} was told of {pushes} pushes, the ledger has {books.of_worker.get(worker, 0)}"
            )
    controls = sum(books.of_worker.get(worker, 0) for worker in range(CONTROLS, CONTROLS + NUM_CONTROLS))
    if controls != NUM_CONTROLS + acknowledged:
        found.append(f"unchanged cases were told of {acknowledged} pushes, the ledger has {controls - NUM_CONTROLS}")
    if not books.version == books.pushes == books.staleness == sum(books.of_worker.values()):
        found.append(
            f"version {books.version}, pushes {books.pushes}, histogram {books.staleness}, ledger "
            f"{sum(books.of_worker.values())}"
        )
    return found


def _reason(shard: FuzzedShard, report: Report, before_mb: float, traceback: str | None) -> str:
    """What is wrong after a case; with a traceback, only whether there is such a one."""
    if traceback:
        return traceback if traceback in shard.tracebacks() else ""
    if not shard.is_alive:
        return f"the shard has ended: {shard.log()[-500:]}"
    if report.wrong:
        return report.wrong[0][1]
    if found := shard.tracebacks():
        return f"traceback {found[0]}"
    growth = shard.vitals().rss_mb - before_mb
    if growth > _MOST_GROWTH_MB:
        return f"memory: {growth:+.0f} MB"
    return "" if shard.answers() else "the shard does not answer"


def _prime(shard: FuzzedShard) -> None:
    """One push of each worker of unchanged cases, so that mutated ones come after a later incarnation."""
    with closing(shard.client("worker")) as client:
        for worker in range(CONTROLS, CONTROLS + NUM_CONTROLS):
            push_zeros(client, worker, CONTROL_INCARNATION, 1)
