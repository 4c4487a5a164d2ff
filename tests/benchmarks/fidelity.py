"""Does asynchrony cost score? Downpour beside plain Keras, on as many examples of the same data.

    python -m tests.benchmarks.fidelity [--data=fashion,quickstart] [--workers=2,4,8] [--simulated=16,50,200]
        [--treatments=default,Keep] [--seeds=3] [--set=...] [--out=runs/fidelity]

- plain: `keras.Model.fit` in one process; for the quickstart, whose records Keras cannot read, one simulated worker
  with float32 on the wire, which computes what plain Keras does (`tests/worker/test_equality.py`, `tests/parity`).
- real: the job as `downpour local` runs it, with each number of workers, every role a process.
- simulated: `downpour.launch.planning.simulation`, the real step and shards in one process.

Real jobs run one after another; two of the others run at a time.

`default` is what the job says. Each runs with several seeds of initial values and order. Runs are written as they
end to OUT/runs.jsonl; those that are there already, of the same recipe and settings, are not repeated. Writes a table,
a figure, and as the last line `RESULT {json}`, of the first data set and the default treatment.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from absl import flags

from downpour.launch.job import recipe
from downpour.launch.local import Checkpoints, RunConfig, start
from downpour.launch.planning.simulation import simulate
from downpour.launch.roles import entry
from tests.benchmarks.learning import in_a_process, keras_scores, scores_of
from tests.benchmarks.shape import ROOT

_DATA = flags.DEFINE_list(
    "data", ["fashion", "quickstart"], "Which jobs: fashion (ten passes), fashion-short (two), quickstart."
)
_WORKERS = flags.DEFINE_list("workers", ["2", "4", "8"], "Numbers of real workers.")
_SIMULATED = flags.DEFINE_list("simulated", ["16", "50", "200"], "Numbers of simulated workers.")
_TREATMENTS = flags.DEFINE_list("treatments", ["default"], "Treatments of staleness; `default` is the job's own.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each.", 1)
_SET = flags.DEFINE_multi_string("set", [], "Further overrides of the jobs, key=value.")
_OUT = flags.DEFINE_string("out", "runs/fidelity", "Folder of the results.")

_RECIPES = {
    "fashion": str(ROOT / "tests/benchmarks/fashion_job.py"),
    "fashion-short": str(ROOT / "tests/benchmarks/reality_job.py"),
    "quickstart": "quickstart",
}
_SCORE = {"fashion": "accuracy", "fashion-short": "accuracy", "quickstart": "map_at_100"}
_PLAIN = "plain"
_AT_A_TIME = 2  # trainings of one process, whose steps use little more than a core


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        data: Name of the job.
        how: `plain`, `real` or `simulated`.
        workers: Number of workers.
        treatment: Of staleness; `default` for the job's own.
        seed: Of initial values and order.
        version: Of the recipe: a hash of its text and overrides.
        score: On the held-out examples.
        staleness: Mean of all pushes.
        seconds: Of the whole run.
    """

    data: str
    how: str
    workers: int
    treatment: str
    seed: int
    version: str
    score: float
    staleness: float
    seconds: float


def _simulated(data: str, overrides: Sequence[str], workers: int) -> tuple[dict[str, float], float]:
    job = recipe.load(_RECIPES[data], overrides)
    found = simulate(job, workers, num_scores=1)
    return dict(found.last.scores), found.staleness_mean


def _real(data: str, overrides: Sequence[str], workers: int, folder: Path) -> tuple[dict[str, float], float]:
    overrides = [*overrides, f"cluster.num_workers={workers}"]
    config = RunConfig(
        _RECIPES[data], overrides=tuple(overrides), run_dir=folder, checkpoints=Checkpoints(overwrite=True)
    )
    with start(config) as run:
        summary = run.wait()
    return scores_of(folder), summary["staleness_mean"]


def _plain(data: str, overrides: Sequence[str]) -> tuple[dict[str, float], float]:
    if data == "quickstart":
        return _simulated(data, [*overrides, "exchange.codec=float32", "exchange.factors=False", "staleness=Keep()"], 1)
    return keras_scores(_RECIPES[data], overrides)[0], 0.0


