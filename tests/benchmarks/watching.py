"""What it costs to be watched: a recipe's examples a second with every view open, beside the same run with none.

    python -m tests.benchmarks.watching [--recipe=quickstart] [--rounds=3] [--steps=150]

Each round trains twice through `downpour local`, in turn first and second:

| run | what |
|---|---|
| bare | `--page_port=-1 --set=sinks=()`: no page, no TensorBoard |
| watched | TensorBoard's files, `--trace=20`, `downpour top`, an open page (every 2 s), scrapes of all (every 5 s) |

The page and the scrapes come as often as in use: the script of the page asks so, and `downpour monitoring` scrapes so.
Those who look have the same two cores as the training, which they do not have elsewhere: `speed` holds their work,
`processor time` does not.

What the chief counts and notes in any case (history, events, counters of shards) is in both. The ratios of a round are
of examples a second, and of processor seconds an example, of chief, shards and workers. The last line is
`RESULT {json}`: the ratios of every round, their medians, and the rates.
"""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from downpour.launch.observe.page import ADDRESS_FILE
from downpour.launch.roles import entry

_RECIPE = flags.DEFINE_string("recipe", "quickstart", "Name or file of the recipe.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Pairs of runs.", 1)
_STEPS = flags.DEFINE_integer("steps", 150, "Steps of each run.", 1)
_SET = flags.DEFINE_multi_string("set", [], "Overrides of both runs.")
_POLL_S, _SCRAPE_S = 2.0, 5.0  # between two questions of the page, and two scrapes
_WITHIN_S = 1800.0


def main() -> None:
    """Measures."""
    entry.run(_main, role="watching")


def _main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        rounds = [_round(number, Path(folder)) for number in range(_ROUNDS.value)]
    speeds = [pair["watched"]["examples_per_second"] / pair["bare"]["examples_per_second"] for pair in rounds]
    costs = [_cost(pair["watched"]) / _cost(pair["bare"]) for pair in rounds]
    for pair, speed, cost in zip(rounds, speeds, costs, strict=True):
        rates = {name: pair[name]["examples_per_second"] for name in pair}
        print(f"{rates}: speed {speed:.3f}, processor time {cost:.3f}, looks {pair['watched']['looks']}", flush=True)
        for name, summary in pair.items():
            print(f"  {name}, processor seconds: {summary['processor_seconds']}", flush=True)
    found = {
        "recipe": _RECIPE.value,
        "speed_ratio": round(statistics.median(speeds), 4),
        "speed_ratios": [round(one, 4) for one in speeds],
        "cost_ratio": round(statistics.median(costs), 4),
        "cost_ratios": [round(one, 4) for one in costs],
        "bare": [pair["bare"]["examples_per_second"] for pair in rounds],
        "watched": [pair["watched"]["examples_per_second"] for pair in rounds],
    }
    print(f"RESULT {json.dumps(found)}", flush=True)
    return entry.OK


def _round(number: int, folder: Path) -> dict[str, dict[str, Any]]:
    names = ("bare", "watched") if number % 2 == 0 else ("watched", "bare")
    return {name: _train(folder / f"{name}{number}", watched=name == "watched") for name in names}


def _train(run_dir: Path, *, watched: bool) -> dict[str, Any]:
    """Returns the summary of a run, and how often it was looked at."""
    port = _free_ports()
    command = [sys.executable, "-m", "downpour.launch.cli", "local", f"--recipe={_RECIPE.value}"]
    command += [f"--run_dir={run_dir}", f"--set=num_steps={_STEPS.value}", *(f"--set={one}" for one in _SET.value)]
    command += [f"--metrics_port={port}", "--trace=20"] if watched else ["--page_port=-1", "--set=sinks=()"]
    looks = [0]
    with contextlib.ExitStack() as views:
        if watched:
            views.enter_context(_views(run_dir, looks))
        done = subprocess.run(command, capture_output=True, text=True, timeout=_WITHIN_S, check=False)
    if done.returncode:
        raise ValueError(f"{' '.join(command)} has failed:\n{done.stderr[-2000:]}")
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return summary | {"looks": looks[0]}


@contextlib.contextmanager
def _views(run_dir: Path, looks: list[int]) -> Iterator[None]:
    """Scrapes, polls and shows the run in the background, as soon as it can be."""
    over, top = threading.Event(), list[subprocess.Popen[bytes]]()

    def look() -> None:
        scraped_s, since = 0.0, 0
        while not over.wait(_POLL_S):
            with contextlib.suppress(OSError, ValueError, KeyError, IndexError):  # it has not begun, or ends
                page = (run_dir / ADDRESS_FILE).read_text().strip().rstrip("/")
                looks[0] += len(_get(f"{page}/status.json")) > 0
                since = json.loads(_get(f"{page}/history.json?since={since}"))["next"]
                if time.monotonic() > scraped_s + _SCRAPE_S:
                    scraped_s = time.monotonic()
                    for group in json.loads((run_dir / "metrics_targets.json").read_text()):
                        for target in group["targets"]:
                            looks[0] += len(_get(f"http://{target}/metrics")) > 0
                if not top:
                    command = [sys.executable, "-m", "downpour.launch.cli", "top", str(run_dir)]
                    top.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for process in top:
            process.terminate()
            process.wait()


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=2.0) as answer:
        found: bytes = answer.read()
        return found


def _cost(summary: dict[str, Any]) -> float:
    """Processor seconds of the job's processes an example trained on."""
    examples = summary["examples_per_second"] * summary["seconds"]
    return float(sum(value for role, value in summary["processor_seconds"].items() if role != "evaluator")) / examples


def _free_ports() -> int:
    """First of some ports in a row, below those that the kernel gives to others; the launcher checks all of them."""
    for port in range(21_000, 31_000, 200):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise ValueError("ports 21000 to 31000 are taken")


if __name__ == "__main__":
    main()
