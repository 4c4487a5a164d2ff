"""What the exchange costs at the paper's shape: pulls, pushes and updates of 80.0 M parameters in 17 shards.

    python -m tests.benchmarks.exchange [--mode=best] [--workers=4] [--seconds=15]
    python -m tests.benchmarks.exchange --suite [--rounds=2]        what `make bench` runs
    python -m tests.benchmarks.exchange --scaling                   cost by number of shards and of workers, with a plot
    python -m tests.benchmarks.exchange --profile                   where the CPU time goes; needs perf

Shards are real processes, started as production starts them, with their memory in /dev/shm. Workers are emulated: no
model is computed, but every step encodes, sends, applies, pulls and decodes everything through `worker.exchange`.
A step is one worker's push and pull of the whole model; steps a second count all workers. At the end every shard must
have applied exactly the pushes that workers had acknowledged.

`--suite` measures the modes float32, exact and best (`tests.benchmarks.modes`), and TensorFlow's own parameter servers
with the same number of workers (`tests.benchmarks.peers.tensorflow_ps`), one after the other, several rounds, so that
whatever else the machine does hits all of them; of the rounds it takes the median. Its ratios compare float32 with
TensorFlow's float32, the other modes with TensorFlow's bfloat16. The best mode is measured with a whole fleet of
workers connected, too, each of which sleeps for as long as computing a gradient would take; the RESULT's steps of best
and memory of the shards are of that.

The last line is `RESULT {json}`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from absl import flags

from downpour.launch.local.scratch import scratch_folder
from downpour.launch.roles import entry
from tests.benchmarks import cluster, shape
from tests.benchmarks.cpu_account import WORKERS, Account
from tests.benchmarks.measure import HEADING, Measurement, as_json, median
from tests.benchmarks.modes import MODES, Mode
from tests.benchmarks.peers import tensorflow_ps

_SUITE_MODES = ("float32", "exact", "best")
_FLEET_TITLE = "best, a fleet"
_PEERS = {f"tensorflow {wire}": wire for wire in tensorflow_ps.WIRES}

_MODE = flags.DEFINE_enum("mode", "best", list(MODES), "How to exchange.")
_VARIABLES = flags.DEFINE_string("variables", str(shape.PAPER), "File that lists the model's variables.")
_SHARDS = flags.DEFINE_integer("shards", 17, "Shard processes.", lower_bound=1)
_WORKERS = flags.DEFINE_integer("workers", 4, "Emulated workers.", lower_bound=1)
_PROCESSES = flags.DEFINE_integer("worker_processes", 2, "Processes that share the workers.", lower_bound=1)
_FLEET = flags.DEFINE_integer("fleet", 50, "Workers that the suite connects for the best mode.", lower_bound=1)
_FLEET_COMPUTE = flags.DEFINE_float("fleet_compute_s", 1.0, "Seconds that each of them sleeps a step.", lower_bound=0)
_SCALING = flags.DEFINE_boolean("scaling", False, "Measure the best mode for several numbers of shards and workers.")
_SCALING_SHARDS = flags.DEFINE_list("scaling_shards", ["4", "17", "34"], "Numbers of shards of --scaling.")
_SCALING_WORKERS = flags.DEFINE_list("scaling_workers", ["1", "10", "50"], "Numbers of workers of --scaling.")
_OUT = flags.DEFINE_string("out", "runs/exchange", "Folder of the plot of --scaling.")
_COMPUTE = flags.DEFINE_float(
    "compute_s", 0.0, "Seconds that a worker sleeps before each push, in place of computing.", lower_bound=0
)
_WARMUP = flags.DEFINE_float("warmup", 3.0, "Seconds of work before the window.", lower_bound=0)
_SECONDS = flags.DEFINE_float("seconds", 15.0, "Length of the window.", lower_bound=0.1)
_SUITE = flags.DEFINE_boolean("suite", False, "Measure all modes and TensorFlow.")
_ROUNDS = flags.DEFINE_integer("rounds", 2, "How often the suite measures each.", lower_bound=1)
_PEER = flags.DEFINE_boolean("peers", True, "Whether the suite measures TensorFlow, too.")
_PROFILE = flags.DEFINE_boolean("profile", False, "Sample where the CPU time goes.")
_SCALING_EACH_S = 0.3  # of --scaling's warm-up and of its window, for every worker: two steps or three


def _load(mode: Mode, **more: Any) -> cluster.Load:
    return cluster.Load(
        codec=mode.codec,
        push=mode.push,
        pull=mode.pull,
        compute_s=_COMPUTE.value,
        factored=mode.factored,
        variables=Path(_VARIABLES.value),
        num_shards=_SHARDS.value,
        num_workers=_WORKERS.value,
        num_processes=_PROCESSES.value,
        warmup_s=_WARMUP.value,
        seconds=_SECONDS.value,
        **more,
    )


def _fleet(num_shards: int | None = None, num_workers: int | None = None) -> cluster.Load:
    """The best mode with so many workers, whose steps ask for the same of the shards however many they are."""
    workers = num_workers or _FLEET.value
    compute_s = _FLEET_COMPUTE.value * workers / _FLEET.value
    return replace(
        _load(MODES["best"]),
        num_shards=num_shards or _SHARDS.value,
        num_workers=workers,
        compute_s=compute_s,
        warmup_s=_WARMUP.value + 2 * compute_s,
    )


def _peer_load(wire: str) -> tensorflow_ps.Load:
    return tensorflow_ps.Load(
        wire, Path(_VARIABLES.value), _SHARDS.value, _WORKERS.value, _WARMUP.value, _SECONDS.value
    )


def run_one(mode: Mode) -> None:
    """Measures one mode."""
    measurement = cluster.run(_load(mode))
    _print_one(mode, measurement)
    print(f"RESULT {json.dumps(as_json(measurement, codec=mode.codec, num_workers=_WORKERS.value))}", flush=True)


def run_profile(mode: Mode) -> None:
    """Measures one mode and where its CPU time goes. Sampling slows everything down by some percent."""
    with scratch_folder() as folder:
        account = Account(folder)
        try:
            measurement = cluster.run(
                _load(mode, shard_module="tests.benchmarks.mapped_shard"),
                lambda shards, workers, _: account.recording(shards, workers),
            )
            shares = account.shares()
        finally:
            account.close()
    _print_one(mode, measurement)
    core_ms: dict[str, dict[str, float]] = {}
    for role, groups in shares.items():
        total = measurement.worker_core_ms if role == WORKERS else measurement.shard_core_ms
        core_ms[role] = {group: round(share * total, 1) for group, share in groups.items()}
        print(f"\n{role}: {total:.0f} core-ms a step")
        for group, share in groups.items():
            print(f"  {group:<34} {share:6.1%} {share * total:7.1f}")
    print(f"RESULT {json.dumps(as_json(measurement, codec=mode.codec, core_ms=core_ms))}", flush=True)


def run_suite() -> None:
    """Measures everything, round by round."""
    settings: dict[str, Callable[[], Measurement]] = {_FLEET_TITLE: lambda: cluster.run(_fleet())}
    for mode in map(MODES.__getitem__, _SUITE_MODES):
        settings[mode.title] = lambda mode=mode: cluster.run(_load(mode))  # type: ignore[misc]
    for title, wire in _PEERS.items() if _PEER.value else ():
        settings[title] = lambda wire=wire: tensorflow_ps.run(_peer_load(wire))  # type: ignore[misc]
    measured: dict[str, list[Measurement]] = {title: [] for title in settings}
    print(f"{_WORKERS.value} workers, {_SHARDS.value} shards, {_ROUNDS.value} rounds\n{'':<20} {HEADING}")
    for _ in range(_ROUNDS.value):
        for title, run in settings.items():
            measured[title].append(run())
            print(f"{title:<20} {measured[title][-1].row()}", flush=True)
    print(f"RESULT {json.dumps(_summary(measured))}", flush=True)


def run_scaling() -> None:
    """Measures the best mode for every pair of numbers of shards and workers."""
    shards, workers = (list(map(int, flag.value)) for flag in (_SCALING_SHARDS, _SCALING_WORKERS))
    core_ms: dict[int, list[float]] = {}
    print(f"{'shards':>6} {'workers':>7} {HEADING}")
    for num_workers in workers:
        core_ms[num_workers] = []
        for num_shards in shards:
            fleet, at_least_s = _fleet(num_shards, num_workers), _SCALING_EACH_S * num_workers
            windows = {"warmup_s": max(fleet.warmup_s, at_least_s), "seconds": max(fleet.seconds, at_least_s)}
            measurement = cluster.run(replace(fleet, **windows))
            print(f"{num_shards:>6} {num_workers:>7} {measurement.row()}", flush=True)
            core_ms[num_workers].append(round(measurement.shard_core_ms + measurement.worker_core_ms, 1))
    _plot_scaling(shards, core_ms, Path(_OUT.value) / "scaling.png")
    print(f"RESULT {json.dumps({'shards': shards, 'core_ms_per_step': core_ms})}", flush=True)


def _plot_scaling(shards: list[int], core_ms: dict[int, list[float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for num_workers, values in core_ms.items():
        axes.plot(shards, values, marker="o", label=f"{num_workers} workers")
    axes.set(xlabel="shards", ylabel="core-ms a step, shards and workers", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)


def _summary(measured: dict[str, list[Measurement]]) -> dict[str, float | None]:
    """What the suite found, as its RESULT line; None for what was not measured."""
    by_mode = {name: measured[MODES[name].title] for name in _SUITE_MODES}
    by_mode["best_of_few"], by_mode["best"] = by_mode["best"], measured[_FLEET_TITLE]
    steps = {name: median(rounds, "steps_per_second") for name, rounds in by_mode.items()}
    peers = {
        wire: median(measured[title], "steps_per_second") if title in measured else None
        for title, wire in _PEERS.items()
    }
    summary: dict[str, float | None] = {f"steps_per_second_{name}": round(value, 3) for name, value in steps.items()}
    summary |= {f"tensorflow_{wire}": value and round(value, 3) for wire, value in peers.items()}
    for name, value in steps.items():
        peer = peers["float32" if name == "float32" else "bfloat16"]
        summary[f"ratio_{name}"] = round(value / peer, 3) if peer else None
        summary[f"mb_per_step_{name}"] = round(median(by_mode[name], "mb_per_step"), 1)
        core_ms = median(by_mode[name], "shard_core_ms") + median(by_mode[name], "worker_core_ms")
        summary[f"core_ms_per_step_{name}"] = round(core_ms, 1)
    summary["num_workers"] = _FLEET.value
    summary["num_workers_other_modes"] = _WORKERS.value
    summary["ps_memory_mb"] = round(median(by_mode["best"], "shard_pss_mb"), 1)
    return summary


def _print_one(mode: Mode, measurement: Measurement) -> None:
    print(f"{mode.title}, {_WORKERS.value} workers, {_SHARDS.value} shards; {measurement.pushes} pushes acknowledged")
    print(f"and applied by every shard\n{HEADING}\n{measurement.row()}")


def _main() -> None:
    mode = MODES[_MODE.value]
    if _SUITE.value:
        run_suite()
    elif _SCALING.value:
        run_scaling()
    elif _PROFILE.value:
        run_profile(mode)
    else:
        run_one(mode)


def main() -> None:
    """See the module."""
    entry.run(_main, role="exchange")


if __name__ == "__main__":
    main()
