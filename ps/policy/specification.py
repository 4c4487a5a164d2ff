"""The specification of a shard: layout and policies of a job, as the chief sends them. Pure.

It is assembled and read here only. Whether two shards work alike is compared by `POLICIES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from downpour.proto import parameter_server_pb2 as pb
from downpour.ps.layout import Layout
from downpour.ps.policy import averages, pace, rules, schedules, staleness
from downpour.ps.policy.averages import Average
from downpour.ps.policy.named import from_message, to_message
from downpour.ps.policy.pace import Async, Mode
from downpour.ps.policy.rules import Rule
from downpour.ps.policy.schedules import Schedule
from downpour.ps.policy.staleness import Keep, Treatment

POLICIES = ("rule", "schedule", "pace", "staleness", "average")  # fields of specifications


class HasPolicies(Protocol):
    """A job, or whatever has its policies; see `Policies`."""

    @property
    def rule(self) -> Any:
        """Update rule."""

    @property
    def schedule(self) -> Any:
        """Learning-rate schedule."""

    @property
    def pace(self) -> Any:
        """Synchronisation model."""

    @property
    def treatment(self) -> Any:
        """Treatment of stale gradients."""

    @property
    def average(self) -> Any:
        """Average of the parameters, or None."""


@dataclass(frozen=True)
class Policies:
    """What a shard does with gradients.

    Attributes:
        rule: Update rule.
        schedule: Learning-rate schedule.
        pace: Synchronisation model.
        treatment: Treatment of stale gradients.
        average: Average of the parameters, or None.
    """

    rule: Rule
    schedule: Schedule
    pace: Mode
    treatment: Treatment
    average: Average | None


def specification_of(job: HasPolicies, layout: Layout, num_workers: int, shard: int = 0) -> pb.ShardSpecification:
    """Returns what a shard is initialised with; `job_id` is not set.

    Args:
        job: The job's policies.
        layout: Layout of its variables.
        num_workers: Number of workers that the pace expects.
        shard: Index of the shard.
    """
    specification = pb.ShardSpecification(
        shard=shard, fingerprint=layout.fingerprint, layout=layout.canonical, num_workers=num_workers
    )
    for name in POLICIES:
        if (policy := getattr(job, "treatment" if name == "staleness" else name)) is not None:
            getattr(specification, name).CopyFrom(to_message(policy))
    return specification


def policies_of(specification: pb.ShardSpecification) -> Policies:
    """Returns the policies in a specification; without pace and treatment, they are `Async` and `Keep`.

    Raises:
        ValueError: A policy is missing, not known, or lacks a value; or a value is refused.
    """
    known = {name: getattr(specification, name) for name in POLICIES if specification.HasField(name)}
    return Policies(
        rule=from_message(rules.BY_NAME, specification.rule),
        schedule=from_message(schedules.BY_NAME, specification.schedule),
        pace=from_message(pace.BY_NAME, known["pace"]) if "pace" in known else Async(),
        treatment=from_message(staleness.BY_NAME, known["staleness"]) if "staleness" in known else Keep(),
        average=from_message(averages.BY_NAME, known["average"]) if "average" in known else None,
    )
