"""A job: everything a recipe decides, as one frozen value.

Importing this module, or a recipe, does not import TensorFlow: `model.build`, `data` and `loss` do that when a
role calls them. So a recipe with a mistake is refused in milliseconds, before any process starts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from downpour.launch.job import fields
from downpour.model.data import Dataset
from downpour.ps.layout import Rate, Slicing
from downpour.ps.memory import ledger
from downpour.ps.policy import averages, pace, rules, schedules, staleness
from downpour.ps.policy.averages import Average
from downpour.ps.policy.pace import Async, Mode
from downpour.ps.policy.rules import Rule
from downpour.ps.policy.schedules import Schedule
from downpour.ps.policy.staleness import Auto, Compensate, Treatment
from downpour.worker.chief import callbacks as kinds
from downpour.worker.chief import sinks
from downpour.worker.chief.callbacks import Callback
from downpour.worker.chief.sinks import Sink
from downpour.worker.chief.tensorboard import TensorBoard
from downpour.worker.exchange import cadence
from downpour.worker.exchange.cadence import Accumulate, Cadence, EveryStep
from downpour.worker.step.clip import Clip

_ASYNC, _AUTO, _EVERY_STEP = Async(), Auto(), EveryStep()
_CHOICES: dict[str, dict[str, type]] = {
    "rule": rules.BY_NAME,
    "schedule": schedules.BY_NAME,
    "pace": pace.BY_NAME,
    "staleness": staleness.BY_NAME,
    "cadence": cadence.BY_NAME,
    "clip": {"Clip": Clip},
    "average": averages.BY_NAME,
}


class Network(Protocol):
    """Builds the Keras model of a job."""

    def build(self, image_size: int, num_labels: int) -> Any:
        """A built `keras.Model`: [B, image_size, image_size, 3] float32 in, [B, num_labels] logits out."""
        ...


@dataclass(frozen=True)
class Cluster:
    """Numbers of processes and their limits.

    Attributes:
        num_ps: Parameter-server shards. Each is a process of about 90 MB and its share of the state; more of them pay
            where one machine's memory or network is too small for the parameters, so a small model needs one or two.
        num_workers: Expected workers, which determine the sizes of leases and publications.
        max_workers: Upper limit: with `Async` and `Bounded`, workers with an index below it may start and stop at any
            time. 0 for as many as `num_workers`.
        threads_per_worker: TensorFlow threads in one worker; 0 for one per core.
        num_evaluators: Evaluators that share the checkpoints: each is scored whole, by one of them.
        lease_s: Seconds without a report after which a worker is lost, and no pull blocks on it any longer; or an
            evaluator, and another scores its checkpoint.
    """

    num_ps: int = 2
    num_workers: int = 2
    max_workers: int = 0
    threads_per_worker: int = 0
    num_evaluators: int = 1
    lease_s: float = 30.0

    def __post_init__(self) -> None:
        fields.check_numbers("cluster.", self)
        _at_least("cluster.num_ps", self.num_ps, 1)
        _at_least("cluster.num_workers", self.num_workers, 1)
        _at_least("cluster.max_workers", self.max_workers, 0)
        if self.max_workers and self.max_workers < self.num_workers:
            raise ValueError(
                f"cluster.max_workers is {self.max_workers}, less than cluster.num_workers, {self.num_workers}; "
                "give at least as many, or 0 for as many"
            )
        if self.most_workers > ledger.NUM_WORKERS:
            raise ValueError(f"cluster.max_workers is {self.most_workers}; shards keep room for {ledger.NUM_WORKERS}")
        _at_least("cluster.threads_per_worker", self.threads_per_worker, 0)
        _at_least("cluster.num_evaluators", self.num_evaluators, 1)
        if not self.lease_s >= 3:
            raise ValueError(f"cluster.lease_s is {self.lease_s}; give at least 3 seconds, workers report every second")

    @property
    def most_workers(self) -> int:
        """Upper limit of workers; every worker's index is below it."""
        return max(self.num_workers, self.max_workers)


# Default number of a worker's pulls that are sent as differences to the same publication.
PULLS_A_PUBLICATION = 4


