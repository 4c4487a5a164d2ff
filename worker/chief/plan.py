"""What the chief must know of a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from downpour.proto import chief_pb2
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import LayoutMismatch, TooManyWorkers
from downpour.ps.policy.named import to_message


@dataclass(frozen=True)
class Plan:
    """What the chief must know of a job.

    Attributes:
        recipe: Name, for the summary.
        rule: Update rule of the shards.
        schedule: Learning-rate schedule of the shards.
        pace: How far apart workers may be, a mode of `downpour.ps.policy.pace`.
        staleness: What shards do about it, a treatment of `downpour.ps.policy.staleness`.
        num_workers: Workers that are expected.
        lease_s: A worker that says nothing for so many seconds is lost.
        num_steps: Global steps until the end.
        checkpoint_every_steps: Global steps between checkpoints.
        max_train_s: Seconds of training after which the job ends all the same.
        num_records: Training records, good or bad.
        lease_records: Records that a worker is given at a time.
        facts: More entries for the summary.
        average: Of the parameters, an average of `downpour.ps.policy.averages`, or None.
        checkpoint_dir: Path or URL of the checkpoints' folder.
        keep_checkpoints: How many of the newest are kept.
        keep_every_steps: The first checkpoint at or after each multiple of so many steps is kept, too; 0 for none.
        resume: Whether empty shards begin with the newest checkpoint of an earlier run: `no`, `yes`, or `if_any`.
        description: What the job is, for whoever reads a checkpoint.
        max_workers: A worker's index is below it; 0 for num_workers.
        expects_evaluator: Whether an evaluator will come, if it has not yet when training is over.
        overwrite: Whether a new run may remove what another one has left in its folder.
        job_id: Id of a run that begins, the same for every start of its chief; empty for a random one. A run that is
            resumed keeps its own.
        job: What must be the same in workers and evaluator: fields of the job and their values.
    """

    recipe: str
    rule: Any
    schedule: Any
    pace: Any
    staleness: Any
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
    overwrite: bool = False
    job_id: str = ""
    job: Mapping[str, str] = field(default_factory=dict)

    def check_job(self, who: str, theirs: Mapping[str, str]) -> None:
        """Raises `LayoutMismatch` with the first field in which the job of another process differs from this one."""
        for key in (*self.job, *theirs):
            if self.job.get(key) != theirs.get(key):
                raise LayoutMismatch(
                    f"{who} runs another job: {key} is {theirs.get(key, 'missing')} there and "
                    f"{self.job.get(key, 'missing')} in the chief; start every role with the same recipe and overrides"
                )

    def check_worker(self, request: chief_pb2.RegisterRequest, fingerprint: bytes) -> None:
        """Compares what a worker runs with this job and the fingerprint of its layout.

        Raises:
            TooManyWorkers: The job takes no worker of this index.
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

    def told(self) -> pb.ShardSpecification:
        """What every shard must know of it."""
        return pb.ShardSpecification(
            rule=to_message(self.rule),
            schedule=to_message(self.schedule),
            pace=to_message(self.pace),
            num_workers=self.num_workers,
            staleness=to_message(self.staleness),
            average=None if self.average is None else to_message(self.average),
        )
