"""Kustomizations: the base, its parts and its overlays. Pure.

base/            one `kubectl apply -k`: jobs + common + certs
base/jobs/       the four Jobs and their Service: what is replaced when the number of shards changes
base/common/     what is kept then: recipe, claim, account, network rules, disruption budget
base/certs/      Secrets, of the files that `downpour certs` makes
overlays/spot/          the base, with workers on spot machines
overlays/arena-claim/   the base, with arenas on a volume claim
overlays/cert-manager/  jobs + common, with certificates that cert-manager makes
monitoring/             PodMonitor, alert rules and dashboard, for clusters with the Prometheus operator
jobset/, tfjob/         common + certs and one object in place of the Jobs
"""

from __future__ import annotations

from typing import Any

from downpour.launch.kubernetes import names
from downpour.launch.kubernetes.deployment import Deployment
from downpour.launch.kubernetes.text import render
from downpour.launch.roles.topology import ROLES

GITIGNORE = "# Do not commit keys and the token.\n*\n!.gitignore\n!kustomization.yaml\n"

_TOLERATED = (  # taints of the large clouds' spot machines
    ("cloud.google.com/gke-spot", "true"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
)
_SPOT = (
    *_TOLERATED,
    ("eks.amazonaws.com/capacityType", "SPOT"),
    ("karpenter.sh/capacity-type", "spot"),
)
_ISSUER_API = "cert-manager.io/v1"


def kustomization(deployment: Deployment, resources: list[str], **more: Any) -> dict[str, Any]:
    """A kustomization.yaml."""
    namespace = {"namespace": deployment.namespace} if deployment.namespace else {}
    head = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", **namespace}
    return {**head, **({"resources": resources} if resources else {}), **more}


def secrets(deployment: Deployment) -> dict[str, Any]:
    """Generators of the Secrets: a certificate for each role, and the token."""
    job = deployment.name
    certificates = [
        {
            "name": names.object_name(job, f"tls-{role}"),
            "type": "kubernetes.io/tls",
            "files": [f"{role}/{file}" for file in ("tls.crt", "tls.key", "ca.crt")],
        }
        for role in ROLES
    ]
    return {**_constant_names(), "secretGenerator": [*certificates, _token(job)]}


def cert_manager(deployment: Deployment) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The cert-manager overlay's kustomization, and the job's own CA with a certificate for each role."""
    job = deployment.name
    resources = ["../../base/jobs", "../../base/common", "certificates.yaml"]
    overlay = kustomization(deployment, resources, **_constant_names(), secretGenerator=[_token(job)])
    authority = names.object_name(job, "ca")
    self_signed = names.object_name(job, "self-signed")
    return overlay, [
        _cert_manager_object(job, "Issuer", self_signed, {"selfSigned": {}}),
        _cert_manager_object(
            job,
            "Certificate",
            authority,
            {
                "isCA": True,
                "commonName": f"{job}.downpour",
                "secretName": authority,
                "#duration": "Longer than the job trains: certificates are renewed under this CA, the CA itself is not "
                "replaced while roles run.",
                "duration": "26280h",
                "privateKey": {"algorithm": "ECDSA", "size": 256},
                "issuerRef": {"name": self_signed, "kind": "Issuer"},
            },
        ),
        _cert_manager_object(job, "Issuer", authority, {"ca": {"secretName": authority}}),
        *(_certificate(job, role, authority) for role in ROLES),
    ]


def _certificate(job: str, role: str, authority: str) -> dict[str, Any]:
    spec = {
        "secretName": names.object_name(job, f"tls-{role}"),
        "#dnsNames": "Role and job, no host: this name decides what a role may do.",
        "dnsNames": [f"{role}.{job}.downpour"],
        "usages": ["digital signature", "server auth", "client auth"],
        "duration": "2160h",
        "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
        "issuerRef": {"name": authority, "kind": "Issuer"},
    }
    return _cert_manager_object(job, "Certificate", names.object_name(job, role), spec)


def _cert_manager_object(job: str, kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": name, "labels": names.labels(job)}
    return {"apiVersion": _ISSUER_API, "kind": kind, "metadata": metadata, "spec": spec}


def spot(deployment: Deployment) -> dict[str, Any]:
    """The spot overlay: workers tolerate and prefer spot machines; all other roles stay off them."""
    tolerations = [
        {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"} for key, value in _TOLERATED
    ]
    preferred: list[dict[str, Any]] = [
        {
            "weight": 100,
            "preference": {"matchExpressions": [{"key": key, "operator": "In", "values": [value]}]},
        }
        for key, value in _SPOT
    ]
    affinity = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
    pod = "/spec/template/spec"
    tolerate: list[dict[str, Any]]
    if deployment.gpus_per_worker:  # there are tolerations already
        tolerate = [{"op": "add", "path": f"{pod}/tolerations/-", "value": one} for one in tolerations]
    else:
        tolerate = [{"op": "add", "path": f"{pod}/tolerations", "value": tolerations}]
    operations: list[dict[str, Any]] = [*tolerate, {"op": "add", "path": f"{pod}/affinity", "value": affinity}]
    return kustomization(deployment, ["../../base"], patches=[_patch(deployment, "worker", operations)])


def arena_claim(deployment: Deployment) -> dict[str, Any]:
    """The arena-claim overlay: the volume `arena` of the shards' pods is a claim."""
    volume = {
        "name": "arena",
        "persistentVolumeClaim": {"claimName": names.object_name(deployment.name, "arena")},
    }
    # The first volume of a shard's pod; the patch itself first tests that it is the arena.
    at = "/spec/template/spec/volumes/0"
    operations: list[dict[str, Any]] = [
        {"op": "test", "path": f"{at}/name", "value": "arena"},
        {"op": "replace", "path": at, "value": volume},
    ]
    patches = [_patch(deployment, "ps", operations)]
    return kustomization(deployment, ["../../base", "claim.yaml"], patches=patches)


def _patch(deployment: Deployment, role: str, operations: list[dict[str, Any]]) -> dict[str, Any]:
    target = {"group": "batch", "version": "v1", "kind": "Job", "name": names.object_name(deployment.name, role)}
    return {"target": target, "patch": "\n".join(_operation(one) for one in operations) + "\n"}


def _operation(operation: dict[str, Any]) -> str:
    """One operation as an entry of a YAML list."""
    first, *others = render([operation]).splitlines()
    return "\n".join([f"- {first}", *(f"  {line}" for line in others)])


def _constant_names() -> dict[str, Any]:
    return {
        "generatorOptions": {
            "#disableNameSuffixHash": "The names of Secrets in pods of a Job cannot change; renewed files get to them "
            "under the same name.",
            "disableNameSuffixHash": True,
        }
    }


def _token(job: str) -> dict[str, Any]:
    return {"name": names.object_name(job, "token"), "files": ["token"]}
