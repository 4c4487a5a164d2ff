"""The four Indexed Jobs of a job. Pure.

`specification` returns a Job's `spec`, which a JobSet uses as well.
"""

from __future__ import annotations

from typing import Any

from downpour.launch.kubernetes import names, pods
from downpour.launch.kubernetes.deployment import Deployment
from downpour.launch.roles import entry
from downpour.launch.roles.topology import ROLES, Topology

TERMINATED = 143  # 128 + SIGTERM: terminated before the job was done
KEEP_FINISHED_S = 24 * 3600

_FAILURES = 20  # of one process, not counting those caused by its machine or by SIGTERM
_SHARD_RESTARTS = 100  # for each shard

HEADS = {
    "ps": """\
The shards of the job: an Indexed Job, no StatefulSet.
They have what a StatefulSet provides: stable names (pod i is NAME-ps-i behind the headless Service), all pods
started at once, a pod replaced under its own name. But a StatefulSet runs until it is deleted, and this Job ends when
training is done: the chief stops the shards (--stop_shards), they exit with 0, and the Job is complete.""",
    "worker": """\
The workers: an elastic Indexed Job. Their number changes at any time without a restart, up to cluster.max_workers:
    kubectl patch job NAME-worker --type=merge --patch='{"spec": {"completions": N, "parallelism": N}}'
Kubernetes requires that both numbers are equal; the workers with the highest indices stop first.""",
    "chief": """\
The chief: creates or restores the model, leases records, writes checkpoints, ends the job. An Indexed Job of
one, for its stable name.""",
    "evaluator": """\
The evaluators, as many as cluster.num_evaluators: each checkpoint is scored on held-out data by one of them. Nothing
interrupts them: the chief ends after the score of the last checkpoint, and an evaluator by itself when no checkpoint is
left to score.""",
}


def job(deployment: Deployment, role: str) -> dict[str, Any]:
    """The Job of a role."""
    assert role in ROLES, role
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": names.object_name(deployment.name, role),
            "labels": names.labels(deployment.name, role),
        },
        "spec": specification(deployment, role, deployment.topology, may_scale=True),
    }


def specification(deployment: Deployment, role: str, where: Topology, *, may_scale: bool) -> dict[str, Any]:
    """A Job's `spec`.

    Args:
        deployment: The job.
        role: Role of the Job.
        where: Addresses for its pods' commands.
        may_scale: Whether the number of its pods may change while it runs; then `subdomain` is set here to the
            Service's name, which a JobSet sets itself.
    """
    template = pods.template(deployment, role, deployment.command(role, where))
    subdomain = {"subdomain": deployment.name} if may_scale else {}
    template["spec"] = {**_restart(role), **subdomain, **template["spec"]}
    count = deployment.count(role)
    return {
        "completionMode": "Indexed",
        "completions": count,
        "parallelism": count,
        **_failures(role, count, may_scale=may_scale),
        "#podReplacementPolicy": "One pod of a name at a time: the next one starts when the last one has ended.",
        "podReplacementPolicy": "Failed",
        **_success(role, count),
        "#ttlSecondsAfterFinished": (
            "Finished Jobs are removed after a day. There is no activeDeadlineSeconds: a job may train for months, and "
            "what ends it is num_steps or max_train_s of its recipe, after a last checkpoint."
        ),
        "ttlSecondsAfterFinished": KEEP_FINISHED_S,
        "template": template,
    }


def _restart(role: str) -> dict[str, Any]:
    if role == "ps":
        why = (
            "Restarts in place keep the arena. Kubernetes has no podFailurePolicy for such pods, and none is needed: "
            "a shard that was killed continues from its arena."
        )
        return {"#restartPolicy": why, "restartPolicy": "OnFailure"}
    return {"restartPolicy": "Never"}


def _failures(role: str, count: int, *, may_scale: bool) -> dict[str, Any]:
    """Limits of a process's failures, and which of them count."""
    if role == "ps":
        why = "The limit of restarts of all shards together, counted in the pods that exist."
        return {"#backoffLimit": why, "backoffLimit": _SHARD_RESTARTS * count}
    if role == "worker":
        why = "A worker that fails so often is not restarted again; the others continue without it."
        limit = {"#backoffLimitPerIndex": why, "backoffLimitPerIndex": _FAILURES}
    else:
        limit = {"backoffLimit": _FAILURES}
    # A worker beyond cluster.max_workers, after a patch to too many, must not fail the others.
    mend = "FailIndex" if role == "worker" and may_scale else "FailJob"
    return limit | {
        "#podFailurePolicy": (
            "Not counted: a pod that its machine, an eviction or a preemption ended, or that ended at SIGTERM "
            f"({TERMINATED}). Never retried: an error of configuration ({entry.REFUSED}). Everything else counts, "
            f"also a peer that did not answer ({entry.UNREACHABLE})."
        ),
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {"action": "Ignore", "onExitCodes": _exits(role, TERMINATED)},
                {"action": mend, "onExitCodes": _exits(role, entry.REFUSED)},
            ]
        },
    }


def _exits(role: str, code: int) -> dict[str, Any]:
    return {"containerName": role, "operator": "In", "values": [code]}


def _success(role: str, count: int) -> dict[str, Any]:
    whys = {
        "ps": "When one shard has exited with 0, training is done; a shard that was just restarting is ended, too.",
        "worker": "When one worker has exited with 0, training is done; a worker that was just restarting "
        "would find no chief.",
        "evaluator": "When one evaluator has exited with 0, the last checkpoint is scored; one that was just "
        "restarting would find no chief.",
    }
    if role not in whys or (role == "evaluator" and count == 1):
        return {}
    return {"#successPolicy": whys[role], "successPolicy": {"rules": [{"succeededCount": 1}]}}
