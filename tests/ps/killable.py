"""A shard without sockets whose process kills itself at a named point, and continues when it is started again.

    python -m tests.ps.killable

reads jobs from its input, one JSON list a line: `[folder, scenario, point, passing, repeated]`. For each it forks; the
new process opens the arena in the folder, or makes one, sends every push that no worker has had an answer to, writes a
checkpoint and closes the arena. When it comes to the point for the `passing`-th time (from 1) it sends itself SIGKILL.
The exit code is written to the output: 0, 1 for an exception, or the number of the signal, negative. All imports are
done by then, and all loops loaded, so that a job takes milliseconds, and a test can kill hundreds.

In the folder: `arena`, `checkpoint/`, `answers` (a line for each answer that a worker got, written before it sends its
next push), and after a run to its end `passed.json`, how often each point was passed.
"""

from __future__ import annotations

import collections
import itertools
import json
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.ps.checkpoint.shard_file import write_shard
from downpour.ps.layout import FACTORED, FROZEN, STATISTIC, Layout, Slicing, Variable, lay_out
from downpour.ps.layout import chunks as cuts_of_vectors
from downpour.ps.layout.chunks import runs
from downpour.ps.memory import arena as arenas
from downpour.ps.memory.arena import Arena
from downpour.ps.policy.averages import Polyak
from downpour.ps.policy.constraints import MaxNorm, MinMaxNorm, NonNeg, UnitNorm
from downpour.ps.policy.named import to_message
from downpour.ps.policy.pace import Async, Mode, Sync
from downpour.ps.policy.rules import SGD, RMSProp
from downpour.ps.policy.schedules import Constant, StaircaseExponential
from downpour.ps.policy.staleness import Drop
from downpour.ps.shard.shard import Shard
from downpour.ps.testing import points
from tests.chunks import encode_chunk

# Elements of a chunk and of a piece here: a push has 4 regions, of 4, 2, 1 and 1 pieces.
_CHUNK, _BLOCK = 16, 12
_CUT = 10  # of chunks that are cut in the middle of pieces and across regions
_INPUTS, _OUTPUTS, _ROWS = 6, 8, 3
LAYOUT = lay_out(
    [
        Variable("k", (_INPUTS, _OUTPUTS), FACTORED),
        Variable("b", (20,)),
        Variable("g", (7,), rate=0.5),
        Variable("mean", (5,), STATISTIC),
        Variable("fixed", (3,), FROZEN),
    ],
    1,
    [Slicing("k", 2)],
)
# Regions of 4, 2, 2, 1 and 1 pieces: those of norms are whole ranges, those of `b` are not.
CONSTRAINED = lay_out(
    [
        Variable("k", (_INPUTS, _OUTPUTS), FACTORED, constraint=MaxNorm(1.0, (0,))),
        Variable("n", (4, 2), constraint=MinMaxNorm(0.5, 1.0, 0.75, (0,))),
        Variable("b", (12,), constraint=NonNeg()),
        Variable("u", (2, 5), constraint=UnitNorm((1,))),
        Variable("g", (7,), rate=0.5),
        Variable("mean", (5,), STATISTIC),
        Variable("fixed", (3,), FROZEN),
    ],
    1,
    [Slicing("k", 4)],
)


@dataclass(frozen=True)
class Sent:
    """A push: whose, which, computed from which version, whether with factors, and whether most of the rest is zero."""

    worker: int
    sequence: int
    base_version: int
    factored: bool = True
    sparse: bool = False

    @property
    def header(self) -> pb.PushHeader:
        return pb.PushHeader(worker=self.worker, incarnation=1, sequence=self.sequence, base_version=self.base_version)


@dataclass(frozen=True)
class Scenario:
    """What is sent, one round after another.

    Attributes:
        pace: The job's.
        rounds: Pushes whose chunks interleave, always in the same order.
        layout: Of the only shard.
        exact: The pushes of a round come at once, each from a thread; then all numbers are whole ones and none depends
            on the order.
        has_average: Whether an average is kept; without one the compiled loops save what they change.
    """

    pace: Mode
    rounds: Sequence[Sequence[Sent]]
    layout: Layout = LAYOUT
    exact: bool = False
    has_average: bool = True


