"""What became of every push: read from the logs of workers and shards, which survive whatever ended the processes.

A worker logs a push once every shard has acknowledged it; a shard logs it once it is counted, before it answers. A
shard that was killed between counting and logging tells it when it opens its arena again. See `worker/reporter.py` and
`ps/service/servicer.py`; all of it is logged with `--verbosity=1`. Pure but for reading the files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

_LINE = re.compile(r"^\[[^]]*\] (push|ledger) (\d+/\d+/\d+) (acknowledged|counted|repeated|complete)$")

Span = tuple[float, float]


@dataclass
class ShardLog:
    """What a shard has logged of pushes, by name: WORKER/INCARNATION/SEQUENCE.

    Attributes:
        counted: How often each was counted.
        known: Counted according to an answer or to the ledger, whose own line may be missing.
    """

    counted: Counter[str] = field(default_factory=Counter)
    known: set[str] = field(default_factory=set)

    @property
    def names(self) -> set[str]:
        """All that were counted."""
        return self.counted.keys() | self.known


@dataclass(frozen=True)
class Count:
    """The verdict.

    Attributes:
        acknowledged: Pushes that workers were told of.
        lost: Names of those that some shard does not have.
        doubled: Pushes that a shard has counted twice, over all shards, and what its counter has too many or too few.
        repeated: Pushes that came again to a shard, and were not counted again.
    """

    acknowledged: int
    lost: list[str]
    doubled: int
    repeated: int


def parse(line: str) -> tuple[str, str] | None:
    """Event and name of the push in a line of a log; None if it is about something else."""
    found = _LINE.match(line)
    return (found[3], found[2]) if found else None


def read_worker(lines: Iterable[str]) -> set[str]:
    """Names of the acknowledged pushes."""
    return {event[1] for line in lines if (event := parse(line)) and event[0] == "acknowledged"}


def read_shard(lines: Iterable[str]) -> ShardLog:
    """What a shard knows of."""
    log = ShardLog()
    for line in lines:
        match parse(line):
            case ("counted", name):
                log.counted[name] += 1
            case ("repeated" | "complete", name):
                log.known.add(name)
    return log


def count(workers: Iterable[set[str]], shards: Sequence[ShardLog], pushes: Sequence[int], repeated: int = 0) -> Count:
    """Compares what workers were told with what shards have.

    Args:
        workers: Names of acknowledged pushes, of each worker.
        shards: Their logs, in order.
        pushes: Of each shard its own counter.
        repeated: Of all shards together, as they have counted.
    """
    acknowledged = set().union(*workers)
    lost = {name for shard in shards for name in acknowledged - shard.names}
    doubled = sum(times - 1 for shard in shards for times in shard.counted.values())
    doubled += sum(abs(number - len(shard.names)) for shard, number in zip(shards, pushes, strict=True))
    return Count(len(acknowledged), sorted(lost), doubled, repeated)


def read_logs(log_dir: Path, role: str, number: int) -> list[list[str]]:
    """Lines of each process of a role."""
    paths = [log_dir / f"{role}-{i}.log" for i in range(number)]
    return [path.read_text(errors="replace").splitlines() for path in paths]


def longest_stall_s(times: Mapping[str, Sequence[float]], excused: Mapping[str, Sequence[Span]]) -> float:
    """The longest time between two acknowledged pushes of one incarnation.

    Args:
        times: Of the acknowledged pushes, by WORKER/INCARNATION.
        excused: By WORKER, spans of time that do not count.
    """
    stalls = [
        (end - begin) - _overlap((begin, end), excused.get(name.partition("/")[0], ()))
        for name, moments in times.items()
        for begin, end in pairwise(moments)
    ]
    return max(stalls, default=0.0)


def _overlap(span: Span, others: Sequence[Span]) -> float:
    """How much of a span the others cover together."""
    covered, reached = 0.0, span[0]
    for begin, end in sorted(others):
        begin, end = max(begin, reached), min(end, span[1])
        if end > begin:
            covered, reached = covered + end - begin, end
    return covered
