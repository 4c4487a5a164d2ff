"""Refuses what nobody here acts on, so that nothing in a manifest goes unexecuted without notice. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Document = dict[str, Any]

_SIZES = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
_REFERENCE = re.compile(r"\$(\$|\(([A-Za-z_][A-Za-z0-9_.-]*)\))")

# What is said about a pod to those that are not played: the scheduler, the image puller, the account's token.
_POD_UNPLAYED = {
    "serviceAccountName",
    "automountServiceAccountToken",
    "enableServiceLinks",
    "affinity",
    "topologySpreadConstraints",
    "tolerations",
}
_POD = {
    "restartPolicy",
    "subdomain",
    "hostname",
    "terminationGracePeriodSeconds",
    "securityContext",
    "initContainers",
    "containers",
    "volumes",
}
_POD_SECURITY = {"runAsNonRoot", "runAsUser", "runAsGroup", "fsGroup", "fsGroupChangePolicy", "seccompProfile"}
_CONTAINER = {"name", "image", "imagePullPolicy", "command", "args", "env", "ports", "resources", "securityContext"}
_TERMINATION = {"terminationMessagePath", "terminationMessagePolicy"}
_PROBES = {"startupProbe", "readinessProbe", "livenessProbe"}
_CONTAINER_SECURITY = {"allowPrivilegeEscalation", "readOnlyRootFilesystem", "capabilities"}


def known(document: Mapping[str, Any], *fields: str) -> None:
    """Asserts that a document has no other fields."""
    assert set(document) <= set(fields), f"nobody acts on {sorted(set(document) - set(fields))}"


def check_pod(spec: Document) -> None:
    """Asserts that everything in a pod's specification is played, or is known not to be."""
    known(spec, *_POD, *_POD_UNPLAYED)
    assert spec["restartPolicy"] in ("Never", "OnFailure"), spec["restartPolicy"]
    assert spec["automountServiceAccountToken"] is False, "no token is mounted here"
    assert spec["enableServiceLinks"] is False, "no variables of Services are made here"
    known(spec["securityContext"], *_POD_SECURITY)
    assert spec["securityContext"]["runAsNonRoot"] is True
    for container in spec.get("initContainers", []):
        known(container, *_CONTAINER, *_TERMINATION, "volumeMounts")
        _check_container(container)
    (container,) = spec["containers"]  # several are not played
    known(container, *_CONTAINER, *_TERMINATION, *_PROBES, "volumeMounts")
    _check_container(container)


def _check_container(container: Document) -> None:
    known(container["securityContext"], *_CONTAINER_SECURITY)
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    for variable in container.get("env", []):
        known(variable, "name", "value")
    for mount in container["volumeMounts"]:
        known(mount, "name", "mountPath", "readOnly")
    for port in container.get("ports", []):
        known(port, "name", "containerPort", "protocol")
    known(container["resources"], "requests", "limits")


def size(quantity: str) -> int:
    """Bytes of a quantity such as 64Mi."""
    number, unit = re.fullmatch(r"([0-9]+)([KMGT]i)?", quantity).groups()  # type: ignore[union-attr]
    return int(number) * _SIZES[unit or ""]


def expand(text: str, variables: Mapping[str, str]) -> str:
    """What Kubernetes makes of $(NAME) and $$ in arguments and variables; an unknown name stays as it is."""
    return _REFERENCE.sub(lambda found: "$" if found[1] == "$" else variables.get(found[2], found[0]), text)


def environment(container: Document) -> dict[str, str]:
    """Variables of a container; each may refer to those before it."""
    variables: dict[str, str] = {}
    for variable in container.get("env", []):
        variables[variable["name"]] = expand(variable["value"], variables)
    return variables


def arguments(container: Document, variables: Mapping[str, str]) -> list[str]:
    """The command line of a container."""
    return [expand(word, variables) for word in (*container["command"], *container.get("args", []))]


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether labels are selected."""
    return selector.items() <= labels.items()