_INTERLEAVED = [[Sent(0, 1, 0), Sent(1, 1, 0, factored=False)], [Sent(0, 2, 2)]]
# The third one is late; the last one's round is not full, and its sum is in the checkpoint.
_SPARSE = [[Sent(0, 1, 0, sparse=True), Sent(1, 1, 0, factored=False)], [Sent(0, 2, 2, factored=False, sparse=True)]]
_SYNC = [[Sent(0, 1, 0)], [Sent(1, 1, 0)], [Sent(0, 2, 0)], [Sent(0, 3, 1)], [Sent(1, 2, 1)], [Sent(1, 3, 2)]]
SCENARIOS = {
    # The last one is dropped: too stale.
    "async": Scenario(Async(), [[Sent(0, 1, 0)], [Sent(1, 1, 0, factored=False)], [Sent(0, 2, 1)], [Sent(1, 2, 0)]]),
    "interleaved": Scenario(Async(), _INTERLEAVED),
    "without average": Scenario(Async(), _INTERLEAVED, has_average=False),
    "sparse": Scenario(Async(), _SPARSE),
    "sparse without average": Scenario(Async(), _SPARSE, has_average=False),
    "sync": Scenario(Sync(2), _SYNC),
    "sparse sync": Scenario(Sync(2), [[replace(sent, sparse=True) for sent in sents] for sents in _SYNC]),
    "constrained": Scenario(Async(), _INTERLEAVED, CONSTRAINED),
    "constrained without average": Scenario(Async(), _INTERLEAVED, CONSTRAINED, has_average=False),
    "constrained sync": Scenario(Sync(2), _SYNC, CONSTRAINED),
    # From versions so late that nothing is stale.
    "at once": Scenario(
        Async(),
        [[Sent(worker, sequence, 99, worker != 1, worker == 2) for worker in range(4)] for sequence in range(1, 7)],
        exact=True,
        has_average=False,
    ),
}


def shrink(set_attribute: Callable[[Any, str, Any], None] = setattr) -> None:
    """Makes chunks and pieces small, for all arenas made or opened from here on."""
    set_attribute(codec, "CHUNK_ELEMENTS", _CHUNK)
    for module in (cuts_of_vectors, arenas):
        set_attribute(module, "PIECE_ELEMENTS", _BLOCK)


def run(folder: Path, scenario: Scenario, repeated: int = 0) -> None:
    """Sends what is unanswered, and the first push `repeated` times again; writes a checkpoint; closes."""
    folder.mkdir(exist_ok=True)
    shard = Shard(Arena.open(folder / "arena") or new_arena(folder / "arena", scenario))
    answered = {(worker, sequence) for worker, sequence, *_ in answers(folder)}
    for sent in scenario.rounds:
        unanswered = [one for one in sent if (one.worker, one.sequence) not in answered]
        if scenario.exact:
            _send_at_once(folder, shard, unanswered)
        else:
            _send(folder, shard, unanswered)
        for _ in range(repeated if sent is scenario.rounds[0] else 0):
            _send(folder, shard, sent[:1], exact=scenario.exact)
    with shard.snapshot() as snapshot:
        write_shard(folder / "checkpoint", shard.arena.specification, snapshot)
    shard.close()


def answers(folder: Path) -> list[tuple[int, ...]]:
    """Worker, sequence, version, staleness, dropped, repeated of every answer, in order."""
    path = folder / "answers"
    lines = path.read_text().splitlines() if path.exists() else []
    return [tuple(map(int, line.split())) for line in lines]


def new_arena(path: Path | None, scenario: Scenario) -> Arena:
    """Its memory before anything is sent."""
    layout = scenario.layout
    specification = pb.ShardSpecification(
        fingerprint=layout.fingerprint,
        layout=layout.canonical,
        rule=to_message(SGD() if scenario.exact else RMSProp(momentum=0.9)),
        schedule=to_message(Constant(1.0) if scenario.exact else StaircaseExponential(0.1, 0.5, 2)),
        average=to_message(Polyak(0.75)) if scenario.has_average else None,
        pace=to_message(scenario.pace),
        num_workers=2,
    )
    if not isinstance(scenario.pace, Sync):
        specification.staleness.CopyFrom(to_message(Drop(2)))
    arena = Arena.create(path, specification)
    arena.parameters[:] = _numbers(np.random.default_rng(0), layout.size(0), scenario.exact)
    arena.start_average()
    arena.mark_complete()
    return arena


