"""Does a start from other pictures help where there are few? Digits from Fashion-MNIST, beside from scratch.

    python -m tests.benchmarks.transfer [--images=100] [--seeds=3] [--rates=...] [--[no]real] [--out=runs/transfer]

1. A ResNet-18 is trained on 20,000 pictures of Fashion-MNIST as `downpour local` does it: two workers, two shards.
2. scikit-learn's digits: `--images` to train on, 300 to choose the rate, all others to score; each seed draws others.
3. Arms, each the same number of steps: `scratch`, from random values; `fine_tuned`, from the run of 1 without its head;
   `frozen`, the same with `model.frozen`. Every rate is tried for every arm and seed by `downpour.launch.planning.
   simulation`, the real step and shards of two workers in one process; the rate of an arm is the one with the best mean
   accuracy on the 300. With it, each arm is trained by real runs, `--init_from` the run of 1.
4. `probe`: `downpour features` of the run of 1, and `downpour probe` on them, on the same pictures.

Runs are written to OUT/runs.jsonl as they end; those that are there already, of the same recipe and settings, are not
repeated. Prints a table and, last, `RESULT {json}`: accuracy on the scored pictures, arm by arm, seed by seed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from downpour.launch.job import Job, recipe
from downpour.launch.job.build import build
from downpour.launch.local import Checkpoints, RunConfig, start
from downpour.launch.planning.simulation import simulate
from downpour.launch.planning.trainable import Trainable
from downpour.launch.roles import entry, initial
from downpour.model import weights
from tests import pictures
from tests.benchmarks.shape import ROOT

_IMAGES = flags.DEFINE_integer("images", 100, "Digits to train on.", 1)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Draws of these, and of initial values.", 1)
_RATES = flags.DEFINE_list("rates", ["3e-3", "1e-2", "3e-2"], "Rates that are tried for every arm.")
_STEPS = flags.DEFINE_integer("steps", 40, "Steps on digits, of every arm.", 1)
_FIRST = flags.DEFINE_integer("first_images", 20_000, "Pictures of Fashion-MNIST.", 1)
_FIRST_STEPS = flags.DEFINE_integer("first_steps", 1000, "Steps on them.", 1)
_REAL = flags.DEFINE_boolean("real", True, "Whether the arms are trained by real runs, too, and not simulated alone.")
_OUT = flags.DEFINE_string("out", "runs/transfer", "Folder of the results.")

RECIPE = ROOT / "tests/benchmarks/transfer_job.py"
NUM_CHOOSING = 300
BACKBONE = ("stem_*", "stage*")
CLASSES = "zero one two three four five six seven eight nine"
CLOTHES = "top trouser pullover dress coat sandal shirt sneaker bag boot"
ARMS = ("scratch", "fine_tuned", "frozen")


@dataclass(frozen=True)
class Run:
    """One training on digits.

    Attributes:
        how: `real` or `simulated`.
        arm: One of `ARMS`.
        rate: Its learning rate.
        seed: Draw of pictures, and of initial values.
        version: Hash of what it was trained with.
        choosing: Accuracy on the pictures by which the rate is chosen.
        scored: Accuracy on all other held-out pictures.
        seconds: Of the run.
    """

    how: str
    arm: str
    rate: str
    seed: int
    version: str
    choosing: float
    scored: float
    seconds: float


def write_data(folder: Path) -> None:
    """Writes the prepared folders that are not there yet: `fashion`, and `digits-SEED`."""
    from tests.benchmarks.fashion_mnist import FashionMnist

    first = folder / f"fashion-{_FIRST.value}"
    if not first.is_dir():
        data = FashionMnist.load()
        pixels = ((data.train_images[..., 0] + 1) * 127.5).round().astype(np.uint8)
        train, heldout = range(_FIRST.value), range(len(pixels) - 500, len(pixels))
        pictures.write(first, pixels, data.train_labels.argmax(1), train, heldout, CLOTHES)
    pixels, classes = pictures.digits()
    for seed in range(_SEEDS.value):
        place = digits_of(folder, seed)
        if not place.is_dir():
            order = np.random.default_rng(seed).permutation(len(pixels)).tolist()
            pictures.write(place, pixels, classes, order[: _IMAGES.value], order[_IMAGES.value :], CLASSES)


def digits_of(folder: Path, seed: int) -> Path:
    """The prepared folder of one draw."""
    return folder / f"digits-{_IMAGES.value}-{seed}"


def train(run_dir: Path, settings: Sequence[str], source: Path | None = None) -> None:
    """Trains as `downpour local` does, every role a process."""
    config = RunConfig(
        RECIPE,
        overrides=tuple(settings),
        run_dir=run_dir,
        evaluator=False,
        checkpoints=Checkpoints(overwrite=True),
        init_from=str(source) if source else "",
        init_only=BACKBONE if source else (),
    )
    with start(config) as run:
        run.wait()


def pretrain(folder: Path) -> Path:
    """The folder of the run on Fashion-MNIST, which is made if it is not there."""
    steps = _FIRST_STEPS.value
    run_dir = folder / f"first-{_FIRST.value}-{steps}"
    if not (run_dir / "summary.json").is_file():
        data = folder / "data" / f"fashion-{_FIRST.value}"
        train(run_dir, [f"data.folder={data}", f"num_steps={steps}", f"schedule.steps={steps}"])
    return run_dir


def settings_of(folder: Path, arm: str, rate: str, seed: int) -> list[str]:
    """Overrides of one run."""
    steps = _STEPS.value
    return [
        f"data.folder={digits_of(folder / 'data', seed)}",
        *(f"num_steps={steps}", f"schedule.steps={steps}", f"schedule.learning_rate={rate}"),
        *("rule=KerasAdam()", "batch_size=20", f"seed={seed}"),
        *([f"model.frozen={','.join(BACKBONE)}"] if arm == "frozen" else []),
    ]


def parts(predict: Any, job: Job) -> dict[str, float]:
    """Accuracy of a model on the pictures by which rates are chosen, and on those that are scored."""
    with job.data.heldout(batch_size=256) as batches:
        found = np.concatenate([predict(x).argmax(1) == y.argmax(1) for x, y in batches])
    means = found[:NUM_CHOOSING].mean(), found[NUM_CHOOSING:].mean()
    return {name: round(float(mean), 5) for name, mean in zip(("choosing", "scored"), means, strict=True)}


class Started(Trainable):
    """A job's model that begins from another run's values, but for its head, and whose scores are accuracies."""

    def __init__(self, job: Job, source: Path | None) -> None:
        super().__init__(job)
        if source:
            self.values = initial.values(self._model, self.layout, initial.Source(str(source), BACKBONE))

    def score(self, values: Mapping[str, np.ndarray]) -> dict[str, float]:
        """See `parts`."""
        weights.assign(self._model, values)
        return parts(self._model.predict_on_batch, self._job)


def real(job: Job, settings: Sequence[str], run_dir: Path, source: Path | None) -> dict[str, float]:
    """Trains by a real run; returns `parts` of its last checkpoint."""
    train(run_dir, settings, source)
    model, _ = build(job)
    weights.assign(model, weights.named(initial.load_checkpoint(str(run_dir))))
    return parts(model.predict_on_batch, job)


class Runs:
    """Trains on digits, and keeps the results in a file."""

    def __init__(self, folder: Path, first: Path) -> None:
        self._folder, self._first, self._file = folder, first, folder / "runs.jsonl"
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        self._done = [Run(**json.loads(line)) for line in lines]
        self._model: tuple[str, int, Started] | None = None  # the last one: arm, seed

    def of(self, how: str, arm: str, rate: str, seed: int) -> Run:
        """The run, out of the file or trained now."""
        settings = settings_of(self._folder, arm, rate, seed)
        source = self._first if arm != "scratch" else None
        version = hashlib.sha256(f"{RECIPE.read_text()}{settings}{source}".encode()).hexdigest()[:12]
        for run in self._done:
            if (run.how, run.arm, run.rate, run.seed, run.version) == (how, arm, rate, seed, version):
                return run
        begin, job = time.monotonic(), recipe.load(RECIPE, settings)
        if how == "real":
            scores = real(job, settings, self._folder / "run", source)
        else:
            scores = dict(simulate(job, 2, num_scores=1, model=self._started(arm, seed, job, source)).last.scores)
        run = Run(how, arm, rate, seed, version, **scores, seconds=round(time.monotonic() - begin, 1))
        self._done.append(run)
        with self._file.open("a") as file:
            file.write(f"{json.dumps(asdict(run))}\n")
        shown = f"{run.choosing:.4f}  {run.scored:.4f}  {run.seconds:.0f} s"
        print(f"seed {seed}  {how:<9} {arm:<10} rate {rate:<5}  {shown}", flush=True)
        return run

    def _started(self, arm: str, seed: int, job: Job, source: Path | None) -> Started:
        """The model of an arm and seed, built once for all rates."""
        if self._model is None or self._model[:2] != (arm, seed):
            self._model = arm, seed, Started(job, source)
        return self._model[2]


def probed(folder: Path, first: Path, seed: int) -> float:
    """Top-1 accuracy of a linear probe on features of the first run, on the pictures that are scored."""
    from downpour.launch import features
    from downpour.model.vision import feature_files
    from downpour.model.vision.probe import probe

    data, out = digits_of(folder / "data", seed), folder / f"features-{seed}.npz"
    features.run(features.FeaturesConfig(data, str(first), out, recipe.load(RECIPE)))
    found = feature_files.read(out)
    kept = [*range(_IMAGES.value), *range(_IMAGES.value + NUM_CHOOSING, len(found.names))]
    chosen: dict[str, Any] = {name: [getattr(found, name)[i] for i in kept] for name in ("names", "splits", "labels")}
    return round(probe(dataclasses.replace(found, **chosen, values=found.values[kept])).scores["top_1"], 5)


def best(runs: Sequence[Run]) -> str:
    """The rate with the best mean accuracy on the pictures for choosing."""
    rates = dict.fromkeys(run.rate for run in runs)
    return max(rates, key=lambda one: statistics.fmean(run.choosing for run in runs if run.rate == one))


def table(scores: Mapping[str, Sequence[float]], rates: Mapping[str, str]) -> str:
    """In Markdown: a line for every arm."""
    lines = ["| start | rate | by seed | mean |", "|---|---|---|---|"]
    for name, found in scores.items():
        shown = " ".join(f"{score:.4f}" for score in found)
        rate = rates.get(name.removesuffix("_simulated"), "-")
        lines.append(f"| {name} | {rate} | {shown} | {statistics.fmean(found):.4f} |")
    return "\n".join(lines)


def _main() -> None:
    folder = Path(_OUT.value)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    write_data(folder / "data")
    first = pretrain(folder)
    runs, seeds = Runs(folder, first), range(_SEEDS.value)
    tried = [runs.of("simulated", arm, rate, seed) for arm in ARMS for seed in seeds for rate in _RATES.value]
    rates = {arm: best([run for run in tried if run.arm == arm]) for arm in ARMS}
    simulated = {arm: [run.scored for run in tried if (run.arm, run.rate) == (arm, rates[arm])] for arm in ARMS}
    scores = {f"{arm}_simulated": found for arm, found in simulated.items()}
    if _REAL.value:
        found = [runs.of("real", arm, rates[arm], seed) for seed in seeds for arm in ARMS]
        scores |= {arm: [run.scored for run in found if run.arm == arm] for arm in ARMS}
    scores["probe"] = [probed(folder, first, seed) for seed in seeds]
    print(table(scores, rates), flush=True)
    ending = "" if _REAL.value else "_simulated"
    gain = statistics.fmean(scores[f"fine_tuned{ending}"]) - statistics.fmean(scores[f"scratch{ending}"])
    result = {"images": _IMAGES.value, "seeds": len(seeds), **scores, "rates": rates, "gain": round(gain, 5)}
    print(f"RESULT {json.dumps(result)}", flush=True)


if __name__ == "__main__":
    entry.run(_main, role="transfer")
