"""A role's pod: container, probes, resources, security context, volumes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from downpour.launch.kubernetes import names
from downpour.launch.kubernetes.deployment import KILL_AFTER_S, Deployment

_EVALUATOR_GRACE_S = 600
_SLOW_START_S = {"ps": 60, "worker": 300, "chief": 300, "evaluator": 300}
_CPUS = {"ps": "1", "worker": "4", "chief": "500m", "evaluator": "2"}

_END = "FallbackToLogsOnError"
_RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def template(deployment: Deployment, role: str, command: list[str], container: str = "") -> dict[str, Any]:
    """A pod template.

    Args:
        deployment: The job.
        role: Role of the pod.
        command: Command of its container.
        container: Name of its container; the role's by default.
    """
    return {
        "metadata": {"labels": names.labels(deployment.name, role)},
        "spec": {
            "serviceAccountName": deployment.name,
            "#automountServiceAccountToken": "Nothing in this job asks Kubernetes for anything.",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            **_grace(role),
            "#securityContext": 'With the containers\' own, what the Pod Security Standard "restricted" asks for.',
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": names.USER,
                "runAsGroup": names.USER,
                "fsGroup": names.USER,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            **_placement(deployment, role),
            "initContainers": [_kernels(deployment, role)],
            "containers": [_container(deployment, role, command, container or role)],
            "volumes": _volumes(deployment, role),
        },
    }


def ports(role: str) -> list[dict[str, Any]]:
    """Ports that a role listens on."""
    own = [{"name": "grpc", "containerPort": names.PORTS[role]}] if role in names.PORTS else []
    return [*own, {"name": "health", "containerPort": names.HEALTH_PORT}]


def _grace(role: str) -> dict[str, Any]:
    if role == "ps":
        why = (
            "A shard that is stopped requests a checkpoint from the chief first, for up to --grace_s. Spot machines "
            "often give no more than this."
        )
        return {"#terminationGracePeriodSeconds": why, "terminationGracePeriodSeconds": KILL_AFTER_S}
    if role == "evaluator":
        why = (
            "Time to finish the score of a checkpoint. The chief waits as long for the last score before it ends, and "
            "nothing ends this pod before that."
        )
        return {"#terminationGracePeriodSeconds": why, "terminationGracePeriodSeconds": _EVALUATOR_GRACE_S}
    return {"terminationGracePeriodSeconds": KILL_AFTER_S}


def _placement(deployment: Deployment, role: str) -> dict[str, Any]:
    same = {"matchLabels": names.labels(deployment.name, role)}
    if role == "ps":
        term = {"labelSelector": same, "topologyKey": "kubernetes.io/hostname"}
        preferred = [{"weight": 100, "podAffinityTerm": term}]
        return {
            "#affinity": "Different machines, if there are enough: shards then share neither network line nor failure.",
            "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}},
        }
    if role == "worker":
        spread = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
        gpu = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        return {
            "topologySpreadConstraints": [{**spread, "labelSelector": same}],
            **({"tolerations": gpu} if deployment.gpus_per_worker else {}),
        }
    return {}


def _kernels(deployment: Deployment, role: str) -> dict[str, Any]:
    """Init container that copies the kernels compiled in the image."""
    return {
        "name": "kernels",
        "#image": (
            "The loops are compiled in the image. numba writes to its cache whenever it opens it, and nothing may "
            "write to the image, so they are copied: otherwise every start would compile them."
        ),
        "image": deployment.image_of(role),
        "imagePullPolicy": "IfNotPresent",
        "command": ["cp", "-R", f"{names.BUILT_KERNELS}/.", names.KERNELS],
        "terminationMessagePolicy": _END,
        "resources": {"requests": {"cpu": "100m", "memory": "32Mi"}, "limits": {"memory": "64Mi"}},
        "securityContext": _RESTRICTED,
        "volumeMounts": [{"name": "kernels", "mountPath": names.KERNELS}],
    }


def _container(deployment: Deployment, role: str, command: list[str], name: str) -> dict[str, Any]:
    return {
        "name": name,
        "image": deployment.image_of(role),
        "imagePullPolicy": "IfNotPresent",
        "command": command,
        "env": [
            {"name": "PYTHONUNBUFFERED", "value": "1"},
            {"name": "HOME", "value": names.TEMPORARY},
            {"name": "NUMBA_CACHE_DIR", "value": names.KERNELS},
        ],
        "ports": ports(role),
        "#terminationMessagePolicy": (
            "`kubectl describe pod` shows why a container has ended: what its process has written to "
            "/dev/termination-log, or, if it could not, the end of its log."
        ),
        "terminationMessagePolicy": _END,
        **_probes(role),
        **_resources(deployment, role),
        "securityContext": _RESTRICTED,
        "volumeMounts": _mounts(deployment, role),
    }


def _probes(role: str) -> dict[str, Any]:
    """Probes on a port that serves only health, since the kubelet has no certificate."""
    alive, ready = {"port": names.HEALTH_PORT, "service": ""}, {"port": names.HEALTH_PORT, "service": "ready"}
    period_s = 1 if role == "ps" else 5
    return {
        "startupProbe": {
            "grpc": alive,
            "periodSeconds": period_s,
            "failureThreshold": _SLOW_START_S[role] // period_s,
            "timeoutSeconds": 5,
        },
        "#readinessProbe": "Ready: " + _READY[role] + " Names resolve before that; the Service publishes them at once.",
        "readinessProbe": {"grpc": ready, "periodSeconds": 5, "timeoutSeconds": 5},
        "#livenessProbe": "The limit is generous, since a machine that is busy with training answers late.",
        "livenessProbe": {"grpc": alive, "periodSeconds": 20, "failureThreshold": 6, "timeoutSeconds": 10},
    }


_READY = {
    "ps": "the shard holds its parameters.",
    "chief": "it has the layout.",
    "worker": "it is registered and has its model.",
    "evaluator": "it has its model.",
}


def _resources(deployment: Deployment, role: str) -> dict[str, Any]:
    request, more = deployment.sizes.requests()[role], deployment.sizes.limits()[role]
    requested = sum(request.values())
    limit = requested + sum(more.values())
    cpus = str(deployment.job.cluster.threads_per_worker or _CPUS[role]) if role == "worker" else _CPUS[role]
    gpu = {"nvidia.com/gpu": deployment.gpus_per_worker} if role == "worker" and deployment.gpus_per_worker else {}
    why = [
        f"Memory: {_sum(request)} = {requested} MiB; limit: with {_sum(more)}, {limit} MiB.",
        *(["The arena counts, as it is in memory; the largest shard decides."] if role == "ps" else []),
        *(["An estimate: put what `kubectl top pod` shows in its place."] if role in ("worker", "evaluator") else []),
        "No limit of processors: a throttled shard or worker delays others while processors are idle.",
    ]
    return {
        "#resources": "\n\n".join(why),
        "resources": {
            "requests": {"cpu": cpus, "memory": f"{requested}Mi", "ephemeral-storage": "1Gi", **gpu},
            "limits": {"memory": f"{limit}Mi", "ephemeral-storage": "2Gi", **gpu},
        },
    }


def _sum(parts: Mapping[str, int]) -> str:
    return " + ".join(f"{size} ({name})" for name, size in parts.items())


def _mounts(deployment: Deployment, role: str) -> list[dict[str, Any]]:
    arena = [{"name": "arena", "mountPath": names.ARENA}] if role == "ps" else []
    recipe = [{"name": "recipe", "mountPath": names.RECIPE, "readOnly": True}] if role != "ps" else []
    data = [{"name": "data", "mountPath": names.DATA, "readOnly": True}] if deployment.uses_data(role) else []
    return [
        *recipe,
        *data,
        *arena,
        *([{"name": "run", "mountPath": names.RUN}] if deployment.uses_run_claim(role) else []),
        {"name": "tls", "mountPath": names.TLS, "readOnly": True},
        {"name": "token", "mountPath": names.TOKEN, "readOnly": True},
        {"name": "kernels", "mountPath": names.KERNELS},
        {"name": "tmp", "mountPath": names.TEMPORARY},
    ]


def _volumes(deployment: Deployment, role: str) -> list[dict[str, Any]]:
    job = deployment.name
    arena = {
        "#name": "A restarted container continues from the arena; a new pod has none, and its shard is restored "
        "from the newest checkpoint.",
        "name": "arena",
        "emptyDir": {"medium": "Memory", "sizeLimit": f"{arena_mib(deployment)}Mi"},
    }
    run = {"name": "run", "persistentVolumeClaim": {"claimName": names.object_name(job, "run")}}
    data = {"name": "data", "persistentVolumeClaim": {"claimName": deployment.data_claim, "readOnly": True}}
    return [
        *([arena] if role == "ps" else []),  # first: an overlay replaces it by a claim
        *([{"name": "recipe", "configMap": {"name": names.object_name(job, "recipe")}}] if role != "ps" else []),
        *([data] if deployment.uses_data(role) else []),
        *([run] if deployment.uses_run_claim(role) else []),
        _secret("tls", names.object_name(job, f"tls-{role}")),
        _secret("token", names.object_name(job, "token")),
        {"name": "kernels", "emptyDir": {"sizeLimit": "64Mi"}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
    ]


def arena_mib(deployment: Deployment) -> int:
    """Size of the volume for a shard's arena, in MiB."""
    return deployment.sizes.requests()["ps"]["arena"] + 1


def _secret(volume: str, secret: str) -> dict[str, Any]:
    return {"name": volume, "secret": {"secretName": secret, "#defaultMode": "0440", "defaultMode": 0o440}}