class _Runs:
    """Trains, and keeps what was trained in a file."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._file, self._lock = folder, folder / "runs.jsonl", threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        self._done = [Run(**json.loads(line)) for line in lines]

    def of(self, data: str, how: str, workers: int, treatment: str, seed: int) -> Run:
        """The run, out of the file or trained now."""
        overrides = [f"seed={seed}", *_SET.value]
        if treatment != "default":
            overrides.append(f"staleness={treatment}")
        path = Path(_RECIPES[data])
        text = path.read_text() if path.exists() else data
        version = hashlib.sha256(f"{text}{overrides}".encode()).hexdigest()[:12]
        for run in self._done:
            if (run.data, run.how, run.workers, run.version) == (data, how, workers, version):
                return run
        begin = time.monotonic()
        if how == _PLAIN:
            scores, staleness = in_a_process(_plain, data, overrides)
        elif how == "simulated":
            scores, staleness = in_a_process(_simulated, data, overrides, workers)
        else:
            scores, staleness = _real(data, overrides, workers, self._folder / "run")
        score = _score(data, scores)
        seconds = round(time.monotonic() - begin, 1)
        run = Run(data, how, workers, treatment, seed, version, round(score, 5), round(staleness, 3), seconds)
        line = f"seed {seed}  {data:<10} {how:<9} {workers:>3} workers  {treatment:<12} {score:.4f}  {seconds:.0f} s"
        with self._lock:
            self._done.append(run)
            with self._file.open("a") as file:
                file.write(f"{json.dumps(asdict(run))}\n")
            print(line, flush=True)
        return run


def _score(data: str, scores: Mapping[str, float]) -> float:
    name = _SCORE[data]
    return float(next(value for key, value in scores.items() if key.removeprefix("val_") == name))


def _kinds() -> list[tuple[str, int, str]]:
    kinds = [(_PLAIN, 1, "default")]
    for treatment in _TREATMENTS.value:
        kinds += [("real", int(n), treatment) for n in _WORKERS.value]
        kinds += [("simulated", int(n), treatment) for n in _SIMULATED.value]
    return kinds


def table(runs: Sequence[Run]) -> str:
    """In Markdown: a line for every kind of run, its scores by seed."""
    lines = [
        "| data | | workers | treatment | staleness | scores | mean | of plain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    kinds = dict.fromkeys((r.data, r.how, r.workers, r.treatment) for r in runs)
    for data, how, workers, treatment in kinds:
        found = [r for r in runs if (r.data, r.how, r.workers, r.treatment) == (data, how, workers, treatment)]
        plain = statistics.fmean(r.score for r in runs if (r.data, r.how) == (data, _PLAIN))
        mean, stale = statistics.fmean(r.score for r in found), statistics.fmean(r.staleness for r in found)
        scores = " ".join(f"{r.score:.4f}" for r in found)
        lines.append(
            f"| {data} | {how} | {workers} | {treatment} | {stale:.1f} | {scores} | {mean:.4f} | {mean / plain:.3f} |"
        )
    return "\n".join(lines)


def result(runs: Sequence[Run]) -> dict[str, Any]:
    """Mean scores of the first data set with the default treatment, `plain_min` the worst seed of plain Keras."""
    mine = [r for r in runs if r.data == runs[0].data and r.treatment == "default"]
    plain = [r.score for r in mine if r.how == _PLAIN]
    found: dict[str, Any] = {"plain_mean": statistics.fmean(plain), "plain_min": min(plain)}
    for how, name in (("real", "workers"), ("simulated", "simulated")):
        for workers in dict.fromkeys(r.workers for r in mine if r.how == how):
            found[f"{name}_{workers}"] = statistics.fmean(r.score for r in mine if (r.how, r.workers) == (how, workers))
    job = recipe.load(_RECIPES[runs[0].data], _SET.value)
    return {name: round(value, 5) for name, value in found.items()} | {"treatment": repr(job.treatment)}


def draw(runs: Sequence[Run], file: Path) -> None:
    """Draws scores over the number of workers, one panel a data set, plain Keras' seeds as a band."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(run.data for run in runs))
    figure = Figure(figsize=(6 * len(names), 4), layout="constrained")
    for panel, data in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        mine = [run for run in runs if run.data == data]
        plain = [run.score for run in mine if run.how == _PLAIN]
        panel.axhspan(min(plain), max(plain), alpha=0.3, color="gray", label="plain Keras, all seeds")
        for treatment in dict.fromkeys(run.treatment for run in mine if run.how != _PLAIN):
            for how, mark in (("real", "o-"), ("simulated", "s--")):
                found = [run for run in mine if (run.how, run.treatment) == (how, treatment)]
                counts = sorted({run.workers for run in found})
                means = [statistics.fmean(run.score for run in found if run.workers == n) for n in counts]
                if counts:
                    panel.plot(counts, means, mark, label=f"{how}, {treatment}")
        panel.set(xscale="log", xlabel="workers", ylabel=_SCORE[data], title=data)
        numbers = sorted({run.workers for run in mine if run.how != _PLAIN})
        panel.set_xticks(numbers, [str(number) for number in numbers])
        panel.minorticks_off()
        panel.legend(fontsize=8)
    figure.savefig(file)


def _of_all_kinds(runs: _Runs, data: str, seed: int) -> list[Run]:
    """Real jobs one after another, the others, of one process each, several at a time."""
    kinds = _kinds()
    found = {kind: runs.of(data, *kind, seed) for kind in kinds if kind[0] == "real"}
    single = [kind for kind in kinds if kind not in found]
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        found |= zip(single, pool.map(lambda kind: runs.of(data, *kind, seed), single), strict=True)
    return [found[kind] for kind in kinds]


def _main() -> None:
    unknown = [name for name in _DATA.value if name not in _RECIPES]
    if unknown:
        raise ValueError(f"--data: {unknown[0]!r}; accepted are {', '.join(_RECIPES)}")
    folder = Path(_OUT.value)
    runs, found = _Runs(folder), list[Run]()
    for data in _DATA.value:
        for seed in range(_SEEDS.value):  # seed by seed, so that what else the machine does hits all kinds
            found += _of_all_kinds(runs, data, seed)
    print(table(found), flush=True)
    draw(found, folder / "fidelity.svg")
    print(f"RESULT {json.dumps(result(found))}", flush=True)


def main() -> None:
    """See the module."""
    entry.run(_main, role="fidelity")


if __name__ == "__main__":
    main()
