"""Objects of a job beside its Jobs: Service, network rules, account, recipe, claim. Pure."""

from __future__ import annotations

from typing import Any

from downpour.launch.kubernetes import names, pods
from downpour.launch.kubernetes.deployment import Deployment
from downpour.launch.roles.topology import ROLES

# Callers of each role. The evaluator reads checkpoints, not shards; a terminating shard calls the chief for one.
CALLERS = {"ps": ("worker", "chief"), "chief": ("worker", "evaluator", "ps"), "worker": (), "evaluator": ()}
_LARGEST_CONFIG_MAP = 1 << 20


def _object(deployment: Deployment, api: str, kind: str, name: str, **body: Any) -> dict[str, Any]:
    labels = names.labels(deployment.name)
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name, "labels": labels}, **body}


def service(deployment: Deployment) -> dict[str, Any]:
    """The headless Service that gives every pod its name."""
    return _object(
        deployment,
        "v1",
        "Service",
        deployment.name,
        spec={
            "#clusterIP": "Headless: no address of its own, but a name for every pod, such as "
            f"{names.host(deployment.name, 'ps', 0)}.",
            "clusterIP": "None",
            "#publishNotReadyAddresses": "The chief must find a shard before it is ready, as it fills it.",
            "publishNotReadyAddresses": True,
            "selector": names.labels(deployment.name),
            "ports": [
                *({"name": role, "port": port} for role, port in names.PORTS.items()),
                {"name": "health", "port": names.HEALTH_PORT},
            ],
        },
    )


def network_policies(deployment: Deployment) -> list[dict[str, Any]]:
    """One policy per role, which admits only its callers, health checks and what reads metrics."""
    return [_network_policy(deployment, role) for role in ROLES]


def _network_policy(deployment: Deployment, role: str) -> dict[str, Any]:
    callers = [{"podSelector": {"matchLabels": names.labels(deployment.name, caller)}} for caller in CALLERS[role]]
    own = {"from": callers, "ports": [{"protocol": "TCP", "port": names.PORTS[role]}]} if callers else None
    health = {
        "#ports": "Health checks come from anywhere: the kubelet's come from its machine's address.",
        "ports": [{"protocol": "TCP", "port": names.HEALTH_PORT}],
    }
    metrics = {
        "#from": "Metrics: any pod of the cluster, since Prometheus may be in any namespace; nobody from outside.",
        "from": [{"namespaceSelector": {}}],
        "ports": [{"protocol": "TCP", "port": names.METRICS_PORT}],
    }
    why = (
        "What comes in. What goes out is left open: checkpoints and data may be in an object store, whose addresses "
        "nobody knows beforehand."
    )
    return _object(
        deployment,
        "networking.k8s.io/v1",
        "NetworkPolicy",
        names.object_name(deployment.name, role),
        spec={
            "podSelector": {"matchLabels": names.labels(deployment.name, role)},
            "#policyTypes": why,
            "policyTypes": ["Ingress"],
            "ingress": [*([own] if own else []), health, metrics],
        },
    )


def disruption_budget(deployment: Deployment) -> dict[str, Any]:
    """Budget that lets, for example, a drain evict one shard at a time."""
    return _object(
        deployment,
        "policy/v1",
        "PodDisruptionBudget",
        names.object_name(deployment.name, "ps"),
        spec={
            "#minAvailable": "All shards but one. For pods of a Job Kubernetes takes a number, no percentage and no "
            "maxUnavailable.",
            "minAvailable": deployment.count("ps") - 1,
            "#unhealthyPodEvictionPolicy": "A shard that is not ready must not block a drain.",
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": names.labels(deployment.name, "ps")},
        },
    )


def service_account(deployment: Deployment) -> dict[str, Any]:
    """An account without any rights."""
    return _object(deployment, "v1", "ServiceAccount", deployment.name, automountServiceAccountToken=False)


def recipe(deployment: Deployment) -> dict[str, Any]:
    """ConfigMap with the recipe's file; overrides are in the commands."""
    size = len(deployment.recipe_text.encode())
    if size >= _LARGEST_CONFIG_MAP:
        raise ValueError(
            f"the recipe has {size:,} bytes, a ConfigMap at most {_LARGEST_CONFIG_MAP:,}; put it into the image"
        )
    name = names.object_name(deployment.name, "recipe")
    return _object(deployment, "v1", "ConfigMap", name, data={deployment.recipe_file: deployment.recipe_text})


def run_claim(deployment: Deployment) -> dict[str, Any]:
    """Claim for the chief's journal, the results and, unless they go to a URL, the checkpoints."""
    everybody = "Shards write checkpoints and the evaluator reads them, each on its own machine."
    only_chief = "The chief's journal and results; checkpoints go to a URL."
    mode = "ReadWriteOnce" if deployment.checkpoint_dir else "ReadWriteMany"
    return _claim(deployment, "run", deployment.storage, mode, only_chief if deployment.checkpoint_dir else everybody)


def arena_claim(deployment: Deployment) -> dict[str, Any]:
    """Claim for all arenas on one volume; each shard has its own file in it."""
    why = "One claim for all shards, as pods of a Job cannot have one each."
    size = f"{deployment.count('ps') * pods.arena_mib(deployment)}Mi"
    return _claim(deployment, "arena", size, "ReadWriteMany", why)


def _claim(deployment: Deployment, what: str, size: str, mode: str, why: str) -> dict[str, Any]:
    storage_class = {"storageClassName": deployment.storage_class} if deployment.storage_class else {}
    return _object(
        deployment,
        "v1",
        "PersistentVolumeClaim",
        names.object_name(deployment.name, what),
        spec={
            "#accessModes": why,
            "accessModes": [mode],
            **storage_class,
            "resources": {"requests": {"storage": size}},
        },
    )
