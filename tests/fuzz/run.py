"""Fuzzes a shard process by mutated recordings, beside two real workers whose every push must count once.

    python -m tests.fuzz.run --minutes=60 --seed=0
    python -m tests.fuzz.run --tls --seed=0 --only=17      (one case again, alone)

Two shards in plain text and two with TLS are fuzzed at the same time, unless one mode is asked for. The last line is
`RESULT {...}`. The exit code is 1 if anything went wrong; then the seed and the case that did it, as far as it can be
found, are printed. Seeds are those of shards: the second of a mode has the next one.
`tests.fuzz.campaign` says what is checked.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.certificates import TOKEN
from tests.fuzz import clients
from tests.fuzz.campaign import Campaign, Outcome, run_all
from tests.fuzz.record import Session, digest, record_all
from tests.fuzz.shard import FuzzedShard


def recorded() -> list[Session]:
    """Sessions with a shard of their own."""
    with tempfile.TemporaryDirectory() as folder, FuzzedShard(Path(folder), tls=False) as shard:
        return record_all(shard.port, TOKEN)


def fuzz(
    seed: int, seconds: float, modes: Sequence[bool], num_shards: int, sessions: Sequence[Session]
) -> dict[str, Any]:
    """Fuzzes our client for a tenth of the time, then shards in each mode (TLS or not); what `RESULT` says."""
    begin = time.monotonic()
    print(f"seed {seed}, {len(sessions)} sessions, recordings {digest(sessions)}", flush=True)
    answered = clients.fuzz(seed, sessions, 0.1 * seconds)
    outcomes = run_all(seed, sessions, modes, num_shards, 0.9 * seconds)
    return summary(answered, outcomes, time.monotonic() - begin)


def summary(answered: clients.Outcome, outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """The figures of a run."""
    failures = [*answered.failures, *(failure for outcome in outcomes for failure in outcome.failures)]
    return {
        "cases": sum(outcome.report.cases for outcome in outcomes),
        "seconds": round(seconds, 1),
        "controls": sum(outcome.report.controls for outcome in outcomes),
        "controls_again": sum(outcome.report.again for outcome in outcomes),
        "crashes": sum(outcome.has_crashed for outcome in outcomes),
        "unanswered": sum(outcome.report.ends["unanswered"] for outcome in outcomes),
        "rss_growth_mb": max((round(outcome.rss_growth_mb, 1) for outcome in outcomes), default=0.0),
        "most_rss_mb": max((round(outcome.most_rss_mb, 1) for outcome in outcomes), default=0.0),
        "workers_pushes": sum(outcome.acknowledged for outcome in outcomes),
        "fuzzers_pushes": sum(outcome.fuzzers_pushes for outcome in outcomes),
        "log_lines": sum(outcome.log_lines for outcome in outcomes),
        "longest_step_s": max((round(outcome.longest_step_s, 2) for outcome in outcomes), default=0.0),
        "client_cases": answered.cases,
        "client_answers": answered.answered,
        "failures": failures,
    }


def replay(seed: int, number: int, tls: bool) -> int:
    """One case, alone with a shard of its own; the exit code."""
    campaign = Campaign(seed, recorded(), tls)
    print(campaign.describe(number))
    reason = campaign.reason_of(number)
    print(f"failed: {reason}" if reason else "nothing went wrong")
    return int(bool(reason))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=secrets.randbits(31))
    parser.add_argument("--shards", type=int, default=2, help="in plain text, and as many with TLS")
    parser.add_argument("--only", type=int)
    parser.add_argument("--only_client", type=int)
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--tls", dest="modes", action="store_const", const=[True])
    modes.add_argument("--plain", dest="modes", action="store_const", const=[False])
    parser.set_defaults(modes=[False, True])
    given = parser.parse_args()
    if given.only_client is not None:
        sys.exit(clients.replay(given.seed, recorded(), given.only_client))
    if given.only is not None:
        sys.exit(replay(given.seed, given.only, given.modes[0]))
    result = fuzz(given.seed, 60 * given.minutes, given.modes, given.shards, recorded())
    print("RESULT", json.dumps(result))
    sys.exit(bool(result["failures"]))


if __name__ == "__main__":
    main()
