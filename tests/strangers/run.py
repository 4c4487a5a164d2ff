"""Attacks a shard beside a training, in every way a stranger can: what it costs the training and the shard.

    python -m tests.strangers.run [--seconds=60] [--slice=15] [--only=ping,idle] [--way="plain text, no token"]

For each attack of `tests.strangers.attacks`, and each way of coming that it is tried with, a shard process and two
workers are started, and a stranger, each in a process of its own. Undisturbed and attacked slices take turns, so that
whatever else the machine does hits both. It must be alone on the machine: a twentieth is asked for.

Prints a table in Markdown and, last, `RESULT {json}`. Exit code 1 when a limit of `tests.strangers.measure` is
exceeded, or an attack did not happen. How threads and descriptors are made scarce, `tests.strangers.scarcity` says.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from downpour.launch.roles import entry
from tests.strangers import measure, scene
from tests.strangers.attacks import ATTACKS, Attack
from tests.strangers.measure import Found
from tests.strangers.scarcity import Unavailable
from tests.strangers.ways import WAYS, Way

_SECONDS = flags.DEFINE_float("seconds", 60.0, "Of each attack, all slices together.", 1.0)
_SLICE = flags.DEFINE_float("slice", 15.0, "Seconds of an attacked slice.", 1.0)
_LONG_SLICE = flags.DEFINE_float("long_slice", 30.0, "The same, of attacks that take effect by waiting.", 1.0)
_REST = flags.DEFINE_float("rest", 5.0, "Seconds of an undisturbed slice.", 1.0)
_ONLY = flags.DEFINE_list("only", None, "Attacks; all by default.")
_WAYS = flags.DEFINE_multi_enum("way", None, list(WAYS), "Ways of coming; all by default.")

_HEADING = (
    "| attack | way | steps/s | speed | longest step, s | memory, MB (own) | threads | descriptors | log lines "
    "| new client, s | connections | frames | closed | answers | its CPU, s | fails |\n" + 16 * "|---" + "|"
)


def _cases() -> Iterator[tuple[Attack, Way]]:
    unknown = set(_ONLY.value or ()) - set(ATTACKS)
    if unknown:
        raise ValueError(f"--only: no attack {', '.join(sorted(unknown))}; there are {', '.join(ATTACKS)}")
    for attack in ATTACKS.values():
        for way in attack.ways:
            if (_ONLY.value is None or attack.name in _ONLY.value) and (not _WAYS.value or way.name in _WAYS.value):
                yield attack, way


def _run(attack: Attack, way: Way) -> Found:
    slice_s = min(_SECONDS.value, _LONG_SLICE.value if attack.is_long else _SLICE.value)
    with tempfile.TemporaryDirectory(prefix="downpour-strangers-") as folder:
        with scene.opened(Path(folder), way.guard) as opened:
            try:
                return measure.measure(opened, attack, way, _SECONDS.value, slice_s, _REST.value)
            except Unavailable as error:
                return Found(attack.name, way.name, failures=[f"not tried: {error}"])


def _row(found: Found) -> str:
    """Of the table; three numbers are before, at most and afterwards."""
    done = found.done
    answers = {name: number for name, number in done.items() if name.startswith(("answers", "reset", "goaway"))}
    cells = [
        found.attack,
        found.way,
        f"{found.undisturbed:.1f} -> {found.attacked:.1f}",
        f"{found.speed:.3f}",
        f"{found.longest_undisturbed_s:.2f} -> {found.longest_attacked_s:.2f}",
        f"+{found.growth_mb:.1f} ({found.own_growth_mb:+.1f})",
        "/".join(map(str, found.threads)),
        "/".join(map(str, found.descriptors)),
        str(found.log_lines),
        f"{found.newcomer_s:.2f}, then {found.newcomer_after_s:.2f}",
        *(f"{done.get(name, 0):.0f}" for name in ("connections", "frames", "closed by the server")),
        ", ".join(f"{name} {number:.0f}" for name, number in sorted(answers.items())),
        f"{done.get('cpu_s', 0):.1f}",
        "; ".join(found.failures),
    ]
    return f"| {' | '.join(cells)} |"


def _main() -> int | None:
    cases = list(_cases())
    print(_HEADING, flush=True)
    all_found = []
    for attack, way in cases:
        all_found.append(_run(attack, way))
        print(_row(all_found[-1]), flush=True)
    failed = sum(bool(found.failures) for found in all_found)
    speeds = [found.speed for found in all_found if math.isfinite(found.speed)]
    result = {
        "cases": len(all_found),
        "failed": failed,
        "seconds": _SECONDS.value,
        "slowest": min((round(speed, 3) for speed in speeds), default=None),
        "most_memory_mb": max((round(found.growth_mb, 1) for found in all_found), default=None),
        "cores": os.cpu_count(),
        "found": [found.result() for found in all_found],
    }
    print(f"RESULT {json.dumps(result)}", flush=True)
    return 1 if failed or not all_found else None


if __name__ == "__main__":
    entry.run(_main, role="strangers")