@dataclass(frozen=True)
class Exchange:
    """Wire settings between workers and shards.

    Attributes:
        codec: Wire type of parameters and gradients: `float32`, `bfloat16`, or `float16`, which rounds less and has no
            numbers above 65,504 or below 6e-8. Statistics always travel as float32.
        push: Codec of pushed gradients: `same`, or `int8` with error feedback.
        pull: `live`, the parameters themselves; or `int8` or `int4`, their differences to a publication that all
            workers have: about a half or a quarter of bfloat16's bytes, at the price of as much memory again in every
            worker.
        publish_every: Pushes of all workers together between two publications; 0 for four of each worker. The more, the
            fewer bytes, and the coarser the differences. A worker that pulls less often than publications are made is
            sent whole ones, which are more bytes than live pulls.
        factors: Push the gradient of a large dense layer as its two factors, where that takes less than half the bytes.
        overlap: Whether the next parameters are pulled and the last gradients pushed while a batch is computed. That
            costs one step of staleness, so with `auto` the chief lets workers do it only while it makes the steps of
            all of them at least 3 % shorter, which it tries (`downpour.worker.chief.overlap`); never where pace or
            cadence do not permit it.
        give_up_after_s: Seconds without an answer from a shard or chief after which the process ends.
    """

    codec: str = "bfloat16"
    push: str = "same"
    pull: str = "live"
    publish_every: int = 0
    factors: bool = True
    overlap: bool | Literal["auto"] = "auto"
    give_up_after_s: float = 60.0

    def __post_init__(self) -> None:
        fields.check_numbers("exchange.", self)
        if self.codec not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"exchange.codec is {self.codec!r}; accepted are 'float32', 'bfloat16' and 'float16'")
        if self.push not in ("same", "int8"):
            raise ValueError(f"exchange.push is {self.push!r}; accepted are 'same' and 'int8'")
        if self.pull not in ("live", "int8", "int4"):
            raise ValueError(f"exchange.pull is {self.pull!r}; accepted are 'live', 'int8' and 'int4'")
        if self.pull != "live" and self.codec != "bfloat16":
            raise ValueError(f"exchange.pull={self.pull!r} needs exchange.codec='bfloat16', not {self.codec!r}")
        if not isinstance(self.overlap, bool) and self.overlap != "auto":
            raise ValueError(f"exchange.overlap is {self.overlap!r}; accepted are True, False and 'auto'")
        _at_least("exchange.publish_every", self.publish_every, 0)
        if not self.give_up_after_s > 0:
            raise ValueError(f"exchange.give_up_after_s is {self.give_up_after_s}; give a number of seconds above 0")


