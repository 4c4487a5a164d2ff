"""The settings of a job: the values that its chief needs. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from downpour.model.data.epochs import ENDLESS, Epochs
from downpour.proto import chief_pb2
from downpour.proto.errors import LayoutMismatch, TooManyWorkers
from downpour.worker.chief.callbacks import Callback
from downpour.worker.chief.sinks import Sink

# Fields of a job that a run which is resumed seldom means to change, by their first name.
_LEARNING = {"batch_size", "data", "loss", "model", "rule", "seed", "weight_decay"}


@dataclass(frozen=True)
class JobSettings:
    """The values of a job that its chief needs.

    Attributes:
        recipe: Name of the recipe, for the summary.
        rule: Update rule of the shards.
        schedule: Learning-rate schedule of the shards.
        pace: Synchronisation model of the workers, a mode of `downpour.ps.policy.pace`.
        treatment: Treatment of stale gradients by the shards, one of `downpour.ps.policy.staleness`.
        num_workers: Number of expected workers.
        lease_s: Seconds without a message after which a worker counts as lost.
        num_steps: Global steps until the job ends.
        checkpoint_every_steps: Global steps between checkpoints.
        max_train_s: Seconds of training after which the job ends at any step.
        num_records: Training records, good or bad.
        lease_records: Records of a lease.
        facts: Further entries of the summary.
        average: Average of the parameters, one of `downpour.ps.policy.averages`, or None.
        checkpoint_dir: Path or URL of the checkpoints' folder.
        keep_checkpoints: How many of the newest checkpoints are kept.
        keep_every_steps: The first checkpoint at or after each multiple of so many steps is kept, too; 0 for none.
        resume: Whether empty shards begin with the newest checkpoint of an earlier run: `no`, `yes`, or `if_any`.
        description: Description of the job, stored in every checkpoint.
        max_workers: Exclusive limit of a worker's index, if above num_workers.
        num_evaluators: Expected evaluators, which determine how far training may be ahead of scores.
        expects_evaluator: Whether to wait for an evaluator that has not connected when training is over.
        overwrite: Whether a new run may remove what an earlier one has left in its folder.
        job_id: Id of a run that begins, the same for every start of its chief; empty for a random one. A run that is
            resumed keeps its own.
        job: Fields of the job and their values that must be the same in workers and evaluator.
        callbacks: What happens when checkpoints are written and scored.
        sinks: What hears the history while it is written.
        epochs: Which steps make an epoch; by default there is one that never ends.
        checkpoint_every_epoch: Whether every epoch ends with a checkpoint, which the evaluator scores.
        chooses_overlap: Whether the chief decides if workers overlap.
        trace_steps: How many steps every worker traces, after its first one.
    """

    recipe: str
    rule: Any
    schedule: Any
    pace: Any
    treatment: Any
    num_workers: int
    lease_s: float
    num_steps: int
    checkpoint_every_steps: int
    max_train_s: float
    num_records: int
    lease_records: int
    facts: dict[str, Any]
    checkpoint_dir: str
    average: Any = None
    keep_checkpoints: int = 3
    keep_every_steps: int = 0
    resume: str = "no"
    description: Mapping[str, Any] = field(default_factory=dict)
    max_workers: int = 0
    expects_evaluator: bool = False
    num_evaluators: int = 1
    overwrite: bool = False
    job_id: str = ""
    job: Mapping[str, str] = field(default_factory=dict)
    callbacks: tuple[Callback, ...] = ()
    sinks: tuple[Sink, ...] = ()
    epochs: Epochs = ENDLESS
    checkpoint_every_epoch: bool = False
    chooses_overlap: bool = False
    trace_steps: int = 0

    def check_job(self, who: str, theirs: Mapping[str, str]) -> None:
        """Raises `LayoutMismatch` with the first field in which the job of another process differs from this job."""
        for key in (*self.job, *theirs):
            if self.job.get(key) != theirs.get(key):
                raise LayoutMismatch(
                    f"{who} runs another job: {key} is {theirs.get(key, 'missing')} there and "
                    f"{self.job.get(key, 'missing')} in the chief; start every role with the same recipe and overrides"
                )

    def changes(self, progress: Mapping[str, Any]) -> list[str]:
        """The fields of what is learned, and how, in which this job differs from the one that wrote a checkpoint.

        Args:
            progress: The checkpoint's progress; those of older versions know of no fields.
        """
        theirs = progress.get("job", {}).get("job", {})
        return [
            f"{key} is {self.job.get(key, 'missing')} and was {theirs.get(key, 'missing')}"
            for key in sorted({*theirs, *self.job} if theirs else ())
            if key.partition(".")[0] in _LEARNING and theirs.get(key) != self.job.get(key)
        ]

    def check_worker(self, request: chief_pb2.RegisterRequest, fingerprint: bytes) -> None:
        """Compares what a worker runs with this job and the fingerprint of its layout.

        Raises:
            TooManyWorkers: The job admits no worker of this index.
            LayoutMismatch: The worker runs another job, or computed another layout.
        """
        index, most = request.worker, max(self.num_workers, self.max_workers)
        if index >= most:
            raise TooManyWorkers(
                f"worker {index}, but the job takes {most} workers; give an --index of 0 to {most - 1}, or start the "
                f"chief with --set=cluster.max_workers={index + 1}"
            )
        self.check_job(f"worker {index}", request.job)
        if request.fingerprint != fingerprint:
            raise LayoutMismatch(
                f"worker {index} computed layout {request.fingerprint.hex()[:16]}, the chief {fingerprint.hex()[:16]}; "
                "start every role with the same recipe, overrides and versions of Downpour and Keras"
            )
