"""The same job as one JobSet (jobset.x-k8s.io/v1alpha2). Pure.

Its pods have other names, `NAME-ps-0-i` instead of `NAME-ps-i`, so the commands have other addresses; Jobs and pods are
the same otherwise.
"""

from __future__ import annotations

from typing import Any

from downpour.launch.kubernetes import jobs, names
from downpour.launch.kubernetes.deployment import Deployment
from downpour.launch.roles.topology import ROLES

HEAD = """\
The whole job as one object, for the JobSet controller. Unlike the four Jobs it ends everything also when the chief has
failed for good; but its numbers cannot change while it runs."""

_MAX_RESTARTS = 10


def host(job: str, role: str, index: int) -> str:
    """Host name of a pod: JobSet puts the replica's number before the pod's index."""
    return f"{job}-{role}-0-{index}.{job}"


def document(deployment: Deployment) -> dict[str, Any]:
    """The JobSet."""
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": deployment.name, "labels": names.labels(deployment.name)},
        "spec": {
            "network": {
                "enableDNSHostnames": True,
                "subdomain": deployment.name,
                "#publishNotReadyAddresses": "The chief must find shards that it has not filled yet.",
                "publishNotReadyAddresses": True,
            },
            "#successPolicy": "When the chief has ended, training is done, and the JobSet ends the other pods.",
            "successPolicy": {"operator": "All", "targetReplicatedJobs": ["chief"]},
            "failurePolicy": _failure_policy(),
            "ttlSecondsAfterFinished": jobs.KEEP_FINISHED_S,
            "replicatedJobs": [_replicated(deployment, role) for role in ROLES],
        },
    }


def _replicated(deployment: Deployment, role: str) -> dict[str, Any]:
    where = deployment.cluster(host)
    specification = jobs.specification(deployment, role, where, may_scale=False)
    for key in ("ttlSecondsAfterFinished", "#ttlSecondsAfterFinished"):
        del specification[key]  # the JobSet has its own
    return {
        "name": role,
        "replicas": 1,
        "template": {
            "metadata": {"labels": names.labels(deployment.name, role)},
            "spec": specification,
        },
    }


def _failure_policy() -> dict[str, Any]:
    """Actions when a Job has failed by its own rules."""
    return {
        "#maxRestarts": "The limit of restarts of Jobs and of the JobSet together, after each Job's own limit.",
        "maxRestarts": _MAX_RESTARTS,
        "#rules": "The first rule that matches applies.",
        "rules": [
            {
                "#name": "Exit code 2 is an error of configuration, which a restart does not mend.",
                "name": "mend",
                "action": "FailJobSet",
                "onJobFailureReasons": ["PodFailurePolicy"],
            },
            {
                "#name": "These roles lose nothing when they restart; shards and other roles continue meanwhile.",
                "name": "stateless",
                "action": "RestartJob",
                "targetReplicatedJobs": ["worker", "chief", "evaluator"],
            },
            {
                "#name": "All roles restart together, and the chief continues from the newest checkpoint.",
                "name": "shards",
                "action": "RestartJobSet",
                "targetReplicatedJobs": ["ps"],
            },
        ],
    }