@dataclass(frozen=True)
class Job:
    """One training job.

    Attributes:
        name: Name of the recipe; also the folder under `runs/`.
        model: Builds the network: an object with `build`, for labelled images, or a function without parameters.
        data: Training and held-out examples, such as `ImageRecords`, `Examples` or `Stream`.
        validation_sets: Further data sets by name, whose held-out examples the evaluator scores as `val_NAME_...`.
        loss: `loss(labels, outputs) -> scalar`; outputs are float32, labels as the data give them. None: the model is
            compiled, and its own loss is used, with its metrics by the evaluator.
        rule: Update rule that the shards apply.
        schedule: Learning rate as a function of a shard's version.
        pace: Synchronisation model: `Async`, `Bounded` (stale-synchronous) or `Sync`.
        staleness: Treatment of stale gradients on the shards: `Auto`, `Keep`, `Divide`, `Compensate`, `Lookahead` or
            `Drop`.
        cadence: How often workers push and pull: `EveryStep`, `Accumulate`, `Downpour` or `LocalSteps`.
        clip: Limit of each batch's gradient, in the worker; None for none.
        average: Average of the parameters that shards keep beside them: `Polyak` or `Mean`; None for none.
        evaluate_average: Whether the evaluator scores that average in place of the parameters.
        num_steps: Global steps (pushes) until the job ends.
        batch_size: Examples in one worker's batch.
        slicing: Which variables are cut into slices, and how. The first entry is the head.
        weight_decay: Coefficient for trained variables, applied by the shards.
        decay: Its form: `l2` (weight_decay * w is added to the gradient) or `decoupled` (the rate times weight_decay *
            w is subtracted from w before the rule, as AdamW does).
        undecayed: Name patterns (`fnmatch`) of variables without weight decay.
        rates: Multipliers of the learning rate, by name pattern; where several match a variable, the last counts.
        frozen: Name patterns of variables and statistics that are pulled, but never pushed or updated.
        statistics: Name patterns of variables that are not trained, but assigned by a layer in a training call, and
            whose differences add up over workers, as a moving mean's do. Batch norm's need no pattern.
        local: Name patterns of such variables that are not exchanged: each worker has its own. They keep their initial
            value in checkpoints and exports.
        cluster: Numbers of processes.
        exchange: Wire settings.
        checkpoint_every_steps: Global steps between checkpoints, each of which the evaluator scores.
        checkpoint_every_epoch: Whether every epoch ends with a checkpoint, too. The evaluator then scores each, and
            training waits, up to 30 s, before it is more than half an epoch ahead of its checkpoints, or two and a
            half ahead of its scores.
        keep_checkpoints: Number of newest checkpoints that are kept.
        keep_every_steps: The first checkpoint at or after each multiple of so many steps is kept, too; 0 for none.
        max_train_s: Seconds of training after which the job ends even if steps are left; when resumed, as many again.
        callbacks: What the chief does when checkpoints are written and scored: `EarlyStopping`, `KeepBest`,
            `ReduceOnPlateau`, or objects of own subclasses of `Callback`.
        sinks: What hears the history of the run while it is written: `TensorBoard`, which by default writes event files
            where tensorboardX is installed, and objects of own subclasses of `Sink`.
        steps_per_epoch: Global steps of an epoch; 0 for the batches of the training examples, which may have no end.
        seed: Seed of initial values, shuffling and augmentation.
    """

    name: str
    model: Network | Callable[[], Any]
    data: Dataset
    loss: Callable[[Any, Any], Any] | None
    rule: Rule
    schedule: Schedule
    num_steps: int
    batch_size: int
    slicing: tuple[Slicing, ...] = ()
    pace: Mode = _ASYNC
    staleness: Treatment = _AUTO
    cadence: Cadence = _EVERY_STEP
    clip: Clip | None = None
    average: Average | None = None
    evaluate_average: bool = False
    weight_decay: float = 0.0
    decay: str = "l2"
    undecayed: tuple[str, ...] = ("*/bias", "*/gamma", "*/beta")
    rates: tuple[Rate, ...] = ()
    frozen: tuple[str, ...] = ()
    statistics: tuple[str, ...] = ()
    local: tuple[str, ...] = ()
    cluster: Cluster = field(default_factory=Cluster)
    exchange: Exchange = field(default_factory=Exchange)
    checkpoint_every_steps: int = 1000
    checkpoint_every_epoch: bool = False
    keep_checkpoints: int = 3
    keep_every_steps: int = 0
    max_train_s: float = math.inf
    callbacks: tuple[Callback, ...] = ()
    sinks: tuple[Sink, ...] = field(default_factory=lambda: (TensorBoard(if_installed=True),))
    steps_per_epoch: int = 0
    validation_sets: Mapping[str, Dataset] = field(default_factory=dict)
    seed: int = 0

    # Fields that an override may set to another dataclass by name, `--set=pace=Bounded(lead=4)`.
    CHOICES: ClassVar[dict[str, dict[str, type]]] = {
        **_CHOICES,
        "callbacks": dict(kinds.BY_NAME),
        "sinks": {"TensorBoard": TensorBoard},
    }

    def __post_init__(self) -> None:
        fields.check_numbers("", self)
        fields.check_objects(self, {**_CHOICES, "cluster": {"Cluster": Cluster}, "exchange": {"Exchange": Exchange}})
        pace.check(self.pace, self.cluster.num_workers, self.cluster.most_workers, overlap=self.overlap is True)
        cadence.check(self.cadence, overlap=self.overlap is True)
        kinds.check(self.callbacks)
        sinks.check(self.sinks)
        fields.check_sets("validation_sets", self.validation_sets)
        staleness.check(self.staleness, self.rule, self.pace)
        if isinstance(self.staleness, Compensate) and self.exchange.push != "same":
            raise ValueError("staleness: Compensate needs exchange.push='same'; what it sends along cannot be int8")
        _at_least("num_steps", self.num_steps, 1)
        _at_least("batch_size", self.batch_size, 1)
        _at_least("checkpoint_every_steps", self.checkpoint_every_steps, 1)
        _at_least("keep_checkpoints", self.keep_checkpoints, 1)
        _at_least("keep_every_steps", self.keep_every_steps, 0)
        _at_least("steps_per_epoch", self.steps_per_epoch, 0)
        for i, slicing in enumerate(self.slicing):
            _at_least(f"slicing.{i}.num_slices", slicing.num_slices, 1)
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay is {self.weight_decay}; give 0 or more")
        if self.decay not in ("l2", "decoupled"):
            raise ValueError(f"decay is {self.decay!r}; accepted are 'l2' and 'decoupled'")
        if self.evaluate_average and self.average is None:
            raise ValueError("evaluate_average is True without an average; give `average`, for example Polyak(0.999)")
        if not self.max_train_s > 0:
            raise ValueError(f"max_train_s is {self.max_train_s}; give a number of seconds above 0")

    @property
    def overlap(self) -> bool | None:
        """Whether workers overlap the exchange with computing; None if the chief decides during training."""
        if self.exchange.overlap != "auto":
            return self.exchange.overlap
        return None if pace.permits_overlap(self.pace) and cadence.permits_overlap(self.cadence) else False

    @property
    def treatment(self) -> Treatment:
        """Treatment of stale gradients, never `Auto`."""
        gradients = isinstance(self.cadence, EveryStep | Accumulate)
        workers = self.cluster.most_workers
        averages = self.average is not None
        return staleness.resolved(
            self.staleness,
            self.rule,
            self.pace,
            workers,
            self.num_steps,
            pushes_gradients=gradients,
            keeps_average=averages,
        )

    @property
    def publish_every(self) -> int:
        """Pushes between two publications; 0 if there are none."""
        if self.exchange.pull == "live":
            return 0
        return self.exchange.publish_every or PULLS_A_PUBLICATION * self.cluster.num_workers


def _at_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{key} is {value}; give a whole number of at least {least}")
