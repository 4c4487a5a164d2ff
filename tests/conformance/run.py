"""Runs the conformance cases against our server and grpcio's, each in a process of its own with the same service.

    python -m tests.conformance.run
    python -m tests.conformance.run --server=ours --only=http2/6.9
    python -m tests.conformance.run --address=127.0.0.1:50051      (a running `tests.conformance.service`)
    python -m tests.conformance.run --list

Prints what failed, a table by part, and as the last line
`RESULT {"cases":..,"failed":..,"skipped":..,"grpcio_failed":..}`; `grpcio_failed` counts no promises of ours (`calm/`
and others that no RFC demands). The exit code is 1 if our server failed a case.

Threads: a few run cases, each with connections of its own; servers are other processes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO

from tests.conformance import budgets, fields, frames, generic, interop, messages, rfc7541, rfc9113, streams
from tests.conformance.cases import CASES, Case, Outcome, run

MODULES = (generic, streams, frames, messages, fields, rfc9113, rfc7541, budgets, interop)  # each registers its cases
PARTS = ("generic", "http2", "hpack", "rfc9113", "rfc7541", "grpc", "calm")
WAIT_S = 2.0
_THREADS = 8


@contextlib.contextmanager
def serving(kind: str) -> Iterator[str]:
    """The address of a server in a process of its own, which ends with the block or with this process.

    Raises:
        RuntimeError: It did not start, or has ended before the block.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.conformance.service", f"--server={kind}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        assert process.stdin and process.stdout
        with process.stdin, process.stdout:
            port = process.stdout.readline().decode().strip()
            if not port:
                raise RuntimeError(f"no {kind} server: {_text(log)}")
            yield f"127.0.0.1:{port}"
            if process.poll() is not None:
                raise RuntimeError(f"the {kind} server ended with code {process.returncode}: {_text(log)}")
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _text(log: IO[bytes]) -> str:
    """The end of what a server wrote."""
    log.seek(0)
    return log.read().decode(errors="replace")[-2000:]


def run_all(cases: Sequence[Case], address: str, wait_s: float = WAIT_S) -> list[Outcome]:
    """Runs cases in a few threads, floods last and one at a time, so that none disturbs another's timing."""
    quiet = [one for one in cases if not one.name.startswith("calm/")]
    with ThreadPoolExecutor(_THREADS) as pool:
        outcomes = list(pool.map(lambda one: run(one, address, wait_s), quiet))
    return outcomes + [run(one, address, wait_s) for one in cases if one not in quiet]


def selected(pattern: str | None, kind: str) -> list[Case]:
    """The cases whose names contain the pattern; of grpcio's server no promises of ours are asked."""
    asked = [one for one in CASES if (not pattern or pattern in one.name) and (kind == "ours" or not one.is_promise)]
    return sorted(asked, key=_order)


def _order(one: Case) -> tuple[int, list[list[int]]]:
    """Part, section, number within h2spec's section."""
    part, *numbers = one.name.split(" ")[0].split("/")
    return PARTS.index(part), [[int(number) for number in re.findall(r"\d+", some)] for some in numbers]


def failures(outcomes: Sequence[Outcome]) -> str:
    """A line for each failed case."""
    lines = [
        f"  {one.name}\n      expected {one.expected}\n      came     {one.came}"
        for one in outcomes
        if one.status == "failed"
    ]
    return "\n".join(lines)


def by_part(outcomes: dict[str, list[Outcome]]) -> str:
    """A table: what passed, failed and was skipped of each part, for each server."""
    lines = ["part      " + "".join(f"{kind:>34}" for kind in outcomes)]
    names = [one.name for some in outcomes.values() for one in some]
    for part in [*(part for part in PARTS if any(name.startswith(part) for name in names)), ""]:
        line = f"{part or 'all':10}"
        for some in outcomes.values():
            counts = Counter(one.status for one in some if one.name.startswith(part))
            cell = f"{counts['passed']} passed {counts['failed']} failed {counts['skipped']} skipped"
            line += f"{cell:>34}"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", choices=["ours", "grpcio", "both"], default="both")
    parser.add_argument("--only", help="part of a case's name")
    parser.add_argument("--address", help="of a server that is running already, counted as ours")
    parser.add_argument("--wait_s", type=float, default=WAIT_S, help="for each event")
    parser.add_argument("--list", action="store_true", help="prints the cases and what each relies on")
    given = parser.parse_args()
    if given.list:
        print("\n".join(f"{one.name}\n    {one.says}" for one in selected(given.only, "ours")))
        return
    outcomes: dict[str, list[Outcome]] = {}
    kinds = ["ours", "grpcio"] if given.server == "both" else [given.server]
    for kind in ["ours"] if given.address else kinds:
        begin, cases = time.monotonic(), selected(given.only, kind)
        with contextlib.nullcontext(given.address) if given.address else serving(kind) as address:
            outcomes[kind] = run_all(cases, address, given.wait_s)
        print(f"{kind}: {len(cases)} cases in {time.monotonic() - begin:.1f} s\n{failures(outcomes[kind])}", flush=True)
    print(by_part(outcomes))
    ours = Counter(one.status for one in outcomes.get("ours", []))
    others = Counter(one.status for one in outcomes["grpcio"])["failed"] if "grpcio" in outcomes else None
    result = {"cases": ours.total(), "failed": ours["failed"], "skipped": ours["skipped"], "grpcio_failed": others}
    print("RESULT", json.dumps(result))
    sys.exit(ours["failed"] > 0)


if __name__ == "__main__":
    main()