def _send_at_once(folder: Path, shard: Shard, sent: Sequence[Sent]) -> None:
    sys.setswitchinterval(1e-5)  # so that threads meet, in a process that lives for milliseconds
    with ThreadPoolExecutor(max(1, len(sent))) as pool:
        for future in [pool.submit(_send, folder, shard, [one], exact=True) for one in sent]:
            future.result()


def _send(folder: Path, shard: Shard, sent: Sequence[Sent], *, exact: bool = False) -> None:
    opened = [shard.begin(one.header) for one in sent]
    for chunks in itertools.zip_longest(*(_chunks(one, shard.arena.layout, exact) for one in sent)):
        for push, chunk in zip(opened, chunks, strict=True):
            if chunk:
                shard.apply(push, codec.decode_chunk(chunk))
    for one, push in zip(sent, opened, strict=True):
        reply = shard.finish(push)
        points.reach("finish.done")
        numbers = one.worker, one.sequence, reply.version, reply.staleness, reply.dropped, reply.repeated
        with (folder / "answers").open("a") as file:
            file.write(" ".join(str(int(number)) for number in numbers) + "\n")


def _chunks(sent: Sent, layout: Layout, exact: bool) -> Iterator[bytes]:
    """The messages of a push: one of factors and others cut as regions are, or all cut where they may be.

    Sparse ones hold every third of runs of 3 elements.
    """
    rng = np.random.default_rng([sent.worker, sent.sequence])
    [group] = layout.factored(0)
    values = _numbers(rng, layout.num_pushed(0), exact)
    if sent.factored:
        factors = _numbers(rng, _ROWS * (_INPUTS + _OUTPUTS), exact)
        yield encode_chunk(0, codec.FLOAT32, factors, rows=_ROWS, count=group.size)
        cuts = layout.chunks(0)[1:]
    else:
        cuts = list(runs(0, values.size, _CUT, layout.uncut(0)))
    for start, stop in cuts:
        if sent.sparse:
            some_runs = [(at, min(3, stop - start - at)) for at in range(start % 9, stop - start, 9)]
            some = [values[start + at : start + at + length] for at, length in some_runs]
            pairs = np.array(some_runs, "<u4").reshape(-1, 2)
            packed = np.concatenate([values[:0], *some])
            yield encode_chunk(start, codec.FLOAT32, packed, count=stop - start, runs=pairs)
        else:
            yield encode_chunk(start, codec.FLOAT32, values[start:stop])


def _numbers(rng: np.random.Generator, count: int, exact: bool) -> np.ndarray:
    return rng.integers(-9, 10, count).astype(np.float32) if exact else rng.standard_normal(count, np.float32)


def _do(folder: Path, scenario: str, point: str, passing: int, repeated: int) -> None:
    """One job, in a process of its own."""
    passed: collections.Counter[str] = collections.Counter()
    counting = threading.Lock()

    def on_reach(name: str) -> None:
        with counting:
            passed[name] += 1
            if name == point and passed[name] == passing:
                os.kill(os.getpid(), signal.SIGKILL)

    points.on_reach = on_reach
    run(folder, SCENARIOS[scenario], repeated)
    (folder / "passed.json").write_text(json.dumps(passed))


def _fork_and_do(job: Sequence[Any]) -> int:
    """Does a job in a new process; returns its exit code, negative if a signal ended it."""
    process = os.fork()
    if not process:
        code = 1
        try:
            _do(Path(job[0]), *job[1:])
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _main() -> None:
    shrink()
    with tempfile.TemporaryDirectory() as folder:
        for name, scenario in SCENARIOS.items():  # loads what is loaded lazily
            run(Path(folder) / name, scenario)
    for line in sys.stdin:
        print(_fork_and_do(json.loads(line)), flush=True)


if __name__ == "__main__":
    _main()
