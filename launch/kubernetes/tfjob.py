"""The same job as a Kubeflow TFJob (kubeflow.org/v1). Pure.

Its controller gives every pod the cluster, its role and its index as TF_CONFIG, which `downpour.launch.roles.topology`
reads; so commands have neither addresses nor indices. The controller makes a Service for every pod.
"""

from __future__ import annotations

from typing import Any

from downpour.launch.kubernetes import jobs, names, pods
from downpour.launch.kubernetes.deployment import Deployment
from downpour.launch.roles.topology import ROLES

HEAD = """\
The job for Kubeflow's training operator (v1). TF_CONFIG, which it puts into every pod, names addresses and indices;
that is why no command does."""

REPLICAS = {"ps": "PS", "worker": "Worker", "chief": "Chief", "evaluator": "Evaluator"}

# ExitCode: codes from 128 on, the result of a lost or preempted machine, are retried in a new pod; lower ones fail the
# job.
_RESTART = {"ps": "OnFailure", "worker": "ExitCode", "chief": "ExitCode", "evaluator": "ExitCode"}

_CONTAINER = "tensorflow"  # name that the operator requires
_PORT = "tfjob-port"
_RESTARTS = 100  # of each shard's container


def document(deployment: Deployment) -> dict[str, Any]:
    """The TFJob."""
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "TFJob",
        "metadata": {"name": deployment.name, "labels": names.labels(deployment.name)},
        "spec": {
            "runPolicy": {
                "#cleanPodPolicy": "When the chief is done, running pods are ended; others are kept for their logs.",
                "cleanPodPolicy": "Running",
                "#backoffLimit": "The limit of restarts in place, which only shards have.",
                "backoffLimit": _RESTARTS * deployment.count("ps"),
                "ttlSecondsAfterFinished": jobs.KEEP_FINISHED_S,
            },
            "#tfReplicaSpecs": "No successPolicy: by default a TFJob with a Chief is done when its chief is.",
            "tfReplicaSpecs": {REPLICAS[role]: _replica(deployment, role) for role in ROLES},
        },
    }


def _replica(deployment: Deployment, role: str) -> dict[str, Any]:
    template = pods.template(deployment, role, deployment.tf_config_command(role), _CONTAINER)
    (container,) = template["spec"]["containers"]
    # The operator's Services publish a pod's name only once it is ready. A shard is ready once the chief has filled it,
    # and the chief could not find it before that: a deadlock.
    for key in ("#readinessProbe", "readinessProbe"):
        del container[key]
    container["ports"] = [port | {"name": _PORT} if port["name"] == "grpc" else port for port in container["ports"]]
    if role == "ps":
        why = "In place, so that the arena is kept."
    else:
        why = (
            "Codes from 128 on, those of a lost machine, are retried. Others are final, so processes wait longer for a "
            "peer that does not answer, by --set=exchange.give_up_after_s."
        )
    return {
        "replicas": deployment.count(role),
        "#restartPolicy": why,
        "restartPolicy": _RESTART[role],
        "template": template,
    }
